//! Pod.

pub mod references;
mod row;
mod status;
mod update;

use linkme::distributed_slice;
use serde_json::{Value, json};

use super::podspec::{self, Rules};
use crate::base::json::{at, flag, int, list, map_mut, set, text};
use crate::kinds::check::Path;
use crate::kinds::field::Errors;
use crate::kinds::{BUILTIN, Field, Generation, Kind, KindRef, Strategy, Subresource, UpdateStrategy};

/// How a pod changes through what only pods have.
const SUBRESOURCES: &[(Subresource, UpdateStrategy)] = &[
    // Made by the server itself of a checked Binding.
    (Subresource::Binding, UpdateStrategy { prepare: |_, _| {}, validate: |_, _| Errors::new(), tracked: false }),
    (
        Subresource::EphemeralContainers,
        UpdateStrategy { prepare: update::keep_all_but_ephemeral, validate: update::validate_ephemeral, tracked: true },
    ),
    (
        Subresource::Resize,
        UpdateStrategy {
            prepare: update::keep_all_but_resources,
            validate: |new, old| KIND.validate(new).into_iter().chain(update::validate_resize(new, old)).collect(),
            tracked: true,
        },
    ),
];

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.core.v1.Pod",
    delete_answers_object: true,
    columns: row::COLUMNS,
    row: row::row,
    completed: |pod| match text(pod, "status.phase") {
        "Succeeded" => Some(("Succeeded", "The pod has completed successfully.")),
        "Failed" => Some(("Failed", "The pod failed.")),
        _ => None,
    },
    fields: FIELDS,
    strategy: Strategy {
        default,
        prepare_create,
        prepare_status: status::prepare,
        validate,
        validate_create: |pod| {
            if list(pod, "spec.ephemeralContainers").is_empty() {
                return Errors::new();
            }
            let why = "cannot be set on create";
            [crate::kinds::field::forbidden("spec.ephemeralContainers", why)].into()
        },
        validate_update: update::validate,
        validate_status: status::validate,
        subresources: SUBRESOURCES,
        grace_seconds: Some(grace_seconds),
        warnings: |pod, old| match old {
            None => podspec::warnings_for_pod(pod),
            Some(old) => podspec::warnings_for_pod_update(pod, old),
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}"#,
    ..Kind::BASE
});

const FIELDS: &[Field] = &[
    Field { name: "spec.nodeName", get: |p| text(p, "spec.nodeName").into() },
    Field { name: "spec.restartPolicy", get: |p| text(p, "spec.restartPolicy").into() },
    Field { name: "spec.schedulerName", get: |p| text(p, "spec.schedulerName").into() },
    Field { name: "spec.serviceAccountName", get: |p| text(p, "spec.serviceAccountName").into() },
    Field { name: "spec.hostNetwork", get: |p| flag(p, "spec.hostNetwork").to_string() },
    Field { name: "status.phase", get: |p| text(p, "status.phase").into() },
    Field { name: "status.podIP", get: |p| text(p, "status.podIP").into() },
    Field { name: "status.nominatedNodeName", get: |p| text(p, "status.nominatedNodeName").into() },
];

fn default(pod: &mut Value) {
    let spec = spec_mut(pod);
    podspec::default(spec);
    podspec::default_pod(spec);
    status::default(pod);
}

/// The spec, made where a client left it out.
fn spec_mut(pod: &mut Value) -> &mut Value {
    map_mut(pod, "");
    let spec = &mut pod["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    spec
}

fn prepare_create(pod: &mut Value) {
    podspec::drop_disabled(&mut pod["spec"]);
    // A grace period below zero means the shortest there is.
    if int(pod, "spec.terminationGracePeriodSeconds").is_some_and(|s| s < 0) {
        set(pod, "spec.terminationGracePeriodSeconds", 1);
    }
    let class = podspec::qos_class(&pod["spec"]);
    set(pod, "status", json!({"phase": "Pending", "qosClass": class}));
    // The scheduler leaves gated pods alone, so the server says what they wait for.
    if !list(pod, "spec.schedulingGates").is_empty() {
        let now = text(pod, "metadata.creationTimestamp").to_owned();
        let condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
            "lastTransitionTime": now, "message": "Scheduling is blocked due to non-empty scheduling gates",
        });
        set(pod, "status.conditions", json!([condition]));
    }
    take_label_values(pod);
}

/// `matchLabelKeys` of affinity and spread become part of the selectors, with the values of the pod's own labels.
fn take_label_values(pod: &mut Value) {
    let labels = at(pod, "metadata.labels").cloned().unwrap_or_default();
    let join = |selector: &mut Value, keys: &[Value], operator: &str| {
        for key in keys.iter().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                let list = map_mut(selector, "").entry("matchExpressions").or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(json!({"key": key, "operator": operator, "values": [value]}));
                }
            }
        }
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = pod["spec"].get_mut("affinity").and_then(|a| a.get_mut(kind)) else { continue };
        let Some(groups) = affinity.as_object_mut() else { continue };
        for term in groups.values_mut().filter_map(Value::as_array_mut).flatten() {
            let term = if term.get("podAffinityTerm").is_some() { &mut term["podAffinityTerm"] } else { term };
            let (same, other) = (list(term, "matchLabelKeys").to_vec(), list(term, "mismatchLabelKeys").to_vec());
            if let Some(selector) = term.get_mut("labelSelector").filter(|s| s.is_object()) {
                join(selector, &same, "In");
                join(selector, &other, "NotIn");
            }
        }
    }
    for constraint in
        pod["spec"].get_mut("topologySpreadConstraints").and_then(Value::as_array_mut).into_iter().flatten()
    {
        let keys = list(constraint, "matchLabelKeys").to_vec();
        if let Some(selector) = constraint.get_mut("labelSelector").filter(|s| s.is_object()) {
            join(selector, &keys, "In");
        }
    }
}

