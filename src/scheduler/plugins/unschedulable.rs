//! A cordoned node takes no new pods.

use super::taint::tolerates;
use super::{Plugin, Refusal};
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let cordoned = node.node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
        let refused = cordoned && !tolerates(&pod.pod, "node.kubernetes.io/unschedulable", "", "NoSchedule");
        Refusal::hopeless_if(refused, "node(s) were unschedulable")
    }
}
