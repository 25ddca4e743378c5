//! One pod's worker: feeds the state machine, does what it asks for, reports what it is.
//!
//! The loop never waits for anything but the next message: whatever takes time runs in a task of its own and comes back as
//! a message. So a pod that is being pulled, stopped or probed can be deleted at any moment. Whatever the machine waits for is
//! answered, also when its task panics ([`Worker::work`]); and what it does not know of (hooks, volumes that are brought up to
//! date, the stop of a container that has ended) is ended and waited for before what it works on is removed.

mod adopt;
mod grant;
mod message;
mod resizing;

pub use message::{Handle, Message};

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::env::DownwardValues;
use super::error::{Error, Failed, Result};
use super::launch;
use super::machine::{self, ContainerPlan, ContainerState, Effect, Ended, Event, PodState, Role, Stage};
use super::sandbox_context::SandboxContext;
use super::{Node, admit, files, host_ports, probes, pull, spec, status, volumes};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::base::clock::between;
use crate::base::error::chain;
use crate::base::file::make_private_dir;
use crate::base::json::text;
use crate::base::metrics::{self, Pairs};
use crate::base::object::Object;
use crate::base::task;
use crate::containers;
use crate::containers::{ContainerStatus, Sandbox, SandboxSpec, Users};
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
            Effect::StopProbes { container, but_readiness } => {
                if let Some(probes) = self.probes.get_mut(&container) {
                    probes.retain(|probe| but_readiness && probe.keeps_on());
                }
            }
            Effect::Overdue => {
                let (reason, message) = status::OVERDUE;
                self.node.recorder.event(&pod::KIND, &self.object, EventType::Normal, reason, message);
            }
            Effect::Finish => self.finish_when_told = true,
            Effect::TearDown => self.begin_finish(true),
        }
    }

    /// Does what the machine waits for, and tells how it went; `otherwise` is told if the work panics.
    fn work(&self, name: &'static str, otherwise: Event, work: impl Future<Output = Message> + Send + 'static) {
        let tell = self.tell.clone();
        let work = task::spawn(name, work);
        task::spawn(name, async move {
            let answer = work.await.ok().flatten().unwrap_or(Message::Happened(otherwise));
            let _ = tell.send(answer).await;
        });
    }

    fn begin_prepare(&mut self) {
        self.refresh_at = volumes::has_token(&self.pod).then(|| tokio::time::Instant::now() + REFRESH);
        let (node, object, pod) = (self.node.clone(), self.object.clone(), self.granted_pod());
        self.resources.sandbox_begins(&self.pod);
        let (attempt, refresh) = (self.state.sandbox_attempt, self.end_refresh());
        if let Some(old) = self.setting.take() {
            self.leaving = Some(old.sandbox);
        }
        let old = self.leaving.clone();
        self.work("pod set-up", Event::PrepareFailed("internal error".into()), async move {
            ended(refresh).await;
            let removed = match &old {
                Some(old) => remove_sandbox(&node, old).await.map_err(|why| {
                    ("FailedKillPod", format!("the sandbox before could not be removed: {}", chain(&why)))
                }),
                None => Ok(()),
            };
            let prepared = match removed {
                Ok(()) => prepare(&node, &pod, attempt, None).await,
                Err(failed) => Err(failed),
            };
            match prepared {
                Ok(setting) => {
                    for why in host_ports::unreachable(&pod, &setting.addresses, |a| node.network.is_local(a)) {
                        node.recorder.event(&pod::KIND, &object, EventType::Warning, "HostPortNotPublished", &why);
                    }
                    Message::Prepared(setting)
                }
                Err((reason, why)) => {
                    node.recorder.event(&pod::KIND, &object, EventType::Warning, reason, &why);
                    Message::Happened(Event::PrepareFailed(why))
                }
            }
        });
    }

    async fn prepare(
        &self,
        attempt: u32,
        adopted: Option<&Sandbox>,
    ) -> Result<Box<SandboxContext>, (&'static str, String)> {
        prepare(&self.node, &self.granted_pod(), attempt, adopted).await
    }

    fn begin_pull(&mut self, name: String) {
        let (node, object, pod) = (self.node.clone(), self.object.clone(), self.pod.clone());
        let failed = |reason, message| Event::PullFailed { container: name.clone(), reason, message };
        let otherwise = failed("ErrImagePull", "internal error".into());
        let Some(c) = spec::container(&self.pod, &name).map(Cow::into_owned) else { return };
        self.work("image", otherwise, async move {
            Message::Happened(match pull::ensure(&node, &object, &pod, &c).await {
                Ok(pull::Ids { own, volumes }) => {
                    Event::Pulled { container: c.name, image_id: own, volume_images: volumes }
                }
                Err(failed) => Event::PullFailed { container: c.name, reason: failed.reason, message: failed.message },
            })
        });
    }

    fn begin_start(&mut self, name: String, attempt: u32) {
        let failed = |message: &str| Event::StartFailed {
            container: name.clone(),
            reason: "CreateContainerError",
            message: message.to_owned(),
        };
        self.resources.begins(&name);
        let found = self.setting.clone().zip(spec::container(&self.granted_pod(), &name).map(Cow::into_owned));
        let Some((setting, c)) = found else {
            // It is never asked for without either; if it were, the pod would wait for ever.
            return self.work(
                "container start",
                failed("internal error"),
                std::future::ready(Message::Happened(failed("the pod has no sandbox"))),
            );
        };
        let (node, object, pod, tell) = (self.node.clone(), self.object.clone(), self.pod.clone(), self.tell.clone());
        let ending = self.ending.subscribe();
        let otherwise = failed("internal error");
        self.work("container start", otherwise, async move {
            let part = spec::field_of(&pod, &c.name);
            let say =
                |t, reason: &str, message: &str| node.recorder.event_at(&pod::KIND, &object, &part, t, reason, message);
            let Some(image) = node.images.status(c.image.as_deref().unwrap_or("")).await else {
                let message = "the image was removed before the container could start".to_owned();
                let reason = "CreateContainerError";
                return Message::Happened(Event::StartFailed { container: c.name, reason, message });
            };
            let (id, pid) = match launch::start(&node, &pod, &c, &image, attempt, &setting).await {
                Ok(started) => started,
                Err(failed) => {
                    say(EventType::Warning, "Failed", &format!("Error: {}", failed.message));
                    let Failed { reason, message } = failed;
                    return Message::Happened(Event::StartFailed { container: c.name, reason, message });
                }
            };
            say(EventType::Normal, "Created", "Container created");
            say(EventType::Normal, "Started", "Container started");
            if let Some(handler) = c.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) {
                let hook = launch::hook(&node, &pod, &c, handler, &id, &setting.addresses);
                if let Some(Err(why)) = unless(ending, hook).await {
                    say(EventType::Warning, "FailedPostStartHook", &format!("PostStartHook failed: {why}"));
                    launch::stop(&node, &pod, &c, &id, &setting.addresses, Duration::from_secs(2)).await;
                }
            }
            let state = node.runtime.container(&id).await.map(|s| s.state);
            let since = match state {
                Some(
                    containers::ContainerState::Running { started_at }
                    | containers::ContainerState::Exited { started_at, .. },
                ) => started_at,
                Some(containers::ContainerState::Created) | None => node.clock.now(),
            };
            let started = Event::Started { container: c.name, id: id.clone(), pid, since };
            let _ = tell.send(Message::Happened(started)).await;
            // It may have ended before anybody knew its id.
            Message::Exited { container: id }
        });
    }

    fn begin_stop(&mut self, name: String, grace: Duration) {
        let id = self.state.container(&name).and_then(|c| match &c.now {
            ContainerState::Running { id, .. } => Some(id.clone()),
            _ => None,
        });
        let Some(id) = id else { return };
        if matches!(self.state.stage, Stage::Stopping { .. } | Stage::Failing { .. }) {
            self.say(&name, EventType::Normal, "Killing", &format!("Stopping container {name}"));
        }
        let (node, pod, addresses) = (self.node.clone(), self.pod.clone(), self.addresses.clone());
        let tell = self.tell.clone();
        let Some(c) = spec::container(&self.pod, &name).map(Cow::into_owned) else { return };
        let stop = task::spawn("container stop", async move {
            launch::stop(&node, &pod, &c, &id, &addresses, grace).await;
            // The runtime tells of its end by itself, unless it does not know it.
            let _ = tell.send(Message::Exited { container: id }).await;
        });
        // Whoever is hurried is not waited for twice.
        if let Some(slower) = self.stops.insert(name, stop) {
            slower.abort();
        }
    }

    fn start_probes(&mut self, name: &str) {
        let Some(ContainerState::Running { id, .. }) = self.state.container(name).map(|c| c.now.clone()) else {
            return;
        };
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
        self.probes.insert(name.to_owned(), probes::start(&subject, started));
    }

    /// Removes sandbox and network, and with `everything` also volumes and logs.
    fn begin_finish(&mut self, everything: bool) {
        self.finish_when_told = false;
        self.probes.clear();
        let (node, pod, uid) = (self.node.clone(), self.pod.clone(), self.uid.clone());
        if let Some(setting) = self.setting.take() {
            self.leaving = Some(setting.sandbox);
        }
        let (sandbox, refresh) = (self.leaving.clone(), self.end_refresh());
        self.work("pod tear-down", Event::TearDownFailed, async move {
            ended(refresh).await;
            let sandbox = match sandbox {
                Some(sandbox) => remove_sandbox(&node, &sandbox).await,
                None => Ok(()),
            };
            // What the sandbox holds is not taken from under it.
            let removed = match sandbox {
                Ok(()) => tear_down(&node, &pod, &uid, everything).await,
                error => error,
            };
            Message::Happened(match removed {
                Ok(()) => Event::TornDown,
                Err(why) => {
                    tracing::warn!(uid, why = chain(&why), "the pod was not removed whole; it is tried again");
                    Event::TearDownFailed
                }
            })
        });
    }

    fn observed(&self) -> status::Observed {
        status::Observed {
            addresses: self.addresses.clone(),
            host_addresses: self.node.config.addresses.clone(),
            // What is about to go is not said to be there: it would be a report more.
            sandbox: self.setting.is_some() && !self.finish_when_told,
            start_time: self.start_time,
            deleting: self.object.meta.deleted.is_some(),
            resources: self.resources.seen(&self.state),
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

fn facts(node: &Node, addresses: &[IpAddr]) -> DownwardValues {
    let text = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect();
    DownwardValues {
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
) -> Result<Box<SandboxContext>, (&'static str, String)> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let pod_spec = pod.spec.clone().unwrap_or_default();
    let sandbox_error = |why: String| ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}"));
    let users = match admit::own_users(&pod_spec) {
        true => Some(own_users(node, &uid, adopted).await.map_err(|e| sandbox_error(chain(&e)))?),
        false => None,
    };
    let hostname = files::kernel_name(pod, &node.config).map_err(|e| sandbox_error(chain(&e)))?;
    // Where a later process finds that there is something of the pod, whatever else is gone.
    make_private_dir(&node.pod_dir(&uid)).map_err(|e| sandbox_error(e.to_string()))?;
    let host_network = pod_spec.host_network == Some(true);
    let (netns, addresses) = if host_network {
        (None, node.config.addresses.clone())
    } else {
        let netns = users.as_ref().map(|users| users.netns.clone());
        let pod = PodAttachment { id: uid.clone(), namespace: namespace.clone(), name: name.clone(), netns };
        let attached = node.network.attach(pod).await.map_err(|e| sandbox_error(chain(&e)))?;
        (Some(attached.netns), attached.addresses)
    };
    let facts = facts(node, &addresses);
    let (volumes, stale) =
        volumes::prepare(node, pod, &facts, adopted.is_some()).await.map_err(|e| ("FailedMount", chain(&e)))?;
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
                hostname,
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
            node.runtime.create_sandbox(spec).await.map_err(|e| sandbox_error(chain(&e)))?;
            id
        }
    };
    Ok(Box::new(SandboxContext { sandbox, addresses, users, volumes, files, facts, stale }))
}

