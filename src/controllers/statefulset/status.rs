//! What a StatefulSet says of its pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Observed, Strategy};
use crate::controllers::history::HASH;
use crate::controllers::pods;

/// The status on top of what it was, and when it changes by time alone.
pub(super) fn compute(
    before: &Value,
    observed: &Observed,
    generation: i64,
    collisions: i64,
) -> (Value, Option<Timestamp>) {
    let (mut replicas, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    let mut wake: Option<Timestamp> = None;
    for member in observed.members.values() {
        replicas += 1;
        if observed.is_ready(member) {
            ready += 1;
            if observed.is_available(member) {
                available += 1;
            } else if let Some(at) = pods::available_at(&member.pod, observed.min_ready) {
                wake = Some(wake.map_or(at, |w| w.min(at)));
            }
        }
        if !member.is_ending() {
            current += i64::from(member.label(HASH) == observed.current);
            updated += i64::from(member.label(HASH) == observed.update);
        }
    }
    let mut revision = &observed.current;
    // The update is through: what was new is what there is.
    if matches!(observed.strategy, Strategy::Rolling { .. }) && updated == replicas && ready == replicas {
        (revision, current) = (&observed.update, updated);
    }
    let mut status = json!({
        "observedGeneration": generation, "replicas": replicas, "availableReplicas": available,
        "collisionCount": collisions, "currentRevision": revision, "updateRevision": observed.update,
    });
    for (key, count) in [("readyReplicas", ready), ("currentReplicas", current), ("updatedReplicas", updated)] {
        if count > 0 {
            status[key] = count.into();
        }
    }
    if let Some(conditions) = before.get("conditions") {
        status["conditions"] = conditions.clone();
    }
    (status, wake)
}
