//! The pure state machine of a pod on its node.
//!
//! [`step`] takes what a pod is, what happened, and the time, and answers what it is now and what must be done. It never
//! waits, never does IO, and never loses a container: whatever was started is stopped before the pod is torn down.

use std::time::Duration;

use jiff::Timestamp;

/// First and longest wait before a crashed container is started again (`MaxContainerBackOff`).
const CRASH_WAIT_MIN: Duration = Duration::from_secs(10);
const CRASH_WAIT_MAX: Duration = Duration::from_secs(300);
/// A container that ran for this long starts again without the waits of before.
const CRASH_FORGET: Duration = Duration::from_secs(600);
/// First and longest wait before an image is pulled again, or a sandbox made again.
const RETRY_MIN: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// How long the failure of a pull is shown before the wait for the next one is.
const FAILURE_SHOWN: Duration = Duration::from_secs(2);
const SANDBOX_RETRY_MIN: Duration = Duration::from_secs(1);

/// What the machine must know of a pod's spec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub restart: Restart,
    pub containers: Vec<Part>,
}

/// One container of the plan, in the order of the spec: init containers first, ephemeral ones last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub role: Role,
    pub startup_probe: bool,
    pub readiness_probe: bool,
}

/// What a container is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: the next one starts once it has started.
    Sidecar,
    #[default]
    Main,
    /// Added to a running pod to look into it (`kubectl debug`): begins at once, never again, and says nothing of the pod.
    Ephemeral,
}

/// `spec.restartPolicy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    #[default]
    Always,
    OnFailure,
    Never,
}

/// Where a pod stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// Volumes, network and sandbox are being made. Exits: `Up`, `Blocked`, `Stopping`.
    Preparing,
    /// They could not be made; tried again at the time. Exits: `Preparing`, `Stopping`.
    Blocked { until: Timestamp, wait: Duration },
    /// Containers are run. Exits: `Preparing` (the sandbox was lost), `Finishing`, `Stopping`.
    Up,
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

/// A pod as the node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodState {
    pub plan: Plan,
    pub stage: Stage,
    /// How many sandboxes the pod had before this one.
    pub sandbox_attempt: u32,
    pub containers: Vec<Container>,
    /// Why the stage is not further, for people.
    pub message: String,
    /// The node does not run the pod at all: for its status, reason and message.
    pub refused: Option<(&'static str, String)>,
}

/// One container of a pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub name: String,
    pub now: Now,
    pub restarts: u32,
    /// How the run before this one ended.
    pub last: Option<Ended>,
    pub image_id: String,
    pub ready: bool,
    /// The startup probe has passed (or there is none and it runs).
    pub started: bool,
    crash_wait: Option<Duration>,
    pull_wait: Option<Duration>,
}

/// What a container is doing.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Now {
    /// Not begun: something before it must happen first. Exits: `Pulling`.
    #[default]
    Waiting,
    /// Its image is being fetched. Exits: `Starting`, `PullFailed`.
    Pulling,
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
    pub oom_killed: bool,
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
    Added(Part),
    /// Volumes, network and sandbox are there.
    Prepared,
    PrepareFailed(String),
    /// The node cannot give the pod what it asks for, and says so before anything is made of it.
    Refused {
        reason: &'static str,
        message: String,
    },
    Pulled {
        container: String,
        image_id: String,
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
    SandboxGone,
    /// The API wants the pod gone by the time.
    Delete {
        deadline: Timestamp,
    },
    /// Everything that `TearDown` or `Finish` asked for is done.
    TornDown,
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
    StartProbes {
        container: String,
    },
    StopProbes {
        container: String,
    },
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
    /// It went with its sandbox, at the latest at this time.
    pub fn lost(now: Timestamp) -> Self {
        Self {
            id: String::new(),
            code: 255,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: now,
            message: "the sandbox was lost".into(),
        }
    }
}

// === impl PodState ===

