//! What a pod is on its node: its stage, its containers, what happens to it, and what must be done.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::plan::{ContainerPlan, Plan, Role};

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Volumes, network and sandbox are being made. Exits: `Up`, `Blocked`, `Failing`, `Stopping`.
    Preparing,
    /// They could not be made; tried again at the time. Exits: `Preparing`, `Failing`, `Stopping`.
    Blocked { until: Timestamp },
    /// Containers are run. Exits: `Preparing` (the sandbox was lost), `Failing`, `Finishing`, `Stopping`.
    Up,
    /// The pod has been active for too long: containers are asked to end. Exits: `Finishing`, `Stopping`.
    Failing { deadline: Timestamp },
    /// All containers have ended for good and nobody deletes the pod yet: the sandbox is being removed. Exits: `Finished`, `Stopping`.
    Finishing,
    /// Ended, and nothing of it but logs is left. Exits: `Stopping`.
    Finished,
    /// The pod is being deleted: containers are asked to end. Exits: `TearingDown`.
    Stopping { deadline: Timestamp },
    /// Everything else is being removed. Exits: `Gone`.
    TearingDown,
    /// Nothing is left. No exit.
    Gone,
}

/// An effect of the pod as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// [`Effect::Prepare`]
    SetUp,
    /// [`Effect::Finish`]
    Finish,
    /// [`Effect::TearDown`]
    TearDown,
}

/// A pod as the node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodState {
    pub plan: Plan,
    pub stage: Stage,
    /// What is being done for the pod as a whole.
    pub out: Option<Work>,
    /// The sandbox is gone, and whatever was being started in it is waited for.
    pub lost: bool,
    /// What could not be removed is removed again at the time.
    pub(super) removal: Option<(Timestamp, Duration)>,
    /// The pod has failed if it is still active then.
    pub active_until: Option<Timestamp>,
    /// How long its containers have to end by themselves.
    pub grace: Duration,
    /// It was active for too long.
    pub overdue: bool,
    /// How many sandboxes the pod had before this one.
    pub sandbox_attempt: u32,
    pub containers: Vec<Container>,
    /// Why the stage is not further, for people.
    pub message: String,
    /// The node does not run the pod at all: for its status, reason and message.
    pub refused: Option<(Cow<'static, str>, String)>,
}

/// One container of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub name: String,
    pub now: ContainerState,
    pub restarts: u32,
    /// How the run before this one ended.
    pub last: Option<Ended>,
    pub image_id: String,
    /// The images that it mounts, by the names of the volumes.
    pub volume_images: BTreeMap<String, String>,
    pub ready: bool,
    /// The startup probe has passed (or there is none and it runs).
    pub started: bool,
    /// It is stopped to begin anew.
    pub(super) wanted_again: bool,
    pub(super) crash_wait: Option<Duration>,
    pub(super) pull_wait: Option<Duration>,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ContainerState {
    /// Not begun: something before it must happen first. Exits: `Pulling`.
    #[default]
    Waiting,
    /// Its image is being fetched. Exits: `Pulled`, `PullFailed`.
    Pulling,
    /// Its image is there; one before it is still being started. Exits: `Starting`.
    Pulled,
    /// Tried again at the time; the failure itself is shown for a moment, then that it rests. Exits: `Pulling`.
    PullFailed { reason: &'static str, message: String, rests_at: Option<Timestamp>, until: Timestamp },
    /// It is being created. Exits: `Running`, `StartFailed`.
    Starting,
    /// Tried again at the time. Exits: `Pulling`.
    StartFailed { reason: &'static str, message: String, until: Timestamp },
    /// Exits: `Ended`.
    Running { id: String, pid: u32, since: Timestamp, stopping: bool },
    /// Exits: `Crashed` or none.
    Ended(Ended),
    /// It ended and is started again at the time. Exits: `Pulling`.
    Crashed { ended: Ended, until: Timestamp },
}

/// How a run of a container ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    pub id: String,
    pub code: i32,
    pub signal: Option<i32>,
    /// As the status says it.
    pub reason: String,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
    /// From the termination message file, or the end of the log.
    pub message: String,
}

/// What can happen to a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The worker begins (or goes on, with adopted containers).
    Begin,
    /// The pod has got another ephemeral container.
    Added(ContainerPlan),
    /// Volumes, network and sandbox are there.
    Prepared,
    PrepareFailed(String),
    /// The node cannot give the pod what it asks for, and says so before anything is made of it.
    Refused {
        reason: Cow<'static, str>,
        message: String,
    },
    Pulled {
        container: String,
        image_id: String,
        volume_images: BTreeMap<String, String>,
    },
    PullFailed {
        container: String,
        reason: &'static str,
        message: String,
    },
    /// The image of a container that waits for one has come by another way.
    ImageCame {
        container: String,
    },
    Started {
        container: String,
        id: String,
        pid: u32,
        /// As the runtime has it, so that a later process that adopts the container says the same.
        since: Timestamp,
    },
    StartFailed {
        container: String,
        reason: &'static str,
        message: String,
    },
    Exited {
        container: String,
        ended: Ended,
    },
    Ready {
        container: String,
        ready: bool,
    },
    StartupPassed {
        container: String,
    },
    /// A liveness or startup probe has failed too often.
    Unhealthy {
        container: String,
        grace: Duration,
    },
    /// The container wants to begin anew, whatever the pod's policy says.
    Restart {
        container: String,
        grace: Duration,
    },
    SandboxGone,
    /// The API wants the pod gone by the time.
    Delete {
        deadline: Timestamp,
    },
    /// Everything that `TearDown` or `Finish` asked for is done.
    TornDown,
    /// Something of it could not be removed.
    TearDownFailed,
    /// Time has passed.
    Tick,
}

