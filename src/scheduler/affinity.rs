//! What a pod says of others: terms that mean pods by their labels and namespaces, and domains of nodes.

use std::collections::{BTreeSet, HashMap};
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Term {
    who: Vec<Who>,
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
        let alone =
            |term: &PodAffinityTerm| Arc::new(Term { who: vec![who(term)], topology: (*term.topology_key).into() });
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
        let everyone: Vec<Who> = required.iter().map(|term| who(term)).collect();
        let together = |term: &&PodAffinityTerm| Term { who: everyone.clone(), topology: (*term.topology_key).into() };
        Some(Box::new(Self {
            required: required.iter().map(together).map(Arc::new).collect(),
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
        let is_plain = self.who.iter().all(|who| who.of_namespaces.is_none());
        is_plain.then(|| self.who.iter().take(1).flat_map(|who| who.namespaces.iter().map(|n| &**n)))
    }

    /// The domain of a node with these labels.
    pub fn domain<'l>(&self, labels: &'l Labels) -> Option<&'l str> {
        labels.get(&*self.topology).map(|domain| &**domain)
    }
}