impl PodState {
    /// A pod that nothing was done for yet.
    pub fn new(plan: Plan) -> Self {
        let containers =
            plan.containers.iter().map(|p| Container { name: p.name.clone(), ..Container::default() }).collect();
        Self { plan, stage: Stage::Preparing, sandbox_attempt: 0, containers, message: String::new(), refused: None }
    }

    /// The container of a name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// When something is due even if nothing happens.
    pub fn next_at(&self) -> Option<Timestamp> {
        let stage = match &self.stage {
            Stage::Blocked { until, .. } => Some(*until),
            _ => None,
        };
        let containers = self.containers.iter().filter_map(|c| match &c.now {
            Now::PullFailed { rests_at: Some(at), .. } => Some(*at),
            Now::PullFailed { until, .. } | Now::StartFailed { until, .. } | Now::Crashed { until, .. } => Some(*until),
            _ => None,
        });
        if self.stage == Stage::Up { stage.into_iter().chain(containers).min() } else { stage }
    }

    /// `status.phase`
    pub fn phase(&self) -> Phase {
        let role = |want: Role| {
            self.containers.iter().zip(&self.plan.containers).filter(move |(_, p)| p.role == want).map(|(c, _)| c)
        };
        if self.refused.is_some() {
            return Phase::Failed;
        }
        if role(Role::Init).any(|c| matches!(&c.now, Now::Ended(e) if e.code != 0)) {
            return Phase::Failed;
        }
        let mains: Vec<&Container> = role(Role::Main).collect();
        let begun = |c: &&Container| {
            c.restarts > 0 || matches!(c.now, Now::Running { .. } | Now::Ended(_) | Now::Crashed { .. })
        };
        if mains.iter().all(|c| matches!(c.now, Now::Ended(_))) {
            let well = mains.iter().all(|c| matches!(&c.now, Now::Ended(e) if e.code == 0));
            return if well { Phase::Succeeded } else { Phase::Failed };
        }
        if !mains.is_empty() && mains.iter().all(begun) || mains.iter().any(|c| matches!(c.now, Now::Running { .. })) {
            return Phase::Running;
        }
        Phase::Pending
    }

    /// Whether all init containers are through.
    pub fn initialized(&self) -> bool {
        self.containers.iter().zip(&self.plan.containers).all(|(c, p)| match p.role {
            Role::Init => matches!(&c.now, Now::Ended(e) if e.code == 0),
            Role::Sidecar => c.started,
            Role::Main | Role::Ephemeral => true,
        })
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|c| c.name == name)
    }

    fn any_alive(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.now, Now::Running { .. } | Now::Starting))
    }
}

/// The next state and what must be done.
pub fn step(mut state: PodState, event: Event, now: Timestamp) -> (PodState, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
        Event::Begin if state.stage == Stage::Preparing => effects.push(Effect::Prepare),
        Event::Begin | Event::Tick => {}
        Event::Added(part) if state.index(&part.name).is_none() => {
            state.containers.push(Container { name: part.name.clone(), ..Container::default() });
            state.plan.containers.push(part);
        }
        Event::Added(_) => {}
        Event::Prepared => prepared(&mut state),
        Event::Refused { reason, message } if state.stage == Stage::Preparing => {
            state.refused = Some((reason, message));
            state.stage = Stage::Finished;
        }
        Event::Refused { .. } => {}
        Event::PrepareFailed(message) => blocked(&mut state, message, now),
        Event::Pulled { container, image_id } => pulled(&mut state, &container, image_id, &mut effects),
        Event::PullFailed { container, reason, message } => {
            if let Some(c) = find(&mut state, &container) {
                let until = now + grow(&mut c.pull_wait, RETRY_MIN, RETRY_MAX);
                // What can never succeed is not said to rest.
                let rests_at = (reason == "ErrImagePull").then(|| now + FAILURE_SHOWN);
                c.now = Now::PullFailed { reason, message, rests_at, until };
            }
        }
        Event::ImageCame { container } => {
            if let Some(Now::PullFailed { until, rests_at, .. }) = find(&mut state, &container).map(|c| &mut c.now) {
                (*until, *rests_at) = (now, None);
            }
        }
        Event::Started { container, id, pid, since } => {
            started(&mut state, &container, Now::Running { id, pid, since, stopping: false }, now, &mut effects);
        }
        Event::StartFailed { container, reason, message } => start_failed(&mut state, &container, reason, message, now),
        Event::Exited { container, ended } => exited(&mut state, &container, ended, now, &mut effects),
        Event::Ready { container, ready } => {
            if let Some(c) = find(&mut state, &container) {
                c.ready = ready && c.started && matches!(c.now, Now::Running { .. });
            }
        }
        Event::StartupPassed { container } => {
            let probed = state.index(&container).is_some_and(|i| state.plan.containers[i].readiness_probe);
            if let Some(c) = find(&mut state, &container).filter(|c| matches!(c.now, Now::Running { .. })) {
                c.started = true;
                c.ready = !probed;
            }
        }
        Event::Unhealthy { container, grace } => stop(&mut state, &container, grace, &mut effects),
        Event::SandboxGone => lost(&mut state, now, &mut effects),
        Event::Delete { deadline } => delete(&mut state, deadline, now, &mut effects),
        Event::TornDown => match state.stage {
            Stage::Finishing => state.stage = Stage::Finished,
            Stage::TearingDown => state.stage = Stage::Gone,
            Stage::Preparing
            | Stage::Blocked { .. }
            | Stage::Up
            | Stage::Finished
            | Stage::Stopping { .. }
            | Stage::Gone => {}
        },
    }
    advance(&mut state, now, &mut effects);
    (state, effects)
}

