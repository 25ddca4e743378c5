//! FlowSchema: which requests are of which priority level, and which of them take turns with each other.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::EXEMPT;
use crate::base::json::{at, flag, int, list, map_mut, set, text};
use crate::base::labels::{dns_label_error, dns_subdomain_error};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "FlowSchema",
    plural: "flowschemas",
    singular: "flowschema",
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.flowcontrol.v1.FlowSchema",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |schema| {
            if int(schema, "spec.matchingPrecedence").unwrap_or(0) == 0 {
                set(schema, "spec.matchingPrecedence", PRECEDENCE_DEFAULT);
            }
        },
        prepare_create: |schema| drop(map_mut(schema, "").insert("status".into(), json!({}))),
        validate,
        validate_status: |new, _| super::conditions(new),
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"priorityLevelConfiguration":{"name":"workload-low"},"rules":[{
        "subjects":[{"kind":"User","user":{"name":"u"}}],
        "nonResourceRules":[{"verbs":["get"],"nonResourceURLs":["/x"]}]}]}}"#,
    ..Kind::BASE
});

/// The condition that is true while a schema names a level that there is not.
pub const DANGLING: &str = "Dangling";
const PRECEDENCE_DEFAULT: i64 = 1000;
const PRECEDENCE_MAX: i64 = 10_000;
const DISTINGUISHERS: &[&str] = &["ByNamespace", "ByUser"];
const SUBJECT_KINDS: &[&str] = &["Group", "ServiceAccount", "User"];
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const COLUMNS: &[Column] = &[
    table::NAME,
    string("PriorityLevel", "The level of its requests."),
    string("MatchingPrecedence", "The schema with the least of those that fit a request is the request's."),
    string("DistinguisherMethod", "What tells its flows apart."),
    table::AGE,
    string("MissingPL", "Whether there is no such level."),
];

/// The objects that every cluster has, as JSON.
pub const SUGGESTED: &str = include_str!("../../../manifests/bootstrap/flowschemas.json");

/// The objects that every cluster has.
pub fn suggested() -> Vec<Value> {
    super::suggested(SUGGESTED)
}

/// The condition [`DANGLING`] of a schema.
pub fn dangling(schema: &Value) -> Option<&Value> {
    list(schema, "status.conditions").iter().find(|c| text(c, "type") == DANGLING)
}

fn row(schema: &Value, now: Timestamp) -> Vec<Value> {
    let missing = dangling(schema).map_or("?", |condition| text(condition, "status"));
    let distinguisher = match text(schema, "spec.distinguisherMethod.type") {
        "" => "<none>",
        method => method,
    };
    vec![
        table::name(schema),
        text(schema, "spec.priorityLevelConfiguration.name").into(),
        int(schema, "spec.matchingPrecedence").unwrap_or(0).into(),
        distinguisher.into(),
        table::age(schema, now),
        missing.into(),
    ]
}

fn validate(schema: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = Path::root("spec");
    precedence(&mut errors, &spec.field("matchingPrecedence"), schema);
    if at(schema, "spec.distinguisherMethod").is_some_and(Value::is_object) {
        let method = text(schema, "spec.distinguisherMethod.type");
        if !DISTINGUISHERS.contains(&method) {
            errors.push(field::not_supported(spec.field("distinguisherMethod.type"), method, DISTINGUISHERS));
        }
    }
    let (level, path) =
        (text(schema, "spec.priorityLevelConfiguration.name"), spec.field("priorityLevelConfiguration"));
    match level {
        "" => errors.push(field::required(path.field("name"), "must reference a priority level")),
        level => errors.extend(dns_subdomain_error(level).map(|why| field::invalid(path.field("name"), level, why))),
    }
    let rules = spec.field("rules");
    for (i, one) in list(schema, "spec.rules").iter().enumerate() {
        rule(&mut errors, &rules.index(i), one);
    }
    super::fixed_spec(&mut errors, schema, suggested);
    errors
}

fn precedence(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    let precedence = int(schema, "spec.matchingPrecedence").unwrap_or(0);
    if precedence <= 0 {
        errors.push(field::invalid(path, precedence, "must be a positive value"));
    }
    if precedence > PRECEDENCE_MAX {
        errors.push(field::invalid(path, precedence, format!("must not be greater than {PRECEDENCE_MAX}")));
    }
    if precedence == 1 && text(schema, "metadata.name") != EXEMPT {
        let why = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(field::invalid(path, precedence, why));
    }
}

fn rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    let subjects = path.field("subjects");
    if list(rule, "subjects").is_empty() {
        errors.push(field::required(&subjects, "subjects must contain at least one value"));
    }
    for (i, one) in list(rule, "subjects").iter().enumerate() {
        subject(errors, &subjects.index(i), one);
    }
    let (resources, others) = (list(rule, "resourceRules"), list(rule, "nonResourceRules"));
    if resources.is_empty() && others.is_empty() {
        let why = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(field::required(path, why));
    }
    let base = path.field("resourceRules");
    for (i, one) in resources.iter().enumerate() {
        resource_rule(errors, &base.index(i), one);
    }
    let base = path.field("nonResourceRules");
    for (i, one) in others.iter().enumerate() {
        path_rule(errors, &base.index(i), one);
    }
}

