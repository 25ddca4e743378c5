//! ReplicaSet.

use crate::kinds::{Generation, Kind, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
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
    ..Kind::BASE
};
