//! RoleBinding.

use crate::kinds::{Kind, NameRule};

/// The kind.
pub static KIND: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    create_on_update: true,
    ..Kind::BASE
};
