//! One pod's worker: feeds the state machine, does what it asks for, reports what it is.
//!
//! The loop never waits for anything but the next message: whatever takes time runs in a task of its own and comes back as
//! a message. So a pod that is being pulled, stopped or probed can be deleted at any moment. Whatever the machine waits for is
//! answered, also when its task panics ([`Worker::work`]); and what it does not know of (hooks, volumes that are brought up to
//! date, the stop of a container that has ended) is ended and waited for before what it works on is removed.

mod adopt;
mod effects;
mod grant;
mod message;
mod resizing;
mod sandbox;

pub use message::{Handle, Message};
pub use sandbox::{UID_LABEL, tear_down};

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use sandbox::facts;

use super::env::DownwardValues;
use super::launch;
use super::machine::{self, ContainerPlan, ContainerState, Ended, Event, PodState, Role, Stage};
use super::sandbox_context::SandboxContext;
use super::{Node, admit, probes, pull, spec, status, volumes};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::base::clock::between;
use crate::base::error::chain;
use crate::base::json::text;
use crate::base::metrics::{self, Pairs};
use crate::base::object::Object;
use crate::base::task;
use crate::containers;
use crate::containers::{ContainerStatus, Sandbox};
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::reconcile::{EventType, Patch};

/// Messages that may wait for a worker.
const QUEUE: usize = 64;
/// Tokens in volumes are renewed after this time; they live an hour.
const REFRESH: Duration = Duration::from_secs(40 * 60);
/// When a volume that kept its old content is looked at again.
const REFRESH_RETRY: Duration = Duration::from_secs(60);

struct Worker {
    node: Arc<Node>,
    uid: String,
    object: Arc<Object>,
    pod: Arc<Pod>,
    state: PodState,
    setting: Option<Box<SandboxContext>>,
    /// A sandbox that is to be removed before anything else is made.
    leaving: Option<String>,
    /// A sandbox that was gone before it was known to be there.
    gone: Option<String>,
    addresses: Vec<IpAddr>,
    start_time: Option<Timestamp>,
    resources: resizing::Resizing,
    probes: HashMap<String, Vec<probes::Running>>,
    /// Containers that are being stopped.
    stops: HashMap<String, JoinHandle<Option<()>>>,
    /// True when the pod is to end: hooks that hold up a start are given up.
    ending: watch::Sender<bool>,
    /// Volumes that are being brought up to date, and whether they are to be once more after that.
    refreshing: Option<JoinHandle<Option<()>>>,
    refresh_again: bool,
    tell: Handle,
    /// What was reported last; `None` while nothing was.
    reported: Option<Value>,
    reporting: bool,
    /// The sandbox goes once the API knows how the pod has ended: until then it alone proves that the pod has run.
    finish_when_told: bool,
    /// Nothing is known of how the pod ended but what the API says.
    silent: bool,
    refresh_at: Option<tokio::time::Instant>,
    /// Not in the API any more: nothing is left to report to.
    vanished: bool,
    /// Why it is not begun, unless it runs already.
    refusal: Option<admit::Refusal>,
}

/// Starts a worker for a pod; `left` is what an earlier process left of it. `done` is told its uid at the end.
/// With a refusal it fails, if nothing of it runs.
pub fn spawn(
    node: Arc<Node>,
    object: Arc<Object>,
    left: Vec<Sandbox>,
    refusal: Option<admit::Refusal>,
    done: mpsc::Sender<String>,
) -> Option<Handle> {
    let pod = object.typed::<Pod>().ok()?;
    let (tell, queue) = mpsc::channel(QUEUE);
    let uid = object.meta.uid.to_string();
    let mut worker = Worker {
        resources: resizing::Resizing::of(&pod),
        state: PodState::new(spec::plan(&pod)),
        uid: uid.clone(),
        start_time: pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
        node,
        object,
        pod,
        setting: None,
        leaving: None,
        gone: None,
        addresses: Vec::new(),
        probes: HashMap::new(),
        stops: HashMap::new(),
        ending: watch::Sender::new(false),
        refreshing: None,
        refresh_again: false,
        tell: tell.clone(),
        reported: None,
        reporting: false,
        finish_when_told: false,
        silent: false,
        refresh_at: None,
        vanished: false,
        refusal,
    };
    task::spawn("pod", async move {
        let begun = worker.remember();
        let lost = !worker.take_over(left).await && begun;
        worker.run(queue, lost).await;
        let _ = done.send(uid).await;
    });
    Some(tell)
}

