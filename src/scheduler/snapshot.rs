//! The picture of nodes and of the pods on them, kept by increments.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::affinity::Term;
use super::nominations::Nominations;
use super::terms::{Counts, Terms, count};
pub use super::view::{NodeView, PodView};
use super::volumes::Volumes;
use crate::base::object::Object;
use crate::reconcile::Key;

/// Everything.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub nodes: BTreeMap<Arc<str>, NodeView>,
    pub volumes: Volumes,
    pub nominations: Nominations,
    pub terms: Terms,
    /// How many nodes have an image.
    images: HashMap<Box<str>, usize>,
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
                self.count_images(&old, false);
                if old.object.meta.labels != object.meta.labels {
                    old.residents.values().for_each(|pod| self.terms.leave(pod, &old.object.meta.labels));
                    old.residents.values().for_each(|pod| self.terms.enter(pod, &object.meta.labels));
                }
                (view.requested, view.weight, view.pods, view.ports) = (old.requested, old.weight, old.pods, old.ports);
                view.residents = old.residents;
            }
            None => {
                let here = self.placed.values().flat_map(HashMap::values).filter(|p| p.node == name);
                here.for_each(|p| view.enter(&p.view));
                view.residents.values().for_each(|pod| self.terms.enter(pod, &object.meta.labels));
            }
        }
        self.count_images(&view, true);
        self.nodes.insert(name, view);
        !alike
    }

    /// Removes a node; its pods stay entered, in case it returns.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(old) = self.nodes.remove(name) {
            self.count_images(&old, false);
            old.residents.values().for_each(|pod| self.terms.leave(pod, &old.object.meta.labels));
        }
    }

    /// How many nodes have an image.
    pub fn nodes_with(&self, image: &str) -> usize {
        self.images.get(image).copied().unwrap_or(0)
    }

    fn count_images(&mut self, node: &NodeView, is_there: bool) {
        for name in node.images.keys() {
            let count = self.images.entry(name.clone()).or_default();
            *count = if is_there { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.images.remove(name);
            }
        }
    }

    /// Counts whom the terms of a pod mean, and goes on counting: what is decided about it, and pods like it, is fast.
    pub fn learn(&mut self, pod: &PodView) {
        let uncounted = self.terms.uncounted(pod);
        if uncounted.is_empty() {
            return;
        }
        self.terms.trim();
        let counts = self.count(&uncounted);
        uncounted.iter().zip(counts).for_each(|(term, counts)| self.terms.count_on(term, counts));
    }

    /// How many pods of each domain a term means.
    pub fn meant(&self, term: &Arc<Term>) -> Cow<'_, Counts> {
        let count = || self.count(std::slice::from_ref(term)).pop().unwrap_or_default();
        self.terms.meant(term).map_or_else(|| Cow::Owned(count()), Cow::Borrowed)
    }

    /// How many pods of each domain each of the terms means.
    fn count(&self, terms: &[Arc<Term>]) -> Vec<Counts> {
        let mut all = vec![Counts::new(); terms.len()];
        let mut note = |placed: &Placed| {
            let Some(node) = self.nodes.get(&placed.node) else { return };
            let mut means = self.terms.asking(&placed.view);
            for (term, counts) in terms.iter().zip(&mut all) {
                let domain = term.domain(&node.object.meta.labels).filter(|_| means(term));
                domain.into_iter().for_each(|domain| count(counts, domain, 1));
            }
        };
        let names: Option<Vec<_>> = terms.iter().map(|term| term.namespaces()).collect();
        match names {
            Some(names) => {
                let names: BTreeSet<&str> = names.into_iter().flatten().collect();
                let here = names.into_iter().filter_map(|name| self.placed.get(name));
                here.flat_map(HashMap::values).for_each(&mut note);
            }
            None => self.placed.values().flat_map(HashMap::values).for_each(&mut note),
        }
        all
    }

    /// Enters a pod on a node. Answers whether that changes what others count there.
    pub fn place(&mut self, view: Arc<PodView>, node: &str, assumed: bool) -> bool {
        let counts = |o: &Object| (o.meta.labels.clone(), o.meta.deleted.is_some());
        let before = self.placed.get(&view.key.namespace).and_then(|here| here.get(&view.key.name));
        let same = before.is_some_and(|p| *p.node == *node && counts(&p.view.object) == counts(&view.object));
        self.remove_pod(&view.key);
        self.nominations.remove(&view.key);
        let node: Arc<str> = node.into();
        if let Some(here) = self.nodes.get_mut(&node) {
            here.enter(&view);
            self.terms.enter(&view, &here.object.meta.labels);
        }
        let (namespace, name) = (view.key.namespace.clone(), view.key.name.clone());
        self.placed.entry(namespace).or_default().insert(name, Placed { view, node, assumed });
        !same
    }

    /// A pod that is on a node.
    pub fn placed(&self, key: &Key) -> Option<&Arc<PodView>> {
        Some(&self.placed.get(&key.namespace)?.get(&key.name)?.view)
    }

    /// Removes a pod; answers it, if it was there.
    pub fn remove_pod(&mut self, key: &Key) -> Option<Arc<PodView>> {
        let here = self.placed.get_mut(&key.namespace)?;
        let placed = here.remove(&key.name)?;
        if here.is_empty() {
            self.placed.remove(&key.namespace);
        }
        if let Some(node) = self.nodes.get_mut(&placed.node) {
            node.leave(&placed.view);
            self.terms.leave(&placed.view, &node.object.meta.labels);
        }
        Some(placed.view)
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
