//! Namespace.

use crate::kinds::{Kind, NameRule, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Finalize, Subresource::Status],
    has_status: true,
    name_rule: NameRule::DnsLabel,
    schema: "io.k8s.api.core.v1.Namespace",
    ..Kind::BASE
};
