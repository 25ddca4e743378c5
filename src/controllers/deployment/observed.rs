//! What a plan is made from.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use super::arithmetic::Bounds;
use super::sets::Set;
use crate::base::object::Object;

/// Everything that a plan looks at.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) object: Arc<Object>,
    pub(super) deployment: Arc<Deployment>,
    pub(super) template: Value,
    pub(super) sets: Vec<Set>,
    /// Pods of other templates exist (also ending ones).
    pub(super) old_pods_run: bool,
    pub(super) now: Timestamp,
}

/// The sets, sorted into the current one and the old ones (oldest first).
pub(super) struct Sorted<'a> {
    pub(super) new: Option<&'a Set>,
    pub(super) old: Vec<&'a Set>,
}

// === impl Observed ===

impl Observed {
    pub(super) fn replicas(&self) -> i32 {
        self.deployment.spec.replicas.unwrap_or(1)
    }

    pub(super) fn paused(&self) -> bool {
        self.deployment.spec.paused.unwrap_or(false)
    }

    pub(super) fn recreates(&self) -> bool {
        let strategy = self.deployment.spec.strategy.as_ref();
        strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
    }

    pub(super) fn bounds(&self) -> Bounds {
        if self.recreates() {
            return Bounds::recreate(self.replicas());
        }
        let strategy = self.deployment.spec.strategy.as_ref();
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let (surge, unavailable) =
            (rolling.and_then(|r| r.max_surge.as_ref()), rolling.and_then(|r| r.max_unavailable.as_ref()));
        Bounds::new(self.replicas(), surge, unavailable)
    }

    pub(super) fn min_ready_seconds(&self) -> i32 {
        self.deployment.spec.min_ready_seconds.unwrap_or(0)
    }

    /// What sets note of the Deployment's size: with no replicas there is no surge.
    pub(super) fn scale_note(&self) -> (i32, i32) {
        let bounds = self.bounds();
        (bounds.replicas, if bounds.replicas == 0 { 0 } else { bounds.total_max() })
    }

    pub(super) fn sorted(&self) -> Sorted<'_> {
        let mut all: Vec<&Set> = self.sets.iter().collect();
        all.sort_by(|a, b| (a.object.meta.created, a.name()).cmp(&(b.object.meta.created, b.name())));
        let new = all.iter().position(|s| s.has_template(&self.template)).map(|i| all.remove(i));
        Sorted { new, old: all }
    }
}

// === impl Sorted ===

impl Sorted<'_> {
    pub(super) fn all(&self) -> impl Iterator<Item = &Set> {
        self.old.iter().copied().chain(self.new)
    }
}
