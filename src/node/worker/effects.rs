//! What the state machine asks for, done in tasks that answer with a message.

use std::borrow::Cow;
use std::time::Duration;

use super::sandbox::{prepare, remove_sandbox, tear_down};
use super::{Message, REFRESH, Worker, ended, unless};
use crate::base::error::chain;
use crate::base::task;
use crate::containers;
use crate::containers::Sandbox;
use crate::kinds::core::pod;
use crate::node::error::{Failed, Result};
use crate::node::launch;
use crate::node::machine::{ContainerState, Effect, Event, Stage};
use crate::node::sandbox_context::SandboxContext;
use crate::node::{host_ports, probes, pull, spec, status, volumes};
use crate::reconcile::EventType;

// === impl Worker ===

impl Worker {
    pub(super) fn perform(&mut self, effect: Effect) {
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
    pub(super) fn work(
        &self,
        name: &'static str,
        otherwise: Event,
        work: impl Future<Output = Message> + Send + 'static,
    ) {
        let tell = self.tell.clone();
        let work = task::spawn(name, work);
        task::spawn(name, async move {
            let answer = work.await.ok().flatten().unwrap_or(Message::Happened(otherwise));
            let _ = tell.send(answer).await;
        });
    }

    pub(super) fn begin_prepare(&mut self) {
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

    pub(super) async fn prepare(
        &self,
        attempt: u32,
        adopted: Option<&Sandbox>,
    ) -> Result<Box<SandboxContext>, (&'static str, String)> {
        prepare(&self.node, &self.granted_pod(), attempt, adopted).await
    }

    pub(super) fn begin_pull(&mut self, name: String) {
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

    pub(super) fn begin_start(&mut self, name: String, attempt: u32) {
        let failed = |message: &str| Event::StartFailed {
            container: name.clone(),
            reason: "CreateContainerError",
            message: message.to_owned(),
        };
        self.resources.begins(&self.pod, &name);
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

    pub(super) fn begin_stop(&mut self, name: String, grace: Duration) {
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

    pub(super) fn start_probes(&mut self, name: &str) {
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
    pub(super) fn begin_finish(&mut self, everything: bool) {
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
}