fn find<'a>(state: &'a mut PodState, name: &str) -> Option<&'a mut Container> {
    state.containers.iter_mut().find(|c| c.name == name)
}

/// The next wait, twice the one before.
fn grow(wait: &mut Option<Duration>, min: Duration, max: Duration) -> Duration {
    let next = wait.map_or(min, |w| (w * 2).min(max));
    *wait = Some(next);
    next
}

fn prepared(state: &mut PodState) {
    if matches!(state.stage, Stage::Preparing) {
        state.stage = Stage::Up;
        state.message.clear();
    }
}

fn blocked(state: &mut PodState, message: String, now: Timestamp) {
    if matches!(state.stage, Stage::Preparing) {
        let mut wait = match state.message.is_empty() {
            true => None,
            false => Some(state.sandbox_attempt.min(6)).map(|n| SANDBOX_RETRY_MIN * 2u32.pow(n)),
        };
        let wait = grow(&mut wait, SANDBOX_RETRY_MIN, Duration::from_secs(60));
        state.sandbox_attempt += 1;
        state.message = message;
        state.stage = Stage::Blocked { until: now + wait, wait };
    }
}

fn pulled(state: &mut PodState, name: &str, image_id: String, effects: &mut Vec<Effect>) {
    let up = state.stage == Stage::Up;
    if let Some(c) = find(state, name).filter(|c| c.now == Now::Pulling) {
        c.image_id = image_id;
        c.pull_wait = None;
        if up {
            c.now = Now::Starting;
            effects.push(Effect::Start { container: c.name.clone(), attempt: c.restarts });
        } else {
            c.now = Now::Waiting;
        }
    }
}

fn started(state: &mut PodState, name: &str, running: Now, now: Timestamp, effects: &mut Vec<Effect>) {
    let Some(i) = state.index(name) else { return };
    let (startup, readiness) = (state.plan.containers[i].startup_probe, state.plan.containers[i].readiness_probe);
    let going = state.stage == Stage::Up;
    let c = &mut state.containers[i];
    if c.now != Now::Starting {
        return;
    }
    c.now = running;
    c.started = !startup;
    c.ready = !startup && !readiness;
    if going {
        effects.push(Effect::StartProbes { container: name.to_owned() });
    } else {
        // It was on its way when the pod was told to end.
        let grace = remaining(&state.stage, now);
        stop(state, name, grace, effects);
    }
}

