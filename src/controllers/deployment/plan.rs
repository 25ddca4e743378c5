//! What a run of the Deployment controller does, as a pure function of what it sees.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::arithmetic::{self};
use super::observed::{Observed, Sorted};
use super::sets::{self, Set};
use super::status;
use super::{Annotations, DESIRED, HASH, MAX};
use crate::controllers::controller_reference;
use crate::kinds::apps::deployment;

/// The revisions that are kept unless the Deployment says otherwise.
const HISTORY_DEFAULT: i32 = 10;

/// A change of a ReplicaSet.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Create { set: Value, replicas: i32 },
    Annotate { name: String, uid: String, annotations: Annotations },
    MinReady { name: String, uid: String, seconds: i32 },
    Scale { name: String, uid: String, from: i32, to: i32, annotations: Annotations },
    Delete { name: String, uid: String },
}

/// What to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) status: Value,
    /// The Deployment's revision annotation, where it must change.
    pub(super) revision: Option<String>,
    pub(super) wake: Option<Timestamp>,
}

/// The plan.
pub(super) fn plan(o: &Observed) -> Plan {
    let sorted = o.sorted();
    let mut out = Plan { steps: Vec::new(), status: Value::Null, revision: None, wake: None };
    if o.object.meta.deleted.is_none() {
        if o.paused() || is_scaling(o, &sorted) {
            note_revision(o, &sorted, &mut out);
            scale_all(o, &sorted, &mut out.steps);
            if o.paused() && out.steps.is_empty() {
                clean_up(o, &sorted, &mut out.steps);
            }
        }
        if !o.paused() && out.steps.is_empty() {
            if o.recreates() {
                recreate(o, &sorted, &mut out);
            } else {
                roll(o, &sorted, &mut out);
            }
        }
    }
    let creates = out.steps.iter().find_map(|s| match s {
        Step::Create { set, .. } => set["metadata"]["name"].as_str(),
        Step::Annotate { .. } | Step::MinReady { .. } | Step::Scale { .. } | Step::Delete { .. } => None,
    });
    let (status, wake) = status::compute(o, &sorted, creates);
    if status::is_complete(o, &status) && out.steps.is_empty() && o.object.meta.deleted.is_none() {
        clean_up(o, &sorted, &mut out.steps);
    }
    out.status = status;
    out.wake = wake;
    out
}

fn roll(o: &Observed, sorted: &Sorted<'_>, out: &mut Plan) {
    let Some(new) = ensure_new(o, sorted, out) else { return };
    let bounds = o.bounds();
    let old: Vec<_> = sorted.old.iter().map(|s| s.count()).collect();
    let to = if new.wanted() > bounds.replicas {
        bounds.replicas
    } else {
        arithmetic::new_set_replicas(bounds, new.count(), &old)
    };
    if to != new.wanted() {
        out.steps.push(scale(o, new, to));
        return;
    }
    let targets = arithmetic::old_sets_replicas(bounds, new.count(), &old);
    for (set, to) in sorted.old.iter().zip(targets) {
        if to != set.wanted() {
            out.steps.push(scale(o, set, to));
        }
    }
}

fn recreate(o: &Observed, sorted: &Sorted<'_>, out: &mut Plan) {
    note_revision(o, sorted, out);
    let active = sorted.old.iter().filter(|s| s.wanted() > 0);
    out.steps.extend(active.map(|s| scale(o, s, 0)));
    if !out.steps.is_empty() || o.old_pods_run {
        return;
    }
    let Some(new) = ensure_new(o, sorted, out) else { return };
    if new.wanted() != o.replicas() {
        out.steps.push(scale(o, new, o.replicas()));
    }
}

/// The current set, if it is there and as it should be; otherwise the step that makes it so.
fn ensure_new<'a>(o: &Observed, sorted: &Sorted<'a>, out: &mut Plan) -> Option<&'a Set> {
    let revision = next_revision(sorted);
    let Some(new) = sorted.new else {
        out.steps.push(create(o, sorted, revision));
        let text = revision.to_string();
        if o.deployment.metadata.annotations.as_ref().and_then(|a| a.get(super::REVISION)) != Some(&text) {
            out.revision = Some(text);
        }
        return None;
    };
    note_revision(o, sorted, out);
    let seconds = o.min_ready_seconds();
    if new.set.spec.min_ready_seconds.unwrap_or(0) != seconds {
        out.steps.push(Step::MinReady { name: new.name().into(), uid: new.object.meta.uid.to_string(), seconds });
    }
    Some(new)
}

/// Keeps the annotations of the current set and the Deployment's number in step.
fn note_revision(o: &Observed, sorted: &Sorted<'_>, out: &mut Plan) {
    let Some(new) = sorted.new else { return };
    let has = new.set.metadata.annotations.clone().unwrap_or_default();
    let note = (
        new.number(DESIRED).and_then(|n| i32::try_from(n).ok()).unwrap_or_else(|| o.scale_note().0),
        new.number(MAX).and_then(|n| i32::try_from(n).ok()).unwrap_or_else(|| o.scale_note().1),
    );
    let annotations = sets::annotations(&o.deployment, &has, next_revision(sorted), note);
    let revision = annotations.get(super::REVISION).cloned();
    if annotations != has {
        out.steps.push(Step::Annotate { name: new.name().into(), uid: new.object.meta.uid.to_string(), annotations });
    }
    if revision.as_ref() != o.deployment.metadata.annotations.as_ref().and_then(|a| a.get(super::REVISION)) {
        out.revision = revision;
    }
}

fn next_revision(sorted: &Sorted<'_>) -> i64 {
    sorted.old.iter().map(|s| s.revision()).max().unwrap_or(0) + 1
}

