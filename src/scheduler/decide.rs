//! Which node a pod gets, or why none: a pure function of the snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::plugins::{self, Normal, Plugin};
use super::snapshot::{NodeView, PodView, Snapshot};

/// Why no node will do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// For people, in Kubernetes' words.
    pub message: String,
    /// The plugins that refused nodes.
    pub by: BTreeSet<&'static str>,
}

/// The best node for a pod.
pub fn decide(pod: &PodView, snapshot: &Snapshot) -> Result<Arc<str>, Unschedulable> {
    let mut refusals = Refusals::default();
    let mut fitting: Vec<(&Arc<str>, &NodeView)> = Vec::new();
    for (name, node) in &snapshot.nodes {
        if refusals.ask(pod, node) {
            fitting.push((name, node));
        }
    }
    match fitting.as_slice() {
        [] => Err(refusals.explain(snapshot.nodes.len())),
        [(only, _)] => Ok((*only).clone()),
        _ => Ok(best(pod, &fitting).clone()),
    }
}

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
    fn ask(&mut self, pod: &PodView, node: &NodeView) -> bool {
        for plugin in plugins::ALL {
            let refusal = plugin.filter(pod, node);
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

/// The node with the highest sum of weighted scores; among equals the one with the fewest pods, then by name.
fn best<'a>(pod: &PodView, fitting: &[(&'a Arc<str>, &NodeView)]) -> &'a Arc<str> {
    let mut totals = vec![0i64; fitting.len()];
    for plugin in plugins::ALL {
        let scores: Vec<i64> = fitting.iter().map(|(_, n)| plugin.score(pod, n)).collect();
        for (total, score) in totals.iter_mut().zip(normalize(*plugin, scores)) {
            *total += score * plugin.weight();
        }
    }
    let ranked = totals.iter().zip(fitting).map(|(total, (name, node))| ((*total, -node.pods), name));
    ranked.rev().max_by_key(|(rank, _)| *rank).map(|(_, name)| *name).expect("called with at least one node")
}

fn normalize(plugin: &dyn Plugin, scores: Vec<i64>) -> Vec<i64> {
    let top = scores.iter().copied().max().unwrap_or(0);
    let scaled = |s: i64| if top == 0 { 0 } else { s * 100 / top };
    match plugin.normal() {
        Normal::Absolute => scores,
        Normal::Most => scores.into_iter().map(scaled).collect(),
        Normal::Fewest => scores.into_iter().map(|s| 100 - scaled(s)).collect(),
    }
}
