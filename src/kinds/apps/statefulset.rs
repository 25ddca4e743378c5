//! StatefulSet: numbered pods that keep their names, in order.

use std::borrow::Cow;

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::workload;
use crate::base::json::{at, int, list, list_mut, map_mut, set, set_default, text};
use crate::base::labels::Selector;
use crate::kinds::check::{self, Path};
use crate::kinds::core::{claim, persistentvolumeclaim, podspec};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, NameRule, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.apps.v1.StatefulSet",
    columns: COLUMNS,
    row,
    pod_template: Some("/spec/template"),
    // Its pods are named by it, and their names are names of hosts.
    name_rule: NameRule::DnsLabel,
    strategy: Strategy {
        default,
        prepare_create: |s| {
            workload::drop_disabled(s);
            set(s, "status", json!({"replicas": 0, "availableReplicas": 0}));
        },
        prepare_update: |new, _| workload::drop_disabled(new),
        validate,
        validate_create,
        validate_update,
        validate_status,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"serviceName":"s","selector":{"matchLabels":{"a":"b"}},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Ready", "How many pods are ready, of how many."),
    table::AGE,
    table::CONTAINERS,
    table::IMAGES,
];

/// What of the specification may change.
const CHANGEABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| int(object, path).unwrap_or(0);
    let ready = format!("{}/{}", count("status.readyReplicas"), count("spec.replicas"));
    let mut cells = vec![table::name(object), ready.into(), table::age(object, now)];
    cells.extend(workload::container_cells(object));
    cells
}

fn default(object: &mut Value) {
    for (path, value) in [
        ("spec.replicas", json!(1)),
        ("spec.revisionHistoryLimit", json!(10)),
        ("spec.podManagementPolicy", json!("OrderedReady")),
        ("spec.serviceName", json!("")),
        ("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", json!("Retain")),
        ("spec.persistentVolumeClaimRetentionPolicy.whenScaled", json!("Retain")),
    ] {
        set_default(object, path, value);
    }
    // Only who says nothing of the strategy, or something of rolling updates, is told of a partition.
    let unsaid = text(object, "spec.updateStrategy.type").is_empty();
    if unsaid {
        map_mut(object, "spec.updateStrategy").insert("type".into(), "RollingUpdate".into());
    }
    let rolls = text(object, "spec.updateStrategy.type") == "RollingUpdate";
    if rolls && (unsaid || at(object, "spec.updateStrategy.rollingUpdate").is_some_and(Value::is_object)) {
        set_default(object, "spec.updateStrategy.rollingUpdate.partition", 0);
    }
    podspec::default_template(map_mut(object, "spec").entry("template").or_insert_with(|| json!({})));
    for claim in list_mut(object, "spec.volumeClaimTemplates").into_iter().flatten().filter(|c| c.is_object()) {
        set_default(claim, "apiVersion", "v1");
        set_default(claim, "kind", "PersistentVolumeClaim");
        set_default(claim, "status.phase", "Pending");
        persistentvolumeclaim::default_spec(claim);
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, null) = (Path::root("spec"), Value::Null);
    let spec = object.get("spec").unwrap_or(&null);
    let policy = text(spec, "podManagementPolicy");
    if !matches!(policy, "OrderedReady" | "Parallel") {
        let why = "must be 'OrderedReady' or 'Parallel'";
        errors.push(field::invalid(&path.field("podManagementPolicy"), policy, why));
    }
    update_strategy(&mut errors, &path.field("updateStrategy"), spec.get("updateStrategy").unwrap_or(&null));
    let retention = path.field("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = spec["persistentVolumeClaimRetentionPolicy"][key].as_str().unwrap_or("");
        check::required_one_of(&mut errors, &retention.field(key), policy, &["Retain", "Delete"]);
    }
    for key in ["replicas", "minReadySeconds"] {
        check::non_negative(&mut errors, &path.field(key), spec.get(key));
    }
    check::non_negative(&mut errors, &path.field("ordinals").field("start"), at(spec, "ordinals.start"));
    let selector = spec.get("selector").filter(|s| s.is_object());
    let selector_path = path.field("selector");
    match selector {
        None => errors.push(field::required(&selector_path, "")),
        Some(selector) => {
            check::label_selector(&mut errors, &selector_path, Some(selector));
            if check::selects_nothing(selector) {
                let why = "empty selector is invalid for statefulset";
                errors.push(field::invalid(&selector_path, selector.clone(), why));
            } else if Selector::from_object(selector).is_err() {
                errors.push(field::invalid(&selector_path, selector.clone(), ""));
            }
        }
    }
    let template = with_claims(spec);
    podspec::validate_template(&mut errors, &path.field("template"), &template, selector, "StatefulSet");
    errors
}

/// The template as its pods will be: with the volumes that are claims, which containers mount.
fn with_claims(spec: &Value) -> Cow<'_, Value> {
    static NULL: Value = Value::Null;
    let template = spec.get("template").unwrap_or(&NULL);
    let claims = list(spec, "volumeClaimTemplates");
    if claims.is_empty() || !template.is_object() {
        return Cow::Borrowed(template);
    }
    let mut template = template.clone();
    let volumes = map_mut(&mut template, "spec").entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        for name in claims.iter().map(|claim| text(claim, "metadata.name")) {
            // A claim takes the place of a volume of its name.
            if !volumes.iter().any(|volume| text(volume, "name") == name) {
                volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
            }
        }
    }
    Cow::Owned(template)
}

