//! ValidatingAdmissionPolicy: expressions that refuse what is written, where a binding puts them in force.

use std::collections::HashSet;

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::expressions::{Compiler, Purpose};
use super::policy;
use crate::base::json::{at, list, set, text};
use crate::kinds::check::{self, Path};
use crate::kinds::custom::jsonpath::JsonPath;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "admissionregistration.k8s.io",
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    status_resets: &["spec"],
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
    unconditional_update: false,
    generation: Generation::Spec,
    columns: COLUMNS,
    row: |object, now: Timestamp| policy::row(object, "spec.validations", now),
    strategy: Strategy {
        default: policy::default,
        prepare_create: |object| set(object, "status", json!({})),
        validate_create: |object| validate(object, false),
        validate_update: |new, old| validate(new, policy::keeps_conditions(new, old)),
        validate_status,
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"matchConstraints":{"resourceRules":[{"apiGroups":[""],
        "apiVersions":["v1"],"operations":["CREATE"],"resources":["pods"]}]},"validations":[{"expression":"true"}]}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    integer("Validations", "How many expressions must hold."),
    string("ParamKind", "The kind of its parameters."),
    table::AGE,
];
const REASONS: [&str; 3] = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
const AUDIT_ANNOTATIONS_MAX: usize = 20;
const AUDIT_EXPRESSION_BYTES_MAX: usize = 5 << 10;

fn validate(object: &Value, known_conditions: bool) -> Errors {
    let mut errors = Errors::new();
    let mut compiler = policy::compiler(object);
    policy::validate(&mut errors, object, &mut compiler, known_conditions);
    let spec = Path::root("spec");
    let (validations, annotations) = (list(object, "spec.validations"), list(object, "spec.auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for of in ["validations", "auditAnnotations"] {
            let why = "validations or auditAnnotations must contain at least one item";
            errors.push(field::required(&spec.field(of), why));
        }
        return errors;
    }
    let path = spec.field("validations");
    for (i, of) in validations.iter().enumerate() {
        validation(&mut errors, &path.index(i), of, &mut compiler);
    }
    let path = spec.field("auditAnnotations");
    if annotations.len() > AUDIT_ANNOTATIONS_MAX {
        let why = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.push(field::invalid(&path, annotations.to_vec(), why));
    }
    let mut keys = HashSet::new();
    for (i, of) in annotations.iter().enumerate() {
        audit_annotation(&mut errors, &path.index(i), text(object, "metadata.name"), of, &mut compiler);
        if !keys.insert(text(of, "key")) {
            errors.push(field::duplicate(&path.index(i).field("key"), text(of, "key")));
        }
    }
    errors
}

fn validation(errors: &mut Errors, path: &Path<'_>, of: &Value, compiler: &mut Compiler) {
    let at = path.field("expression");
    let expression = text(of, "expression");
    if expression.trim().is_empty() {
        errors.push(field::required(&at, "expression is not specified"));
    } else if let Err(why) = compiler.compile(expression, Purpose::Validation) {
        errors.push(field::invalid(&at, expression, why));
    }
    let at = path.field("messageExpression");
    let expression = text(of, "messageExpression");
    if !expression.is_empty() && expression.trim().is_empty() {
        errors.push(field::invalid(&at, expression, "must be non-empty if specified"));
    } else if !expression.is_empty()
        && let Err(why) = compiler.compile(expression, Purpose::Message)
    {
        errors.push(field::invalid(&at, expression, why));
    }
    let message = text(of, "message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(field::invalid(&path.field("message"), message, "message must be non-empty if specified"));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(field::invalid(&path.field("message"), message, "message must not contain line breaks"));
    }
    if let Some(reason) = of.get("reason").and_then(Value::as_str).filter(|reason| !REASONS.contains(reason)) {
        errors.push(field::not_supported(&path.field("reason"), reason, &REASONS));
    }
}

fn audit_annotation(errors: &mut Errors, path: &Path<'_>, policy: &str, of: &Value, compiler: &mut Compiler) {
    let (at, key) = (path.field("key"), text(of, "key"));
    match policy {
        "" => errors.push(field::invalid(&at, key, "requires metadata.name be non-empty")),
        _ => check::qualified(errors, &at, &format!("{policy}/{key}")),
    }
    let at = path.field("valueExpression");
    let given = text(of, "valueExpression");
    let expression = given.trim();
    if expression.is_empty() {
        errors.push(field::required(&at, "valueExpression is not specified"));
    } else if expression.len() > AUDIT_EXPRESSION_BYTES_MAX {
        let why = format!("must not exceed {AUDIT_EXPRESSION_BYTES_MAX} bytes in length");
        errors.push(field::required(&at, why));
    } else if let Err(why) = compiler.compile(expression, Purpose::AuditAnnotation) {
        errors.push(field::invalid(&at, given, why));
    }
}

fn validate_status(new: &Value, _old: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = Path::root("status");
    let checking = status.field("typeChecking");
    let path = checking.field("expressionWarnings");
    for (i, warning) in list(new, "status.typeChecking.expressionWarnings").iter().enumerate() {
        let path = path.index(i);
        check::given(&mut errors, &path.field("warning"), text(warning, "warning"));
        let (at, place) = (path.field("fieldRef"), text(warning, "fieldRef").trim());
        if check::given(&mut errors, &at, place)
            && let Err(why) = JsonPath::parse(&format!(".{}", place.trim_start_matches('.')))
        {
            errors.push(field::invalid(&at, place, format!("invalid JSONPath: {why}")));
        }
    }
    check::conditions(&mut errors, &status.field("conditions"), list(new, "status.conditions"));
    errors
}

