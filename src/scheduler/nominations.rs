//! Pods that wait until room is made for them on a node. There they count already, where pods of no higher priority are
//! decided about; and pods that are to go for them and are not seen to do so yet.
//!
//! Invariant: a pod is nominated for one node at most, and no pod is nominated that is on a node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::view::PodView;
use crate::reconcile::Key;

/// Why a pod that goes for another one has the condition DisruptionTarget.
pub const REASON: &str = "PreemptionByScheduler";

/// Who is nominated where.
#[derive(Debug, Default)]
pub struct Nominations {
    nodes: HashMap<Key, Arc<str>>,
    pods: BTreeMap<Arc<str>, BTreeMap<Key, Arc<PodView>>>,
    /// By uid, those whose end was asked for and is not seen yet.
    victims: HashSet<Box<str>>,
}

// === impl Nominations ===

impl Nominations {
    /// Nominates a pod for a node, and for no other.
    pub fn put(&mut self, pod: Arc<PodView>, node: Arc<str>) {
        self.remove(&pod.key);
        self.nodes.insert(pod.key.clone(), node.clone());
        self.pods.entry(node).or_default().insert(pod.key.clone(), pod);
    }

    /// Takes a nomination back; answers whether there was one.
    pub fn remove(&mut self, key: &Key) -> bool {
        let Some(node) = self.nodes.remove(key) else { return false };
        if let Some(here) = self.pods.get_mut(&node) {
            here.remove(key);
            if here.is_empty() {
                self.pods.remove(&node);
            }
        }
        true
    }

    /// Whether nobody is nominated.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node that a pod is nominated for.
    pub fn node_of(&self, key: &Key) -> Option<&Arc<str>> {
        self.nodes.get(key)
    }

    /// The pods that are nominated for a node.
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodView>> {
        self.pods.get(node).into_iter().flat_map(BTreeMap::values)
    }

    /// Notes that a pod is to go.
    pub fn doom(&mut self, uid: &str) {
        self.victims.insert(uid.into());
    }

    /// The pod is seen to go, or does not.
    pub fn spare(&mut self, uid: &str) {
        self.victims.remove(uid);
    }

    /// Forgets those who were told to go and are not there.
    pub fn keep_victims(&mut self, is_there: impl Fn(&str) -> bool) {
        self.victims.retain(|uid| is_there(uid));
    }

    /// Whether a pod was told to go to make room, be it gone on its way or not.
    pub fn is_victim(&self, pod: &PodView) -> bool {
        let conditions = pod.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let is_told = || {
            let mut targets = conditions.into_iter().filter(|c| c.type_ == "DisruptionTarget");
            targets.next().is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(REASON))
        };
        self.victims.contains(&*pod.object.meta.uid) || (pod.object.meta.deleted.is_some() && is_told())
    }
}
