//! Whether the conditions of a webhook hold for a request.

use std::sync::LazyLock;

use serde_json::Value;

use super::configured::Webhook;
use super::matching::Invocation;
use crate::api::admission::presented::shown;
use crate::api::admission::{Review, authorizer, conditions, presented};
use crate::apimachinery::status::{Result, Status};
use crate::cel::{Decl, DeclKind, Value as Cel};
use crate::kinds::admissionregistration::conditions::{CONDITIONS_COST_MAX, request};

static UNTYPED: LazyLock<Decl> = LazyLock::new(|| Decl::new(DeclKind::Untyped, 0, 2));

/// Whether all conditions hold; what cannot be evaluated counts as the failure policy says.
pub(super) fn hold(review: &Review<'_>, webhook: &Webhook, invocation: &Invocation, object: &Value) -> Result<bool> {
    let conditions = webhook.of().conditions();
    if conditions.is_empty() {
        return Ok(true);
    }
    let kind = &invocation.kind;
    let (new, old) = (shown(review, kind, object), shown(review, kind, review.old.unwrap_or(&Value::Null)));
    let asked = presented::request(review, kind, object);
    let [of_user, of_resource] = authorizer::variables(review);
    let of = |json, decl| Cel::of_json(json, decl).ok();
    let variables = [of(&new, &UNTYPED), of(&old, &UNTYPED), of(&asked, request()), Some(of_user), Some(of_resource)];
    let mut budget = CONDITIONS_COST_MAX;
    match conditions::hold(conditions, &variables, &mut budget) {
        Ok(holds) => Ok(holds),
        Err(_) if webhook.of().failure_policy.as_deref() == Some("Ignore") => Ok(false),
        Err(why) => Err(Status::forbidden(&review.request.kind, &review.request.name, why)),
    }
}
