//! The addresses of pods that network policies name by labels, in EndpointSlices of the policies' namespaces.
//!
//! Nodes hold the policies (`net::policy`) and know no pods but their own. Rules of a namespace that name the same share slices, which
//! belong to no Service. A pod stays in its slice while the number of slices is the same, so that its coming and going is one write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{Context, absent_is_fine, pods};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::json::{list, text};
use crate::base::labels::{Labels, Selector};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::{namespace, pod};
use crate::kinds::discovery::endpointslice;
use crate::kinds::networking::networkpolicy::{self, MANAGER, PEERS, Peers, RULES};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// So many endpoints a slice has about, and half as many when slices become more.
const SLICE_ABOUT: usize = 400;

/// So many selectors of a namespace's policies are looked at: each costs a comparison with each pod.
const SELECTORS_MAX: usize = 1024;

struct NetworkPolicies(Arc<Context>);

/// Peers of rules of one namespace.
struct Group {
    selectors: Vec<(Option<Selector>, Selector)>,
    named_ports: Vec<(String, String)>,
}

/// The controller; its keys are namespaces that have policies or slices of them.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let own = |c: &Changed| vec![Key::new("", &c.object.meta.namespace)];
    let slices = move |c: &Changed| if is_ours(&c.object) { own(c) } else { Vec::new() };
    let (by_pod, by_namespace) = (cx.clone(), cx.clone());
    let pods = move |c: &Changed| match c.previous.as_deref() {
        Some(old) if !c.deleted && !matters(old, &c.object) => Vec::new(),
        _ => concerned(&by_pod, Some(&c.object.meta.namespace)),
    };
    let namespaces = move |c: &Changed| match c.previous.as_ref() {
        Some(old) if old.meta.labels == c.object.meta.labels => Vec::new(),
        _ => concerned(&by_namespace, None),
    };
    Controller::new("network-policy", Arc::new(NetworkPolicies(cx.clone())), cx.clock.clone())
        .watches(&*cx.client, &networkpolicy::KIND, Box::new(own))
        .watches(&*cx.client, &endpointslice::KIND, Box::new(slices))
        .watches(&*cx.client, &pod::KIND, Box::new(pods))
        .watches(&*cx.client, &namespace::KIND, Box::new(namespaces))
}

fn is_ours(slice: &Object) -> bool {
    slice.meta.labels.get(MANAGED_BY).is_some_and(|by| **by == *MANAGER)
}

/// Whether a change of a pod can be seen in slices.
fn matters(old: &Object, new: &Object) -> bool {
    let (Ok(a), Ok(b)) = (old.typed::<Pod>(), new.typed::<Pod>()) else { return true };
    old.meta.labels != new.meta.labels
        || pods::addresses(&a) != pods::addresses(&b)
        || pods::is_over(&a) != pods::is_over(&b)
}

/// The namespaces whose policies may name pods of a namespace, or of any by its labels.
fn concerned(cx: &Context, namespace: Option<&str>) -> Vec<Key> {
    let all = cx.client.informer(&networkpolicy::KIND).list("");
    let is_own = |policy: &Object| namespace == Some(&*policy.meta.namespace);
    let looks_out = |policy: &Object| String::from_utf8_lossy(policy.body()).contains("\"namespaceSelector\"");
    let names: BTreeSet<&str> = all.iter().filter(|p| is_own(p) || looks_out(p)).map(|p| &*p.meta.namespace).collect();
    names.into_iter().map(|name| Key::new("", name)).collect()
}

#[async_trait]
impl Reconciler for NetworkPolicies {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let (client, kind, namespace) = (&self.0.client, &endpointslice::KIND, &*key.name);
        let mut wanted = task::in_place(true, || self.slices(namespace));
        let existing = client.informer(kind).list(namespace);
        let mut writes = Vec::new();
        for object in existing.iter().filter(|object| is_ours(object)) {
            let new = wanted.remove(&*object.meta.name);
            writes.push(self.write(namespace, Some(object), new));
        }
        writes.extend(wanted.into_values().map(|new| self.write(namespace, None, Some(new))));
        try_join_all(writes).await?;
        Ok(Outcome::Done)
    }
}

