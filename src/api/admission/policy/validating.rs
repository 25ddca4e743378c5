//! ValidatingAdmissionPolicy: expressions that refuse what is written
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/validating`).

use serde_json::Value;

use super::configured::{Bound, CompiledValidation, Validation};
use super::evaluate::{Budget, OutOfBudget, RequestBudget, Subject, named, namespace_of};
use super::invocations::{How, Invocation, invocations};
use crate::api::admission::Review;
use crate::api::admission::matching::name;
use crate::apimachinery::status::{Result, Status};
use crate::base::task;
use crate::cel::{Composed, Value as Cel};
use crate::kinds::admissionregistration::expressions::COMPOSED;

const KIND: &str = "ValidatingAdmissionPolicy";
/// The longest message that an expression makes.
const MESSAGE_BYTES_MAX: usize = 5 << 10;

/// What a policy says against a request.
struct Denial {
    message: String,
    reason: Option<String>,
    /// Whatever the binding wants to be done: the policy could not say anything.
    always: bool,
}

// === impl Denial ===

impl Denial {
    fn failure(message: String) -> Self {
        Self { message, reason: None, always: false }
    }
}

/// Lets all policies look at an object; answers what the client is warned of.
pub(super) fn validate(review: &Review<'_>, object: &Value, all: &[Bound]) -> Result<Vec<String>> {
    let invocations = invocations(review, object, all);
    if invocations.is_empty() {
        return Ok(Vec::new());
    }
    let namespace = namespace_of(review)?;
    let mut budget = RequestBudget::new();
    let (mut warnings, mut first) = (Vec::new(), None);
    for invocation in &invocations {
        let (policy, binding) = (&invocation.of.policy, invocation.binding.map(|(name, _)| &**name));
        let said = match &invocation.how {
            Ok(how) => task::in_place(review.request.heavy || policy.is_slow(), || {
                said(review, object, invocation, how, &namespace, budget.of_policy())
            }),
            Err(_) if policy.ignores_failures() => Vec::new(),
            Err(why) => vec![misconfigured(binding, why)],
        };
        let actions = invocation.binding.map_or(&[][..], |(_, binding)| &binding.spec.validation_actions);
        for denial in said {
            let shown = named(KIND, invocation.of, binding);
            if denial.always || actions.iter().any(|action| action == "Deny") {
                first.get_or_insert_with(|| refusal(review, object, &shown, &denial));
            }
            if !denial.always && actions.iter().any(|action| action == "Warn") {
                warnings.push(format!("Validation failed for {shown}: {}", denial.message));
            }
        }
    }
    first.map_or(Ok(warnings), Err)
}

fn misconfigured(binding: Option<&str>, why: &str) -> Denial {
    let what = if binding.is_some() { "binding" } else { "policy" };
    Denial { message: format!("failed to configure {what}: {why}"), reason: None, always: true }
}

fn refusal(review: &Review<'_>, object: &Value, policy: &str, denial: &Denial) -> Status {
    let message = format!("{policy} denied request: {}", denial.message);
    let mut status = Status::forbidden(&review.request.kind, name(review, object), &message);
    (status.code, status.reason) = match denial.reason.as_deref() {
        Some("Forbidden") => (403, "Forbidden"),
        Some("Unauthorized") => (401, "Unauthorized"),
        Some("RequestEntityTooLarge") => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    status.cause("", message, "")
}

/// What a policy says against a request; nothing where it is admitted.
fn said(
    review: &Review<'_>,
    object: &Value,
    invocation: &Invocation<'_>,
    how: &How,
    namespace: &Value,
    mut budget: Budget<'_>,
) -> Vec<Denial> {
    let policy = &invocation.of.policy;
    let result = evaluated(review, object, invocation, how, namespace, &mut budget);
    if budget.is_slow() {
        policy.note_slow();
    }
    let denials = result.unwrap_or_else(|out| vec![Denial::failure(out.to_string())]);
    // What has a reason was evaluated.
    match policy.ignores_failures() {
        true => denials.into_iter().filter(|denial| denial.reason.is_some()).collect(),
        false => denials,
    }
}

fn evaluated(
    review: &Review<'_>,
    object: &Value,
    invocation: &Invocation<'_>,
    how: &How,
    namespace: &Value,
    budget: &mut Budget<'_>,
) -> Result<Vec<Denial>, OutOfBudget> {
    let policy = &invocation.of.policy;
    let compiled = policy.compiled();
    let subject = Subject::of(review, object, how, namespace, budget)?;
    match budget.conditions_hold(compiled, &subject, review) {
        Ok(true) => {}
        Ok(false) => return Ok(Vec::new()),
        Err(why) => return Ok(vec![Denial::failure(why)]),
    }
    let composed = Composed::new(&compiled.compositions, subject.variables(review), COMPOSED);
    let variables = composed.variables();
    let mut denials = Vec::new();
    for (of, validation) in policy.spec.validations.iter().zip(&compiled.validations) {
        match budget.evaluate(&validation.expression, &composed, &variables)? {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => denials.push(denial(of, validation, &composed, &variables, budget)),
            Err(why) => denials.push(Denial::failure(why)),
        }
    }
    for annotation in &compiled.annotations {
        // There is no audit log that could have them; what cannot be evaluated counts none the less.
        if let Err(why) = budget.evaluate(annotation, &composed, &variables)? {
            denials.push(Denial { message: why, reason: None, always: true });
        }
    }
    Ok(denials)
}

/// What is said of a validation that does not hold.
fn denial<'a>(
    of: &Validation,
    validation: &CompiledValidation,
    composed: &Composed<'a>,
    variables: &[Option<Cel<'a>>],
    budget: &mut Budget<'_>,
) -> Denial {
    let made = validation.message.as_ref().map(|message| budget.evaluate(message, composed, variables));
    let made = match made {
        Some(Err(out)) => return Denial::failure(format!("failed messageExpression: {out}")),
        Some(Ok(Ok(Cel::String(text)))) => text.trim().to_owned(),
        Some(Ok(_)) | None => String::new(),
    };
    let fits = |made: &String| !made.is_empty() && made.len() <= MESSAGE_BYTES_MAX && !made.contains('\n');
    let plain = || match of.message.trim() {
        "" => format!("failed expression: {}", of.expression.trim()),
        message => message.to_owned(),
    };
    let reason = of.reason.clone().unwrap_or_else(|| "Invalid".to_owned());
    Denial { message: Some(made).filter(fits).unwrap_or_else(plain), reason: Some(reason), always: false }
}
