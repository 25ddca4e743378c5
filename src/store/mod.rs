//! Durable keys, values and revisions; no Kubernetes kinds.
//!
//! A store is one ordered log. Every change has its own revision; revisions only grow and are never used twice, not even
//! after a crash. A [`Txn`] is atomic: all its preconditions hold and all its changes are made, or nothing happens. An
//! acknowledged commit survives power loss, except that of *volatile* keys (heartbeats, events), which are served from
//! memory and written lazily in large batches: losing the last of them costs nothing but a newer copy.
//!
//! Changes are pushed to one [`Sink`] in revision order before the commit is acknowledged, so whoever reads what the
//! sink feeds reads their own writes.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod memory;
pub mod sqlite;
#[cfg(test)]
mod suite;

/// What goes with a value through the store untouched, so that nobody parses the bytes again.
pub type CommitPayload = Arc<dyn Any + Send + Sync>;

/// A living key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    /// The revision of its last change.
    pub revision: u64,
    pub value: Bytes,
}

/// Preconditions and changes that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    /// Each key must be at exactly this revision; 0 means that it must not exist.
    pub expect: Vec<(Arc<str>, u64)>,
    pub ops: Vec<Op>,
}

/// One change of a transaction. A key is changed at most once in a transaction.
#[derive(Clone)]
pub enum Op {
    Put {
        key: Arc<str>,
        value: Bytes,
        payload: Option<CommitPayload>,
        volatile: bool,
    },
    /// `value` is the last value, which watchers see; deleting a key that does not exist changes nothing.
    Delete {
        key: Arc<str>,
        value: Bytes,
        payload: Option<CommitPayload>,
    },
}

/// A change that happened.
#[derive(Clone)]
pub struct Change {
    pub key: Arc<str>,
    pub revision: u64,
    /// The value, or the last one where `deleted`.
    pub value: Bytes,
    pub deleted: bool,
    pub payload: Option<CommitPayload>,
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision that the page shows.
    pub revision: u64,
    /// How many more keys follow the page.
    pub remaining: u64,
}

/// Why the store did not do what it was asked.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Error {
    #[error("key {key} is at revision {actual}, expected {expected}")]
    Conflict { key: Arc<str>, expected: u64, actual: u64 },
    #[error("revision {asked} is older than the oldest kept one, {oldest}")]
    Compacted { asked: u64, oldest: u64 },
    #[error("the disk that holds {path} is full: free some space; nothing acknowledged was lost")]
    DiskFull { path: String },
    #[error(
        "the database {path} is corrupted ({detail}): stop the server, keep a copy of the file, restore a snapshot"
    )]
    Corrupted { path: String, detail: String },
    #[error("the data directory {path} cannot be written ({detail}): make it writable or choose another --data-dir")]
    NotWritable { path: String, detail: String },
    #[error(
        "the database {path} was written by a newer version (schema {found}, this version knows {known}): upgrade amphipod"
    )]
    Newer { path: String, found: u32, known: u32 },
    #[error("another process uses the database {path}: stop it or choose another --data-dir")]
    Locked { path: String },
    #[error("the store failed: {0}")]
    Failed(String),
    #[error("the store is closed")]
    Closed,
}

/// Takes the changes, in revision order, before they are acknowledged. Called from the one writer: it must not block.
pub trait Sink: Send + 'static {
    fn publish(&mut self, changes: Vec<Change>);

    /// History up to the revision is gone from the store; the sink may let go of it too.
    fn forget(&mut self, _through: u64) {}
}

/// A boxed future of a commit.
pub type Commit<'a> = Pin<Box<dyn Future<Output = Result<u64, Error>> + Send + 'a>>;

/// The seam between the API and what keeps its objects.
pub trait Store: Send + Sync + 'static {
    /// Makes the transaction and answers with the revision of its last change (the head, if it changed nothing).
    fn commit(&self, txn: Txn) -> Commit<'_>;

    /// The key as it is now.
    fn read(&self, key: &str) -> Result<Option<Entry>, Error>;

    /// The keys that begin with `prefix` and sort after `after`, at most `limit` (0: all), as they were at revision `at` (0: now):
    /// no more once their values have `bytes`.
    fn range_within(&self, prefix: &str, at: u64, after: &str, limit: usize, bytes: usize) -> Result<Page, Error>;

    /// The same, however many bytes they have.
    fn range(&self, prefix: &str, at: u64, after: &str, limit: usize) -> Result<Page, Error> {
        self.range_within(prefix, at, after, limit, usize::MAX)
    }

    /// The key as it was at a revision.
    fn read_at(&self, key: &str, at: u64) -> Result<Option<Entry>, Error>;

    /// What happened to keys with `prefix` after a revision, in order, at most `limit` changes: no more once their values
    /// have `bytes`.
    fn changes(&self, after: u64, prefix: &str, limit: usize, bytes: usize) -> Result<Vec<Change>, Error>;

    /// Forgets history: revisions up to `through` can no longer be read or resumed from. Living keys stay.
    fn compact(&self, through: u64);

    /// The revision of the last change.
    fn head(&self) -> u64;

    /// The oldest revision that can still be read.
    fn oldest(&self) -> u64;

    /// Where changes go from now on; loads nothing.
    fn attach(&self, sink: Box<dyn Sink>);

    /// Writes what is still only in memory and ends; later commits fail with [`Error::Closed`].
    fn close(&self);
}

// === impl Page ===

impl Page {
    /// An empty one, which shows a revision.
    fn at(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Takes the next key, if there is room; `left` is what its bytes may be.
    fn push<E>(&mut self, entry: impl FnOnce() -> Result<Entry, E>, limit: usize, left: &mut usize) -> Result<(), E> {
        if *left == 0 || (limit > 0 && self.entries.len() >= limit) {
            self.remaining += 1;
            return Ok(());
        }
        let entry = entry()?;
        *left = left.saturating_sub(entry.value.len().max(1));
        self.entries.push(entry);
        Ok(())
    }
}

// === impl Op ===

impl Op {
    /// The key that it changes.
    pub fn key(&self) -> &Arc<str> {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { key, value, volatile, .. } => {
                write!(f, "Put({key}, {} bytes, volatile {volatile})", value.len())
            }
            Self::Delete { key, .. } => write!(f, "Delete({key})"),
        }
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Change({}@{}{})", self.key, self.revision, if self.deleted { " deleted" } else { "" })
    }
}

/// The first key that sorts after every key with `prefix`; `None` when there is no end.
fn prefix_end(prefix: &str) -> String {
    format!("{prefix}\u{10FFFF}")
}
