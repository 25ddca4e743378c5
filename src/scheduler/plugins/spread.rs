//! Pods that are alike go to different nodes and zones, by the constraints that Kubernetes' scheduler has for pods that name
//! none: what a node already has of the pod's like counts against it.
//!
//! A pod's own constraints take their place where it has some; only those that are wishes (`ScheduleAnyway`) are rated.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde_json::json;

use super::affinity::admits;
use super::taint::repels;
use super::{Cycle, Plugin, Rating, SCORE_MAX};
use crate::base::labels::{Op, Requirement, Selector};
use crate::scheduler::snapshot::{NodeView, PodView};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The constraints of pods that name none: topology and skew.
const DEFAULTS: [(&str, i32); 2] = [(HOSTNAME, 3), (ZONE, 5)];

/// The plugin.
#[derive(Debug)]
pub struct PodTopologySpread;

/// One constraint, and what is known of its domains.
struct Constraint {
    topology: String,
    skew_max: i32,
    selector: Selector,
    honours_affinity: bool,
    honours_taints: bool,
    /// Matching pods by node, for the topology of nodes.
    by_node: HashMap<String, i64>,
    /// Matching pods by domain, for any other.
    by_domain: HashMap<String, i64>,
    /// The more domains, the fewer pods each has; this keeps small topologies from being lost among large ones.
    weight: f64,
}

struct Spread {
    constraints: Vec<Constraint>,
    /// Nodes that lack a topology which the pod itself asks for.
    ignored: HashSet<String>,
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let own = cycle.pod.pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten());
        let own: Vec<_> = own.into_iter().collect();
        let mut constraints: Vec<Constraint> = match (own.is_empty(), cycle.alike.is_empty()) {
            (true, true) => return None,
            (true, false) => DEFAULTS.iter().map(|(t, skew)| Constraint::new(t, *skew, cycle.alike.clone())).collect(),
            (false, _) => own.iter().filter_map(|c| Constraint::of(c, cycle.pod)).collect(),
        };
        if constraints.is_empty() {
            return None;
        }
        // By default, a node without a zone still is a node.
        let complete = |n: &NodeView| own.is_empty() || constraints.iter().all(|c| domain(n, &c.topology).is_some());
        let rated: Vec<&NodeView> = nodes.iter().copied().filter(|n| complete(n)).collect();
        let ignored = nodes.iter().filter(|n| !complete(n)).map(|n| n.object.meta.name.to_string()).collect();
        let counted: Vec<&NodeView> = cycle.snapshot.nodes.values().filter(|n| complete(n)).collect();
        constraints.iter_mut().for_each(|c| c.count(cycle, &rated, &counted));
        Some(Box::new(Spread { constraints, ignored }))
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// The domain of a node.
fn domain<'n>(node: &'n NodeView, topology: &str) -> Option<&'n str> {
    node.object.meta.labels.get(topology).map(|v| &**v)
}

// === impl Constraint ===

impl Constraint {
    fn new(topology: &str, skew_max: i32, selector: Selector) -> Self {
        Self {
            topology: topology.to_owned(),
            skew_max,
            selector,
            honours_affinity: true,
            honours_taints: false,
            by_node: HashMap::new(),
            by_domain: HashMap::new(),
            weight: 0.0,
        }
    }

    /// A pod's own, if it is a wish.
    fn of(own: &TopologySpreadConstraint, pod: &PodView) -> Option<Self> {
        if own.when_unsatisfiable != "ScheduleAnyway" {
            return None;
        }
        // No selector selects nothing.
        let selector = Selector::from_object(&json!(own.label_selector.as_ref()?)).ok()?;
        let mut constraint = Self::new(&own.topology_key, own.max_skew, selector);
        for key in own.match_label_keys.iter().flatten() {
            if let Some(value) = pod.object.meta.labels.get(key.as_str()) {
                let values = vec![value.to_string()];
                constraint.selector.0.push(Requirement { key: key.clone(), op: Op::In, values });
            }
        }
        constraint.honours_affinity = own.node_affinity_policy.as_deref() != Some("Ignore");
        constraint.honours_taints = own.node_taints_policy.as_deref() == Some("Honor");
        Some(constraint)
    }

    /// Counts the matching pods: on each node, or in each domain that one of the `rated` nodes is in.
    fn count(&mut self, cycle: &Cycle<'_>, rated: &[&NodeView], counted: &[&NodeView]) {
        let namespace = &cycle.pod.key.namespace;
        let mut by_node: HashMap<String, i64> = HashMap::new();
        for (pod, node) in cycle.snapshot.placed_in(namespace) {
            // What is on its way out makes room.
            if pod.object.meta.deleted.is_none() && self.selector.matches(&pod.object.meta.labels) {
                *by_node.entry(node.to_string()).or_default() += 1;
            }
        }
        let mut domains = rated.len();
        if self.topology == HOSTNAME {
            self.by_node = by_node;
        } else {
            let of = |node: &NodeView| domain(node, &self.topology).unwrap_or("").to_owned();
            let mut by_domain: HashMap<String, i64> = rated.iter().map(|n| (of(n), 0)).collect();
            domains = by_domain.len();
            for node in counted.iter().filter(|n| self.includes(cycle.pod, n)) {
                if let (Some(count), Some(here)) = (by_domain.get_mut(&of(node)), by_node.get(&*node.object.meta.name))
                {
                    *count += here;
                }
            }
            self.by_domain = by_domain;
        }
        self.weight = ((domains + 2) as f64).ln();
    }

    fn includes(&self, pod: &PodView, node: &NodeView) -> bool {
        (!self.honours_affinity || admits(pod, node)) && (!self.honours_taints || !repels(pod, node))
    }

    fn score(&self, node: &NodeView) -> f64 {
        let Some(domain) = domain(node, &self.topology) else { return 0.0 };
        let count = match self.topology.as_str() {
            HOSTNAME => self.by_node.get(&*node.object.meta.name),
            _ => self.by_domain.get(domain),
        };
        // The skew that is allowed makes differences count less.
        count.copied().unwrap_or(0) as f64 * self.weight + f64::from(self.skew_max - 1)
    }
}

// === impl Spread ===

impl Rating for Spread {
    #[allow(clippy::cast_possible_truncation)] // Far from it.
    fn score(&self, node: &NodeView) -> i64 {
        if self.ignored.contains(&*node.object.meta.name) {
            return 0;
        }
        self.constraints.iter().map(|c| c.score(node)).sum::<f64>().round() as i64
    }

    fn normalize(&self, nodes: &[&NodeView], scores: &mut [i64]) {
        let is_rated = |n: &NodeView| !self.ignored.contains(&*n.object.meta.name);
        let rated = || nodes.iter().zip(scores.iter()).filter(|(n, _)| is_rated(n)).map(|(_, s)| *s);
        let (least, most) = (rated().min().unwrap_or(0), rated().max().unwrap_or(0));
        for (node, score) in nodes.iter().zip(scores.iter_mut()) {
            *score = match (is_rated(node), most) {
                (false, _) => 0,
                (true, 0) => SCORE_MAX,
                (true, _) => SCORE_MAX * (most + least - *score) / most,
            };
        }
    }
}
