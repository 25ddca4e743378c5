//! Rulesets of one name in the kernel.

use std::collections::BTreeMap;
use std::io;

use super::super::Error;
use super::super::netlink::Socket;
use super::buffer::Message;
use super::diff::{Change, diff};
use super::encode::{self, Batch};
use super::ruleset::{Family, Ruleset};

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

/// Writes rulesets of one name, and remembers what the kernel holds of it.
pub(super) struct Kernel {
    pub(super) socket: Socket,
    /// What we wrote last, with its fingerprint.
    pub(super) known: Option<(u64, Ruleset)>,
}

// === impl Kernel ===

impl Kernel {
    pub(super) fn open() -> Result<Self, Error> {
        let socket = Socket::netfilter().map_err(Error::kernel("cannot open a netfilter socket"))?;
        Ok(Self { socket, known: None })
    }

    /// Makes the kernel hold exactly this.
    pub(super) fn write(&mut self, ruleset: Ruleset) -> Result<Written, Error> {
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
    pub(super) fn read_fingerprint(&mut self, ruleset: &Ruleset) -> io::Result<Option<u64>> {
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

/// The table from nothing; what was there under its name goes in the same instant.
pub(super) fn whole(ruleset: &Ruleset, fingerprint: u64) -> Batch {
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
