//! Room on nodes: what is asked for must be free, and emptier and more balanced nodes are better.

use super::{Plugin, Refusal};
use crate::scheduler::snapshot::{NodeView, PodView};

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

    fn score(&self, pod: &PodView, node: &NodeView) -> i64 {
        let (mut sum, mut counted) = (0, 0);
        for name in ["cpu", "memory"] {
            let all = node.allocatable.get(name);
            if all > 0 {
                let used = node.weight.get(name) + pod.weight.get(name);
                sum += if used > all { 0 } else { (all - used) * 100 / all };
                counted += 1;
            }
        }
        if counted == 0 { 0 } else { sum / counted }
    }
}

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    #[allow(clippy::cast_possible_truncation)] // Between 0 and 100.
    fn score(&self, pod: &PodView, node: &NodeView) -> i64 {
        let share = |name: &str| {
            let all = node.allocatable.get(name);
            let used = node.requested.get(name) + pod.requests.get(name);
            if all > 0 { (used as f64 / all as f64).min(1.0) } else { 0.0 }
        };
        let deviation = (share("cpu") - share("memory")).abs() / 2.0;
        ((1.0 - deviation) * 100.0) as i64
    }
}
