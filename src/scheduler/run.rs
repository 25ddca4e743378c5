//! The scheduler's one task: takes in changes, decides, binds.

mod refuse;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::decide::{Decision, decide};
use super::kin::Kin;
use super::plugins::interpod;
use super::promises::{self, Room, Waiting};
use super::queue::Queue;
use super::snapshot::{PodView, Snapshot};
use super::view::nominated;
use super::volumes::{Progress, Promise};
use crate::apimachinery::status::Status;
use crate::base::clock::Clock;
use crate::base::metrics::{self, Pairs};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::{namespace, node, persistentvolume, persistentvolumeclaim, pod};
use crate::kinds::policy::poddisruptionbudget;
use crate::kinds::storage::storageclass;
use crate::reconcile::{Changed, Changes, Client, EventType, Informer, Key, Recorder};

/// What pods' claims depend on, in this order.
const STORED: [&KindRef; 3] = [&persistentvolumeclaim::KIND, &persistentvolume::KIND, &storageclass::KIND];
/// Writes that are under way at once.
const WRITES_MAX: usize = 256;
/// Decisions before changes are taken in again.
const DECISIONS: usize = 64;
/// What the removal of a pod may help.
const ROOM: &[&str] = &["NodeResourcesFit", "NodePorts", "VolumeRestrictions", SPREAD];
/// What another pod's place may help.
const SPREAD: &str = "PodTopologySpread";
/// What other pods' places and labels may help, if they are those that a pod speaks of.
const NEAR: &[&str] = &[interpod::NAME];

/// What a change of claims, volumes and classes may help.
const STORAGE: &[&str] = &["VolumeBinding", "VolumeRestrictions"];

/// How a write ended.
enum Done {
    /// What was promised to a pod's claims is written, or not.
    Promised {
        key: Key,
        result: Result<(), Status>,
    },
    Bound {
        view: Arc<PodView>,
        node: Arc<str>,
        attempts: u32,
        waited: Duration,
        result: Result<(), Status>,
    },
    /// A pod was told to go for another one, or not.
    Preempted {
        preemptor: Key,
        victim: Arc<PodView>,
        result: Result<(), Status>,
        message: String,
    },
    Said,
}

