//! Which node a pod gets, or why none: a pure function of the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::plugins::{self, Cycle, Filter, Refusal};
use super::snapshot::{NodeView, PodView, Snapshot};
use crate::base::labels::Selector;

/// So many nodes that would do are always compared.
const ENOUGH_MIN: usize = 100;

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// For people, in Kubernetes' words.
    pub message: String,
    /// The plugins that refused nodes.
    pub by: BTreeSet<&'static str>,
    /// The nodes that might do if other pods were not there.
    pub hopeful: Vec<Arc<str>>,
}

/// Asks all plugins about nodes, for one pod.
pub struct Feasibility<'c> {
    pod: &'c PodView,
    snapshot: &'c Snapshot,
    /// What plugins know of the whole cluster, in their order.
    filters: Vec<Option<Box<dyn Filter + 'c>>>,
}

// === impl Feasibility ===

impl<'c> Feasibility<'c> {
    /// Lets the plugins look at the cluster.
    pub fn new(pod: &'c PodView, snapshot: &'c Snapshot) -> Self {
        Self { pod, snapshot, filters: plugins::ALL.iter().map(|plugin| plugin.pre_filter(pod, snapshot)).collect() }
    }

    /// Who refuses a node first, and why.
    pub fn refusal(&self, node: &NodeView) -> Option<(&'static str, Refusal)> {
        for (plugin, filter) in plugins::ALL.iter().zip(&self.filters) {
            let refusal = filter.as_ref().map_or_else(|| plugin.filter(self.pod, node), |filter| filter.filter(node));
            if !refusal.reasons.is_empty() {
                return Some((plugin.name(), refusal));
            }
        }
        None
    }

    /// Whether nobody refuses a node, with those who are nominated for it and without them. Who looks at the whole cluster is
    /// asked first: for one who wants to be near others, most nodes are too far from them.
    fn allows(&mut self, node: &NodeView) -> bool {
        let mut of_cluster = self.filters.iter().rev().flatten();
        of_cluster.all(|filter| filter.allows(node)) && self.refusal_beside_nominated(node).is_none()
    }

    /// As [`Self::refusal`], of a node on which those count who are nominated for it and of no lower priority.
    ///
    /// The pod must also do without them: they may never come.
    pub fn refusal_beside_nominated(&mut self, node: &NodeView) -> Option<(&'static str, Refusal)> {
        let snapshot = self.snapshot;
        let counts = |other: &&Arc<PodView>| other.priority >= self.pod.priority && other.key != self.pod.key;
        let nominated: Vec<_> = snapshot.nominations.on(&node.object.meta.name).filter(counts).collect();
        if nominated.is_empty() {
            return self.refusal(node);
        }
        let mut full = node.clone();
        nominated.iter().for_each(|other| self.enter(&mut full, other));
        let refusal = self.refusal(&full);
        nominated.iter().for_each(|other| self.leave(&mut full, other));
        refusal.or_else(|| self.refusal(node))
    }

    /// Looks on as if a pod were on the node.
    pub fn enter(&mut self, node: &mut NodeView, pod: &Arc<PodView>) {
        node.enter(pod);
        self.filters.iter_mut().flatten().for_each(|filter| filter.add(pod, node));
    }

    /// Looks on as if a pod were not on the node.
    pub fn leave(&mut self, node: &mut NodeView, pod: &PodView) {
        node.leave(pod);
        self.filters.iter_mut().flatten().for_each(|filter| filter.remove(pod, node));
    }
}

/// The node of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub node: Arc<str>,
    /// How many nodes were looked at: not all, where many would do.
    pub looked_at: usize,
}