/// What must be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Make volumes, network, sandbox.
    Prepare,
    Pull {
        container: String,
    },
    /// Tell that the image is not asked for again before some time has passed.
    PullRests {
        container: String,
    },
    Start {
        container: String,
        attempt: u32,
    },
    /// Ask the container to end (preStop, stop signal), and kill it after the grace.
    Stop {
        container: String,
        grace: Duration,
    },
    /// The startup probe alone until it has passed, then the others.
    StartProbes {
        container: String,
    },
    StopProbes {
        container: String,
        /// Whether it is still asked if it can serve: it may until it has ended.
        but_readiness: bool,
    },
    /// Tell that the pod was active for too long.
    Overdue,
    /// Remove sandbox and network but keep what logs and status need.
    Finish,
    /// Remove everything.
    TearDown,
}

/// What a container's state means to the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

// === impl Ended ===

impl Ended {
    /// It went with its sandbox, at the latest at this time, and nobody saw how.
    pub fn lost(now: Timestamp) -> Self {
        Self {
            id: String::new(),
            code: 255,
            signal: None,
            reason: "Unknown".into(),
            started_at: None,
            finished_at: now,
            message: String::new(),
        }
    }

    /// It never was, and never will be.
    pub(super) fn never(now: Timestamp) -> Self {
        Self {
            code: 137,
            reason: "ContainerStatusUnknown".into(),
            message: "The container could not be located when the pod was terminated".into(),
            ..Self::lost(now)
        }
    }

    /// The reason of an end that was seen.
    pub fn reason(code: i32, oom_killed: bool) -> &'static str {
        match (oom_killed, code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        }
    }
}

// === impl PodState ===

impl PodState {
    /// A pod that nothing was done for yet.
    pub fn new(plan: Plan) -> Self {
        let containers =
            plan.containers.iter().map(|p| Container { name: p.name.clone(), ..Container::default() }).collect();
        Self {
            plan,
            stage: Stage::Preparing,
            out: None,
            lost: false,
            removal: None,
            active_until: None,
            grace: Duration::ZERO,
            overdue: false,
            sandbox_attempt: 0,
            containers,
            message: String::new(),
            refused: None,
        }
    }

    /// The container of a name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// When something is due even if nothing happens.
    pub fn next_at(&self) -> Option<Timestamp> {
        let blocked = if let Stage::Blocked { until } = &self.stage { Some(*until) } else { None };
        let removal = self.removal.map(|(at, _)| at);
        let active = self.active_until.filter(|_| self.is_active());
        let containers = self.containers.iter().filter_map(|c| match &c.now {
            ContainerState::PullFailed { rests_at: Some(at), .. } => Some(*at),
            ContainerState::PullFailed { until, .. }
            | ContainerState::StartFailed { until, .. }
            | ContainerState::Crashed { until, .. } => Some(*until),
            _ => None,
        });
        let containers = if self.stage == Stage::Up && !self.lost { containers.min() } else { None };
        [blocked, removal, active, containers].into_iter().flatten().min()
    }

    /// `status.phase`
    pub fn phase(&self) -> Phase {
        let role = |want: Role| {
            self.containers.iter().zip(&self.plan.containers).filter(move |(_, p)| p.role == want).map(|(c, _)| c)
        };
        if self.refused.is_some() || self.overdue && !self.any_alive() {
            return Phase::Failed;
        }
        if role(Role::Init).any(|c| matches!(&c.now, ContainerState::Ended(e) if e.code != 0)) {
            return Phase::Failed;
        }
        let mains: Vec<&Container> = role(Role::Main).collect();
        let begun = |c: &&Container| {
            c.restarts > 0
                || matches!(
                    c.now,
                    ContainerState::Running { .. } | ContainerState::Ended(_) | ContainerState::Crashed { .. }
                )
        };
        if mains.iter().all(|c| matches!(c.now, ContainerState::Ended(_))) {
            let well = mains.iter().all(|c| matches!(&c.now, ContainerState::Ended(e) if e.code == 0));
            return if well { Phase::Succeeded } else { Phase::Failed };
        }
        if !mains.is_empty() && mains.iter().all(begun)
            || mains.iter().any(|c| matches!(c.now, ContainerState::Running { .. }))
        {
            return Phase::Running;
        }
        Phase::Pending
    }

    /// Whether all init containers are through.
    pub fn initialized(&self) -> bool {
        self.containers.iter().zip(&self.plan.containers).all(|(c, p)| match p.role {
            Role::Init => matches!(&c.now, ContainerState::Ended(e) if e.code == 0),
            Role::Sidecar => c.started,
            Role::Main | Role::Ephemeral => true,
        })
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == name)
    }

    /// Whether a container runs, or is about to.
    pub fn any_alive(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.now, ContainerState::Running { .. } | ContainerState::Starting))
    }

    pub(super) fn any_starting(&self) -> bool {
        self.containers.iter().any(|c| c.now == ContainerState::Starting)
    }

    /// Nobody has ended it yet.
    pub(super) fn is_active(&self) -> bool {
        matches!(self.stage, Stage::Preparing | Stage::Blocked { .. } | Stage::Up)
    }
}
