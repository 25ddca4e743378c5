//! What the writer and its readers share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::base::fs_stats::FsStats;
use crate::store::{Error, Sink, Txn};

/// A disk with less than this is full: the index of the log grows in pieces of this size.
const FULL_BYTES: u64 = 64 << 10;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// For at least this long (unless `bytes` is exceeded).
    pub age: Duration,
    /// At most about this many bytes of values.
    pub bytes: u64,
}

pub(super) enum Request {
    Commit(Txn, oneshot::Sender<Result<u64, Error>>),
    Compact(u64),
    Attach(Box<dyn Sink>),
    Close,
}

/// What the writer shows to readers.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) head: AtomicU64,
    pub(super) compacted: AtomicU64,
    /// Volatile keys whose newest value is not in the file (yet).
    pub(super) volatile: Mutex<BTreeMap<Arc<str>, Volatile>>,
    /// How many group commits were made durable.
    pub(super) commits: AtomicU64,
}

#[derive(Clone)]
pub(super) struct Volatile {
    pub(super) revision: u64,
    pub(super) created: u64,
    pub(super) value: Bytes,
}

/// Names what went wrong in terms of what the user can do.
pub(super) fn failure(path: &Path, error: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let full = is_full(path);
    let (path, detail) = (path.display().to_string(), error.to_string());
    match error.sqlite_error_code() {
        Some(Code::DiskFull) => Error::DiskFull { path },
        // The file of the log's index cannot grow: told as any other failure of the disk.
        Some(Code::SystemIoFailure | Code::CannotOpen) if full => Error::DiskFull { path },
        Some(Code::SystemIoFailure) => {
            Error::Failed(format!("the disk that holds {path} fails ({detail}): look at the kernel's log"))
        }
        Some(Code::DatabaseCorrupt | Code::NotADatabase) => Error::Corrupted { path, detail },
        Some(Code::CannotOpen | Code::ReadOnly | Code::PermissionDenied) => Error::NotWritable { path, detail },
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => Error::Locked { path },
        _ => Error::Failed(detail),
    }
}

// === impl Retention ===

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(300), bytes: 64 << 20 }
    }
}

/// Whether nothing more fits on the disk.
fn is_full(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(path);
    FsStats::of(directory).is_ok_and(|s| s.available_bytes < FULL_BYTES)
}