fn start_failed(state: &mut PodState, name: &str, reason: &'static str, message: String, now: Timestamp) {
    let restart = state.plan.restart;
    let Some(i) = state.index(name) else { return };
    let role = state.plan.containers[i].role;
    let c = &mut state.containers[i];
    let until = now + grow(&mut c.crash_wait, CRASH_WAIT_MIN, CRASH_WAIT_MAX);
    // What could never run counts as a run that failed where nothing would be tried again.
    let once = role == Role::Ephemeral || restart == Restart::Never && role != Role::Sidecar;
    if once && reason != "CreateContainerConfigError" {
        let ended = Ended {
            id: String::new(),
            code: 128,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: now,
            message,
        };
        c.now = Now::Ended(ended);
    } else {
        c.now = Now::StartFailed { reason, message, until };
    }
}

fn exited(state: &mut PodState, name: &str, ended: Ended, now: Timestamp, effects: &mut Vec<Effect>) {
    let (restart, up) = (state.plan.restart, state.stage == Stage::Up);
    let Some(i) = state.index(name) else { return };
    let role = state.plan.containers[i].role;
    let sidecars_over = role == Role::Sidecar && mains_over(state);
    let c = &mut state.containers[i];
    if !matches!(c.now, Now::Running { .. } | Now::Starting) {
        return;
    }
    effects.push(Effect::StopProbes { container: name.to_owned() });
    (c.ready, c.started) = (false, role == Role::Sidecar && c.started && !up);
    let again = match (role, restart) {
        (Role::Sidecar, _) => !sidecars_over,
        (Role::Ephemeral, _) => false,
        (Role::Main, Restart::Always) => true,
        (Role::Init, Restart::Always) | (_, Restart::OnFailure) => ended.code != 0,
        (_, Restart::Never) => false,
    };
    if !up || !again {
        c.now = Now::Ended(ended);
        return;
    }
    let ran = ended.started_at.map(|s| crate::base::clock::between(s, ended.finished_at)).unwrap_or_default();
    if ran > CRASH_FORGET {
        c.crash_wait = None;
    }
    // The first crash starts again at once; from the second on there is a growing wait.
    let until = match c.crash_wait {
        None => {
            c.crash_wait = Some(CRASH_WAIT_MIN / 2);
            now
        }
        Some(_) => ended.finished_at + grow(&mut c.crash_wait, CRASH_WAIT_MIN, CRASH_WAIT_MAX),
    };
    c.now = Now::Crashed { ended, until };
}

fn mains_over(state: &PodState) -> bool {
    state
        .containers
        .iter()
        .zip(&state.plan.containers)
        .all(|(c, p)| p.role != Role::Main || matches!(c.now, Now::Ended(_)))
}

fn stop(state: &mut PodState, name: &str, grace: Duration, effects: &mut Vec<Effect>) {
    if let Some(c) = find(state, name)
        && let Now::Running { stopping, .. } = &mut c.now
        && !*stopping
    {
        *stopping = true;
        c.ready = false;
        effects.push(Effect::StopProbes { container: name.to_owned() });
        effects.push(Effect::Stop { container: name.to_owned(), grace });
    }
}

/// The sandbox is gone, and with it every container that ran in it.
fn lost(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    let ended = |id: &str, started_at| Ended { id: id.to_owned(), started_at, ..Ended::lost(now) };
    let names: Vec<(String, Ended)> = state
        .containers
        .iter()
        .filter_map(|c| match &c.now {
            Now::Running { id, since, .. } => Some((c.name.clone(), ended(id, Some(*since)))),
            Now::Starting => Some((c.name.clone(), ended("", None))),
            _ => None,
        })
        .collect();
    let was_up = state.stage == Stage::Up;
    for (name, ended) in names {
        exited(state, &name, ended, now, effects);
    }
    if was_up {
        state.sandbox_attempt += 1;
        state.stage = Stage::Preparing;
        for (c, p) in state.containers.iter_mut().zip(&state.plan.containers) {
            if p.role == Role::Sidecar {
                c.started = false;
            }
        }
        effects.push(Effect::Prepare);
    }
}

