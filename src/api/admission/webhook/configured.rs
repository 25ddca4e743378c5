//! The webhooks that are configured, as they are used.

use std::sync::{Arc, OnceLock};

use serde::Deserialize;

use crate::api::Api;
use crate::api::admission::conditions::Condition as Compiled;
use crate::api::admission::matching::{Rule, selector};
use crate::api::webhook::ClientConfiguration;
use crate::base::labels::Selector;
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::conditions::compile;

/// A configuration of either kind, read once.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configuration {
    webhooks: Vec<Spec>,
}

/// A webhook as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    pub name: String,
    pub client_config: ClientConfiguration,
    pub rules: Vec<Rule>,
    pub failure_policy: Option<String>,
    pub match_policy: Option<String>,
    #[serde(deserialize_with = "selector")]
    pub namespace_selector: Selector,
    #[serde(deserialize_with = "selector")]
    pub object_selector: Selector,
    pub side_effects: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub admission_review_versions: Vec<String>,
    pub reinvocation_policy: Option<String>,
    match_conditions: Vec<Condition>,
    #[serde(skip)]
    compiled: OnceLock<Vec<Compiled>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    expression: String,
}

/// One webhook of a configuration.
#[derive(Clone)]
pub(super) struct Webhook {
    configuration: Arc<Configuration>,
    name: Arc<str>,
    index: usize,
}

// === impl Webhook ===

impl Webhook {
    pub fn of(&self) -> &Spec {
        &self.configuration.webhooks[self.index]
    }

    /// What tells it from all others.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.name, self.of().name, self.index)
    }
}

// === impl Spec ===

impl Spec {
    /// The conditions under which it is asked, compiled when they are needed first.
    pub fn conditions(&self) -> &[Compiled] {
        let all = || self.match_conditions.iter().map(|c| Compiled::new(&c.expression, compile(&c.expression)));
        self.compiled.get_or_init(|| all().collect())
    }
}

/// All webhooks of all configurations of a kind, in the order in which they are asked.
pub(super) fn all(api: &Api, kind: &KindRef) -> Vec<Webhook> {
    let mut all = Vec::new();
    // In the order of their names, as their keys are.
    for object in api.cache.kind(kind).list("", "") {
        let Ok(configuration) = object.typed::<Configuration>() else { continue };
        let name = object.meta.name.clone();
        let webhook = |index| Webhook { configuration: configuration.clone(), name: name.as_ref().into(), index };
        all.extend((0..configuration.webhooks.len()).map(webhook));
    }
    all
}