fn subject(errors: &mut Errors, path: &Path<'_>, subject: &Value) {
    let kind = text(subject, "kind");
    let members = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let Some((_, own)) = members.iter().find(|(of, _)| *of == kind) else {
        errors.push(field::not_supported(path.field("kind"), kind, SUBJECT_KINDS));
        return;
    };
    let given = |key: &str| subject.get(key).filter(|v| v.is_object());
    let own_path = path.field(own);
    match given(own) {
        None => errors.push(field::required(&own_path, format!("{own} is required when subject kind is '{kind}'"))),
        Some(of) => {
            let (name, account) = (text(of, "name"), *own == "serviceAccount");
            if check::given(errors, &own_path.field("name"), name) && account && name != "*" {
                check::dns_subdomain(errors, &own_path.field("name"), name);
            }
            match text(of, "namespace") {
                _ if !account => {}
                "" => {
                    let why = "must specify namespace for service account";
                    errors.push(field::required(own_path.field("namespace"), why));
                }
                namespace => check::dns_label(errors, &own_path.field("namespace"), namespace),
            }
        }
    }
    for (of, key) in members.iter().filter(|(of, key)| *of != kind && given(key).is_some()) {
        let why = format!("{key} is forbidden when subject kind is not '{of}'");
        errors.push(field::forbidden(path.field(key), why));
    }
}

/// A list in which `*` stands alone; whether its items are still to be looked at.
fn names(errors: &mut Errors, path: &Path<'_>, given: &[Value], (missing, others): (&str, &str)) -> bool {
    let all = given.iter().any(|name| name == "*");
    if given.is_empty() {
        errors.push(field::required(path, missing));
    } else if all && given.len() > 1 {
        let why = format!("if '*' is present, must not specify other {others}");
        errors.push(field::invalid(path, given.to_vec(), why));
    }
    !given.is_empty() && !all
}

fn verbs(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    let given = list(rule, "verbs");
    let known = |verb: &Value| verb.as_str().is_some_and(|verb| VERBS.contains(&verb));
    if names(errors, path, given, ("verbs must contain at least one value", "verbs")) && !given.iter().all(known) {
        errors.push(field::not_supported(path, given.to_vec(), VERBS));
    }
}

fn resource_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    verbs(errors, &path.field("verbs"), rule);
    let words = ("resource rules must supply at least one api group", "api groups");
    names(errors, &path.field("apiGroups"), list(rule, "apiGroups"), words);
    let words = ("resource rules must supply at least one resource", "resources");
    names(errors, &path.field("resources"), list(rule, "resources"), words);
    let (namespaces, base) = (list(rule, "namespaces"), path.field("namespaces"));
    if namespaces.is_empty() && flag(rule, "clusterScope") {
        return;
    }
    let words = ("resource rules that are not cluster scoped must supply at least one namespace", "namespaces");
    if names(errors, &base, namespaces, words) {
        for (i, namespace) in namespaces.iter().enumerate() {
            let name = namespace.as_str().unwrap_or_default();
            if let Some(why) = dns_label_error(name) {
                let why = format!("each member of this list must be '*' or a DNS-1123 label; {why}");
                errors.push(field::invalid(base.index(i), name, why));
            }
        }
    }
}

fn path_rule(errors: &mut Errors, path: &Path<'_>, rule: &Value) {
    verbs(errors, &path.field("verbs"), rule);
    let (given, base) = (list(rule, "nonResourceURLs"), path.field("nonResourceURLs"));
    let words = ("nonResourceURLs must contain at least one value", "non-resource URLs");
    if names(errors, &base, given, words) {
        for (i, url) in given.iter().enumerate() {
            let url = url.as_str().unwrap_or_default();
            errors.extend(url_error(url).map(|why| field::invalid(base.index(i), url, why)));
        }
    }
}

/// What is wrong with the path of a rule.
fn url_error(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match () {
        () if url.is_empty() => Some("must not be empty"),
        () if !url.starts_with('/') => Some("must start with slash"),
        () if url.contains(' ') => Some("must not contain white-space"),
        () if url.contains("//") => Some("must not contain double slash"),
        () if stars > 1 || stars == 1 && !url.ends_with("/*") => Some("wildcard can only do suffix matching"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suggested_is_valid_and_mandatory_specs_are_fixed() {
        for mut schema in suggested() {
            assert!(validate(&schema).is_empty(), "{schema}");
            schema["spec"]["matchingPrecedence"] = json!(77);
            let fixed = super::super::MANDATORY.contains(&text(&schema, "metadata.name"));
            assert_eq!(validate(&schema).iter().any(|e| e.detail.contains("must equal the fixed value")), fixed);
        }
    }

    #[test]
    fn paths_of_rules_may_end_with_a_star() {
        for url in ["/", "/x", "/x/*", "/x/y/"] {
            assert_eq!(url_error(url), None, "{url}");
        }
        for url in ["", "x", "/a b", "//", "/x*", "/*/*", "*/"] {
            assert!(url_error(url).is_some(), "{url}");
        }
    }
}
