//! Node selectors and node affinity, required and preferred.

use super::{ByNode, Cycle, Normal, Plugin, Rating, Refusal};
use crate::apimachinery::placement::{self, AFFINITY_MISMATCH, term_matches};
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        Refusal::hopeless_if(!placement::is_wanted(&pod.pod, &node.object), AFFINITY_MISMATCH)
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let affinity = placement::node_affinity(&cycle.pod.pod)?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &NodeView| {
            let met = preferred.iter().filter(|t| t.weight != 0 && term_matches(&t.preference, &node.object));
            met.map(|t| i64::from(t.weight)).sum()
        };
        Some(Box::new(ByNode { score, normal: Normal::Most }))
    }

    fn weight(&self) -> i64 {
        2
    }
}
