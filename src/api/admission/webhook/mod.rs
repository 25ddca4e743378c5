//! MutatingAdmissionWebhook and ValidatingAdmissionWebhook: servers of the cluster's users that change or refuse what is
//! written.
//!
//! Mutating webhooks are asked one after the other, by the names of their configurations; where one has changed the object
//! the other plugins see it again, and then those that wish to see what came after them, once. Validating webhooks are asked
//! at the same time. Invariant: nothing that a write holds for others, such as the right to take addresses, is held while a
//! webhook is asked: it may itself write.

mod call;
mod conditions;
mod configured;
mod matching;
mod question;

use futures::future::join_all;
use serde_json::Value;

use self::call::Failure;
use self::configured::Webhook;
use self::matching::Invocation;
use super::reinvocation::Reinvocation;
use super::{Review, presented};
use crate::apimachinery::status::{Result, Status};
use crate::kinds::admissionregistration::{mutatingwebhookconfiguration, validatingwebhookconfiguration};

/// Whether mutating webhooks are configured at all.
pub(super) fn are_mutating(review: &Review<'_>) -> bool {
    !review.is_exempt() && !review.api.cache.kind(&mutatingwebhookconfiguration::KIND).is_empty()
}

/// Lets webhooks change the object; answers their warnings.
pub(super) async fn mutate(
    review: &Review<'_>,
    object: &mut Value,
    reinvocation: &mut Reinvocation,
) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for webhook in configured::all(review.api, &mutatingwebhookconfiguration::KIND) {
        let Some(invocation) = matching::invocation(review, &webhook, object)? else { continue };
        if reinvocation.skips(&webhook.id()) {
            continue;
        }
        presented::prepare(review, &invocation.kind, object).await?;
        if !conditions::hold(review, &webhook, &invocation, object)? {
            continue;
        }
        match call::mutate(review, &webhook, &invocation, object).await {
            Ok(answer) => {
                warnings.extend(answer.warnings);
                if answer.changed {
                    reinvocation.changed();
                }
            }
            Err(failure) => settle(&webhook, failure)?,
        }
        if webhook.of().reinvocation_policy.as_deref() == Some("IfNeeded") {
            reinvocation.ask_again(webhook.id());
        }
    }
    reinvocation.end(object);
    Ok(warnings)
}

/// Whether validating webhooks would be asked of this object.
pub(super) fn would_validate(review: &Review<'_>, object: &Value) -> bool {
    validating(review, object).is_ok_and(|asked| !asked.is_empty())
}

/// Whether any webhook is about a deletion.
pub(super) fn would_look(review: &Review<'_>) -> bool {
    let kinds = [&mutatingwebhookconfiguration::KIND, &validatingwebhookconfiguration::KIND];
    let about = |webhook: &Webhook| !matches!(matching::invocation(review, webhook, &Value::Null), Ok(None));
    !review.is_exempt() && kinds.iter().any(|kind| configured::all(review.api, kind).iter().any(about))
}

/// Lets webhooks refuse the object; answers their warnings.
pub(super) async fn validate(review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
    let asked = prepared(review, object).await?;
    let answers = asked.iter().map(|(webhook, invocation)| call::validate(review, webhook, invocation, object));
    let mut warnings = Vec::new();
    for ((webhook, _), answer) in asked.iter().zip(join_all(answers).await) {
        match answer {
            Ok(said) => warnings.extend(said),
            Err(failure) => settle(webhook, failure)?,
        }
    }
    Ok(warnings)
}

/// As [`validating`], with the objects in the forms as which they are shown.
async fn prepared(review: &Review<'_>, object: &Value) -> Result<Vec<(Webhook, Invocation)>> {
    if review.request.kind.as_custom().is_some() && !review.is_exempt() {
        for webhook in configured::all(review.api, &validatingwebhookconfiguration::KIND) {
            if let Some(invocation) = matching::invocation(review, &webhook, object)? {
                presented::prepare(review, &invocation.kind, object).await?;
            }
        }
    }
    validating(review, object)
}

fn validating(review: &Review<'_>, object: &Value) -> Result<Vec<(Webhook, Invocation)>> {
    if review.is_exempt() {
        return Ok(Vec::new());
    }
    let mut asked = Vec::new();
    for webhook in configured::all(review.api, &validatingwebhookconfiguration::KIND) {
        if let Some(invocation) = matching::invocation(review, &webhook, object)?
            && conditions::hold(review, &webhook, &invocation, object)?
        {
            asked.push((webhook, invocation));
        }
    }
    Ok(asked)
}

/// What a failure means for the request.
fn settle(webhook: &Webhook, failure: Failure) -> Result<()> {
    match failure {
        Failure::Refused(status) => Err(status),
        Failure::Call(why) if webhook.of().failure_policy.as_deref() == Some("Ignore") => {
            tracing::warn!(webhook = webhook.of().name, why, "failed calling webhook, failing open");
            Ok(())
        }
        Failure::Call(why) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", webhook.of().name))),
    }
}
