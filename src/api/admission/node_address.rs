//! The addresses that an agent may write: of its pods, of itself.
//!
//! Others send where these say: Services and DNS to a pod's address, other nodes to a node's. So a pod of an agent has an address of
//! the range that the server has given to the agent's node, a pod in the host's network one of those that its Node has, and no
//! Node one that no machine can have for others, or that is a pod's or a Service's. What a server cannot know is whether a machine
//! really has an address, and whether another one has it, too: two nodes behind one router may.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::Value;

use crate::api::{Api, allocate};
use crate::base::json::{flag, list, text};
use crate::kinds::check::parse_ip_sloppy;
use crate::kinds::core::node;

/// Why an agent may not give these addresses to a pod of its node.
pub(super) fn refusal_of_pod(api: &Api, own: &str, pod: &Value, old: &Value) -> Option<String> {
    let (pods, hosts) = (added(pod, old, "podIP", "podIPs"), added(pod, old, "hostIP", "hostIPs"));
    if pods.is_empty() && hosts.is_empty() {
        return None;
    }
    let found = api.cache.kind(&node::KIND).get(&node::KIND.key("", own));
    let node = found.and_then(|o| o.typed::<Node>().ok()).unwrap_or_default();
    let status = node.status.as_ref();
    let listed = status.iter().flat_map(|s| s.addresses.iter().flatten());
    let own_addresses: Vec<IpAddr> = listed.filter_map(|a| address(&a.address)).collect();
    let spec = node.spec.as_ref();
    let ranges = spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten().chain(&s.pod_cidr));
    let ranges: Vec<IpNet> = ranges.filter_map(|range| range.parse().ok()).collect();
    let in_host = flag(old, "spec.hostNetwork");
    let (of_host, of_pods) = if in_host { ([hosts, pods].concat(), Vec::new()) } else { (hosts, pods) };
    if let Some(stranger) = of_host.iter().find(|a| !own_addresses.contains(a)) {
        return Some(format!(
            "node {own:?} is not allowed to say that a pod is at {stranger}, which is no address of its Node"
        ));
    }
    let stranger = of_pods.iter().find(|a| !ranges.iter().any(|range| range.contains(*a)))?;
    Some(format!(
        "node {own:?} is not allowed to give a pod the address {stranger}: it is not in the node's spec.podCIDRs"
    ))
}

/// Why an agent's node may not have its addresses.
pub(super) fn refusal_of_node(api: &Api, own: &str, value: &Value, old: Option<&Value>) -> Option<String> {
    let before = old.map(|old| list(old, "status.addresses")).unwrap_or_default();
    let new = list(value, "status.addresses").iter().filter(|a| !before.contains(a));
    new.filter_map(|given| {
        let (kind, told) = (text(given, "type"), text(given, "address"));
        let why = match address(told) {
            None => matches!(kind, "InternalIP" | "ExternalIP").then(|| "it is no IP address".to_owned()),
            Some(address) => {
                let inner = [&api.options.inner_cidrs[..], &allocate::further_ranges(api)[..]].concat();
                unusable(address, &inner)
            }
        };
        why.map(|why| format!("node {own:?} is not allowed to have the {kind} {told:?}: {why}"))
    })
    .next()
}

/// Why an address can be no node's.
fn unusable(address: IpAddr, inner: &[IpNet]) -> Option<String> {
    let special = match address {
        a if a.is_loopback() => "a loopback address",
        a if a.is_unspecified() => "unspecified",
        a if a.is_multicast() => "a multicast address",
        IpAddr::V4(a) if a.is_link_local() => "a link-local address",
        IpAddr::V6(a) if a.is_unicast_link_local() => "a link-local address",
        IpAddr::V4(a) if a.is_broadcast() || a.octets()[0] == 0 => "no machine's",
        _ => {
            let range = inner.iter().find(|range| range.contains(&address))?;
            return Some(format!("it is of the cluster's own range {range}"));
        }
    };
    Some(format!("it is {special}"))
}

/// The addresses under two names, the first of a list and the list, that were not there before.
fn added(pod: &Value, old: &Value, one: &str, many: &str) -> Vec<IpAddr> {
    let all = |pod: &Value| -> Vec<IpAddr> {
        let status = pod.get("status").unwrap_or(&Value::Null);
        let listed = list(status, many).iter().map(|a| text(a, "ip"));
        // What is no address, validation tells.
        std::iter::once(text(status, one)).chain(listed).filter_map(address).collect()
    };
    let before = all(old);
    all(pod).into_iter().filter(|a| !before.contains(a)).collect()
}

