//! Which webhooks are asked about a request, and in which version of its kind.

use serde_json::Value;

use super::configured::{Rule, Webhook};
use crate::api::Request;
use crate::api::admission::{Operation, Review};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::map;
use crate::base::labels::{Labels, Selector};
use crate::kinds::KindRef;
use crate::kinds::core::namespace;

/// How a webhook is asked: as what the object is shown to it.
#[derive(Debug)]
pub(super) struct Invocation {
    pub kind: KindRef,
}

/// Whether a webhook is to be asked about an object.
pub(super) fn invocation(review: &Review<'_>, webhook: &Webhook, object: &Value) -> Result<Option<Invocation>> {
    let spec = webhook.of();
    if !selects_object(&spec.object_selector, object, review.old) {
        return Ok(None);
    }
    let request = review.request;
    let rules = |kind: &KindRef| spec.rules.iter().any(|rule| covers(rule, review, kind));
    let kind = match rules(&request.kind) {
        true => Some(request.kind.clone()),
        false if spec.match_policy.as_deref() != Some("Exact") => {
            let kinds = review.api.kinds.snapshot();
            let other = |kind: &&KindRef| **kind != request.kind && kind.stored() == request.kind.stored();
            kinds.iter().filter(other).find(|kind| rules(kind)).cloned()
        }
        false => None,
    };
    let Some(kind) = kind else { return Ok(None) };
    let selected = selects_namespace(&spec.namespace_selector, review, object)?;
    Ok(selected.then_some(Invocation { kind }))
}

/// Whether a rule names what is asked, as a resource of this kind.
fn covers(rule: &Rule, review: &Review<'_>, kind: &KindRef) -> bool {
    let any = |all: &[String], one: &str| all.iter().any(|given| given == "*" || given == one);
    any(&rule.operations, operation(review.operation))
        && any(&rule.api_groups, kind.group())
        && any(&rule.api_versions, kind.version())
        && resource(rule, review.request, kind)
        && scope(rule, review.request)
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

fn selects_object(selector: &Selector, object: &Value, old: Option<&Value>) -> bool {
    let fits = |value: &Value| value.is_object() && selector.matches(&labels(value));
    selector.is_empty() || fits(object) || old.is_some_and(fits)
}

/// What lives in no namespace is always selected, a namespace by its own labels.
fn selects_namespace(selector: &Selector, review: &Review<'_>, object: &Value) -> Result<bool> {
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