impl NetworkPolicies {
    async fn write(&self, namespace: &str, old: Option<&Arc<Object>>, new: Option<Value>) -> Result<()> {
        let (client, kind) = (&self.0.client, &endpointslice::KIND);
        match (old, new) {
            (None, Some(new)) => match client.create(kind, namespace, new).await {
                // The namespace is going, or a quota is full: nobody is among them.
                Err(status) if status.code == 403 => Ok(()),
                other => other.map(|_| ()),
            },
            (Some(old), Some(new)) => {
                let mut value = old.value();
                let is_same = |key: &str| list(&value, key) == list(&new, key);
                if is_same("endpoints") && is_same("ports") && value["metadata"]["labels"] == new["metadata"]["labels"]
                {
                    return Ok(());
                }
                value["endpoints"] = new["endpoints"].clone();
                value["ports"] = new["ports"].clone();
                value["metadata"]["labels"] = new["metadata"]["labels"].clone();
                client.update(kind, namespace, &old.meta.name, None, value).await.map(|_| ())
            }
            (Some(old), None) => {
                absent_is_fine(client.delete(kind, namespace, &old.meta.name, DeleteOptions::default()).await)
            }
            (None, None) => Ok(()),
        }
    }

    /// The slices that a namespace's policies need, by name.
    fn slices(&self, namespace: &str) -> BTreeMap<String, Value> {
        let policies = self.0.client.informer(&networkpolicy::KIND).list(namespace);
        let mut all = BTreeMap::new();
        for (id, group) in groups(namespace, &policies) {
            all.extend(slices_of(&id, &group, &self.members(namespace, &group)));
        }
        all
    }

    /// The pods that are meant.
    fn members(&self, own: &str, group: &Group) -> Vec<Arc<Object>> {
        let client = &self.0.client;
        let looks_out = group.selectors.iter().any(|(namespaces, _)| namespaces.is_some());
        let namespaces: BTreeMap<Box<str>, Arc<Object>> = match looks_out {
            true => client.informer(&namespace::KIND).list("").into_iter().map(|n| (n.meta.name.clone(), n)).collect(),
            false => BTreeMap::new(),
        };
        let nothing = Labels::new();
        let means = |pod: &&Arc<Object>| {
            let (name, labels) = (&pod.meta.namespace, &pod.meta.labels);
            let of_namespace = namespaces.get(name).map_or(&nothing, |n| &n.meta.labels);
            group.selectors.iter().any(|(namespaces, pods)| {
                let is_near = namespaces.as_ref().map_or(**name == *own, |n| n.matches(of_namespace));
                is_near && pods.matches(labels)
            })
        };
        let pods = client.informer(&pod::KIND).list(if looks_out { "" } else { own });
        pods.iter().filter(means).cloned().collect()
    }
}

/// The peers of all rules, by what rules with the same have in common; those beyond the limit have no pods.
fn groups(namespace: &str, policies: &[Arc<Object>]) -> BTreeMap<String, Group> {
    let (mut groups, mut left) = (BTreeMap::new(), SELECTORS_MAX);
    for policy in policies.iter().filter_map(|object| object.typed::<Value>().ok()) {
        for (direction, _) in RULES {
            for peers in list(&policy["spec"], direction).iter().filter_map(|rule| Peers::of(direction, rule)) {
                let Some(rest) = left.checked_sub(peers.count()) else {
                    let limit = SELECTORS_MAX;
                    tracing::warn!(namespace, limit, "network policies have more selectors than are looked at");
                    return groups;
                };
                left = rest;
                groups.entry(peers.id(namespace)).or_insert_with(|| Group {
                    selectors: peers.selectors().collect(),
                    named_ports: peers.named_ports.iter().map(|(n, p)| ((*n).to_owned(), (*p).to_owned())).collect(),
                });
            }
        }
    }
    groups
}

/// Slices of some pods, by name: of each family and each understanding of the names of ports.
fn slices_of(id: &str, group: &Group, members: &[Arc<Object>]) -> BTreeMap<String, Value> {
    let mut kinds: BTreeMap<(&str, String), (Value, Vec<Value>)> = BTreeMap::new();
    for object in members {
        let Ok(pod) = object.typed::<Pod>() else { continue };
        let is_alone = pod.spec.as_ref().is_some_and(|s| s.host_network != Some(true));
        if !is_alone || pods::is_over(&pod) {
            continue;
        }
        let ports = Value::Array(group.named_ports.iter().filter_map(|port| port_of(&pod, port)).collect());
        for address in pods::addresses(&pod) {
            let family = if address.contains(':') { "IPv6" } else { "IPv4" };
            let of_kind = kinds.entry((family, ports.to_string()));
            of_kind.or_insert_with(|| (ports.clone(), Vec::new())).1.push(endpoint(object, &pod, &address));
        }
    }
    let mut slices = BTreeMap::new();
    for (number, ((family, _), (ports, endpoints))) in kinds.into_iter().enumerate() {
        let count = (endpoints.len() / SLICE_ABOUT + 1).next_power_of_two();
        let mut parts = vec![Vec::new(); count];
        endpoints.into_iter().for_each(|endpoint| parts[part(&endpoint, count)].push(endpoint));
        for (place, mut endpoints) in parts.into_iter().enumerate() {
            endpoints.sort_by(|a, b| text(a, "targetRef.uid").cmp(text(b, "targetRef.uid")));
            let name = format!("network-policy-{id}-{}-{number}-{place}", family.to_ascii_lowercase());
            let labels = json!({PEERS: id, MANAGED_BY: MANAGER});
            slices.insert(
                name.clone(),
                json!({
                    "metadata": {"name": name, "labels": labels},
                    "addressType": family, "endpoints": endpoints, "ports": ports,
                }),
            );
        }
    }
    slices
}

