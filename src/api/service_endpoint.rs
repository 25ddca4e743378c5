//! Where a Service leads: a ready endpoint behind one of its ports, and a connection to it.
//!
//! The address is a pod's own, so it is dialled from the pod's node; an endpoint that is no pod of this cluster is dialled
//! from here. Invariant: the objects that say where to go may be anybody's, so a pod must have the address that is said of it,
//! and no address is dialled that means something else to each machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::net::TcpStream;

use super::{Api, Request};
use crate::apimachinery::node_access::{Destination, Duplex};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::kinds::core::{pod, service};
use crate::kinds::discovery::endpointslice;
use crate::wire::resolve;

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) struct Endpoint {
    /// The node from which it is reached.
    pub node: String,
    pub address: SocketAddr,
}

/// A ready pod behind a port of a Service, by the port's name or number; `id` is how the client has named them.
pub(in crate::api) fn find(api: &Api, namespace: &str, name: &str, port: &str, id: &str) -> Result<Endpoint> {
    let found = api.get(&Request::internal("", &service::KIND, namespace, name))?;
    let found = found.typed::<Service>().map_err(Status::internal)?;
    let ready = ready(api, namespace, name, &port_name(&found, name, port)?);
    let of_pod = ready.into_iter().find_map(|(pod, address)| of_pod(api, namespace, &pod?, address));
    of_pod.ok_or_else(|| Status::unavailable(format!("no endpoints available for service {id:?}")))
}

/// A connection to a ready endpoint of a Service; the error says why there is none.
pub(in crate::api) async fn dial(api: &Api, namespace: &str, name: &str, port: u16) -> Result<Box<dyn Duplex>, String> {
    let found = api.cache.kind(&service::KIND).get(&service::KIND.key(namespace, name));
    let found = found.ok_or_else(|| format!("service {name:?} not found"))?;
    let found = found.typed::<Service>().map_err(|error| error.to_string())?;
    let spec = found.spec.as_ref();
    let external = spec.filter(|spec| spec.type_.as_deref() == Some("ExternalName"));
    if let Some(host) = external.and_then(|spec| spec.external_name.as_deref()) {
        let connected = resolve::connect(host, port).await;
        return connected.map(boxed).map_err(|why| format!("dial tcp {host}:{port}: {why}"));
    }
    let port = port_name(&found, name, &port.to_string()).map_err(|status| status.message)?;
    for (pod, address) in ready(api, namespace, name, &port) {
        let Some(pod) = pod else {
            if !is_global_unicast(address.ip()) {
                continue;
            }
            let connected = TcpStream::connect(address).await;
            return connected.map(boxed).map_err(|why| format!("dial tcp {address}: {why}"));
        };
        if let Some(endpoint) = of_pod(api, namespace, &pod, address) {
            let node = api.nodes.get(&endpoint.node).map_err(|status| status.message)?;
            return node.dial(&Destination::Address(endpoint.address)).await.map_err(|status| status.message);
        }
    }
    Err(format!("no endpoints available for service {name:?}"))
}

fn boxed(stream: TcpStream) -> Box<dyn Duplex> {
    let _ = stream.set_nodelay(true);
    Box::new(stream)
}

/// The ready endpoints behind a port, with the names of their pods; any of them comes first.
fn ready(api: &Api, namespace: &str, name: &str, port: &str) -> Vec<(Option<String>, SocketAddr)> {
    let prefix = Request::internal("", &endpointslice::KIND, namespace, "").prefix();
    let slices = api.cache.kind(&endpointslice::KIND).list(&prefix, "");
    let mine = |o: &&Arc<Object>| o.meta.labels.get(SERVICE_NAME).is_some_and(|v| **v == *name);
    let slices = slices.iter().filter(mine).filter_map(|o| o.typed::<EndpointSlice>().ok());
    let mut ready: Vec<_> = slices.flat_map(|slice| ready_in(&slice, port)).collect();
    let start = api.clock.random_u64() as usize % ready.len().max(1);
    ready.rotate_left(start);
    ready
}

/// The pod of that name, if it has the address: the addresses of a slice are the pods' own, so a pod that is gone or another
/// one is passed over.
fn of_pod(api: &Api, namespace: &str, name: &str, address: SocketAddr) -> Option<Endpoint> {
    let pod = api.get(&Request::internal("", &pod::KIND, namespace, name)).ok()?.typed::<Pod>().ok()?;
    let mut ips = pod.status.iter().flat_map(|s| s.pod_ips.iter().flatten());
    let has = is_global_unicast(address.ip()) && ips.any(|ip| ip.ip.parse() == Ok(address.ip()));
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    has.then_some(Endpoint { node, address })
}

/// Whether it may be an address of a pod or node, and none that means something else to each machine.
pub(in crate::api) fn is_global_unicast(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// A port's name; a number is that of one of the Service's ports.
fn port_name(service: &Service, name: &str, port: &str) -> Result<String> {
    let Ok(number) = port.parse::<i32>() else { return Ok(port.to_owned()) };
    let mut ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let missing = || Status::unavailable(format!("no service port {number} found for service {name:?}"));
    let port = ports.find(|p| p.port == number).ok_or_else(missing)?;
    Ok(port.name.clone().unwrap_or_default())
}

/// The ready endpoints behind a port of a slice.
fn ready_in(slice: &EndpointSlice, port: &str) -> Vec<(Option<String>, SocketAddr)> {
    let named = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == port);
    let Some(number) = named.and_then(|p| u16::try_from(p.port?).ok()) else { return Vec::new() };
    let ready = slice.endpoints.iter().flatten().filter(|e| e.conditions.as_ref().and_then(|c| c.ready) != Some(false));
    let found = ready.filter_map(|e| {
        let address: IpAddr = e.addresses.first()?.parse().ok()?;
        let pod = e.target_ref.as_ref().filter(|t| t.kind.as_deref() == Some("Pod")).and_then(|t| t.name.clone());
        Some((pod, SocketAddr::new(address, number)))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_chosen_by_number_or_name() {
        let service: Service = serde_json::from_value(json!({"spec": {"ports": [
            {"name": "one", "port": 80}, {"name": "two", "port": 81}]}}))
        .unwrap();
        let name = |port: &str| port_name(&service, "s", port).map_err(|s| s.code);
        assert_eq!(name("81").as_deref(), Ok("two"));
        assert_eq!(name("one").as_deref(), Ok("one"));
        assert_eq!(name("").as_deref(), Ok(""));
        assert_eq!(name("82"), Err(503));
        let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4",
            "ports": [{"name": "one", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}, "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "targetRef": {"kind": "Pod", "name": "b"}, "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"], "conditions": {"ready": true}}]}))
        .unwrap();
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        let ready = [(Some("a".to_owned()), at("10.0.0.1:8080")), (None, at("10.0.0.3:8080"))];
        assert_eq!(ready_in(&slice, "one"), ready);
        assert!(ready_in(&slice, "two").is_empty());
    }
}
