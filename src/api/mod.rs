//! The Kubernetes API over the store.
//!
//! [`Api`] is the API without HTTP: the same verbs for every kind through one path. Reads come from the watch cache
//! ([`cache`]); every write goes through [`write`]. `http` puts it on the wire; in-process clients call it directly.

pub mod admission;
pub mod aggregate;
pub mod allocate;
pub mod bootstrap;
pub mod cache;
pub mod conversion;
pub mod definitions;
pub mod delete;
pub mod evicted;
pub mod flowcontrol;
pub mod form;
pub mod http;
pub mod identity;
#[cfg(test)]
pub(crate) mod in_memory;
pub mod local;
pub mod read;
mod request;
pub mod resource_metrics;
pub mod sending;
mod service_endpoint;
pub mod shares;
mod store_error;
pub mod subresource;
mod turns;
pub mod watch;
mod webhook;
pub mod write;

#[cfg(test)]
mod growth;

pub use request::{FieldValidation, Request};

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::apimachinery::http::connections::Connections;
use crate::apimachinery::node_access;
use crate::apimachinery::status::{self, Status};
use crate::base::clock::Clock;
use crate::kinds::KindRef;
use crate::kinds::registry::Registry;
use crate::store::Store;
use cache::Cache;
use identity::rbac::Rbac;
use identity::token::Tokens;

/// The API machine; cheap to clone.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

/// What [`Api`] holds.
pub struct Inner {
    pub kinds: Registry,
    pub store: Arc<dyn Store>,
    pub cache: Cache,
    pub clock: Clock,
    pub options: Options,
    pub rbac: Rbac,
    pub tokens: Tokens,
    /// Reaches pods on nodes: logs, exec, ports.
    pub nodes: node_access::Nodes,
    /// Other servers that answer for versions of groups.
    pub aggregate: aggregate::Aggregator,
    /// What nodes and pods were found to use.
    pub resource_metrics: resource_metrics::ResourceMetrics,
    /// Who is connected.
    pub connections: Connections,
    /// Who may run now.
    pub flow: flowcontrol::FlowControl,
    /// Held while a write takes an address or a port: what is taken is read from the cache, so the next may look only
    /// after the write before is in it.
    allocation: tokio::sync::Mutex<()>,
    /// Taken by namespace while a write is held against quotas, which the next must find as it left them.
    quota_turns: turns::Turns,
}

/// What differs from cluster to cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// `address/prefix length` of Service addresses, one of each family.
    pub service_cidrs: Vec<(IpAddr, u8)>,
    /// Ranges that Services may name addresses of in `externalIPs`.
    pub external_ips: Vec<IpNet>,
    /// Ranges of the cluster's own addresses.
    pub inner_cidrs: Vec<IpNet>,
    /// First and last port of NodePorts.
    pub node_ports: (u16, u16),
    /// The issuer of service-account tokens.
    pub issuer: String,
    /// Whether `metrics.k8s.io` is served from the nodes' own numbers.
    pub resource_metrics: bool,
}

// === impl Api ===

impl Api {
    /// The API over a store whose content `cache` follows.
    pub fn new(store: Arc<dyn Store>, cache: Cache, clock: Clock, options: Options, tokens: Tokens) -> Self {
        let flow = flowcontrol::FlowControl::default();
        let sending = flow.sending().clone();
        cache.evicted().ends_readers(move || sending.end_oldest_list());
        Self(Arc::new(Inner {
            rbac: Rbac::new(cache.clone()),
            nodes: node_access::Nodes::default(),
            aggregate: aggregate::Aggregator::default(),
            resource_metrics: resource_metrics::ResourceMetrics::default(),
            connections: Connections::default(),
            flow,
            allocation: tokio::sync::Mutex::new(()),
            quota_turns: turns::Turns::default(),
            kinds: cache.kinds().clone(),
            store,
            cache,
            clock,
            options,
            tokens,
        }))
    }
}

/// Kinds that come and go.
impl Api {
    /// Serves a kind from now on, with what the store has of it.
    pub fn add_kind(&self, kind: KindRef) -> status::Result<()> {
        self.cache.add_kind(&*self.store, kind).map_err(Status::from)
    }

    /// Serves a kind no longer: its paths lead nowhere and its watches end. Its objects stay in the store.
    pub fn remove_kind(&self, kind: &KindRef) {
        self.cache.remove_kind(kind);
    }
}

impl std::ops::Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({:?})", self.cache)
    }
}
