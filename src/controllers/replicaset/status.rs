//! What a set says of its pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Set;
use crate::base::clock::seconds_text;
use crate::base::object::Object;
use crate::controllers::{Member, pods};

/// The status, and when it changes by time alone.
pub(super) fn compute(
    object: &Object,
    set: &Set,
    members: &[Member],
    failed: Option<(&str, &str)>,
    now: Timestamp,
) -> (Value, Option<Timestamp>) {
    let (labels, min_ready) = (&set.labels, set.min_ready);
    let (mut replicas, mut full, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut wake: Option<Timestamp> = None;
    for m in members {
        if !pods::is_active(&m.pod) {
            terminating += i32::from(m.object.meta.deleted.is_some());
            continue;
        }
        replicas += 1;
        full += i32::from(labels.iter().all(|(k, v)| m.object.meta.labels.get(k.as_str()).is_some_and(|x| **x == **v)));
        let Some(at) = pods::available_at(&m.pod, min_ready) else { continue };
        ready += 1;
        if pods::is_available(&m.pod, min_ready, now) {
            available += 1;
        } else {
            wake = Some(wake.map_or(at, |w| w.min(at)));
        }
    }
    let mut status = json!({"replicas": replicas, "observedGeneration": object.meta.generation});
    if set.tells_ending {
        status["terminatingReplicas"] = terminating.into();
    }
    for (key, count) in [("fullyLabeledReplicas", full), ("readyReplicas", ready), ("availableReplicas", available)] {
        if count > 0 {
            status[key] = count.into();
        }
    }
    if let Some(conditions) = conditions(set, failed, now) {
        status["conditions"] = conditions;
    }
    (status, wake)
}

fn conditions(set: &Set, failed: Option<(&str, &str)>, now: Timestamp) -> Option<Value> {
    let is_failure = |c: &&Value| c["type"] == "ReplicaFailure";
    let before = set.conditions.iter().find(is_failure);
    let mut all: Vec<Value> = set.conditions.iter().filter(|c| !is_failure(c)).cloned().collect();
    if let Some((reason, message)) = failed {
        let same = before.filter(|c| c["status"] == "True" && c["reason"] == reason);
        let fresh = json!({
            "type": "ReplicaFailure", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": seconds_text(now),
        });
        all.push(same.cloned().unwrap_or(fresh));
    }
    (!all.is_empty()).then_some(Value::Array(all))
}
