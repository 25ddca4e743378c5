//! What both kinds of webhook configuration have in common.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::conditions;
use crate::base::json::{at, int, list, list_mut, set_default, text};
use crate::kinds::Column;
use crate::kinds::check::{self, Path, client_config};
use crate::kinds::field::{self, Errors};
use crate::kinds::table;

pub(super) const COLUMNS: &[Column] =
    &[table::NAME, table::integer("Webhooks", "How many webhooks are configured."), table::AGE];

/// The longest time that may be given to a webhook.
const TIMEOUT_SECONDS_MAX: i64 = 30;
const MATCH_CONDITIONS_MAX: usize = 64;
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

pub(super) fn row(configuration: &Value, now: Timestamp) -> Vec<Value> {
    vec![table::name(configuration), list(configuration, "webhooks").len().into(), table::age(configuration, now)]
}

pub(super) fn default_validating(configuration: &mut Value) {
    for webhook in list_mut(configuration, "webhooks").into_iter().flatten().filter(|w| w.is_object()) {
        set_default(webhook, "failurePolicy", "Fail");
        set_default(webhook, "matchPolicy", "Equivalent");
        set_default(webhook, "namespaceSelector", json!({}));
        set_default(webhook, "objectSelector", json!({}));
        set_default(webhook, "timeoutSeconds", 10);
        for rule in list_mut(webhook, "rules").into_iter().flatten().filter(|r| r.is_object()) {
            set_default(rule, "scope", "*");
        }
        if at(webhook, "clientConfig.service").is_some_and(Value::is_object) {
            set_default(webhook, "clientConfig.service.port", 443);
        }
    }
}

pub(super) fn default_mutating(configuration: &mut Value) {
    default_validating(configuration);
    for webhook in list_mut(configuration, "webhooks").into_iter().flatten().filter(|w| w.is_object()) {
        set_default(webhook, "reinvocationPolicy", "Never");
    }
}

pub(super) fn validate_create(configuration: &Value) -> Errors {
    validate(configuration, true)
}

/// What named no version of a review that is known may go on so.
pub(super) fn validate_update(new: &Value, old: &Value) -> Errors {
    let is_known = |webhook: &Value| {
        let versions = list(webhook, "admissionReviewVersions");
        versions.is_empty() || versions.iter().any(is_review_version)
    };
    validate(new, list(old, "webhooks").iter().all(is_known))
}

fn validate(configuration: &Value, known_reviews: bool) -> Errors {
    let mut errors = Errors::new();
    let webhooks = Path::root("webhooks");
    let mut names = HashSet::new();
    for (i, webhook) in list(configuration, "webhooks").iter().enumerate() {
        let path = webhooks.index(i);
        check_webhook(&mut errors, &path, webhook);
        review_versions(&mut errors, &path.field("admissionReviewVersions"), webhook, known_reviews);
        let name = text(webhook, "name");
        if !name.is_empty() && !names.insert(name) {
            errors.push(field::duplicate(&path.field("name"), name));
        }
    }
    errors
}

fn check_webhook(errors: &mut Errors, path: &Path<'_>, webhook: &Value) {
    full_name(errors, &path.field("name"), text(webhook, "name"));
    let rules = path.field("rules");
    for (i, of) in list(webhook, "rules").iter().enumerate() {
        rule(errors, &rules.index(i), of);
    }
    check::one_of(errors, &path.field("failurePolicy"), text(webhook, "failurePolicy"), &["Fail", "Ignore"]);
    check::one_of(errors, &path.field("matchPolicy"), text(webhook, "matchPolicy"), &["Equivalent", "Exact"]);
    let effects = path.field("sideEffects");
    match text(webhook, "sideEffects") {
        "" => errors.push(field::required(&effects, format!("must specify one of {}", SIDE_EFFECTS.join(", ")))),
        given => check::one_of(errors, &effects, given, &SIDE_EFFECTS),
    }
    if let Some(seconds) = int(webhook, "timeoutSeconds").filter(|s| !(1..=TIMEOUT_SECONDS_MAX).contains(s)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errors.push(field::invalid(&path.field("timeoutSeconds"), seconds, why));
    }
    for selector in ["namespaceSelector", "objectSelector"] {
        check::label_selector(errors, &path.field(selector), webhook.get(selector));
    }
    let policy = path.field("reinvocationPolicy");
    check::one_of(errors, &policy, text(webhook, "reinvocationPolicy"), &["IfNeeded", "Never"]);
    client_config(errors, &path.field("clientConfig"), webhook.get("clientConfig").unwrap_or(&Value::Null));
    let conditions = list(webhook, "matchConditions");
    match_conditions(errors, &path.field("matchConditions"), conditions, &mut |expression| {
        conditions::compile(expression).map(drop)
    });
}