/// The users of a pod that is to have its own, or why it cannot. What runs already is as it was made.
async fn own_users(node: &Node, uid: &str, adopted: Option<&Sandbox>) -> Result<Users> {
    if let Some(users) = adopted.and_then(|sandbox| sandbox.spec.users.clone()) {
        return Ok(users);
    }
    if let Some(why) = node.runtime.lacks_for_users().await {
        return Err(Error::UserNamespaces(why));
    }
    Ok(node.runtime.make_users(uid).await?)
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

/// Removes a sandbox with everything in it; fine if it is gone.
async fn remove_sandbox(node: &Node, id: &str) -> Result<()> {
    let all = node.runtime.list().await;
    let containers = all.into_iter().find(|s| s.spec.id == id).map(|s| s.containers).unwrap_or_default();
    node.runtime.remove_sandbox(id).await.map_err(|error| Error::part(format!("sandbox {id}"))(error.into()))?;
    for c in containers {
        if let Err(error) = node.images.release_rootfs(&c.id).await {
            tracing::warn!(container = c.id, %error, "a root file system was not removed");
        }
    }
    Ok(())
}

/// Removes what the sandbox does not hold: network, and with `everything` volumes and logs. One that cannot be removed does
/// not stop the others.
pub async fn tear_down(node: &Node, pod: &Pod, uid: &str, everything: bool) -> Result<()> {
    let mut errors = Vec::new();
    if let Err(error) = node.network.detach(uid).await {
        errors.push(Error::part("network")(error.into()));
    }
    if let Err(error) = node.runtime.remove_users(uid).await {
        errors.push(Error::part("user namespace")(error.into()));
    }
    if everything {
        let (namespace, name) =
            (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
        if let Err(error) = crate::base::tree::remove(&node.pod_log_dir(namespace, name, uid)) {
            errors.push(Error::part("logs")(error.into()));
        }
        // At last: by its directories a later process finds what is left of the pod.
        if let Err(why) = volumes::remove(node, uid).await {
            errors.push(Error::part("volumes")(why.into()));
        }
    }
    Error::gather(errors)
}
