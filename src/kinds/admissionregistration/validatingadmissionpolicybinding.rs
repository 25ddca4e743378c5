//! ValidatingAdmissionPolicyBinding: puts a policy in force.

use linkme::distributed_slice;
use serde_json::Value;

use super::binding;
use crate::base::json::list;
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "admissionregistration.k8s.io",
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    categories: &["api-extensions"],
    namespaced: false,
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    unconditional_update: false,
    generation: Generation::Spec,
    columns: binding::COLUMNS,
    row: binding::row,
    strategy: Strategy { default: binding::default, validate, warnings, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"policyName":"p","validationActions":["Deny"]}}"#,
    ..Kind::BASE
});

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

fn validate(binding: &Value) -> Errors {
    let mut errors = binding::validate(binding);
    let (spec, given) = (Path::root("spec"), list(binding, "spec.validationActions"));
    let path = spec.field("validationActions");
    for (i, action) in given.iter().enumerate() {
        let name = action.as_str().unwrap_or_default();
        if !ACTIONS.contains(&name) {
            errors.push(field::not_supported(path.index(i), name, &ACTIONS));
        }
        if given[..i].contains(action) {
            errors.push(field::duplicate(path.index(i), name));
        }
    }
    if ["Deny", "Warn"].iter().all(|action| given.iter().any(|given| given == action)) {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errors.push(field::invalid(&path, given.to_vec(), why));
    }
    if given.is_empty() {
        errors.push(field::required(&path, "at least one validation action is required"));
    }
    errors
}

/// There is no audit log that could tell of anything.
fn warnings(binding: &Value, old: Option<&Value>) -> Vec<String> {
    let audits = |binding: &Value| list(binding, "spec.validationActions").iter().any(|action| action == "Audit");
    match audits(binding) && !old.is_some_and(audits) {
        true => vec!["spec.validationActions: what Audit finds is not written anywhere by this version".to_owned()],
        false => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn actions_are_checked_in_kubernetes_words() {
        let causes = |actions: Value| {
            let errors = validate(&json!({"spec": {"policyName": "p", "validationActions": actions}}));
            errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect::<Vec<_>>()
        };
        assert_eq!(causes(json!(["Warn", "Audit"])), Vec::<String>::new());
        assert_eq!(
            causes(json!([])),
            ["spec.validationActions: Required value: at least one validation action is required"]
        );
        assert_eq!(
            causes(json!(["No", "Deny", "Deny"])),
            [
                "spec.validationActions[0]: Unsupported value: \"No\": supported values: \"Audit\", \"Deny\", \"Warn\"",
                "spec.validationActions[2]: Duplicate value: \"Deny\"",
            ]
        );
        assert!(causes(json!(["Deny", "Warn"]))[0].contains("must not contain both Deny and Warn"));
    }

    #[test]
    fn who_wants_an_audit_log_is_told_that_there_is_none_once() {
        let binding = |actions: Value| json!({"spec": {"policyName": "p", "validationActions": actions}});
        let audits = binding(json!(["Audit", "Deny"]));
        assert_eq!(warnings(&audits, None).len(), 1);
        assert!(warnings(&audits, Some(&audits)).is_empty() && warnings(&binding(json!(["Deny"])), None).is_empty());
    }
}
