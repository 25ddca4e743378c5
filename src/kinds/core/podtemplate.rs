//! PodTemplate: pure data, which no controller of Kubernetes itself acts on.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::podspec;
use crate::base::json::{list, map, map_mut};
use crate::kinds::check::Path;
use crate::kinds::field::Errors;
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "PodTemplate",
    plural: "podtemplates",
    singular: "podtemplate",
    schema: "io.k8s.api.core.v1.PodTemplate",
    generation: Generation::Spec,
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    pod_template: Some("/template"),
    strategy: Strategy {
        default: |object| podspec::default_template(map_mut(object, "").entry("template").or_insert_with(|| json!({}))),
        prepare_create: drop_disabled,
        prepare_update: |new, _| drop_disabled(new),
        validate: |object| {
            let mut errors = Errors::new();
            podspec::validate_free_template(&mut errors, &Path::root("template"), &object["template"]);
            errors
        },
        warnings: |new, old| {
            if old.is_some_and(|o| o["template"] == new["template"]) {
                return Vec::new();
            }
            podspec::warnings_for_template(&Path::root("template"), &new["template"])
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"template":{"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Containers", "Names of the containers in the template."),
    string("Images", "Images of the containers in the template."),
    string("Pod Labels", "Labels of the template."),
];

fn row(object: &Value, _now: Timestamp) -> Vec<Value> {
    let [names, images] = table::container_cells(list(object, "template.spec.containers"));
    let labels = table::labels(map(object, "template.metadata.labels"));
    vec![table::name(object), names, images, labels.into()]
}

fn drop_disabled(object: &mut Value) {
    object.pointer_mut("/template/spec").into_iter().for_each(podspec::drop_disabled);
}
