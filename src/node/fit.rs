//! Whether a pod that is bound to this node can be here: the checks of the kubelet's admission that ask for the Node and for
//! the other pods. The scheduler asks the same before it binds; whoever binds a pod without it is told here.
//!
//! Order, reasons and messages are the kubelet's. Invariant: [`refuse`] is pure, and what runs is never asked again.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};

use super::admit::Refusal;
use super::capacity::Capacity;
use super::resize::{granted, with};
use crate::apimachinery::placement::{AFFINITY_MISMATCH, PORTS_TAKEN, collide, host_ports, is_wanted, tolerates};
use crate::apimachinery::resources::{Resources, requests};
use crate::base::object::Object;

const TAINTED: &str = "node(s) had taints that the pod didn't tolerate";
/// What every node has, in the order in which the kubelet looks at it.
const BASIC: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Why the pod cannot be on this node beside the `others` that are.
///
/// A pod that was admitted `before` (the machine was started anew) is not asked again whether the Node suits it.
pub fn refuse(pod: &Pod, before: bool, node: &Object, own: Capacity, others: &[&Pod]) -> Option<Refusal> {
    let typed = node.typed::<NodeObject>().ok()?;
    let other_system =
        pod.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os")).is_some_and(|os| os != "linux");
    if other_system {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label".to_owned();
        return Some(Refusal { reason: "PodOSSelectorNodeLabelDoesNotMatch".into(), message });
    }
    room(pod, &allocatable(&typed, own), others)
        .or_else(|| predicate("NodeAffinity", AFFINITY_MISMATCH, !before && !is_wanted(pod, node)))
        .or_else(|| predicate("NodePorts", PORTS_TAKEN, has_taken_ports(pod, others)))
        .or_else(|| predicate("TaintToleration", TAINTED, !before && is_repelled(pod, &typed)))
}

fn predicate(name: &'static str, why: &str, fails: bool) -> Option<Refusal> {
    fails.then(|| Refusal { reason: name.into(), message: format!("Predicate {name} failed: {why}") })
}

/// What the Node says that it has for pods, and what this machine has where the Node does not say it yet.
fn allocatable(node: &NodeObject, own: Capacity) -> Resources {
    let own: BTreeMap<_, _> = serde_json::from_value(own.to_json()).unwrap_or_default();
    let mut all = Resources::of(Some(&own));
    let said = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    all.0.extend(Resources::of(said).0);
    all
}

fn room(pod: &Pod, all: &Resources, others: &[&Pod]) -> Option<Refusal> {
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count >= all.get("pods") {
        return Some(out_of("pods", 1, count, all.get("pods")));
    }
    let asked = requests(pod);
    let mut used = Resources::default();
    for other in others {
        used.add(&requests(&with(other, &granted(other))));
    }
    // What no node knows of is somebody else's to count.
    let rest = asked.0.keys().map(String::as_str).filter(|name| !BASIC.contains(name));
    let rest = rest.filter(|name| !is_extended(name) || all.0.contains_key(*name));
    BASIC.into_iter().chain(rest).find_map(|name| {
        let (asked, used, all) = (asked.get(name), used.get(name), all.get(name));
        (asked > 0 && asked > all.saturating_sub(used)).then(|| out_of(name, asked, used, all))
    })
}

fn out_of(name: &str, asked: i64, used: i64, all: i64) -> Refusal {
    let message =
        format!("Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {all}");
    Refusal { reason: format!("OutOf{name}").into(), message }
}

/// Of a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
        && !name.starts_with("requests.")
}

fn has_taken_ports(pod: &Pod, others: &[&Pod]) -> bool {
    let wanted = host_ports(pod);
    let taken: Vec<_> =
        if wanted.is_empty() { Vec::new() } else { others.iter().flat_map(|o| host_ports(o)).collect() };
    collide(&wanted, &taken)
}

