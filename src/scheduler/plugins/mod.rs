//! What decides about nodes, a file each: plugins refuse nodes and rate them.

pub mod affinity;
pub mod fit;
pub mod name;
pub mod ports;
pub mod taint;
pub mod unschedulable;

use super::snapshot::{NodeView, PodView};

/// Every plugin, in the order in which they are asked.
pub const ALL: &[&dyn Plugin] = &[
    &unschedulable::NodeUnschedulable,
    &name::NodeName,
    &taint::TaintToleration,
    &affinity::NodeAffinity,
    &ports::NodePorts,
    &fit::NodeResourcesFit,
    &fit::BalancedAllocation,
];

/// One consideration.
pub trait Plugin: Send + Sync {
    /// Kubernetes' name of it.
    fn name(&self) -> &'static str;

    /// Why the node will not do.
    fn filter(&self, _pod: &PodView, _node: &NodeView) -> Refusal {
        Refusal::NONE
    }

    /// How good the node is.
    fn score(&self, _pod: &PodView, _node: &NodeView) -> i64 {
        0
    }

    /// How scores become 0 to 100.
    fn normal(&self) -> Normal {
        Normal::Absolute
    }

    /// How much the score counts.
    fn weight(&self) -> i64 {
        1
    }
}

/// How scores of one plugin compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normal {
    /// They are 0 to 100 already.
    Absolute,
    /// The highest becomes 100.
    Most,
    /// The highest becomes 0.
    Fewest,
}

/// Why a node will not do; no reasons: it will.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    pub reasons: Vec<String>,
    /// Whether it could if other pods were not there.
    pub preemption_helps: bool,
}

// === impl Refusal ===

impl Refusal {
    /// The node will do.
    pub const NONE: Self = Self { reasons: Vec::new(), preemption_helps: false };

    /// A refusal that no removal of pods changes, if `refused`.
    pub fn hopeless_if(refused: bool, reason: &str) -> Self {
        if refused { Self { reasons: vec![reason.to_owned()], preemption_helps: false } } else { Self::NONE }
    }
}
