//! Which requests rules and selectors are about, and as requests of which kind
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/predicates`, `.../policy/matching`).

use serde::Deserialize;
use serde_json::Value;

use super::{Operation, Review};
use crate::api::Request;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{map, text};
use crate::base::labels::{Labels, Selector};
use crate::kinds::KindRef;
use crate::kinds::core::namespace;

/// What a webhook or a policy is about.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: Option<String>,
}

/// What a policy or its binding is about (`MatchResources`).
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct MatchResources {
    resource_rules: Vec<Rule>,
    exclude_resource_rules: Vec<Rule>,
    match_policy: Option<String>,
    #[serde(deserialize_with = "selector")]
    namespace_selector: Selector,
    #[serde(deserialize_with = "selector")]
    object_selector: Selector,
}

// === impl MatchResources ===

impl MatchResources {
    /// As what kind it is about a request, if it is at all.
    pub fn matched(&self, review: &Review<'_>, object: &Value) -> Result<Option<KindRef>> {
        // A namespace that is not there matters only to what is about the request.
        let in_namespace = selects_namespace(&self.namespace_selector, review, object);
        if matches!(in_namespace, Ok(false)) || !selects_object(&self.object_selector, object, review.old) {
            return Ok(None);
        }
        let named = |rules: &[Rule]| named(rules, self.match_policy.as_deref(), review, object);
        if named(&self.exclude_resource_rules).is_some() {
            return Ok(None);
        }
        let kind = match &self.resource_rules[..] {
            [] => Some(review.request.kind.clone()),
            rules => named(rules),
        };
        if kind.is_some() {
            in_namespace?;
        }
        Ok(kind)
    }
}

/// As a resource of which kind rules name a request: as what it is, or, where the policy allows it, as the same in another form.
pub(super) fn named(
    rules: &[Rule],
    match_policy: Option<&str>,
    review: &Review<'_>,
    object: &Value,
) -> Option<KindRef> {
    let request = review.request;
    let any = |kind: &KindRef| rules.iter().any(|rule| covers(rule, review, object, kind));
    if any(&request.kind) {
        return Some(request.kind.clone());
    }
    if rules.is_empty() || match_policy == Some("Exact") {
        return None;
    }
    let kinds = review.api.kinds.snapshot();
    let own = request.kind.stored();
    let other = |kind: &&KindRef| {
        let stored = kind.stored();
        **kind != request.kind && (stored.plural(), stored.group()) == (own.plural(), own.group())
    };
    kinds.iter().filter(other).find(|kind| any(kind)).cloned()
}

/// The name of what is asked about: a new object may have none yet.
pub(super) fn name<'v>(review: &Review<'v>, object: &'v Value) -> &'v str {
    match review.request.name.as_str() {
        "" => text(object, "metadata.name"),
        name => name,
    }
}

/// Whether a rule names what is asked, as a resource of this kind.
fn covers(rule: &Rule, review: &Review<'_>, object: &Value, kind: &KindRef) -> bool {
    let any = |all: &[String], one: &str| all.iter().any(|given| given == "*" || given == one);
    any(&rule.operations, operation(review.operation))
        && any(&rule.api_groups, kind.group())
        && any(&rule.api_versions, kind.version())
        && resource(rule, review.request, kind)
        && scope(rule, review.request)
        && (rule.resource_names.is_empty() || rule.resource_names.iter().any(|n| *n == name(review, object)))
}

fn resource(rule: &Rule, request: &Request, kind: &KindRef) -> bool {
    let subresource = request.subresource.map_or("", |s| s.name());
    rule.resources.iter().any(|given| {
        let (resource, sub) = given.split_once('/').unwrap_or((given, ""));
        (resource == "*" || resource == kind.plural()) && (sub == "*" || sub == subresource)
    })
}

fn scope(rule: &Rule, request: &Request) -> bool {
    match rule.scope.as_deref() {
        Some("Namespaced") => request.kind.namespaced(),
        Some("Cluster") => !request.kind.namespaced(),
        _ => true,
    }
}

/// The name of an operation in rules and reviews.
pub(super) fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Whether a selector selects an object as it is or was.
pub(super) fn selects_object(selector: &Selector, object: &Value, old: Option<&Value>) -> bool {
    let fits = |value: &Value| value.is_object() && selector.matches(&labels(value));
    selector.is_empty() || fits(object) || old.is_some_and(fits)
}

/// What lives in no namespace is always selected, a namespace by its own labels.
pub(super) fn selects_namespace(selector: &Selector, review: &Review<'_>, object: &Value) -> Result<bool> {
    let request = review.request;
    let is_namespace = request.kind == namespace::KIND;
    if selector.is_empty() || !(is_namespace || request.kind.namespaced()) {
        return Ok(true);
    }
    if is_namespace && request.subresource.is_none() && object.is_object() {
        return Ok(selector.matches(&labels(object)));
    }
    let name = if is_namespace { &request.name } else { &request.namespace };
    let found = review.api.cache.kind(&namespace::KIND).get(&namespace::KIND.key("", name));
    let found = found.ok_or_else(|| Status::not_found(&namespace::KIND, name))?;
    Ok(selector.matches(&found.meta.labels))
}

fn labels(value: &Value) -> Labels {
    let all = map(value, "metadata.labels").into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect()
}

/// Null and absent ones match everything; one that cannot be read cannot be stored.
pub(super) fn selector<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Selector, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Selector::from_object(&value).map_err(serde::de::Error::custom)
}
