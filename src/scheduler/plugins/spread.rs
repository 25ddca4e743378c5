//! Pods that are alike go to different nodes and zones, by the constraints that Kubernetes' scheduler has for pods that name
//! none: what a node already has of the pod's like counts against it.
//!
//! A pod's own constraints take their place where it has some: wishes (`ScheduleAnyway`) are rated, and what must hold
//! (`DoNotSchedule`) keeps nodes out whose domain would have more pods than the emptiest one by too many.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde_json::json;

use super::taint::repels;
use super::{Cycle, Filter, Plugin, Rating, Refusal, SCORE_MAX};
use crate::apimachinery::placement::is_wanted;
use crate::base::labels::{Op, Requirement, Selector};
use crate::scheduler::snapshot::{NodeView, PodView, Snapshot};

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The constraints of pods that name none: topology and skew.
const DEFAULTS: [(&str, i32); 2] = [(HOSTNAME, 3), (ZONE, 5)];
const WISH: &str = "ScheduleAnyway";
const RULE: &str = "DoNotSchedule";
const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
const UNLABELLED: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// The plugin.
#[derive(Debug)]
pub struct PodTopologySpread;

/// One constraint, and what is known of its domains.
struct Constraint {
    topology: String,
    skew_max: i32,
    /// `None` selects nothing.
    selector: Option<Selector>,
    honours_affinity: bool,
    honours_taints: bool,
    /// Matching pods by node, for the topology of nodes.
    by_node: HashMap<String, i64>,
    /// Matching pods by domain, for any other.
    by_domain: HashMap<String, i64>,
    /// The more domains, the fewer pods each has; this keeps small topologies from being lost among large ones.
    weight: f64,
}

/// A constraint that must hold.
struct Rule {
    constraint: Constraint,
    skew_max: i64,
    /// How many pods are matched more by placing this one.
    own: i64,
    /// Matching pods by domain, of all domains that count.
    by_domain: HashMap<String, i64>,
    /// How many domains there ought to be.
    domains_min: usize,
    /// How many the emptiest domain has.
    least: i64,
}

