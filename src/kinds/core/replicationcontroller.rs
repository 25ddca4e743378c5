//! ReplicationController: what ReplicaSets were before, with a plain map of labels as its selector.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::podspec;
use crate::base::json::{at, int, list, map, map_mut, set, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, wide};
use crate::kinds::{BUILTIN, Column, Field, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.core.v1.ReplicationController",
    columns: COLUMNS,
    row,
    fields: &[Field {
        name: "status.replicas",
        get: |controller| int(controller, "status.replicas").unwrap_or(0).to_string(),
    }],
    pod_template: Some("/spec/template"),
    orphans_dependents: true,
    strategy: Strategy {
        default,
        prepare_create: |controller| {
            drop_disabled(controller);
            set(controller, "status", json!({"replicas": 0}));
        },
        prepare_update: |new, _| drop_disabled(new),
        validate,
        validate_status,
        warnings: |new, old| {
            let template = at(new, "spec.template");
            if old.is_some_and(|o| at(o, "spec.template") == template) {
                return Vec::new();
            }
            let path = Path::root("spec");
            template.map(|t| podspec::warnings_for_template(&path.field("template"), t)).unwrap_or_default()
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selector":{"a":"b"},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    integer("Desired", "How many pods it wants."),
    integer("Current", "How many pods it has."),
    integer("Ready", "How many of them are ready."),
    table::AGE,
    wide("Containers", "Names of the containers in the template."),
    wide("Images", "Images of the containers in the template."),
    wide("Selector", "Labels of its pods."),
];

fn row(controller: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path: &str| Value::from(int(controller, path).unwrap_or(0));
    let containers = list(controller, "spec.template.spec.containers");
    let join = |key: &str| containers.iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    vec![
        table::name(controller),
        count("spec.replicas"),
        count("status.replicas"),
        count("status.readyReplicas"),
        table::age(controller, now),
        join("name").into(),
        join("image").into(),
        table::labels(map(controller, "spec.selector")).into(),
    ]
}

/// The template's labels are the selector and the labels of the controller itself where these say nothing.
fn default(controller: &mut Value) {
    set_default(controller, "spec.replicas", 1);
    if let Some(template) = controller.pointer_mut("/spec/template").filter(|t| t.is_object()) {
        podspec::default_template(template);
    }
    let labels = map(controller, "spec.template.metadata.labels").cloned().unwrap_or_default();
    for path in ["spec.selector", "metadata.labels"] {
        if !labels.is_empty() && map(controller, path).is_none_or(serde_json::Map::is_empty) {
            map_mut(controller, path).extend(labels.clone());
        }
    }
}

fn drop_disabled(controller: &mut Value) {
    controller.pointer_mut("/spec/template/spec").into_iter().for_each(podspec::drop_disabled);
}

fn validate(controller: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    for key in ["minReadySeconds", "replicas"] {
        check::non_negative(&mut errors, &path.field(key), at(controller, "spec").and_then(|s| s.get(key)));
    }
    let selector = map(controller, "spec.selector").cloned().unwrap_or_default();
    if selector.is_empty() {
        errors.push(field::required(&path.field("selector"), ""));
    }
    match at(controller, "spec.template").filter(|t| t.is_object()) {
        None => errors.push(field::required(&path.field("template"), "")),
        Some(template) => {
            let selector = json!({"matchLabels": selector});
            podspec::validate_template(&mut errors, &path.field("template"), template, Some(&selector));
        }
    }
    errors
}

/// Counts: none below zero, no part larger than all, and no more available than ready.
fn validate_status(new: &Value, _old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, status) = (Path::root("status"), &new["status"]);
    let count = |key: &str| int(status, key).unwrap_or(0);
    let parts = ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    for key in ["replicas"].iter().chain(&parts).chain(&["observedGeneration"]) {
        check::non_negative(&mut errors, &path.field(key), status.get(*key));
    }
    for key in parts {
        if count(key) > count("replicas") {
            errors.push(field::invalid(&path.field(key), count(key), "cannot be greater than status.replicas"));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let path = path.field("availableReplicas");
        errors.push(field::invalid(&path, count("availableReplicas"), "cannot be greater than readyReplicas"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_template_stand_for_what_is_left_out() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let mut controller = json!({"metadata": {"name": "r"}, "spec": {"template": template}});
        KIND.default(&mut controller);
        assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!((&controller["spec"]["selector"], &controller["spec"]["replicas"]), (&json!({"a": "b"}), &json!(1)));
        assert_eq!(KIND.validate(&controller), Errors::new());
        let fields = |spec: Value| {
            let mut controller = json!({"metadata": {"name": "r"}, "spec": spec});
            KIND.default(&mut controller);
            KIND.validate(&controller).iter().map(|e| e.field.clone()).collect::<Vec<_>>()
        };
        assert_eq!(fields(json!({"selector": {"a": "b"}})), ["spec.template"]);
        assert_eq!(fields(json!({"selector": {"a": "c"}, "template": template})), ["spec.template.metadata.labels"]);
        assert_eq!(fields(json!({"replicas": -1, "minReadySeconds": -1, "template": template})).len(), 2);
    }
}
