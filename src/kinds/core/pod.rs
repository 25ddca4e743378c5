//! Pod.

use crate::kinds::{Generation, Kind, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
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
    ..Kind::BASE
};