struct Scheduler {
    client: Arc<dyn Client>,
    clock: Clock,
    recorder: Recorder,
    pods: Informer,
    nodes: Informer,
    /// Claims, volumes and their classes.
    storage: [Informer; 3],
    budgets: Informer,
    namespaces: Informer,
    waiting: Room,
    kin: Kin,
    /// When pods without a node came here first.
    since: HashMap<Key, Instant>,
    queue: Queue,
    snapshot: Snapshot,
    /// The number of the node that the next decision begins with.
    first: usize,
    /// How often room was looked for: where many nodes would do, each time others are looked at.
    preemptions: usize,
    writes: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// What the scheduler follows.
struct Feeds {
    nodes: Box<dyn Changes>,
    namespaces: Box<dyn Changes>,
    storage: [Box<dyn Changes>; 3],
    pods: Box<dyn Changes>,
}

/// Runs until it is aborted.
pub(super) async fn run(client: Arc<dyn Client>, clock: Clock) {
    let (pods, nodes) = (client.informer(&pod::KIND), client.informer(&node::KIND));
    let storage = STORED.map(|kind| client.informer(kind));
    nodes.synced().await;
    for informer in &storage {
        informer.synced().await;
    }
    let budgets = client.informer(&poddisruptionbudget::KIND);
    budgets.synced().await;
    let namespaces = client.informer(&namespace::KIND);
    namespaces.synced().await;
    pods.synced().await;
    let recorder = Recorder::new(client.clone(), clock.clone(), NAME, "");
    let (queue, snapshot, writes) = (Queue::default(), Snapshot::default(), FuturesUnordered::new());
    let kin = Kin::new(&*client);
    let since = HashMap::new();
    let waiting = Room::new();
    let mut scheduler = Scheduler {
        client,
        clock,
        recorder,
        pods,
        nodes,
        storage,
        budgets,
        namespaces,
        waiting,
        kin,
        since,
        queue,
        snapshot,
        first: 0,
        preemptions: 0,
        writes,
    };
    let mut feeds = Feeds {
        nodes: scheduler.nodes.subscribe(),
        namespaces: scheduler.namespaces.subscribe(),
        storage: scheduler.storage.each_ref().map(|informer| informer.subscribe()),
        pods: scheduler.pods.subscribe(),
    };
    scheduler.list_nodes();
    scheduler.list_storage();
    scheduler.list_namespaces();
    scheduler.list_pods();
    loop {
        scheduler.work(&mut feeds).await;
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// Takes in what has changed, or decides about some pods.
    async fn work(&mut self, feeds: &mut Feeds) {
        let may_decide = self.writes.len() < WRITES_MAX;
        let due = self.queue.next_at().filter(|_| may_decide);
        let overdue = promises::due(&self.waiting);
        let Feeds { nodes, namespaces, storage: [claims, volumes, classes], pods } = feeds;
        tokio::select! {
            biased;
            changes = nodes.next() => match changes {
                Some(changes) => changes.iter().for_each(|c| self.node_changed(c)),
                None => self.list_nodes(),
            },
            changes = namespaces.next() => self.namespaces_changed(changes),
            changes = claims.next() => self.storage_changed(changes),
            changes = volumes.next() => self.storage_changed(changes),
            changes = classes.next() => self.storage_changed(changes),
            changes = pods.next() => match changes {
                Some(changes) => changes.iter().for_each(|c| self.pod_changed(c)),
                None => self.list_pods(),
            },
            Some(done) = self.writes.next(), if !self.writes.is_empty() => self.written(done),
            () = std::future::ready(()), if may_decide && self.queue.is_ready() => self.decide_some(),
            () = sleep_until(due), if due.is_some() => self.decide_some(),
            () = sleep_until(overdue), if overdue.is_some() => self.look_at_waiting(),
        }
    }

    fn list_nodes(&mut self) {
        let all = self.nodes.list("");
        let gone: Vec<Arc<str>> =
            self.snapshot.nodes.keys().filter(|n| !all.iter().any(|o| *o.meta.name == ***n)).cloned().collect();
        gone.iter().for_each(|n| self.snapshot.remove_node(n));
        for object in &all {
            self.snapshot.put_node(object);
        }
        self.queue.stir(None, Instant::now());
    }

    fn list_namespaces(&mut self) {
        let all = self.namespaces.list("");
        let mut gone = self.snapshot.terms.namespace_names();
        gone.retain(|name| !all.iter().any(|object| *object.meta.name == **name));
        for name in gone {
            self.snapshot.terms.put_namespace(&name, None);
        }
        for object in &all {
            self.snapshot.terms.put_namespace(&object.meta.name, Some(&object.meta.labels));
        }
        self.queue.stir(Some(NEAR), Instant::now());
    }

    fn namespaces_changed(&mut self, changes: Option<Vec<Changed>>) {
        let Some(changes) = changes else { return self.list_namespaces() };
        let mut means_others = false;
        for Changed { object, deleted, .. } in &changes {
            let labels = (!deleted).then_some(&object.meta.labels);
            means_others |= self.snapshot.terms.put_namespace(&object.meta.name, labels);
        }
        if means_others {
            self.queue.stir(Some(NEAR), Instant::now());
        }
    }

    fn list_storage(&mut self) {
        self.snapshot.volumes.clear();
        let all: Vec<Arc<Object>> = self.storage.iter().flat_map(|informer| informer.list("")).collect();
        all.iter().for_each(|object| self.put_stored(object, false));
        self.queue.stir(Some(STORAGE), Instant::now());
        self.look_at_waiting();
    }

    fn storage_changed(&mut self, changes: Option<Vec<Changed>>) {
        let Some(changes) = changes else { return self.list_storage() };
        changes.iter().for_each(|c| self.put_stored(&c.object, c.deleted));
        self.queue.stir(Some(STORAGE), Instant::now());
        self.look_at_waiting();
    }

    fn put_stored(&mut self, object: &Arc<Object>, is_gone: bool) {
        let (now, volumes) = ((!is_gone).then_some(object), &mut self.snapshot.volumes);
        let is_of = |kind: &KindRef| object.key.starts_with(&kind.prefix());
        match STORED.iter().position(|kind| is_of(kind)) {
            Some(0) => volumes.put_claim(&Key::of(object), now),
            Some(1) => volumes.put_volume(&object.meta.name, now),
            _ => volumes.put_class(&object.meta.name, now),
        }
    }

    /// Binds pods whose claims have got their volumes, and lets those be decided anew that will not get them.
    fn look_at_waiting(&mut self) {
        let (now, mut over) = (Instant::now(), Vec::new());
        for (key, waiting) in &self.waiting {
            let node = self.snapshot.nodes.get(&waiting.node).map(|node| &*node.object);
            match self.snapshot.volumes.progress(waiting.view.claimant(), node) {
                Progress::Waiting if waiting.until <= now => {
                    let why = "running PreBind plugin \"VolumeBinding\": binding volumes: context deadline exceeded";
                    over.push((key.clone(), Some(why.to_owned())));
                }
                Progress::Waiting => {}
                Progress::Bound => over.push((key.clone(), None)),
                Progress::Failed(why) => {
                    let why = format!("running PreBind plugin \"VolumeBinding\": binding volumes: {why}");
                    over.push((key.clone(), Some(why)));
                }
            }
        }
        for (key, why) in over {
            match (why, self.waiting.remove(&key)) {
                (Some(why), Some(waiting)) => self.give_up(waiting, &why),
                (None, Some(w)) => self.bind(w.view, w.node, w.attempts, w.begun),
                (_, None) => {}
            }
        }
    }

    /// The pod does not get its volumes where it is to be: it is decided anew.
    fn give_up(&mut self, waiting: Waiting, why: &str) {
        self.snapshot.volumes.take_back(&waiting.promises);
        self.recorder.event(&pod::KIND, &waiting.view.object, EventType::Warning, "FailedScheduling", why);
        self.place_failed(&waiting.view, waiting.attempts);
    }

    fn list_pods(&mut self) {
        let all = self.pods.list("");
        self.snapshot.clear_pods();
        let known: BTreeSet<Key> = all.iter().map(|o| Key::of(o)).collect();
        let uids: HashSet<&str> = all.iter().map(|o| &*o.meta.uid).collect();
        self.snapshot.nominations.keep_victims(|uid| uids.contains(uid));
        let gone: Vec<Key> = self.waiting.keys().filter(|k| !known.contains(k)).cloned().collect();
        for key in gone {
            self.forget(&key);
            self.snapshot.remove_pod(&key);
        }
        self.queue.keys().iter().filter(|k| !known.contains(k)).for_each(|k| self.forget(k));
        for object in all {
            self.pod_changed(&Changed { object, previous: None, deleted: false });
        }
        self.queue.stir(None, Instant::now());
    }

    fn node_changed(&mut self, change: &Changed) {
        if change.deleted {
            self.snapshot.remove_node(&change.object.meta.name);
        } else if self.snapshot.put_node(&change.object) {
            self.queue.stir(None, Instant::now());
        }
    }

    fn pod_changed(&mut self, change: &Changed) {
        let (key, now) = (Key::of(&change.object), Instant::now());
        let Some(view) = PodView::new(&change.object) else { return };
        let phase = view.pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
        if change.deleted || change.object.meta.deleted.is_some() {
            self.snapshot.nominations.spare(&change.object.meta.uid);
        }
        if change.deleted || matches!(phase, "Succeeded" | "Failed") {
            self.forget(&key);
            if let Some(gone) = self.snapshot.remove_pod(&key) {
                self.queue.stir(Some(ROOM), now);
                let terms = &self.snapshot.terms;
                self.queue.stir_where(Some(NEAR), now, |waiting| terms.helps_by_going(&gone, waiting));
            }
        } else if !view.node().is_empty() {
            self.forget(&key);
            let node = view.node().to_owned();
            self.place(Arc::new(view), &node, false);
        } else if change.object.meta.deleted.is_some() || !is_ours(&view) {
            self.forget(&key);
        } else if !self.snapshot.is_assumed(&key, &change.object.meta.uid) {
            let gated =
                view.pod.spec.as_ref().is_some_and(|s| s.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()));
            self.since.entry(key).or_insert(now);
            let view = Arc::new(view);
            self.nominate_as_written(&view, change.previous.as_deref());
            self.queue.put(view, gated, now);
        }
    }

    /// Takes in for which node a pod is nominated. What was decided here and is not written yet stays.
    fn nominate_as_written(&mut self, view: &Arc<PodView>, previous: Option<&Object>) {
        let (written, known) = (view.nominated(), self.snapshot.nominations.node_of(&view.key).cloned());
        let previous = previous.and_then(|o| o.typed::<Pod>().ok());
        let before = previous.as_deref().map_or("", nominated);
        let node = if written == before && known.is_some() { known.as_deref().unwrap_or("") } else { written };
        if !node.is_empty() {
            self.snapshot.nominations.put(view.clone(), node.into());
        } else if self.snapshot.nominations.remove(&view.key) {
            self.room_is_free();
        }
    }

    /// Room that was kept for a pod is kept no longer.
    fn room_is_free(&mut self) {
        self.queue.stir(Some(ROOM), Instant::now());
        self.queue.stir(Some(NEAR), Instant::now());
    }

    /// Enters a pod on a node; others may be waiting for its domain to fill up, or to be near it.
    fn place(&mut self, view: Arc<PodView>, node: &str, assumed: bool) {
        let before = self.snapshot.placed(&view.key).cloned();
        if self.snapshot.place(view.clone(), node, assumed) {
            let (terms, now) = (&self.snapshot.terms, Instant::now());
            self.queue.stir(Some(&[SPREAD]), now);
            self.queue.stir_where(Some(NEAR), now, |waiting| {
                terms.helps_by_coming(&view, waiting) || before.iter().any(|old| terms.helps_by_going(old, waiting))
            });
        }
    }

    /// The pod needs no node, or none any more.
    fn forget(&mut self, key: &Key) {
        self.queue.remove(key);
        self.since.remove(key);
        if self.snapshot.nominations.remove(key) {
            self.room_is_free();
        }
        if let Some(waiting) = self.waiting.remove(key) {
            self.snapshot.volumes.take_back(&waiting.promises);
        }
    }

    fn decide_some(&mut self) {
        for _ in 0..DECISIONS {
            let Some((view, attempts)) = self.queue.pop(Instant::now()) else { return };
            let begun = Instant::now();
            self.snapshot.learn(&view);
            let decided = decide(&view, &self.snapshot, self.first, || self.kin.alike(&view));
            metrics::SCHEDULING_ALGORITHM.observe(Pairs([]), begun.elapsed());
            match decided {
                Ok(Decision { node, looked_at }) => {
                    self.first = (self.first + looked_at) % self.snapshot.nodes.len().max(1);
                    let promises = self.promises(&view, &node);
                    self.place(view.clone(), &node, true);
                    match promises {
                        None => self.bind(view, node, attempts, begun),
                        Some(promises) => self.promise(Waiting::new(view, node, attempts, begun, promises)),
                    }
                }
                Err(why) => {
                    attempted("unschedulable", begun);
                    self.refuse(view, attempts, why);
                }
            }
        }
    }

    /// What is to be written for the pod's claims before it can be bound; `None`: they have all they need.
    fn promises(&self, view: &PodView, node: &str) -> Option<Vec<Promise>> {
        if view.claims.is_empty() {
            return None;
        }
        let on = &*self.snapshot.nodes.get(node)?.object;
        let promises = self.snapshot.volumes.plan(view.claimant(), on).unwrap_or_default();
        let is_bound = || self.snapshot.volumes.progress(view.claimant(), Some(on)) == Progress::Bound;
        if promises.is_empty() && is_bound() { None } else { Some(promises) }
    }

    /// Lets a pod wait on its node for what is promised to its claims.
    fn promise(&mut self, waiting: Waiting) {
        self.snapshot.volumes.keep(&waiting.promises);
        let (client, key, promises) = (self.client.clone(), waiting.view.key.clone(), waiting.promises.clone());
        self.waiting.insert(key.clone(), waiting);
        if promises.is_empty() {
            return;
        }
        self.writes.push(Box::pin(async move {
            let result = promises::write(&client, &promises).await;
            Done::Promised { key, result }
        }));
    }

    fn bind(&mut self, view: Arc<PodView>, node: Arc<str>, attempts: u32, begun: Instant) {
        let client = self.client.clone();
        let since = self.since.get(&view.key).copied().unwrap_or(begun);
        self.writes.push(Box::pin(async move {
            let result = client.bind(&view.key.namespace, &view.key.name, &view.object.meta.uid, &node).await;
            attempted(if result.is_ok() { "scheduled" } else { "error" }, begun);
            Done::Bound { view, node, attempts, waited: since.elapsed(), result }
        }));
    }

    fn written(&mut self, done: Done) {
        let (view, node, attempts, waited, result) = match done {
            Done::Said => return,
            Done::Preempted { preemptor, victim, result, message } => {
                return self.preempted(&preemptor, &victim, result, &message);
            }
            Done::Promised { key, result } => return self.promised(&key, result),
            Done::Bound { view, node, attempts, waited, result } => (view, node, attempts, waited, result),
        };
        match result {
            Ok(()) => {
                metrics::POD_SCHEDULING.observe(Pairs([("attempts", tries(attempts))]), waited);
                let message = format!("Successfully assigned {} to {node}", view.key);
                self.recorder.event(&pod::KIND, &view.object, EventType::Normal, "Scheduled", &message);
            }
            Err(status) => {
                tracing::debug!(pod = %view.key, %node, error = %status, "a pod could not be bound");
                self.place_failed(&view, attempts);
            }
        }
    }

    /// What was promised is written, or somebody else came first.
    fn promised(&mut self, key: &Key, result: Result<(), Status>) {
        match result {
            // Seen or not, it may be done already.
            Ok(()) => self.look_at_waiting(),
            Err(status) => {
                tracing::debug!(pod = %key, error = %status, "a pod's claims could not be given what was decided");
                if let Some(waiting) = self.waiting.remove(key) {
                    self.snapshot.volumes.take_back(&waiting.promises);
                    self.place_failed(&waiting.view, waiting.attempts);
                }
            }
        }
    }

    /// The pod does not get the node that was decided on, and is tried again.
    fn place_failed(&mut self, view: &Arc<PodView>, attempts: u32) {
        if !self.snapshot.is_assumed(&view.key, &view.object.meta.uid) {
            return;
        }
        self.snapshot.remove_pod(&view.key);
        // As it is now: it may be gone, or bound by somebody else.
        let current = self.pods.get(&view.key.namespace, &view.key.name);
        let current = current.filter(|o| o.meta.uid == view.object.meta.uid && o.meta.deleted.is_none());
        let Some(current) = current.and_then(|o| PodView::new(&o)).filter(|v| v.node().is_empty()) else {
            return;
        };
        self.queue.failed(Arc::new(current), attempts, Instant::now());
        self.queue.stir(Some(ROOM), Instant::now());
        self.queue.stir(Some(NEAR), Instant::now());
    }
}

/// An attempt has ended with this result.
fn attempted(result: &'static str, begun: Instant) {
    let labels = Pairs([("profile", NAME), ("result", result)]);
    metrics::SCHEDULE_ATTEMPTS.add(labels);
    metrics::SCHEDULING_ATTEMPT.observe(labels, begun.elapsed());
}

/// How many attempts a pod took, as upstream's label has it.
fn tries(attempts: u32) -> &'static str {
    const FEW: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
    FEW.get(attempts as usize).copied().unwrap_or("16+")
}

fn is_ours(view: &PodView) -> bool {
    let name = view.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or("");
    name.is_empty() || name == NAME
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The scheduler that pods name when they want this one.
pub const NAME: &str = "default-scheduler";
