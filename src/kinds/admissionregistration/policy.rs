//! What both kinds of policies have in common.

use jiff::Timestamp;
use serde_json::Value;

use super::expressions::{Compiler, Purpose};
use super::{matching, webhook};
use crate::base::json::{at, list, set_default, text};
use crate::base::labels::{dns_1035_error, dns_subdomain_error};
use crate::cel::is_identifier;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table;

/// Name, how many of what it does, kind of its parameters, age.
pub(super) fn row(policy: &Value, items: &str, now: Timestamp) -> Vec<Value> {
    let of = match at(policy, "spec.paramKind").filter(|k| k.is_object()) {
        Some(of) => format!("{}/{}", text(of, "apiVersion"), text(of, "kind")),
        None => "<unset>".to_owned(),
    };
    vec![table::name(policy), list(policy, items).len().into(), of.into(), table::age(policy, now)]
}

pub(super) fn default(policy: &mut Value) {
    if policy.get("spec").is_some_and(Value::is_object) {
        set_default(policy, "spec.failurePolicy", "Fail");
    }
    if let Some(resources) = policy.pointer_mut("/spec/matchConstraints") {
        matching::default(resources);
    }
}

/// Whether the policy has parameters.
pub(super) fn has_params(policy: &Value) -> bool {
    at(policy, "spec.paramKind").is_some_and(Value::is_object)
}

/// What compiles the expressions of a policy.
pub(super) fn compiler(policy: &Value) -> Compiler {
    Compiler::new(has_params(policy), !list(policy, "spec.variables").is_empty())
}

/// Everything of a policy up to its variables, which `compiler` knows afterwards. Conditions may be known to be right.
pub(super) fn validate(errors: &mut Errors, policy: &Value, compiler: &mut Compiler, known_conditions: bool) {
    let spec = Path::root("spec");
    let of = policy.get("spec").unwrap_or(&Value::Null);
    check::required_one_of(errors, &spec.field("failurePolicy"), text(of, "failurePolicy"), &["Fail", "Ignore"]);
    if let Some(kind) = of.get("paramKind").filter(|k| k.is_object()) {
        param_kind(errors, &spec.field("paramKind"), kind);
    }
    let constraints = spec.field("matchConstraints");
    match of.get("matchConstraints").filter(|m| m.is_object()) {
        Some(resources) => {
            matching::validate(errors, &constraints, resources);
            if list(resources, "resourceRules").is_empty() {
                errors.push(field::required(&constraints.field("resourceRules"), ""));
            }
        }
        None => errors.push(field::required(&constraints, "")),
    }
    if !known_conditions {
        let path = spec.field("matchConditions");
        webhook::match_conditions(errors, &path, list(of, "matchConditions"), &mut |expression| {
            compiler.compile(expression, Purpose::Condition).map(drop)
        });
    }
    let path = spec.field("variables");
    for (i, variable) in list(of, "variables").iter().enumerate() {
        self::variable(errors, &path.index(i), variable, compiler);
    }
}

/// Whether the conditions of a policy are those that were found right before.
pub(super) fn keeps_conditions(new: &Value, old: &Value) -> bool {
    ["spec.paramKind", "spec.matchConditions"].iter().all(|path| at(new, path) == at(old, path))
}

fn variable(errors: &mut Errors, path: &Path<'_>, variable: &Value, compiler: &mut Compiler) {
    let name = text(variable, "name");
    if name.trim().is_empty() {
        errors.push(field::required(&path.field("name"), "name is not specified"));
    } else if !is_identifier(name) {
        errors.push(field::invalid(&path.field("name"), name, "name is not a valid CEL identifier"));
    }
    let expression = text(variable, "expression");
    if expression.trim().is_empty() {
        errors.push(field::required(&path.field("expression"), "expression is not specified"));
    } else if let Err(why) = compiler.add_variable(name, expression) {
        errors.push(field::invalid(&path.field("expression"), expression, why));
    }
}

fn param_kind(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    let (at, version) = (path.field("apiVersion"), text(of, "apiVersion"));
    match version.split('/').collect::<Vec<_>>()[..] {
        _ if !check::given(errors, &at, version) => {}
        ["", ""] | [_, ""] => errors.push(field::invalid(&at, version, "version must be specified")),
        [version] => group_version(errors, &at, "", version),
        [group, version] => group_version(errors, &at, group, version),
        _ => errors.push(field::invalid(&at, version, format!("unexpected GroupVersion string: {version}"))),
    }
    let (at, kind) = (path.field("kind"), text(of, "kind"));
    if check::given(errors, &at, kind)
        && let Some(why) = dns_1035_error(&kind.to_lowercase())
    {
        let why = format!("may have mixed case, but should otherwise match: {why}");
        errors.push(field::invalid(&at, kind, why));
    }
}

fn group_version(errors: &mut Errors, path: &Path<'_>, group: &str, version: &str) {
    if let Some(why) = dns_subdomain_error(group).filter(|_| !group.is_empty()) {
        errors.push(field::invalid(path, group, why));
    }
    if let Some(why) = dns_1035_error(version) {
        errors.push(field::invalid(path, version, why));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn variables_are_named_as_expressions_can_name_them() {
        for (name, right) in [("a", true), ("_A9", true), ("", false), ("9", false), ("a-b", false), ("in", false)] {
            assert_eq!(is_identifier(name), right, "{name}");
        }
    }

    #[test]
    fn kinds_of_parameters_are_checked_in_kubernetes_words() {
        let causes = |version: &str, kind: &str| {
            let mut errors = Errors::new();
            param_kind(&mut errors, &Path::root("k"), &json!({"apiVersion": version, "kind": kind}));
            errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect::<Vec<_>>()
        };
        assert_eq!(causes("v1", "ConfigMap"), Vec::<String>::new());
        assert_eq!(causes("", ""), ["k.apiVersion: Required value", "k.kind: Required value"]);
        assert_eq!(
            causes("a/b/c", "D"),
            ["k.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"]
        );
        assert_eq!(causes("a/", "D"), ["k.apiVersion: Invalid value: \"a/\": version must be specified"]);
        assert!(causes("A_/v1", "D-")[0].starts_with("k.apiVersion: Invalid value: \"A_\": "));
        assert!(causes("v1", "D-")[0].contains("may have mixed case, but should otherwise match: "));
    }
}
