//! The data plane on nftables, spoken to over netlink.
//!
//! `table` is the input, `plan` turns it into a `ruleset`, `diff` finds what to write, `encode` writes it, `conntrack`
//! forgets UDP flows to backends that are gone. The kernel's table carries a fingerprint of what it holds, so a start
//! after a kill writes nothing if nothing changed, and a table that somebody else flushed is noticed and made anew.
//!
//! Invariant: each apply is one atomic batch; packets see the old rules or the new ones, never a mixture; tables of
//! others are never touched.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

mod buffer;
mod conntrack;
pub mod diff;
mod encode;
#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod fake;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
pub mod guard;
mod kernel;
pub mod plan;
pub mod policies;
pub mod ruleset;
#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod suite;
pub mod table;

use self::buffer::Message;
use self::diff::Change;
use self::encode::Batch;
use self::ruleset::{Family, Ruleset};
use self::table::ServiceTable;
use super::netlink::Socket;
use super::{Config, Dataplane, Error, Unpublished};
pub(super) use conntrack::probe as probe_conntrack;
pub use diff::diff;
#[cfg(any(test, feature = "fakes", debug_assertions))]
pub use fake::FakeDataplane;
pub use guard::Guard;
pub use kernel::Written;
use kernel::{Kernel, whole};
pub use plan::plan;
pub use policies::Policies;

/// The real data plane.
pub struct NftDataplane {
    inner: Arc<Mutex<State>>,
}

struct State {
    config: Config,
    kernel: Kernel,
    /// What was applied last.
    table: Option<ServiceTable>,
    /// What of it was not.
    skipped: plan::Skipped,
}

impl NftDataplane {
    /// Works in the network namespace of the calling thread, also when applied from another thread later.
    pub fn open(config: Config) -> Result<Self, Error> {
        Ok(Self {
            inner: Arc::new(Mutex::new(State {
                config,
                kernel: Kernel::open()?,
                table: None,
                skipped: plan::Skipped::default(),
            })),
        })
    }

    /// [`Dataplane::apply`] that blocks and tells what it wrote.
    pub fn apply_now(&self, table: &ServiceTable) -> Result<Written, Error> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).apply(table)
    }
}

#[async_trait]
impl Dataplane for NftDataplane {
    async fn apply(&self, table: &ServiceTable) -> Result<Vec<Unpublished>, Error> {
        let (inner, table) = (Arc::clone(&self.inner), table.clone());
        let work = move || {
            let mut state = inner.lock().unwrap_or_else(PoisonError::into_inner);
            state.apply(&table).map(|written| (written, state.skipped.host_ports.clone()))
        };
        let (written, unpublished) =
            crate::base::task::blocking(work).await.map_err(|e| Error::kernel("applying rules")(e.into()))??;
        tracing::debug!(?written, "applied the service rules");
        Ok(unpublished)
    }
}

impl State {
    fn apply(&mut self, table: &ServiceTable) -> Result<Written, Error> {
        let (ruleset, skipped) = plan::plan_with_skipped(&self.config, table);
        for what in skipped.services.iter().filter(|what| !self.skipped.services.contains(what)) {
            tracing::warn!("{what}; it is left out");
        }
        for new in skipped.host_ports.iter().filter(|new| !self.skipped.host_ports.contains(new)) {
            let Unpublished { port, why } = new;
            let (number, protocol) = (port.host_port, port.protocol.name());
            tracing::warn!("host port {number}/{protocol} of the pod {}: {why}; it is left out", port.pod_address);
        }
        self.skipped = skipped;
        let written = self.kernel.write(ruleset)?;
        // After a start, or after rules of somebody else's, every front counts as changed.
        let before = self.table.as_ref().filter(|_| written != Written::Whole);
        let stale = match (written, before) {
            (Written::Nothing, _) => conntrack::StaleFlows::default(),
            (_, before) => conntrack::stale_flows(before, table),
        };
        if written != Written::Nothing || self.table.is_none() {
            self.table = Some(table.clone());
        }
        let deleted = conntrack::delete_flows(&mut self.kernel.socket, &stale);
        deleted.map_err(Error::kernel("cannot forget old UDP flows"))?;
        Ok(written)
    }
}

/// Deletes this configuration's tables if they are there.
pub(super) fn remove_tables(config: &Config) -> Result<(), Error> {
    let mut socket = Socket::netfilter().map_err(Error::kernel("cannot open a netfilter socket"))?;
    let mut errors = Vec::new();
    let names = [config.table(), config.guard_table(), config.policy_table()];
    for (name, family) in names.iter().flat_map(|name| [(name, Family::Ip), (name, Family::Ip6)]) {
        errors.extend(remove_table(&mut socket, name, family).err());
    }
    Error::gather(errors)
}

/// Deletes a table if it is there.
fn remove_table(socket: &mut Socket, name: &str, family: Family) -> Result<(), Error> {
    let mut batch = Batch::new(name);
    batch.clear_table(family);
    let (buffer, last) = batch.finish_empty();
    match socket.batch::<Message>(buffer.bytes(), last) {
        // A kernel without IPv6 has no such tables.
        Err(e) if family == Family::Ip6 && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
        other => other.map_err(Error::kernel("cannot delete the nftables table")),
    }
}

/// Whether the kernel takes our rules: writes and removes a table under a name of its own.
pub(super) fn probe(config: &Config) -> Result<(), Error> {
    let name = format!("{}-probe-{}", config.table(), std::process::id());
    let mut socket = Socket::netfilter().map_err(Error::kernel("cannot open a netfilter socket"))?;
    for ruleset in [plan(config, &probe_table(config)), guard::plan(config, &guard::NodeSets::default())] {
        let ruleset = Ruleset { name: name.clone(), ..ruleset };
        let mut batch = whole(&ruleset, 0);
        ruleset.tables.keys().for_each(|family| batch.push(*family, &Change::DeleteTable));
        let (buffer, last) = batch.finish_empty();
        socket.batch::<Message>(buffer.bytes(), last).map_err(Error::kernel("nftables refuses our rules"))?;
    }
    Ok(())
}

/// A Service that needs every construct we use.
fn probe_table(config: &Config) -> ServiceTable {
    let Some(net) = config.pod_cidrs.first() else { return ServiceTable::default() };
    let endpoint = |port| table::Endpoint { address: net.addr(), port, local: true };
    let service = table::ServicePort {
        port: 80,
        node_port: Some(30000),
        cluster_ips: vec![net.addr()],
        affinity: Some(std::time::Duration::from_secs(10)),
        endpoints: vec![endpoint(1), endpoint(2)],
        ..table::ServicePort::default()
    };
    ServiceTable { services: vec![service], ..ServiceTable::default() }
}

#[cfg(test)]
mod tests;
