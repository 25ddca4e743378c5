//! Network policies and the pods of this node as what the kernel holds: a pure function.
//!
//! Who the pods are that rules name by labels is told by EndpointSlices (`controllers::networkpolicy`): a node knows no pods but its
//! own. Until they are there, nobody is among them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use serde_json::Value;

use crate::base::json::{int, list, text};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::networking::networkpolicy::{self, Peers as Named, RULES};
use crate::net::Protocol;
use crate::net::nft::policies::{Allowed, IsolatedPod, Peers, PolicyTable, Ports};

/// So many rules of a namespace's policies a node holds, each for a pod, or for pods with equal ones.
const RULES_MAX: usize = 4096;

/// Everything that is said of the pods of a node. What a namespace's policies would let through beyond a limit is not let through.
pub fn plan(policies: &[Arc<Object>], pods: &[Arc<Object>], slices: &[Arc<Object>], node: &str) -> PolicyTable {
    let policies: Vec<Policy> = policies.iter().filter_map(|object| Policy::of(object)).collect();
    let mut planner = Planner { slices: slices_by_id(slices), ..Planner::default() };
    let mut isolated = Vec::new();
    for object in pods {
        let Some((pod, addresses)) = inhabitant(object, node) else { continue };
        let about = |p: &&Policy| p.namespace == *object.meta.namespace && p.selector.matches(&object.meta.labels);
        let about: Vec<&Policy> = policies.iter().filter(about).collect();
        let [ingress, egress] = ["ingress", "egress"].map(|direction| planner.rules(&about, direction, &pod));
        if ingress.is_some() || egress.is_some() {
            isolated.push(IsolatedPod { addresses, ingress, egress });
        }
    }
    isolated.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    PolicyTable { pods: isolated, sets: planner.sets }
}

struct Policy {
    namespace: String,
    selector: Selector,
    value: Arc<Value>,
}

#[derive(Default)]
struct Planner {
    slices: BTreeMap<(String, String), Vec<Arc<EndpointSlice>>>,
    sets: BTreeMap<String, BTreeSet<IpAddr>>,
    /// How many rules of each namespace there are, and which, by direction: pods with equal ones share them.
    held: BTreeMap<String, usize>,
    shared: BTreeSet<(&'static str, BTreeSet<Allowed>)>,
}

// === impl Policy ===

impl Policy {
    fn of(object: &Object) -> Option<Self> {
        let value: Arc<Value> = object.typed().ok()?;
        let selector = Selector::from_object(&value["spec"]["podSelector"]).ok()?;
        Some(Self { namespace: object.meta.namespace.to_string(), selector, value })
    }
}

// === impl Planner ===

impl Planner {
    /// What may pass in one direction; `None` where no policy is about it.
    fn rules(&mut self, policies: &[&Policy], direction: &str, pod: &Pod) -> Option<BTreeSet<Allowed>> {
        let capital = if direction == "ingress" { "Ingress" } else { "Egress" };
        let about: Vec<_> = policies.iter().filter(|p| networkpolicy::is_about(&p.value, capital)).collect();
        if about.is_empty() {
            return None;
        }
        let namespace = &about[0].namespace;
        let mut all = BTreeSet::new();
        for rule in about.iter().flat_map(|policy| list(&policy.value["spec"], direction)) {
            self.rule(namespace, direction, rule, pod, &mut all);
            if all.len() > RULES_MAX {
                break;
            }
        }
        keep_first(&mut all, RULES_MAX, namespace);
        let mut key = (capital, all);
        if !self.shared.contains(&key) {
            let held = self.held.entry(namespace.clone()).or_default();
            keep_first(&mut key.1, RULES_MAX - *held, namespace);
            *held += key.1.len();
            self.shared.insert(key.clone());
        }
        Some(key.1)
    }

