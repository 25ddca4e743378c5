//! PersistentVolume: storage that claims are bound to.
//!
//! What kinds of storage there can be is in [`source`]; nodes of this version mount some of them, and of the others clients
//! are warned.

mod source;

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::persistentvolumeclaim::or_unset;
use super::{claim, podspec};
use crate::base::json::{at, list, map, set, set_default, text};
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.core.v1.PersistentVolume",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    // Kubernetes' own mistake, which clients rely on.
    fields: &[Field { name: "name", get: |volume| text(volume, "metadata.name").into() }],
    strategy: Strategy {
        default: |volume| {
            set_default(volume, "status.phase", "Pending");
            set_default(volume, "spec.persistentVolumeReclaimPolicy", "Retain");
            set_default(volume, "spec.volumeMode", "Filesystem");
            volume.pointer_mut("/spec/capacity").into_iter().for_each(podspec::default_resource_list);
            podspec::default_volume_sources(&mut volume["spec"]);
        },
        prepare_create: |volume| {
            let now = text(volume, "metadata.creationTimestamp").to_owned();
            set(volume, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
        },
        prepare_status: |new, old| {
            // Who says nothing of the time has not changed it.
            let time = at(old, "status.lastPhaseTransitionTime").cloned();
            if let Some(time) = time.filter(|_| at(new, "status.lastPhaseTransitionTime").is_none_or(Value::is_null)) {
                set(new, "status.lastPhaseTransitionTime", time);
            }
        },
        validate,
        validate_update,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"accessModes":["ReadWriteOnce"],"capacity":{"storage":"1Gi"},
        "hostPath":{"path":"/srv"}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Capacity", "How large it is."),
    string("Access Modes", "How it may be mounted."),
    string("Reclaim Policy", "What becomes of it when its claim goes."),
    string("Status", "Whether a claim has it."),
    string("Claim", "The claim."),
    string("StorageClass", "What kind of volume it is."),
    string("VolumeAttributesClass", "What attributes it has."),
    string("Reason", "Why it is in this state."),
    table::AGE,
    table::wide("VolumeMode", "What it is to those who mount it."),
];

/// Holds a volume while it is bound.
pub const PROTECTION: &str = "kubernetes.io/pv-protection";
/// What becomes of a volume without its claim.
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];

fn row(volume: &Value, now: Timestamp) -> Vec<Value> {
    let ending = at(volume, "metadata.deletionTimestamp").is_some();
    let claim = match at(volume, "spec.claimRef").filter(|c| c.is_object()) {
        Some(claim) => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
        None => String::new(),
    };
    let capacity = match text(volume, "spec.capacity.storage") {
        "" => "0",
        some => some,
    };
    vec![
        table::name(volume),
        capacity.into(),
        claim::shown_modes(list(volume, "spec.accessModes")).into(),
        text(volume, "spec.persistentVolumeReclaimPolicy").into(),
        if ending { "Terminating" } else { text(volume, "status.phase") }.into(),
        claim.into(),
        claim::class_of(volume).into(),
        or_unset(volume, "spec.volumeAttributesClassName"),
        text(volume, "status.reason").into(),
        table::age(volume, now),
        or_unset(volume, "spec.volumeMode"),
    ]
}

