//! Runs controllers: sources wake keys, workers reconcile them.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::informer::{Changed, Informer};
use super::queue::Queue;
use super::{Client, Key};
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::{Clock, between};
use crate::base::{metrics, task};
use crate::kinds::KindRef;
use crate::kinds::registry::Snapshot;

/// Wake-ups that may wait for the runner before sources wait.
const WAKES: usize = 1024;

/// What a controller says at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do until something changes.
    Done,
    /// Look again at this wall time even if nothing changes.
    At(Timestamp),
}

/// Brings one object's world to what it says.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// One run for a key whose object may be gone. An error is tried again after a growing wait.
    async fn reconcile(&self, key: &Key) -> Result<Outcome>;
}

/// Which keys a change wakes.
pub type Wake = Box<dyn Fn(&Changed) -> Vec<Key> + Send + Sync>;

/// Kinds that come and go, of which a controller watches those that it wants.
struct EveryKind {
    client: Arc<dyn Client>,
    is_wanted: fn(&KindRef) -> bool,
    wake: Arc<dyn Fn(&Changed) -> Vec<Key> + Send + Sync>,
}

/// A reconciler with what wakes it.
pub struct Controller {
    name: &'static str,
    reconciler: Arc<dyn Reconciler>,
    sources: Vec<(Informer, Wake)>,
    every_kind: Option<EveryKind>,
    workers: usize,
    clock: Clock,
}

// === impl Controller ===

impl Controller {
    /// A controller that nothing wakes yet.
    pub fn new(name: &'static str, reconciler: Arc<dyn Reconciler>, clock: Clock) -> Self {
        Self { name, reconciler, sources: Vec::new(), every_kind: None, workers: 4, clock }
    }

    /// Changes of a kind wake the keys of the changed objects themselves.
    pub fn for_kind(self, client: &dyn Client, kind: &KindRef) -> Self {
        self.watches(client, kind, Box::new(|c| vec![Key::of(&c.object)]))
    }

    /// Changes of objects wake their controlling owner of `owner_kind`.
    pub fn owns(self, client: &dyn Client, kind: &KindRef, owner_kind: &KindRef) -> Self {
        let owner_kind = owner_kind.clone();
        let wake = move |c: &Changed| {
            let owners = [Some(&c.object), c.previous.as_ref()].into_iter().flatten().filter_map(|o| {
                let owner = o.controller().filter(|w| *w.kind == *owner_kind.kind())?;
                Some(Key::new(&o.meta.namespace, &owner.name))
            });
            owners.collect()
        };
        self.watches(client, kind, Box::new(wake))
    }

    /// Changes of a kind wake what `wake` says.
    pub fn watches(mut self, client: &dyn Client, kind: &KindRef, wake: Wake) -> Self {
        self.sources.push((client.informer(kind), wake));
        self
    }

    /// Changes of every kind that is served and wanted wake what `wake` says, also of kinds that come later.
    pub fn watches_every(
        mut self,
        client: &Arc<dyn Client>,
        is_wanted: fn(&KindRef) -> bool,
        wake: impl Fn(&Changed) -> Vec<Key> + Send + Sync + 'static,
    ) -> Self {
        self.every_kind = Some(EveryKind { client: client.clone(), is_wanted, wake: Arc::new(wake) });
        self
    }

    /// How many keys are worked on at once.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Starts it; aborting the handle stops it.
    pub fn spawn(self) -> JoinHandle<Option<()>> {
        task::spawn(self.name, self.run())
    }

