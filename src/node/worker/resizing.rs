//! A worker whose pod's resources change: what is granted, what the control groups have, and the way between them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};

use crate::base::error::chain;
use crate::containers::{Resources as Limits, Runtime};
use crate::node::error::{Error, Result};
use crate::node::machine::{ContainerState, PodState};
use crate::node::resize::{self, Shares};
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
    pub(super) fn is_under_way(&self, state: &PodState) -> bool {
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

pub(super) fn is_running(state: &PodState, name: &str) -> bool {
    state.container(name).is_some_and(|c| matches!(c.now, ContainerState::Running { .. }))
}

pub(super) enum Work {
    Pod(Limits),
    Container { id: String, limits: Limits, memory_shrinks: bool, name: String, share: ResourceRequirements },
}

/// What was done of a change.
#[derive(Debug, Default)]
pub struct Done {
    /// Id, name and what it has now.
    pub(super) containers: Vec<(String, String, ResourceRequirements)>,
    pub(super) pod: Option<Limits>,
    /// Why it is not everything.
    pub(super) failed: Option<String>,
}

/// Does it in order, to its end or to what cannot be done; answers who has what is granted.
pub(super) async fn apply(runtime: &dyn Runtime, sandbox: &str, work: Vec<Work>) -> Done {
    let mut done = Done::default();
    for step in work {
        let did = match step {
            Work::Pod(limits) => match runtime.update_sandbox(sandbox, &limits).await {
                Ok(()) => {
                    done.pod = Some(limits);
                    Ok(())
                }
                Err(error) => Err(Error::Runtime(error)),
            },
            Work::Container { id, limits, memory_shrinks, name, share } => {
                match update(runtime, &id, &limits, memory_shrinks).await {
                    Ok(()) => {
                        done.containers.push((id, name, share));
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

/// Changes limits; a memory limit below what is used would end the container, so it is not set.
pub(super) async fn update(runtime: &dyn Runtime, id: &str, limits: &Limits, memory_shrinks: bool) -> Result<()> {
    if let (true, Some(limit)) = (memory_shrinks, limits.memory_limit_bytes) {
        let stats = runtime.stats(id).await?;
        let used = stats.memory.working_set.or(stats.memory.usage).unwrap_or(0);
        if used > limit {
            return Err(Error::LowerMemoryLimit { limit, used });
        }
    }
    Ok(runtime.update_resources(id, limits).await?)
}
