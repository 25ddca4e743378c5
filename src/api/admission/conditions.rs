//! Whether the conditions of a webhook or a policy hold for a request
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions`).

use crate::cel::{CALL_COST_MAX, Failure, Meter, Program, Value};

/// A condition, compiled once.
#[derive(Debug)]
pub(super) struct Condition {
    expression: String,
    program: Result<Program, String>,
}

// === impl Condition ===

impl Condition {
    /// An expression, and what compiling it gave.
    pub fn new(expression: &str, program: Result<Program, String>) -> Self {
        Self { expression: expression.to_owned(), program }
    }
}

/// Whether all conditions hold. One that does not hold is decisive; the error is what else cannot be evaluated. What it takes is
/// taken from the budget.
pub(super) fn hold(
    conditions: &[Condition],
    variables: &[Option<Value<'_>>],
    budget: &mut u64,
) -> Result<bool, String> {
    let mut errors = Vec::new();
    for Condition { expression, program } in conditions {
        let result = match program {
            Ok(program) => {
                let mut meter = Meter::new(CALL_COST_MAX.min(*budget));
                let result = program.eval(variables, &mut meter).map_err(|error: Failure| error.to_string());
                *budget = budget.saturating_sub(meter.load());
                result
            }
            Err(error) => Err(error.clone()),
        };
        match result {
            Ok(Value::Bool(true)) => {}
            Ok(Value::Bool(false)) => return Ok(false),
            Ok(_) => errors.push(format!("expression '{expression}' did not evaluate to a bool")),
            Err(error) => errors.push(format!("expression '{expression}' resulted in error: {error}")),
        }
    }
    match &errors[..] {
        [] => Ok(true),
        [one] => Err(one.clone()),
        some => Err(format!("[{}]", some.join(", "))),
    }
}
