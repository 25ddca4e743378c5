//! Which node a pod gets, or why none: a pure function of the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::plugins::{self, Cycle, Filter};
use super::snapshot::{NodeView, PodView, Snapshot};
use crate::base::labels::Selector;

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// For people, in Kubernetes' words.
    pub message: String,
    /// The plugins that refused nodes.
    pub by: BTreeSet<&'static str>,
}

// === impl Unschedulable ===

impl Unschedulable {
    /// A plugin has refused the pod without looking at nodes.
    fn everywhere(by: &'static str, why: &str, nodes: usize) -> Self {
        let message = format!(
            "0/{nodes} nodes are available: {why}. preemption: 0/{nodes} nodes are available: {nodes} Preemption is not \
             helpful for scheduling."
        );
        Self { message, by: [by].into() }
    }
}

/// The best node for a pod. Which pods are `alike` is asked only where several nodes would do.
pub fn decide(pod: &PodView, snapshot: &Snapshot, alike: impl FnOnce() -> Selector) -> Result<Arc<str>, Unschedulable> {
    let mut refusals = Refusals::default();
    let (mut names, mut fitting) = (Vec::new(), Vec::new());
    if !snapshot.nodes.is_empty() {
        let refused = plugins::ALL.iter().find_map(|plugin| Some((plugin.name(), plugin.refuse(pod, snapshot)?)));
        if let Some((by, why)) = refused {
            return Err(Unschedulable::everywhere(by, &why, snapshot.nodes.len()));
        }
    }
    let filters: Filters<'_> = plugins::ALL.iter().map(|plugin| plugin.pre_filter(pod, snapshot)).collect();
    for (name, node) in &snapshot.nodes {
        if refusals.ask(pod, node, &filters) {
            names.push(name);
            fitting.push(node);
        }
    }
    match names.as_slice() {
        [] => Err(refusals.explain(snapshot.nodes.len())),
        [only] => Ok((*only).clone()),
        _ => {
            let cycle = Cycle { pod, snapshot, alike: alike() };
            Ok(names[best(&cycle, &fitting)].clone())
        }
    }
}

/// The scores of nodes, each with its weight, added up.
pub fn scores<'c>(cycle: &'c Cycle<'c>, nodes: &[&'c NodeView]) -> Vec<i64> {
    let mut totals = vec![0i64; nodes.len()];
    for plugin in plugins::ALL {
        let Some(rating) = plugin.pre_score(cycle, nodes) else { continue };
        let mut scores: Vec<i64> = nodes.iter().map(|n| rating.score(n)).collect();
        rating.normalize(nodes, &mut scores);
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    totals
}

/// What plugins know of the whole cluster, in their order.
type Filters<'c> = Vec<Option<Box<dyn Filter + 'c>>>;

#[derive(Default)]
struct Refusals {
    reasons: BTreeMap<String, usize>,
    by: BTreeSet<&'static str>,
    /// Nodes where removing other pods cannot help, and where it might.
    hopeless: usize,
    hopeful: usize,
}

// === impl Refusals ===

impl Refusals {
    /// Whether the node would do; notes why not.
    fn ask(&mut self, pod: &PodView, node: &NodeView, filters: &Filters<'_>) -> bool {
        for (plugin, filter) in plugins::ALL.iter().zip(filters) {
            let refusal = filter.as_ref().map_or_else(|| plugin.filter(pod, node), |filter| filter.filter(node));
            if refusal.reasons.is_empty() {
                continue;
            }
            self.by.insert(plugin.name());
            for reason in refusal.reasons {
                *self.reasons.entry(reason).or_default() += 1;
            }
            if refusal.preemption_helps {
                self.hopeful += 1;
            } else {
                self.hopeless += 1;
            }
            return false;
        }
        true
    }

    fn explain(self, nodes: usize) -> Unschedulable {
        if nodes == 0 {
            return Unschedulable { message: "no nodes available to schedule pods".into(), by: self.by };
        }
        let join = |mut all: Vec<String>| {
            all.sort();
            all.join(", ")
        };
        let reasons = join(self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect());
        let mut preemption = Vec::new();
        if self.hopeful > 0 {
            preemption.push(format!("{} No preemption victims found for incoming pod", self.hopeful));
        }
        if self.hopeless > 0 {
            preemption.push(format!("{} Preemption is not helpful for scheduling", self.hopeless));
        }
        let message = format!(
            "0/{nodes} nodes are available: {reasons}. preemption: 0/{nodes} nodes are available: {}.",
            join(preemption)
        );
        Unschedulable { message, by: self.by }
    }
}

/// Which node has the highest score; among equals the one with the fewest pods, then the first by name.
fn best<'c>(cycle: &'c Cycle<'c>, nodes: &[&'c NodeView]) -> usize {
    let totals = scores(cycle, nodes);
    let ranked = totals.iter().zip(nodes).map(|(total, node)| (*total, -node.pods)).enumerate();
    ranked.rev().max_by_key(|(_, rank)| *rank).map_or(0, |(i, _)| i)
}
