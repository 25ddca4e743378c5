//! Taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::Taint;

use super::{ByNode, Cycle, Normal, Plugin, Rating, Refusal};
use crate::apimachinery::placement::tolerates;
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
        let bad = taints(node).filter(hard).find(|t| !tolerates(&pod.pod, t));
        let Some(taint) = bad else { return Refusal::NONE };
        let value = taint.value.as_deref().unwrap_or("");
        Refusal::hopeless_if(true, &format!("node(s) had untolerated taint {{{}: {value}}}", taint.key))
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let score = |node: &NodeView| {
            let soft = taints(node).filter(|t| t.effect == "PreferNoSchedule");
            i64::try_from(soft.filter(|t| !tolerates(&cycle.pod.pod, t)).count()).unwrap_or(i64::MAX)
        };
        Some(Box::new(ByNode { score, normal: Normal::Fewest }))
    }

    fn weight(&self) -> i64 {
        3
    }
}

fn taints(node: &NodeView) -> impl Iterator<Item = &Taint> {
    node.node.spec.iter().flat_map(|s| s.taints.iter().flatten())
}

/// Whether a taint of the node keeps the pod away.
pub(super) fn repels(pod: &PodView, node: &NodeView) -> bool {
    taints(node).any(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerates(&pod.pod, t))
}
