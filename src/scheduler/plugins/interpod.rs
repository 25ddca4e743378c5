//! Pods that are to be near others, or far from them, in domains of nodes (Kubernetes' InterPodAffinity).
//!
//! It counts in both directions: where a pod wants to be, and where others that are there want it or do not.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Cycle, Filter, Plugin, Rating, Refusal, SCORE_MAX};
use crate::scheduler::affinity::Term;
use crate::scheduler::snapshot::{NodeView, PodView, Snapshot};
use crate::scheduler::terms::{Counts, count};

/// The plugin.
#[derive(Debug)]
pub struct InterPodAffinity;

/// Its name.
pub const NAME: &str = "InterPodAffinity";

const NOT_NEAR: &str = "node(s) didn't match pod affinity rules";
const TOO_NEAR: &str = "node(s) didn't match pod anti-affinity rules";
const UNWANTED: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// How many pods of each domain are concerned by a term.
struct Concerned<'c> {
    term: Arc<Term>,
    counts: Cow<'c, Counts>,
    /// Of pods that are looked at as if they were there, or not.
    more: Counts,
}

struct Between<'c> {
    pod: &'c PodView,
    snapshot: &'c Snapshot,
    required: Vec<Concerned<'c>>,
    repelled: Vec<Concerned<'c>>,
    /// Others that do not want it near them.
    repelling: Vec<Concerned<'c>>,
    places: HashMap<Arc<Term>, usize>,
    /// Whether it is what it wants to be near: the first of a group.
    meets_itself: bool,
}

