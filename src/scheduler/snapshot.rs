//! The picture of nodes and of the pods on them, kept by increments.
//!
//! Invariant: a node's `requested`, `weight` and `ports` are the sums over the pods that are entered for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::volumes::{Claimant, Volumes};
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
}

/// Everything.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub nodes: BTreeMap<Arc<str>, NodeView>,
    pub volumes: Volumes,
    /// By namespace, because what is compared are pods of one.
    placed: HashMap<Arc<str>, HashMap<Arc<str>, Placed>>,
}

#[derive(Debug)]
struct Placed {
    view: Arc<PodView>,
    node: Arc<str>,
    /// Decided here and not yet seen to be written.
    assumed: bool,
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
            pod: pod.clone(),
        })
    }

    /// The pod, as far as its claims know it.
    pub fn claimant(&self) -> Claimant<'_> {
        Claimant { key: &self.key, uid: &self.object.meta.uid, claims: &self.claims }
    }

    /// The node that the pod is bound to; empty: none.
    pub fn node(&self) -> &str {
        self.pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("")
    }
}

// === impl NodeView ===

impl NodeView {
    fn new(object: &Arc<Object>, node: Arc<Node>) -> Self {
        let status = node.status.as_ref();
        Self {
            allocatable: Resources::of(status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()))),
            object: object.clone(),
            node,
            requested: Resources::default(),
            weight: Resources::default(),
            pods: 0,
            ports: BTreeMap::new(),
        }
    }

    fn enter(&mut self, pod: &PodView) {
        self.requested.add(&pod.requests);
        self.weight.add(&pod.weight);
        self.pods += 1;
        for port in &pod.ports {
            *self.ports.entry(port.clone()).or_default() += 1;
        }
    }

    fn leave(&mut self, pod: &PodView) {
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

// === impl Snapshot ===

impl Snapshot {
    /// Enters a node or its new state. Answers whether pods that found no place may find one now.
    pub fn put_node(&mut self, object: &Arc<Object>) -> bool {
        let Ok(node) = object.typed::<Node>() else { return false };
        let name: Arc<str> = (&*object.meta.name).into();
        let alike = self.nodes.get(&name).is_some_and(|old| old.decides_alike(object));
        let mut view = NodeView::new(object, node);
        match self.nodes.remove(&name) {
            Some(old) => {
                (view.requested, view.weight, view.pods, view.ports) = (old.requested, old.weight, old.pods, old.ports);
            }
            None => {
                let here = self.placed.values().flat_map(HashMap::values).filter(|p| p.node == name);
                here.for_each(|p| view.enter(&p.view));
            }
        }
        self.nodes.insert(name, view);
        !alike
    }

    /// Removes a node; its pods stay entered, in case it returns.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Enters a pod on a node. Answers whether that changes what others count there.
    pub fn place(&mut self, view: Arc<PodView>, node: &str, assumed: bool) -> bool {
        let counts = |o: &Object| (o.meta.labels.clone(), o.meta.deleted.is_some());
        let before = self.placed.get(&view.key.namespace).and_then(|here| here.get(&view.key.name));
        let same = before.is_some_and(|p| *p.node == *node && counts(&p.view.object) == counts(&view.object));
        self.remove_pod(&view.key);
        let node: Arc<str> = node.into();
        if let Some(here) = self.nodes.get_mut(&node) {
            here.enter(&view);
        }
        let (namespace, name) = (view.key.namespace.clone(), view.key.name.clone());
        self.placed.entry(namespace).or_default().insert(name, Placed { view, node, assumed });
        !same
    }

    /// Removes a pod; answers whether it was there.
    pub fn remove_pod(&mut self, key: &Key) -> bool {
        let Some(here) = self.placed.get_mut(&key.namespace) else { return false };
        let Some(placed) = here.remove(&key.name) else { return false };
        if here.is_empty() {
            self.placed.remove(&key.namespace);
        }
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.leave(&placed.view);
        }
        true
    }

    /// Whether the pod with this uid is assumed to be on a node.
    pub fn is_assumed(&self, key: &Key, uid: &str) -> bool {
        let placed = self.placed.get(&key.namespace).and_then(|here| here.get(&key.name));
        placed.is_some_and(|p| p.assumed && *p.view.object.meta.uid == *uid)
    }

    /// The pods of a namespace that are on nodes, and on which.
    pub fn placed_in(&self, namespace: &str) -> impl Iterator<Item = (&PodView, &Arc<str>)> {
        self.placed.get(namespace).into_iter().flat_map(HashMap::values).map(|p| (&*p.view, &p.node))
    }

    /// Forgets all pods but the assumed ones.
    pub fn clear_pods(&mut self) {
        let known = self.placed.values().flat_map(HashMap::values).filter(|p| !p.assumed);
        let keys: Vec<Key> = known.map(|p| p.view.key.clone()).collect();
        for key in &keys {
            self.remove_pod(key);
        }
    }
}
