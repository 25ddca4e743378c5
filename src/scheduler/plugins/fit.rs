//! Room on nodes: what is asked for must be free, and emptier and more balanced nodes are better.

use super::{ByNode, Cycle, Normal, Plugin, Rating, Refusal, SCORE_MAX};
use crate::scheduler::snapshot::{NodeView, PodView};

/// What nodes are rated by, each as much as the other.
const RATED: [&str; 2] = ["cpu", "memory"];

/// Whether there is room, and how much is left (least allocated).
#[derive(Debug)]
pub struct NodeResourcesFit;

/// Whether processor and memory are used in like proportion.
#[derive(Debug)]
pub struct BalancedAllocation;

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let mut reasons = Vec::new();
        if node.pods + 1 > node.allocatable.get("pods") {
            reasons.push("Too many pods".to_owned());
        }
        let mut possible = true;
        for (name, asked) in pod.requests.0.iter().filter(|(_, asked)| **asked > 0) {
            let all = node.allocatable.get(name);
            if *asked > all - node.requested.get(name) {
                reasons.push(format!("Insufficient {name}"));
                possible &= *asked <= all;
            }
        }
        let refused = !reasons.is_empty();
        Refusal { reasons, preemption_helps: refused && possible }
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let score = |node: &NodeView| least_allocated(cycle.pod, node);
        Some(Box::new(ByNode { score, normal: Normal::Absolute }))
    }
}

fn least_allocated(pod: &PodView, node: &NodeView) -> i64 {
    let (mut sum, mut counted) = (0, 0);
    for name in RATED {
        let all = node.allocatable.get(name);
        if all > 0 {
            let used = node.weight.get(name) + pod.weight.get(name);
            sum += if used > all { 0 } else { (all - used) * SCORE_MAX / all };
            counted += 1;
        }
    }
    if counted == 0 { 0 } else { sum / counted }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    /// Pods that ask for nothing change no balance: rated, they would all go to the node whose balance is best.
    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        if RATED.iter().all(|name| cycle.pod.requests.get(name) == 0) {
            return None;
        }
        let score = |node: &NodeView| balance(cycle.pod, node);
        Some(Box::new(ByNode { score, normal: Normal::Absolute }))
    }
}

#[allow(clippy::cast_possible_truncation)] // Between 0 and 100.
fn balance(pod: &PodView, node: &NodeView) -> i64 {
    let share = |name: &&str| {
        let all = node.allocatable.get(name);
        let used = node.requested.get(name) + pod.requests.get(name);
        (all > 0).then(|| (used as f64 / all as f64).min(1.0))
    };
    let shares: Vec<f64> = RATED.iter().filter_map(share).collect();
    let deviation = if let [a, b] = shares[..] { (a - b).abs() / 2.0 } else { 0.0 };
    ((1.0 - deviation) * SCORE_MAX as f64) as i64
}
