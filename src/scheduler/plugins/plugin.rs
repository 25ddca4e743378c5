//! What a plugin is: the steps of Kubernetes' framework.

use super::super::snapshot::{NodeView, PodView, Snapshot};
use crate::base::labels::Selector;

/// The highest rate of a node.
pub const SCORE_MAX: i64 = 100;

/// What one decision is about.
#[derive(Debug)]
pub struct Cycle<'a> {
    pub pod: &'a PodView,
    pub snapshot: &'a Snapshot,
    /// Selects the pods that are like this one: what its Services and its owner select. Empty: none do.
    pub alike: Selector,
}

/// One consideration.
pub trait Plugin: Send + Sync {
    /// Kubernetes' name of it.
    fn name(&self) -> &'static str;

    /// Why no node at all will do, whatever nodes there are.
    fn refuse(&self, _pod: &PodView, _snapshot: &Snapshot) -> Option<String> {
        None
    }

    /// Why the node will not do.
    fn filter(&self, _pod: &PodView, _node: &NodeView) -> Refusal {
        Refusal::NONE
    }

    /// What it takes to know of the whole cluster before nodes are filtered; `None`: [`Plugin::filter`] is enough for this pod.
    fn pre_filter<'c>(&self, _pod: &'c PodView, _snapshot: &'c Snapshot) -> Option<Box<dyn Filter + 'c>> {
        None
    }

    /// What it takes to rate these nodes for the pod, computed once; `None`: it says nothing about this pod.
    fn pre_score<'c>(&self, _cycle: &'c Cycle<'c>, _nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        None
    }

    /// How much the score counts.
    fn weight(&self) -> i64 {
        1
    }
}

/// A plugin's view of the cluster in one decision.
pub trait Filter {
    /// Why the node will not do.
    fn filter(&self, node: &NodeView) -> Refusal;

    /// Whether it will do, where nobody asks why not.
    fn allows(&self, node: &NodeView) -> bool {
        self.filter(node).reasons.is_empty()
    }

    /// Looks on as if this pod were on the node, too.
    fn add(&mut self, _other: &PodView, _node: &NodeView) {}

    /// Looks on as if this pod were not on the node: undoes [`Filter::add`], and is undone by it.
    fn remove(&mut self, _other: &PodView, _node: &NodeView) {}
}

/// A plugin's view of the nodes in one decision.
pub trait Rating {
    /// How good the node is.
    fn score(&self, node: &NodeView) -> i64;

    /// Makes the scores of all nodes 0 to [`SCORE_MAX`].
    fn normalize(&self, nodes: &[&NodeView], scores: &mut [i64]);
}

/// A rating for which a node is enough.
pub struct ByNode<F> {
    pub score: F,
    pub normal: Normal,
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

// === impl ByNode ===

impl<F: Fn(&NodeView) -> i64> Rating for ByNode<F> {
    fn score(&self, node: &NodeView) -> i64 {
        (self.score)(node)
    }

    fn normalize(&self, _nodes: &[&NodeView], scores: &mut [i64]) {
        let top = scores.iter().copied().max().unwrap_or(0);
        let scaled = |s: i64| if top == 0 { 0 } else { s * SCORE_MAX / top };
        match self.normal {
            Normal::Absolute => {}
            Normal::Most => scores.iter_mut().for_each(|s| *s = scaled(*s)),
            Normal::Fewest => scores.iter_mut().for_each(|s| *s = SCORE_MAX - scaled(*s)),
        }
    }
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