/// There is no audit log that annotations could be written to.
fn warnings(policy: &Value, old: Option<&Value>) -> Vec<String> {
    let annotations = |policy: &Value| at(policy, "spec.auditAnnotations").cloned();
    match annotations(policy).filter(|new| Some(new) != old.and_then(annotations).as_ref()) {
        Some(new) if !new.as_array().is_none_or(Vec::is_empty) => {
            vec!["spec.auditAnnotations: are evaluated, and not written anywhere by this version".to_owned()]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes(more: Value) -> Vec<String> {
        let rules =
            json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
        let mut object = json!({"metadata": {"name": "p"},
            "spec": {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "true"}]}});
        object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        policy::default(&mut object);
        validate(&object, false).iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    #[test]
    fn policies_are_checked_in_kubernetes_words() {
        assert_eq!(causes(json!({})), Vec::<String>::new());
        let of = |validation: Value| causes(json!({"validations": [validation]}));
        assert_eq!(
            of(json!({"expression": " "})),
            ["spec.validations[0].expression: Required value: expression is not specified"]
        );
        assert_eq!(
            of(json!({"expression": "object.x"})),
            ["spec.validations[0].expression: Invalid value: \"object.x\": must evaluate to bool but got dyn"]
        );
        assert!(
            of(json!({"expression": "a"}))[0].contains("compilation failed: ERROR: <input>:1:1: undeclared reference")
        );
        assert_eq!(
            of(json!({"expression": "true", "message": "a\nb", "reason": "Teapot", "messageExpression": " "})),
            [
                "spec.validations[0].messageExpression: Invalid value: \" \": must be non-empty if specified",
                "spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks",
                "spec.validations[0].reason: Unsupported value: \"Teapot\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\"",
            ]
        );
        assert_eq!(
            causes(json!({"validations": []})),
            [
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ]
        );
        assert_eq!(causes(json!({"matchConstraints": {}})), ["spec.matchConstraints.resourceRules: Required value"]);
        assert_eq!(causes(json!({"matchConstraints": null})), ["spec.matchConstraints: Required value"]);
        let annotation = |key: &str, value: &str| json!({"key": key, "valueExpression": value});
        assert_eq!(
            causes(json!({"auditAnnotations": [annotation("a", "'x'"), annotation("a", "1"), annotation("b", "")]})),
            [
                "spec.auditAnnotations[1].valueExpression: Invalid value: \"1\": must evaluate to one of [string null_type] but got int",
                "spec.auditAnnotations[1].key: Duplicate value: \"a\"",
                "spec.auditAnnotations[2].valueExpression: Required value: valueExpression is not specified",
            ]
        );
    }

    #[test]
    fn variables_are_known_to_what_comes_after_them() {
        let variable = |name: &str, expression: &str| json!({"name": name, "expression": expression});
        let with = |variables: Value, expression: &str| {
            causes(json!({"variables": variables, "validations": [{"expression": expression}]}))
        };
        let two = json!([variable("a", "object.x + 1"), variable("b", "[variables.a]")]);
        assert_eq!(with(two, "variables.b[0] == 2"), Vec::<String>::new());
        let early = json!([variable("a", "variables.b"), variable("b", "1")]);
        assert!(with(early, "true")[0].starts_with("spec.variables[0].expression: Invalid value: \"variables.b\": "));
        assert_eq!(
            with(json!([variable("a-b", "1"), variable("in", "1"), variable("", "")]), "true"),
            [
                "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
                "spec.variables[1].name: Invalid value: \"in\": name is not a valid CEL identifier",
                "spec.variables[2].name: Required value: name is not specified",
                "spec.variables[2].expression: Required value: expression is not specified",
            ]
        );
    }

    #[test]
    fn conditions_that_did_not_change_are_not_looked_at() {
        let wrong = json!({"matchConditions": [{"name": "a", "expression": "nope"}]});
        assert_eq!(causes(wrong.clone()).len(), 1);
        let mut object = json!({"metadata": {"name": "p"}, "spec": {"validations": [{"expression": "true"}]}});
        object["spec"].as_object_mut().unwrap().extend(wrong.as_object().unwrap().clone());
        let with_params = json!({"spec": {"matchConditions": object["spec"]["matchConditions"], "paramKind": {}}});
        assert!(policy::keeps_conditions(&object, &object) && !policy::keeps_conditions(&object, &with_params));
        assert!(validate(&object, true).iter().all(|e| !e.field.contains("matchConditions")));
    }

    #[test]
    fn a_status_is_checked() {
        let warning = |place: &str, warning: &str| json!({"fieldRef": place, "warning": warning});
        let status = json!({"status": {"typeChecking": {"expressionWarnings": [
            warning("spec.validations[0].expression", "w"), warning("", ""), warning("spec.[", "w")]}}});
        let found = validate_status(&status, &Value::Null);
        let fields: Vec<&str> = found.iter().map(|e| e.field.as_str()).collect();
        let at = |i: u8, of: &str| format!("status.typeChecking.expressionWarnings[{i}].{of}");
        assert_eq!(fields, [at(1, "warning"), at(1, "fieldRef"), at(2, "fieldRef")]);
    }
}
