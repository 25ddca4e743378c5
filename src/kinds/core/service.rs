//! Service.

use crate::kinds::{Kind, NameRule, Subresource};

/// The kind.
pub static KIND: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Proxy, Subresource::Status],
    has_status: true,
    name_rule: NameRule::Dns1035,
    schema: "io.k8s.api.core.v1.Service",
    delete_answers_object: true,
    create_on_update: true,
    ..Kind::BASE
};
