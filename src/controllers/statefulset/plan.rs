//! What one run of a StatefulSet does to its pods.
//!
//! Pods are known by their numbers, and a number has one name, so that there is never a second pod of a number before the
//! first is gone. In order, one step is taken at a time and only when all pods before are available; in parallel all are
//! taken at once. Pods that are missing come first, then those that are too many, and old ones only when there is neither.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;

use super::pod;
use crate::controllers::history::HASH;
use crate::controllers::pod_writer::BURST;
use crate::controllers::{Member, pods};

/// How old pods are replaced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Strategy {
    OnDelete,
    /// From the last number down to `partition`; without one the set says by its status what is old. `most` may be away at
    /// once, counting all pods; where nothing is said, one that is replaced is waited for.
    Rolling {
        partition: Option<i64>,
        most: Option<usize>,
    },
}

/// Everything that a plan looks at.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) start: i64,
    pub(super) replicas: i64,
    pub(super) in_order: bool,
    pub(super) strategy: Strategy,
    pub(super) min_ready: Duration,
    /// The names of the revisions.
    pub(super) current: String,
    pub(super) update: String,
    /// `status.currentReplicas`.
    pub(super) current_replicas: i64,
    /// The pods by their numbers.
    pub(super) members: BTreeMap<i64, Member>,
    /// Until when pods that have ended stay, by their names.
    pub(super) waits: HashMap<String, Timestamp>,
    pub(super) now: Timestamp,
}

/// One thing that is done.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Create {
        ordinal: i64,
        revision: String,
    },
    Delete(Member),
    /// The labels that follow from the number are put back.
    Label {
        member: Member,
        ordinal: i64,
    },
}

/// The plan.
pub(super) fn plan(observed: &Observed) -> Vec<Step> {
    let mut steps = Vec::new();
    if observed.keep(&mut steps) && observed.shrink(&mut steps) {
        observed.roll(&mut steps);
    }
    steps
}

// === impl Observed ===

impl Observed {
    fn ordinals(&self) -> std::ops::Range<i64> {
        self.start..self.start.saturating_add(self.replicas)
    }

    /// Whether there is to be a pod of this number.
    pub(super) fn is_wanted(&self, ordinal: i64) -> bool {
        self.ordinals().contains(&ordinal)
    }

    /// Pods whose numbers are not wanted, the last first.
    fn condemned(&self) -> Vec<&Member> {
        let ordinals = self.ordinals();
        self.members.iter().rev().filter(|(ordinal, _)| !ordinals.contains(ordinal)).map(|(_, m)| m).collect()
    }

    pub(super) fn is_ready(&self, member: &Member) -> bool {
        pods::phase(&member.pod) == "Running" && pods::is_ready(&member.pod)
    }

    pub(super) fn is_available(&self, member: &Member) -> bool {
        self.is_ready(member) && pods::is_available(&member.pod, self.min_ready, self.now)
    }

    /// Whether a pod is of use and will stay so.
    fn is_healthy(&self, member: &Member) -> bool {
        !member.is_ending() && self.is_available(member)
    }

    /// When a pod that has ended is to be removed; `None`: now.
    pub(super) fn due(&self, member: &Member) -> Option<Timestamp> {
        self.waits.get(&*member.object.meta.name).copied().filter(|until| *until > self.now)
    }

    /// The revision of a pod that is made.
    fn revision_of(&self, ordinal: i64) -> &str {
        let kept = match self.strategy {
            Strategy::OnDelete => 0,
            Strategy::Rolling { partition, .. } => partition.unwrap_or(self.current_replicas),
        };
        if ordinal < self.start.saturating_add(kept) { &self.current } else { &self.update }
    }

