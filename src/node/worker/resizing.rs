//! A worker whose pod's resources change: what is granted, what the control groups have, and the way between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use super::{Message, Worker};
use crate::base::task;
use crate::containers::{Resources as Limits, Runtime};
use crate::kinds::core::pod;
use crate::node::machine::{Event, Now, PodState, Stage};
use crate::node::resize::{self, Amounts, Decision, Shares, Step};
use crate::node::status::{Condition, Resources};
use crate::reconcile::EventType;

/// When what could not be changed is tried again.
const RETRY: Duration = Duration::from_secs(10);
const PENDING: &str = "PodResizePending";
const IN_PROGRESS: &str = "PodResizeInProgress";

/// What a worker knows of its pod's resources.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    granted: Shares,
    /// What the control groups have.
    has: Shares,
    /// What the one of the pod as a whole has.
    pod_has: Limits,
    /// Reason and message of a wish that is not granted.
    pending: Option<(&'static str, String)>,
    /// Why the last try to make what is granted so did not succeed.
    failed: Option<String>,
    /// A task is at it.
    out: bool,
    /// A change was begun and its end is not told yet.
    begun: bool,
    pub(super) retry_at: Option<tokio::time::Instant>,
}

// === impl Resizing ===

impl Resizing {
    pub(super) fn of(pod: &Pod) -> Self {
        let granted = resize::granted(pod);
        Self { has: granted.clone(), pod_has: resize::of_pod(pod, &granted), granted, ..Self::default() }
    }

    /// A container is started with what is granted.
    pub(super) fn begins(&mut self, container: &str) {
        if let Some(share) = self.granted.get(container) {
            self.has.insert(container.to_owned(), share.clone());
        }
    }

    /// A sandbox is made with what is granted.
    pub(super) fn sandbox_begins(&mut self, pod: &Pod) {
        self.pod_has = resize::of_pod(pod, &self.granted);
    }

    /// Whether a change was begun whose end was not told.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether a running container does not have what is granted.
    fn is_under_way(&self, state: &PodState) -> bool {
        let runs = |name: &str| is_running(state, name);
        self.granted
            .iter()
            .any(|(name, share)| runs(name) && self.has.get(name).is_some_and(|has| !resize::is_same(has, share)))
    }

    /// What the status says of it.
    pub(super) fn seen(&self, state: &PodState) -> Resources {
        let mut conditions = Vec::new();
        if let Some((reason, message)) = &self.pending {
            conditions.push(Condition { kind: PENDING, reason, message: message.clone() });
        }
        if self.is_under_way(state) {
            let (reason, message) = self.failed.clone().map_or(("", String::new()), |why| ("Error", why));
            conditions.push(Condition { kind: IN_PROGRESS, reason, message });
        }
        let now = |name: &String, share| match is_running(state, name) {
            true => self.has.get(name).unwrap_or(share).clone(),
            false => share.clone(),
        };
        let has: BTreeMap<_, _> = self.granted.iter().map(|(name, share)| (name.clone(), now(name, share))).collect();
        Resources { granted: self.granted.clone(), has, conditions }
    }
}

fn is_running(state: &PodState, name: &str) -> bool {
    state.container(name).is_some_and(|c| matches!(c.now, Now::Running { .. }))
}

// === impl Worker ===

impl Worker {
    /// The pod with what is granted to it, which is what it is run with.
    pub(super) fn granted_pod(&self) -> Arc<Pod> {
        match resize::with(&self.pod, &self.resources.granted) {
            std::borrow::Cow::Borrowed(_) => self.pod.clone(),
            std::borrow::Cow::Owned(pod) => Arc::new(pod),
        }
    }

    /// Grants what the pod wants if there is room, and sees to it that it gets what is granted.
    pub(super) fn look_at_resources(&mut self) {
        if !matches!(self.state.stage, Stage::Preparing | Stage::Blocked { .. } | Stage::Up) {
            return;
        }
        let same = resize::are_same(&resize::wanted(&self.pod), &self.resources.granted);
        let decision = match same {
            true => Decision::Same,
            false => resize::decide(&self.pod, &self.resources.granted, self.others(), self.capacity()),
        };
        let pending = match decision {
            Decision::Same => None,
            Decision::Granted => {
                self.resources.granted = resize::wanted(&self.pod);
                self.resources.begun = true;
                self.say("", EventType::Normal, "ResizeStarted", "Pod resize started");
                None
            }
            Decision::Deferred(why) => Some(("Deferred", why)),
            Decision::Infeasible(why) => Some(("Infeasible", why)),
        };
        if let Some((reason, why)) = pending.as_ref().filter(|p| self.resources.pending.as_ref() != Some(*p)) {
            self.say("", EventType::Warning, &format!("Resize{reason}"), &format!("Pod resize {reason}: {why}"));
        }
        self.resources.pending = pending;
        self.make_so();
    }

    /// There may be room for what was put off.
    pub(super) fn room(&mut self) {
        if self.resources.pending.as_ref().is_some_and(|(reason, _)| *reason == "Deferred") {
            self.look_at_resources();
        }
    }

