//! The parameters that a binding gives to its policy.

use std::sync::Arc;

use serde_json::Value;

use super::configured::{ParamKind, ParamRef};
use crate::api::admission::Review;
use crate::api::form;
use crate::base::object::Object;
use crate::kinds::KindRef;

/// An object that is a parameter.
#[derive(Clone, Debug)]
pub(super) struct Param {
    kind: KindRef,
    object: Arc<Object>,
}

// === impl Param ===

impl Param {
    /// It as expressions see it.
    pub fn value(&self, review: &Review<'_>) -> Value {
        if !self.kind.is_converted_by_webhook() || self.kind.has_form_of(&self.object) {
            return form::served(&self.kind, &self.object);
        }
        let (_, own) = form::own(&self.kind, &self.object);
        review.request.conversions.get(&own, &self.kind).unwrap_or_default()
    }

    /// What tells it from others.
    pub fn key(&self) -> &str {
        &self.object.key
    }

    /// What reading it takes, in units of cost.
    pub fn load(&self) -> u64 {
        self.object.body().len() as u64 / 4
    }
}

/// The kind of a policy's parameters, if there is such a kind.
pub(super) fn kind(review: &Review<'_>, of: &ParamKind) -> Result<KindRef, String> {
    let kinds = review.api.kinds.snapshot();
    let found = kinds.by_kind(&of.api_version, &of.kind).filter(|kind| kind.is_stored());
    found.cloned().ok_or_else(|| {
        format!("failed to find resource referenced by paramKind: '{}, Kind={}'", of.api_version, of.kind)
    })
}

/// What a policy is evaluated with, once each; it may be nothing.
pub(super) fn collect(
    review: &Review<'_>,
    kind: Option<&KindRef>,
    reference: Option<&ParamRef>,
) -> Result<Vec<Option<Param>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let namespace = namespace(review, kind, reference)?;
    let stored = kind.stored();
    let cache = review.api.cache.kind(stored);
    let found: Vec<Arc<Object>> = match &reference.selector {
        Some(selector) => {
            let prefix = if namespace.is_empty() { String::new() } else { format!("{}{namespace}/", stored.prefix()) };
            let all = cache.list(&prefix, "").into_iter();
            all.filter(|object| selector.matches(&object.meta.labels)).collect()
        }
        None => cache.get(&stored.key(namespace, &reference.name)).into_iter().collect(),
    };
    if found.is_empty() && reference.parameter_not_found_action.as_deref() == Some("Deny") {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.into_iter().map(|object| Some(Param { kind: kind.clone(), object })).collect())
}

/// Where parameters are looked for; empty for those that are in no namespace.
fn namespace<'r>(review: &'r Review<'_>, kind: &KindRef, reference: &'r ParamRef) -> Result<&'r str, String> {
    let why = match (kind.namespaced(), reference.namespace.as_str()) {
        (false, "") => return Ok(""),
        (false, _) => "paramRef.namespace must not be provided for a cluster-scoped `paramKind`",
        (true, "") if !review.request.kind.namespaced() || review.request.namespace.is_empty() => {
            "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
        }
        (true, "") => return Ok(&review.request.namespace),
        (true, namespace) => return Ok(namespace),
    };
    Err(why.to_owned())
}
