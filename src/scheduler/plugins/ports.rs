//! A host port is given once a node.

use super::{Plugin, Refusal};
use crate::scheduler::snapshot::{HostPort, NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let taken = pod.ports.iter().any(|p| node.ports.keys().any(|q| collide(p, q)));
        let mut refusal = Refusal::hopeless_if(taken, "node(s) didn't have free ports for the requested pod ports");
        refusal.preemption_helps = taken;
        refusal
    }
}

/// An empty address means every address.
fn collide(a: &HostPort, b: &HostPort) -> bool {
    a.1 == b.1 && a.2 == b.2 && (a.0.is_empty() || b.0.is_empty() || a.0 == b.0)
}
