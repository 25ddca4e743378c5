//! A pod that names its node goes nowhere else.

use super::{Plugin, Refusal};
use crate::scheduler::snapshot::{NodeView, PodView};

/// The plugin.
#[derive(Debug)]
pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn filter(&self, pod: &PodView, node: &NodeView) -> Refusal {
        let wrong = !pod.node().is_empty() && *pod.node() != *node.object.meta.name;
        Refusal::hopeless_if(wrong, "node(s) didn't match the requested node name")
    }
}
