//! Whether a pod may be on a Node, as the scheduler, the taint eviction and the node itself decide it alike
//! (Kubernetes shares this as `k8s.io/component-helpers/scheduling/corev1`).
//!
//! Invariant: everything here is pure, and asks nothing but the pod and the Node that it is given.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::base::labels::{Op, Requirement};
use crate::base::object::Object;

/// Why a pod does not want a Node, in the scheduler's words, which nodes use too.
pub const AFFINITY_MISMATCH: &str = "node(s) didn't match Pod's node affinity/selector";
/// Why a pod cannot have its host ports on a Node.
pub const PORTS_TAKEN: &str = "node(s) didn't have free ports for the requested pod ports";

/// A host port: address (empty: all), protocol, number.
pub type HostPort = (String, String, i32);

/// The host ports of the containers that run beside one another.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    let ports = ports.into_iter().filter(|p| p.host_port.unwrap_or(0) > 0).map(|p| {
        let ip = p.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
        (ip, p.protocol.clone().unwrap_or_else(|| "TCP".into()), p.host_port.unwrap_or(0))
    });
    ports.collect()
}

/// Whether one Node cannot have these beside those that are taken. An empty address means every address.
///
/// Its work grows with both, not with their product: pods may name tens of thousands of ports.
pub fn collide<'a>(wanted: &[HostPort], taken: impl IntoIterator<Item = &'a HostPort>) -> bool {
    if wanted.is_empty() {
        return false;
    }
    let mut addresses: HashMap<(&str, i32), HashSet<&str>> = HashMap::new();
    for (address, protocol, number) in wanted {
        addresses.entry((protocol, *number)).or_default().insert(address);
    }
    taken.into_iter().any(|(address, protocol, number)| {
        let here = addresses.get(&(protocol.as_str(), *number));
        here.is_some_and(|here| address.is_empty() || here.contains("") || here.contains(address.as_str()))
    })
}

/// What a pod says of the Nodes that it wants.
pub fn node_affinity(pod: &Pod) -> Option<&NodeAffinity> {
    pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// Whether the pod's node selector and required affinity allow the Node.
pub fn is_wanted(pod: &Pod, node: &Object) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = &node.meta.labels;
    let selected = spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k.as_str()).is_some_and(|l| **l == **v));
    let required = node_affinity(pod).and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|s| s.node_selector_terms.iter().any(|t| term_matches(t, node)))
}

/// Whether a Node meets all requirements of a term. A term without requirements matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &Object) -> bool {
    let (labels, fields) = (term.match_expressions.iter().flatten(), term.match_fields.iter().flatten());
    let empty = labels.clone().next().is_none() && fields.clone().next().is_none();
    let label = |key: &str| node.meta.labels.get(key).map(|v| &**v);
    let field = |key: &str| (key == "metadata.name").then_some(&*node.meta.name);
    !empty
        && labels.into_iter().all(|r| requirement(r).is_some_and(|x| x.matches(label(&r.key))))
        && fields.into_iter().all(|r| requirement(r).is_some_and(|x| x.matches(field(&r.key))))
}

fn requirement(r: &NodeSelectorRequirement) -> Option<Requirement> {
    let op = Op::named(&r.operator)?;
    Some(Requirement { key: r.key.clone(), op, values: r.values.clone().unwrap_or_default() })
}

/// Whether a pod tolerates a taint.
pub fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    let all = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    all.into_iter().any(|t| is_tolerated_by(t, taint))
}

/// Whether one toleration is for a taint.
pub fn is_tolerated_by(t: &Toleration, taint: &Taint) -> bool {
    let (own_key, own_effect) = (t.key.as_deref().unwrap_or(""), t.effect.as_deref().unwrap_or(""));
    let (own_value, value) = (t.value.as_deref().unwrap_or(""), taint.value.as_deref().unwrap_or(""));
    if (!own_effect.is_empty() && own_effect != taint.effect) || (!own_key.is_empty() && own_key != taint.key) {
        return false;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    match t.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Lt" => number(value).zip(number(own_value)).is_some_and(|(taint, own)| taint < own),
        "Gt" => number(value).zip(number(own_value)).is_some_and(|(taint, own)| taint > own),
        _ => !own_key.is_empty() && own_value == value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, protocol: &str, number: i32) -> HostPort {
        (address.into(), protocol.into(), number)
    }

    #[test]
    fn one_port_of_one_address_is_one_pods() {
        let taken = [port("192.0.2.1", "TCP", 80), port("", "UDP", 53)];
        let collides = |wanted: HostPort| collide(&[port("", "TCP", 1), wanted], &taken);
        assert!(collides(port("", "TCP", 80)) && collides(port("192.0.2.1", "TCP", 80)));
        assert!(!collides(port("192.0.2.2", "TCP", 80)) && !collides(port("", "UDP", 80)));
        assert!(collides(port("192.0.2.9", "UDP", 53)), "all addresses are taken");
        assert!(!collide(&[], &taken) && !collide(&taken, &[]));
    }

    #[test]
    fn pods_with_very_many_ports_are_compared_all_the_same() {
        let of = |address: &str| -> Vec<HostPort> {
            (0..200_000).map(|n| port(&format!("{address}.{n}"), "TCP", 80)).collect()
        };
        // In pairs this would be 40,000,000,000 steps.
        assert!(!collide(&of("a"), &of("b")));
    }
}
