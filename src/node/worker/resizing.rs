//! A worker whose pod's resources change: what is granted, what the control groups have, and the way between them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::base::error::chain;
use crate::containers::{Resources as Limits, Runtime, Stats};
use crate::node::error::{Error, Result};
use crate::node::machine::{ContainerState, PodState};
use crate::node::resize::{self, Has, Shares, WHOLE};
use crate::node::status::{Condition, Resources};

/// When what could not be changed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(10);
pub(super) const PENDING: &str = "PodResizePending";
pub(super) const IN_PROGRESS: &str = "PodResizeInProgress";

/// What a worker knows of its pod's resources.
#[derive(Debug, Default)]
pub(super) struct Resizing {
    pub(super) granted: Shares,
    /// What the control groups have.
    pub(super) has: Shares,
    /// The limits of those of the containers, which for some are the pod's.
    pub(super) limits: resize::Limits,
    /// What the one of the pod as a whole has.
    pub(super) pod_has: Limits,
    /// Reason and message of a wish that is not granted.
    pub(super) pending: Option<(&'static str, String)>,
    /// Why the last try to make what is granted so did not succeed.
    pub(super) failed: Option<String>,
    /// A task is at it.
    pub(super) out: bool,
    /// A change was begun and its end is not told yet.
    pub(super) begun: bool,
    pub(super) retry_at: Option<tokio::time::Instant>,
}

// === impl Resizing ===

impl Resizing {
    pub(super) fn of(pod: &Pod) -> Self {
        let granted = resize::granted(pod);
        let limits = resize::of_containers(pod, &granted);
        Self { has: granted.clone(), limits, pod_has: resize::of_pod(pod, &granted), granted, ..Self::default() }
    }

    /// A container is started with what is granted.
    pub(super) fn begins(&mut self, pod: &Pod, container: &str) {
        if let Some(share) = self.granted.get(container) {
            self.has.insert(container.to_owned(), share.clone());
        }
        if let Some(limits) = resize::of_containers(pod, &self.granted).remove(container) {
            self.limits.insert(container.to_owned(), limits);
        }
    }

    /// A sandbox is made with what is granted.
    pub(super) fn sandbox_begins(&mut self, pod: &Pod) {
        self.pod_has = resize::of_pod(pod, &self.granted);
        self.whole_is_so();
    }

    /// The pod as a whole has what is granted.
    pub(super) fn whole_is_so(&mut self) {
        match self.granted.get(WHOLE) {
            Some(share) => self.has.insert(WHOLE.to_owned(), share.clone()),
            None => self.has.remove(WHOLE),
        };
    }

    /// What the control groups have.
    pub(super) fn has(&self) -> Has<'_> {
        Has { shares: &self.has, limits: &self.limits, pod: &self.pod_has }
    }

    /// Whether a change was begun whose end was not told.
    pub(super) fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether a running container, or the pod as a whole, does not have what is granted.
    pub(super) fn is_under_way(&self, pod: &Pod, state: &PodState) -> bool {
        let differs = |name: &str, share| self.has.get(name).is_none_or(|has| !resize::is_same(has, share));
        let mut granted = self.granted.iter();
        granted.any(|(name, share)| is_running(state, name) && differs(name, share))
            || resize::of_containers(pod, &self.granted)
                .iter()
                .any(|(name, limits)| is_running(state, name) && self.limits.get(name) != Some(limits))
    }

    /// What the status says of it.
    pub(super) fn seen(&self, pod: &Pod, state: &PodState) -> Resources {
        let mut conditions = Vec::new();
        if let Some((reason, message)) = &self.pending {
            conditions.push(Condition { kind: PENDING, reason, message: message.clone() });
        }
        if self.is_under_way(pod, state) {
            let (reason, message) = self.failed.clone().map_or(("", String::new()), |why| ("Error", why));
            conditions.push(Condition { kind: IN_PROGRESS, reason, message });
        }
        let now = |name: &String, share| match is_running(state, name) {
            true => self.has.get(name).unwrap_or(share).clone(),
            false => share.clone(),
        };
        let has: BTreeMap<_, _> = self.granted.iter().map(|(name, share)| (name.clone(), now(name, share))).collect();
        Resources { allocated: resize::allocated(pod, &self.granted), granted: self.granted.clone(), has, conditions }
    }
}

/// Whether a container runs; for the pod as a whole, whether one of them does.
pub(super) fn is_running(state: &PodState, name: &str) -> bool {
    if name == WHOLE {
        return state.containers.iter().any(|c| matches!(c.now, ContainerState::Running { .. }));
    }
    state.container(name).is_some_and(|c| matches!(c.now, ContainerState::Running { .. }))
}

pub(super) enum Work {
    Pod { limits: Limits, memory_shrinks: bool },
    Container { id: String, limits: Limits, memory_shrinks: bool, name: String, share: ResourceRequirements },
}

/// What was done of a change.
#[derive(Debug, Default)]
pub struct Done {
    /// Id, name and what it has now.
    pub(super) containers: Vec<(String, String, ResourceRequirements, Limits)>,
    pub(super) pod: Option<Limits>,
    /// Why it is not everything.
    pub(super) failed: Option<String>,
}

/// Does it in order, to its end or to what cannot be done; answers who has what is granted.
pub(super) async fn apply(runtime: &dyn Runtime, sandbox: &str, work: Vec<Work>) -> Done {
    let mut done = Done::default();
    for step in work {
        let did = match step {
            Work::Pod { limits, memory_shrinks } => match update_pod(runtime, sandbox, &limits, memory_shrinks).await {
                Ok(()) => {
                    done.pod = Some(limits);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Work::Container { id, limits, memory_shrinks, name, share } => {
                match update(runtime, &id, &limits, memory_shrinks).await {
                    Ok(()) => {
                        done.containers.push((id, name, share, limits));
                        Ok(())
                    }
                    Err(why) => Err(Error::part(format!("container {name}"))(why.into())),
                }
            }
        };
        if let Err(why) = did {
            done.failed = Some(chain(&why));
            break;
        }
    }
    done
}

/// Changes the limits of the pod as a whole, with the same care.
async fn update_pod(runtime: &dyn Runtime, sandbox: &str, limits: &Limits, memory_shrinks: bool) -> Result<()> {
    if let (true, Some(limit)) = (memory_shrinks, limits.memory_limit_bytes) {
        is_enough(limit, &runtime.sandbox_stats(sandbox).await?)?;
    }
    Ok(runtime.update_sandbox(sandbox, limits).await?)
}

fn is_enough(limit: u64, stats: &Stats) -> Result<()> {
    let used = stats.memory.working_set.or(stats.memory.usage).unwrap_or(0);
    if used > limit { Err(Error::LowerMemoryLimit { limit, used }) } else { Ok(()) }
}

/// Changes limits; a memory limit below what is used would end the container, so it is not set.
pub(super) async fn update(runtime: &dyn Runtime, id: &str, limits: &Limits, memory_shrinks: bool) -> Result<()> {
    if let (true, Some(limit)) = (memory_shrinks, limits.memory_limit_bytes) {
        is_enough(limit, &runtime.stats(id).await?)?;
    }
    Ok(runtime.update_resources(id, limits).await?)
}
