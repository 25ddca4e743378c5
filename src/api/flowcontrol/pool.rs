//! Bytes that requests share: who waits for some has its turn, whoever else waits.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::fair_queue::{FairQueue, Ticket};

/// A number of bytes; cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(Arc<Mutex<State>>);

struct State {
    free: usize,
    queue: FairQueue<Waiter>,
    /// Whose turn it is: whatever comes after it waits until there is room for this one.
    next: Option<(Ticket, Waiter)>,
}

struct Waiter {
    bytes: usize,
    start: oneshot::Sender<Grant>,
}

/// Some of a pool's bytes, until it is dropped.
pub(super) struct Grant {
    pool: Option<Pool>,
    bytes: usize,
}

/// Somebody's place in the queue, until it is dropped.
struct QueuedTake<'a> {
    pool: &'a Pool,
    ticket: Ticket,
}

// === impl Pool ===

impl Pool {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free: bytes, queue: FairQueue::default(), next: None })))
    }

    /// Returns when it has so many bytes for a user. Who stops waiting leaves nothing.
    pub(super) async fn take(&self, user: &Arc<str>, bytes: usize) -> Grant {
        let (queued, started) = {
            let mut state = self.lock();
            if state.next.is_none() && state.queue.len() == 0 && state.free >= bytes {
                state.free -= bytes;
                return Grant { pool: Some(self.clone()), bytes };
            }
            let (start, started) = oneshot::channel();
            let ticket = state.queue.push(user, Waiter { bytes, start });
            (QueuedTake { pool: self, ticket }, started)
        };
        self.start(&mut self.lock());
        let grant = started.await.expect("who waits is started or gone");
        drop(queued);
        grant
    }

    /// Starts those whose turn it is, as long as there is room.
    fn start(&self, state: &mut State) {
        loop {
            if state.next.is_none() {
                state.next = state.queue.pop(|_| true);
            }
            let free = state.free;
            let Some((_, waiter)) = state.next.take_if(|(_, waiter)| waiter.bytes <= free) else { return };
            state.free -= waiter.bytes;
            let grant = Grant { pool: Some(self.clone()), bytes: waiter.bytes };
            if let Err(mut unwanted) = waiter.start.send(grant) {
                // Nobody waits any more. The lock is held: it is given back here.
                unwanted.pool = None;
                state.free += waiter.bytes;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }
}

// === impl Grant ===

impl Drop for Grant {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let mut state = pool.lock();
        state.free += self.bytes;
        pool.start(&mut state);
    }
}

// === impl QueuedTake ===

impl Drop for QueuedTake<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        let _ = state.next.take_if(|(ticket, _)| *ticket == self.ticket);
        let _ = state.queue.remove(&self.ticket);
        self.pool.start(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn account(name: &str) -> Arc<str> {
        format!("system:serviceaccount:{name}").into()
    }

    #[tokio::test]
    async fn however_many_accounts_of_a_namespace_wait_others_have_the_next_turn() {
        let pool = Pool::new(10);
        let (first, jane): (_, Arc<str>) = (pool.take(&account("web:0"), 8).await, "jane".into());
        let users: Vec<_> = (0..190).map(|n| account(&format!("web:{n}"))).collect();
        let mut waiting: Vec<_> = users.iter().map(|user| Box::pin(pool.take(user, 8))).collect();
        assert!(waiting.iter_mut().all(|take| take.now_or_never().is_none()));
        let mut other = Box::pin(pool.take(&jane, 2));
        assert!((&mut other).now_or_never().is_none(), "it waits, though there is room: whose turn it is needs it");
        drop(first);
        assert!(waiting[0].as_mut().now_or_never().is_some());
        assert!(other.now_or_never().is_some(), "beside it and before the other 189");
        // Who stops waiting leaves nothing.
        drop(waiting);
        let state = pool.lock();
        assert_eq!((state.free, state.queue.len(), state.next.is_none()), (10, 0, true));
    }

    #[tokio::test]
    async fn whoever_goes_away_lets_the_next_one_start() {
        let pool = Pool::new(10);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = pool.take(&a, 6).await;
        let mut large = Box::pin(pool.take(&a, 10));
        let mut small = Box::pin(pool.take(&b, 4));
        assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
        drop(large);
        let grant = small.now_or_never().unwrap();
        drop((first, grant));
        assert_eq!(pool.lock().free, 10);
    }
}
