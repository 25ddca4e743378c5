//! The work queue of a controller: each key waits at most once, runs at most once at a time, and may be due later.
//!
//! Pure: the caller brings the time and asks what to do next.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Key;

/// First and longest wait after failures.
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Keys that are due, wait for their time, or run.
#[derive(Debug, Default)]
pub struct Queue {
    due: VecDeque<Key>,
    /// Members of `due`, and since when.
    waiting: HashMap<Key, Instant>,
    later: BTreeSet<(Instant, Key)>,
    at: BTreeMap<Key, Instant>,
    running: HashSet<Key>,
    /// Woken while running: due again when the run ends.
    again: HashSet<Key>,
    failures: HashMap<Key, u32>,
}

// === impl Queue ===

impl Queue {
    /// Makes a key due now; answers whether it was not yet.
    pub fn wake(&mut self, key: Key, now: Instant) -> bool {
        if self.running.contains(&key) {
            return self.again.insert(key);
        }
        let Entry::Vacant(entry) = self.waiting.entry(key) else { return false };
        self.due.push_back(entry.key().clone());
        entry.insert(now);
        true
    }

    /// Makes a key due at a time, unless it is due earlier already.
    pub fn wake_at(&mut self, key: Key, at: Instant) {
        match self.at.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => drop(self.later.remove(&(*later, key.clone()))),
            None => {}
        }
        self.at.insert(key.clone(), at);
        self.later.insert((at, key));
    }

    /// The next key to run, which from now on counts as running, and since when it was due.
    pub fn next(&mut self, now: Instant) -> Option<(Key, Instant)> {
        while let Some((at, key)) = self.later.first().cloned() {
            if at > now {
                break;
            }
            self.later.remove(&(at, key.clone()));
            self.at.remove(&key);
            self.wake(key, at);
        }
        let key = self.due.pop_front()?;
        let since = self.waiting.remove(&key).unwrap_or(now);
        self.running.insert(key.clone());
        Some((key, since))
    }

    /// How many keys are due.
    pub fn depth(&self) -> usize {
        self.due.len()
    }

    /// When [`Queue::next`] may have something again, if nothing wakes it before.
    pub fn next_at(&self) -> Option<Instant> {
        self.later.first().map(|(at, _)| *at)
    }

    /// A run has ended well.
    pub fn done(&mut self, key: &Key, now: Instant) {
        self.failures.remove(key);
        self.end(key, now);
    }

    /// A run has failed: it is due again after a wait that grows.
    pub fn failed(&mut self, key: &Key, now: Instant) {
        let count = self.failures.entry(key.clone()).or_insert(0);
        let wait = BACKOFF_MIN.saturating_mul(1 << (*count).min(16)).min(BACKOFF_MAX);
        *count += 1;
        self.end(key, now);
        self.wake_at(key.clone(), now + wait);
    }

    /// Whether nothing is due or running.
    pub fn is_idle(&self) -> bool {
        self.due.is_empty() && self.running.is_empty()
    }

    fn end(&mut self, key: &Key, now: Instant) {
        self.running.remove(key);
        if self.again.remove(key) {
            self.wake(key.clone(), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("n", name)
    }

    #[test]
    fn a_key_waits_once_and_runs_once_at_a_time() {
        let (mut q, now) = (Queue::default(), Instant::now());
        q.wake(key("a"), now);
        q.wake(key("a"), now);
        assert_eq!(q.next(now).map(|(key, _)| key), Some(key("a")));
        assert_eq!(q.next(now).map(|(key, _)| key), None);
        q.wake(key("a"), now);
        assert_eq!(q.next(now).map(|(key, _)| key), None, "it still runs");
        q.done(&key("a"), now);
        assert_eq!(q.next(now).map(|(key, _)| key), Some(key("a")), "it was woken meanwhile");
        q.done(&key("a"), now);
        assert!(q.is_idle());
    }

    #[test]
    fn failures_wait_longer_each_time_and_the_earlier_time_counts() {
        let (mut q, now) = (Queue::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..3 {
            q.wake(key("a"), now);
            q.next(now);
            q.failed(&key("a"), now);
            waits.push(q.next_at().unwrap() - now);
            assert_eq!(q.next(now + BACKOFF_MAX).map(|(key, _)| key), Some(key("a")));
            q.end(&key("a"), now);
        }
        assert!(waits[0] < waits[1] && waits[1] < waits[2]);
        q.wake_at(key("b"), now + Duration::from_secs(9));
        q.wake_at(key("b"), now + Duration::from_secs(3));
        q.wake_at(key("b"), now + Duration::from_secs(5));
        assert_eq!(q.next_at(), Some(now + Duration::from_secs(3)));
    }
}
