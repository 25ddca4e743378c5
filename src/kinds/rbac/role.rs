//! Role.

use super::rule;
use crate::kinds::field::Errors;
use crate::kinds::{BUILTIN, Kind, KindRef, NameRule, Strategy};
use linkme::distributed_slice;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "rbac.authorization.k8s.io",
    kind: "Role",
    plural: "roles",
    singular: "role",
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.Role",
    create_on_update: true,
    columns: rule::ROLE_COLUMNS,
    row: rule::role_row,
    strategy: Strategy {
        validate: |role| {
            let mut errors = Errors::new();
            rule::rules(&mut errors, role, true);
            errors
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}"#,
    ..Kind::BASE
});