fn delete(state: &mut PodState, deadline: Timestamp, now: Timestamp, effects: &mut Vec<Effect>) {
    match &mut state.stage {
        Stage::TearingDown | Stage::Gone => return,
        Stage::Stopping { deadline: old } if *old <= deadline => return,
        Stage::Stopping { deadline: old } => {
            // Shorter than before: whoever is ending is hurried.
            *old = deadline;
            for c in &mut state.containers {
                if let Now::Running { stopping, .. } = &mut c.now {
                    *stopping = false;
                }
            }
        }
        stage => *stage = Stage::Stopping { deadline },
    }
    let _ = (now, effects);
}

fn remaining(stage: &Stage, now: Timestamp) -> Duration {
    match stage {
        Stage::Stopping { deadline } => crate::base::clock::between(now, *deadline),
        _ => Duration::ZERO,
    }
}

/// Everything that follows from the state itself.
fn advance(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    match state.stage {
        Stage::Blocked { until, .. } if until <= now => {
            state.stage = Stage::Preparing;
            effects.push(Effect::Prepare);
        }
        Stage::Up => advance_containers(state, now, effects),
        Stage::Stopping { .. } => {
            stop_in_order(state, now, effects);
            if !state.any_alive() {
                state.stage = Stage::TearingDown;
                effects.push(Effect::TearDown);
            }
        }
        Stage::Preparing
        | Stage::Blocked { .. }
        | Stage::Finishing
        | Stage::Finished
        | Stage::TearingDown
        | Stage::Gone => {}
    }
}

/// Main containers end first, then sidecars in reverse order.
fn stop_in_order(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    let grace = remaining(&state.stage, now);
    let alive = |c: &Container| matches!(c.now, Now::Running { .. } | Now::Starting);
    let others: Vec<String> = state
        .containers
        .iter()
        .zip(&state.plan.containers)
        .filter(|(c, p)| p.role != Role::Sidecar && alive(c))
        .map(|(c, _)| c.name.clone())
        .collect();
    if !others.is_empty() {
        for name in others {
            stop(state, &name, grace, effects);
        }
        return;
    }
    let last = state.containers.iter().rev().find(|c| alive(c)).map(|c| c.name.clone());
    if let Some(name) = last {
        stop(state, &name, grace, effects);
    }
}

fn advance_containers(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    if over(state) {
        finish(state, now, effects);
        return;
    }
    let PodState { containers, plan, .. } = state;
    // Whoever looks into a pod may do so before it is initialized.
    for (c, _) in containers.iter_mut().zip(&plan.containers).filter(|(_, p)| p.role == Role::Ephemeral) {
        begin_if_due(c, now, effects);
    }
    for (c, part) in containers.iter_mut().zip(&plan.containers).filter(|(_, p)| p.role != Role::Ephemeral) {
        begin_if_due(c, now, effects);
        let through = match part.role {
            Role::Init => matches!(&c.now, Now::Ended(e) if e.code == 0),
            Role::Sidecar => c.started,
            Role::Main | Role::Ephemeral => true,
        };
        if !through {
            return;
        }
    }
}

fn begin_if_due(c: &mut Container, now: Timestamp, effects: &mut Vec<Effect>) {
    if let Now::PullFailed { rests_at, .. } = &mut c.now
        && rests_at.is_some_and(|at| at <= now)
    {
        *rests_at = None;
        effects.push(Effect::PullRests { container: c.name.clone() });
    }
    let due = match &c.now {
        Now::Waiting => true,
        Now::PullFailed { until, .. } | Now::StartFailed { until, .. } => *until <= now,
        Now::Crashed { ended, until } if *until <= now => {
            c.last = Some(ended.clone());
            c.restarts += 1;
            true
        }
        Now::Crashed { .. } | Now::Pulling | Now::Starting | Now::Running { .. } | Now::Ended(_) => false,
    };
    if due {
        c.now = Now::Pulling;
        effects.push(Effect::Pull { container: c.name.clone() });
    }
}

/// Whether nothing will be started any more.
fn over(state: &PodState) -> bool {
    let failed_init = state
        .containers
        .iter()
        .zip(&state.plan.containers)
        .any(|(c, p)| p.role == Role::Init && matches!(&c.now, Now::Ended(e) if e.code != 0));
    failed_init || mains_over(state)
}

