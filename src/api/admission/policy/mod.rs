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

/// Whether any policy is about a deletion.
pub(super) fn would_look(review: &Review<'_>) -> bool {
    let (policies, bindings) = (&validatingadmissionpolicy::KIND, &validatingadmissionpolicybinding::KIND);
    let all = || configured::all(review.api, policies, bindings);
    are_bound(review, bindings) && !invocations::invocations(review, &Value::Null, &all()).is_empty()
}

/// Lets mutating policies change the object.
pub(super) async fn mutate(review: &Review<'_>, object: &mut Value, reinvocation: &mut Reinvocation) -> Result<()> {
    let (policies, bindings) = (&mutatingadmissionpolicy::KIND, &mutatingadmissionpolicybinding::KIND);
    let all = configured::all(review.api, policies, bindings);
    if review.request.kind.as_custom().is_none() && !configured::have_params(&all) {
        return mutating::mutate(review, object, &all, reinvocation);
    }
    loop {
        let (mut new, mut round) = (object.clone(), reinvocation.clone());
        let done = mutating::mutate(review, &mut new, &all, &mut round);
        // What was not known in another version was taken for nothing.
        if !review.api.learn(review.request).await? {
            (*object, *reinvocation) = (new, round);
            return done;
        }
    }
}

/// Lets validating policies refuse the object; answers what the client is warned of.
pub(super) async fn validate(review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
    let (policies, bindings) = (&validatingadmissionpolicy::KIND, &validatingadmissionpolicybinding::KIND);
    if !are_bound(review, bindings) {
        return Ok(Vec::new());
    }
    let all = configured::all(review.api, policies, bindings);
    loop {
        let done = validating::validate(review, object, &all);
        if !review.api.learn(review.request).await? {
            return done;
        }
    }
}
