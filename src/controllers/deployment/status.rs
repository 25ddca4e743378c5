//! What a Deployment says of its rollout.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::observed::{Observed, Sorted};
use crate::base::clock::{parse_time, seconds_text};
use crate::base::json::{int, list, text};

/// A deadline that nobody means: progress is not watched.
const NO_DEADLINE: i32 = i32::MAX;
const AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// A condition to be set.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    of_type: &'static str,
    status: String,
    reason: String,
    message: String,
}

// === impl Condition ===

impl Condition {
    pub(super) fn new(of_type: &'static str, status: &str, reason: &str, message: &str) -> Self {
        Self { of_type, status: status.into(), reason: reason.into(), message: message.into() }
    }
}

/// The status, and when time alone changes it. `creates` is the name of the set that this run creates.
pub(super) fn compute(o: &Observed, sorted: &Sorted<'_>, creates: Option<&str>) -> (Value, Option<Timestamp>) {
    let old = o.object.value().get("status").cloned().unwrap_or_else(|| json!({}));
    let mut status = counts(o, sorted, &old);
    let deadline = deadline(o);
    if deadline.is_some() {
        pause_or_resume(o, &mut status);
    }
    // As Kubernetes orders them: what rollouts say comes after what counts say.
    let enough = int(&status, "availableReplicas").unwrap_or(0) >= i64::from(o.bounds().available_min());
    let available = match enough {
        true => Condition::new("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
        false => Condition::new(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        ),
    };
    set_condition(&mut status, available, o.now);
    match deadline {
        None => remove_condition(&mut status, "Progressing"),
        Some(deadline) if !o.paused() && o.object.meta.deleted.is_none() => {
            progress(o, sorted, &old, &mut status, creates, deadline);
        }
        Some(_) => {}
    }
    failures(sorted, &mut status, o.now);
    let wake = wake(o, &status, deadline);
    (status, wake)
}

fn deadline(o: &Observed) -> Option<Duration> {
    let seconds = o.deployment.spec.progress_deadline_seconds.unwrap_or(600);
    (seconds != NO_DEADLINE).then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn counts(o: &Observed, sorted: &Sorted<'_>, old: &Value) -> Value {
    let (mut total, mut ready, mut available, mut terminating) = (0, 0, 0, 0);
    for set in sorted.all() {
        let Some(s) = &set.set.status else { continue };
        total += s.replicas;
        ready += s.ready_replicas.unwrap_or(0);
        available += s.available_replicas.unwrap_or(0);
        terminating += s.terminating_replicas.unwrap_or(0);
    }
    let updated = sorted.new.and_then(|s| s.set.status.as_ref()).map_or(0, |s| s.replicas);
    let wanted: i32 = sorted.all().map(|s| s.wanted()).sum();
    let mut status = json!({"observedGeneration": o.object.meta.generation, "terminatingReplicas": terminating});
    for (key, count) in [
        ("replicas", total),
        ("updatedReplicas", updated),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("unavailableReplicas", (wanted - available).max(0)),
    ] {
        if count > 0 {
            status[key] = count.into();
        }
    }
    for key in ["collisionCount", "conditions"] {
        if let Some(value) = old.get(key) {
            status[key] = value.clone();
        }
    }
    status
}

fn pause_or_resume(o: &Observed, status: &mut Value) {
    let reason = condition(status, "Progressing").map(|c| text(c, "reason").to_owned());
    let reason = reason.as_deref();
    if reason == Some(TIMED_OUT) {
        return;
    }
    if o.paused() && reason != Some(PAUSED) {
        set_condition(status, Condition::new("Progressing", "Unknown", PAUSED, "Deployment is paused"), o.now);
    } else if !o.paused() && reason == Some(PAUSED) {
        let resumed = Condition::new("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed");
        set_condition(status, resumed, o.now);
    }
}

fn progress(
    o: &Observed,
    sorted: &Sorted<'_>,
    old: &Value,
    status: &mut Value,
    creates: Option<&str>,
    deadline: Duration,
) {
    if let Some(name) = creates {
        let message = format!("Created new replica set {name:?}");
        set_condition(status, Condition::new("Progressing", "True", "NewReplicaSetCreated", &message), o.now);
        return;
    }
    let count = |v: &Value, key: &str| int(v, key).unwrap_or(0);
    let current = condition(status, "Progressing").cloned();
    let reason = current.as_ref().map(|c| text(c, "reason")).unwrap_or_default();
    if current.is_none() {
        let Some(new) = sorted.new else { return };
        let message = format!("Found new replica set {:?}", new.name());
        set_condition(status, Condition::new("Progressing", "True", "FoundNewReplicaSet", &message), o.now);
    }
    if count(status, "replicas") == count(status, "updatedReplicas") && reason == AVAILABLE {
        return;
    }
    let who = sorted
        .new
        .map_or_else(|| format!("Deployment {:?}", &*o.object.meta.name), |new| format!("ReplicaSet {:?}", new.name()));
    let outdated = |v: &Value| count(v, "replicas") - count(v, "updatedReplicas");
    let advances = count(status, "updatedReplicas") > count(old, "updatedReplicas")
        || outdated(status) < outdated(old)
        || count(status, "readyReplicas") > count(old, "readyReplicas")
        || count(status, "availableReplicas") > count(old, "availableReplicas");
    if is_complete(o, status) {
        let message = format!("{who} has successfully progressed.");
        set_condition(status, Condition::new("Progressing", "True", AVAILABLE, &message), o.now);
    } else if advances {
        let message = format!("{who} is progressing.");
        let since = current.as_ref().filter(|c| text(c, "status") == "True");
        let since = since.map(|c| text(c, "lastTransitionTime").to_owned());
        // Anew, so that its time tells when progress was seen last.
        remove_condition(status, "Progressing");
        set_condition(status, Condition::new("Progressing", "True", "ReplicaSetUpdated", &message), o.now);
        if let (Some(since), Some(condition)) = (since, condition_mut(status, "Progressing")) {
            condition["lastTransitionTime"] = since.into();
        }
    } else if reason != AVAILABLE
        && reason != TIMED_OUT
        && current.as_ref().and_then(last_update).is_some_and(|t| t + deadline <= o.now)
    {
        let message = format!("{who} has timed out progressing.");
        set_condition(status, Condition::new("Progressing", "False", TIMED_OUT, &message), o.now);
    }
}

/// Whether everything wanted is there, current and available, and nothing else.
pub(super) fn is_complete(o: &Observed, status: &Value) -> bool {
    let wanted = i64::from(o.replicas());
    let is = |key: &str| int(status, key).unwrap_or(0) == wanted;
    is("updatedReplicas") && is("replicas") && is("availableReplicas")
}

/// What keeps sets from having their pods is a failure of the Deployment.
fn failures(sorted: &Sorted<'_>, status: &mut Value, now: Timestamp) {
    let sets = sorted.new.into_iter().chain(sorted.old.iter().copied());
    let conditions = sets.flat_map(|s| s.set.status.iter().flat_map(|s| s.conditions.iter().flatten()));
    let failure = conditions.into_iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure"));
    match failure {
        Some(f) => {
            let (reason, message) = (f.reason.as_deref().unwrap_or(""), f.message.as_deref().unwrap_or(""));
            set_condition(
                status,
                Condition::new("ReplicaFailure", f.status.as_deref().unwrap_or("True"), reason, message),
                now,
            );
        }
        None => remove_condition(status, "ReplicaFailure"),
    }
}

fn wake(o: &Observed, status: &Value, deadline: Option<Duration>) -> Option<Timestamp> {
    let condition = condition(status, "Progressing")?;
    if o.paused() || matches!(text(condition, "reason"), AVAILABLE | TIMED_OUT) {
        return None;
    }
    Some((last_update(condition)? + deadline? + Duration::from_secs(1)).max(o.now + Duration::from_millis(100)))
}

fn last_update(condition: &Value) -> Option<Timestamp> {
    parse_time(text(condition, "lastUpdateTime"))
}

fn condition<'a>(status: &'a Value, of_type: &str) -> Option<&'a Value> {
    list(status, "conditions").iter().find(|c| text(c, "type") == of_type)
}

