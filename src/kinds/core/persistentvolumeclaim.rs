//! PersistentVolumeClaim: somebody wants a volume.
//!
//! A claim is bound by the binder (`controllers::volume`), and protected while pods have it
//! (StorageObjectInUseProtection).

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Map, Value, json};

use super::{claim, podspec};
use crate::base::json::{at, list, map, set, set_default, text};
use crate::base::labels::label_key_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    // Kubernetes' own mistake, which clients rely on.
    fields: &[Field { name: "name", get: |claim| text(claim, "metadata.name").into() }],
    strategy: Strategy {
        default,
        prepare_create: |claim| {
            set(claim, "status", json!({"phase": "Pending"}));
            if let Some(spec) = claim.get_mut("spec") {
                claim::drop_sources(spec);
                claim::normalize_sources(spec);
            }
        },
        prepare_update: |new, old| {
            let had = at(old, "spec.dataSource").or(at(old, "spec.dataSourceRef")).is_some();
            if let Some(spec) = new.get_mut("spec") {
                if !had {
                    claim::drop_sources(spec);
                }
                claim::normalize_sources(spec);
            }
        },
        validate: |_| Errors::new(),
        validate_create: |claim| {
            let mut errors = Errors::new();
            claim::validate_spec(&mut errors, &Path::root("spec"), &claim["spec"], false);
            errors
        },
        validate_update,
        validate_status,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"accessModes":["ReadWriteOnce"],
        "resources":{"requests":{"storage":"1Gi"}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Status", "Whether it has a volume."),
    string("Volume", "The volume."),
    string("Capacity", "How large the volume is."),
    string("Access Modes", "How the volume may be mounted."),
    string("StorageClass", "What kind of volume it wants."),
    string("VolumeAttributesClass", "What attributes the volume is to have."),
    table::AGE,
    table::wide("VolumeMode", "What the volume is to those who mount it."),
];

/// Holds a claim while a pod has it.
pub const PROTECTION: &str = "kubernetes.io/pvc-protection";
/// What became of a change of its size.
const RESIZE_STATES: &[&str] = &[
    "ControllerResizeInProgress",
    "ControllerResizeInfeasible",
    "NodeResizePending",
    "NodeResizeInProgress",
    "NodeResizeInfeasible",
];

fn row(claim: &Value, now: Timestamp) -> Vec<Value> {
    let ending = at(claim, "metadata.deletionTimestamp").is_some();
    let volume = text(claim, "spec.volumeName");
    let (mut capacity, mut modes) = (String::new(), String::new());
    if !volume.is_empty() {
        modes = claim::shown_modes(list(claim, "status.accessModes"));
        capacity = match text(claim, "status.capacity.storage") {
            "" => "0".into(),
            some => some.into(),
        };
    }
    vec![
        table::name(claim),
        if ending { "Terminating" } else { text(claim, "status.phase") }.into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        claim::class_of(claim).into(),
        or_unset(claim, "spec.volumeAttributesClassName"),
        table::age(claim, now),
        or_unset(claim, "spec.volumeMode"),
    ]
}

/// A text that somebody has given, or that nobody has.
pub(super) fn or_unset(object: &Value, path: &str) -> Value {
    at(object, path).filter(|v| v.is_string()).cloned().unwrap_or_else(|| "<unset>".into())
}

fn default(claim: &mut Value) {
    set_default(claim, "status.phase", "Pending");
    default_spec(claim);
}

/// Defaults of the spec of a claim, or of an object that has one as claims do.
pub fn default_spec(claim: &mut Value) {
    set_default(claim, "spec.volumeMode", "Filesystem");
    for path in ["/spec/resources/requests", "/spec/resources/limits", "/status/capacity", "/status/allocatedResources"]
    {
        claim.pointer_mut(path).into_iter().for_each(podspec::default_resource_list);
    }
}

/// The size that is asked for.
pub fn requested(claim: &Value) -> Option<Quantity> {
    text(claim, "spec.resources.requests.storage").parse().ok()
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    claim::validate_spec(&mut errors, &spec, &new["spec"], claim::has_groups(&old["spec"]));
    let class = |claim: &Value| at(claim, "spec.storageClassName").and_then(Value::as_str).map(str::to_owned);
    let beta = |claim: &Value| claim["metadata"]["annotations"][claim::BETA_CLASS].as_str().map(str::to_owned);
    let (mut then, mut now) = (compared(&old["spec"]), compared(&new["spec"]));
    // A volume is given once.
    if text(old, "spec.volumeName").is_empty() {
        copy(&mut then, &now, "volumeName");
    }
    let upgraded = beta(old).is_some()
        && class(old).is_none()
        && class(new) == beta(old)
        && beta(new).is_none_or(|new| Some(new) == beta(old));
    if upgraded {
        now.remove("storageClassName");
    } else {
        if beta(new) != beta(old) {
            let path = Path::root("metadata");
            errors.push(field::invalid(&path.key(claim::BETA_CLASS), beta(new).unwrap_or_default(), check::IMMUTABLE));
        }
        if class(new).is_some() && class(old).is_none() && beta(old).is_none_or(|beta| Some(beta) == class(new)) {
            copy(&mut now, &then, "storageClassName");
        }
    }
    if text(new, "status.phase") == "Bound" {
        copy(&mut now, &then, "requests.storage");
    }
    copy(&mut now, &then, "volumeAttributesClassName");
    if now != then {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(field::forbidden(&spec, why));
    }
    if requested(new).zip(requested(old)).is_some_and(|(new, old)| new < old) {
        let has: Quantity = text(old, "status.capacity.storage").parse().unwrap_or_else(|_| Quantity::from_units(0));
        if requested(new).is_some_and(|new| new <= has) {
            let why = "field can not be less than status.capacity";
            errors.push(field::forbidden("spec.resources.requests.storage", why));
        }
    }
    check::immutable(&mut errors, &Path::root("volumeMode"), at(new, "spec.volumeMode"), at(old, "spec.volumeMode"));
    let attributes =
        |claim: &Value| at(claim, "spec.volumeAttributesClassName").and_then(Value::as_str).map(str::to_owned);
    if let (Some(_), None | Some("")) = (attributes(old), attributes(new).as_deref())
        && attributes(new) != attributes(old)
    {
        let to = if attributes(new).is_none() { "nil" } else { "an empty string" };
        let why = format!("update from non-nil value to {to} is forbidden");
        errors.push(field::forbidden("spec.volumeAttributesClassName", why));
    }
    errors
}

/// The spec as it is compared: amounts by what they are and not by how they are written.
fn compared(spec: &Value) -> Map<String, Value> {
    let mut out: Map<String, Value> = spec.as_object().cloned().unwrap_or_default();
    out.retain(|_, value| !value.is_null());
    out.remove("resources");
    for list in ["requests", "limits"] {
        for (name, amount) in map(spec, &format!("resources.{list}")).into_iter().flatten() {
            let number = amount.as_str().and_then(|a| a.parse::<Quantity>().ok()).map(|a| a.milli());
            out.insert(format!("{list}.{name}"), number.into());
        }
    }
    out
}

fn copy(to: &mut Map<String, Value>, from: &Map<String, Value>, key: &str) {
    match from.get(key) {
        Some(value) => to.insert(key.to_owned(), value.clone()),
        None => to.remove(key),
    };
}

fn validate_status(new: &Value, _: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::root("status");
    let amount = |value: &Value| value.as_str().and_then(|a| a.parse::<Quantity>().ok());
    let invalid = "must be a valid resource quantity";
    for key in ["capacity", "allocatedResources"] {
        let path = status.field(key);
        for (name, value) in map(&new["status"], key).into_iter().flatten() {
            if key == "allocatedResources" && !resource_key(&mut errors, &path, name) {
                continue;
            }
            if let Some(negative) = amount(value).filter(Quantity::is_negative) {
                errors.push(field::invalid(&path.key(name), negative.to_string(), invalid));
            }
        }
    }
    // The path in Kubernetes' answer has no plural.
    let path = status.field("allocatedResourceStatus");
    for (name, state) in map(&new["status"], "allocatedResourceStatuses").into_iter().flatten() {
        resource_key(&mut errors, &path, name);
        if !state.as_str().is_some_and(|s| RESIZE_STATES.contains(&s)) {
            errors.push(field::not_supported(&path, name.as_str(), RESIZE_STATES));
        }
    }
    errors
}

/// Whether it is the name of what claims can have.
fn resource_key(errors: &mut Errors, path: &Path<'_>, name: &str) -> bool {
    if let Some(why) = label_key_error(name) {
        errors.push(field::invalid(path, name, why));
        return false;
    }
    let is_native = !name.contains('/') || name.contains("kubernetes.io/");
    if is_native && name != "storage" {
        errors.push(field::not_supported(path, name, &["storage"]));
        return false;
    }
    true
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let path = "spec.resources.requests[storage]";
    let mut warnings = claim::warnings(new, path, text(new, "spec.resources.requests.storage"));
    let is_block = |claim: &Value| text(claim, "spec.volumeMode") == "Block";
    if is_block(new) && !old.is_some_and(is_block) {
        warnings.push("spec.volumeMode: block devices are refused by nodes of this version".into());
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value) -> Value {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let mut object = json!({"metadata": {"name": "c"}, "spec": all});
        KIND.default(&mut object);
        object
    }

    fn changed(old: &Value, change: &dyn Fn(&mut Value)) -> Vec<String> {
        let mut new = old.clone();
        change(&mut new);
        KIND.validate_update(&new, old).iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn a_claim_stays_what_it_is_but_for_its_volume_and_once_bound_its_size() {
        let old = claim(json!({"storageClassName": "a"}));
        let none: [&str; 0] = [];
        assert_eq!(changed(&old, &|c| c["spec"]["volumeName"] = "v".into()), none);
        assert_eq!(changed(&old, &|c| c["spec"]["resources"]["requests"]["storage"] = "1024Mi".into()), none);
        assert_eq!(changed(&old, &|c| c["spec"]["resources"]["requests"]["storage"] = "2Gi".into()), ["spec"]);
        assert_eq!(changed(&old, &|c| c["spec"]["volumeMode"] = "Block".into()), ["spec", "volumeMode"]);
        assert_eq!(changed(&old, &|c| c["spec"]["storageClassName"] = "b".into()), ["spec"]);
        let mut bound = claim(json!({"volumeName": "v"}));
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        assert_eq!(changed(&bound, &|c| c["spec"]["volumeName"] = "w".into()), ["spec"]);
        assert_eq!(changed(&bound, &|c| c["spec"]["resources"]["requests"]["storage"] = "2Gi".into()), none);
        let shrunk = changed(&bound, &|c| c["spec"]["resources"]["requests"]["storage"] = "512Mi".into());
        assert_eq!(shrunk, ["spec.resources.requests.storage"]);
        // Until it has as much as it wanted, less is fine.
        let mut growing = bound.clone();
        growing["spec"]["resources"]["requests"]["storage"] = "4Gi".into();
        assert_eq!(changed(&growing, &|c| c["spec"]["resources"]["requests"]["storage"] = "2Gi".into()), none);
        let free = claim(json!({}));
        assert_eq!(changed(&free, &|c| c["spec"]["storageClassName"] = "later".into()), none);
    }

    #[test]
    fn what_a_volume_is_filled_with_is_said_in_both_ways() {
        let prepared = |spec: Value| {
            let mut object = claim(spec);
            KIND.prepare_create(&mut object);
            let errors: Vec<String> = KIND.validate_create(&object).iter().map(ToString::to_string).collect();
            (object["spec"]["dataSource"].clone(), object["spec"]["dataSourceRef"].clone(), errors)
        };
        let source = json!({"kind": "PersistentVolumeClaim", "name": "x"});
        let none: [&str; 0] = [];
        let (old, new, errors) = prepared(json!({"dataSource": source}));
        assert_eq!((&old, &new), (&source, &source));
        assert_eq!(errors, none);
        let (old, new, errors) = prepared(json!({"dataSource": {"kind": "Other", "name": "x"}}));
        assert_eq!((old, new), (Value::Null, Value::Null));
        assert_eq!(errors, none);
        let (_, new, _) =
            prepared(json!({"dataSourceRef": {"kind": "X", "apiGroup": "a.b", "name": "x", "namespace": "n"}}));
        assert_eq!(new, json!({"kind": "X", "apiGroup": "a.b", "name": "x"}));
        let (_, _, errors) =
            prepared(json!({"dataSource": source, "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "y"}}));
        assert_eq!(errors, ["spec: Invalid value: \"spec.dataSource\": must match dataSourceRef"]);
    }

    #[test]
    fn a_status_has_amounts_that_can_be() {
        let fields = |status: Value| -> Vec<String> {
            KIND.validate_status(&json!({"status": status}), &Value::Null).iter().map(|e| e.field.clone()).collect()
        };
        assert_eq!(fields(json!({"capacity": {"storage": "-1"}})), ["status.capacity[storage]"]);
        assert_eq!(fields(json!({"allocatedResourceStatuses": {"storage": "x"}})), ["status.allocatedResourceStatus"]);
        assert_eq!(fields(json!({"allocatedResources": {"cpu": "1"}})), ["status.allocatedResources"]);
        assert!(fields(json!({"capacity": {"storage": "1"}, "allocatedResources": {"storage": "1"}})).is_empty());
    }
}
