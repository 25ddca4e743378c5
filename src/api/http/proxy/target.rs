//! Where a proxied request goes: names with scheme and port, and how a node, a pod or a Service is found behind one.
//!
//! As Kubernetes reads them (`SplitSchemeNamePort` and each kind's `ResourceLocation`): a pod without a port means the first
//! port of its containers, a Service's port is chosen by its name or number and leads to one ready pod of it, a node without
//! a port means the node's own endpoints.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Pod};

use crate::api::service_endpoint::{self, is_global_unicast};
use crate::api::{Api, Request};
use crate::apimachinery::node_access::Destination;
use crate::apimachinery::status::{Result, Status};
use crate::kinds::core::{node, pod};

/// The port that stands for a node's own endpoints.
const NODE_PORT: &str = "10250";

/// `name`, `name:port` or `scheme:name:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub secure: bool,
    pub name: &'a str,
    pub port: &'a str,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProxyTarget {
    /// The node from which it is reached.
    pub node: String,
    pub to: Destination,
    pub secure: bool,
}

// === impl Named ===

impl<'a> Named<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = !name.is_empty() && matches!(scheme, "" | "http" | "https");
        known.then_some(Self { secure: scheme == "https", name, port })
    }
}

// === impl ProxyTarget ===

impl ProxyTarget {
    /// Host and port as they would stand in a URL.
    pub(super) fn host(&self) -> String {
        match self.to {
            Destination::Endpoints => format!("{}:{NODE_PORT}", self.node),
            Destination::Address(address) => address.to_string(),
        }
    }

    /// Finds what the request names.
    pub(super) fn find(api: &Api, request: &Request) -> Result<Self> {
        let id = request.name.as_str();
        let kind = request.kind.plural().trim_end_matches('s');
        let named = Named::parse(id).ok_or_else(|| Status::bad_request(format!("invalid {kind} request {id:?}")))?;
        match kind {
            "node" => of_node(api, named),
            "pod" => of_pod(api, &request.namespace, named),
            _ => of_service(api, &request.namespace, named, id),
        }
    }
}

fn of_node(api: &Api, named: Named<'_>) -> Result<ProxyTarget> {
    let found = api.get(&Request::internal("", &node::KIND, "", named.name))?;
    if matches!(named.port, "" | NODE_PORT) {
        return Ok(ProxyTarget { node: named.name.into(), to: Destination::Endpoints, secure: false });
    }
    let found = found.typed::<Node>().map_err(Status::internal)?;
    let addresses = found.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let own = addresses.filter(|a| a.type_ == "InternalIP").find_map(|a| a.address.parse::<IpAddr>().ok());
    let own = own.ok_or_else(|| Status::internal(format!("no preferred addresses found for node {:?}", named.name)))?;
    place(named.name, own, &named, named.port)
}

fn of_pod(api: &Api, namespace: &str, named: Named<'_>) -> Result<ProxyTarget> {
    let found = api.get(&Request::internal("", &pod::KIND, namespace, named.name))?;
    let found = found.typed::<Pod>().map_err(Status::internal)?;
    let spec = found.spec.as_ref();
    let first = || {
        let mut ports = spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.ports.iter().flatten());
        ports
            .next()
            .map_or_else(|| if named.secure { "443" } else { "80" }.to_owned(), |p| p.container_port.to_string())
    };
    let port = if named.port.is_empty() { first() } else { named.port.to_owned() };
    let address = found.status.as_ref().and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
    let address = address.ok_or_else(|| Status::bad_request("address not allowed"))?;
    let node = spec.and_then(|s| s.node_name.as_deref()).unwrap_or_default();
    place(node, address, &named, &port)
}

fn of_service(api: &Api, namespace: &str, named: Named<'_>, id: &str) -> Result<ProxyTarget> {
    let found = service_endpoint::find(api, namespace, named.name, named.port, id)?;
    Ok(ProxyTarget { node: found.node, to: Destination::Address(found.address), secure: named.secure })
}

fn place(node: &str, address: IpAddr, named: &Named<'_>, port: &str) -> Result<ProxyTarget> {
    if !is_global_unicast(address) {
        return Err(Status::bad_request("address not allowed"));
    }
    let wrong = || unreachable(&format!("dial tcp: address {port}: invalid port"));
    let port = port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(wrong)?;
    Ok(ProxyTarget {
        node: node.into(),
        to: Destination::Address(SocketAddr::new(address, port)),
        secure: named.secure,
    })
}

/// What was to be reached could not be.
pub(super) fn unreachable(why: &str) -> Status {
    Status::unavailable(format!("error trying to reach service: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_scheme_and_port() {
        let named = |secure, name, port| Some(Named { secure, name, port });
        assert_eq!(Named::parse("web"), named(false, "web", ""));
        assert_eq!(Named::parse("node-1.example.org"), named(false, "node-1.example.org", ""));
        assert_eq!(Named::parse("web:80"), named(false, "web", "80"));
        assert_eq!(Named::parse("http:web:portname1"), named(false, "web", "portname1"));
        assert_eq!(Named::parse("https:web:"), named(true, "web", ""));
        assert_eq!(Named::parse(":web:80"), named(false, "web", "80"));
        for wrong in ["", ":80", "ftp:web:80", "a:b:c:d", "https::80"] {
            assert_eq!(Named::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_pod_cannot_claim_an_address_that_is_everywhere() {
        let pod = Named::parse("p").unwrap();
        for (address, allowed) in [
            ("10.42.0.7", true),
            ("fd00::7", true),
            ("127.0.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
        ] {
            let found = place("n", address.parse().unwrap(), &pod, "80").map_err(|s| s.code);
            assert_eq!(found.is_ok(), allowed, "{address}");
            assert!(allowed || found == Err(400));
        }
        assert_eq!(place("n", [10, 42, 0, 7].into(), &pod, "http").map_err(|s| s.code), Err(503));
    }
}
