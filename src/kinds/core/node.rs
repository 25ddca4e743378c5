//! Node.

use crate::kinds::{Kind, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    subresources: &[Subresource::Proxy, Subresource::Status],
    has_status: true,
    schema: "io.k8s.api.core.v1.Node",
    ..Kind::BASE
};
