//! Which webhooks are asked about a request, and in which version of its kind.

use serde_json::Value;

use super::configured::Webhook;
use crate::api::admission::Review;
use crate::api::admission::matching::{named, selects_namespace, selects_object};
use crate::apimachinery::status::Result;
use crate::kinds::KindRef;

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
    let Some(kind) = named(&spec.rules, spec.match_policy.as_deref(), review, object) else { return Ok(None) };
    let selected = selects_namespace(&spec.namespace_selector, review, object)?;
    Ok(selected.then_some(Invocation { kind }))
}
