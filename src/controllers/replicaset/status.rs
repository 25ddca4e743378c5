//! What a ReplicaSet says of its pods.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::{Value, json};

use super::{Member, min_ready};
use crate::base::clock::seconds_text;
use crate::base::object::Object;
use crate::controllers::pods;

/// The status, and when it changes by time alone.
pub(super) fn compute(
    object: &Object,
    set: &ReplicaSet,
    members: &[Member],
    failed: Option<(&str, &str)>,
    now: Timestamp,
) -> (Value, Option<Timestamp>) {
    let template = set.spec.template.as_ref().and_then(|t| t.metadata.as_ref());
    let labels = template.and_then(|m| m.labels.clone()).unwrap_or_default();
    let min_ready = min_ready(set.spec.min_ready_seconds);
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
        if at <= now || min_ready.is_zero() {
            available += 1;
        } else {
            wake = Some(wake.map_or(at, |w| w.min(at)));
        }
    }
    let mut status =
        json!({"replicas": replicas, "observedGeneration": object.meta.generation, "terminatingReplicas": terminating});
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

fn conditions(set: &ReplicaSet, failed: Option<(&str, &str)>, now: Timestamp) -> Option<Value> {
    let old = set.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    let before = old.iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure"));
    let mut all: Vec<Value> = old
        .iter()
        .filter(|c| c.type_.as_deref() != Some("ReplicaFailure"))
        .filter_map(|c| serde_json::to_value(c).ok())
        .collect();
    if let Some((reason, message)) = failed {
        let same = before.filter(|c| c.status.as_deref() == Some("True") && c.reason.as_deref() == Some(reason));
        let condition = same.and_then(|c| serde_json::to_value(c).ok());
        let fresh = json!({
            "type": "ReplicaFailure", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": seconds_text(now),
        });
        all.push(condition.unwrap_or(fresh));
    }
    (!all.is_empty()).then_some(Value::Array(all))
}
