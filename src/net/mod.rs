//! Layer 2: pod network, and in `net::proxy`, `net::peers` and `net::policy` (layer 5) the Services, the other nodes and
//! the network policies.
//!
//! Two seams: [`PodNetwork`] gives every pod a network namespace with addresses, [`Dataplane`] turns the Services and
//! host ports into kernel rules. Both have a real and a fake implementation that pass the same suite. Pods are routed,
//! not bridged: each has a point-to-point veth and a host route, so every packet passes the host's IP layer and a reply
//! from a backend on the same node finds its way back through the address translation (see `docs/decisions`).
//!
//! Invariant: everything this room makes in the kernel can be found again from [`Config`] alone, so [`destroy`] is exact.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use ipnet::IpNet;
use tokio::net::TcpStream;

pub mod address;
pub mod check;
mod destroy;
pub(crate) mod netlink;
pub mod nft;
pub mod overlay;
pub mod own_address;
pub mod peers;
pub mod pod;
pub mod policy;
pub mod proxy;
pub(crate) mod settings;

use crate::base::error::chain;

pub use destroy::destroy;
pub use nft::table::{DnsRedirect, Endpoint, HostPort, Protocol, ServicePort, ServiceTable, Unpublished};

/// What this node's network is made of. Equal on every start of one node; two nodes on one machine differ in
/// `bridge` and `run_dir` (or live in different network namespaces).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Ranges this node's pods get their addresses from: at most one per family is used to hand out, in order.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges of all pods of the cluster: traffic that stays inside keeps its source address.
    pub cluster_cidrs: Vec<IpNet>,
    /// Ranges of Service addresses: an address in them that is no Service is rejected, never sent to the outside.
    pub service_cidrs: Vec<IpNet>,
    /// Name of the link that holds the node's own address in the pod range (at most 12 bytes); also the name of the
    /// nftables tables.
    pub bridge: String,
    /// Where namespaces are pinned (`netns/`) and addresses are reserved (`addresses/`).
    pub run_dir: PathBuf,
    /// MTU of pod links; 0 leaves the kernel's default.
    pub mtu: u32,
    /// The machine's own addresses, as the other nodes know them.
    pub addresses: Vec<IpAddr>,
    /// A VXLAN tunnel ends here, whose port is guarded.
    pub tunnel: bool,
    /// Packets of other nodes' pods come in by the machine's own links, too, not by a tunnel alone.
    pub routed_peers: bool,
    /// Where the cluster DNS listens on the gateway addresses: for pods and this machine alone.
    pub dns_port: Option<u16>,
    /// Pods reach no addresses of the machine's own segment, where clouds tell machines their credentials.
    pub block_metadata: bool,
    /// Where the API is reached: no Service and no host port takes these.
    pub api: Vec<SocketAddr>,
    /// The port of the API on this very machine, at whatever address.
    pub api_port: Option<u16>,
    /// The port of the node's own endpoints, at all of its addresses.
    pub kubelet_port: Option<u16>,
}

impl Config {
    /// A configuration with the defaults of a single node.
    pub fn new(run_dir: impl Into<PathBuf>, pod_cidrs: Vec<IpNet>) -> Self {
        Self {
            cluster_cidrs: pod_cidrs.clone(),
            pod_cidrs,
            service_cidrs: Vec::new(),
            bridge: "amphipod0".into(),
            run_dir: run_dir.into(),
            mtu: 0,
            addresses: Vec::new(),
            tunnel: false,
            routed_peers: false,
            dns_port: None,
            block_metadata: false,
            api: Vec::new(),
            api_port: None,
            kubelet_port: None,
        }
    }

    /// The node's own address in each pod range: the pods' gateway and the source of the host's traffic to them.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.pod_cidrs.iter().filter_map(|net| net.hosts().next()).collect()
    }

    /// Name of the nftables tables.
    pub fn table(&self) -> String {
        if self.bridge == "amphipod0" { "amphipod".into() } else { format!("amphipod-{}", self.bridge) }
    }

    /// Name of the tables with the rules that hold without Services.
    pub fn guard_table(&self) -> String {
        format!("{}-guard", self.table())
    }

    /// Name of the tables with what network policies allow.
    pub fn policy_table(&self) -> String {
        format!("{}-policy", self.table())
    }

    /// Ports of this machine's own, which no Service and no host port takes.
    pub(crate) fn own_ports(&self) -> Vec<(Protocol, u16)> {
        let tunnels = overlay::PORTS.map(|port| (Protocol::Udp, port));
        let listeners = self.api_port.into_iter().chain(self.kubelet_port).map(|port| (Protocol::Tcp, port));
        listeners.chain(tunnels).collect()
    }

    pub(crate) fn netns_dir(&self) -> PathBuf {
        self.run_dir.join("netns")
    }

    /// Where the namespace of the pod `id` is pinned while it is attached.
    pub fn netns_path(&self, id: &str) -> PathBuf {
        self.netns_dir().join(id)
    }

    pub(crate) fn addresses_dir(&self) -> PathBuf {
        self.run_dir.join("addresses")
    }
}

/// Why the network could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action}")]
    Kernel {
        action: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no free pod address left in {range}: {used} are in use")]
    Exhausted { range: IpNet, used: usize },
    #[error("pod id `{0}` is not usable as a file name")]
    BadId(String),
    #[error("invalid network configuration: {0}")]
    Config(String),
    #[error("{}", .0.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Several(Vec<Error>),
    #[error("the network thread of pod `{0}` ended early")]
    Lost(String),
}

impl Error {
    pub(crate) fn kernel(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Kernel { action, source }
    }

    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// None of them is fine, one is itself, more are gathered.
    pub(crate) fn gather(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

/// A pod that needs a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAttachment {
    /// Unique for the life of the pod (its UID); usable as a file name.
    pub id: String,
    /// For logs.
    pub namespace: String,
    /// For logs.
    pub name: String,
    /// A namespace that was made for the pod; `None` makes one.
    pub netns: Option<PathBuf>,
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The pinned network namespace, to be joined by the pod's containers.
    pub netns: PathBuf,
    /// One address per family of the configuration.
    pub addresses: Vec<IpAddr>,
}

/// Gives pods their network.
#[async_trait]
pub trait PodNetwork: Send + Sync {
    /// Makes namespace, link, addresses and routes. Idempotent per id: a second call, also after a restart, answers
    /// the same and repairs what is missing.
    async fn attach(&self, pod: PodAttachment) -> Result<Attached, Error>;
    /// Removes all of it and frees the addresses. Unknown ids are fine; it goes on after an error and gathers them.
    async fn detach(&self, id: &str) -> Result<(), Error>;
    /// Every id that holds addresses, also from before a restart, ordered by id.
    async fn list(&self) -> Result<Vec<(String, Vec<IpAddr>)>, Error>;
    /// Connects to a port as a program in the pod would, through its loopback: what listens nowhere else is reached, too.
    async fn connect(&self, id: &str, port: u16) -> std::io::Result<TcpStream>;
    /// Whether the address is this machine's, so that what is sent there ends here.
    fn is_local(&self, address: IpAddr) -> bool;
    /// After a restart: detaches every id that is not in `in_use`, and answers which these were.
    async fn adopt(&self, in_use: &[String]) -> Result<Vec<String>, Error>;
}

/// Turns Services and host ports into kernel rules.
#[async_trait]
pub trait Dataplane: Send + Sync {
    /// Makes the kernel hold exactly this table, in one atomic change, and answers the host ports that are somebody else's.
    /// Cheap when little or nothing changed.
    async fn apply(&self, table: &ServiceTable) -> Result<Vec<Unpublished>, Error>;
}
