//! ClusterRole.

use crate::kinds::{Kind, NameRule};

/// The kind.
pub static KIND: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    create_on_update: true,
    ..Kind::BASE
};