fn validate(volume: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, null) = (Path::root("spec"), Value::Null);
    let spec = volume.get("spec").unwrap_or(&null);
    let modes_path = path.field("accessModes");
    if list(spec, "accessModes").is_empty() {
        errors.push(field::required(&modes_path, ""));
    }
    claim::access_modes(&mut errors, &modes_path, list(spec, "accessModes"));
    capacity(&mut errors, &path.field("capacity"), spec);
    let policy = text(spec, "persistentVolumeReclaimPolicy");
    let policy_path = path.field("persistentVolumeReclaimPolicy");
    check::one_of(&mut errors, &policy_path, policy, RECLAIM_POLICIES);
    let affinity = spec.get("nodeAffinity").filter(|a| a.is_object());
    if let Some(affinity) = affinity {
        let path = path.field("nodeAffinity");
        let required = path.field("required");
        match affinity.get("required").filter(|r| r.is_object()) {
            Some(selector) => podspec::validate_node_selector(&mut errors, &required, selector),
            None => errors.push(field::required(&required, "must specify required node constraints")),
        }
    }
    source::validate(&mut errors, &path, spec, affinity.is_some());
    if let Some(host) = spec.get("hostPath")
        && policy == "Recycle"
        && is_root(text(host, "path"))
    {
        errors.push(field::forbidden(&policy_path, "may not be 'recycle' for a hostPath mount of '/'"));
    }
    claim::class_name(&mut errors, &path.field("storageClassName"), text(spec, "storageClassName"));
    check::one_of(&mut errors, &path.field("volumeMode"), text(spec, "volumeMode"), claim::VOLUME_MODES);
    if let Some(class) = spec.get("volumeAttributesClassName").and_then(Value::as_str) {
        let class_path = path.field("volumeAttributesClassName");
        if class.is_empty() {
            errors.push(field::required(&class_path, "an empty string is disallowed"));
        }
        claim::class_name(&mut errors, &class_path, class);
        if spec.get("csi").is_none_or(Value::is_null) {
            let why = "has to be specified when using volumeAttributesClassName";
            errors.push(field::required(&path.field("csi"), why));
        }
    }
    errors
}

/// Whether a path means the root.
fn is_root(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| matches!(part, "" | "."))
}