/// Counts with a weight each.
struct Pull<'c>(Vec<(&'c Term, Cow<'c, Counts>, i64)>);

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn pre_filter<'c>(&self, pod: &'c PodView, snapshot: &'c Snapshot) -> Option<Box<dyn Filter + 'c>> {
        let terms = &snapshot.terms;
        let repelling: Vec<_> =
            terms.repelling(pod).map(|(term, counts)| Concerned::new(term, Cow::Borrowed(counts))).collect();
        let own = pod.affinity.as_deref();
        let is_without = own.is_none_or(|own| own.required.is_empty() && own.repelled.is_empty());
        if is_without && repelling.is_empty() && snapshot.nominations.is_empty() {
            return None;
        }
        let meant = |all: &'c [Arc<Term>]| all.iter().map(|term| Concerned::new(term, snapshot.meant(term))).collect();
        let (required, repelled) =
            own.map_or((Vec::new(), Vec::new()), |own| (meant(&own.required), meant(&own.repelled)));
        let mut means = terms.asking(pod);
        let meets_itself = required.iter().all(|of: &Concerned<'_>| means(&of.term));
        let places = repelling.iter().enumerate().map(|(place, of): (usize, &Concerned<'_>)| (of.term.clone(), place));
        let places = places.collect();
        Some(Box::new(Between { pod, snapshot, required, repelled, repelling, places, meets_itself }))
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let snapshot = cycle.snapshot;
        let others = snapshot.terms.pulling(cycle.pod);
        let mut all: Vec<(&Term, Cow<'c, Counts>, i64)> =
            others.map(|(term, counts)| (&**term, Cow::Borrowed(counts), 1)).collect();
        let own = cycle.pod.affinity.iter().flat_map(|own| &own.preferred);
        all.extend(own.map(|(term, weight)| (&**term, snapshot.meant(term), *weight)));
        all.retain(|(_, counts, _)| !counts.is_empty());
        if all.is_empty() { None } else { Some(Box::new(Pull(all))) }
    }

    fn weight(&self) -> i64 {
        2
    }
}

// === impl Concerned ===

impl<'c> Concerned<'c> {
    fn new(term: &Arc<Term>, counts: Cow<'c, Counts>) -> Self {
        Self { term: term.clone(), counts, more: Counts::new() }
    }

    /// How many there are in a domain.
    fn here(&self, domain: &str) -> i64 {
        let more = if self.more.is_empty() { 0 } else { self.more.get(domain).copied().unwrap_or(0) };
        self.counts.get(domain).copied().unwrap_or(0) + more
    }

    fn is_near(&self, node: &NodeView) -> bool {
        self.term.domain(&node.object.meta.labels).is_some_and(|domain| self.here(domain) > 0)
    }

    /// Whether there are none at all.
    fn is_nowhere(&self) -> bool {
        match self.more.is_empty() {
            true => self.counts.is_empty(),
            false => self.counts.keys().chain(self.more.keys()).all(|domain| self.here(domain) == 0),
        }
    }

    fn change(&mut self, node: &NodeView, change: i64) {
        if let Some(domain) = self.term.domain(&node.object.meta.labels) {
            count(&mut self.more, domain, change);
        }
    }
}

// === impl Between ===

impl Between<'_> {
    fn refusal(&self, node: &NodeView) -> Option<&'static str> {
        let is_near = self.required.iter().all(|of| of.is_near(node));
        if !is_near && !self.may_be_first(node) {
            return Some(NOT_NEAR);
        }
        if self.repelled.iter().any(|of| of.is_near(node)) {
            return Some(TOO_NEAR);
        }
        self.repelling.iter().any(|of| of.is_near(node)).then_some(UNWANTED)
    }

    /// Whether it may be the first of a group on a node that is in all of the domains.
    fn may_be_first(&self, node: &NodeView) -> bool {
        self.meets_itself
            && self.required.iter().all(Concerned::is_nowhere)
            && self.required.iter().all(|of| of.term.domain(&node.object.meta.labels).is_some())
    }

    fn change(&mut self, other: &PodView, node: &NodeView, change: i64) {
        let terms = &self.snapshot.terms;
        let mut means = terms.asking(other);
        for of in self.required.iter_mut().chain(&mut self.repelled).filter(|of| means(&of.term)) {
            of.change(node, change);
        }
        let own = other.affinity.iter().flat_map(|own| &own.repelled);
        for term in own.filter(|term| terms.means(term, self.pod)) {
            let place = *self.places.entry(term.clone()).or_insert_with(|| {
                self.repelling.push(Concerned::new(term, Cow::Owned(Counts::new())));
                self.repelling.len() - 1
            });
            self.repelling[place].change(node, change);
        }
    }
}

impl Filter for Between<'_> {
    fn filter(&self, node: &NodeView) -> Refusal {
        match self.refusal(node) {
            None => Refusal::NONE,
            Some(reason) => Refusal { reasons: vec![reason.to_owned()], preemption_helps: reason != NOT_NEAR },
        }
    }

    fn allows(&self, node: &NodeView) -> bool {
        self.refusal(node).is_none()
    }

    fn add(&mut self, other: &PodView, node: &NodeView) {
        self.change(other, node, 1);
    }

    fn remove(&mut self, other: &PodView, node: &NodeView) {
        self.change(other, node, -1);
    }
}

impl Rating for Pull<'_> {
    fn score(&self, node: &NodeView) -> i64 {
        let labels = &node.object.meta.labels;
        let of = |(term, counts, weight): &(&Term, Cow<'_, Counts>, i64)| {
            term.domain(labels).and_then(|domain| counts.get(domain)).map_or(0, |count| count * weight)
        };
        self.0.iter().map(of).sum()
    }

    #[allow(clippy::cast_possible_truncation)] // Between 0 and 100.
    fn normalize(&self, _nodes: &[&NodeView], scores: &mut [i64]) {
        let (least, most) = (scores.iter().min().copied().unwrap_or(0), scores.iter().max().copied().unwrap_or(0));
        for score in scores {
            // In this order, as it is rounded in Kubernetes.
            let part = (*score - least) as f64 / (most - least).max(1) as f64;
            *score = (SCORE_MAX as f64 * part) as i64;
        }
    }
}