    fn rule(&mut self, namespace: &str, direction: &str, rule: &Value, pod: &Pod, all: &mut BTreeSet<Allowed>) {
        let others = RULES.iter().find(|(name, _)| *name == direction).map_or("", |(_, others)| others);
        let peers = list(rule, others);
        let mut fixed: Vec<Peers> = peers.iter().filter_map(|peer| range(&peer["ipBlock"])).collect();
        if peers.is_empty() {
            fixed.push(Peers::Everybody);
        }
        let named = Named::of(direction, rule).map(|named| (named.id(namespace), namespace.to_owned()));
        let ports = list(rule, "ports");
        let all_ports = [Value::Null];
        for port in if ports.is_empty() { &all_ports } else { ports } {
            let (given, name) = (numbers(port), port["port"].as_str());
            // A name is what the pod that is spoken to calls one of its ports.
            let given = match name {
                Some(name) if direction == "ingress" => port_of(pod, name, protocol(port)).map(Some),
                _ => given,
            };
            if let Some(ports) = given {
                let among = named.as_ref().map(|key| Peers::Among(self.set(key, None)));
                all.extend(fixed.iter().cloned().chain(among).map(|peers| Allowed { peers, ports }));
            } else if let (Some(name), Some(key), "egress") = (name, &named, direction) {
                for number in self.numbers_of(key, name, protocol(port)) {
                    let peers = Peers::Among(self.set(key, Some((name, protocol(port), number))));
                    let ports = Ports { protocol: protocol(port), range: Some((number, number)) };
                    all.insert(Allowed { peers, ports: Some(ports) });
                }
            }
        }
    }

    /// The name of the set of peers, of those that understand a name of a port in one way.
    fn set(&mut self, key: &(String, String), port: Option<(&str, Protocol, u16)>) -> String {
        let id = &key.0;
        let name = match port {
            None => format!("peers-{id}"),
            Some((_, protocol, number)) => format!("peers-{id}-{}-{number}", protocol.name()),
        };
        let slices = self.slices.get(key).into_iter().flatten();
        let fits =
            |slice: &&Arc<EndpointSlice>| port.is_none_or(|p| slice.ports.iter().flatten().any(|q| is_port(q, p)));
        let endpoints = slices.filter(fits).flat_map(|slice| slice.endpoints.iter().flatten());
        let addresses = endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|a| a.parse().ok()).collect();
        self.sets.insert(name.clone(), addresses);
        name
    }

    /// What the peers understand by the name of a port.
    fn numbers_of(&self, key: &(String, String), name: &str, wanted: Protocol) -> BTreeSet<u16> {
        let ports = self.slices.get(key).into_iter().flatten().flat_map(|slice| slice.ports.iter().flatten());
        let named = ports.filter(|p| p.name.as_deref() == Some(name) && protocol_of(p) == wanted);
        named.filter_map(|p| u16::try_from(p.port?).ok()).collect()
    }
}

/// Leaves out what is beyond a limit.
fn keep_first(rules: &mut BTreeSet<Allowed>, limit: usize, namespace: &str) {
    let over = rules.len().saturating_sub(limit);
    if over > 0 {
        tracing::warn!(namespace, limit = RULES_MAX, "network policies have more rules than a node holds");
    }
    (0..over).for_each(|_| drop(rules.pop_last()));
}

/// Slices of peers by what they are of, with the namespace of the rules.
fn slices_by_id(slices: &[Arc<Object>]) -> BTreeMap<(String, String), Vec<Arc<EndpointSlice>>> {
    let mut by_id: BTreeMap<_, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for object in slices {
        if let Some(id) = object.meta.labels.get(networkpolicy::PEERS)
            && let Ok(slice) = object.typed()
        {
            by_id.entry((id.to_string(), object.meta.namespace.to_string())).or_default().push(slice);
        }
    }
    by_id
}

/// A pod that lives on the node, in a network of its own.
fn inhabitant(object: &Object, node: &str) -> Option<(Arc<Pod>, Vec<IpAddr>)> {
    let pod: Arc<Pod> = object.typed().ok()?;
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.node_name.as_deref() != Some(node) || spec.host_network == Some(true) || is_over {
        return None;
    }
    let addresses: Vec<IpAddr> = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if addresses.is_empty() { None } else { Some((pod.clone(), addresses)) }
}

fn range(block: &Value) -> Option<Peers> {
    let net = |value: &Value| value.as_str()?.parse::<IpNet>().ok().map(|net| net.trunc());
    let whole = net(&block["cidr"])?;
    Some(Peers::Range(whole, list(block, "except").iter().filter_map(net).collect()))
}