// === impl Worker ===

impl Worker {
    /// `lost`: it had begun before this process, and there is no sandbox of it.
    async fn run(mut self, mut queue: mpsc::Receiver<Message>, lost: bool) {
        self.start_time.get_or_insert_with(|| self.node.clock.now());
        self.limit();
        if self.state.stage == Stage::Preparing && self.is_over() {
            // It ended before this process began, and nothing of it is left: what the API says of it stays.
            self.state.stage = Stage::Finished;
            self.silent = true;
            if let Err(error) = tear_down(&self.node, &self.pod, &self.uid, false).await {
                tracing::warn!(
                    uid = self.uid,
                    why = chain(&error),
                    "what is left of an ended pod was not removed whole"
                );
            }
        }
        // What is to go already is not begun.
        self.state.lost = lost;
        self.check_deletion();
        self.look_at_resources();
        self.refuse_or_begin(lost);
        self.report();
        // A report that is out would come after the last one.
        while self.state.stage != Stage::Gone || self.reporting {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                message = queue.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => break,
                },
                () = sleep_until(wake), if wake.is_some() => self.tick(),
            }
            // Everything that waits is looked at before one report is made of it.
            while let Ok(message) = queue.try_recv() {
                self.take(message).await;
            }
            self.report();
            if self.finish_when_told && !self.reporting {
                self.begin_finish(false);
            }
        }
        // Nobody is kept waiting by what is told to it while the API is away.
        drop(queue);
        self.end().await;
    }

    /// What runs already goes on running, whatever the flags say now.
    fn refuse_or_begin(&mut self, lost: bool) {
        match self.refusal.take().filter(|_| self.state.stage == Stage::Preparing) {
            Some(admit::Refusal { reason, message }) => {
                self.node.recorder.event(&pod::KIND, &self.object, EventType::Warning, &reason, &message);
                self.happened(Event::Refused { reason, message });
            }
            None if lost && self.state.stage == Stage::Preparing => {
                self.state.stage = Stage::Up;
                self.happened(Event::SandboxGone);
            }
            None => self.happened(Event::Begin),
        }
    }

    /// Whether the API says that the pod has ended.
    fn is_over(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Pod(object) => {
                if let Ok(pod) = object.typed::<Pod>() {
                    let shown = |p: &Pod| (p.metadata.labels.clone(), p.metadata.annotations.clone());
                    let changed = volumes::shows_metadata(&pod) && shown(&self.pod) != shown(&pod);
                    (self.object, self.pod) = (object, pod);
                    self.limit();
                    self.look_at_resources();
                    self.take_in_ephemeral();
                    if changed {
                        self.refresh();
                    }
                    self.check_deletion();
                }
            }
            Message::Vanished => {
                self.vanished = true;
                let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
                let deadline = self.node.clock.now() + Duration::from_secs(grace.max(0) as u64);
                self.happened(Event::Delete { deadline });
            }
            Message::Happened(event) => {
                let no_image = matches!(event, Event::PullFailed { .. });
                self.happened(event);
                if self.resources.is_begun() {
                    self.make_so();
                }
                if no_image {
                    // It may have come while the failure was on its way.
                    self.look_for_images(false).await;
                }
            }
            Message::Images => self.look_for_images(true).await,
            Message::Prepared(setting) => {
                self.addresses = setting.addresses.clone();
                if setting.stale {
                    self.refresh_at = Some(tokio::time::Instant::now() + REFRESH_RETRY);
                }
                let died = self.gone.take().is_some_and(|id| id == setting.sandbox);
                (self.setting, self.leaving) = (Some(setting), None);
                self.happened(Event::Prepared);
                if died {
                    self.happened(Event::SandboxGone);
                }
                self.look_at_resources();
            }
            Message::SandboxGone { sandbox } => match &self.setting {
                Some(setting) if setting.sandbox == sandbox => self.happened(Event::SandboxGone),
                _ => self.gone = Some(sandbox),
            },
            Message::Exited { container } => self.exited(&container).await,
            Message::Content => self.refresh(),
            Message::Room => self.room(),
            Message::Resized(done) => self.resized(done),
            Message::Refreshed { stale } => {
                self.refreshing = None;
                if stale {
                    self.refresh_at = Some(tokio::time::Instant::now() + REFRESH_RETRY);
                }
                if std::mem::take(&mut self.refresh_again) {
                    self.refresh();
                }
            }
            Message::Reported(well) => {
                self.reporting = false;
                if !well {
                    self.reported = None;
                }
            }
        }
    }

    /// Containers whose image has come by another way wait no longer. Where the policy is to ask for it always, it must have
    /// come `just_now`: that it is there says nothing.
    async fn look_for_images(&mut self, just_now: bool) {
        let failed = self.state.containers.iter().filter(|c| matches!(c.now, ContainerState::PullFailed { .. }));
        let names: Vec<String> = failed.map(|c| c.name.clone()).collect();
        for container in names {
            let Some(c) = spec::container(&self.pod, &container) else { continue };
            if pull::are_here(&self.node, &self.pod, &c, just_now).await {
                self.happened(Event::ImageCame { container });
            }
        }
    }

    fn take_in_ephemeral(&mut self) {
        let parts = spec::plan(&self.pod).containers.into_iter().filter(|p| p.role == Role::Ephemeral);
        let new: Vec<ContainerPlan> = parts.filter(|p| self.state.container(&p.name).is_none()).collect();
        for part in new {
            self.happened(Event::Added(part));
        }
    }

    fn happened(&mut self, event: Event) {
        let state = std::mem::replace(&mut self.state, PodState::new(machine::Plan::default()));
        let (state, effects) = machine::step(state, event, self.node.clock.now());
        self.state = state;
        for effect in effects {
            self.perform(effect);
        }
        let state = &self.state;
        self.stops.retain(|name, stop| {
            let runs = state.container(name).is_some_and(|c| matches!(c.now, ContainerState::Running { .. }));
            if !runs {
                // It has ended by itself: hooks and patience are of no use any more.
                stop.abort();
            }
            runs
        });
        if matches!(state.stage, Stage::Failing { .. } | Stage::Stopping { .. }) {
            self.ending.send_replace(true);
        }
    }

    /// How long the pod may be active, and how long it has to end.
    fn limit(&mut self) {
        let spec = self.pod.spec.as_ref();
        let seconds = |n: i64| Duration::from_secs(n.max(0) as u64);
        let active = spec.and_then(|s| s.active_deadline_seconds).map(seconds);
        self.state.active_until =
            self.start_time.zip(active).and_then(|(start, active)| start.checked_add(active).ok());
        self.state.grace = seconds(spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30));
    }

    fn tick(&mut self) {
        if self.refresh_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
            self.refresh();
        }
        self.retry_resize();
        self.happened(Event::Tick);
    }

    fn wake_at(&self) -> Option<tokio::time::Instant> {
        let due = self.state.next_at().map(|at| tokio::time::Instant::now() + between(self.node.clock.now(), at));
        [due, self.refresh_at, self.resources.retry_at].into_iter().flatten().min()
    }

    fn check_deletion(&mut self) {
        if let Some(deadline) = self.object.meta.deleted {
            self.happened(Event::Delete { deadline });
        }
    }

    async fn exited(&mut self, id: &str) {
        let Some(found) = self.node.runtime.container(id).await else {
            return self.lost_container(id);
        };
        let Some(ended) = launch::ended(&self.node, &self.pod, &found) else { return };
        let current = self
            .state
            .container(&found.name)
            .is_some_and(|c| matches!(&c.now, ContainerState::Running { id, .. } if *id == found.id));
        if current {
            let again = self.state.container(&found.name).is_some_and(|c| c.restarts > 0);
            self.happened(Event::Exited { container: found.name.clone(), ended });
            let crashed =
                self.state.container(&found.name).is_some_and(|c| matches!(c.now, ContainerState::Crashed { .. }));
            if crashed && again {
                let message =
                    format!("Back-off restarting failed container {} in pod {}", found.name, self.object.meta.name);
                self.say(&found.name, EventType::Warning, "BackOff", &message);
            }
        }
        // The runtime's record of the run before the last one is of no use any more.
        self.prune(&found.name, &found.id).await;
    }

    /// The runtime knows nothing of a container: nobody would ever tell of its end.
    fn lost_container(&mut self, id: &str) {
        let mut all = self.state.containers.iter();
        let found = all.find_map(|c| match &c.now {
            ContainerState::Running { id: now, since, .. } if now == id => Some((c.name.clone(), *since)),
            _ => None,
        });
        if let Some((container, since)) = found {
            let ended = Ended { id: id.to_owned(), started_at: Some(since), ..Ended::lost(self.node.clock.now()) };
            self.happened(Event::Exited { container, ended });
        }
    }

    /// Keeps the newest ended run of a container (for `logs --previous`), and removes older ones.
    async fn prune(&self, name: &str, newest: &str) {
        let Some(setting) = &self.setting else { return };
        let all = self.node.runtime.list().await;
        let Some(sandbox) = all.into_iter().find(|s| s.spec.id == setting.sandbox) else { return };
        // One that is neither running nor ended is just being started.
        let ended = |c: &&ContainerStatus| matches!(c.state, containers::ContainerState::Exited { .. });
        for c in sandbox.containers.iter().filter(ended).filter(|c| c.name == name && c.id != newest) {
            let _ = self.node.runtime.remove_container(&c.id).await;
            let _ = self.node.images.release_rootfs(&c.id).await;
        }
    }

    fn facts(&self) -> DownwardValues {
        facts(&self.node, &self.addresses)
    }

    /// Brings the volumes up to date; one look at a time, since two that write the same volume would remove what the other
    /// has written.
    fn refresh(&mut self) {
        self.refresh_at = volumes::has_token(&self.pod).then(|| tokio::time::Instant::now() + REFRESH);
        if self.state.stage != Stage::Up {
            return;
        }
        if self.refreshing.is_some() {
            self.refresh_again = true;
            return;
        }
        let (node, pod, facts, tell) = (self.node.clone(), self.pod.clone(), self.facts(), self.tell.clone());
        self.refreshing = Some(task::spawn("volume refresh", async move {
            let refreshed = volumes::refresh(&node, &pod, &facts).await;
            if let Err(why) = &refreshed {
                tracing::info!(pod = ?pod.metadata.name, why = chain(why), "a volume keeps its old content");
            }
            let _ = tell.send(Message::Refreshed { stale: refreshed.is_err() }).await;
        }));
    }

    /// What works on the pod's volumes is ended; the task that goes on waits for its end.
    fn end_refresh(&mut self) -> Option<JoinHandle<Option<()>>> {
        self.refresh_again = false;
        self.refreshing.take().inspect(JoinHandle::abort)
    }

    fn say(&self, container: &str, event_type: EventType, reason: &str, message: &str) {
        let part = if container.is_empty() { String::new() } else { spec::field_of(&self.pod, container) };
        self.node.recorder.event_at(&pod::KIND, &self.object, &part, event_type, reason, message);
    }

    fn observed(&self) -> status::Observed {
        status::Observed {
            addresses: self.addresses.clone(),
            host_addresses: self.node.config.addresses.clone(),
            // What is about to go is not said to be there: it would be a report more.
            sandbox: self.setting.is_some() && !self.finish_when_told,
            start_time: self.start_time,
            deleting: self.object.meta.deleted.is_some(),
            resources: self.resources.seen(&self.pod, &self.state),
        }
    }

    fn current(&self) -> Value {
        let mut value = self.object.value();
        value.get_mut("status").map(Value::take).unwrap_or_default()
    }

    /// Sends the status if it is not what was sent last; one report is under way at a time.
    fn report(&mut self) {
        if self.reporting || self.vanished || self.silent || self.state.stage == Stage::Gone {
            return;
        }
        let current = self.current();
        let status = status::of(&self.pod, &self.state, &self.observed(), &current, self.node.clock.now());
        if self.reported.as_ref() == Some(&status) || status == current {
            return;
        }
        let was_running = text(self.reported.as_ref().unwrap_or(&current), "phase") == "Running";
        if text(&status, "phase") == "Running" && !was_running {
            let since = self.start_time.unwrap_or_else(|| self.node.clock.now());
            metrics::POD_START.observe(Pairs([]), between(since, self.node.clock.now()));
        }
        self.reporting = true;
        self.reported = Some(status.clone());
        let (node, object, tell) = (self.node.clone(), self.object.clone(), self.tell.clone());
        let sent = task::spawn("pod status", async move { send(&node, &object, status).await });
        task::spawn("pod status", async move {
            let well = sent.await.ok().flatten() == Some(true);
            if !well {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = tell.send(Message::Reported(well)).await;
        });
    }

    /// The last report, and the pod's removal from the API.
    async fn end(self) {
        if self.vanished {
            return;
        }
        let (namespace, name) = (self.object.meta.namespace.to_string(), self.object.meta.name.to_string());
        if !self.silent {
            let status = status::of(&self.pod, &self.state, &self.observed(), &self.current(), self.node.clock.now());
            send(&self.node, &self.object, status).await;
        }
        let options = DeleteOptions { grace_seconds: Some(0), uid: Some(self.uid.clone()), ..DeleteOptions::default() };
        let mut waits = [0u64, 100, 500, 2000].into_iter();
        loop {
            let wait = waits.next();
            tokio::time::sleep(Duration::from_millis(wait.unwrap_or(5000))).await;
            match self.node.client.delete(&pod::KIND, &namespace, &name, options.clone()).await {
                Err(error) if !matches!(error.code, 404 | 409) => {
                    tracing::warn!(namespace, name, %error, "the pod was not removed from the API");
                    // Nobody would tell of it again, so whoever is away is waited for.
                    if wait.is_none() && error.code != 503 {
                        return;
                    }
                }
                _ => return,
            }
        }
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// True when there is nothing to send again.
async fn send(node: &Node, object: &Object, status: Value) -> bool {
    let (namespace, name) = (&object.meta.namespace, &object.meta.name);
    let patch = Patch::Merge(json!({"metadata": {"uid": object.meta.uid}, "status": status}));
    match node.client.patch(&pod::KIND, namespace, name, Some(Subresource::Status), patch).await {
        Ok(_) => true,
        Err(error) if matches!(error.code, 404 | 409) => true,
        Err(error) => {
            tracing::warn!(%namespace, %name, %error, "the pod's status was not written; it is tried again");
            false
        }
    }
}

/// What a hook answers, unless the pod is to end before that.
async fn unless<T>(mut ending: watch::Receiver<bool>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        Ok(_) = ending.wait_for(|ending| *ending) => None,
        done = work => Some(done),
    }
}

async fn ended(task: Option<JoinHandle<Option<()>>>) {
    if let Some(task) = task {
        // Aborted, or done: either is its end.
        let _ = task.await;
    }
}
