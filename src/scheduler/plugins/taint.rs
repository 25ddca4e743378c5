//! Taints keep pods away that do not tolerate them.

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use super::{ByNode, Cycle, Normal, Plugin, Rating, Refusal};
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
        let bad = taints(node).filter(hard).find(|t| !tolerates_taint(pod, t));
        let Some(taint) = bad else { return Refusal::NONE };
        let value = taint.value.as_deref().unwrap_or("");
        Refusal::hopeless_if(true, &format!("node(s) had untolerated taint {{{}: {value}}}", taint.key))
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let score = |node: &NodeView| {
            let soft = taints(node).filter(|t| t.effect == "PreferNoSchedule");
            i64::try_from(soft.filter(|t| !tolerates_taint(cycle.pod, t)).count()).unwrap_or(i64::MAX)
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
    taints(node).any(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute") && !tolerates_taint(pod, t))
}

fn tolerates_taint(pod: &PodView, taint: &Taint) -> bool {
    tolerates(&pod.pod, &taint.key, taint.value.as_deref().unwrap_or(""), &taint.effect)
}

/// Whether a pod tolerates a taint.
pub(super) fn tolerates(pod: &Pod, key: &str, value: &str, effect: &str) -> bool {
    let all = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    all.into_iter().any(|t| matches(t, key, value, effect))
}

fn matches(t: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let (own_key, own_effect) = (t.key.as_deref().unwrap_or(""), t.effect.as_deref().unwrap_or(""));
    let own_value = t.value.as_deref().unwrap_or("");
    if (!own_effect.is_empty() && own_effect != effect) || (!own_key.is_empty() && own_key != key) {
        return false;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    match t.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Lt" => number(value).zip(number(own_value)).is_some_and(|(taint, own)| taint < own),
        "Gt" => number(value).zip(number(own_value)).is_some_and(|(taint, own)| taint > own),
        _ => !own_key.is_empty() && own_value == value,
    }
}