fn capacity(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let amounts = map(spec, "capacity");
    if amounts.is_none_or(serde_json::Map::is_empty) {
        errors.push(field::required(path, ""));
    }
    if amounts.is_none_or(|a| a.len() != 1 || !a.contains_key("storage")) {
        errors.push(field::not_supported(path, spec.get("capacity").cloned().unwrap_or_default(), &["storage"]));
    }
    for (name, amount) in amounts.into_iter().flatten() {
        let amount = amount.as_str().and_then(|a| a.parse::<Quantity>().ok());
        if let Some(negative) = amount.filter(Quantity::is_negative) {
            errors.push(field::invalid(&path.key(name), negative.units(), "must be a valid resource quantity"));
        }
        claim::positive(errors, &path.key(name), amount);
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (then, mut now) = (source::of(&old["spec"]), source::of(&new["spec"]));
    // Who has given no secret for growing may give it later.
    if let (Some(csi), true) = (now.get_mut("csi").and_then(Value::as_object_mut), then.contains_key("csi"))
        && then["csi"].get("controllerExpandSecretRef").is_none_or(Value::is_null)
    {
        csi.remove("controllerExpandSecretRef");
    }
    if now != then {
        let why = "spec.persistentvolumesource is immutable after creation";
        errors.push(field::forbidden("spec.persistentvolumesource", why));
    }
    check::immutable(&mut errors, &Path::root("volumeMode"), at(new, "spec.volumeMode"), at(old, "spec.volumeMode"));
    let affinity = |volume: &Value| at(volume, "spec.nodeAffinity").filter(|a| a.is_object()).cloned();
    if affinity(old).is_some() {
        let path = Path::root("nodeAffinity");
        check::immutable(&mut errors, &path, affinity(new).as_ref(), affinity(old).as_ref());
    }
    let class = |volume: &Value| at(volume, "spec.volumeAttributesClassName").is_some_and(Value::is_string);
    if class(old) && !class(new) {
        let why = "update from non-nil value to nil is forbidden";
        errors.push(field::forbidden("spec.volumeAttributesClassName", why));
    }
    errors
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = claim::warnings(new, "spec.capacity[storage]", text(new, "spec.capacity.storage"));
    let spec = &new["spec"];
    if text(spec, "persistentVolumeReclaimPolicy") == "Recycle" {
        warnings.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".into());
        if old.is_none() {
            warnings.push("spec.persistentVolumeReclaimPolicy: volumes are not recycled by this version".into());
        }
    }
    warnings.extend(podspec::selector_warnings(
        &Path::root("spec.nodeAffinity.required"),
        &spec["nodeAffinity"]["required"],
    ));
    warnings.extend(source::warnings(spec, old.is_none()));
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spec: Value) -> Value {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let mut object = json!({"metadata": {"name": "v"}, "spec": all});
        KIND.default(&mut object);
        object
    }

    fn fields(spec: Value) -> Vec<String> {
        KIND.validate(&volume(spec)).iter().map(|e| e.field.clone()).collect()
    }

    #[test]
    fn a_volume_is_of_one_kind_and_some_size() {
        let host = json!({"path": "/srv"});
        let none: [&str; 0] = [];
        assert_eq!(fields(json!({"hostPath": host})), none);
        assert_eq!(fields(json!({})), ["spec"]);
        assert_eq!(fields(json!({"hostPath": host, "nfs": {"server": "s", "path": "/"}})), ["spec.nfs"]);
        assert_eq!(fields(json!({"hostPath": host, "capacity": {}})), ["spec.capacity", "spec.capacity"]);
        assert_eq!(fields(json!({"hostPath": host, "capacity": {"storage": "0"}})), ["spec.capacity[storage]"]);
        assert_eq!(fields(json!({"hostPath": host, "volumeAttributesClassName": "v"})), ["spec.csi"]);
        let recycled = json!({"hostPath": {"path": "//."}, "persistentVolumeReclaimPolicy": "Recycle"});
        assert_eq!(fields(recycled), ["spec.persistentVolumeReclaimPolicy"]);
        assert_eq!(fields(json!({"local": {"path": "/a/../b"}})), ["spec.local.path", "spec.nodeAffinity"]);
        let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        let affinity = |terms: Value| json!({"required": {"nodeSelectorTerms": terms}});
        assert_eq!(fields(json!({"local": {"path": "/a"}, "nodeAffinity": affinity(json!([term]))})), none);
        let terms = "spec.nodeAffinity.required.nodeSelectorTerms";
        assert_eq!(fields(json!({"hostPath": host, "nodeAffinity": affinity(json!([]))})), [terms]);
        assert_eq!(fields(json!({"hostPath": host, "nodeAffinity": {}})), ["spec.nodeAffinity.required"]);
        assert_eq!(fields(json!({"csi": {"driver": "a_b"}})), ["spec.csi.volumeHandle", "spec.csi.driver"]);
        let share = json!({"secretName": "s", "shareName": "s", "secretNamespace": ""});
        assert_eq!(fields(json!({"azureFile": share})), ["spec.azureFile.secretNamespace"]);
    }

    #[test]
    fn what_a_volume_is_stays() {
        let old = volume(json!({"hostPath": {"path": "/srv"}}));
        let changed = |old: &Value, key: &str, value: Value| -> Vec<String> {
            let mut new = old.clone();
            new["spec"][key] = value;
            KIND.validate_update(&new, old).iter().map(|e| e.field.clone()).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(changed(&old, "capacity", json!({"storage": "2Gi"})), none);
        assert_eq!(changed(&old, "claimRef", json!({"name": "c", "namespace": "n"})), none);
        assert_eq!(changed(&old, "hostPath", json!({"path": "/other", "type": ""})), ["spec.persistentvolumesource"]);
        assert_eq!(changed(&old, "volumeMode", json!("Block")), ["volumeMode"]);
        let affinity = |key: &str| json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": "Exists"}]}]}});
        assert_eq!(changed(&old, "nodeAffinity", affinity("a")), none);
        let bound = volume(json!({"hostPath": {"path": "/srv"}, "nodeAffinity": affinity("a")}));
        assert_eq!(changed(&bound, "nodeAffinity", affinity("b")), ["nodeAffinity"]);
        let csi = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        let grown = json!({"driver": "d", "volumeHandle": "h", "controllerExpandSecretRef": {"name": "s"}});
        assert_eq!(changed(&csi, "csi", grown), none);
    }

    #[test]
    fn what_nodes_refuse_is_told_when_it_is_made() {
        let told = |spec: Value| KIND.warnings(&volume(spec), None);
        assert!(told(json!({"hostPath": {"path": "/srv"}})).is_empty());
        let refused = "a volume of this type is refused by nodes of this version";
        assert_eq!(told(json!({"nfs": {"server": "s", "path": "/"}})), [format!("spec.nfs: {refused}")]);
        assert_eq!(told(json!({"hostPath": {"path": "/srv"}, "volumeMode": "Block"})).len(), 1);
        assert_eq!(told(json!({"hostPath": {"path": "/srv"}, "mountOptions": ["ro"]})).len(), 1);
        let rbd = told(json!({"rbd": {"monitors": ["m"], "image": "i"}}));
        assert_eq!((rbd.len(), rbd[0].starts_with("spec.rbd: deprecated")), (2, true));
    }
}
