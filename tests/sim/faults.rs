//! A store between the API and the model: it is slow at times, loses races at times, and shows every commit to the
//! checkers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod::base::clock::Clock;
use amphipod::store::memory::Memory;
use amphipod::store::{Change, Commit, Entry, Error, Page, Sink, Store, Txn};

use crate::checkers::Checkers;

/// The store with faults.
pub struct Faulty {
    pub inner: Arc<Memory>,
    pub clock: Clock,
    pub checkers: Arc<Mutex<Checkers>>,
    /// Commits out of a thousand that lose a race that nobody ran.
    pub conflicts: u64,
}

struct Watched {
    sink: Box<dyn Sink>,
    checkers: Arc<Mutex<Checkers>>,
}

impl Sink for Watched {
    fn publish(&mut self, changes: Vec<Change>) {
        self.sink.publish(changes.clone());
        self.checkers.lock().unwrap().committed(&changes);
    }
}

impl Store for Faulty {
    fn commit(&self, txn: Txn) -> Commit<'_> {
        let draw = self.clock.random_u64();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_micros(draw % 3000)).await;
            match txn.expect.first() {
                Some((key, expected)) if (draw >> 32) % 1000 < self.conflicts && *expected > 0 => {
                    Err(Error::Conflict { key: key.clone(), expected: *expected, actual: *expected })
                }
                _ => self.inner.commit(txn).await,
            }
        })
    }

    fn read(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.inner.read(key)
    }

    fn range_within(&self, prefix: &str, at: u64, after: &str, limit: usize, bytes: usize) -> Result<Page, Error> {
        self.inner.range_within(prefix, at, after, limit, bytes)
    }

    fn read_at(&self, key: &str, at: u64) -> Result<Option<Entry>, Error> {
        self.inner.read_at(key, at)
    }

    fn changes(&self, after: u64, prefix: &str, limit: usize, bytes: usize) -> Result<Vec<Change>, Error> {
        self.inner.changes(after, prefix, limit, bytes)
    }

    fn compact(&self, through: u64) {
        self.inner.compact(through);
    }

    fn head(&self) -> u64 {
        self.inner.head()
    }

    fn oldest(&self) -> u64 {
        self.inner.oldest()
    }

    fn attach(&self, sink: Box<dyn Sink>) {
        self.inner.attach(Box::new(Watched { sink, checkers: self.checkers.clone() }));
    }

    fn close(&self) {
        self.inner.close();
    }
}
