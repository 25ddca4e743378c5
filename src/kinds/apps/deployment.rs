//! Deployment.

use crate::kinds::{Generation, Kind, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    has_status: true,
    generation: Generation::SpecAndAnnotations,
    schema: "io.k8s.api.apps.v1.Deployment",
    ..Kind::BASE
};