/// A domain of three segments or more.
fn full_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if !check::given(errors, path, name) {
        return;
    }
    check::dns_subdomain(errors, path, name);
    if name.split('.').count() < 3 {
        errors.push(field::invalid(path, name, "should be a domain with at least three segments separated by dots"));
    }
}

pub(super) fn rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let (operations, given) = (path.field("operations"), list(rule, "operations"));
    wildcard(errors, &operations, given, "operations");
    for (i, operation) in given.iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        if !OPERATIONS.contains(&operation) {
            errors.push(field::not_supported(operations.index(i), operation, OPERATIONS));
        }
    }
    wildcard(errors, &path.field("apiGroups"), list(rule, "apiGroups"), "API groups");
    let (versions, given) = (path.field("apiVersions"), list(rule, "apiVersions"));
    wildcard(errors, &versions, given, "API versions");
    for i in (0..given.len()).filter(|i| given[*i] == "") {
        errors.push(field::required(versions.index(i), ""));
    }
    resources(errors, &path.field("resources"), list(rule, "resources"));
    check::one_of(errors, &path.field("scope"), text(rule, "scope"), &["*", "Cluster", "Namespaced"]);
}

/// At least one of them, and no other where all are meant.
fn wildcard(errors: &mut Errors, path: &Path<'_>, given: &[Value], what: &str) {
    if given.is_empty() {
        errors.push(field::required(path, ""));
    }
    if given.len() > 1 && given.iter().any(|g| g == "*") {
        errors.push(field::invalid(path, given.to_vec(), format!("if '*' is present, must not specify other {what}")));
    }
}

fn resources(errors: &mut Errors, path: &Path<'_>, given: &[Value]) {
    if given.is_empty() {
        errors.push(field::required(path, ""));
    }
    // `x/*` and `*/x`, as far as they came before.
    let (mut whole, mut everywhere) = (HashSet::new(), HashSet::new());
    let names: Vec<&str> = given.iter().map(|r| r.as_str().unwrap_or_default()).collect();
    for (i, name) in names.iter().enumerate() {
        if name.is_empty() {
            errors.push(field::required(path.index(i), ""));
        }
        let Some((resource, subresource)) = name.split_once('/') else { continue };
        let covered = |by: String| format!("if '{by}' is present, must not specify {name}");
        if whole.contains(resource) {
            errors.push(field::invalid(path.index(i), *name, covered(format!("{resource}/*"))));
        }
        if everywhere.contains(subresource) {
            errors.push(field::invalid(path.index(i), *name, covered(format!("*/{subresource}"))));
        }
        if subresource == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(subresource);
        }
    }
    if names.len() > 1 && names.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(field::invalid(path, given.to_vec(), why));
    }
    if names.contains(&"*") && names.iter().any(|name| !name.is_empty() && *name != "*" && !name.contains('/')) {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(field::invalid(path, given.to_vec(), why));
    }
}

fn review_versions(errors: &mut Errors, path: &Path<'_>, webhook: &Value, known: bool) {
    let versions = list(webhook, "admissionReviewVersions");
    if versions.is_empty() {
        errors.push(field::required(path, format!("must specify one of {}", REVIEW_VERSIONS.join(", "))));
        return;
    }
    for (i, version) in versions.iter().enumerate() {
        let name = version.as_str().unwrap_or_default();
        match versions[..i].contains(version) {
            true => errors.push(field::invalid(path.index(i), name, "duplicate version")),
            false => check::dns_1035(errors, &path.index(i), name),
        }
    }
    if known && !versions.iter().any(is_review_version) {
        let why = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(field::invalid(path, versions.to_vec(), why));
    }
}

fn is_review_version(version: &Value) -> bool {
    version.as_str().is_some_and(|v| REVIEW_VERSIONS.contains(&v))
}

