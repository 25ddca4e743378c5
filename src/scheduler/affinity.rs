//! What a pod says of others: terms that mean pods by their labels and namespaces, and domains of nodes.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, WeightedPodAffinityTerm};

use crate::apimachinery::label_selector::selector_of;
use crate::base::labels::{Labels, Op, Requirement, Selector};
use crate::base::object::Object;

/// What a required term of a pod counts for others that it means.
const HARD_WEIGHT: i64 = 1;

/// Pods of some namespaces with some labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Who {
    namespaces: BTreeSet<Box<str>>,
    /// And those of namespaces with such labels.
    of_namespaces: Option<Selector>,
    /// `None` means no pod.
    selector: Option<Selector>,
}

/// Pods that meet all descriptions, by the domains of a topology.
///
/// The required terms of a pod share their descriptions: there may be very many of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    who: Arc<[Who]>,
    /// Of the descriptions, made once.
    hash: u64,
    pub topology: Box<str>,
}

/// What a pod says of others.
#[derive(Clone, Debug, Default)]
pub struct Affinity {
    /// Where pods must be that meet all of its required terms: once for each topology that these name.
    pub required: Vec<Arc<Term>>,
    /// Where no such pods may be.
    pub repelled: Vec<Arc<Term>>,
    /// Where such pods should be, or should not.
    pub preferred: Vec<(Arc<Term>, i64)>,
    /// What it counts for others: its preferences, and its required terms one by one.
    pub pulls: Vec<(Arc<Term>, i64)>,
}

// === impl Affinity ===

impl Affinity {
    /// What a pod says; `None`: nothing.
    pub fn of(pod: &Pod, namespace: &str) -> Option<Box<Self>> {
        let all = pod.spec.as_ref()?.affinity.as_ref()?;
        let (near, far) = (all.pod_affinity.as_ref(), all.pod_anti_affinity.as_ref());
        if near.is_none() && far.is_none() {
            return None;
        }
        let who = |term: &PodAffinityTerm| Who::of(term, namespace);
        let alone = |term: &PodAffinityTerm| {
            let who = vec![who(term)].into();
            Arc::new(Term { hash: hash(&who), who, topology: (*term.topology_key).into() })
        };
        let weighted = |all: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(Arc<Term>, i64)> {
            let all = all.into_iter().flatten().filter(|t| t.weight != 0);
            all.map(|t| (alone(&t.pod_affinity_term), sign * i64::from(t.weight))).collect()
        };
        let required = near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let required: Vec<&PodAffinityTerm> = required.into_iter().flatten().collect();
        let repelled = far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let mut preferred =
            weighted(near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        preferred
            .extend(weighted(far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), -1));
        let mut pulls = preferred.clone();
        pulls.extend(required.iter().map(|term| (alone(term), HARD_WEIGHT)));
        let everyone: Arc<[Who]> = required.iter().map(|term| who(term)).collect();
        let hash = hash(&everyone);
        let mut topologies: Vec<&str> = required.iter().map(|term| term.topology_key.as_str()).collect();
        topologies.sort_unstable();
        topologies.dedup();
        let together = |topology: &str| Term { who: everyone.clone(), hash, topology: topology.into() };
        Some(Box::new(Self {
            required: topologies.into_iter().map(together).map(Arc::new).collect(),
            repelled: repelled.into_iter().flatten().map(alone).collect(),
            preferred,
            pulls,
        }))
    }

    /// The terms of which it must be known whom they mean.
    pub fn asked(&self) -> impl Iterator<Item = &Arc<Term>> {
        self.required.iter().chain(&self.repelled).chain(self.preferred.iter().map(|(term, _)| term))
    }
}

// === impl Who ===

impl Who {
    fn of(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<Box<str>> = term.namespaces.iter().flatten().map(|n| n.as_str().into()).collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.into());
        }
        let of_namespaces = term.namespace_selector.as_ref().map(selector_of);
        let mut selector = term.label_selector.as_ref().map(selector_of);
        if let Some(Selector(all)) = &mut selector {
            all.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Self { namespaces, of_namespaces, selector }
    }

    fn means(&self, pod: &Object, namespaces: &HashMap<Box<str>, Labels>) -> bool {
        let is_of = || {
            let in_selected = |selector: &Selector| {
                selector.is_empty()
                    || namespaces.get(&*pod.meta.namespace).is_some_and(|labels| selector.matches(labels))
            };
            self.namespaces.contains(&*pod.meta.namespace) || self.of_namespaces.as_ref().is_some_and(in_selected)
        };
        self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.meta.labels)) && is_of()
    }

    /// A requirement that names values of a label.
    fn handle(&self) -> Option<&Requirement> {
        self.selector.iter().flat_map(|selector| &selector.0).find(|r| r.op == Op::In)
    }
}

// === impl Term ===

impl Hash for Term {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.hash(state);
        self.topology.hash(state);
    }
}

fn hash(who: &Arc<[Who]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    who.hash(&mut hasher);
    hasher.finish()
}

/// Answers of terms whether they mean a pod, where namespaces have these labels. Those that come after one another and share
/// their descriptions are asked once.
pub fn asking<'a>(pod: &'a Object, namespaces: &'a HashMap<Box<str>, Labels>) -> impl FnMut(&Term) -> bool + 'a {
    let mut last = (std::ptr::null(), false);
    move |term| {
        if last.0 != term.who.as_ptr() {
            last = (term.who.as_ptr(), term.means(pod, namespaces));
        }
        last.1
    }
}

impl Term {
    /// Whether it means a pod, where namespaces have these labels.
    pub fn means(&self, pod: &Object, namespaces: &HashMap<Box<str>, Labels>) -> bool {
        self.who.iter().all(|who| who.means(pod, namespaces))
    }

    /// A requirement that all pods meet which it means, and that names values of a label.
    pub fn handle(&self) -> Option<&Requirement> {
        self.who.iter().find_map(Who::handle)
    }

    /// The namespaces that it is about; `None`: it depends on their labels.
    pub fn namespaces(&self) -> Option<impl Iterator<Item = &str>> {
        // All descriptions must be met: one of them says where to look.
        let plain = self.who.iter().find(|who| who.of_namespaces.is_none());
        plain.map(|who| who.namespaces.iter().map(|n| &**n))
    }

    /// Whether whom it means depends on the labels of namespaces.
    pub fn is_of_labelled(&self) -> bool {
        self.who.iter().any(|who| who.of_namespaces.is_some())
    }

    /// The domain of a node with these labels.
    pub fn domain<'l>(&self, labels: &'l Labels) -> Option<&'l str> {
        labels.get(&*self.topology).map(|domain| &**domain)
    }
}
