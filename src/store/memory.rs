//! The model of a store: everything in memory, for tests and for the simulation.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use super::{Change, Commit, Entry, Error, Op, Page, Sink, Store, Txn, prefix_end};

/// A store that forgets everything with the process.
#[derive(Default)]
pub struct Memory(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Every kept version of every key, oldest first; `None` is a deletion.
    keys: BTreeMap<Arc<str>, Vec<(u64, Option<Bytes>)>>,
    /// Every kept change by revision.
    log: BTreeMap<u64, Change>,
    head: u64,
    compacted: u64,
    closed: bool,
    sink: Option<Box<dyn Sink>>,
}

// === impl Memory ===

impl Memory {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic while held")
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory(head {})", self.lock().head)
    }
}

impl Store for Memory {
    fn commit(&self, txn: Txn) -> Commit<'_> {
        let result = self.lock().commit(txn);
        Box::pin(std::future::ready(result))
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.lock().living(key, u64::MAX))
    }

    fn range_within(&self, prefix: &str, at: u64, after: &str, limit: usize, bytes: usize) -> Result<Page, Error> {
        let inner = self.lock();
        if at > 0 && at < inner.compacted {
            return Err(Error::Compacted { asked: at, oldest: inner.compacted });
        }
        let revision = if at == 0 { inner.head } else { at };
        let end = prefix_end(prefix);
        let keys = inner.keys.range::<str, _>((Included(prefix), Excluded(&*end))).map(|(k, _)| k);
        let living = keys.filter(|k| &***k > after).filter_map(|k| inner.living(k, revision));
        let (mut page, mut left) = (Page::at(revision), bytes);
        for entry in living {
            page.push(|| Ok(entry), limit, &mut left)?;
        }
        Ok(page)
    }

    fn read_at(&self, key: &str, at: u64) -> Result<Option<Entry>, Error> {
        let inner = self.lock();
        match at < inner.compacted {
            true => Err(Error::Compacted { asked: at, oldest: inner.compacted }),
            false => Ok(inner.living(key, at)),
        }
    }

    fn changes(&self, after: u64, prefix: &str, limit: usize, bytes: usize) -> Result<Vec<Change>, Error> {
        let inner = self.lock();
        if after < inner.compacted {
            return Err(Error::Compacted { asked: after, oldest: inner.compacted });
        }
        let newer = inner.log.range(after + 1..).map(|(_, c)| c);
        let mut left = bytes;
        let mut found = Vec::new();
        for change in newer.filter(|c| c.key.starts_with(prefix)).take(limit) {
            found.push(change.clone());
            left = left.saturating_sub(change.value.len());
            if left == 0 {
                break;
            }
        }
        Ok(found)
    }

    fn compact(&self, through: u64) {
        let mut inner = self.lock();
        let through = through.min(inner.head);
        if through <= inner.compacted {
            return;
        }
        inner.compacted = through;
        inner.log = inner.log.split_off(&(through + 1));
        if let Some(sink) = &mut inner.sink {
            sink.forget(through);
        }
        inner.keys.retain(|_, versions| {
            let old = versions.iter().rposition(|(r, _)| *r <= through).unwrap_or(0);
            versions.drain(..old);
            !(versions.len() == 1 && versions[0].1.is_none() && versions[0].0 <= through)
        });
    }

    fn head(&self) -> u64 {
        self.lock().head
    }

    fn oldest(&self) -> u64 {
        self.lock().compacted
    }

    fn attach(&self, sink: Box<dyn Sink>) {
        self.lock().sink = Some(sink);
    }

    fn close(&self) {
        self.lock().closed = true;
    }
}

// === impl Inner ===

impl Inner {
    fn living(&self, key: &str, at: u64) -> Option<Entry> {
        let (key, versions) = self.keys.get_key_value(key)?;
        let (revision, value) = versions.iter().rev().find(|(r, _)| *r <= at)?;
        Some(Entry { key: key.clone(), revision: *revision, value: value.clone()? })
    }

    fn commit(&mut self, txn: Txn) -> Result<u64, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        for (key, expected) in txn.expect {
            let actual = self.living(&key, u64::MAX).map_or(0, |e| e.revision);
            if actual != expected {
                return Err(Error::Conflict { key, expected, actual });
            }
        }
        let mut changes = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let change = match op {
                Op::Put { key, value, payload, .. } => Change { key, revision: 0, value, deleted: false, payload },
                Op::Delete { key, .. } if self.living(&key, u64::MAX).is_none() => continue,
                Op::Delete { key, value, payload } => Change { key, revision: 0, value, deleted: true, payload },
            };
            self.head += 1;
            let change = Change { revision: self.head, ..change };
            let version = (self.head, (!change.deleted).then(|| change.value.clone()));
            self.keys.entry(change.key.clone()).or_default().push(version);
            self.log.insert(self.head, Change { payload: None, ..change.clone() });
            changes.push(change);
        }
        if let (Some(sink), false) = (&mut self.sink, changes.is_empty()) {
            sink.publish(changes);
        }
        Ok(self.head)
    }
}