fn protocol(port: &Value) -> Protocol {
    protocol_named(text(port, "protocol"))
}

fn protocol_of(port: &EndpointPort) -> Protocol {
    protocol_named(port.protocol.as_deref().unwrap_or("TCP"))
}

fn protocol_named(name: &str) -> Protocol {
    match name {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

/// What a rule says in numbers: `Some(None)` is every port of every protocol, `None` a name.
fn numbers(port: &Value) -> Option<Option<Ports>> {
    if port.is_null() {
        return Some(None);
    }
    let number = |key: &str| int(port, key).and_then(|n| u16::try_from(n).ok());
    let range = match &port["port"] {
        Value::String(_) => return None,
        Value::Null => None,
        _ => {
            let first = number("port")?;
            Some((first, number("endPort").unwrap_or(first)))
        }
    };
    Some(Some(Ports { protocol: protocol(port), range }))
}

/// A port that a pod has a name for.
fn port_of(pod: &Pod, name: &str, wanted: Protocol) -> Option<Ports> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|c| c.ports.iter().flatten());
    let is_it = |p: &&k8s_openapi::api::core::v1::ContainerPort| {
        let protocol = p.protocol.as_deref().unwrap_or("TCP");
        p.name.as_deref() == Some(name) && protocol.eq_ignore_ascii_case(wanted.name())
    };
    let number = u16::try_from(ports.find(is_it)?.container_port).ok()?;
    Some(Ports { protocol: wanted, range: Some((number, number)) })
}

