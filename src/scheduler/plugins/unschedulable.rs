//! A cordoned node takes no new pods.

use k8s_openapi::api::core::v1::Taint;

use super::{Plugin, Refusal};
use crate::apimachinery::placement::tolerates;
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
        let taint = || Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let refused = cordoned && !tolerates(&pod.pod, &taint());
        Refusal::hopeless_if(refused, "node(s) were unschedulable")
    }
}
