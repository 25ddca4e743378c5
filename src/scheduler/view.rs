//! Pods and nodes as decisions look at them.
//!
//! Invariant: a node's `requested`, `weight`, `pods` and `ports` are the sums over its `residents`, the pods that are entered
//! for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerImage, Node, Pod};

use super::affinity::Affinity;
use super::volumes::Claimant;
use crate::apimachinery::placement::{HostPort, host_ports};
use crate::apimachinery::resources::{self, Resources};
use crate::apimachinery::volume::{PodClaim, claims_of};
use crate::base::object::Object;
use crate::reconcile::Key;

/// A pod as decisions look at it.
#[derive(Clone, Debug)]
pub struct PodView {
    pub key: Key,
    pub object: Arc<Object>,
    pub pod: Arc<Pod>,
    pub requests: Resources,
    pub weight: Resources,
    pub ports: Vec<HostPort>,
    pub priority: i32,
    pub claims: Box<[PodClaim]>,
    /// What it says of other pods.
    pub affinity: Option<Box<Affinity>>,
}

/// A node as decisions look at it.
#[derive(Clone, Debug)]
pub struct NodeView {
    pub object: Arc<Object>,
    pub node: Arc<Node>,
    pub allocatable: Resources,
    pub requested: Resources,
    pub weight: Resources,
    pub pods: i64,
    pub ports: BTreeMap<HostPort, usize>,
    pub residents: BTreeMap<Key, Arc<PodView>>,
    /// The sizes of its images, by all of their names.
    pub images: Arc<HashMap<Box<str>, i64>>,
}

// === impl PodView ===

impl PodView {
    /// The view of a pod; `None` where it cannot be decoded.
    pub fn new(object: &Arc<Object>) -> Option<Self> {
        let pod: Arc<Pod> = object.typed().ok()?;
        let spec = pod.spec.as_ref()?;
        Some(Self {
            key: Key::of(object),
            object: object.clone(),
            requests: resources::requests(&pod),
            weight: resources::weight(&pod),
            ports: host_ports(&pod),
            priority: spec.priority.unwrap_or(0),
            claims: claims_of(&pod).collect(),
            affinity: Affinity::of(&pod, &object.meta.namespace),
            pod: pod.clone(),
        })
    }

    /// The pod, as far as its claims know it.
    pub fn claimant(&self) -> Claimant<'_> {
        Claimant { key: &self.key, uid: &self.object.meta.uid, claims: &self.claims }
    }

    /// The node that room is made on for the pod, as is written; empty: none.
    pub fn nominated(&self) -> &str {
        nominated(&self.pod)
    }

    /// The node that the pod is bound to; empty: none.
    pub fn node(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
    }
}

/// The node that room is made on for a pod, as is written; empty: none.
pub fn nominated(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref()).unwrap_or("")
}

// === impl NodeView ===

impl NodeView {
    /// The view of a node on which no pod is entered.
    pub fn new(object: &Arc<Object>, node: Arc<Node>) -> Self {
        let status = node.status.as_ref();
        Self {
            allocatable: Resources::of(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()))),
            object: object.clone(),
            images: Arc::new(image_sizes(&node)),
            node,
            requested: Resources::default(),
            weight: Resources::default(),
            pods: 0,
            ports: BTreeMap::new(),
            residents: BTreeMap::new(),
        }
    }

    /// Counts a pod that is on the node, or would be.
    pub fn enter(&mut self, pod: &Arc<PodView>) {
        self.residents.insert(pod.key.clone(), pod.clone());
        self.requested.add(&pod.requests);
        self.weight.add(&pod.weight);
        self.pods += 1;
        for port in &pod.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
    }

    /// Undoes [`Self::enter`].
    pub fn leave(&mut self, pod: &PodView) {
        self.residents.remove(&pod.key);
        self.requested.subtract(&pod.requests);
        self.weight.subtract(&pod.weight);
        self.pods -= 1;
        for port in &pod.ports {
            if let Some(count) = self.ports.get_mut(port) {
                *count -= 1;
                if *count == 0 {
                    self.ports.remove(port);
                }
            }
        }
    }

    /// Whether what decides about pods is the same for another state of the node.
    pub fn decides_alike(&self, other: &Object) -> bool {
        let Ok(node) = other.typed::<Node>() else { return false };
        let ready = |n: &Node| n.status.as_ref().map(|s| (s.allocatable.clone(), s.capacity.clone()));
        let spec = |n: &Node| n.spec.as_ref().map(|s| (s.taints.clone(), s.unschedulable));
        other.meta.labels == self.object.meta.labels
            && ready(&node) == ready(&self.node)
            && spec(&node) == spec(&self.node)
    }
}

/// The sizes of a node's images, by all of their names.
fn image_sizes(node: &Node) -> HashMap<Box<str>, i64> {
    let images = node.status.iter().flat_map(|s| s.images.iter().flatten());
    let of = |image: &ContainerImage| {
        let size = image.size_bytes.unwrap_or(0);
        image.names.iter().flatten().map(move |name| (Box::from(name.as_str()), size)).collect::<Vec<_>>()
    };
    images.flat_map(of).collect()
}