fn is_port(port: &EndpointPort, (name, wanted, number): (&str, Protocol, u16)) -> bool {
    port.name.as_deref() == Some(name) && protocol_of(port) == wanted && port.port == Some(number.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::KindRef;
    use crate::kinds::core::pod;
    use crate::kinds::discovery::endpointslice;

    fn object(kind: &KindRef, namespace: &str, name: &str, mut value: Value) -> Arc<Object> {
        value["metadata"]["name"] = name.into();
        value["metadata"]["namespace"] = namespace.into();
        Arc::new(Object::new(kind.key(namespace, name), 1, &value, Box::default()))
    }

    fn policy(name: &str, spec: Value) -> Arc<Object> {
        object(&networkpolicy::KIND, "n", name, json!({ "spec": spec }))
    }

    fn pod_at(namespace: &str, name: &str, app: &str, address: &str, node: &str) -> Arc<Object> {
        let ports = json!([{"name": "http", "containerPort": 8080, "protocol": "TCP"}]);
        object(
            &pod::KIND,
            namespace,
            name,
            json!({
                "metadata": {"labels": {"app": app}},
                "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}]},
                "status": {"phase": "Running", "podIPs": [{"ip": address}]},
            }),
        )
    }

    fn slice(id: &str, name: &str, addresses: &[&str], ports: Value) -> Arc<Object> {
        let endpoints: Vec<Value> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
        let labels = json!({networkpolicy::PEERS: id});
        let value =
            json!({"metadata": {"labels": labels}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        object(&endpointslice::KIND, "n", name, value)
    }

    fn tcp(number: u16) -> Option<Ports> {
        Some(Ports { protocol: Protocol::Tcp, range: Some((number, number)) })
    }

    #[test]
    fn a_policy_is_about_pods_of_its_namespace_that_are_here_and_selected() {
        let all = [policy("deny", json!({"podSelector": {"matchLabels": {"app": "a"}}, "policyTypes": ["Ingress"]}))];
        let pods = [
            pod_at("n", "a", "a", "10.0.0.1", "here"),
            pod_at("n", "b", "b", "10.0.0.2", "here"),
            pod_at("m", "a", "a", "10.0.0.3", "here"),
            pod_at("n", "far", "a", "10.0.0.4", "there"),
        ];
        let table = plan(&all, &pods, &[], "here");
        assert_eq!(table.pods.len(), 1, "{table:?}");
        assert_eq!(table.pods[0].addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((table.pods[0].ingress.as_ref().map(BTreeSet::len), &table.pods[0].egress), (Some(0), &None));
    }

    #[test]
    fn policies_add_up_and_names_of_ports_are_those_of_the_pod_that_is_spoken_to() {
        let rule = json!({"from": [{"podSelector": {}}], "ports": [{"port": "http", "protocol": "TCP"}]});
        let open = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [rule]});
        let block = json!({"ipBlock": {"cidr": "192.0.2.7/24", "except": ["192.0.2.128/25"]}});
        let range = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [block]}]});
        let id = Named::of("ingress", &rule).unwrap().id("n");
        let pods = [pod_at("n", "a", "a", "10.0.0.1", "here")];
        let slices =
            [slice(&id, "s", &["10.0.1.1", "10.0.2.2"], Value::Null), slice("other", "o", &["10.9.9.9"], Value::Null)];
        let table = plan(&[policy("open", open), policy("range", range)], &pods, &slices, "here");
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let set = format!("peers-{id}");
        let expect = [
            Allowed { peers: Peers::Among(set.clone()), ports: tcp(8080) },
            Allowed { peers: Peers::Range(net("192.0.2.0/24"), vec![net("192.0.2.128/25")]), ports: None },
        ];
        assert_eq!(table.pods[0].ingress, Some(expect.into_iter().collect()));
        assert_eq!(table.sets[&set].len(), 2);
        assert_eq!(table.sets.len(), 1);
    }

    #[test]
    fn whoever_may_be_spoken_to_understands_names_of_ports_in_its_own_way() {
        let ports = json!([{"port": "http", "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let rule = json!({"to": [{"namespaceSelector": {}}], "ports": ports});
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]});
        let id = Named::of("egress", &rule).unwrap().id("n");
        let http = |number: u16| json!([{"name": "http", "port": number, "protocol": "TCP"}]);
        let slices = [slice(&id, "a", &["10.0.1.1"], http(80)), slice(&id, "b", &["10.0.1.2"], http(8080))];
        let pods = [pod_at("n", "a", "a", "10.0.0.1", "here")];
        let table = plan(&[policy("p", spec)], &pods, &slices, "here");
        let among = |suffix: &str| Peers::Among(format!("peers-{id}{suffix}"));
        let udp = Some(Ports { protocol: Protocol::Udp, range: Some((53, 53)) });
        let expect = [
            Allowed { peers: among("-tcp-80"), ports: tcp(80) },
            Allowed { peers: among("-tcp-8080"), ports: tcp(8080) },
            Allowed { peers: among(""), ports: udp },
        ];
        assert_eq!(table.pods[0].egress, Some(expect.into_iter().collect()));
        assert_eq!(table.sets[&format!("peers-{id}-tcp-80")], BTreeSet::from(["10.0.1.1".parse().unwrap()]));
        assert_eq!(table.sets[&format!("peers-{id}")].len(), 2);
    }

    #[test]
    fn a_namespace_has_so_many_rules_and_what_is_beyond_is_closed() {
        let block = |n: usize| json!({"ipBlock": {"cidr": format!("10.{}.{}.0/24", n / 256, n % 256)}});
        let many: Vec<Value> = (0..RULES_MAX + 10).map(block).collect();
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": many}],
            "egress": [{"to": [block(1)]}]});
        let other = object(
            &networkpolicy::KIND,
            "m",
            "p",
            json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [block(1)]}]}}),
        );
        let pods = [
            pod_at("m", "a", "a", "10.0.0.1", "here"),
            pod_at("n", "a", "a", "10.0.0.2", "here"),
            pod_at("n", "b", "b", "10.0.0.3", "here"),
        ];
        let table = plan(&[policy("p", spec), other], &pods, &[], "here");
        let counts = |of: &IsolatedPod| [&of.ingress, &of.egress].map(|rules| rules.as_ref().map(BTreeSet::len));
        let all: Vec<_> = table.pods.iter().map(counts).collect();
        assert_eq!(all[0], [Some(1), None], "others are not concerned");
        assert_eq!(all[1], [Some(RULES_MAX), Some(0)]);
        assert_eq!(all[2], all[1], "shared with the other pod");
    }
}
