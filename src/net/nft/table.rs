//! What the data plane is asked for: Services with their endpoints, and host ports, as plain data.
//!
//! These are this room's own words; `net::proxy` fills them from Kubernetes objects. Invariant: nothing here depends on
//! order, so equal content always plans to equal rules.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Lower-case name as nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Everything the node forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceTable {
    pub services: Vec<ServicePort>,
    pub host_ports: Vec<HostPort>,
    /// The cluster DNS address served by this node itself.
    pub dns: Option<DnsRedirect>,
    /// Ranges of Service addresses beside those that the node was configured with.
    pub ranges: Vec<IpNet>,
}

/// One port of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePort {
    pub namespace: String,
    pub name: String,
    pub port_name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub cluster_ips: Vec<IpAddr>,
    pub node_port: Option<u16>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local_only: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local_only: bool,
    pub endpoints: Vec<Endpoint>,
}

/// Where traffic for a Service may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
    /// On this node.
    pub local: bool,
}

/// A `hostPort` of a pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Unspecified (`0.0.0.0`, `::`) means every local address of that family.
    pub host_ip: IpAddr,
    pub host_port: u16,
    pub protocol: Protocol,
    pub pod_address: IpAddr,
    pub pod_port: u16,
}

/// A host port that nobody reaches its pod by, as it is somebody else's here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpublished {
    pub port: HostPort,
    /// Who has it: `it is the node port of the Service default/web`.
    pub why: String,
}

/// Sends DNS queries for the cluster DNS addresses to this node's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsRedirect {
    pub cluster_ips: Vec<IpAddr>,
    /// One listener per family in use, reachable from pods (the gateway address).
    pub listeners: Vec<SocketAddr>,
}
