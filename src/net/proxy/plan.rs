//! One Service and its EndpointSlices as rows of the service table: a pure function.
//!
//! Follows kube-proxy 1.37: only ready endpoints are used, or those that still serve while they terminate when none is
//! ready; `publishNotReadyAddresses` needs nothing here, the slices say ready already. Headless and ExternalName
//! Services have no row. Invariant: equal objects plan to equal rows, in whatever order the slices come.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort as SpecPort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use crate::net::{Endpoint, Protocol, ServicePort};

/// Services and slices with it are for another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u64 = 10_800;

/// How usable an endpoint is; the better one wins when two slices name the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Usable {
    /// Serves, and is about to go.
    Leaving,
    Ready,
}

/// The rows of a Service. `node` is the name of this node, which decides what is local.
pub fn plan(service: &Service, slices: &[&EndpointSlice], node: &str) -> Vec<ServicePort> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster_ips = cluster_ips(spec);
    let labelled = service.metadata.labels.as_ref().is_some_and(|l| l.contains_key(PROXY_NAME));
    if labelled || cluster_ips.is_empty() || spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let local = |policy: &Option<String>| policy.as_deref() == Some("Local");
    let common = ServicePort {
        namespace: service.metadata.namespace.clone().unwrap_or_default(),
        name: service.metadata.name.clone().unwrap_or_default(),
        cluster_ips,
        external_ips: addresses(spec.external_ips.iter().flatten()),
        load_balancer_ips: load_balancer_ips(service),
        affinity: affinity(spec),
        internal_local_only: local(&spec.internal_traffic_policy),
        external_local_only: local(&spec.external_traffic_policy),
        ..ServicePort::default()
    };
    let row = |port: &SpecPort| {
        let protocol = protocol(port.protocol.as_deref())?;
        Some(ServicePort {
            port_name: port.name.clone().unwrap_or_default(),
            protocol,
            port: number(Some(port.port))?,
            node_port: number(port.node_port),
            endpoints: endpoints(&common, slices, port.name.as_deref().unwrap_or(""), protocol, node),
            ..common.clone()
        })
    };
    spec.ports.iter().flatten().filter_map(row).collect()
}

/// Addresses of a Service that has some; none for headless ones and those that wait for an address.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    match spec.cluster_ips.as_deref() {
        Some(list) if !list.is_empty() => addresses(list),
        _ => addresses(&spec.cluster_ip),
    }
}

fn addresses<'a>(list: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    list.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// Addresses of load balancers that keep the destination; with `ipMode: Proxy` traffic must go through the balancer.
fn load_balancer_ips(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let list = status.and_then(|l| l.ingress.as_deref()).unwrap_or_default();
    let direct = list.iter().filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|i| i.ip.as_ref()?.parse().ok()).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    Some(Duration::from_secs(seconds.unwrap_or(AFFINITY_SECONDS)))
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn number(port: Option<i32>) -> Option<u16> {
    port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0)
}

/// Where the named port of a Service leads.
fn endpoints(
    service: &ServicePort,
    slices: &[&EndpointSlice],
    port_name: &str,
    wanted: Protocol,
    node: &str,
) -> Vec<Endpoint> {
    let mut all: BTreeMap<(IpAddr, u16), (Usable, bool)> = BTreeMap::new();
    for slice in slices.iter().filter(|s| s.address_type != "FQDN") {
        let is_wanted = |p: &&k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref().unwrap_or("") == port_name && protocol(p.protocol.as_deref()) == Some(wanted)
        };
        let Some(port) = slice.ports.iter().flatten().find(is_wanted).and_then(|p| number(p.port)) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(usable) = usable(endpoint) else { continue };
            // All addresses of an endpoint are the same thing; the first is used, as kube-proxy does.
            let Some(address) = endpoint.addresses.first().and_then(|a| a.parse().ok()) else { continue };
            let seen = (usable, endpoint.node_name.as_deref() == Some(node));
            let entry = all.entry((address, port)).or_insert(seen);
            *entry = (*entry).max(seen);
        }
    }
    // With only Local traffic the choice between ready and leaving ones is made among the local ones.
    let reached_from_outside =
        !service.external_ips.is_empty() || !service.load_balancer_ips.is_empty() || service.node_port.is_some();
    let only_local = service.internal_local_only && (service.external_local_only || !reached_from_outside);
    let any_ready = all.values().any(|(usable, local)| *usable == Usable::Ready && (*local || !only_local));
    let picked = all.into_iter().filter(|(_, (usable, _))| *usable == Usable::Ready || !any_ready);
    picked.map(|((address, port), (_, local))| Endpoint { address, port, local }).collect()
}

