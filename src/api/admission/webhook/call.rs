//! One webhook asked once.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::configured::Webhook;
use super::matching::Invocation;
use super::question::{Answer, Question, refusal};
use crate::api::FieldValidation;
use crate::api::admission::Review;
use crate::api::admission::presented::{Unfit, is_changeable, is_dry_run, shown, taken_back};
use crate::api::webhook::{self, Limits};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::task;
use crate::schema::{self, patch};

/// How long a webhook has that says nothing of it.
const TIMEOUT_SECONDS: u64 = 10;
/// Bytes of an answer that are read: a patch may make all of a large object anew.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why there is no consent.
#[derive(Debug)]
pub(super) enum Failure {
    /// It could not be asked, or its answer is none; the failure policy says what that means.
    Call(String),
    Refused(Status),
}

/// What became of the object.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub changed: bool,
    pub warnings: Vec<String>,
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Call(why)
    }
}

/// Lets a mutating webhook change the object.
pub(super) async fn mutate(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &mut Value,
) -> Result<Changed, Failure> {
    let answer = ask(review, webhook, invocation, object, true).await?;
    let mut done = Changed { changed: false, warnings: answer.warnings };
    if let Some(patch) = answer.patch {
        let name = &webhook.of().name;
        let new = loop {
            let new = task::in_place(review.request.heavy, || patched(review, invocation, object, name, &patch));
            match new {
                Err(_) if review.api.learn(review.request).await.map_err(Failure::Refused)? => {}
                new => break new.map_err(Failure::Refused)?,
            }
        };
        done.changed = new != *object;
        *object = new;
    }
    Ok(done)
}

/// Lets a validating webhook refuse the object; answers its warnings.
pub(super) async fn validate(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &Value,
) -> Result<Vec<String>, Failure> {
    Ok(ask(review, webhook, invocation, object, false).await?.warnings)
}

async fn ask(
    review: &Review<'_>,
    webhook: &Webhook,
    invocation: &Invocation,
    object: &Value,
    mutating: bool,
) -> Result<Answer, Failure> {
    let spec = webhook.of();
    if is_dry_run(review) && !matches!(spec.side_effects.as_deref(), Some("None" | "NoneOnDryRun")) {
        let why = format!("admission webhook {:?} does not support dry run", spec.name);
        return Err(Failure::Refused(Status::bad_request(why)));
    }
    let question = Question::of(review, spec, invocation, object)?;
    let limits = Limits { seconds: spec.timeout_seconds.unwrap_or(TIMEOUT_SECONDS), answer_bytes: ANSWER_BYTES_MAX };
    let reply = webhook::ask(review.api, &spec.client_config, &question.body, limits).await;
    let answer = question.read(&reply.map_err(|why| format!("failed to call webhook: {why}"))?, mutating)?;
    if answer.allowed { Ok(answer) } else { Err(Failure::Refused(refusal(&spec.name, &answer.result))) }
}

/// The object with a webhook's patch.
fn patched(review: &Review<'_>, invocation: &Invocation, object: &Value, webhook: &str, patch: &str) -> Result<Value> {
    if !is_changeable(review, object) {
        return Err(Status::internal(format!(
            "admission webhook {webhook:?} attempted to modify the object, which is not supported for this operation"
        )));
    }
    let broken = |why: &dyn std::fmt::Display| Status::internal(format!("admission webhook {webhook:?}: {why}"));
    let mut budget = Budget::new();
    let bytes = STANDARD.decode(patch).map_err(|error| broken(&format!("response.patch: {error}")))?;
    let patch = schema::parse_json(&bytes, &mut budget).map_err(|error| broken(&error))?.0;
    let mut new = shown(review, &invocation.kind, object).into_owned();
    patch::json::apply(&mut new, &patch, &mut budget).map_err(|error| broken(&error))?;
    let taken = taken_back(review, &invocation.kind, object, new, FieldValidation::Ignore, &mut budget);
    taken.map_err(|unfit| match unfit {
        Unfit::Broken(why) => broken(&why),
        Unfit::Status(status) => status,
    })
}
