//! The policies that are in force, as they are used: read and compiled once for each of their revisions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Deserialize;
use serde_json::Value;

use crate::api::Api;
use crate::api::admission::conditions::Condition;
use crate::api::admission::matching::{MatchResources, selector};
use crate::base::labels::Selector;
use crate::cel::{Compositions, Program};
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::expressions::{Compiler, Purpose};

/// A policy of either kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    pub spec: PolicySpec,
    #[serde(skip)]
    compiled: OnceLock<Compiled>,
    /// It was seen to take long.
    #[serde(skip)]
    slow: AtomicBool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PolicySpec {
    failure_policy: Option<String>,
    pub param_kind: Option<ParamKind>,
    pub match_constraints: MatchResources,
    match_conditions: Vec<Named>,
    variables: Vec<Named>,
    pub validations: Vec<Validation>,
    audit_annotations: Vec<AuditAnnotation>,
    mutations: Vec<Mutation>,
    reinvocation_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ParamKind {
    pub api_version: String,
    pub kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Validation {
    pub expression: String,
    pub message: String,
    message_expression: String,
    pub reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuditAnnotation {
    value_expression: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mutation {
    apply_configuration: Named,
    json_patch: Option<Named>,
}

/// A policy's expressions.
#[derive(Debug)]
pub(super) struct Compiled {
    pub compositions: Compositions,
    pub conditions: Vec<Condition>,
    pub validations: Vec<CompiledValidation>,
    pub annotations: Vec<Text>,
    pub mutations: Vec<CompiledMutation>,
}

/// An expression: its text, and what compiling it gave.
#[derive(Debug)]
pub(super) struct Text {
    pub text: String,
    pub program: Result<Program, String>,
}

#[derive(Debug)]
pub(super) struct CompiledMutation {
    /// It makes a JSON patch, and no configuration that is applied.
    pub is_json_patch: bool,
    pub expression: Text,
}

#[derive(Debug)]
pub(super) struct CompiledValidation {
    pub expression: Text,
    pub message: Option<Text>,
}

/// A binding of either kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Binding {
    pub spec: BindingSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct BindingSpec {
    policy_name: String,
    pub param_ref: Option<ParamRef>,
    pub match_resources: Option<MatchResources>,
    pub validation_actions: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ParamRef {
    pub name: String,
    pub namespace: String,
    #[serde(deserialize_with = "some_selector")]
    pub selector: Option<Selector>,
    pub parameter_not_found_action: Option<String>,
}

/// A policy that is in force, and its bindings by name.
pub(super) struct Bound {
    pub name: Box<str>,
    pub policy: Arc<Policy>,
    pub bindings: Vec<(Box<str>, Arc<Binding>)>,
}

// === impl Policy ===

impl Policy {
    /// Whether nothing is refused because of what cannot be evaluated.
    pub fn ignores_failures(&self) -> bool {
        self.spec.failure_policy.as_deref() == Some("Ignore")
    }

    /// Whether it wishes to see what others make of an object after it.
    pub fn is_reinvoked(&self) -> bool {
        self.spec.reinvocation_policy.as_deref() == Some("IfNeeded")
    }

    /// Its expressions, compiled when they are needed first.
    pub fn compiled(&self) -> &Compiled {
        self.compiled.get_or_init(|| Compiled::of(&self.spec))
    }

    /// Whether an evaluation may take so long that other tasks of the thread would wait for it.
    pub fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed) || self.compiled.get().is_none()
    }

    /// Notes that it is.
    pub fn note_slow(&self) {
        self.slow.store(true, Ordering::Relaxed);
    }
}

// === impl Compiled ===

impl Compiled {
    fn of(spec: &PolicySpec) -> Self {
        let of = if spec.mutations.is_empty() { Compiler::new } else { Compiler::mutating };
        let mut compiler = of(spec.param_kind.is_some(), !spec.variables.is_empty());
        let conditions = spec.match_conditions.iter().map(|condition| {
            let text = condition.expression.trim();
            Condition::new(text, compiler.compile(text, Purpose::Condition))
        });
        let conditions = conditions.collect();
        for variable in &spec.variables {
            // What is wrong with it is said by whoever asks for its value.
            let _ = compiler.add_variable(&variable.name, &variable.expression);
        }
        let mut text = |text: &str, purpose| Text { program: compiler.compile(text, purpose), text: text.to_owned() };
        let validations = spec.validations.iter().map(|of| CompiledValidation {
            expression: text(&of.expression, Purpose::Validation),
            message: Some(&of.message_expression)
                .filter(|message| !message.trim().is_empty())
                .map(|message| text(message, Purpose::Message)),
        });
        let validations = validations.collect();
        let annotations = spec.audit_annotations.iter();
        let annotations = annotations.map(|a| text(a.value_expression.trim(), Purpose::AuditAnnotation)).collect();
        let mutations = spec.mutations.iter().map(|of| match &of.json_patch {
            Some(patch) => {
                CompiledMutation { is_json_patch: true, expression: text(&patch.expression, Purpose::JsonPatch) }
            }
            None => CompiledMutation {
                is_json_patch: false,
                expression: text(&of.apply_configuration.expression, Purpose::ApplyConfiguration),
            },
        });
        let mutations = mutations.collect();
        Self { compositions: compiler.compositions, conditions, validations, annotations, mutations }
    }
}

/// The policies of a kind that bindings of another one put in force, by their names.
pub(super) fn all(api: &Api, policies: &KindRef, bindings: &KindRef) -> Vec<Bound> {
    let mut by_policy: HashMap<String, Vec<(Box<str>, Arc<Binding>)>> = HashMap::new();
    // In the order of their names, as their keys are.
    for object in api.cache.kind(bindings).list("", "") {
        let Ok(binding) = object.typed::<Binding>() else { continue };
        let of = by_policy.entry(binding.spec.policy_name.clone()).or_default();
        of.push((object.meta.name.as_ref().into(), binding));
    }
    let mut all = Vec::new();
    for object in api.cache.kind(policies).list("", "") {
        let Some(bindings) = by_policy.remove(object.meta.name.as_ref()) else { continue };
        let Ok(policy) = object.typed::<Policy>() else { continue };
        all.push(Bound { name: object.meta.name.as_ref().into(), policy, bindings });
    }
    all
}

/// Whether any of them has parameters.
pub(super) fn have_params(all: &[Bound]) -> bool {
    all.iter().any(|bound| bound.policy.spec.param_kind.is_some())
}

fn some_selector<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Selector>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        given => selector(given).map(Some).map_err(serde::de::Error::custom),
    }
}
