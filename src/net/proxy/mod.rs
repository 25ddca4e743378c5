//! Layer 5 part of this room: the Services of the cluster as the data plane's table.
//!
//! Services and EndpointSlices come from informers, host ports from the node. A change marks its Service, a few
//! milliseconds are waited for more of them, only marked Services are planned anew, and the whole table is handed to
//! the [`Dataplane`], which writes the difference in one batch.
//!
//! Invariant: no wake-up is lost. What comes while an apply runs waits in the informer, and what failed to apply is
//! applied again after a wait, together with whatever came meanwhile.

mod index;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::index::Index;
pub use self::plan::plan;
use super::{Dataplane, DnsRedirect, HostPort, ServiceTable, Unpublished};
use crate::base::metrics::{self, Pairs};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::service;
use crate::kinds::discovery::endpointslice;
use crate::kinds::networking::servicecidr;
use crate::reconcile::{Changes, Client, Informer};

/// How long changes are gathered: a rollout changes many things at once.
const BATCH: Duration = Duration::from_millis(3);
/// Waits after failures: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How often the kernel is looked at although nothing changed, so that rules that others flushed come back.
const RESYNC: Duration = Duration::from_secs(60);

/// What the proxy needs to know about its node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides which endpoints are local.
    pub node_name: String,
    /// The cluster DNS served by this node, if it is.
    pub dns: Option<DnsRedirect>,
    /// Host ports of this node's pods, kept by the node.
    pub host_ports: watch::Receiver<Vec<HostPort>>,
    /// Those of them that are somebody else's here.
    pub unpublished: watch::Sender<Vec<Unpublished>>,
}

/// Keeps the data plane equal to the cluster's Services. Aborting the handle stops it; the rules stay.
pub fn start(client: Arc<dyn Client>, dataplane: Arc<dyn Dataplane>, options: Options) -> JoinHandle<Option<()>> {
    let (services, slices) = (client.informer(&service::KIND), client.informer(&endpointslice::KIND));
    let ranges = client.informer(&servicecidr::KIND);
    task::spawn("service proxy", run(services, slices, ranges, dataplane, options))
}

async fn run(services: Informer, slices: Informer, ranges: Informer, dataplane: Arc<dyn Dataplane>, options: Options) {
    services.synced().await;
    slices.synced().await;
    let mut watches = Watches {
        service_changes: services.subscribe(),
        slice_changes: slices.subscribe(),
        // An older server has none: nothing waits for them.
        range_changes: ranges.subscribe(),
        host_ports: options.host_ports.clone(),
        host_ports_closed: false,
        index: Index::new(options.node_name.clone()),
        services,
        slices,
        ranges,
    };
    watches.index.replace_services(&watches.services.list(""));
    watches.index.replace_slices(&watches.slices.list(""));
    let mut retry = RETRY.0;
    loop {
        let ranges = watches.ranges();
        let table = ServiceTable {
            services: watches.index.rows(),
            host_ports: watches.host_ports.borrow_and_update().clone(),
            dns: options.dns.clone(),
            ranges,
        };
        let began = Instant::now();
        let applied = dataplane.apply(&table).await;
        metrics::PROXY_SYNC.observe(Pairs([]), began.elapsed());
        let pause = match applied {
            Ok(unpublished) => {
                options.unpublished.send_if_modified(|old| {
                    *old != unpublished && {
                        *old = unpublished;
                        true
                    }
                });
                retry = RETRY.0;
                RESYNC
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "service rules cannot be applied; it is tried again");
                let wait = retry;
                retry = (retry * 2).min(RETRY.1);
                wait
            }
        };
        if watches.changed(Instant::now() + pause).await {
            let end = Instant::now() + BATCH;
            while watches.changed(end).await {}
        }
    }
}

struct Watches {
    services: Informer,
    slices: Informer,
    ranges: Informer,
    service_changes: Box<dyn Changes>,
    slice_changes: Box<dyn Changes>,
    range_changes: Box<dyn Changes>,
    host_ports: watch::Receiver<Vec<HostPort>>,
    host_ports_closed: bool,
    index: Index,
}

// === impl Watches ===

impl Watches {
    /// The ranges of Service addresses that objects name.
    fn ranges(&self) -> Vec<IpNet> {
        let net = |(address, length)| IpNet::new(address, length).ok();
        let of = |object: &Arc<Object>| servicecidr::ranges(&object.value()).filter_map(net).collect::<Vec<_>>();
        let mut ranges: Vec<IpNet> = self.ranges.list("").iter().flat_map(of).collect();
        ranges.sort();
        ranges
    }

    /// Takes the next changes into the index; false when none came until `end`.
    async fn changed(&mut self, end: Instant) -> bool {
        tokio::select! {
            biased;
            // First, so that a stream of changes cannot put an apply off for ever.
            () = sleep_until(end) => false,
            changes = self.service_changes.next() => {
                match changes {
                    Some(changes) => changes.iter().for_each(|c| self.index.service(&c.object, c.deleted)),
                    None => self.index.replace_services(&self.services.list("")),
                }
                true
            }
            changes = self.slice_changes.next() => {
                match changes {
                    Some(changes) => changes.iter().for_each(|c| self.index.slice(&c.object, c.deleted)),
                    None => self.index.replace_slices(&self.slices.list("")),
                }
                true
            }
            _ = self.range_changes.next() => true,
            changed = self.host_ports.changed(), if !self.host_ports_closed => {
                self.host_ports_closed = changed.is_err();
                changed.is_ok()
            }
        }
    }
}

#[cfg(test)]
mod tests;
