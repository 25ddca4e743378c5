//! ReplicationController: what ReplicaSets were before, with a plain map of labels as its selector.

use linkme::distributed_slice;
use serde_json::{Value, json};

use super::podspec;
use crate::base::json::{at, int, map, map_mut, set, set_default};
use crate::kinds::apps::workload;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Field, Generation, Kind, KindRef, Strategy, Subresource};

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
    columns: workload::REPLICA_COLUMNS,
    row: workload::replica_row,
    fields: &[Field {
        name: "status.replicas",
        get: |controller| int(controller, "status.replicas").unwrap_or(0).to_string(),
    }],
    pod_template: Some("/spec/template"),
    orphans_dependents: true,
    strategy: Strategy {
        default,
        prepare_create: |controller| {
            workload::drop_disabled(controller);
            set(controller, "status", json!({"replicas": 0}));
        },
        prepare_update: |new, _| workload::drop_disabled(new),
        validate,
        validate_status: |new, _| {
            workload::validate_status(new, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"])
        },
        warnings: workload::warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selector":{"a":"b"},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

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
            podspec::validate_template(
                &mut errors,
                &path.field("template"),
                template,
                Some(&selector),
                "ReplicationController",
            );
        }
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
        let mut limited = template.clone();
        limited["spec"]["activeDeadlineSeconds"] = 5.into();
        let mut controller = json!({"metadata": {"name": "r"}, "spec": {"template": limited}});
        KIND.default(&mut controller);
        let errors = KIND.validate(&controller);
        assert_eq!(errors[0].detail, "activeDeadlineSeconds in ReplicationController is not Supported");
        assert_eq!(fields(json!({"replicas": -1, "minReadySeconds": -1, "template": template})).len(), 2);
    }
}
