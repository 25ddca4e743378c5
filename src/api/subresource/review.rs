//! Reviews: kinds that are asked and answered, never stored: who is it, may they, what may they.

use serde_json::{Value, json};

use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::api::identity::join;
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::base::json::{at, list, map, set, text};
use crate::base::labels::{FieldSelector, FieldTerm};
use crate::kinds::field;

impl Api {
    /// Answers a review of the request's kind.
    pub fn review(&self, request: &Request, mut review: Value) -> Result<Value> {
        if !request.kind.namespaced() {
            crate::base::json::remove(&mut review, "metadata.namespace");
        }
        match request.kind.kind() {
            "SelfSubjectReview" => {}
            // The answer holds rules and nothing of the question.
            "SelfSubjectRulesReview" => {
                let status = self.rules_review(request, &review)?;
                let (kind, version) = (request.kind.kind(), request.kind.api_version());
                return Ok(json!({"kind": kind, "apiVersion": version, "metadata": {}, "spec": {}, "status": status}));
            }
            _ => self.track(request, None, &mut review)?,
        }
        let status = match request.kind.kind() {
            "TokenReview" => self.token_review(&review)?,
            "SelfSubjectReview" => json!({"userInfo": request.user.info()}),
            "SelfSubjectAccessReview" => self.access_review(request, &review, &request.user)?,
            _ => {
                let user = asked_user(request, &review)?;
                self.access_review(request, &review, &user)?
            }
        };
        set(&mut review, "status", status);
        if request.kind.namespaced() {
            set(&mut review, "metadata.namespace", request.namespace.as_str());
        }
        set(&mut review, "kind", request.kind.kind());
        set(&mut review, "apiVersion", request.kind.api_version());
        let metadata = review["metadata"].take();
        review["metadata"] = if metadata.is_object() { metadata } else { json!({}) };
        if matches!(request.kind.kind(), "SelfSubjectReview") {
            set(&mut review, "metadata.creationTimestamp", self.clock.now_text());
        }
        Ok(review)
    }

    fn token_review(&self, review: &Value) -> Result<Value> {
        let token = text(review, "spec.token");
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences: Vec<String> =
            list(review, "spec.audiences").iter().filter_map(|a| a.as_str().map(str::to_owned)).collect();
        Ok(match self.tokens.user(token, &audiences, &self.cache) {
            Some((user, claims)) => {
                let shared: Vec<_> =
                    claims.aud.iter().filter(|a| audiences.is_empty() || audiences.contains(a)).collect();
                json!({"authenticated": true, "user": user.info(), "audiences": shared})
            }
            None => match self.tokens.user(token, &[], &self.cache) {
                Some((_, claims)) => {
                    let why = format!(
                        "[invalid bearer token, token audiences {:?} is invalid for the target audiences {audiences:?}]",
                        claims.aud
                    );
                    json!({"error": why, "user": {}})
                }
                None => json!({"error": "invalid bearer token", "user": {}}),
            },
        })
    }

