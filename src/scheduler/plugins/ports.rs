//! A host port is given once a node.

use super::{Plugin, Refusal};
use crate::apimachinery::placement::{PORTS_TAKEN, collide};
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let taken = collide(&pod.ports, node.ports.keys());
        let mut refusal = Refusal::hopeless_if(taken, PORTS_TAKEN);
        refusal.preemption_helps = taken;
        refusal
    }
}
