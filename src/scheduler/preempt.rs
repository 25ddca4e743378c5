//! Which pods go so that a pod of higher priority finds room: a pure function of the snapshot (Kubernetes'
//! DefaultPreemption).
//!
//! Invariant: nobody goes whose priority is not lower, and nobody without whom the pod would fit beside all others.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::decide::{Feasibility, Unschedulable, counted};
use super::snapshot::{PodView, Snapshot};
use crate::base::json::{at, int, text};
use crate::kinds::policy::poddisruptionbudget as budget;
use crate::reconcile::Key;

/// The fewest nodes that are looked at until one is chosen among those that would do, and their part of all.
const CANDIDATES_MIN: usize = 100;
const CANDIDATES_PERCENT: usize = 10;

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NOBODY: &str = "No preemption victims found for incoming pod";

/// What is to be done for a pod that found no node.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// These go.
    Room(Candidate),
    /// The pod may not have others removed, for this reason; its nomination stays as it is.
    NotNow(&'static str),
    /// It would not help, for this reason; a nomination is void.
    Hopeless(String),
}

/// A node, and who goes there.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub node: Arc<str>,
    /// The most important one first; at least one.
    pub victims: Vec<Arc<PodView>>,
    /// How many of them go though their budgets do not allow it.
    pub violations: usize,
}

/// Looks for pods that go for one that found no node. Where many nodes would do, not all are looked at: begins with node
/// number `first` of those where it might help.
pub fn preempt(
    pod: &PodView,
    snapshot: &Snapshot,
    why: &Unschedulable,
    budgets: &[Value],
    now: Timestamp,
    first: usize,
) -> Verdict {
    if let Some(why) = ineligible(pod, snapshot, why) {
        return Verdict::NotNow(why);
    }
    let mut feasibility = Feasibility::new(pod, snapshot);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut candidates, all) = (Vec::new(), why.hopeful.len());
    let enough = (all * CANDIDATES_PERCENT / 100).max(CANDIDATES_MIN);
    for i in 0..all {
        let node = &why.hopeful[(first + i) % all];
        match candidate(&mut feasibility, pod, snapshot, node, budgets, now) {
            Ok(candidate) => candidates.push(candidate),
            Err(all) => all.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1),
        }
        if candidates.len() >= enough && candidates.iter().any(|c: &Candidate| c.violations == 0) {
            break;
        }
    }
    if let Some(best) = candidates.into_iter().min_by_key(|c| c.cost(now)) {
        return Verdict::Room(best);
    }
    let (nodes, others) = (snapshot.nodes.len(), snapshot.nodes.len() - all);
    if others > 0 {
        reasons.insert(NOT_HELPFUL.to_owned(), others);
    }
    Verdict::Hopeless(format!("0/{nodes} nodes are available: {}.", counted(&reasons)))
}

/// Why the pod may not have others removed.
fn ineligible(pod: &PodView, snapshot: &Snapshot, why: &Unschedulable) -> Option<&'static str> {
    if pod.pod.spec.as_ref().and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let nominated = snapshot.nominations.node_of(&pod.key)?;
    if !why.hopeful.contains(nominated) {
        return None;
    }
    let mut residents = snapshot.nodes.get(nominated)?.residents.values();
    let waits = residents.any(|other| other.priority < pod.priority && snapshot.nominations.is_victim(other));
    waits.then_some("not eligible due to a terminating pod on the nominated node.")
}

/// Who would go from a node; or why it would not help.
fn candidate(
    feasibility: &mut Feasibility<'_>,
    pod: &PodView,
    snapshot: &Snapshot,
    name: &Arc<str>,
    budgets: &[Value],
    now: Timestamp,
) -> Result<Candidate, Vec<String>> {
    let nobody = || vec![NOBODY.to_owned()];
    let Some(original) = snapshot.nodes.get(name) else { return Err(nobody()) };
    let lower = original.residents.values().filter(|other| other.priority < pod.priority);
    let mut lower: Vec<Arc<PodView>> = lower.cloned().collect();
    if lower.is_empty() {
        return Err(nobody());
    }
    lower.sort_by_cached_key(|other| importance(other, now));
    let mut node = original.clone();
    lower.iter().for_each(|other| feasibility.leave(&mut node, other));
    if let Some((_, refusal)) = feasibility.refusal_beside_nominated(&node) {
        lower.iter().for_each(|other| feasibility.enter(&mut node, other));
        return Err(refusal.reasons);
    }
    // As many as can be stay: first those whose budgets do not allow that they go, the most important ones first.
    let (mut victims, mut violations) = (Vec::new(), 0);
    let (violating, others) = by_budgets(&lower, budgets);
    for (i, other) in violating.iter().chain(&others).enumerate() {
        feasibility.enter(&mut node, other);
        if feasibility.refusal_beside_nominated(&node).is_some() {
            feasibility.leave(&mut node, other);
            violations += usize::from(i < violating.len());
            victims.push((*other).clone());
        }
    }
    victims.iter().for_each(|victim| feasibility.enter(&mut node, victim));
    victims.sort_by_cached_key(|other| importance(other, now));
    if victims.is_empty() { Err(nobody()) } else { Ok(Candidate { node: name.clone(), victims, violations }) }
}

/// The order of pods by how much they matter: priority, then who has run for longer; by name where that is the same.
fn importance(pod: &PodView, now: Timestamp) -> (Reverse<i32>, Timestamp, Key) {
    (Reverse(pod.priority), started(pod, now), pod.key.clone())
}

fn started(pod: &PodView, now: Timestamp) -> Timestamp {
    pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |time| time.0)
}

/// Parts pods, in their order, into those whose budgets do not allow that all so far go, and the others.
fn by_budgets<'p>(pods: &'p [Arc<PodView>], budgets: &[Value]) -> (Vec<&'p Arc<PodView>>, Vec<&'p Arc<PodView>>) {
    let mut left: Vec<i64> = budgets.iter().map(|b| int(b, "status.disruptionsAllowed").unwrap_or(0)).collect();
    pods.iter().partition(|pod| {
        let meta = &pod.object.meta;
        let mut is_violated = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            let is_of = text(budget, "metadata.namespace") == &*meta.namespace && budget::selects(budget, &meta.labels);
            // Whom eviction has noted there was taken off already.
            let is_noted = || at(budget, "status.disruptedPods").is_some_and(|all| all.get(&*meta.name).is_some());
            if is_of && !is_noted() {
                *left -= 1;
                is_violated |= *left < 0;
            }
        }
        is_violated
    })
}

// === impl Candidate ===

impl Candidate {
    /// What it costs, what weighs most first: the candidate with the least is best.
    fn cost(&self, now: Timestamp) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
        let highest = self.victims.first().map_or(i32::MIN, |victim| victim.priority);
        // None is below zero, so that few pods cost less than many also where their priorities are negative.
        let sum = self.victims.iter().map(|victim| i64::from(victim.priority) - i64::from(i32::MIN)).sum();
        let of_highest = self.victims.iter().filter(|victim| victim.priority == highest);
        let earliest = of_highest.map(|victim| started(victim, now)).min().unwrap_or(now);
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}
