//! Node selectors and node affinity, required and preferred.

use k8s_openapi::api::core::v1::{NodeAffinity as Wanted, NodeSelectorRequirement, NodeSelectorTerm};

use super::{ByNode, Cycle, Normal, Plugin, Rating, Refusal};
use crate::base::labels::{Op, Requirement};
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        Refusal::hopeless_if(!admits(pod, node), "node(s) didn't match Pod's node affinity/selector")
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let preferred = wanted(cycle.pod)?.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let score = |node: &NodeView| {
            let met = preferred.iter().filter(|t| t.weight != 0 && term_matches(&t.preference, node));
            met.map(|t| i64::from(t.weight)).sum()
        };
        Some(Box::new(ByNode { score, normal: Normal::Most }))
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// Whether the pod's node selector and required affinity allow the node.
pub(super) fn admits(pod: &PodView, node: &NodeView) -> bool {
    let Some(spec) = &pod.pod.spec else { return true };
    let labels = &node.object.meta.labels;
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k.as_str()).is_some_and(|l| **l == **v));
    let required = wanted(pod).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|s| s.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

fn wanted(pod: &PodView) -> Option<&Wanted> {
    pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// A term without requirements matches nothing.
fn term_matches(term: &NodeSelectorTerm, node: &NodeView) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let empty = labels.clone().next().is_none() && fields.clone().next().is_none();
    let label = |key: &str| node.object.meta.labels.get(key).map(|v| &**v);
    let field = |key: &str| (key == "metadata.name").then_some(&*node.object.meta.name);
    !empty
        && labels.into_iter().all(|r| requirement(r).is_some_and(|x| x.matches(label(&r.key))))
        && fields.into_iter().all(|r| requirement(r).is_some_and(|x| x.matches(field(&r.key))))
}

fn requirement(r: &NodeSelectorRequirement) -> Option<Requirement> {
    let op = match r.operator.as_str() {
        "In" => Op::In,
        "NotIn" => Op::NotIn,
        "Exists" => Op::Exists,
        "DoesNotExist" => Op::DoesNotExist,
        "Gt" => Op::Gt,
        "Lt" => Op::Lt,
        _ => return None,
    };
    Some(Requirement { key: r.key.clone(), op, values: r.values.clone().unwrap_or_default() })
}
