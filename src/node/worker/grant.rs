//! A worker whose pod's resources change: what is granted, and what is done for it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::resizing::{Done, RETRY, Work, apply, is_running};
use super::{Message, Worker};
use crate::base::task;
use crate::kinds::core::pod;
use crate::node::machine::{ContainerState, Event, Stage};
use crate::node::resize::{self, Amounts, Decision, Step};
use crate::reconcile::EventType;

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
            resize::plan(&self.pod, resources.has(), &resources.granted, |name| is_running(state, name))
        };
        if steps.is_empty() {
            self.resources.whole_is_so();
            return self.told_resized();
        }
        let grace = self.state.grace;
        let mut work = Vec::new();
        for step in steps {
            match step {
                Step::Restart { name } => self.happened(Event::Restart { container: name, grace }),
                Step::Pod(limits) => {
                    let memory_shrinks = resize::shrinks(&self.resources.pod_has, &limits);
                    work.push(Work::Pod { limits, memory_shrinks });
                }
                Step::Container { name, limits, memory_shrinks } => {
                    let Some(ContainerState::Running { id, .. }) = self.state.container(&name).map(|c| &c.now) else {
                        continue;
                    };
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
        for (id, name, share, limits) in done.containers {
            // Whoever has begun anew meanwhile has what was granted then.
            if self
                .state
                .container(&name)
                .is_some_and(|c| matches!(&c.now, ContainerState::Running { id: now, .. } if *now == id))
            {
                self.resources.has.insert(name.clone(), share);
                self.resources.limits.insert(name, limits);
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
        if self.resources.begun && !self.resources.is_under_way(&self.pod, &self.state) {
            self.resources.begun = false;
            self.say("", EventType::Normal, "ResizeCompleted", "Pod resize completed");
        }
    }
}