fn create(o: &Observed, sorted: &Sorted<'_>, revision: i64) -> Step {
    let collisions = o.deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = sets::hash(&o.template, collisions);
    let others: Vec<_> = sorted.old.iter().map(|s| s.count()).collect();
    let replicas = match o.recreates() {
        // Nothing of the old runs any more: all at once.
        true => o.replicas(),
        false => arithmetic::new_set_replicas(o.bounds(), arithmetic::Count::default(), &others),
    };
    let mut template = o.template.clone();
    template["metadata"]["labels"][HASH] = hash.as_str().into();
    let labels = template["metadata"]["labels"].clone();
    let mut selector = o.object.value()["spec"]["selector"].clone();
    selector["matchLabels"][HASH] = hash.as_str().into();
    let annotations = sets::annotations(&o.deployment, &Annotations::new(), revision, o.scale_note());
    let mut spec = json!({"replicas": replicas, "selector": selector, "template": template});
    if o.min_ready_seconds() > 0 {
        spec["minReadySeconds"] = o.min_ready_seconds().into();
    }
    let set = json!({
        "metadata": {
            "name": format!("{}-{hash}", o.object.meta.name), "labels": labels, "annotations": annotations,
            "ownerReferences": [controller_reference(&deployment::KIND, &o.object)],
        },
        "spec": spec,
    });
    Step::Create { set, replicas }
}

fn scale(o: &Observed, set: &Set, to: i32) -> Step {
    let (desired, max) = o.scale_note();
    let annotations = Annotations::from([(DESIRED.into(), desired.to_string()), (MAX.into(), max.to_string())]);
    Step::Scale { name: set.name().into(), uid: set.object.meta.uid.to_string(), from: set.wanted(), to, annotations }
}

/// Whether the Deployment's size changed since its sets were scaled.
fn is_scaling(o: &Observed, sorted: &Sorted<'_>) -> bool {
    let active = sorted.all().filter(|s| s.wanted() > 0);
    active.filter_map(|s| s.number(DESIRED)).any(|desired| desired != i64::from(o.replicas()))
}

/// Brings the sets to a new size without going on with the rollout.
fn scale_all(o: &Observed, sorted: &Sorted<'_>, steps: &mut Vec<Step>) {
    let bounds = o.bounds();
    let active: Vec<&Set> = sorted.all().filter(|s| s.wanted() > 0).collect();
    let only = match active.as_slice() {
        [] => sorted.new.or_else(|| sorted.old.iter().copied().max_by_key(|s| s.revision())),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(only) = only {
        if needs_scale(o, only, bounds.replicas) {
            steps.push(scale(o, only, bounds.replicas));
        }
        return;
    }
    if active.is_empty() {
        return;
    }
    if sorted.new.is_some_and(|n| is_saturated(o, n)) {
        steps.extend(sorted.old.iter().filter(|s| s.wanted() > 0).map(|s| scale(o, s, 0)));
        return;
    }
    if !o.recreates() {
        scale_in_proportion(o, active, steps);
    }
}

fn needs_scale(o: &Observed, set: &Set, to: i32) -> bool {
    set.wanted() != to || (to > 0 && set.number(DESIRED).is_some_and(|d| d != i64::from(o.replicas())))
}

fn is_saturated(o: &Observed, new: &Set) -> bool {
    let all = o.replicas();
    new.wanted() == all && new.number(DESIRED) == Some(i64::from(all)) && new.count().available == all
}

fn scale_in_proportion(o: &Observed, mut active: Vec<&Set>, steps: &mut Vec<Step>) {
    let bounds = o.bounds();
    let allowed = if bounds.replicas > 0 { bounds.total_max() } else { 0 };
    let change = allowed - active.iter().map(|s| s.wanted()).sum::<i32>();
    // The largest first; among equals the newest grows first and the oldest shrinks first.
    active.sort_by(|a, b| {
        let age = a.object.meta.created.cmp(&b.object.meta.created);
        b.wanted().cmp(&a.wanted()).then(if change > 0 { age.reverse() } else { age })
    });
    let before = |s: &Set| s.number(MAX).and_then(|n| i32::try_from(n).ok()).filter(|n| *n > 0);
    let fallback = o.deployment.status.as_ref().and_then(|s| s.replicas).unwrap_or(0);
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for set in &active {
        let max_before = before(set).unwrap_or(fallback);
        let share = arithmetic::proportion(bounds, set.wanted(), max_before, change, added);
        sizes.push(set.wanted() + share);
        added += share;
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - added).max(0);
    }
    for (set, size) in active.into_iter().zip(sizes) {
        if needs_scale(o, set, size) {
            steps.push(scale(o, set, size));
        }
    }
}

/// Deletes the oldest empty sets beyond the history limit.
fn clean_up(o: &Observed, sorted: &Sorted<'_>, steps: &mut Vec<Step>) {
    let limit = o.deployment.spec.revision_history_limit.unwrap_or(HISTORY_DEFAULT);
    let mut living: Vec<&Set> = sorted.old.iter().copied().filter(|s| s.object.meta.deleted.is_none()).collect();
    let surplus = living.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    living.sort_by_key(|s| s.revision());
    for set in living.into_iter().take(surplus) {
        let status = set.set.status.as_ref();
        let seen = status.and_then(|s| s.observed_generation).unwrap_or(0) >= set.object.meta.generation;
        if set.wanted() == 0 && set.count().actual == 0 && seen {
            steps.push(Step::Delete { name: set.name().into(), uid: set.object.meta.uid.to_string() });
        }
    }
}
