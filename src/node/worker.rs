//! One pod's worker: feeds the state machine, does what it asks for, reports what it is.
//!
//! The loop never waits for anything but the next message: whatever takes time runs in a task of its own and comes back as
//! a message. So a pod that is being pulled, stopped or probed can be deleted at any moment.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::env::Facts;
use super::launch::{self, Setting};
use super::machine::{self, Effect, Event, Now, Part, PodState, Role, Stage};
use super::{Node, admit, files, probes, pull, spec, status, volumes};
use crate::api::delete::DeleteOptions;
use crate::base::clock::between;
use crate::base::object::Object;
use crate::base::task;
use crate::containers::{ContainerState, Sandbox, SandboxSpec, Users};
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::net::PodAttachment;
use crate::reconcile::{EventType, Patch};

/// Messages that may wait for a worker.
const QUEUE: usize = 64;
/// Tokens in volumes are renewed after this time; they live an hour.
const REFRESH: Duration = Duration::from_secs(40 * 60);
/// When a volume that kept its old content is looked at again.
const REFRESH_RETRY: Duration = Duration::from_secs(60);
/// The label on a sandbox that leads back to its pod's object.
pub const UID_LABEL: &str = "uid";

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The pod as the API has it now.
    Pod(Arc<Object>),
    /// The pod is no longer in the API.
    Vanished,
    /// Something the machine must know.
    Happened(Event),
    /// The sandbox is up.
    Prepared(Box<Setting>),
    /// A container of the sandbox has ended: look how.
    Exited { container: String },
    /// A ConfigMap or Secret of a volume has changed.
    Content,
    /// There may be images that were not there before.
    Images,
    /// The last report has reached the API (or not).
    Reported(bool),
    /// A volume could not be brought up to date.
    Stale,
}

/// How to reach a worker.
pub type Handle = mpsc::Sender<Message>;

struct Worker {
    node: Arc<Node>,
    uid: String,
    object: Arc<Object>,
    pod: Arc<Pod>,
    state: PodState,
    setting: Option<Box<Setting>>,
    addresses: Vec<IpAddr>,
    start_time: Option<Timestamp>,
    probes: HashMap<String, Vec<JoinHandle<Option<()>>>>,
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
}

/// Starts a worker for a pod; `sandbox` is what an earlier process left running of it. `done` is told its uid at the end.
pub fn spawn(
    node: Arc<Node>,
    object: Arc<Object>,
    sandbox: Option<Sandbox>,
    done: mpsc::Sender<String>,
) -> Option<Handle> {
    let pod = object.typed::<Pod>().ok()?;
    let (tell, queue) = mpsc::channel(QUEUE);
    let uid = object.meta.uid.to_string();
    let mut worker = Worker {
        state: PodState::new(spec::plan(&pod)),
        uid: uid.clone(),
        start_time: pod.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0),
        node,
        object,
        pod,
        setting: None,
        addresses: Vec::new(),
        probes: HashMap::new(),
        tell: tell.clone(),
        reported: None,
        reporting: false,
        finish_when_told: false,
        silent: false,
        refresh_at: None,
        vanished: false,
    };
    task::spawn("pod", async move {
        worker.remember();
        if let Some(sandbox) = sandbox {
            worker.adopt(sandbox).await;
        }
        worker.run(queue).await;
        let _ = done.send(uid).await;
    });
    Some(tell)
}

// === impl Worker ===

impl Worker {
    async fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        self.start_time.get_or_insert_with(|| self.node.clock.now());
        if self.state.stage == Stage::Preparing && self.is_over() {
            // It ended before this process began, and nothing of it is left: what the API says of it stays.
            self.state.stage = Stage::Finished;
            self.silent = true;
            tear_down(&self.node, &self.pod, &self.uid, false).await;
        } else {
            self.refuse_or_begin();
        }
        self.check_deletion();
        self.report();
        while self.state.stage != Stage::Gone {
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
        self.end().await;
    }

    /// What runs already goes on running, whatever the flags say now.
    fn refuse_or_begin(&mut self) {
        let host = admit::Host::look(&self.node.config.unsafe_sysctls);
        match admit::refuse(&self.pod, &host).filter(|_| self.state.stage == Stage::Preparing) {
            Some(admit::Refusal { reason, message }) => {
                self.node.recorder.event(&pod::KIND, &self.object, EventType::Warning, reason, &message);
                self.happened(Event::Refused { reason, message });
            }
            None => self.happened(Event::Begin),
        }
    }