    async fn run(self) {
        let (send, mut wakes) = mpsc::channel(WAKES);
        let mut tasks = JoinSet::new();
        for (informer, wake) in self.sources {
            informer.synced().await;
            #[allow(clippy::disallowed_methods)] // Ends with the runner, which a detached task would not.
            tasks.spawn(feed(informer, wake, send.clone()));
        }
        let mut every = self.every_kind.map(|every| Following::new(every, send));
        if let Some(every) = &mut every {
            every.follow(&mut tasks);
        }
        let counted = metrics::Workqueue::named(self.name);
        let mut queue = Queue::default();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.workers
                && let Some((key, since)) = queue.next(Instant::now())
            {
                let (reconciler, now) = (self.reconciler.clone(), Instant::now());
                let run = counted.begun(now.saturating_duration_since(since), now, queue.depth());
                running.push(async move {
                    metrics::RECONCILES.add();
                    let result = reconciler.reconcile(&key).await;
                    (key, run, result)
                });
            }
            let due = if running.len() < self.workers { queue.next_at() } else { None };
            tokio::select! {
                biased;
                Some((key, run, result)) = running.next(), if !running.is_empty() => {
                    counted.ended(run, Instant::now());
                    if result.is_err() {
                        counted.retried();
                    }
                    finish(self.name, &mut queue, &self.clock, key, result);
                }
                Some(keys) = wakes.recv() => {
                    let now = Instant::now();
                    let new = keys.into_iter().filter(|key| queue.wake(key.clone(), now)).count();
                    counted.added(new as u64, queue.depth());
                }
                () = sleep_until(due), if due.is_some() => {}
                () = changed_kinds(&mut every) => every.iter_mut().for_each(|every| every.follow(&mut tasks)),
            }
        }
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Controller({})", self.name)
    }
}

/// The feeds of the kinds that are followed now.
struct Following {
    every: EveryKind,
    kinds: watch::Receiver<Arc<Snapshot>>,
    /// By the kinds' names.
    feeds: HashMap<String, AbortHandle>,
    send: mpsc::Sender<Vec<Key>>,
}

// === impl Following ===

impl Following {
    fn new(every: EveryKind, send: mpsc::Sender<Vec<Key>>) -> Self {
        let kinds = every.client.kinds().subscribe();
        Self { every, kinds, feeds: HashMap::new(), send }
    }

    /// Begins to follow kinds that came, and lets go of those that went.
    fn follow(&mut self, tasks: &mut JoinSet<()>) {
        let now = self.kinds.borrow_and_update().clone();
        let wanted = now.stored().filter(|k| (self.every.is_wanted)(k));
        let wanted: HashMap<String, &KindRef> = wanted.map(|kind| (format!("{kind:?}"), kind)).collect();
        self.feeds.retain(|name, feed| {
            let stays = wanted.contains_key(name);
            if !stays {
                feed.abort();
            }
            stays
        });
        for (name, kind) in wanted {
            if !self.feeds.contains_key(&name) {
                let (informer, wake) = (self.every.client.informer(kind), self.every.wake.clone());
                let feeding = feed(informer, Box::new(move |c| wake(c)), self.send.clone());
                #[allow(clippy::disallowed_methods)] // Ends with the runner, which a detached task would not.
                self.feeds.insert(name, tasks.spawn(feeding));
            }
        }
    }
}

async fn changed_kinds(every: &mut Option<Following>) {
    if let Some(every) = every
        && every.kinds.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn finish(name: &str, queue: &mut Queue, clock: &Clock, key: Key, result: Result<Outcome>) {
    let now = Instant::now();
    match result {
        Ok(outcome) => {
            queue.done(&key, now);
            if let Outcome::At(at) = outcome {
                queue.wake_at(key, now + between(clock.now(), at));
            }
        }
        Err(error) => {
            metrics::RECONCILE_ERRORS.add();
            log(name, &key, &error);
            queue.failed(&key, now);
        }
    }
}

fn log(name: &str, key: &Key, error: &Status) {
    // Conflicts and objects that went away are part of normal life.
    if matches!(error.code, 404 | 409) {
        tracing::debug!(controller = name, %key, %error, "tried again");
    } else {
        tracing::warn!(controller = name, %key, %error, "reconciliation failed; it is tried again");
    }
}

/// Wakes keys for everything there is, then for every change.
async fn feed(informer: Informer, wake: Wake, send: mpsc::Sender<Vec<Key>>) {
    let mut changes = informer.subscribe();
    let all = |informer: &Informer| -> Vec<Key> {
        let as_change = |object| Changed { object, previous: None, deleted: false };
        informer.list("").into_iter().flat_map(|o| wake(&as_change(o))).collect()
    };
    if send.send(all(&informer)).await.is_err() {
        return;
    }
    loop {
        let keys = match changes.next().await {
            Some(changes) => changes.iter().flat_map(&wake).collect(),
            None => all(&informer),
        };
        if send.send(keys).await.is_err() {
            return;
        }
    }
}