fn validate(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = &pod["spec"];
    let annotations = Path::root("metadata.annotations");
    podspec::validate_annotations(&mut errors, &annotations, at(pod, "metadata.annotations"), spec);
    podspec::validate(&mut errors, &Path::root("spec"), spec, Rules { pod: true });
    errors
}

/// How long a pod may take to end: none where no node runs it.
fn grace_seconds(asked: Option<i64>, pod: &Value) -> i64 {
    let unscheduled = text(pod, "spec.nodeName").is_empty();
    let over = matches!(text(pod, "status.phase"), "Succeeded" | "Failed");
    if unscheduled || over {
        return 0;
    }
    let grace = asked.or_else(|| int(pod, "spec.terminationGracePeriodSeconds")).unwrap_or(30);
    // A negative period means the shortest that still asks the processes to end.
    if grace < 0 { 1 } else { grace }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(errors: &Errors) -> Vec<&str> {
        errors.iter().map(|e| e.field.as_str()).collect()
    }

    #[test]
    fn a_minimal_pod_is_completed_and_valid() {
        let mut pod = json!({"metadata": {"name": "p", "creationTimestamp": "2020-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c", "image": "busybox", "resources": {}}]}});
        KIND.default(&mut pod);
        KIND.prepare_create(&mut pod);
        assert_eq!(KIND.validate(&pod), Errors::new());
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        let again = pod.clone();
        KIND.default(&mut pod);
        assert_eq!(pod, again, "defaulting twice changes nothing");
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{}, {"name": "A"}], "volumes": [{}], "restartPolicy": "X"}});
        KIND.default(&mut pod);
        let errors = KIND.validate(&pod);
        for field in
            ["spec.containers[0].name", "spec.containers[1].image", "spec.volumes[0].name", "spec.restartPolicy"]
        {
            assert!(fields(&errors).contains(&field), "{field} is not among {errors:?}");
        }
    }

    #[test]
    fn a_running_pod_changes_little() {
        let mut old = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a"}], "activeDeadlineSeconds": 9}});
        KIND.default(&mut old);
        let change = |path: &str, value: Value| {
            let mut new = old.clone();
            set(&mut new, path, value);
            KIND.validate_update(&new, &old)
        };
        assert_eq!(change("spec.activeDeadlineSeconds", json!(5)), Errors::new());
        assert_eq!(fields(&change("spec.activeDeadlineSeconds", json!(10))), ["spec.activeDeadlineSeconds"]);
        assert_eq!(fields(&change("spec.nodeName", json!("n"))), ["spec"]);
        assert_eq!(fields(&change("spec.containers", json!([]))), ["spec.containers"]);
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = "b".into();
        assert_eq!(KIND.validate_update(&new, &old), Errors::new());
    }

    #[test]
    fn what_a_pod_has_as_a_whole_is_resized_within_its_class_and_never_taken_away() {
        let pod = |resources: Value| {
            let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m"}}});
            let spec = json!({"containers": [container], "resources": resources});
            json!({"metadata": {"name": "p"}, "spec": spec, "status": {"qosClass": "Burstable"}})
        };
        let old = pod(json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        let said = |resources: Value| -> Vec<String> {
            let mut new = pod(resources);
            // Nothing else comes with it.
            new["spec"]["priority"] = 7.into();
            update::keep_all_but_resources(&mut new, &old);
            assert_eq!(new["spec"].get("priority"), None);
            update::validate_resize(&new, &old).iter().map(|e| format!("{}: {}", e.field, e.detail)).collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(
            said(json!({"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "3", "memory": "3Gi"}})),
            none
        );
        assert_eq!(said(Value::Null), ["spec.resources: pod-level resources cannot be removed"]);
        assert_eq!(
            said(json!({"requests": {"cpu": "1"}})),
            [
                "spec.resources.requests: pod-level resource requests cannot be removed",
                "spec.resources.limits: pod-level resource limits cannot be removed"
            ]
        );
        let huge = json!({"requests": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "2Mi"}, "limits": {"cpu": "2"}});
        assert_eq!(said(huge), ["spec: only cpu and memory resources are mutable at pod-level"]);
        let guaranteed = json!({"cpu": "1", "memory": "1Gi"});
        let class = said(json!({"requests": guaranteed, "limits": guaranteed}));
        assert_eq!(class, ["spec: Pod QOS Class may not change as a result of resizing"]);
    }
}
