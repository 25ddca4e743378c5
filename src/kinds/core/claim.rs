//! What a claim asks for: the same in PersistentVolumeClaims, in ephemeral volumes and in templates of StatefulSets.

use serde_json::{Map, Value};

use crate::base::json::{at, list, text};
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// How volumes may be mounted.
pub const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// What volumes are to those who mount them.
pub const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// Where the class was named once.
pub const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Errors in a claim's spec; with `keeps_groups` the groups of its sources were accepted before.
pub fn validate_spec(errors: &mut Errors, path: &Path<'_>, spec: &Value, keeps_groups: bool) {
    let modes_path = path.field("accessModes");
    if list(spec, "accessModes").is_empty() {
        errors.push(field::required(&modes_path, "at least 1 access mode is required"));
    }
    check::label_selector(errors, &path.field("selector"), spec.get("selector"));
    access_modes(errors, &modes_path, list(spec, "accessModes"));
    let resources = path.field("resources");
    let storage = resources.key("storage");
    match at(spec, "resources.requests").and_then(|r| r.get("storage")).and_then(Value::as_str).map(str::parse) {
        None => errors.push(field::required(&storage, "")),
        Some(amount) => positive(errors, &storage, amount.ok()),
    }
    class_name(errors, &path.field("storageClassName"), text(spec, "storageClassName"));
    check::one_of(errors, &path.field("volumeMode"), text(spec, "volumeMode"), VOLUME_MODES);
    sources(errors, path, spec, keeps_groups);
    class_name(errors, &path.field("volumeAttributesClassName"), text(spec, "volumeAttributesClassName"));
}

/// Known modes, and the one that stands alone.
pub fn access_modes(errors: &mut Errors, path: &Path<'_>, modes: &[Value]) {
    for mode in modes {
        let mode = mode.as_str().unwrap_or("");
        if !ACCESS_MODES.contains(&mode) {
            errors.push(field::not_supported(path, mode, ACCESS_MODES));
        }
    }
    let (once, others): (Vec<&str>, Vec<&str>) = modes
        .iter()
        .filter_map(Value::as_str)
        .filter(|m| ACCESS_MODES.contains(m))
        .partition(|m| *m == "ReadWriteOncePod");
    if !once.is_empty() && !others.is_empty() {
        errors.push(field::forbidden(path, "may not use ReadWriteOncePod with other access modes"));
    }
}

/// An amount that must be above zero.
pub fn positive(errors: &mut Errors, path: &Path<'_>, amount: Option<Quantity>) {
    if let Some(amount) = amount.filter(|a| a.is_zero() || a.is_negative()) {
        errors.push(field::invalid(path, amount.to_string(), "must be greater than zero"));
    }
}

/// The name of a class; none is fine.
pub fn class_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if !name.is_empty() {
        check::dns_subdomain(errors, path, name);
    }
}

/// What the volume is filled with.
fn sources(errors: &mut Errors, path: &Path<'_>, spec: &Value, keeps_groups: bool) {
    let given = |key: &str| spec.get(key).filter(|s| s.is_object());
    let (source, reference) = (given("dataSource"), given("dataSourceRef"));
    for (key, object) in [("dataSource", source), ("dataSourceRef", reference)] {
        let Some(object) = object else { continue };
        let path = path.field(key);
        check::given(errors, &path.field("name"), text(object, "name"));
        check::given(errors, &path.field("kind"), text(object, "kind"));
        let (group, kind) = (text(object, "apiGroup"), text(object, "kind"));
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(field::invalid(&path, kind, why));
        }
        if let Some(why) = dns_subdomain_error(group).filter(|_| !group.is_empty() && !keeps_groups) {
            errors.push(field::invalid(&path.field("apiGroup"), group, why));
        }
        let namespace = text(object, "namespace");
        if let Some(why) = dns_label_error(namespace).filter(|_| !namespace.is_empty()) {
            errors.push(field::invalid(&path.field("namespace"), namespace, why));
        }
    }
    let (Some(source), Some(reference)) = (source, reference) else { return };
    let shown = path.field("dataSource").to_string();
    if !text(reference, "namespace").is_empty() {
        errors.push(field::invalid(path, shown, "may not be specified when dataSourceRef.namespace is specified"));
    } else if ["apiGroup", "kind", "name"].iter().any(|key| source.get(*key) != reference.get(*key)) {
        errors.push(field::invalid(path, shown, "must match dataSourceRef"));
    }
}

/// Whether the sources name a group.
pub fn has_groups(spec: &Value) -> bool {
    ["dataSource", "dataSourceRef"].iter().any(|key| !text(spec, &format!("{key}.apiGroup")).is_empty())
}

/// One way of saying what the volume is filled with says the other too. What only a new form of source can be is no old one.
pub fn normalize_sources(spec: &mut Value) {
    let Some(spec) = spec.as_object_mut() else { return };
    spec.retain(|key, value| !(value.is_null() && matches!(key.as_str(), "dataSource" | "dataSourceRef")));
    let copied = |from: &Value| -> Value {
        let pairs = from.as_object().into_iter().flatten().filter(|(k, _)| *k != "namespace");
        pairs.map(|(k, v)| (k.clone(), v.clone())).collect::<Map<_, _>>().into()
    };
    match (spec.get("dataSource"), spec.get("dataSourceRef")) {
        (Some(source), None) => {
            let reference = copied(source);
            spec.insert("dataSourceRef".into(), reference);
        }
        (None, Some(reference)) if text(reference, "namespace").is_empty() => {
            let source = copied(reference);
            spec.insert("dataSource".into(), source);
        }
        _ => {}
    }
}

/// Drops what a source cannot be: the old form knows claims and snapshots alone, and no source is in another namespace.
pub fn drop_sources(spec: &mut Value) {
    let Some(spec) = spec.as_object_mut() else { return };
    let is_known = |source: &Value| {
        let pair = (text(source, "apiGroup"), text(source, "kind"));
        matches!(pair, ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot"))
    };
    // With the new form beside it, both must agree, which validation says.
    if spec.get("dataSourceRef").is_none_or(Value::is_null) && spec.get("dataSource").is_some_and(|s| !is_known(s)) {
        spec.remove("dataSource");
    }
    if let Some(reference) = spec.get_mut("dataSourceRef").and_then(Value::as_object_mut) {
        reference.remove("namespace");
    }
}

/// The class of a claim or a volume: the old annotation counts first.
pub fn class_of(object: &Value) -> &str {
    match object["metadata"]["annotations"][BETA_CLASS].as_str() {
        Some(class) => class,
        None => text(object, "spec.storageClassName"),
    }
}

/// Access modes for people.
pub fn shown_modes(modes: &[Value]) -> String {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    let short: Vec<&str> = known.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect();
    short.join(",")
}

/// Warnings about an amount at a path, and about the old annotation.
pub fn warnings(object: &Value, amount_path: &str, amount: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    if object["metadata"]["annotations"].get(BETA_CLASS).is_some() {
        warnings.push(format!(
            "metadata.annotations[{BETA_CLASS}]: deprecated since v1.8; use \"storageClassName\" attribute instead"
        ));
    }
    if amount.parse::<Quantity>().is_ok_and(|a| a.milli() % 1000 != 0) {
        warnings.push(format!("{amount_path}: fractional byte value {amount:?} is invalid, must be an integer"));
    }
    warnings
}
