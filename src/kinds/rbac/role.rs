//! Role.

use crate::kinds::{Kind, NameRule};

/// The kind.
pub static KIND: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "Role",
    plural: "roles",
    singular: "role",
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.Role",
    create_on_update: true,
    ..Kind::BASE
};
