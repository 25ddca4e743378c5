//! ClusterRole.

use linkme::distributed_slice;
use serde_json::Value;

use super::rule;
use crate::base::json::list;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Kind, KindRef, NameRule, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "rbac.authorization.k8s.io",
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    name_rule: NameRule::PathSegment,
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    create_on_update: true,
    columns: rule::ROLE_COLUMNS,
    row: rule::role_row,
    strategy: Strategy { validate, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}"#,
    ..Kind::BASE
});

fn validate(role: &Value) -> Errors {
    let mut errors = Errors::new();
    rule::rules(&mut errors, role, false);
    let Some(aggregation) = role.get("aggregationRule").filter(|a| a.is_object()) else { return errors };
    let path = Path::root("aggregationRule");
    let path = path.field("clusterRoleSelectors");
    let selectors = list(aggregation, "clusterRoleSelectors");
    if selectors.is_empty() {
        errors.push(field::required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil"));
    }
    for (i, selector) in selectors.iter().enumerate() {
        let path = path.index(i);
        let before = errors.len();
        check::label_selector(&mut errors, &path, Some(selector));
        if errors.len() > before {
            errors.push(field::invalid(&path, selector.clone(), "invalid label selector"));
        }
    }
    errors
}
