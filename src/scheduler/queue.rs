//! Pods that wait for a node: those to try now, those that wait out a failure, those that wait for the cluster to change.
//!
//! Pure: the caller brings the time. Invariant: a pod is in exactly one of the three places, or not here at all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::PodView;
use crate::reconcile::Key;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Higher priority first, then who came first.
type QueueOrder = (Reverse<i32>, u64);

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    entries: HashMap<Key, Entry>,
    active: BTreeMap<QueueOrder, Key>,
    backoff: BTreeSet<(Instant, Key)>,
    /// How many wait for a change that a plugin looks at.
    waiting: BTreeMap<&'static str, usize>,
    arrivals: u64,
}

#[derive(Debug)]
struct Entry {
    view: Arc<PodView>,
    arrival: u64,
    attempts: u32,
    place: QueueState,
}

#[derive(Clone, Debug)]
enum QueueState {
    /// To be tried now.
    Active,
    /// To be tried at a time.
    Backoff(Instant),
    /// To be tried when something changes that one of these plugins looks at.
    Unschedulable { by: BTreeSet<&'static str>, since: Instant },
    /// Held back by its own gates.
    Gated,
}

// === impl Queue ===

impl Queue {
    /// A pod without a node, new or changed. `changed` says whether a decision about it may end differently.
    pub fn put(&mut self, view: Arc<PodView>, gated: bool, now: Instant) {
        let key = view.key.clone();
        match self.entries.get(&key) {
            Some(old) if old.view.object.meta.uid == view.object.meta.uid => {
                let decides =
                    old.view.pod.spec != view.pod.spec || old.view.object.meta.labels != view.object.meta.labels;
                let (arrival, attempts, place) = (old.arrival, old.attempts, old.place.clone());
                let place = match place {
                    _ if gated => QueueState::Gated,
                    QueueState::Gated => QueueState::Active,
                    QueueState::Unschedulable { since, .. } if decides => due(attempts, since, now),
                    same => same,
                };
                self.enter(key, Entry { view, arrival, attempts, place });
            }
            _ => {
                self.arrivals += 1;
                let place = if gated { QueueState::Gated } else { QueueState::Active };
                self.enter(key, Entry { view, arrival: self.arrivals, attempts: 0, place });
            }
        }
    }

    /// The pod has a node or is gone.
    pub fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.leave(key, &entry);
        }
    }

    /// The next pod to try. It is out of the queue until it is put back by one of the `fail` functions.
    pub fn pop(&mut self, now: Instant) -> Option<(Arc<PodView>, u32)> {
        while let Some((at, key)) = self.backoff.first().cloned() {
            if at > now {
                break;
            }
            self.move_to(&key, QueueState::Active);
        }
        let (_, key) = self.active.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some((entry.view, entry.attempts + 1))
    }

    /// No node would do; `by` are the plugins that said so.
    pub fn unschedulable(&mut self, view: Arc<PodView>, attempts: u32, by: BTreeSet<&'static str>, now: Instant) {
        self.put_back(view, attempts, QueueState::Unschedulable { by, since: now });
    }

    /// Something went wrong; it is tried again by time.
    pub fn failed(&mut self, view: Arc<PodView>, attempts: u32, now: Instant) {
        let place = QueueState::Backoff(now + backoff(attempts));
        self.put_back(view, attempts, place);
    }

    /// The pod may find a node now, whatever refused it: it is tried as soon as its wait after the last failure allows.
    pub fn activate(&mut self, key: &Key, now: Instant) {
        if let Some(Entry { attempts, place: QueueState::Unschedulable { since, .. }, .. }) = self.entries.get(key) {
            let place = due(*attempts, *since, now);
            self.move_to(key, place);
        }
    }

    /// Something changed that these plugins look at (`None`: all).
    pub fn stir(&mut self, plugins: Option<&[&'static str]>, now: Instant) {
        self.stir_where(plugins, now, |_| true);
    }

    /// As [`Self::stir`], for those pods alone that the change may help.
    pub fn stir_where(&mut self, plugins: Option<&[&'static str]>, now: Instant, is_helped: impl Fn(&PodView) -> bool) {
        if plugins.is_some_and(|p| p.iter().all(|p| !self.waiting.contains_key(p))) {
            return;
        }
        let concerned = |by: &BTreeSet<&'static str>| plugins.is_none_or(|p| p.iter().any(|p| by.contains(p)));
        let mut moves = Vec::new();
        for (key, entry) in &self.entries {
            if let QueueState::Unschedulable { by, since } = &entry.place
                && concerned(by)
                && is_helped(&entry.view)
            {
                // Room was made for it: it has waited for that long enough.
                let is_awaited = !entry.view.nominated().is_empty();
                let place = if is_awaited { QueueState::Active } else { due(entry.attempts, *since, now) };
                moves.push((key.clone(), place));
            }
        }
        for (key, place) in moves {
            self.move_to(&key, place);
        }
    }

    /// Whether a pod can be tried now.
    pub fn is_ready(&self) -> bool {
        !self.active.is_empty()
    }

    /// When one can be tried, if nothing changes before.
    pub fn next_at(&self) -> Option<Instant> {
        self.backoff.first().map(|(at, _)| *at)
    }

    /// The keys of all waiting pods.
    pub fn keys(&self) -> Vec<Key> {
        self.entries.keys().cloned().collect()
    }

    fn put_back(&mut self, view: Arc<PodView>, attempts: u32, place: QueueState) {
        self.arrivals += 1;
        let (key, arrival) = (view.key.clone(), self.arrivals);
        self.enter(key, Entry { view, arrival, attempts, place });
    }

    fn move_to(&mut self, key: &Key, place: QueueState) {
        if let Some(entry) = self.entries.remove(key) {
            self.leave(key, &entry);
            self.enter(key.clone(), Entry { place, ..entry });
        }
    }

    fn enter(&mut self, key: Key, entry: Entry) {
        self.remove(&key);
        match &entry.place {
            QueueState::Active => {
                self.active.insert((Reverse(entry.view.priority), entry.arrival), key.clone());
            }
            QueueState::Backoff(at) => {
                self.backoff.insert((*at, key.clone()));
            }
            QueueState::Unschedulable { by, .. } => by.iter().for_each(|by| *self.waiting.entry(by).or_default() += 1),
            QueueState::Gated => {}
        }
        self.entries.insert(key, entry);
    }

    fn leave(&mut self, key: &Key, entry: &Entry) {
        match &entry.place {
            QueueState::Active => {
                self.active.remove(&(Reverse(entry.view.priority), entry.arrival));
            }
            QueueState::Backoff(at) => {
                self.backoff.remove(&(*at, key.clone()));
            }
            QueueState::Unschedulable { by, .. } => {
                for by in by {
                    if let Some(count) = self.waiting.get_mut(by) {
                        *count -= 1;
                        if *count == 0 {
                            self.waiting.remove(by);
                        }
                    }
                }
            }
            QueueState::Gated => {}
        }
    }
}

/// Where a pod goes that failed at `since` and is to be tried again.
fn due(attempts: u32, since: Instant, now: Instant) -> QueueState {
    let at = since + backoff(attempts);
    if at <= now { QueueState::Active } else { QueueState::Backoff(at) }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(BACKOFF_MAX)
}
