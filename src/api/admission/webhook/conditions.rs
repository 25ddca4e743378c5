//! Whether the conditions of a webhook hold for a request (`k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions`).

use std::sync::LazyLock;

use serde_json::Value;

use super::configured::Webhook;
use super::matching::Invocation;
use super::presented;
use crate::api::admission::{Review, authorizer};
use crate::apimachinery::status::{Result, Status};
use crate::cel::{CALL_COST_MAX, Decl, DeclKind, Failure, Meter, Value as Cel};
use crate::kinds::admissionregistration::conditions::{CONDITIONS_COST_MAX, request};

static UNTYPED: LazyLock<Decl> = LazyLock::new(|| Decl::new(DeclKind::Untyped, 0, 2));

/// Whether all conditions hold. One that does not hold is decisive; what cannot be evaluated counts as the failure policy says.
pub(super) fn hold(review: &Review<'_>, webhook: &Webhook, invocation: &Invocation, object: &Value) -> Result<bool> {
    let conditions = webhook.of().conditions();
    if conditions.is_empty() {
        return Ok(true);
    }
    let (new, old) = presented::objects(review, invocation, object);
    let asked = presented::request(review, invocation, object);
    let [of_user, of_resource] = authorizer::variables(review);
    let of = |json, decl| Cel::of_json(json, decl).ok();
    let variables = [of(&new, &UNTYPED), of(&old, &UNTYPED), of(&asked, request()), Some(of_user), Some(of_resource)];
    let mut budget = CONDITIONS_COST_MAX;
    let mut errors = Vec::new();
    for (expression, program) in conditions {
        let result = match program {
            Ok(program) => {
                let mut meter = Meter::new(CALL_COST_MAX.min(budget));
                let result = program.eval(&variables, &mut meter).map_err(|error: Failure| error.to_string());
                budget = budget.saturating_sub(meter.cost());
                result
            }
            Err(error) => Err(error.clone()),
        };
        match result {
            Ok(Cel::Bool(true)) => {}
            Ok(Cel::Bool(false)) => return Ok(false),
            Ok(_) => errors.push(format!("expression '{expression}' did not evaluate to a bool")),
            Err(error) => errors.push(format!("expression '{expression}' resulted in error: {error}")),
        }
    }
    if errors.is_empty() {
        return Ok(true);
    }
    if webhook.of().failure_policy.as_deref() == Some("Ignore") {
        return Ok(false);
    }
    let name = &review.request.name;
    let why = if let [one] = &errors[..] { one.clone() } else { format!("[{}]", errors.join(", ")) };
    Err(Status::forbidden(&review.request.kind, name, why))
}