/// Only what would drive it out again at once counts: a cordoned node runs what is bound to it.
fn is_repelled(pod: &Pod, node: &NodeObject) -> bool {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.into_iter().any(|taint| taint.effect == "NoExecute" && !tolerates(pod, taint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const OWN: Capacity = Capacity { cpus: 2, memory_bytes: 1 << 30, disk_bytes: 1 << 34 };

    fn node(spec: Value, allocatable: Value) -> Object {
        let value = json!({"metadata": {"name": "here", "uid": "u", "labels": {"disk": "fast", "kubernetes.io/os": "linux"}},
            "spec": spec, "status": {"allocatable": allocatable}});
        Object::new("/nodes/here".into(), 1, &value, Box::default())
    }

    fn pod(spec: Value) -> Pod {
        let mut value = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        for (key, part) in spec.as_object().unwrap() {
            value["spec"][key] = part.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn asks(requests: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": requests}}]}))
    }

    fn ports(ports: Value) -> Pod {
        pod(json!({"containers": [{"name": "c", "ports": ports}]}))
    }

    fn said(pod: &Pod, node: &Object, others: &[&Pod]) -> Option<(String, String)> {
        refuse(pod, false, node, OWN, others).map(|r| (r.reason.into_owned(), r.message))
    }

    fn some(reason: &str, message: &str) -> Option<(String, String)> {
        Some((reason.to_owned(), message.to_owned()))
    }

    #[test]
    fn who_asks_for_more_than_is_left_is_out_of_it() {
        let node = node(json!({}), json!({"cpu": "2", "memory": "1Gi", "pods": "2", "example.com/fish": "3"}));
        let one = asks(json!({"cpu": "1500m", "memory": "600Mi", "example.com/fish": "2"}));
        assert_eq!(said(&one, &node, &[]), None);
        let out = |name: &str, asked: i64, used: i64, all: i64| {
            let why = "Node didn't have enough resource";
            some(&format!("OutOf{name}"), &format!("{why}: {name}, requested: {asked}, used: {used}, capacity: {all}"))
        };
        assert_eq!(said(&asks(json!({"cpu": "501m"})), &node, &[&one]), out("cpu", 501, 1500, 2000));
        assert_eq!(said(&asks(json!({"cpu": "500m"})), &node, &[&one]), None);
        let memory = said(&asks(json!({"memory": "425Mi"})), &node, &[&one]);
        assert_eq!(memory, out("memory", 425 << 20, 600 << 20, 1 << 30));
        assert_eq!(said(&asks(json!({"example.com/fish": "2"})), &node, &[&one]), out("example.com/fish", 2, 2, 3));
        assert_eq!(said(&asks(json!({"example.com/birds": "2"})), &node, &[&one]), None, "known to no node");
        assert_eq!(said(&asks(json!({"hugepages-2Mi": "2Mi"})), &node, &[]), out("hugepages-2Mi", 2 << 20, 0, 0));
        let disk = said(&asks(json!({"ephemeral-storage": "17Gi"})), &node, &[]);
        assert_eq!(disk, out("ephemeral-storage", 17 << 30, 0, 16 << 30), "what the machine has");
        assert_eq!(said(&pod(json!({})), &node, &[&one, &one]), out("pods", 1, 2, 2));
        // A pod that has got more than it began with counts with that, whatever it wants now.
        let mut grown = asks(json!({"cpu": "100m"}));
        grown.status = serde_json::from_value(json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": true, "restartCount": 0, "resources": {}, "allocatedResources": {"cpu": "1900m"}}]}))
        .unwrap();
        assert_eq!(said(&asks(json!({"cpu": "101m"})), &node, &[&grown]), out("cpu", 101, 1900, 2000));
    }

    #[test]
    fn a_node_that_has_said_nothing_yet_has_what_its_machine_has() {
        assert_eq!(said(&asks(json!({"cpu": "2"})), &node(json!({}), json!({})), &[]), None);
        assert_eq!(said(&asks(json!({"cpu": "3"})), &node(json!({}), json!({})), &[]).unwrap().0, "OutOfcpu");
    }

    #[test]
    fn a_host_port_is_given_once() {
        let node = node(json!({}), json!({}));
        let one = ports(json!([{"containerPort": 1, "hostPort": 8080}]));
        let why = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        assert_eq!(said(&one, &node, &[&one]), some("NodePorts", why));
        assert_eq!(said(&one, &node, &[]), None);
        let udp = ports(json!([{"containerPort": 1, "hostPort": 8080, "protocol": "UDP"}]));
        assert_eq!(said(&udp, &node, &[&one]), None);
        let at = |ip: &str| ports(json!([{"containerPort": 1, "hostPort": 8080, "hostIP": ip}]));
        assert!(said(&at("192.0.2.1"), &node, &[&one]).is_some());
        assert_eq!(said(&at("192.0.2.1"), &node, &[&at("192.0.2.2")]), None);
    }

    #[test]
    fn a_pod_is_where_it_wants_to_be_and_is_not_driven_out() {
        let plain = node(json!({"unschedulable": true, "taints": [{"key": "k", "effect": "NoSchedule"}]}), json!({}));
        let elsewhere = pod(json!({"nodeSelector": {"disk": "slow"}}));
        let why = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        assert_eq!(said(&elsewhere, &plain, &[]), some("NodeAffinity", why));
        assert_eq!(
            said(&pod(json!({"nodeSelector": {"disk": "fast"}})), &plain, &[]),
            None,
            "NoSchedule is the scheduler's"
        );
        let tainted = node(json!({"taints": [{"key": "k", "value": "v", "effect": "NoExecute"}]}), json!({}));
        let why = "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate";
        assert_eq!(said(&pod(json!({})), &tainted, &[]), some("TaintToleration", why));
        assert_eq!(said(&pod(json!({"tolerations": [{"operator": "Exists"}]})), &tainted, &[]), None);
        for (pod, node) in [(&elsewhere, &plain), (&pod(json!({})), &tainted)] {
            assert_eq!(refuse(pod, true, node, OWN, &[]), None, "it was admitted before");
        }
        let mut other = pod(json!({}));
        other.metadata.labels = Some([("kubernetes.io/os".to_owned(), "windows".to_owned())].into());
        assert_eq!(said(&other, &plain, &[]).unwrap().0, "PodOSSelectorNodeLabelDoesNotMatch");
    }
}
