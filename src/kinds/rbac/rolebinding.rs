//! RoleBinding.

use super::rule;
use crate::kinds::field::Errors;
use crate::kinds::{BUILTIN, Kind, KindRef, NameRule, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "rbac.authorization.k8s.io",
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    namespaced: true,
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    create_on_update: true,
    columns: rule::BINDING_COLUMNS,
    row: rule::binding_row,
    strategy: Strategy {
        default: rule::default_binding,
        validate: |binding| {
            let mut errors = Errors::new();
            rule::binding(&mut errors, binding, ROLES, true);
            errors
        },
        validate_update: rule::fixed_reference,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"r"},
        "subjects":[{"kind":"User","name":"u"}]}"#,
    ..Kind::BASE
});

/// What it may grant.
const ROLES: &[&str] = &["ClusterRole", "Role"];
