//! The data plane on nftables, spoken to over netlink.
//!
//! `table` is the input, `plan` turns it into a `ruleset`, `diff` finds what to write, `encode` writes it, `conntrack`
//! forgets UDP flows to backends that are gone. The kernel's table carries a fingerprint of what it holds, so a start
//! after a kill writes nothing if nothing changed, and a table that somebody else flushed is noticed and made anew.
//!
//! Invariant: each apply is one atomic batch; packets see the old rules or the new ones, never a mixture; tables of
//! others are never touched.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

mod buffer;
mod conntrack;
pub mod diff;
mod encode;
pub mod fake;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
pub mod guard;
pub mod plan;
pub mod ruleset;
pub mod suite;
pub mod table;

pub(super) use conntrack::probe as probe_conntrack;
pub use diff::diff;
pub use fake::FakeDataplane;
pub use guard::Guard;
pub use plan::plan;

use self::buffer::Message;
use self::diff::Change;
use self::encode::Batch;
use self::ruleset::{Family, Ruleset};
use self::table::ServiceTable;
use super::netlink::Socket;
use super::{Config, Dataplane, Error};

/// What an apply did, for logs and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The kernel held it already.
    Nothing,
    /// So many changes to what was there.
    Changes(usize),
    /// Everything: first start, or somebody else changed our table.
    Whole,
}

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
    skipped: Vec<String>,
}

/// Writes rulesets of one name, and remembers what the kernel holds of it.
struct Kernel {
    socket: Socket,
    /// What we wrote last, with its fingerprint.
    known: Option<(u64, Ruleset)>,
}

impl NftDataplane {
    /// Works in the network namespace of the calling thread, also when applied from another thread later.
    pub fn open(config: Config) -> Result<Self, Error> {
        Ok(Self {
            inner: Arc::new(Mutex::new(State { config, kernel: Kernel::open()?, table: None, skipped: Vec::new() })),
        })
    }

    /// [`Dataplane::apply`] that blocks and tells what it wrote.
    pub fn apply_now(&self, table: &ServiceTable) -> Result<Written, Error> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).apply(table)
    }
}

#[async_trait]
impl Dataplane for NftDataplane {
    async fn apply(&self, table: &ServiceTable) -> Result<(), Error> {
        let (inner, table) = (Arc::clone(&self.inner), table.clone());
        let work = move || inner.lock().unwrap_or_else(PoisonError::into_inner).apply(&table);
        let written =
            tokio::task::spawn_blocking(work).await.map_err(|e| Error::kernel("applying rules")(e.into()))??;
        tracing::debug!(?written, "applied the service rules");
        Ok(())
    }
}

impl State {
    fn apply(&mut self, table: &ServiceTable) -> Result<Written, Error> {
        let (ruleset, skipped) = plan::plan_with_skipped(&self.config, table);
        for what in skipped.iter().filter(|what| !self.skipped.contains(what)) {
            tracing::warn!("{what}; it is left out");
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

impl Kernel {
    fn open() -> Result<Self, Error> {
        let socket = Socket::netfilter().map_err(Error::kernel("cannot open a netfilter socket"))?;
        Ok(Self { socket, known: None })
    }

    /// Makes the kernel hold exactly this.
    fn write(&mut self, ruleset: Ruleset) -> Result<Written, Error> {
        let wanted = encode::fingerprint(&ruleset);
        let found = self.read_fingerprint(&ruleset).map_err(Error::kernel("cannot read the nftables rules"))?;
        if found == Some(wanted) {
            self.known.get_or_insert_with(|| (wanted, ruleset));
            return Ok(Written::Nothing);
        }
        let old = self.known.take_if(|(fingerprint, _)| found == Some(*fingerprint));
        let (batch, written) = match &old {
            Some((_, before)) => changes(before, &ruleset, wanted),
            None => (whole(&ruleset, wanted), Written::Whole),
        };
        let family = ruleset.tables.keys().next().copied().unwrap_or(Family::Ip);
        let (buffer, last) = batch.finish(family);
        if let Err(error) = self.socket.batch::<Message>(buffer.bytes(), last) {
            self.known = old;
            return Err(Error::kernel("cannot write the nftables rules")(error));
        }
        self.known = Some((wanted, ruleset));
        Ok(written)
    }

    /// What the kernel holds: `None` if a table is missing, foreign or differs between families.
    fn read_fingerprint(&mut self, ruleset: &Ruleset) -> io::Result<Option<u64>> {
        let mut found = None;
        for family in ruleset.tables.keys() {
            let written = find_fingerprint(&mut self.socket, &ruleset.name, *family)?;
            if written.is_none() || found.is_some_and(|f| Some(f) != written) {
                return Ok(None);
            }
            found = written;
        }
        Ok(found)
    }
}

fn find_fingerprint(socket: &mut Socket, table: &str, family: Family) -> io::Result<Option<u64>> {
    let mut found = None;
    match socket
        .dump(encode::fingerprint_query(table, family), |rule| found = found.or(encode::read_fingerprint(&rule, table)))
    {
        Ok(()) => Ok(found),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The table from nothing; what was there under its name goes in the same instant.
fn whole(ruleset: &Ruleset, fingerprint: u64) -> Batch {
    let mut batch = Batch::new(&ruleset.name);
    for family in ruleset.tables.keys() {
        batch.clear_table(*family);
    }
    let nothing = Ruleset { name: ruleset.name.clone(), tables: BTreeMap::new() };
    diff(&nothing, ruleset).iter().for_each(|(family, change)| batch.push(*family, change));
    ruleset.tables.keys().for_each(|family| batch.write_fingerprint(*family, fingerprint, true));
    batch
}

fn changes(old: &Ruleset, new: &Ruleset, fingerprint: u64) -> (Batch, Written) {
    let mut batch = Batch::new(&new.name);
    let list = diff(old, new);
    list.iter().for_each(|(family, change)| batch.push(*family, change));
    let fresh = |family: &Family| list.contains(&(*family, Change::AddTable));
    new.tables.keys().for_each(|family| batch.write_fingerprint(*family, fingerprint, fresh(family)));
    (batch, Written::Changes(list.len()))
}

/// Deletes this configuration's tables if they are there.
pub(super) fn remove_tables(config: &Config) -> Result<(), Error> {
    let mut socket = Socket::netfilter().map_err(Error::kernel("cannot open a netfilter socket"))?;
    let mut errors = Vec::new();
    let names = [config.table(), config.guard_table()];
    for (name, family) in names.iter().flat_map(|name| [(name, Family::Ip), (name, Family::Ip6)]) {
        let mut batch = Batch::new(name);
        batch.clear_table(family);
        let (buffer, last) = batch.finish_empty();
        let removed = match socket.batch::<Message>(buffer.bytes(), last) {
            // A kernel without IPv6 has no such tables.
            Err(e) if family == Family::Ip6 && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            other => other,
        };
        errors.extend(removed.map_err(Error::kernel("cannot delete the nftables table")).err());
    }
    Error::gather(errors)
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