    fn access_review(&self, request: &Request, review: &Value, user: &User) -> Result<Value> {
        let (resource, path) = (at(review, "spec.resourceAttributes"), at(review, "spec.nonResourceAttributes"));
        let refuse = |path: &str, why: &str| Err(nameless(request, field::invalid(path, Value::Null, why)));
        if request.kind.namespaced() && path.is_some() {
            return refuse("spec.nonResourceAttributes", "disallowed on this kind of request");
        }
        let metadata = map(review, "metadata").into_iter().flatten();
        let foreign = metadata.filter(|(k, v)| {
            !matches!(k.as_str(), "managedFields" | "creationTimestamp" | "namespace") && !v.is_null()
        });
        if foreign.count() > 0 {
            return refuse("metadata", "must be empty except for namespace");
        }
        for key in ["labelSelector", "fieldSelector"] {
            let selector = resource.and_then(|r| r.get(key));
            let raw = selector.map_or("", |s| text(s, "rawSelector"));
            if !raw.is_empty() && selector.is_some_and(|s| !list(s, "requirements").is_empty()) {
                return refuse(
                    &format!("spec.resourceAttributes.{key}.rawSelector"),
                    "may not specified at the same time as requirements",
                );
            }
        }
        let attributes = match (resource, path) {
            (Some(_), Some(_)) => {
                return refuse(
                    "spec.nonResourceAttributes",
                    "cannot be specified in combination with nonResourceAttributes",
                );
            }
            (None, None) => {
                return refuse(
                    "spec.resourceAttributes",
                    "exactly one of nonResourceAttributes or resourceAttributes must be specified",
                );
            }
            (Some(r), None) => Attributes {
                verb: text(r, "verb").into(),
                group: text(r, "group").into(),
                resource: text(r, "resource").into(),
                subresource: text(r, "subresource").into(),
                namespace: text(r, "namespace").into(),
                name: text(r, "name").into(),
                fields: field_terms(r),
                ..Attributes::default()
            },
            (None, Some(p)) => {
                Attributes { verb: text(p, "verb").into(), path: text(p, "path").into(), ..Attributes::default() }
            }
        };
        if request.kind.namespaced() && attributes.namespace != request.namespace {
            let why = "must match the namespace of the request";
            let error = field::invalid("spec.resourceAttributes.namespace", attributes.namespace, why);
            return Err(nameless(request, error));
        }
        // Other nodes ask what a node may do that shows them its certificate.
        if let Some(Err(deleted)) = user.node_name().map(|own| join::check_member(self, own)) {
            return Ok(json!({"allowed": false, "reason": deleted.message}));
        }
        let decision = authorize(self, user, &attributes);
        let mut status = json!({"allowed": decision.allowed});
        if let Some(reason) = decision.reason {
            status["reason"] = reason.into();
        }
        Ok(status)
    }

    fn rules_review(&self, request: &Request, review: &Value) -> Result<Value> {
        let namespace = text(review, "spec.namespace");
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let everything = || crate::api::identity::rbac::Rule {
            verbs: vec!["*".into()],
            api_groups: vec!["*".into()],
            resources: vec!["*".into()],
            ..Default::default()
        };
        let mut rules = self.rbac.rules(&request.user, namespace);
        if request.user.is_in(crate::apimachinery::user::MASTERS) {
            rules.insert(0, everything());
        }
        let (mut resource, mut path) = (Vec::new(), Vec::new());
        for rule in rules {
            let rule = serde_json::to_value(&rule).map_err(Status::internal)?;
            if rule.get("nonResourceURLs").is_some() { path.push(rule) } else { resource.push(rule) }
        }
        Ok(json!({"resourceRules": resource, "nonResourceRules": path, "incomplete": false}))
    }
}

/// What `fieldSelector` requires, as text or as requirements; what cannot be read requires nothing.
fn field_terms(resource: &Value) -> Vec<FieldTerm> {
    let raw = text(resource, "fieldSelector.rawSelector");
    let mut terms = FieldSelector::parse(raw).map(|s| s.0).unwrap_or_default();
    for requirement in list(resource, "fieldSelector.requirements") {
        let (operator, values) = (text(requirement, "operator"), list(requirement, "values"));
        if let (equal @ ("In" | "NotIn"), [Value::String(value)]) = (operator, values) {
            let field = text(requirement, "key").to_owned();
            terms.push(FieldTerm { field, value: value.clone(), equal: equal == "In" });
        }
    }
    terms
}

/// A refusal that names no kind, as Kubernetes' reviews give it.
fn nameless(request: &Request, error: field::Error) -> Status {
    let mut status = Status::invalid(&request.kind, "", &[error]);
    status.details.kind.clear();
    status
}

fn asked_user(request: &Request, review: &Value) -> Result<User> {
    let name = text(review, "spec.user");
    let groups: Vec<String> =
        list(review, "spec.groups").iter().filter_map(|g| g.as_str().map(str::to_owned)).collect();
    if name.is_empty() && groups.is_empty() {
        let error = field::invalid("spec.user", name, "at least one of user or group must be specified");
        return Err(nameless(request, error));
    }
    let extra = map(review, "spec.extra").into_iter().flatten();
    let extra = extra.map(|(k, v)| {
        let values = v.as_array().into_iter().flatten().filter_map(|x| x.as_str().map(str::to_owned)).collect();
        (k.clone(), values)
    });
    Ok(User { name: name.into(), uid: text(review, "spec.uid").into(), groups, extra: extra.collect() })
}