struct Rules<'c> {
    pod: &'c PodView,
    all: Vec<Rule>,
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

    fn pre_filter<'c>(&self, pod: &'c PodView, snapshot: &'c Snapshot) -> Option<Box<dyn Filter + 'c>> {
        let own = pod.pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten());
        let rules: Vec<_> = own.filter(|own| own.when_unsatisfiable == RULE).collect();
        if rules.is_empty() {
            return None;
        }
        // A node that lacks one of the topologies is in no domain of the others either.
        let complete = |n: &&NodeView| rules.iter().all(|c| domain(n, &c.topology_key).is_some());
        let counted: Vec<&NodeView> = snapshot.nodes.values().filter(complete).collect();
        Some(Box::new(Rules { pod, all: rules.iter().map(|own| Rule::of(own, pod, snapshot, &counted)).collect() }))
    }

    fn pre_score<'c>(&self, cycle: &'c Cycle<'c>, nodes: &[&'c NodeView]) -> Option<Box<dyn Rating + 'c>> {
        let own = cycle.pod.pod.spec.iter().flat_map(|s| s.topology_spread_constraints.iter().flatten());
        let own: Vec<_> = own.into_iter().collect();
        let mut constraints: Vec<Constraint> = match (own.is_empty(), cycle.alike.is_empty()) {
            (true, true) => return None,
            (true, false) => {
                DEFAULTS.iter().map(|(t, skew)| Constraint::new(t, *skew, Some(cycle.alike.clone()))).collect()
            }
            (false, _) => {
                let wishes = own.iter().filter(|own| own.when_unsatisfiable == WISH);
                wishes.map(|own| Constraint::of(own, cycle.pod)).collect()
            }
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
    fn new(topology: &str, skew_max: i32, selector: Option<Selector>) -> Self {
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

    /// A pod's own.
    fn of(own: &TopologySpreadConstraint, pod: &PodView) -> Self {
        let mut selector = own.label_selector.as_ref().and_then(|s| Selector::from_object(&json!(s)).ok());
        for key in own.match_label_keys.iter().flatten() {
            if let (Some(selector), Some(value)) = (&mut selector, pod.object.meta.labels.get(key.as_str())) {
                let values = vec![value.to_string()];
                selector.0.push(Requirement { key: key.clone(), op: Op::In, values });
            }
        }
        let mut constraint = Self::new(&own.topology_key, own.max_skew, selector);
        constraint.honours_affinity = own.node_affinity_policy.as_deref() != Some("Ignore");
        constraint.honours_taints = own.node_taints_policy.as_deref() == Some("Honor");
        constraint
    }

    fn matches(&self, pod: &PodView) -> bool {
        self.selector.as_ref().is_some_and(|selector| selector.matches(&pod.object.meta.labels))
    }

    /// The pods of the namespace that it selects, by node.
    fn placed(&self, namespace: &str, snapshot: &Snapshot) -> HashMap<String, i64> {
        let mut by_node: HashMap<String, i64> = HashMap::new();
        for (pod, node) in snapshot.placed_in(namespace) {
            // What is on its way out makes room.
            if pod.object.meta.deleted.is_none() && self.matches(pod) {
                *by_node.entry(node.to_string()).or_default() += 1;
            }
        }
        by_node
    }

    /// Counts the matching pods: on each node, or in each domain that one of the `rated` nodes is in.
    fn count(&mut self, cycle: &Cycle<'_>, rated: &[&NodeView], counted: &[&NodeView]) {
        let by_node = self.placed(&cycle.pod.key.namespace, cycle.snapshot);
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
        (!self.honours_affinity || is_wanted(&pod.pod, &node.object)) && (!self.honours_taints || !repels(pod, node))
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

// === impl Rule ===

impl Rule {
    /// Counts the matching pods in each domain of the nodes that count.
    fn of(own: &TopologySpreadConstraint, pod: &PodView, snapshot: &Snapshot, counted: &[&NodeView]) -> Self {
        let constraint = Constraint::of(own, pod);
        let by_node = constraint.placed(&pod.key.namespace, snapshot);
        let mut by_domain: HashMap<String, i64> = HashMap::new();
        for node in counted.iter().filter(|node| constraint.includes(pod, node)) {
            let here = by_node.get(&*node.object.meta.name).copied().unwrap_or(0);
            let domain = domain(node, &own.topology_key).unwrap_or("");
            *by_domain.entry(domain.to_owned()).or_default() += here;
        }
        let domains_min = usize::try_from(own.min_domains.unwrap_or(1)).unwrap_or(1);
        let (skew_max, own) = (i64::from(own.max_skew), i64::from(constraint.matches(pod)));
        let mut rule = Self { constraint, skew_max, own, by_domain, domains_min, least: 0 };
        rule.find_least();
        rule
    }

    fn find_least(&mut self) {
        // Too few domains count as if there were an empty one beside them.
        let is_whole = self.by_domain.len() >= self.domains_min;
        self.least = self.by_domain.values().min().copied().filter(|_| is_whole).unwrap_or(0);
    }

    /// Counts a pod of the incoming one's namespace more, or less.
    fn count(&mut self, pod: &PodView, other: &PodView, node: &NodeView, change: i64) {
        let is_counted = other.object.meta.deleted.is_none() && self.constraint.matches(other);
        if !is_counted || !self.constraint.includes(pod, node) {
            return;
        }
        let here = domain(node, &self.constraint.topology).and_then(|domain| self.by_domain.get_mut(domain));
        if let Some(here) = here {
            *here += change;
            self.find_least();
        }
    }
}

// === impl Rules ===

impl Rules<'_> {
    fn count(&mut self, other: &PodView, node: &NodeView, change: i64) {
        let is_complete = self.all.iter().all(|rule| domain(node, &rule.constraint.topology).is_some());
        if is_complete && other.key.namespace == self.pod.key.namespace {
            self.all.iter_mut().for_each(|rule| rule.count(self.pod, other, node, change));
        }
    }
}

impl Filter for Rules<'_> {
    fn filter(&self, node: &NodeView) -> Refusal {
        for rule in &self.all {
            let Some(domain) = domain(node, &rule.constraint.topology) else {
                return Refusal::hopeless_if(true, UNLABELLED);
            };
            let here = rule.by_domain.get(domain).copied().unwrap_or(0);
            if here + rule.own - rule.least > rule.skew_max {
                return Refusal { reasons: vec![UNEVEN.to_owned()], preemption_helps: true };
            }
        }
        Refusal::NONE
    }

    fn add(&mut self, other: &PodView, node: &NodeView) {
        self.count(other, node, 1);
    }

    fn remove(&mut self, other: &PodView, node: &NodeView) {
        self.count(other, node, -1);
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