fn usable(endpoint: &SliceEndpoint) -> Option<Usable> {
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let serving = conditions.and_then(|c| c.serving).unwrap_or(ready);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    match (ready, serving && terminating) {
        (true, _) => Some(Usable::Ready),
        (false, true) => Some(Usable::Leaving),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rows(spec: Value, slices: &[Value]) -> Vec<ServicePort> {
        let service = json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec});
        let service: Service = serde_json::from_value(service).unwrap();
        let slices: Vec<EndpointSlice> = slices.iter().map(|s| serde_json::from_value(s.clone()).unwrap()).collect();
        plan(&service, &slices.iter().collect::<Vec<_>>(), "here")
    }

    fn spec() -> Value {
        json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ports": [{"name": "web", "port": 80}]})
    }

    fn slice(endpoints: Value) -> Value {
        json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]})
    }

    fn endpoint(address: &str, ready: bool, serving: bool, terminating: bool) -> Value {
        json!({"addresses": [address], "nodeName": "here",
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
    }

    fn found(rows: &[ServicePort]) -> Vec<String> {
        rows[0].endpoints.iter().map(|e| format!("{}:{} {}", e.address, e.port, e.local)).collect()
    }

    #[test]
    fn ready_endpoints_of_the_named_port_are_used() {
        let slices = [
            slice(json!([endpoint("10.42.0.2", true, true, false), endpoint("10.42.0.3", false, false, false)])),
            slice(json!([{"addresses": ["10.42.1.2"], "nodeName": "there"}])),
            json!({"metadata": {}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.42.9.9"]}]}),
            json!({"metadata": {}, "addressType": "FQDN", "endpoints": [{"addresses": ["a.b"]}], "ports": [{"name": "web", "port": 1}]}),
        ];
        let rows = rows(spec(), &slices);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].port, rows[0].protocol, &*rows[0].port_name), (80, Protocol::Tcp, "web"));
        assert_eq!(found(&rows), ["10.42.0.2:8080 true", "10.42.1.2:8080 false"]);
    }

    #[test]
    fn those_that_leave_serve_only_when_none_is_ready() {
        let leaving = endpoint("10.42.0.3", false, true, true);
        let gone = endpoint("10.42.0.4", false, false, true);
        let slices = [slice(json!([leaving.clone(), gone]))];
        assert_eq!(found(&rows(spec(), &slices)), ["10.42.0.3:8080 true"]);
        let slices = [slice(json!([leaving, endpoint("10.42.0.2", true, true, false)]))];
        assert_eq!(found(&rows(spec(), &slices)), ["10.42.0.2:8080 true"]);
    }

    #[test]
    fn with_local_traffic_only_those_here_count() {
        let mut spec = spec();
        spec["internalTrafficPolicy"] = "Local".into();
        let slices = [slice(json!([endpoint("10.42.0.3", false, true, true),
            {"addresses": ["10.42.1.2"], "nodeName": "there", "conditions": {"ready": true}}]))];
        let rows = rows(spec, &slices);
        assert!(rows[0].internal_local_only);
        assert_eq!(found(&rows), ["10.42.0.3:8080 true", "10.42.1.2:8080 false"]);
    }

    #[test]
    fn an_address_in_two_slices_counts_once_and_as_ready() {
        let slices = [
            slice(json!([endpoint("10.42.0.2", true, true, false)])),
            slice(json!([endpoint("10.42.0.2", false, true, true)])),
        ];
        assert_eq!(found(&rows(spec(), &slices)), ["10.42.0.2:8080 true"]);
    }

    #[test]
    fn headless_external_and_foreign_services_have_no_row() {
        assert!(rows(json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 1}]}), &[]).is_empty());
        assert!(rows(json!({"type": "ExternalName", "externalName": "a.b", "ports": [{"port": 1}]}), &[]).is_empty());
        assert!(rows(json!({"ports": [{"port": 1}]}), &[]).is_empty(), "no address yet");
        let service = json!({"metadata": {"labels": {PROXY_NAME: "other"}}, "spec": spec()});
        assert!(plan(&serde_json::from_value(service).unwrap(), &[], "here").is_empty());
    }

    #[test]
    fn everything_a_service_can_say() {
        let service = json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"type": "LoadBalancer", "clusterIPs": ["10.43.0.9", "fd43::9"], "externalIPs": ["192.0.2.7"],
                "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "x", "port": 9, "protocol": "SCTP"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}, {"hostname": "x"}]}},
        });
        let service: Service = serde_json::from_value(service).unwrap();
        let slice: EndpointSlice = serde_json::from_value(slice(json!([{"addresses": ["10.42.0.2"]}]))).unwrap();
        let rows = plan(&service, &[&slice], "here");
        let ips = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let expect = ServicePort {
            namespace: "n".into(),
            name: "s".into(),
            port_name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            cluster_ips: ips(&["10.43.0.9", "fd43::9"]),
            node_port: Some(30053),
            external_ips: ips(&["192.0.2.7"]),
            load_balancer_ips: ips(&["192.0.2.8"]),
            affinity: Some(Duration::from_secs(60)),
            internal_local_only: false,
            external_local_only: true,
            endpoints: vec![Endpoint { address: "10.42.0.2".parse().unwrap(), port: 53, local: false }],
        };
        assert_eq!(rows[0], expect);
        assert_eq!((rows[1].protocol, rows[1].endpoints.len()), (Protocol::Sctp, 0));
    }
}
