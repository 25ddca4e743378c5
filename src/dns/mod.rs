//! Layer 5: cluster DNS.
//!
//! `zone` answers names of the cluster purely from [`Records`], an index that the informers keep; `forward` asks the
//! upstream servers of the host for everything else and caches; `listen` speaks UDP and TCP. No zone data is copied and
//! nothing is polled. Messages are hickory's, the loops are our own: a resolver with catalogues and zone files would
//! cost more than all of this.
//!
//! Invariant: a query gets exactly one answer, also if nobody upstream does (`SERVFAIL`).

use std::net::IpAddr;
use std::sync::Arc;

use crate::net::Protocol;

mod cache;
pub mod forward;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
mod listen;
pub mod records;
mod upstream;
pub mod zone;

pub use forward::Forwarder;
pub use listen::{Error, Listening, Server};
pub use records::Informed;
pub use upstream::Upstreams;
pub use zone::{Answer, Zone, answer};

/// What the cluster zone is answered from. Names are lower case.
pub trait Records: Send + Sync {
    /// Whether the namespace exists.
    fn namespace(&self, namespace: &str) -> bool;
    /// The Service, if it exists.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>>;
    /// What has this address: Services with it as cluster address, else endpoints of headless Services.
    fn pointers(&self, address: IpAddr) -> Vec<Pointer>;
}

/// A Service as DNS sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceRecord {
    /// With cluster addresses.
    Cluster { addresses: Vec<IpAddr>, ports: Vec<PortRecord> },
    /// `clusterIP: None`: the endpoints to be published (ready ones, or all with `publishNotReadyAddresses`).
    Headless { endpoints: Vec<EndpointRecord> },
    /// `type: ExternalName`.
    External { name: String },
}

/// A port of a Service or endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortRecord {
    /// Empty if unnamed.
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint of a headless Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Without one the endpoint is named by its address (`10-42-0-7`).
    pub hostname: Option<String>,
    pub address: IpAddr,
    pub ports: Vec<PortRecord>,
}

impl EndpointRecord {
    /// The label in front of the Service's name.
    pub fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| self.address.to_string().replace(['.', ':'], "-"))
    }
}

/// The owner of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    pub namespace: String,
    pub service: String,
    /// [`EndpointRecord::label`] for endpoints, `None` for the Service itself.
    pub endpoint: Option<String>,
}