/// In which of so many slices an endpoint is.
fn part(endpoint: &Value, count: usize) -> usize {
    text(endpoint, "targetRef.uid").bytes().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
        % count
}

fn endpoint(object: &Object, pod: &Pod, address: &str) -> Value {
    let meta = &object.meta;
    let mut endpoint = json!({
        "addresses": [address], "conditions": {"ready": true},
        "targetRef": {"kind": "Pod", "namespace": &*meta.namespace, "name": &*meta.name, "uid": &*meta.uid},
    });
    if let Some(node) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) {
        endpoint["nodeName"] = node.into();
    }
    endpoint
}

/// What a pod understands by the name of a port.
fn port_of(pod: &Pod, (name, protocol): &(String, String)) -> Option<Value> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let is_it = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == *protocol
    };
    let port = ports.find(is_it)?;
    Some(json!({"name": name, "port": port.container_port, "protocol": protocol}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &crate::kinds::KindRef, name: &str, mut value: Value) -> Arc<Object> {
        value["metadata"]["name"] = name.into();
        value["metadata"]["namespace"] = "n".into();
        value["metadata"]["uid"] = name.into();
        Arc::new(Object::new(kind.key("n", name), 1, &value, Box::default()))
    }

    fn policy(name: &str, rules: Vec<Value>) -> Arc<Object> {
        object(&networkpolicy::KIND, name, json!({"spec": {"ingress": rules}}))
    }

    #[test]
    fn rules_with_equal_peers_share_slices_and_there_is_a_limit() {
        let from = |value: &str| json!({"from": [{"podSelector": {"matchLabels": {"a": value}}}]});
        let shared = groups("n", &[policy("p", vec![from("x"), from("y")]), policy("q", vec![from("x")])]);
        assert_eq!(shared.len(), 2);
        let many = (0..SELECTORS_MAX + 5).map(|n| from(&n.to_string())).collect();
        assert_eq!(groups("n", &[policy("p", many)]).len(), SELECTORS_MAX);
        let one = json!({"from": vec![json!({"podSelector": {}}); SELECTORS_MAX + 1]});
        assert!(groups("n", &[policy("p", vec![one])]).is_empty(), "a rule is looked at whole or not at all");
    }

    #[test]
    fn slices_have_families_and_understandings_of_ports_apart_and_grow_in_number() {
        let group = Group { selectors: Vec::new(), named_ports: vec![("http".into(), "TCP".into())] };
        let pod = |name: &str, port: i64, ips: &[&str]| {
            let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
            let ports = json!([{"name": "http", "containerPort": port}]);
            object(
                &pod::KIND,
                name,
                json!({
                    "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": ports}]},
                    "status": {"phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips},
                }),
            )
        };
        let members =
            [pod("a", 80, &["10.0.0.1", "fd00::1"]), pod("b", 81, &["10.0.0.2"]), pod("c", 80, &["10.0.0.3"])];
        let slices = slices_of("id", &group, &members);
        let shown: Vec<(&str, usize, i64)> = slices
            .values()
            .map(|s| (text(s, "addressType"), list(s, "endpoints").len(), s["ports"][0]["port"].as_i64().unwrap()))
            .collect();
        assert_eq!(shown, [("IPv4", 2, 80), ("IPv4", 1, 81), ("IPv6", 1, 80)], "{slices:?}");
        let many: Vec<_> = (0..SLICE_ABOUT * 3).map(|n| pod(&format!("p{n}"), 80, &["10.1.0.1"])).collect();
        let slices = slices_of("id", &group, &many);
        assert_eq!(slices.len(), 4);
        assert!(slices.values().all(|s| (1..=1000).contains(&list(s, "endpoints").len())), "{:?}", slices.keys());
    }
}
