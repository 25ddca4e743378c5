//! ClusterRoleBinding.

use crate::kinds::{Kind, NameRule};

/// The kind.
pub static KIND: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    create_on_update: true,
    ..Kind::BASE
};