    /// Makes the pods that are wanted and replaces those that have ended; whether the rest may go on.
    fn keep(&self, steps: &mut Vec<Step>) -> bool {
        for ordinal in self.ordinals() {
            let Some(member) = self.members.get(&ordinal) else {
                steps.push(Step::Create { ordinal, revision: self.revision_of(ordinal).to_owned() });
                // Whoever wants a thousand million gets some at a time.
                if self.in_order || steps.len() >= BURST {
                    return false;
                }
                continue;
            };
            if pods::is_over(&member.pod) {
                // Its name is free when it is gone.
                if !member.is_ending() && self.due(member).is_none() {
                    steps.push(Step::Delete(member.clone()));
                }
                if self.in_order {
                    return false;
                }
                continue;
            }
            if self.in_order && !self.is_healthy(member) {
                return false;
            }
            if !pod::has_labels(member, ordinal) {
                steps.push(Step::Label { member: member.clone(), ordinal });
            }
        }
        true
    }

    /// Removes pods that are too many; whether the rest may go on.
    fn shrink(&self, steps: &mut Vec<Step>) -> bool {
        let condemned = self.condemned();
        // All that stay are healthy where there is an order, so the first that is not is among those that go.
        let unhealthy = condemned.iter().rev().find(|m| !self.is_healthy(m)).map(|m| &m.object.meta.uid);
        for member in condemned {
            if member.is_ending() {
                if self.in_order {
                    return false;
                }
                continue;
            }
            if self.in_order && !self.is_available(member) && unhealthy != Some(&member.object.meta.uid) {
                return false;
            }
            steps.push(Step::Delete(member.clone()));
            if self.in_order {
                return false;
            }
        }
        true
    }

