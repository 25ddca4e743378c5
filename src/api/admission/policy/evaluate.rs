//! Evaluating the expressions of a policy: what they are given, and what they may take
//! (`k8s.io/apiserver/pkg/admission/plugin/cel`).
//!
//! What a policy may take for one request is Kubernetes' budget; what all of them may take together is ours, because nothing
//! else bounds how many there are and with how many parameters each is evaluated.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::Value;

use super::configured::{Bound, Compiled, Text};
use super::invocations::How;
use super::params::Param;
use crate::api::admission::{Review, authorizer, conditions, presented};
use crate::apimachinery::status::{Result, Status};
use crate::cel::{CALL_COST_MAX, Composed, Decl, DeclKind, Meter, Value as Cel};
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::conditions::{CONDITIONS_COST_MAX, request};
use crate::kinds::admissionregistration::expressions::{self, COMPOSED};
use crate::kinds::core::namespace;

/// What one policy may take for one request and one parameter (`RuntimeCELCostBudget`).
const POLICY_LOAD_MAX: u64 = 10_000_000;
/// What all policies together may take for one request.
const REQUEST_LOAD_MAX: u64 = 40_000_000;
/// Of what is made for a policy before anything of it is evaluated.
const SUBJECT_LOAD: u64 = 250;
/// What takes more is noted as slow: about a millisecond.
const SLOW_LOAD: u64 = 100_000;
const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

static UNTYPED: LazyLock<Decl> = LazyLock::new(|| Decl::new(DeclKind::Untyped, 0, 2));

/// What is left to all policies of a request.
pub(super) struct RequestBudget(u64);

/// What is left to a policy.
pub(super) struct Budget<'b> {
    left: u64,
    of_request: &'b mut RequestBudget,
    taken: u64,
}

/// Nothing more can be evaluated.
pub(super) struct OutOfBudget;

/// What the expressions of a policy are about.
pub(super) struct Subject<'v> {
    new: Cow<'v, Value>,
    old: Cow<'v, Value>,
    asked: Value,
    namespace: &'v Value,
    param: Value,
}

// === impl RequestBudget ===

impl RequestBudget {
    /// For a request.
    pub fn new() -> Self {
        Self(REQUEST_LOAD_MAX)
    }

    /// For one policy of the request.
    pub fn of_policy(&mut self) -> Budget<'_> {
        Budget { left: POLICY_LOAD_MAX, of_request: self, taken: 0 }
    }
}

// === impl Budget ===

impl Budget<'_> {
    /// Takes so much, if it is left.
    pub fn take(&mut self, load: u64) -> Result<(), OutOfBudget> {
        self.taken += load;
        let is_left = load <= self.left && load <= self.of_request.0;
        self.left = self.left.saturating_sub(load);
        self.of_request.0 = self.of_request.0.saturating_sub(load);
        if is_left { Ok(()) } else { Err(OutOfBudget) }
    }

    /// Whether what was taken is so much that others would wait for it.
    pub fn is_slow(&self) -> bool {
        self.taken > SLOW_LOAD
    }

    /// The value of an expression; the inner error says why it has none.
    pub fn evaluate<'a>(
        &mut self,
        expression: &Text,
        composed: &Composed<'a>,
        variables: &[Option<Cel<'a>>],
    ) -> Result<Result<Cel<'a>, String>, OutOfBudget> {
        let program = match &expression.program {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let mut meter = Meter::new(CALL_COST_MAX);
        let result = program.eval(variables, &mut meter);
        self.take(composed.take_load())?;
        self.take(meter.load())?;
        Ok(result.map_err(|error| format!("expression '{}' resulted in error: {error}", expression.text)))
    }

    /// Whether the conditions of a policy hold.
    pub fn conditions_hold(
        &mut self,
        compiled: &Compiled,
        subject: &Subject<'_>,
        review: &Review<'_>,
    ) -> Result<bool, String> {
        if compiled.conditions.is_empty() {
            return Ok(true);
        }
        let most = CONDITIONS_COST_MAX.min(self.of_request.0);
        let mut left = most;
        // Kubernetes does not show them the namespace.
        let held = conditions::hold(&compiled.conditions, &subject.given(review, &Value::Null), &mut left);
        self.of_request.0 -= most - left;
        self.taken += most - left;
        held
    }
}

impl std::fmt::Display for OutOfBudget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(OUT_OF_BUDGET)
    }
}

// === impl Subject ===

impl<'v> Subject<'v> {
    /// What a policy sees of a request.
    pub fn of(
        review: &Review<'v>,
        object: &'v Value,
        how: &How,
        namespace: &'v Value,
        budget: &mut Budget<'_>,
    ) -> Result<Self, OutOfBudget> {
        budget.take(SUBJECT_LOAD + how.param.as_ref().map_or(0, Param::load))?;
        let kind: &KindRef = &how.kind;
        Ok(Self {
            new: presented::shown(review, kind, object),
            old: review.old.map_or(Cow::Owned(Value::Null), |old| presented::shown(review, kind, old)),
            asked: presented::request(review, kind, object),
            namespace,
            param: how.param.as_ref().map_or(Value::Null, |param| param.value(review)),
        })
    }

    /// All variables but those that the policy itself has.
    pub fn variables(&self, review: &Review<'_>) -> Vec<Option<Cel<'_>>> {
        self.given(review, self.namespace)
    }

    fn given<'a>(&'a self, review: &Review<'_>, namespace: &'a Value) -> Vec<Option<Cel<'a>>> {
        let [of_user, of_resource] = authorizer::variables(review);
        let of = |json: &'a Value, decl: &'a Decl| Cel::of_json(json, decl).ok();
        let mut all = vec![
            of(&self.new, &UNTYPED),
            of(&self.old, &UNTYPED),
            of(&self.asked, request()),
            of(namespace, expressions::namespace()),
            of(&self.param, &UNTYPED),
            Some(of_user),
            Some(of_resource),
        ];
        all.insert(COMPOSED, None);
        all
    }
}

/// The namespace that a request is in, null where it is in none.
pub(super) fn namespace_of(review: &Review<'_>) -> Result<Value> {
    let request = review.request;
    if request.namespace.is_empty() || request.kind == namespace::KIND {
        return Ok(Value::Null);
    }
    let found = review.api.cache.kind(&namespace::KIND).get(&namespace::KIND.key("", &request.namespace));
    found.map(|found| found.value()).ok_or_else(|| Status::not_found(&namespace::KIND, &request.namespace))
}

/// A policy in words.
pub(super) fn named(kind: &str, of: &Bound, binding: Option<&str>) -> String {
    match binding {
        Some(binding) => format!("{kind} '{}' with binding '{binding}'", of.name),
        None => format!("{kind} '{}'", of.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_takes_too_much_leaves_something_to_others() {
        let mut all = RequestBudget::new();
        assert!(all.of_policy().take(POLICY_LOAD_MAX + 1).is_err());
        assert!(all.of_policy().take(POLICY_LOAD_MAX).is_ok());
        assert!(all.of_policy().take(POLICY_LOAD_MAX).is_ok());
        assert!(all.of_policy().take(POLICY_LOAD_MAX).is_err(), "all have taken what there was");
        assert!(all.of_policy().take(1).is_err());
    }
}