    /// Whether the API says that the pod has ended.
    fn is_over(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// Restart counts and last ends that the API knows of, for containers that this process has not seen.
    fn remember(&mut self) {
        let pod = self.pod.clone();
        for s in status::reported(&pod).cloned() {
            let Some(c) = self.state.containers.iter_mut().find(|c| c.name == s.name) else { continue };
            c.restarts = s.restart_count.max(0) as u32;
            c.image_id = s.image_id;
            let terminated = s.state.as_ref().and_then(|s| s.terminated.clone());
            let ran = s.state.as_ref().is_some_and(|s| s.running.is_some());
            if let Some(t) = terminated {
                let id = t.container_id.unwrap_or_default().trim_start_matches("amphipod://").to_owned();
                let ended = machine::Ended {
                    id,
                    code: t.exit_code,
                    signal: t.signal,
                    oom_killed: t.reason.as_deref() == Some("OOMKilled"),
                    started_at: t.started_at.map(|x| x.0),
                    finished_at: t.finished_at.map_or_else(|| self.node.clock.now(), |x| x.0),
                    message: t.message.unwrap_or_default(),
                };
                c.now = Now::Ended(ended);
            } else if ran && self.state.plan.containers.iter().any(|p| p.name == s.name && p.role == Role::Ephemeral) {
                let id = s.container_id.unwrap_or_default().trim_start_matches("amphipod://").to_owned();
                c.now = Now::Ended(machine::Ended { id, ..machine::Ended::lost(self.node.clock.now()) });
            } else if ran {
                // It ran when this node was last seen, and is gone unless its sandbox is adopted.
                c.restarts += 1;
            }
        }
    }

    /// Takes over what runs: same containers, same addresses.
    async fn adopt(&mut self, sandbox: Sandbox) {
        if !sandbox.alive {
            self.discard(&sandbox).await;
            return;
        }
        let attempt = sandbox.spec.attempt;
        let Some(setting) = self.prepare(attempt, Some(&sandbox)).await.ok() else {
            self.discard(&sandbox).await;
            return;
        };
        self.state.sandbox_attempt = attempt;
        self.state.stage = Stage::Up;
        self.addresses = setting.addresses.clone();
        self.setting = Some(setting);
        let pod = self.pod.clone();
        let mut running = Vec::new();
        for part in self.state.plan.containers.clone() {
            let newest = sandbox.containers.iter().filter(|c| c.name == part.name).max_by_key(|c| c.attempt);
            let Some(found) = newest else { continue };
            let was =
                status::reported(&pod).find(|s| s.container_id.as_deref() == Some(&format!("amphipod://{}", found.id)));
            let ended = launch::ended(&self.node, &self.pod, found);
            let Some(c) = self.state.containers.iter_mut().find(|c| c.name == part.name) else { continue };
            c.restarts = found.attempt;
            match (&found.state, ended) {
                (ContainerState::Running { started_at }, _) => {
                    c.now = Now::Running { id: found.id.clone(), pid: found.pid, since: *started_at, stopping: false };
                    c.started = was.and_then(|s| s.started).unwrap_or(!part.startup_probe);
                    c.ready = was.map_or(!part.readiness_probe, |s| s.ready);
                    running.push(part.name.clone());
                }
                (_, Some(ended)) => {
                    // As if it had been seen ending.
                    c.now = Now::Running { id: found.id.clone(), pid: 0, since: ended.finished_at, stopping: false };
                    self.happened(Event::Exited { container: part.name.clone(), ended });
                }
                (_, None) => {}
            }
        }
        for name in running {
            self.perform(Effect::StartProbes { container: name });
        }
        // The volumes were left as they are.
        self.refresh();
    }

    async fn discard(&self, sandbox: &Sandbox) {
        for c in &sandbox.containers {
            let _ = self.node.images.release_rootfs(&c.id).await;
        }
        if let Err(error) = self.node.runtime.remove_sandbox(&sandbox.spec.id).await {
            tracing::warn!(sandbox = sandbox.spec.id, %error, "a lost sandbox was not removed");
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Pod(object) => {
                if let Ok(pod) = object.typed::<Pod>() {
                    (self.object, self.pod) = (object, pod);
                    self.take_in_ephemeral();
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
                self.setting = Some(setting);
                self.happened(Event::Prepared);
            }
            Message::Exited { container } => self.exited(&container).await,
            Message::Content => self.refresh(),
            Message::Stale => self.refresh_at = Some(tokio::time::Instant::now() + REFRESH_RETRY),
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
        let failed = self.state.containers.iter().filter(|c| matches!(c.now, Now::PullFailed { .. }));
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
        let new: Vec<Part> = parts.filter(|p| self.state.container(&p.name).is_none()).collect();
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
    }

    fn tick(&mut self) {
        if self.refresh_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
            self.refresh();
        }
        self.happened(Event::Tick);
    }

    fn wake_at(&self) -> Option<tokio::time::Instant> {
        let due = self.state.next_at().map(|at| tokio::time::Instant::now() + between(self.node.clock.now(), at));
        [due, self.refresh_at].into_iter().flatten().min()
    }

    fn check_deletion(&mut self) {
        if let Some(deadline) = self.object.meta.deleted {
            self.happened(Event::Delete { deadline });
        }
    }

    async fn exited(&mut self, id: &str) {
        let Some(found) = self.node.runtime.container(id).await else { return };
        let Some(ended) = launch::ended(&self.node, &self.pod, &found) else { return };
        let current = self.state.container(&found.name).is_some_and(|c| match &c.now {
            Now::Running { id, .. } => *id == found.id,
            Now::Starting => true,
            _ => false,
        });
        if current {
            let again = self.state.container(&found.name).is_some_and(|c| c.restarts > 0);
            self.happened(Event::Exited { container: found.name.clone(), ended });
            let crashed = self.state.container(&found.name).is_some_and(|c| matches!(c.now, Now::Crashed { .. }));
            if crashed && again {
                let message =
                    format!("Back-off restarting failed container {} in pod {}", found.name, self.object.meta.name);
                self.say(&found.name, EventType::Warning, "BackOff", &message);
            }
        }
        // The runtime's record of the run before the last one is of no use any more.
        self.prune(&found.name, &found.id).await;
    }

    /// Keeps the newest ended run of a container (for `logs --previous`), and removes older ones.
    async fn prune(&self, name: &str, newest: &str) {
        let Some(setting) = &self.setting else { return };
        let all = self.node.runtime.list().await;
        let Some(sandbox) = all.into_iter().find(|s| s.spec.id == setting.sandbox) else { return };
        for c in sandbox.containers.iter().filter(|c| c.name == name && c.id != newest && !c.is_running()) {
            let _ = self.node.runtime.remove_container(&c.id).await;
            let _ = self.node.images.release_rootfs(&c.id).await;
        }
    }

    fn facts(&self) -> Facts {
        facts(&self.node, &self.addresses)
    }

    fn refresh(&mut self) {
        let (node, pod, facts, tell) = (self.node.clone(), self.pod.clone(), self.facts(), self.tell.clone());
        self.refresh_at = volumes::has_token(&pod).then(|| tokio::time::Instant::now() + REFRESH);
        if self.state.stage == Stage::Up {
            task::spawn("volume refresh", async move {
                if let Err(why) = volumes::refresh(&node, &pod, &facts).await {
                    tracing::info!(pod = ?pod.metadata.name, why, "a volume keeps its old content");
                    let _ = tell.send(Message::Stale).await;
                }
            });
        }
    }

    fn say(&self, container: &str, event_type: EventType, reason: &str, message: &str) {
        let part = if container.is_empty() { String::new() } else { spec::field_of(&self.pod, container) };
        self.node.recorder.event_at(&pod::KIND, &self.object, &part, event_type, reason, message);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Prepare => self.begin_prepare(),
            Effect::Pull { container } => self.begin_pull(container),
            Effect::PullRests { container } => {
                let image = spec::container(&self.pod, &container).and_then(|c| c.image.clone()).unwrap_or_default();
                self.say(&container, EventType::Normal, "BackOff", &format!("Back-off pulling image {image:?}"));
                self.say(&container, EventType::Warning, "Failed", "Error: ImagePullBackOff");
            }
            Effect::Start { container, attempt } => self.begin_start(container, attempt),
            Effect::Stop { container, grace } => self.begin_stop(container, grace),
            Effect::StartProbes { container } => self.start_probes(&container),
            Effect::StopProbes { container } => {
                for probe in self.probes.remove(&container).into_iter().flatten() {
                    probe.abort();
                }
            }
            Effect::Finish => self.finish_when_told = true,
            Effect::TearDown => self.begin_finish(true),
        }
    }

    fn begin_prepare(&mut self) {
        self.refresh_at = volumes::has_token(&self.pod).then(|| tokio::time::Instant::now() + REFRESH);
        let (node, object, pod) = (self.node.clone(), self.object.clone(), self.pod.clone());
        let (old, attempt, tell) = (self.setting.take(), self.state.sandbox_attempt, self.tell.clone());
        task::spawn("pod set-up", async move {
            if let Some(old) = old {
                remove_sandbox(&node, &old.sandbox).await;
            }
            let message = match prepare(&node, &pod, attempt, None).await {
                Ok(setting) => Message::Prepared(setting),
                Err((reason, why)) => {
                    node.recorder.event(&pod::KIND, &object, EventType::Warning, reason, &why);
                    Message::Happened(Event::PrepareFailed(why))
                }
            };
            let _ = tell.send(message).await;
        });
    }

    async fn prepare(&self, attempt: u32, adopted: Option<&Sandbox>) -> Result<Box<Setting>, (&'static str, String)> {
        prepare(&self.node, &self.pod, attempt, adopted).await
    }

    fn begin_pull(&mut self, name: String) {
        let (node, object, pod, tell) = (self.node.clone(), self.object.clone(), self.pod.clone(), self.tell.clone());
        task::spawn("image", async move {
            let Some(c) = spec::container(&pod, &name) else { return };
            let event = match pull::ensure(&node, &object, &pod, &c).await {
                Ok(image) => {
                    Event::Pulled { container: name, image_id: image.digests.first().cloned().unwrap_or(image.id) }
                }
                Err(failed) => Event::PullFailed { container: name, reason: failed.reason, message: failed.message },
            };
            let _ = tell.send(Message::Happened(event)).await;
        });
    }

    fn begin_start(&mut self, name: String, attempt: u32) {
        let Some(setting) = self.setting.clone() else { return };
        let (node, object, pod, tell) = (self.node.clone(), self.object.clone(), self.pod.clone(), self.tell.clone());
        task::spawn("container start", async move {
            let Some(c) = spec::container(&pod, &name) else { return };
            let part = spec::field_of(&pod, &name);
            let say =
                |t, reason: &str, message: &str| node.recorder.event_at(&pod::KIND, &object, &part, t, reason, message);
            let Some(image) = node.images.status(c.image.as_deref().unwrap_or("")).await else {
                let message = "the image was removed before the container could start".to_owned();
                let event = Event::StartFailed { container: name, reason: "CreateContainerError", message };
                let _ = tell.send(Message::Happened(event)).await;
                return;
            };
            let event = match launch::start(&node, &pod, &c, &image, attempt, &setting).await {
                Ok((id, pid)) => {
                    say(EventType::Normal, "Created", "Container created");
                    say(EventType::Normal, "Started", "Container started");
                    if let Some(handler) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
                        && let Err(why) = launch::hook(&node, &pod, &c, handler, &id, &setting.addresses).await
                    {
                        say(EventType::Warning, "FailedPostStartHook", &format!("PostStartHook failed: {why}"));
                        launch::stop(&node, &pod, &c, &id, &setting.addresses, Duration::from_secs(2)).await;
                    }
                    let state = node.runtime.container(&id).await.map(|s| s.state);
                    let since = match state {
                        Some(ContainerState::Running { started_at } | ContainerState::Exited { started_at, .. }) => {
                            started_at
                        }
                        Some(ContainerState::Created) | None => node.clock.now(),
                    };
                    let started = Event::Started { container: name, id: id.clone(), pid, since };
                    let _ = tell.send(Message::Happened(started)).await;
                    // It may have ended before anybody knew its id.
                    if node.runtime.container(&id).await.is_some_and(|s| !s.is_running()) {
                        let _ = tell.send(Message::Exited { container: id }).await;
                    }
                    return;
                }
                Err(failed) => {
                    say(EventType::Warning, "Failed", &format!("Error: {}", failed.message));
                    Event::StartFailed { container: name, reason: failed.reason, message: failed.message }
                }
            };
            let _ = tell.send(Message::Happened(event)).await;
        });
    }

    fn begin_stop(&mut self, name: String, grace: Duration) {
        let id = self.state.container(&name).and_then(|c| match &c.now {
            Now::Running { id, .. } => Some(id.clone()),
            _ => None,
        });
        let Some(id) = id else { return };
        if matches!(self.state.stage, Stage::Stopping { .. }) {
            self.say(&name, EventType::Normal, "Killing", &format!("Stopping container {name}"));
        }
        let (node, pod, addresses) = (self.node.clone(), self.pod.clone(), self.addresses.clone());
        task::spawn("container stop", async move {
            if let Some(c) = spec::container(&pod, &name) {
                launch::stop(&node, &pod, &c, &id, &addresses, grace).await;
            }
        });
    }

    fn start_probes(&mut self, name: &str) {
        let Some(Now::Running { id, .. }) = self.state.container(name).map(|c| c.now.clone()) else { return };
        let started = self.state.container(name).is_some_and(|c| c.started);
        let Some(container) = spec::container(&self.pod, name).map(Cow::into_owned) else { return };
        let subject = probes::Subject {
            node: self.node.clone(),
            object: self.object.clone(),
            pod: self.pod.clone(),
            container,
            id,
            host: self.addresses.first().copied(),
            tell: self.tell.clone(),
        };
        self.probes.insert(name.to_owned(), probes::start(subject, started));
    }

    /// Removes sandbox and network, and with `everything` also volumes and logs.
    fn begin_finish(&mut self, everything: bool) {
        self.finish_when_told = false;
        for probe in self.probes.drain().flat_map(|(_, p)| p) {
            probe.abort();
        }
        let (node, pod, uid, tell) = (self.node.clone(), self.pod.clone(), self.uid.clone(), self.tell.clone());
        let sandbox = self.setting.take().map(|s| s.sandbox);
        if !everything {
            self.addresses = self.addresses.clone();
        }
        task::spawn("pod tear-down", async move {
            if let Some(sandbox) = sandbox {
                remove_sandbox(&node, &sandbox).await;
            }
            tear_down(&node, &pod, &uid, everything).await;
            let _ = tell.send(Message::Happened(Event::TornDown)).await;
        });
    }

    fn seen(&self) -> status::Seen {
        status::Seen {
            addresses: self.addresses.clone(),
            host_addresses: self.node.config.addresses.clone(),
            // What is about to go is not said to be there: it would be a report more.
            sandbox: self.setting.is_some() && !self.finish_when_told,
            start_time: self.start_time,
            deleting: self.object.meta.deleted.is_some(),
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
        let status = status::of(&self.pod, &self.state, &self.seen(), &current, self.node.clock.now());
        if self.reported.as_ref() == Some(&status) || status == current {
            return;
        }
        self.reporting = true;
        self.reported = Some(status.clone());
        let (node, object, tell) = (self.node.clone(), self.object.clone(), self.tell.clone());
        task::spawn("pod status", async move {
            let well = send(&node, &object, status).await;
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
            let status = status::of(&self.pod, &self.state, &self.seen(), &self.current(), self.node.clock.now());
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

fn facts(node: &Node, addresses: &[IpAddr]) -> Facts {
    let text = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect();
    Facts {
        pod_ips: text(addresses),
        host_ips: text(&node.config.addresses),
        node_name: node.config.name.clone(),
        node_cpu_milli: node.capacity.cpus as i64 * 1000,
        node_memory_bytes: node.capacity.memory_bytes as i64,
    }
}

/// Network, volumes, files and sandbox of a pod; an adopted sandbox is taken as it is.
async fn prepare(
    node: &Node,
    pod: &Pod,
    attempt: u32,
    adopted: Option<&Sandbox>,
) -> Result<Box<Setting>, (&'static str, String)> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let sandbox_error = |why: String| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}"));
    let users = match admit::own_users(&pod_spec) {
        true => Some(own_users(node, &uid, adopted).await.map_err(sandbox_error)?),
        false => None,
    };
    let host_network = pod_spec.host_network == Some(true);
    let (netns, addresses) = if host_network {
        (None, node.config.addresses.clone())
    } else {
        let netns = users.as_ref().map(|users| users.netns.clone());
        let pod = PodAttachment { id: uid.clone(), namespace: namespace.clone(), name: name.clone(), netns };
        let attached = node.network.attach(pod).await.map_err(|e| sandbox_error(launch::full(&e)))?;
        (Some(attached.netns), attached.addresses)
    };
    let facts = facts(node, &addresses);
    let (volumes, stale) =
        volumes::prepare(node, pod, &facts, adopted.is_some()).await.map_err(|e| ("FailedMount", e))?;
    let files = files::write(&node.pod_files_dir(&uid), &node.config, pod, &addresses, adopted.is_some())
        .map_err(|e| sandbox_error(e.to_string()))?;
    let sandbox = match adopted {
        Some(sandbox) => sandbox.spec.id.clone(),
        None => {
            let security = pod_spec.security_context.clone().unwrap_or_default();
            let sysctls = security.sysctls.into_iter().flatten().map(|s| (s.name, s.value)).collect();
            let spec = SandboxSpec {
                id: crate::containers::new_id(),
                pod_namespace: namespace.clone(),
                pod_name: name.clone(),
                pod_uid: uid.clone(),
                attempt,
                hostname: files::host_name(pod, &node.config.name),
                netns,
                host_ipc: pod_spec.host_ipc == Some(true),
                host_pid: pod_spec.host_pid == Some(true),
                share_process_namespace: pod_spec.share_process_namespace == Some(true),
                sysctls,
                cgroup_parent: spec::cgroup_parent(pod, &uid),
                resources: spec::pod_resources(pod),
                log_dir: node.pod_log_dir(&namespace, &name, &uid),
                users: users.clone(),
                labels: [(UID_LABEL.to_owned(), uid.clone())].into(),
                ..SandboxSpec::default()
            };
            let id = spec.id.clone();
            node.runtime.create_sandbox(spec).await.map_err(|e| sandbox_error(launch::full(&e)))?;
            id
        }
    };
    Ok(Box::new(Setting { sandbox, addresses, users, volumes, files, facts, stale }))
}

/// The users of a pod that is to have its own, or why it cannot. What runs already is as it was made.
async fn own_users(node: &Node, uid: &str, adopted: Option<&Sandbox>) -> Result<Users, String> {
    if let Some(users) = adopted.and_then(|sandbox| sandbox.spec.users.clone()) {
        return Ok(users);
    }
    if let Some(why) = node.runtime.lacks_for_users().await {
        return Err(format!("user namespaces are not supported by this node (hostUsers: false): {why}"));
    }
    node.runtime.make_users(uid).await.map_err(|error| launch::full(&error))
}

async fn remove_sandbox(node: &Node, id: &str) {
    let all = node.runtime.list().await;
    let containers = all.into_iter().find(|s| s.spec.id == id).map(|s| s.containers).unwrap_or_default();
    if let Err(error) = node.runtime.remove_sandbox(id).await {
        tracing::warn!(sandbox = id, error = launch::full(&error), "a sandbox was not removed whole");
    }
    for c in containers {
        if let Err(error) = node.images.release_rootfs(&c.id).await {
            tracing::warn!(container = c.id, %error, "a root file system was not removed");
        }
    }
}

/// Removes what the sandbox does not hold: network, and with `everything` volumes and logs.
pub async fn tear_down(node: &Node, pod: &Pod, uid: &str, everything: bool) {
    if let Err(error) = node.network.detach(uid).await {
        tracing::warn!(uid, error = launch::full(&error), "the pod's network was not removed whole");
    }
    if let Err(error) = node.runtime.remove_users(uid).await {
        tracing::warn!(uid, error = launch::full(&error), "the pod's user namespace was not removed whole");
    }
    if everything {
        if let Err(why) = volumes::remove(node, uid).await {
            tracing::warn!(uid, why, "the pod's volumes were not removed whole");
        }
        let (namespace, name) =
            (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        if let Err(error) = crate::base::tree::remove(&node.pod_log_dir(namespace, name, uid)) {
            tracing::warn!(uid, %error, "the pod's logs were not removed whole");
        }
    }
}