/// The best node for a pod. Which pods are `alike` is asked only where several nodes would do.
///
/// In a large cluster the best one is looked for among some that would do, beginning with node number `first`.
pub fn decide(
    pod: &PodView,
    snapshot: &Snapshot,
    first: usize,
    alike: impl FnOnce() -> Selector,
) -> Result<Decision, Unschedulable> {
    let count = snapshot.nodes.len();
    if count == 0 {
        let message = "no nodes available to schedule pods".into();
        return Err(Unschedulable { message, ..Unschedulable::default() });
    }
    let refused = plugins::ALL.iter().find_map(|plugin| Some((plugin.name(), plugin.refuse(pod, snapshot)?)));
    if let Some((by, why)) = refused {
        let message = format!("0/{count} nodes are available: {why}.");
        return Err(Unschedulable { message, by: [by].into(), hopeful: Vec::new() });
    }
    let mut feasibility = Feasibility::new(pod, snapshot);
    // Room was made for it there.
    let nominated = snapshot.nominations.node_of(&pod.key).and_then(|name| snapshot.nodes.get_key_value(name));
    if let Some((name, node)) = nominated
        && feasibility.refusal_beside_nominated(node).is_none()
    {
        return Ok(Decision { node: name.clone(), looked_at: 0 });
    }
    let (mut names, mut fitting) = (Vec::new(), Vec::new());
    let (enough, mut looked_at) = (enough_nodes(count), 0);
    for (name, node) in snapshot.nodes.iter().skip(first % count).chain(snapshot.nodes.iter().take(first % count)) {
        if names.len() == enough {
            break;
        }
        looked_at += 1;
        if feasibility.allows(node) {
            names.push(name);
            fitting.push(node);
        }
    }
    let node = match names.as_slice() {
        [] => return Err(Refusals::of_all(&mut feasibility).explain(count)),
        [only] => (*only).clone(),
        _ => {
            let cycle = Cycle { pod, snapshot, alike: alike() };
            names[best(&cycle, &fitting)].clone()
        }
    };
    Ok(Decision { node, looked_at })
}

/// How many nodes that would do are enough to choose from, as Kubernetes has it (percentageOfNodesToScore): the more nodes
/// there are, the smaller is their part.
fn enough_nodes(all: usize) -> usize {
    let percent = 50usize.saturating_sub(all / 125).max(5);
    (all * percent / 100).max(ENOUGH_MIN)
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

#[derive(Default)]
struct Refusals {
    reasons: BTreeMap<String, usize>,
    by: BTreeSet<&'static str>,
    hopeful: Vec<Arc<str>>,
}

// === impl Refusals ===

impl Refusals {
    /// Why none of the nodes will do.
    fn of_all(feasibility: &mut Feasibility<'_>) -> Self {
        let mut refusals = Self::default();
        for (name, node) in &feasibility.snapshot.nodes {
            if let Some((by, refusal)) = feasibility.refusal_beside_nominated(node) {
                refusals.note(name, by, refusal);
            }
        }
        refusals
    }

    fn note(&mut self, node: &Arc<str>, by: &'static str, refusal: Refusal) {
        self.by.insert(by);
        for reason in refusal.reasons {
            *self.reasons.entry(reason).or_default() += 1;
        }
        if refusal.preemption_helps {
            self.hopeful.push(node.clone());
        }
    }

    fn explain(self, nodes: usize) -> Unschedulable {
        let message = format!("0/{nodes} nodes are available: {}.", counted(&self.reasons));
        Unschedulable { message, by: self.by, hopeful: self.hopeful }
    }
}

/// Reasons with the number of nodes that have them, in Kubernetes' order.
pub fn counted(reasons: &BTreeMap<String, usize>) -> String {
    let mut all: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    all.sort();
    all.join(", ")
}

/// Which node has the highest score; among equals the one with the fewest pods, then the first by name.
fn best<'c>(cycle: &'c Cycle<'c>, nodes: &[&'c NodeView]) -> usize {
    let totals = scores(cycle, nodes);
    let ranked = totals.iter().zip(nodes).map(|(total, node)| (*total, -node.pods)).enumerate();
    ranked.rev().max_by_key(|(_, rank)| *rank).map_or(0, |(i, _)| i)
}