/// The conditions of a webhook or a policy, whose expressions `compile` knows.
pub(super) fn match_conditions(
    errors: &mut Errors,
    path: &Path<'_>,
    given: &[Value],
    compile: &mut dyn FnMut(&str) -> Result<(), String>,
) {
    if given.len() > MATCH_CONDITIONS_MAX {
        errors.push(field::too_many(path, given.len(), MATCH_CONDITIONS_MAX));
        return;
    }
    for (i, condition) in given.iter().enumerate() {
        let (at, name) = (path.index(i), text(condition, "name"));
        if check::given(errors, &at.field("name"), name) {
            check::qualified(errors, &at.field("name"), name);
        }
        let expression = text(condition, "expression").trim();
        if check::given(errors, &at.field("expression"), expression)
            && let Err(why) = compile(expression)
        {
            errors.push(field::invalid(&at.field("expression"), expression, why));
        }
        if !name.is_empty() && given[..i].iter().any(|other| text(other, "name") == name) {
            errors.push(field::duplicate(&at.field("name"), name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(more: Value) -> Value {
        let mut webhook = json!({
            "name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
        webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut configuration = json!({"metadata": {"name": "c"}, "webhooks": [webhook]});
        default_mutating(&mut configuration);
        configuration
    }

    fn causes(more: Value) -> Vec<String> {
        let errors = validate_create(&webhook(more));
        errors.iter().map(|e| format!("{}: {}", e.field, e.message())).collect()
    }

    fn rule(more: Value) -> Vec<String> {
        let mut rule =
            json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        causes(json!({"rules": [rule]}))
    }

    #[test]
    fn what_was_left_out_has_kubernetes_defaults() {
        let all = webhook(json!({}));
        let webhook = &all["webhooks"][0];
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["matchPolicy"], "Equivalent");
        assert_eq!(webhook["reinvocationPolicy"], "Never");
        assert_eq!(webhook["timeoutSeconds"], 10);
        assert_eq!((&webhook["namespaceSelector"], &webhook["objectSelector"]), (&json!({}), &json!({})));
        assert_eq!(
            (&webhook["rules"][0]["scope"], &webhook["clientConfig"]["service"]["port"]),
            (&json!("*"), &json!(443))
        );
        assert_eq!(causes(json!({})), Vec::<String>::new());
    }

    #[test]
    fn webhooks_are_checked_in_kubernetes_words() {
        assert_eq!(
            causes(json!({"name": "a.b"})),
            [
                "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots"
            ]
        );
        assert_eq!(causes(json!({"name": ""})), ["webhooks[0].name: Required value"]);
        assert_eq!(
            causes(json!({"sideEffects": null})),
            ["webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"]
        );
        assert_eq!(
            causes(json!({"sideEffects": "Some"})),
            ["webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""]
        );
        assert_eq!(
            causes(json!({"timeoutSeconds": 31})),
            ["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"]
        );
        assert_eq!(
            causes(json!({"admissionReviewVersions": []})),
            ["webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"]
        );
        assert_eq!(
            causes(json!({"admissionReviewVersions": ["v9"]})),
            ["webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1"]
        );
        assert_eq!(
            causes(json!({"clientConfig": {}})),
            ["webhooks[0].clientConfig: Required value: exactly one of url or service is required"]
        );
        assert_eq!(
            causes(json!({"clientConfig": {"url": "http://a/b?c#d"}})),
            [
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
                "webhooks[0].clientConfig.url: Invalid value: \"d\": fragments are not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"c\": query parameters are not permitted in the URL"
            ]
        );
        let service =
            |path: &str| causes(json!({"clientConfig": {"service": {"name": "s", "namespace": "n", "path": path}}}));
        assert_eq!(
            service("a"),
            ["webhooks[0].clientConfig.service.path: Invalid value: \"a\": must start with a '/'"]
        );
        assert_eq!(
            service("/a//b"),
            ["webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]
        );
        assert_eq!(service("/a/"), Vec::<String>::new());
        assert_eq!(
            rule(json!({"operations": ["*", "CREATE"]})),
            [
                "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations"
            ]
        );
        assert_eq!(
            rule(json!({"operations": ["READ"]})),
            [
                "webhooks[0].rules[0].operations[0]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\""
            ]
        );
        assert_eq!(
            rule(json!({"resources": ["*", "pods"]})),
            [
                "webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources"
            ]
        );
        assert_eq!(
            rule(json!({"resources": ["pods/*", "pods/log"]})),
            [
                "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log"
            ]
        );
        assert_eq!(
            causes(json!({"matchConditions": [{"name": "a", "expression": ""}]})),
            ["webhooks[0].matchConditions[0].expression: Required value"]
        );
    }

    #[test]
    fn an_unknown_review_version_that_was_stored_may_stay() {
        let (old, new) = (
            webhook(json!({"admissionReviewVersions": ["v9"]})),
            webhook(json!({"admissionReviewVersions": ["v9"], "timeoutSeconds": 5})),
        );
        assert!(validate_update(&new, &old).is_empty());
        assert!(!validate_update(&new, &webhook(json!({}))).is_empty());
    }
}