fn finish(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    // Sidecars have nothing left to serve.
    let alive: Vec<String> =
        state.containers.iter().filter(|c| matches!(c.now, Now::Running { .. })).map(|c| c.name.clone()).collect();
    if let Some(name) = alive.last() {
        stop(state, name, Duration::from_secs(30), effects);
        return;
    }
    if state.any_alive() {
        return;
    }
    for c in &mut state.containers {
        if let Now::Crashed { ended, .. } = &c.now {
            c.now = Now::Ended(ended.clone());
        }
    }
    let _ = now;
    state.stage = Stage::Finishing;
    effects.push(Effect::Finish);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn part(name: &str, role: Role) -> Part {
        Part { name: name.into(), role, ..Part::default() }
    }

    fn ended(code: i32, from: i64, to: i64) -> Ended {
        let (started_at, finished_at) = (Some(at(from)), at(to));
        Ended { id: "i".into(), code, signal: None, oom_killed: false, started_at, finished_at, message: String::new() }
    }

    struct Run(PodState, Vec<Effect>);

    impl Run {
        fn new(restart: Restart, parts: Vec<Part>) -> Self {
            let state = PodState::new(Plan { restart, containers: parts });
            Self(state, Vec::new()).on(Event::Begin, 0).on(Event::Prepared, 0)
        }

        fn on(self, event: Event, seconds: i64) -> Self {
            let (state, effects) = step(self.0, event, at(seconds));
            Self(state, effects)
        }

        fn up(self, name: &str, seconds: i64) -> Self {
            let (container, id) = (name.to_owned(), format!("{name}-id"));
            self.on(Event::Pulled { container: container.clone(), image_id: "img".into() }, seconds)
                .on(Event::Started { container, id, pid: 7, since: at(seconds) }, seconds)
        }

        fn exit(self, name: &str, code: i32, from: i64, to: i64) -> Self {
            self.on(Event::Exited { container: name.into(), ended: ended(code, from, to) }, to)
        }
    }

    #[test]
    fn an_ephemeral_container_begins_at_once_and_ends_once_and_the_pod_is_as_before() {
        let added = || Event::Added(part("e", Role::Ephemeral));
        let r = Run::new(Restart::Always, vec![part("i", Role::Init), part("m", Role::Main)]).on(added(), 1);
        assert_eq!(r.1, [Effect::Pull { container: "e".into() }], "before the init container is through");
        let r = r.on(added(), 2);
        assert!(r.1.is_empty(), "it is known");
        let r = r.up("e", 3);
        assert_eq!((r.0.phase(), r.0.initialized()), (Phase::Pending, false));
        let r = r.up("i", 4).exit("i", 0, 4, 5).up("m", 6).exit("e", 1, 3, 7);
        assert!(matches!(r.0.container("e").unwrap().now, Now::Ended(_)), "{:?}", r.0);
        assert_eq!((r.0.phase(), r.0.next_at()), (Phase::Running, None));
        let r = r.on(Event::Added(part("f", Role::Ephemeral)), 8).up("f", 8).on(Event::Delete { deadline: at(20) }, 9);
        let stopped = |name: &str| r.1.iter().any(|e| matches!(e, Effect::Stop { container, .. } if container == name));
        assert!(stopped("f") && stopped("m"), "{:?}", r.1);
    }

    #[test]
    fn init_containers_run_one_by_one_and_then_the_rest_together() {
        let r = Run::new(
            Restart::Always,
            vec![part("i", Role::Init), part("s", Role::Sidecar), part("a", Role::Main), part("b", Role::Main)],
        );
        assert_eq!(r.1, [Effect::Pull { container: "i".into() }]);
        let r = r.up("i", 1).exit("i", 0, 1, 2);
        assert!(r.1.contains(&Effect::Pull { container: "s".into() }));
        let r = r.up("s", 3);
        assert!(
            r.1.contains(&Effect::Pull { container: "a".into() })
                && r.1.contains(&Effect::Pull { container: "b".into() })
        );
        let r = r.up("a", 4).up("b", 4);
        assert_eq!(r.0.phase(), Phase::Running);
        assert!(r.0.initialized() && r.0.containers.iter().skip(1).all(|c| c.ready));
    }

    #[test]
    fn a_failed_pull_is_shown_then_rests_then_is_tried_again() {
        let failed = |reason| Event::PullFailed { container: "a".into(), reason, message: "m".into() };
        let r = Run::new(Restart::Always, vec![part("a", Role::Main)]).on(failed("ErrImagePull"), 0);
        assert_eq!((r.0.next_at(), r.1.as_slice()), (Some(at(2)), &[][..]));
        let r = r.on(Event::Tick, 2);
        assert_eq!((r.0.next_at(), r.1.as_slice()), (Some(at(10)), &[Effect::PullRests { container: "a".into() }][..]));
        let r = r.on(Event::Tick, 10);
        assert_eq!(r.1, [Effect::Pull { container: "a".into() }]);
        let r = r.on(failed("InvalidImageName"), 10);
        assert_eq!(r.0.next_at(), Some(at(30)), "nothing to say in between");
        let came = || Event::ImageCame { container: "a".into() };
        let r = r.on(came(), 12);
        assert_eq!(r.1, [Effect::Pull { container: "a".into() }], "it came by another way");
        assert!(r.on(came(), 13).1.is_empty(), "nobody waits for it any more");
    }

    #[test]
    fn crashes_wait_longer_each_time() {
        let mut r = Run::new(Restart::Always, vec![part("a", Role::Main)]).up("a", 0);
        let mut t = 1;
        for wait in [0, 10, 20, 40] {
            r = r.exit("a", 1, t, t);
            if wait > 0 {
                assert!(matches!(r.0.containers[0].now, Now::Crashed { .. }), "{:?}", r.0);
                assert_eq!(r.0.next_at(), Some(at(t + wait)));
                r = r.on(Event::Tick, t + wait - 1);
                assert!(r.1.is_empty());
            }
            t += wait;
            r = r.on(Event::Tick, t).up("a", t);
        }
        assert_eq!(r.0.containers[0].restarts, 4);
        assert_eq!(r.0.containers[0].last.as_ref().unwrap().code, 1);
    }

    #[test]
    fn a_job_like_pod_ends_and_keeps_its_result() {
        let r = Run::new(Restart::Never, vec![part("a", Role::Main), part("b", Role::Main)]).up("a", 0).up("b", 0);
        let r = r.exit("a", 0, 0, 1);
        assert_eq!(r.0.phase(), Phase::Running);
        let r = r.exit("b", 3, 0, 2);
        assert_eq!((r.0.phase(), r.1.last()), (Phase::Failed, Some(&Effect::Finish)));
        assert_eq!(r.on(Event::TornDown, 3).0.stage, Stage::Finished);
    }

    #[test]
    fn a_refused_pod_has_failed_and_nothing_is_made_of_it_but_its_end() {
        let new = PodState::new(Plan { restart: Restart::Always, containers: vec![part("a", Role::Main)] });
        let refused = || Event::Refused { reason: "AppArmor", message: "no".into() };
        let r = Run(new, Vec::new()).on(refused(), 0);
        assert_eq!((r.0.phase(), &r.0.stage, &r.1[..]), (Phase::Failed, &Stage::Finished, &[][..]));
        let r = r.on(Event::Begin, 1).on(Event::Tick, 1000);
        assert_eq!((r.0.phase(), r.0.next_at(), &r.1[..]), (Phase::Failed, None, &[][..]));
        let r = r.on(Event::Delete { deadline: at(1030) }, 1001);
        assert_eq!(r.1.last(), Some(&Effect::TearDown));
        assert_eq!(r.on(Event::TornDown, 1002).0.stage, Stage::Gone);
        // What runs is not refused any more.
        let up = Run::new(Restart::Always, vec![part("a", Role::Main)]).up("a", 0).on(refused(), 1);
        assert_eq!(up.0.phase(), Phase::Running);
    }

    #[test]
    fn deletion_stops_main_containers_then_sidecars_then_tears_down() {
        let r = Run::new(Restart::Always, vec![part("s", Role::Sidecar), part("a", Role::Main)]).up("s", 0).up("a", 0);
        let r = r.on(Event::Delete { deadline: at(40) }, 10);
        assert!(r.1.contains(&Effect::Stop { container: "a".into(), grace: Duration::from_secs(30) }));
        let r = r.exit("a", 0, 0, 12);
        assert!(r.1.contains(&Effect::Stop { container: "s".into(), grace: Duration::from_secs(28) }));
        let r = r.exit("s", 0, 0, 13);
        assert_eq!(r.1.last(), Some(&Effect::TearDown));
        assert_eq!(r.on(Event::TornDown, 14).0.stage, Stage::Gone);
    }

    #[test]
    fn a_lost_sandbox_is_made_again_and_everything_restarts() {
        let r = Run::new(Restart::Always, vec![part("a", Role::Main)]).up("a", 0).on(Event::SandboxGone, 5);
        assert_eq!(r.0.stage, Stage::Preparing);
        assert!(r.1.contains(&Effect::Prepare));
        let r = r.on(Event::Prepared, 6);
        assert!(r.1.contains(&Effect::Pull { container: "a".into() }));
        assert_eq!(r.0.containers[0].restarts, 1);
    }

    fn any_event() -> impl Strategy<Value = (Event, i64)> {
        let name = prop_oneof![Just("i"), Just("s"), Just("a")].prop_map(str::to_owned);
        let event = prop_oneof![
            Just(Event::Prepared),
            Just(Event::PrepareFailed("x".into())),
            name.clone().prop_map(|container| Event::Pulled { container, image_id: String::new() }),
            name.clone().prop_map(|container| Event::PullFailed {
                container,
                reason: "ErrImagePull",
                message: String::new()
            }),
            name.clone().prop_map(|container| Event::ImageCame { container }),
            name.clone().prop_map(|container| Event::Started { container, id: "x".into(), pid: 1, since: at(0) }),
            name.clone().prop_map(|container| Event::StartFailed { container, reason: "e", message: String::new() }),
            (name.clone(), 0..2i32).prop_map(|(container, code)| Event::Exited { container, ended: ended(code, 0, 1) }),
            name.prop_map(|container| Event::Unhealthy { container, grace: Duration::ZERO }),
            Just(Event::SandboxGone),
            Just(Event::Delete { deadline: at(500) }),
            Just(Event::TornDown),
            Just(Event::Tick),
        ];
        (event, 0..50i64)
    }

    proptest! {
        #[test]
        fn no_container_is_lost(events in proptest::collection::vec(any_event(), 0..60)) {
            let parts = vec![part("i", Role::Init), part("s", Role::Sidecar), part("a", Role::Main)];
            let mut r = Run::new(Restart::OnFailure, parts);
            let (mut t, mut torn) = (0, false);
            for (event, wait) in events {
                t += wait;
                let was = r.0.clone();
                if event == Event::TornDown && !matches!(was.stage, Stage::TearingDown | Stage::Finishing) {
                    continue;
                }
                r = r.on(event, t);
                if r.1.iter().any(|e| matches!(e, Effect::TearDown | Effect::Finish)) {
                    prop_assert!(!r.0.any_alive(), "torn down with {:?}", r.0);
                }
                torn |= r.1.contains(&Effect::TearDown);
                if torn {
                    let begun = r.1.iter().any(|e| matches!(e, Effect::Start { .. } | Effect::Prepare));
                    prop_assert!(!begun, "began after the end");
                }
                if r.0.stage == Stage::Up {
                    // Something is due, running, or on its way: a pod that is up never hangs.
                    let busy = r.0.containers.iter().any(|c| matches!(c.now, Now::Pulling | Now::Starting | Now::Running { .. }));
                    prop_assert!(busy || r.0.next_at().is_some(), "hangs: {:?}", r.0);
                }
            }
        }
    }
}
