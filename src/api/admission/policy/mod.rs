//! MutatingAdmissionPolicy and ValidatingAdmissionPolicy: expressions of the cluster's users that change or refuse what is
//! written.
//!
//! Nothing is read, compiled or asked where no policy is in force. Policies do not decide on what decides on admission.

mod configured;
mod evaluate;
mod invocations;
mod mutating;
mod params;
mod validating;

use serde_json::Value;

use super::Review;
use super::reinvocation::Reinvocation;
use crate::apimachinery::status::Result;
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::{
    mutatingadmissionpolicy, mutatingadmissionpolicybinding, validatingadmissionpolicy,
    validatingadmissionpolicybinding,
};

fn are_bound(review: &Review<'_>, bindings: &KindRef) -> bool {
    !review.api.cache.kind(bindings).is_empty() && !review.is_exempt()
}

/// Whether mutating policies are in force at all.
pub(super) fn are_mutating(review: &Review<'_>) -> bool {
    are_bound(review, &mutatingadmissionpolicybinding::KIND)
}

/// Lets mutating policies change the object.
pub(super) fn mutate(review: &Review<'_>, object: &mut Value, reinvocation: &mut Reinvocation) -> Result<()> {
    let (policies, bindings) = (&mutatingadmissionpolicy::KIND, &mutatingadmissionpolicybinding::KIND);
    mutating::mutate(review, object, &configured::all(review.api, policies, bindings), reinvocation)
}

/// Lets validating policies refuse the object; answers what the client is warned of.
pub(super) fn validate(review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
    let (policies, bindings) = (&validatingadmissionpolicy::KIND, &validatingadmissionpolicybinding::KIND);
    if !are_bound(review, bindings) {
        return Ok(Vec::new());
    }
    validating::validate(review, object, &configured::all(review.api, policies, bindings))
}
