//! The scheduler's one task: takes in changes, decides, binds.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::json;
use tokio::time::Instant;

use super::decide::{Unschedulable, decide};
use super::kin::Kin;
use super::queue::Queue;
use super::snapshot::{PodView, Snapshot};
use crate::apimachinery::status::Status;
use crate::base::clock::Clock;
use crate::base::metrics::{self, Pairs};
use crate::kinds::Subresource;
use crate::kinds::core::{node, pod};
use crate::reconcile::{Changed, Changes, Client, EventType, Informer, Key, Patch, Recorder};

/// Writes that are under way at once.
const WRITES_MAX: usize = 256;
/// Decisions before changes are taken in again.
const DECISIONS: usize = 64;
/// What the removal of a pod may help.
const ROOM: &[&str] = &["NodeResourcesFit", "NodePorts", SPREAD];
/// What another pod's place may help.
const SPREAD: &str = "PodTopologySpread";

/// How a write ended.
enum Done {
    Bound { view: Arc<PodView>, node: Arc<str>, attempts: u32, waited: Duration, result: Result<(), Status> },
    Said,
}

struct Scheduler {
    client: Arc<dyn Client>,
    clock: Clock,
    recorder: Recorder,
    pods: Informer,
    nodes: Informer,
    kin: Kin,
    /// When pods without a node came here first.
    since: HashMap<Key, Instant>,
    queue: Queue,
    snapshot: Snapshot,
    writes: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// Runs until it is aborted.
pub(super) async fn run(client: Arc<dyn Client>, clock: Clock) {
    let (pods, nodes) = (client.informer(&pod::KIND), client.informer(&node::KIND));
    nodes.synced().await;
    pods.synced().await;
    let recorder = Recorder::new(client.clone(), clock.clone(), NAME, "");
    let (queue, snapshot, writes) = (Queue::default(), Snapshot::default(), FuturesUnordered::new());
    let kin = Kin::new(&*client);
    let since = HashMap::new();
    let mut scheduler = Scheduler { client, clock, recorder, pods, nodes, kin, since, queue, snapshot, writes };
    let (mut node_changes, mut pod_changes) = (scheduler.nodes.subscribe(), scheduler.pods.subscribe());
    scheduler.list_nodes();
    scheduler.list_pods();
    loop {
        scheduler.work(&mut *node_changes, &mut *pod_changes).await;
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// Takes in what has changed, or decides about some pods.
    async fn work(&mut self, nodes: &mut dyn Changes, pods: &mut dyn Changes) {
        let may_decide = self.writes.len() < WRITES_MAX;
        let due = self.queue.next_at().filter(|_| may_decide);
        tokio::select! {
            biased;
            changes = nodes.next() => match changes {
                Some(changes) => changes.iter().for_each(|c| self.node_changed(c)),
                None => self.list_nodes(),
            },
            changes = pods.next() => match changes {
                Some(changes) => changes.iter().for_each(|c| self.pod_changed(c)),
                None => self.list_pods(),
            },
            Some(done) = self.writes.next(), if !self.writes.is_empty() => self.written(done),
            () = std::future::ready(()), if may_decide && self.queue.is_ready() => self.decide_some(),
            () = sleep_until(due), if due.is_some() => self.decide_some(),
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

    fn list_pods(&mut self) {
        let all = self.pods.list("");
        self.snapshot.clear_pods();
        let known: BTreeSet<Key> = all.iter().map(|o| Key::of(o)).collect();
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
        if change.deleted || matches!(phase, "Succeeded" | "Failed") {
            self.forget(&key);
            if self.snapshot.remove_pod(&key) {
                self.queue.stir(Some(ROOM), now);
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
            self.queue.put(Arc::new(view), gated, now);
        }
    }

    /// Enters a pod on a node; others may be waiting for its domain to fill up.
    fn place(&mut self, view: Arc<PodView>, node: &str, assumed: bool) {
        if self.snapshot.place(view, node, assumed) {
            self.queue.stir(Some(&[SPREAD]), Instant::now());
        }
    }

    /// The pod needs no node, or none any more.
    fn forget(&mut self, key: &Key) {
        self.queue.remove(key);
        self.since.remove(key);
    }

    fn decide_some(&mut self) {
        for _ in 0..DECISIONS {
            let Some((view, attempts)) = self.queue.pop(Instant::now()) else { return };
            let begun = Instant::now();
            let decided = decide(&view, &self.snapshot, || self.kin.alike(&view));
            metrics::SCHEDULING_ALGORITHM.observe(Pairs([]), begun.elapsed());
            match decided {
                Ok(node) => {
                    self.place(view.clone(), &node, true);
                    self.bind(view, node, attempts, begun);
                }
                Err(why) => {
                    attempted("unschedulable", begun);
                    self.refuse(view, attempts, why);
                }
            }
        }
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
        let Done::Bound { view, node, attempts, waited, result } = done else { return };
        match result {
            Ok(()) => {
                metrics::POD_SCHEDULING.observe(Pairs([("attempts", tries(attempts))]), waited);
                let message = format!("Successfully assigned {} to {node}", view.key);
                self.recorder.event(&pod::KIND, &view.object, EventType::Normal, "Scheduled", &message);
            }
            Err(status) => {
                tracing::debug!(pod = %view.key, %node, error = %status, "a pod could not be bound");
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
            }
        }
    }

    /// Says that there is no node for the pod, and lets it wait for a change.
    fn refuse(&mut self, view: Arc<PodView>, attempts: u32, why: Unschedulable) {
        self.recorder.event(&pod::KIND, &view.object, EventType::Warning, "FailedScheduling", &why.message);
        let conditions = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let said = conditions.into_iter().any(|c| {
            c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(why.message.as_str())
        });
        if !said {
            self.say(&view, &why.message);
        }
        self.queue.unschedulable(view, attempts, why.by, Instant::now());
    }

    fn say(&mut self, view: &Arc<PodView>, message: &str) {
        let conditions = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let before = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let since = before.and_then(|c| c.last_transition_time.as_ref());
        let since = since.map_or_else(|| self.clock.now_text(), |t| crate::base::clock::seconds_text(t.0));
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": since,
        });
        if view.object.meta.generation > 0 {
            condition["observedGeneration"] = view.object.meta.generation.into();
        }
        let patch = json!({"metadata": {"uid": &*view.object.meta.uid}, "status": {"conditions": [condition]}});
        let (client, key) = (self.client.clone(), view.key.clone());
        self.writes.push(Box::pin(async move {
            let status = Some(Subresource::Status);
            let patch = Patch::Strategic(patch);
            if let Err(error) = client.patch(&pod::KIND, &key.namespace, &key.name, status, patch).await {
                tracing::debug!(pod = %key, %error, "a pod was not told that it has no node");
            }
            Done::Said
        }));
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
