//! Tells any number of readers that something has changed, in the order in which they began to wait.
//!
//! tokio's `watch` spreads its readers at random over several queues; a simulation that is to repeat itself from a seed
//! needs one order. Invariant: a receiver that has not seen a change is woken, also if it began to wait after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The side that tells.
#[derive(Debug, Default)]
pub struct Signal(Arc<Shared>);

/// The side that waits.
#[derive(Clone, Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    seen: u64,
}

#[derive(Debug, Default)]
struct Shared {
    count: AtomicU64,
    notify: Notify,
}

/// Nobody tells any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// The count after which nobody tells.
const CLOSED: u64 = u64::MAX;

// === impl Signal ===

impl Signal {
    /// Wakes everyone who waits, and everyone who waits next.
    pub fn tell(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
        self.0.notify.notify_waiters();
    }

    /// A receiver that has seen everything until now.
    pub fn subscribe(&self) -> Receiver {
        Receiver { shared: self.0.clone(), seen: self.0.count.load(Ordering::Acquire) }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.0.count.store(CLOSED, Ordering::Release);
        self.0.notify.notify_waiters();
    }
}

// === impl Receiver ===

impl Receiver {
    /// Counts everything until now as seen.
    pub fn mark_unchanged(&mut self) {
        let count = self.shared.count.load(Ordering::Acquire);
        if count != CLOSED {
            self.seen = count;
        }
    }

    /// Whether something has changed that was not seen.
    pub fn has_changed(&self) -> bool {
        self.shared.count.load(Ordering::Acquire) != self.seen
    }

    /// Returns when something has changed that was not seen. Safe to drop and call again.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let notified = self.shared.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            match self.shared.count.load(Ordering::Acquire) {
                CLOSED => return Err(Closed),
                count if count != self.seen => {
                    self.seen = count;
                    return Ok(());
                }
                _ => notified.await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_before_and_while_waiting_are_seen_once() {
        let signal = Signal::default();
        let mut receiver = signal.subscribe();
        signal.tell();
        assert_eq!(receiver.changed().await, Ok(()));
        {
            let waiting = receiver.changed();
            tokio::pin!(waiting);
            assert!(futures::poll!(waiting.as_mut()).is_pending());
            signal.tell();
            signal.tell();
            assert_eq!(waiting.await, Ok(()));
        }
        signal.tell();
        receiver.mark_unchanged();
        assert!(futures::poll!(std::pin::pin!(receiver.changed())).is_pending());
        drop(signal);
        assert_eq!(receiver.changed().await, Err(Closed));
    }
}