fn condition_mut<'a>(status: &'a mut Value, of_type: &str) -> Option<&'a mut Value> {
    status.get_mut("conditions")?.as_array_mut()?.iter_mut().find(|c| text(c, "type") == of_type)
}

fn remove_condition(status: &mut Value, of_type: &str) {
    if let Some(all) = status.get_mut("conditions").and_then(Value::as_array_mut) {
        all.retain(|c| text(c, "type") != of_type);
    }
}

/// Sets a condition; one with the same status and reason stays as it is.
pub(super) fn set_condition(status: &mut Value, new: Condition, now: Timestamp) {
    let now = seconds_text(now);
    let mut since = now.clone();
    if let Some(old) = condition(status, new.of_type) {
        if text(old, "status") == new.status && text(old, "reason") == new.reason {
            return;
        }
        if text(old, "status") == new.status {
            since = text(old, "lastTransitionTime").to_owned();
        }
    }
    remove_condition(status, new.of_type);
    let condition = json!({
        "type": new.of_type, "status": new.status, "reason": new.reason, "message": new.message,
        "lastTransitionTime": since, "lastUpdateTime": now,
    });
    match status.get_mut("conditions").and_then(Value::as_array_mut) {
        Some(all) => all.push(condition),
        None => status["conditions"] = json!([condition]),
    }
}