fn update_strategy(errors: &mut Errors, path: &Path<'_>, strategy: &Value) {
    let rolling = strategy.get("rollingUpdate").filter(|r| !r.is_null());
    let path_of = path.field("rollingUpdate");
    match (text(strategy, "type"), rolling) {
        ("RollingUpdate", Some(rolling)) => {
            check::non_negative(errors, &path_of.field("partition"), rolling.get("partition"));
            if let Some(most) = rolling.get("maxUnavailable").filter(|m| !m.is_null()) {
                let path = path_of.field("maxUnavailable");
                check::count_or_percent(errors, &path, Some(most));
                if check::amount(Some(most)) == 0 {
                    errors.push(field::invalid(&path, most.clone(), "cannot be 0"));
                }
                check::at_most_all(errors, &path, Some(most));
            }
        }
        ("OnDelete", Some(rolling)) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(field::invalid(&path_of, rolling.clone(), why));
        }
        ("RollingUpdate" | "OnDelete", None) => {}
        _ => errors.push(field::invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
}

fn validate_create(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let service = text(object, "spec.serviceName");
    if !service.is_empty() {
        check::dns_label(&mut errors, &path.field("serviceName"), service);
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let fixed = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or_default();
        if let Some(map) = spec.as_object_mut() {
            map.retain(|key, value| !CHANGEABLE.contains(&key.as_str()) && !value.is_null());
        }
        spec
    };
    if fixed(new) == fixed(old) {
        return Errors::new();
    }
    let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
               'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    [field::forbidden("spec", why)].into()
}

fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, status) = (Path::root("status"), &new["status"]);
    let count = |key: &str| int(status, key).unwrap_or(0);
    let parts = ["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    for key in ["replicas", "observedGeneration", "collisionCount"].iter().chain(&parts) {
        check::non_negative(&mut errors, &path.field(key), status.get(*key));
    }
    for key in parts {
        if count(key) > count("replicas") {
            errors.push(field::invalid(&path.field(key), count(key), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let why = "cannot be greater than status.readyReplicas";
        errors.push(field::invalid(&path.field("availableReplicas"), count("availableReplicas"), why));
    }
    workload::collisions_grow(&mut errors, new, old);
    errors
}

fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = workload::warnings(new, old);
    let limit = |o: &Value| int(o, "spec.revisionHistoryLimit").unwrap_or(0);
    if limit(new) < 0 && old.is_none_or(|o| limit(o) >= 0) {
        let why =
            "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
        warnings.push(why.to_owned());
    }
    for (i, claim) in list(new, "spec.volumeClaimTemplates").iter().enumerate() {
        let path = format!("spec.volumeClaimTemplates[{i}].spec.resources.requests[storage]");
        warnings.extend(claim::warnings(claim, &path, text(claim, "spec.resources.requests.storage")));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: Value) -> Value {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let mut object =
            json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        KIND.default(&mut object);
        object
    }

    fn told(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_strategy_that_is_left_out_rolls_from_the_first_pod() {
        let strategy = |given: Value| object(json!({"updateStrategy": given}))["spec"]["updateStrategy"].clone();
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
        assert_eq!(strategy(json!({})), rolling);
        assert_eq!(strategy(json!({"type": "RollingUpdate", "rollingUpdate": {}})), rolling);
        assert_eq!(strategy(json!({"type": "RollingUpdate"})), json!({"type": "RollingUpdate"}));
        assert_eq!(strategy(json!({"type": "OnDelete"})), json!({"type": "OnDelete"}));
    }

    #[test]
    fn what_makes_the_pods_what_they_are_stays() {
        let old = object(json!({}));
        for (key, value) in [("serviceName", json!("s")), ("podManagementPolicy", json!("Parallel"))] {
            let errors = KIND.validate_update(&object(json!({key: value})), &old);
            assert_eq!((errors.len(), errors[0].field.as_str()), (1, "spec"), "{key}");
        }
        let free = json!({"replicas": 4, "ordinals": {"start": 2}, "minReadySeconds": 1, "revisionHistoryLimit": 1,
            "updateStrategy": {"type": "OnDelete"}, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}});
        assert_eq!(KIND.validate_update(&object(free), &old), Errors::new());
    }

    #[test]
    fn unavailability_claims_and_service_names_are_checked() {
        let rolling = |most: Value| {
            let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": most}});
            told(KIND.validate(&object(json!({"updateStrategy": strategy}))))
        };
        assert_eq!(rolling(json!("50%")), [""; 0]);
        let path = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        assert_eq!(rolling(json!(0)), [format!("{path}: Invalid value: 0: cannot be 0")]);
        assert_eq!(rolling(json!("101%")), [format!("{path}: Invalid value: \"101%\": must not be greater than 100%")]);
        let claimed = |mount: &str| {
            let mut set = object(json!({"volumeClaimTemplates": [{"metadata": {"name": "v"}, "spec": {}}]}));
            set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
                json!([{"name": mount, "mountPath": "/m"}]);
            set
        };
        let claim = &claimed("v")["spec"]["volumeClaimTemplates"][0];
        let want = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "v"},
            "spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}});
        assert_eq!(*claim, want);
        assert_eq!(told(KIND.validate(&claimed("v"))), [""; 0]);
        let path = "spec.template.spec.containers[0].volumeMounts[0].name";
        assert_eq!(told(KIND.validate(&claimed("w"))), [format!("{path}: Not found: \"w\"")]);
        let mut other = claimed("v");
        other["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] = "w".into();
        assert_eq!(KIND.validate_update(&other, &claimed("v"))[0].field, "spec");
        assert_eq!(KIND.validate_create(&object(json!({"serviceName": "A_B"})))[0].field, "spec.serviceName");
    }
}