fn address(text: &str) -> Option<IpAddr> {
    parse_ip_sloppy(text).map(|a| a.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::api::Request;
    use crate::api::in_memory;
    use crate::api::write::Change;
    use crate::apimachinery::status::Result;
    use crate::apimachinery::user::User;
    use crate::kinds::core::{namespace, pod, serviceaccount};
    use crate::kinds::{KindRef, Subresource};

    const ADDRESSES: [&str; 3] = ["192.0.2.1", "2001:db8::1", "203.0.113.7"];

    fn addresses(all: &[(&str, &str)]) -> Value {
        let all: Vec<Value> = all.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        json!({"addresses": all})
    }

    async fn create(api: &Api, kind: &KindRef, namespace: &str, value: Value) {
        api.create(&Request::internal("test", kind, namespace, ""), value).await.unwrap();
    }

    async fn report(api: &Api, user: User, kind: &KindRef, name: &str, status: Value) -> Result<()> {
        let namespace = if kind.namespaced() { "default" } else { "" };
        let request = Request::internal("kubelet", kind, namespace, name).on(Subresource::Status);
        let mut change = |live: &Value| {
            let mut new = live.clone();
            new["status"] = status.clone();
            Ok(new)
        };
        api.update(&Request { user: Arc::new(user), ..request }, Change::Patch(&mut change)).await.map(|_| ())
    }

    /// Node `a` with a range and addresses, and two pods on it.
    async fn cluster() -> Api {
        let api = in_memory::api();
        create(&api, &namespace::KIND, "", json!({"metadata": {"name": "default"}})).await;
        create(&api, &serviceaccount::KIND, "default", json!({"metadata": {"name": "default"}})).await;
        let spec = json!({"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24", "fd00:42:1::/64"]});
        create(&api, &node::KIND, "", json!({"metadata": {"name": "a"}, "spec": spec})).await;
        let own = addresses(&[
            ("InternalIP", ADDRESSES[0]),
            ("InternalIP", ADDRESSES[1]),
            ("ExternalIP", ADDRESSES[2]),
            ("Hostname", "a"),
        ]);
        report(&api, User::node("a"), &node::KIND, "a", own).await.unwrap();
        for (name, host) in [("own", false), ("host", true)] {
            let containers = json!([{"name": "c", "image": "i"}]);
            let spec = json!({"nodeName": "a", "hostNetwork": host, "containers": containers});
            create(&api, &pod::KIND, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        api
    }

    #[tokio::test]
    async fn an_agent_gives_its_pods_addresses_of_its_own_alone() {
        let api = cluster().await;
        let ip = |all: &[&str]| -> Value { all.iter().map(|ip| json!({"ip": ip})).collect() };
        let tell = |name, status: Value| report(&api, User::node("a"), &pod::KIND, name, status);
        for (name, status) in [
            ("own", json!({"podIP": "10.42.2.1"})),
            ("own", json!({"podIP": "192.0.2.1"})),
            ("own", json!({"podIPs": ip(&["10.42.1.5", "2001:db8::1"])})),
            ("own", json!({"podIP": "10.42.1.5", "podIPs": ip(&["10.42.1.5", "::ffff:10.42.2.1"])})),
            ("own", json!({"podIP": "10.43.0.1"})),
            ("own", json!({"hostIP": "192.0.2.2"})),
            ("own", json!({"podIP": "10.42.1.5", "hostIPs": ip(&["198.51.100.1"])})),
            ("host", json!({"podIP": "192.0.2.2"})),
            ("host", json!({"podIP": "10.42.1.5"})),
            ("host", json!({"podIP": "127.0.0.1"})),
        ] {
            let refused = tell(name, status.clone()).await.unwrap_err();
            assert_eq!((refused.code, refused.reason), (403, "Forbidden"), "{name} {status}");
            assert!(refused.message.contains("node \"a\" is not allowed to"), "{}", refused.message);
        }
        let good = json!({"podIP": "10.42.1.5", "podIPs": ip(&["10.42.1.5", "fd00:42:1::5"]), "hostIP": "192.0.2.1",
            "hostIPs": ip(&["192.0.2.1", "2001:db8::1"])});
        tell("own", good).await.unwrap();
        tell("host", json!({"podIP": "192.0.2.1", "podIPs": ip(&["192.0.2.1", "2001:db8::1"])})).await.unwrap();
        // Whoever is no agent may, and what is there already is nobody's new claim.
        let foreign = json!({"podIP": "198.51.100.9", "hostIP": "198.51.100.8"});
        report(&api, (*User::system()).clone(), &pod::KIND, "own", foreign.clone()).await.unwrap();
        let mut after = foreign;
        after["message"] = "still here".into();
        tell("own", after).await.unwrap();
        tell("own", json!({"podIP": "198.51.100.7"})).await.unwrap_err();
    }

    #[tokio::test]
    async fn an_agents_node_has_no_address_that_no_machine_can_have() {
        let api = cluster().await;
        let tell = |all: &[(&str, &str)]| report(&api, User::node("a"), &node::KIND, "a", addresses(all));
        for (kind, address) in [
            ("InternalIP", "127.0.0.1"),
            ("InternalIP", "::1"),
            ("InternalIP", "0.0.0.0"),
            ("InternalIP", "169.254.169.254"),
            ("ExternalIP", "fe80::1"),
            ("InternalIP", "224.0.0.1"),
            ("InternalIP", "255.255.255.255"),
            ("InternalIP", "10.43.0.1"),
            ("InternalIP", "10.42.2.1"),
            ("InternalIP", "10.42.1.1"),
            ("InternalIP", "::ffff:10.43.0.10"),
            ("Hostname", "10.43.0.1"),
            ("InternalIP", "a.example"),
        ] {
            let refused = tell(&[("InternalIP", ADDRESSES[0]), (kind, address)]).await.unwrap_err();
            assert_eq!((refused.code, refused.reason), (403, "Forbidden"), "{address}");
            let begin = format!("node \"a\" is not allowed to have the {kind} {address:?}: ");
            assert!(refused.message.contains(&begin), "{}", refused.message);
        }
        tell(&[("InternalIP", "192.0.2.9"), ("ExternalDNS", "a.example"), ("Hostname", "a")]).await.unwrap();
        let admin =
            report(&api, (*User::system()).clone(), &node::KIND, "a", addresses(&[("InternalIP", "10.43.0.1")]));
        admin.await.unwrap();
        let fresh = json!({"metadata": {"name": "b"}, "status": addresses(&[("InternalIP", "127.0.0.1")])});
        assert!(refusal_of_node(&api, "b", &fresh, None).is_some(), "also when it is made");
    }
}
