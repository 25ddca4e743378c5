//! ReplicaSet.

use linkme::distributed_slice;
use serde_json::{Value, json};

use super::workload;
use crate::base::json::{map_mut, set_default};
use crate::kinds::core::podspec;
use crate::kinds::field::Errors;
use crate::kinds::{BUILTIN, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    columns: workload::REPLICA_COLUMNS,
    row: workload::replica_row,
    pod_template: Some("/spec/template"),
    strategy: Strategy {
        default,
        prepare_create: |r| {
            workload::drop_disabled(r);
            map_mut(r, "").insert("status".into(), json!({"replicas": 0}));
        },
        validate: |r| {
            let mut errors = Errors::new();
            workload::validate(&mut errors, r);
            errors
        },
        prepare_update: |new, _| workload::drop_disabled(new),
        validate_update: workload::fixed_selector,
        validate_status: |new, _| {
            workload::validate_status(new, &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"])
        },
        warnings: workload::warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{
        "metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"busybox:1"}]}}}}"#,
    ..Kind::BASE
});

fn default(object: &mut Value) {
    set_default(object, "spec.replicas", 1);
    podspec::default_template(map_mut(object, "spec").entry("template").or_insert_with(|| json!({})));
}
