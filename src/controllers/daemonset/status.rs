//! What a DaemonSet says of its pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::Observed;
use super::pod::Wanted;
use crate::base::json::{map_mut, object, remove};
use crate::controllers::pods;

/// The status on top of what it was, and when it changes by time alone.
pub(super) fn compute(
    before: &Value,
    observed: &Observed,
    generation: i64,
    collisions: i64,
) -> (Value, Option<Timestamp>) {
    let (mut current, mut misplaced, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0);
    let mut wake: Option<Timestamp> = None;
    for (node, wanted) in &observed.nodes {
        let Some(first) = observed.pods.get(node).and_then(|m| m.first()) else { continue };
        if *wanted != Wanted::Yes {
            misplaced += 1;
            continue;
        }
        current += 1;
        updated += usize::from(observed.is_new(first));
        let Some(at) = pods::available_at(&first.pod, observed.min_ready) else { continue };
        ready += 1;
        if observed.is_available(first) {
            available += 1;
        } else {
            wake = Some(wake.map_or(at, |w| w.min(at)));
        }
    }
    let desired = observed.desired();
    let mut status = if before.is_object() { before.clone() } else { json!({}) };
    let map = object(&mut status);
    for (key, count) in [
        ("currentNumberScheduled", current),
        ("desiredNumberScheduled", desired),
        ("numberMisscheduled", misplaced),
        ("numberReady", ready),
    ] {
        map.insert(key.into(), count.into());
    }
    map.insert("observedGeneration".into(), generation.into());
    for (key, count) in [
        ("updatedNumberScheduled", updated),
        ("numberAvailable", available),
        ("numberUnavailable", desired - available),
    ] {
        match count {
            0 => drop(remove(&mut status, key)),
            _ => drop(map_mut(&mut status, "").insert(key.into(), count.into())),
        }
    }
    if collisions > 0 {
        map_mut(&mut status, "").insert("collisionCount".into(), collisions.into());
    }
    (status, wake)
}
