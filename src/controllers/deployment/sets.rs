//! A Deployment's ReplicaSets: which one is current, what they are called, what their annotations say.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::Value;

use super::arithmetic::Count;
use super::{Annotations, DESIRED, HASH, HISTORY, MAX, REVISION};
use crate::apimachinery::status::{Result, Status};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::controllers::template::{comparable, name_letters};
use crate::controllers::typed;

/// Annotations of a Deployment that its sets do not get.
const KEPT: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The most bytes of [`HISTORY`].
const HISTORY_BYTES: usize = 2000;

/// A ReplicaSet as plans look at it.
#[derive(Clone, Debug)]
pub(super) struct Set {
    pub(super) object: Arc<Object>,
    pub(super) set: Arc<ReplicaSet>,
    /// Its template without the hash label.
    template: Value,
}

// === impl Set ===

impl Set {
    pub(super) fn new(object: Arc<Object>) -> Result<Self> {
        let mut template = object.value()["spec"]["template"].clone();
        strip_hash(&mut template);
        Ok(Self { set: typed(&object)?, object, template })
    }

    /// Whether it makes the pods of this template.
    pub(super) fn has_template(&self, template: &Value) -> bool {
        let mut other = template.clone();
        strip_hash(&mut other);
        comparable(&self.template) == comparable(&other)
    }

    pub(super) fn name(&self) -> &str {
        &self.object.meta.name
    }

    pub(super) fn wanted(&self) -> i32 {
        self.set.spec.replicas.unwrap_or(1)
    }

    pub(super) fn count(&self) -> Count {
        let status = self.set.status.as_ref();
        Count {
            wanted: self.wanted(),
            actual: status.map_or(0, |s| s.replicas),
            available: status.and_then(|s| s.available_replicas).unwrap_or(0),
        }
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.set.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.annotation(name)?.parse().ok()
    }

    pub(super) fn revision(&self) -> i64 {
        self.number(REVISION).unwrap_or(0)
    }
}

/// The selector of a Deployment.
pub(super) fn selector(object: &Object) -> Result<Selector> {
    let deployment: Arc<Deployment> = typed(object)?;
    let selector = serde_json::to_value(&deployment.spec.selector).unwrap_or_default();
    Selector::from_object(&selector).map_err(|e| Status::internal(format!("{}: {e}", object.key)))
}

/// What the set of revision `revision` is annotated with; `has` is what it carries already.
pub(super) fn annotations(deployment: &Deployment, has: &Annotations, revision: i64, scale: (i32, i32)) -> Annotations {
    let mut out = has.clone();
    for (k, v) in deployment.metadata.annotations.iter().flatten() {
        if !KEPT.contains(&k.as_str()) {
            out.insert(k.clone(), v.clone());
        }
    }
    let old = has.get(REVISION);
    if old.and_then(|r| r.parse().ok()).unwrap_or(0) < revision {
        if let Some(old) = old.filter(|o| !o.is_empty()) {
            let history = has.get(HISTORY).filter(|h| !h.is_empty());
            out.insert(HISTORY.into(), history.map_or(old.clone(), |h| remember(h, old)));
        }
        out.insert(REVISION.into(), revision.to_string());
    }
    out.insert(DESIRED.into(), scale.0.to_string());
    out.insert(MAX.into(), scale.1.to_string());
    out
}

fn remember(history: &str, old: &str) -> String {
    let mut all: Vec<&str> = history.split(',').collect();
    all.push(old);
    while all.len() > 1 && all.iter().map(|r| r.len() + 1).sum::<usize>() > HISTORY_BYTES {
        all.remove(0);
    }
    all.join(",")
}

/// The hash of a template, in letters that make no words.
pub(super) fn hash(template: &Value, collisions: i32) -> String {
    let mut template = template.clone();
    strip_hash(&mut template);
    let mut state: u32 = 0x811c_9dc5;
    let mut eat = |bytes: &[u8]| {
        for b in bytes {
            state = (state ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        }
    };
    eat(comparable(&template).to_string().as_bytes());
    if collisions > 0 {
        eat(&collisions.to_le_bytes());
    }
    name_letters(state)
}

fn strip_hash(template: &mut Value) {
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
}