    /// Replaces old pods, from the last number down.
    fn roll(&self, steps: &mut Vec<Step>) {
        let Strategy::Rolling { partition, most } = self.strategy else { return };
        let ordinals = self.ordinals();
        let away = |ordinal: i64| self.members.get(&ordinal).is_none_or(|m| !self.is_healthy(m));
        let mut all_away = ordinals.clone().filter(|o| away(*o)).count();
        let (at_once, mut waited) = (most.unwrap_or(1), 0);
        let first = ordinals.start.saturating_add(partition.unwrap_or(0).max(0));
        for ordinal in (first..ordinals.end).rev() {
            if waited >= at_once {
                return;
            }
            let is_away = away(ordinal);
            match self.members.get(&ordinal) {
                Some(member) if !member.is_ending() && member.label(HASH) != self.update => {
                    // What is away already costs nobody anything, and may be away because it is old.
                    if !is_away && most.is_some_and(|most| all_away >= most) {
                        continue;
                    }
                    // One that has ended is replaced already.
                    if !pods::is_over(&member.pod) {
                        steps.push(Step::Delete(member.clone()));
                    }
                    all_away += usize::from(!is_away);
                    waited += 1;
                }
                _ => waited += usize::from(is_away),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::base::object::Object;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn member(name: &str, revision: &str, state: &str) -> Member {
        let ready = if matches!(state, "ready" | "ending") { "True" } else { "False" };
        let phase = match state {
            "Failed" | "Succeeded" | "Pending" => state,
            _ => "Running",
        };
        let index = name.rsplit('-').next().unwrap();
        let labels = json!({HASH: revision, pod::NAME: name, pod::INDEX: index});
        let since = "2026-01-01T00:00:55Z";
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "labels": labels},
            "spec": {"containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]},
        });
        if state == "ending" {
            value["metadata"]["deletionTimestamp"] = NOW.into();
        }
        let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
        Member { pod: object.typed().unwrap(), object }
    }

    /// A set of so many, its pods given by revision and state, from the first number on.
    fn observed(replicas: i64, in_order: bool, pods: &[(&str, &str)]) -> Observed {
        let members = pods.iter().enumerate().filter(|(_, (_, state))| *state != "missing");
        Observed {
            start: 0,
            replicas,
            in_order,
            strategy: Strategy::Rolling { partition: Some(0), most: None },
            min_ready: Duration::ZERO,
            current: "old".into(),
            update: "new".into(),
            current_replicas: 0,
            members: members
                .map(|(i, (revision, state))| (i as i64, member(&format!("w-{i}"), revision, state)))
                .collect(),
            waits: HashMap::new(),
            now: NOW.parse().unwrap(),
        }
    }

    /// `+3` made, `+3/old` of another than the newest revision, `-3` removed, `=3` labelled.
    fn done(observed: &Observed) -> Vec<String> {
        let one = |step: Step| match step {
            Step::Create { ordinal, revision } if revision == observed.update => format!("+{ordinal}"),
            Step::Create { ordinal, revision } => format!("+{ordinal}/{revision}"),
            Step::Delete(m) => m.object.meta.name.replace("w-", "-"),
            Step::Label { ordinal, .. } => format!("={ordinal}"),
        };
        plan(observed).into_iter().map(one).collect()
    }

    const READY: (&str, &str) = ("new", "ready");
    const OLD: (&str, &str) = ("old", "ready");
    const NONE: [&str; 0] = [];

    #[test]
    fn in_order_each_pod_waits_for_those_before_it() {
        let of = |replicas, pods: &[(&str, &str)]| done(&observed(replicas, true, pods));
        assert_eq!(of(3, &[]), ["+0"]);
        assert_eq!(of(3, &[("new", "Pending")]), NONE);
        assert_eq!(of(3, &[("new", "no")]), NONE);
        assert_eq!(of(3, &[READY]), ["+1"]);
        assert_eq!(of(3, &[READY, ("new", "ending")]), NONE);
        assert_eq!(of(3, &[READY, ("new", "missing"), READY]), ["+1"]);
        assert_eq!(of(3, &[READY, READY, READY]), NONE);
        let mut young = observed(3, true, &[READY]);
        young.min_ready = Duration::from_secs(10);
        assert_eq!(done(&young), NONE);
    }

    #[test]
    fn in_parallel_all_are_made_and_removed_at_once() {
        let of = |replicas, pods: &[(&str, &str)]| done(&observed(replicas, false, pods));
        assert_eq!(of(3, &[]), ["+0", "+1", "+2"]);
        assert_eq!(of(3, &[("new", "no")]), ["+1", "+2"]);
        assert_eq!(of(1, &[READY, ("new", "no"), READY]), ["-2", "-1"]);
        assert_eq!(of(3, &[("new", "ending"), READY, READY]), NONE, "its name is not free yet");
    }

    #[test]
    fn a_set_of_very_many_is_made_some_at_a_time() {
        for start in [0, i64::from(i32::MAX)] {
            let mut o = observed(i32::MAX.into(), false, &[]);
            o.start = start;
            assert_eq!(plan(&o).len(), BURST);
        }
    }

    #[test]
    fn in_order_the_last_goes_first_and_a_broken_one_halts_the_others() {
        let of = |replicas, pods: &[(&str, &str)]| done(&observed(replicas, true, pods));
        assert_eq!(of(1, &[READY, READY, READY]), ["-2"]);
        assert_eq!(of(1, &[READY, READY, ("new", "ending")]), NONE);
        assert_eq!(of(1, &[READY, READY, ("new", "no")]), ["-2"], "the first that is broken goes");
        assert_eq!(of(1, &[READY, ("new", "no"), ("new", "no")]), NONE, "not before the first of two that are broken");
        assert_eq!(of(1, &[("new", "no"), READY, READY]), NONE);
    }

    #[test]
    fn pods_that_ended_are_removed_to_be_made_again() {
        for state in ["Failed", "Succeeded"] {
            assert_eq!(done(&observed(2, true, &[("new", state), READY])), ["-0"]);
            assert_eq!(done(&observed(2, false, &[("new", state)])), ["-0", "+1"]);
            assert_eq!(done(&observed(1, false, &[("old", state)])), ["-0"], "once");
            let mut waits = observed(1, true, &[("new", state)]);
            waits.waits.insert("w-0".into(), "2026-01-01T00:01:01Z".parse().unwrap());
            assert_eq!(done(&waits), NONE);
        }
    }

    #[test]
    fn numbers_begin_where_they_are_told_to() {
        let mut shifted = observed(2, true, &[READY, READY, READY]);
        shifted.start = 1;
        assert_eq!(done(&shifted), ["-0"]);
        shifted.start = 3;
        assert_eq!(done(&shifted), ["+3"]);
        shifted.in_order = false;
        assert_eq!(done(&shifted), ["+3", "+4", "-2", "-1", "-0"]);
    }

    #[test]
    fn old_pods_are_replaced_one_after_the_other_from_the_last() {
        let of = |pods: &[(&str, &str)]| done(&observed(3, true, pods));
        assert_eq!(of(&[OLD, OLD, OLD]), ["-2"]);
        assert_eq!(of(&[OLD, OLD, ("old", "ending")]), NONE);
        assert_eq!(of(&[OLD, OLD, ("new", "missing")]), ["+2"]);
        assert_eq!(of(&[OLD, OLD, ("new", "no")]), NONE);
        assert_eq!(of(&[OLD, OLD, READY]), ["-1"]);
        assert_eq!(of(&[OLD, READY, READY]), ["-0"]);
        let mut waits = observed(3, true, &[OLD, OLD, OLD]);
        waits.strategy = Strategy::OnDelete;
        assert_eq!(done(&waits), NONE);
        waits.members.remove(&2);
        assert_eq!(done(&waits), ["+2"], "one that was deleted by hand is new");
    }

    #[test]
    fn numbers_below_the_partition_stay_as_they_are() {
        let mut o = observed(3, true, &[OLD, OLD, OLD]);
        let with = |o: &mut Observed, partition| {
            o.strategy = Strategy::Rolling { partition: Some(partition), most: None };
            done(o)
        };
        assert_eq!(with(&mut o, 3), NONE);
        assert_eq!(with(&mut o, 2), ["-2"]);
        o.members.insert(2, member("w-2", "new", "ready"));
        assert_eq!(with(&mut o, 2), NONE);
        assert_eq!(with(&mut o, 1), ["-1"]);
        o.members.remove(&0);
        assert_eq!(with(&mut o, 2), ["+0/old"]);
        assert_eq!(with(&mut o, 0), ["+0"]);
        o.strategy = Strategy::Rolling { partition: None, most: None };
        o.current_replicas = 2;
        assert_eq!(done(&o), ["+0/old"]);
    }

    #[test]
    fn no_more_are_away_at_once_than_was_allowed() {
        let of = |most, pods: &[(&str, &str)]| {
            let mut o = observed(4, false, pods);
            o.strategy = Strategy::Rolling { partition: Some(0), most: Some(most) };
            done(&o)
        };
        assert_eq!(of(2, &[OLD, OLD, OLD, OLD]), ["-3", "-2"]);
        assert_eq!(of(2, &[OLD, OLD, OLD, ("new", "no")]), ["-2"]);
        assert_eq!(of(2, &[OLD, OLD, ("new", "no"), ("new", "no")]), NONE);
        assert_eq!(of(2, &[("old", "no"), ("old", "no"), OLD, OLD]), ["-1", "-0"], "two are away already");
        assert_eq!(of(2, &[OLD, OLD, ("old", "no"), ("old", "no")]), ["-3", "-2"], "which are of no use");
        assert_eq!(of(9, &[OLD, OLD, OLD, OLD]), ["-3", "-2", "-1", "-0"]);
    }

    #[test]
    fn a_pod_of_a_number_has_the_labels_of_the_number() {
        let mut o = observed(1, true, &[]);
        let mut bare = member("w-0", "new", "ready").object.value();
        bare["metadata"]["labels"].as_object_mut().unwrap().remove(pod::INDEX);
        let object = Arc::new(Object::new("w-0".into(), 1, &bare, Box::default()));
        o.members.insert(0, Member { pod: object.typed().unwrap(), object });
        assert_eq!(done(&o), ["=0"]);
    }
}
