//! The pods of a Job.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::policy::{self, Action};
use super::view::{FAILURES, IGNORED_FAILURES, View, failures};
use crate::base::json::{list_mut, map_mut, set};
use crate::base::object::Object;
use crate::controllers::controller_reference;
use crate::kinds::batch::job::{COMPLETION_INDEX, KIND, TRACKING_FINALIZER};

/// What a container finds its index in.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Names that are generated have so much before the part that is random.
const BASE_BYTES_MAX: usize = 58;

/// A pod that the template describes; one for an index takes the failures of the pod on that it replaces.
pub(super) fn pod(job: &Object, value: &Value, view: &View<'_>, index: Option<i64>, replaced: Option<&Pod>) -> Value {
    let template = &value["spec"]["template"];
    let mut metadata = json!({"generateName": format!("{}-", job.meta.name),
        "ownerReferences": [controller_reference(&KIND, job)]});
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(given) = template["metadata"].get(key) {
            metadata[key] = given.clone();
        }
    }
    let finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    let others = finalizers.into_iter().filter(|f| f != TRACKING_FINALIZER);
    metadata["finalizers"] = others.chain([TRACKING_FINALIZER.into()]).collect();
    let mut spec = template["spec"].clone();
    if let Some(index) = index {
        let end = format!("-{index}-");
        let name: String = job.meta.name.chars().take(BASE_BYTES_MAX.saturating_sub(end.len())).collect();
        metadata["generateName"] = format!("{name}{end}").into();
        map_mut(&mut metadata, "labels").insert(COMPLETION_INDEX.into(), index.to_string().into());
        let annotations = map_mut(&mut metadata, "annotations");
        annotations.insert(COMPLETION_INDEX.into(), index.to_string().into());
        if view.per_index.is_some() {
            annotate_failures(annotations, view, replaced);
        }
        set(&mut spec, "hostname", format!("{}-{index}", job.meta.name));
        for key in ["initContainers", "containers"] {
            list_mut(&mut spec, key).into_iter().flatten().for_each(add_variable);
        }
    }
    json!({"metadata": metadata, "spec": spec})
}

fn annotate_failures(annotations: &mut Map<String, Value>, view: &View<'_>, replaced: Option<&Pod>) {
    let (mut counted, mut ignored) = replaced.map_or((0, 0), failures);
    match replaced.map(|pod| policy::on_failure(view, pod)) {
        Some(Action::Ignore) => ignored += 1,
        Some(_) => counted += 1,
        None => {}
    }
    annotations.insert(FAILURES.into(), counted.to_string().into());
    if ignored > 0 {
        annotations.insert(IGNORED_FAILURES.into(), ignored.to_string().into());
    }
}

fn add_variable(container: &mut Value) {
    let path = format!("metadata.labels['{COMPLETION_INDEX}']");
    let variable = json!({"name": INDEX_VARIABLE, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let all = map_mut(container, "").entry("env").or_insert_with(|| json!([]));
    if let Some(all) = all.as_array_mut().filter(|all| all.iter().all(|v| v["name"] != INDEX_VARIABLE)) {
        all.push(variable);
    }
}
