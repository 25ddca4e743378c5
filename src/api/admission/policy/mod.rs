//! ValidatingAdmissionPolicy: expressions of the cluster's users that refuse what is written.
//!
//! Nothing is read, compiled or asked where no policy is in force. Policies do not decide on what decides on admission.

mod configured;
mod evaluate;
mod invocations;
mod params;
mod validating;

use serde_json::Value;

use super::Review;
use crate::apimachinery::status::Result;
use crate::kinds::admissionregistration::{validatingadmissionpolicy, validatingadmissionpolicybinding};

/// Lets validating policies refuse the object; answers what the client is warned of.
pub(super) fn validate(review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
    let (policies, bindings) = (&validatingadmissionpolicy::KIND, &validatingadmissionpolicybinding::KIND);
    if review.api.cache.kind(bindings).is_empty() || review.is_exempt() {
        return Ok(Vec::new());
    }
    validating::validate(review, object, &configured::all(review.api, policies, bindings))
}
