//! A worker that begins: what the API knows of the pod, and what an earlier process left running of it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, VolumeMountStatus};

use super::Worker;
use super::sandbox::remove_sandbox;
use crate::base::error::chain;
use crate::containers;
use crate::containers::Sandbox;
use crate::node::launch;
use crate::node::machine::{ContainerState, Effect, Ended, Event, Stage};
use crate::node::reported::reported;

// === impl Worker ===

impl Worker {
    /// What the API knows of containers that this process has not seen; true if any of them has ever run.
    pub(super) fn remember(&mut self) -> bool {
        let (pod, now) = (self.pod.clone(), self.node.clock.now());
        let mut begun = false;
        for s in reported(&pod).cloned() {
            let Some(c) = self.state.containers.iter_mut().find(|c| c.name == s.name) else { continue };
            c.restarts = s.restart_count.max(0) as u32;
            c.image_id = s.image_id;
            c.volume_images = s.volume_mounts.iter().flatten().filter_map(volume_image).collect();
            c.last = s.last_state.and_then(|l| l.terminated).map(|t| remembered(&t, now));
            let id = s.container_id.unwrap_or_default().trim_start_matches("amphipod://").to_owned();
            let state = s.state.unwrap_or_default();
            let crashed = state.waiting.is_some_and(|w| w.reason.as_deref() == Some("CrashLoopBackOff"));
            begun |= !id.is_empty() || c.last.is_some() || c.restarts > 0;
            c.now = match (state.running, state.terminated) {
                (Some(r), _) => {
                    ContainerState::Running { id, pid: 0, since: r.started_at.map_or(now, |t| t.0), stopping: false }
                }
                (None, Some(t)) => ContainerState::Ended(remembered(&t, now)),
                (None, None) => match c.last.take_if(|_| crashed) {
                    Some(ended) => ContainerState::Crashed { ended, until: now },
                    None => ContainerState::Waiting,
                },
            };
        }
        begun
    }

    /// Takes over the newest sandbox that lives; the others go. False if there is none.
    pub(super) async fn take_over(&mut self, mut left: Vec<Sandbox>) -> bool {
        left.sort_by_key(|s| (s.alive, s.spec.attempt));
        let mut adopted = false;
        for sandbox in left.into_iter().rev() {
            if adopted {
                self.discard(&sandbox).await;
            } else {
                adopted = self.adopt(sandbox).await;
            }
        }
        adopted
    }

    /// Takes over what runs: same containers, same addresses. False if that cannot be.
    async fn adopt(&mut self, sandbox: Sandbox) -> bool {
        if !sandbox.alive {
            self.discard(&sandbox).await;
            return false;
        }
        let attempt = sandbox.spec.attempt;
        let Some(setting) = self.prepare(attempt, Some(&sandbox)).await.ok() else {
            self.discard(&sandbox).await;
            return false;
        };
        self.state.sandbox_attempt = attempt;
        self.state.stage = Stage::Up;
        self.addresses = setting.addresses.clone();
        self.setting = Some(setting);
        let pod = self.pod.clone();
        let mut running = Vec::new();
        for part in self.state.plan.containers.clone() {
            let newest = sandbox.containers.iter().filter(|c| c.name == part.name).max_by_key(|c| c.attempt);
            let Some(c) = self.state.containers.iter_mut().find(|c| c.name == part.name) else { continue };
            let Some(found) = newest else {
                if let ContainerState::Running { id, since, .. } = &c.now {
                    let now = self.node.clock.now();
                    let ended = Ended { id: id.clone(), started_at: Some(*since), ..Ended::lost(now) };
                    self.happened(Event::Exited { container: part.name.clone(), ended });
                }
                continue;
            };
            let was = reported(&pod).find(|s| s.container_id.as_deref() == Some(&format!("amphipod://{}", found.id)));
            let ended = launch::ended(&self.node, &self.pod, found);
            c.restarts = found.attempt;
            match (&found.state, ended) {
                (containers::ContainerState::Running { started_at }, _) => {
                    c.now = ContainerState::Running {
                        id: found.id.clone(),
                        pid: found.pid,
                        since: *started_at,
                        stopping: false,
                    };
                    c.started = was.and_then(|s| s.started).unwrap_or(!part.startup_probe);
                    c.ready = was.map_or(!part.readiness_probe, |s| s.ready);
                    running.push(part.name.clone());
                }
                (_, Some(ended)) => {
                    // As if it had been seen ending.
                    c.now = ContainerState::Running {
                        id: found.id.clone(),
                        pid: 0,
                        since: ended.finished_at,
                        stopping: false,
                    };
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
        true
    }

    async fn discard(&mut self, sandbox: &Sandbox) {
        if let Err(error) = remove_sandbox(&self.node, &sandbox.spec.id).await {
            tracing::warn!(
                sandbox = sandbox.spec.id,
                error = chain(&error),
                "a lost sandbox was not removed; it is tried again"
            );
            self.leaving = Some(sandbox.spec.id.clone());
        }
    }
}

/// The image of a volume that the API knows of.
fn volume_image(mount: &VolumeMountStatus) -> Option<(String, String)> {
    let image = mount.volume_status.as_ref()?.image.as_ref()?;
    Some((mount.name.clone(), image.image_ref.clone()))
}

/// How a run ended that the API knows of.
fn remembered(t: &ContainerStateTerminated, now: Timestamp) -> Ended {
    Ended {
        id: t.container_id.as_deref().unwrap_or_default().trim_start_matches("amphipod://").to_owned(),
        code: t.exit_code,
        signal: t.signal,
        reason: t.reason.clone().unwrap_or_else(|| Ended::reason(t.exit_code, false).to_owned()),
        started_at: t.started_at.as_ref().map(|x| x.0),
        finished_at: t.finished_at.as_ref().map_or(now, |x| x.0),
        message: t.message.clone().unwrap_or_default(),
    }
}
