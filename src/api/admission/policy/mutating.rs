//! MutatingAdmissionPolicy: expressions that change what is written
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/mutating`).
//!
//! Fields that a policy sets have no owner for it: they were tracked before.

use serde_json::Value;

use super::configured::{Bound, CompiledMutation};
use super::evaluate::{Budget, OutOfBudget, RequestBudget, Subject, namespace_of};
use super::invocations::{How, Invocation, invocations};
use crate::api::FieldValidation;
use crate::api::admission::Review;
use crate::api::admission::matching::name;
use crate::api::admission::presented::{Unfit, is_changeable, shown, taken_back};
use crate::api::admission::reinvocation::Reinvocation;
use crate::apimachinery::status::{Result, Status};
use crate::base::budget;
use crate::base::json::text;
use crate::base::task;
use crate::cel::{CALL_COST_MAX, Composed, Meter};
use crate::kinds::Subresource;
use crate::kinds::admissionregistration::expressions::COMPOSED;
use crate::schema::apply::merge_unowned;
use crate::schema::{self, PatchError, patch};

/// Of so many failures the client is told.
const DENIALS_MAX: usize = 100;
/// Bytes of an object that changing it counts as one.
const BYTES_OF_LOAD: usize = 2;

/// Why an object is not changed.
enum Failure {
    /// The policy could not be evaluated; its failure policy says what that means.
    Policy(String),
    Status(Status),
}

impl From<OutOfBudget> for Failure {
    fn from(out: OutOfBudget) -> Self {
        Self::Policy(out.to_string())
    }
}

/// Lets all policies change an object, one after the other.
pub(super) fn mutate(
    review: &Review<'_>,
    object: &mut Value,
    all: &[Bound],
    reinvocation: &mut Reinvocation,
) -> Result<()> {
    let invocations = invocations(review, object, all);
    if invocations.is_empty() || !is_changeable(review, object) {
        return Ok(());
    }
    let namespace = namespace_of(review)?;
    let mut budget = RequestBudget::new();
    let mut denials = Vec::new();
    for invocation in &invocations {
        let policy = &invocation.of.policy;
        let how = match &invocation.how {
            Ok(how) => how,
            Err(_) if policy.ignores_failures() || denials.len() >= DENIALS_MAX => continue,
            Err(why) => {
                denials.push(denial(invocation, why));
                continue;
            }
        };
        let id = id(invocation, how);
        if reinvocation.skips(&id) {
            continue;
        }
        let before = object.clone();
        let errors = task::in_place(review.request.heavy || policy.is_slow(), || {
            change(review, object, invocation, how, &namespace, &mut budget)
        })?;
        let Some(errors) = errors else { continue };
        if *object != before {
            reinvocation.changed();
        }
        if policy.is_reinvoked() {
            reinvocation.ask_again(id);
        }
        if !policy.ignores_failures() && denials.len() < DENIALS_MAX {
            denials.extend(errors.iter().map(|why| denial(invocation, why)));
        }
    }
    reinvocation.end(object);
    refusal(review, object, &denials).map_or(Ok(()), Err)
}

/// What tells an invocation from all others of the request.
fn id(invocation: &Invocation<'_>, how: &How) -> String {
    let binding = invocation.binding.map_or("", |(name, _)| name);
    format!("{}/{binding}/{}", invocation.of.name, how.param.as_ref().map_or("", |param| param.key()))
}

fn denial(invocation: &Invocation<'_>, why: &str) -> String {
    match invocation.binding {
        Some((binding, _)) => {
            format!("policy '{}' with binding '{binding}' denied request: {why}", invocation.of.name)
        }
        None => format!("policy '{}' denied request: {why}", invocation.of.name),
    }
}

fn refusal(review: &Review<'_>, object: &Value, denials: &[String]) -> Option<Status> {
    let first = denials.first()?;
    let mut status = Status::forbidden(&review.request.kind, name(review, object), first);
    (status.code, status.reason) = (422, "Invalid");
    Some(denials.iter().fold(status, |status, denial| status.cause("", denial, "")))
}

/// Lets one policy change an object; answers what it could not do, and nothing where its conditions do not hold.
fn change(
    review: &Review<'_>,
    object: &mut Value,
    invocation: &Invocation<'_>,
    how: &How,
    namespace: &Value,
    budget: &mut RequestBudget,
) -> Result<Option<Vec<String>>> {
    let policy = &invocation.of.policy;
    let compiled = policy.compiled();
    let mut of_policy = budget.of_policy();
    let held = Subject::of(review, object, how, namespace, &mut of_policy)
        .map_err(|out| out.to_string())
        .and_then(|subject| of_policy.conditions_hold(compiled, &subject, review));
    match held {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(why) => return Ok(Some(vec![why])),
    }
    let mut errors = Vec::new();
    for mutation in &compiled.mutations {
        let mut of_mutation = budget.of_policy();
        let new = changed(review, object, invocation, mutation, how, namespace, &mut of_mutation);
        if of_mutation.is_slow() {
            policy.note_slow();
        }
        match new {
            Ok(new) => *object = new,
            Err(Failure::Policy(why)) => errors.push(why),
            Err(Failure::Status(status)) => return Err(status),
        }
    }
    Ok(Some(errors))
}

/// What a mutation makes of an object.
fn changed(
    review: &Review<'_>,
    object: &Value,
    invocation: &Invocation<'_>,
    mutation: &CompiledMutation,
    how: &How,
    namespace: &Value,
    budget: &mut Budget<'_>,
) -> Result<Value, Failure> {
    let compiled = invocation.of.policy.compiled();
    budget.take((budget::size_of(object).bytes / BYTES_OF_LOAD) as u64)?;
    let subject = Subject::of(review, object, how, namespace, budget)?;
    let composed = Composed::new(&compiled.compositions, subject.variables(review), COMPOSED);
    let value = budget.evaluate(&mutation.expression, &composed, &composed.variables())?.map_err(Failure::Policy)?;
    let mut meter = Meter::new(CALL_COST_MAX);
    let written = match mutation.is_json_patch {
        true => value.to_json_patch(&mut meter),
        false => value.to_json(&mut meter),
    };
    budget.take(meter.load())?;
    let written = written.map_err(|why| Failure::Policy(why.to_string()))?;
    let mut limits = budget::Budget::new();
    let seen = shown(review, &how.kind, object);
    let new = match mutation.is_json_patch {
        true => patched(&seen, &written, &mut limits),
        false => merged(review, how, &seen, written, &mut limits),
    };
    let Some(new) = new? else { return Ok(object.clone()) };
    // As Kubernetes reads what became of an object: of its own kinds strictly, of others as far as they are defined.
    let validation = if how.kind.as_custom().is_some() { FieldValidation::Ignore } else { FieldValidation::Strict };
    taken_back(review, &how.kind, object, new, validation, &mut limits).map_err(|unfit| match unfit {
        Unfit::Broken(why) => Failure::Policy(why),
        Unfit::Status(status) => Failure::Status(status),
    })
}

/// The object with a JSON patch; none where a test in it fails, which is no error.
fn patched(seen: &Value, patch: &Value, limits: &mut budget::Budget) -> Result<Option<Value>, Failure> {
    let mut new = seen.clone();
    match patch::json::apply(&mut new, patch, limits) {
        Ok(()) => Ok(Some(new)),
        Err(PatchError::FailedTest(_)) => Ok(None),
        Err(error) => Err(Failure::Policy(format!("JSON Patch: {error}"))),
    }
}

/// The object with what a configuration says.
fn merged(
    review: &Review<'_>,
    how: &How,
    seen: &Value,
    mut config: Value,
    limits: &mut budget::Budget,
) -> Result<Option<Value>, Failure> {
    for key in ["apiVersion", "kind"] {
        config[key] = text(seen, key).into();
    }
    let scale = schema::type_of("io.k8s.api.autoscaling.v1.Scale");
    let of = match review.request.subresource {
        Some(Subresource::Scale) => scale.unwrap_or_else(|| how.kind.type_ref()),
        _ => how.kind.type_ref(),
    };
    let new = merge_unowned(seen, &config, &of, limits);
    new.map(Some).map_err(|why| Failure::Policy(format!("error applying patch: {why}")))
}