    pub(super) fn retry_resize(&mut self) {
        if self.resources.retry_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
            self.resources.retry_at = None;
            self.make_so();
        }
    }

    fn capacity(&self) -> Amounts {
        let capacity = &self.node.capacity;
        Amounts {
            cpu_milli: i64::try_from(capacity.cpus).unwrap_or(i64::MAX).saturating_mul(1000),
            memory_bytes: i64::try_from(capacity.memory_bytes).unwrap_or(i64::MAX),
        }
    }

    /// What the node has granted to its other pods.
    fn others(&self) -> Amounts {
        let all = self.node.client.informer(&pod::KIND).list("");
        let others = all.iter().filter(|o| *o.meta.uid != *self.uid).filter_map(|o| o.typed::<Pod>().ok());
        let here = others.filter(|p| {
            let over = matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
            !over && p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&self.node.config.name)
        });
        here.map(|p| Amounts::of(&resize::with(&p, &resize::granted(&p)))).fold(Amounts::default(), Amounts::plus)
    }

    /// Gives the running containers what is granted; the others begin with it.
    pub(super) fn make_so(&mut self) {
        if self.state.stage != Stage::Up || self.resources.out || self.resources.retry_at.is_some() {
            return;
        }
        let Some(sandbox) = self.setting.as_ref().map(|s| s.sandbox.clone()) else { return };
        let steps = {
            let (resources, state) = (&self.resources, &self.state);
            let has = (&resources.has, &resources.pod_has);
            resize::plan(&self.pod, has, &resources.granted, |name| is_running(state, name))
        };
        if steps.is_empty() {
            return self.told_resized();
        }
        let grace = self.state.grace;
        let mut work = Vec::new();
        for step in steps {
            match step {
                Step::Restart { name } => self.happened(Event::Restart { container: name, grace }),
                Step::Pod(limits) => work.push(Work::Pod(limits)),
                Step::Container { name, limits, memory_shrinks } => {
                    let Some(Now::Running { id, .. }) = self.state.container(&name).map(|c| &c.now) else { continue };
                    let share = self.resources.granted.get(&name).cloned().unwrap_or_default();
                    work.push(Work::Container { id: id.clone(), limits, memory_shrinks, name, share });
                }
            }
        }
        if work.is_empty() {
            return;
        }
        self.resources.out = true;
        let (runtime, tell) = (self.node.runtime.clone(), self.tell.clone());
        let work = task::spawn("resize", async move { apply(&*runtime, &sandbox, work).await });
        task::spawn("resize", async move {
            let answer = work.await.ok().flatten();
            let internal = || Done { failed: Some("internal error".into()), ..Done::default() };
            let _ = tell.send(Message::Resized(answer.unwrap_or_else(internal))).await;
        });
    }

    /// What was done of it.
    pub(super) fn resized(&mut self, done: Done) {
        self.resources.out = false;
        for (id, name, share) in done.containers {
            // Whoever has begun anew meanwhile has what was granted then.
            if self.state.container(&name).is_some_and(|c| matches!(&c.now, Now::Running { id: now, .. } if *now == id))
            {
                self.resources.has.insert(name, share);
            }
        }
        if let Some(limits) = done.pod {
            self.resources.pod_has = limits;
        }
        if let Some(why) = done.failed {
            if self.resources.failed.as_ref() != Some(&why) {
                self.say("", EventType::Warning, "ResizeError", &format!("Pod resize error: {why}"));
            }
            self.resources.failed = Some(why);
            self.resources.retry_at = Some(tokio::time::Instant::now() + RETRY);
            return;
        }
        self.resources.failed = None;
        self.make_so();
    }

    /// Says once that everything is as it was granted.
    fn told_resized(&mut self) {
        if self.resources.begun && !self.resources.is_under_way(&self.state) {
            self.resources.begun = false;
            self.say("", EventType::Normal, "ResizeCompleted", "Pod resize completed");
        }
    }
}

enum Work {
    Pod(Limits),
    Container { id: String, limits: Limits, memory_shrinks: bool, name: String, share: ResourceRequirements },
}

/// What was done of a change.
#[derive(Debug, Default)]
pub struct Done {
    /// Id, name and what it has now.
    containers: Vec<(String, String, ResourceRequirements)>,
    pod: Option<Limits>,
    /// Why it is not everything.
    failed: Option<String>,
}

/// Does it in order, to its end or to what cannot be done; answers who has what is granted.
async fn apply(runtime: &dyn Runtime, sandbox: &str, work: Vec<Work>) -> Done {
    let mut done = Done::default();
    for step in work {
        let did = match step {
            Work::Pod(limits) => match runtime.update_sandbox(sandbox, &limits).await {
                Ok(()) => {
                    done.pod = Some(limits);
                    Ok(())
                }
                Err(error) => Err(super::launch::full(&error)),
            },
            Work::Container { id, limits, memory_shrinks, name, share } => {
                match update(runtime, &id, &limits, memory_shrinks).await {
                    Ok(()) => {
                        done.containers.push((id, name, share));
                        Ok(())
                    }
                    Err(why) => Err(format!("container {name}: {why}")),
                }
            }
        };
        if let Err(why) = did {
            done.failed = Some(why);
            break;
        }
    }
    done
}

/// Changes limits; a memory limit below what is used would end the container, so it is not set.
async fn update(runtime: &dyn Runtime, id: &str, limits: &Limits, memory_shrinks: bool) -> Result<(), String> {
    if let (true, Some(limit)) = (memory_shrinks, limits.memory_limit_bytes) {
        let stats = runtime.stats(id).await.map_err(|e| super::launch::full(&e))?;
        let used = stats.memory.working_set.or(stats.memory.usage).unwrap_or(0);
        if used > limit {
            return Err(format!("attempting to set memory limit ({limit}) below current usage ({used})"));
        }
    }
    runtime.update_resources(id, limits).await.map_err(|e| super::launch::full(&e))
}
