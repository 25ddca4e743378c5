//! The transitions: what a pod becomes by what happens, and what must be done then.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::plan::{Restart, Role};
use super::state::{Container, ContainerState, Effect, Ended, Event, PodState, Stage, Work};
use crate::node::loss::{self, Fate};

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
/// First and longest wait before what could not be removed is removed again.
const REMOVAL_RETRY_MIN: Duration = Duration::from_secs(1);
const REMOVAL_RETRY_MAX: Duration = Duration::from_secs(60);

/// The next state and what must be done.
pub fn step(mut state: PodState, event: Event, now: Timestamp) -> (PodState, Vec<Effect>) {
    let mut effects = Vec::new();
    match event {
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
        Event::Pulled { container, image_id, volume_images } => {
            pulled(&mut state, &container, image_id, volume_images);
        }
        Event::PullFailed { container, reason, message } => pull_failed(&mut state, &container, reason, message, now),
        Event::ImageCame { container } => {
            if let Some(ContainerState::PullFailed { until, rests_at, .. }) =
                find(&mut state, &container).map(|c| &mut c.now)
            {
                (*until, *rests_at) = (now, None);
            }
        }
        Event::Started { container, id, pid, since } => {
            started(
                &mut state,
                &container,
                ContainerState::Running { id, pid, since, stopping: false },
                now,
                &mut effects,
            );
        }
        Event::StartFailed { container, reason, message } => start_failed(&mut state, &container, reason, message, now),
        Event::Exited { container, ended } => exited(&mut state, &container, ended, &mut effects),
        Event::Ready { container, ready } => {
            if let Some(c) = find(&mut state, &container) {
                c.ready = ready && c.started && matches!(c.now, ContainerState::Running { .. });
            }
        }
        Event::StartupPassed { container } => {
            let probed = state.index(&container).is_some_and(|i| state.plan.containers[i].readiness_probe);
            if let Some(c) =
                find(&mut state, &container).filter(|c| !c.started && matches!(c.now, ContainerState::Running { .. }))
            {
                c.started = true;
                c.ready = !probed;
                effects.push(Effect::StartProbes { container });
            }
        }
        Event::Unhealthy { container, grace } => stop(&mut state, &container, grace, &mut effects),
        Event::Restart { container, grace } => {
            if state.stage == Stage::Up
                && let Some(c) =
                    find(&mut state, &container).filter(|c| matches!(c.now, ContainerState::Running { .. }))
            {
                c.wanted_again = true;
                stop(&mut state, &container, grace, &mut effects);
            }
        }
        Event::SandboxGone => sandbox_gone(&mut state, &mut effects),
        Event::Delete { deadline } => delete(&mut state, deadline),
        Event::TornDown => torn_down(&mut state),
        Event::TearDownFailed => {
            let mut wait = state.removal.map(|(_, wait)| wait);
            let wait = grow(&mut wait, REMOVAL_RETRY_MIN, REMOVAL_RETRY_MAX);
            (state.out, state.removal) = (None, Some((now + wait, wait)));
        }
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
    if state.out != Some(Work::SetUp) {
        return;
    }
    (state.out, state.lost) = (None, false);
    if state.stage == Stage::Preparing {
        state.stage = Stage::Up;
        state.message.clear();
    }
}

fn blocked(state: &mut PodState, message: String, now: Timestamp) {
    if state.out != Some(Work::SetUp) {
        return;
    }
    state.out = None;
    if state.stage == Stage::Preparing {
        let mut wait = match state.message.is_empty() {
            true => None,
            false => Some(state.sandbox_attempt.min(6)).map(|n| SANDBOX_RETRY_MIN * 2u32.pow(n)),
        };
        let wait = grow(&mut wait, SANDBOX_RETRY_MIN, Duration::from_secs(60));
        state.sandbox_attempt += 1;
        state.message = message;
        state.stage = Stage::Blocked { until: now + wait };
    }
}

fn torn_down(state: &mut PodState) {
    let Some(done) = state.out.filter(|w| *w != Work::SetUp) else { return };
    (state.out, state.removal) = (None, None);
    match (done, &state.stage) {
        (Work::TearDown, _) => state.stage = Stage::Gone,
        (Work::Finish, Stage::Finishing) => state.stage = Stage::Finished,
        // It was deleted meanwhile.
        (Work::Finish | Work::SetUp, _) => {}
    }
}

fn pulled(state: &mut PodState, name: &str, image_id: String, volume_images: BTreeMap<String, String>) {
    if let Some(c) = find(state, name).filter(|c| c.now == ContainerState::Pulling) {
        (c.image_id, c.volume_images) = (image_id, volume_images);
        c.pull_wait = None;
        c.now = ContainerState::Pulled;
    }
}

fn pull_failed(state: &mut PodState, name: &str, reason: &'static str, message: String, now: Timestamp) {
    if let Some(c) = find(state, name).filter(|c| c.now == ContainerState::Pulling) {
        let until = now + grow(&mut c.pull_wait, RETRY_MIN, RETRY_MAX);
        // What can never succeed is not said to rest.
        let rests_at = (reason == "ErrImagePull").then(|| now + FAILURE_SHOWN);
        c.now = ContainerState::PullFailed { reason, message, rests_at, until };
    }
}

fn started(state: &mut PodState, name: &str, running: ContainerState, now: Timestamp, effects: &mut Vec<Effect>) {
    let Some(i) = state.index(name) else { return };
    let (startup, readiness) = (state.plan.containers[i].startup_probe, state.plan.containers[i].readiness_probe);
    let c = &mut state.containers[i];
    if c.now != ContainerState::Starting {
        return;
    }
    c.now = running;
    if state.lost {
        // It began in a sandbox that is no more.
        return;
    }
    c.started = !startup;
    c.ready = !startup && !readiness;
    if state.stage == Stage::Up {
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
    if c.now != ContainerState::Starting {
        return;
    }
    if state.lost {
        // No fault of its own.
        c.now = ContainerState::Waiting;
        return;
    }
    let until = now + grow(&mut c.crash_wait, CRASH_WAIT_MIN, CRASH_WAIT_MAX);
    // What could never run counts as a run that failed where nothing would be tried again.
    let once = role == Role::Ephemeral || restart == Restart::Never && role != Role::Sidecar;
    if once && reason != "CreateContainerConfigError" {
        c.now = ContainerState::Ended(Ended { code: 128, reason: "StartError".into(), message, ..Ended::lost(now) });
    } else {
        c.now = ContainerState::StartFailed { reason, message, until };
    }
}

fn exited(state: &mut PodState, name: &str, ended: Ended, effects: &mut Vec<Effect>) {
    let (restart, up) = (state.plan.restart, state.stage == Stage::Up);
    let Some(i) = state.index(name) else { return };
    let role = state.plan.containers[i].role;
    let sidecars_over = role == Role::Sidecar && mains_over(state);
    let c = &mut state.containers[i];
    // Whoever starts it tells of its end after it has told of the start.
    if !matches!(c.now, ContainerState::Running { .. }) {
        return;
    }
    effects.push(Effect::StopProbes { container: name.to_owned(), but_readiness: false });
    (c.ready, c.started) = (false, role == Role::Sidecar && c.started && !up);
    let again = match (role, restart) {
        (Role::Sidecar, _) => !sidecars_over,
        (Role::Ephemeral, _) => false,
        (Role::Main, Restart::Always) => true,
        (Role::Init, Restart::Always) | (_, Restart::OnFailure) => ended.code != 0,
        (_, Restart::Never) => false,
    };
    c.now = match (up, std::mem::take(&mut c.wanted_again)) {
        (true, true) => ContainerState::Crashed { until: ended.finished_at, ended },
        (true, false) if again => crashed(c, ended),
        _ => ContainerState::Ended(ended),
    };
}

/// It ended and begins again: the first time at once, from the second on after a growing wait.
fn crashed(c: &mut Container, ended: Ended) -> ContainerState {
    let ran = ended.started_at.map(|s| crate::base::clock::between(s, ended.finished_at)).unwrap_or_default();
    if ran > CRASH_FORGET {
        c.crash_wait = None;
    }
    let until = match c.crash_wait {
        None => {
            c.crash_wait = Some(CRASH_WAIT_MIN / 2);
            ended.finished_at
        }
        Some(_) => ended.finished_at + grow(&mut c.crash_wait, CRASH_WAIT_MIN, CRASH_WAIT_MAX),
    };
    ContainerState::Crashed { ended, until }
}

fn mains_over(state: &PodState) -> bool {
    state
        .containers
        .iter()
        .zip(&state.plan.containers)
        .all(|(c, p)| p.role != Role::Main || matches!(c.now, ContainerState::Ended(_)))
}

/// Asks a running container to end. It may serve until it has, so whether it can is asked further.
fn stop(state: &mut PodState, name: &str, grace: Duration, effects: &mut Vec<Effect>) {
    if let Some(c) = find(state, name)
        && let ContainerState::Running { stopping, .. } = &mut c.now
        && !*stopping
    {
        *stopping = true;
        effects.push(Effect::StopProbes { container: name.to_owned(), but_readiness: true });
        effects.push(Effect::Stop { container: name.to_owned(), grace });
    }
}

/// The sandbox is gone, and with it every container that ran in it.
fn sandbox_gone(state: &mut PodState, effects: &mut Vec<Effect>) {
    match state.stage {
        Stage::Up | Stage::Failing { .. } | Stage::Stopping { .. } => state.lost = true,
        // There is none, or nothing runs in it any more.
        Stage::Preparing
        | Stage::Blocked { .. }
        | Stage::Finishing
        | Stage::Finished
        | Stage::TearingDown
        | Stage::Gone => return,
    }
    for c in &state.containers {
        effects.push(Effect::StopProbes { container: c.name.clone(), but_readiness: false });
    }
}

/// What ran has gone with the sandbox, and does not begin again.
fn end_lost(state: &mut PodState, now: Timestamp) {
    for c in &mut state.containers {
        if let Some(ended) = lost_with(c, now) {
            (c.ready, c.started, c.now) = (false, false, ContainerState::Ended(ended));
        }
    }
}

/// How the run of a container has ended whose sandbox is gone; nothing if it has not begun.
fn lost_with(c: &Container, now: Timestamp) -> Option<Ended> {
    match &c.now {
        ContainerState::Running { id, since, .. } => {
            Some(Ended { id: id.clone(), started_at: Some(*since), ..Ended::lost(now) })
        }
        ContainerState::Ended(ended) | ContainerState::Crashed { ended, .. } => Some(ended.clone()),
        ContainerState::Waiting
        | ContainerState::Pulling
        | ContainerState::Pulled
        | ContainerState::PullFailed { .. }
        | ContainerState::Starting
        | ContainerState::StartFailed { .. } => None,
    }
}

/// Decides what becomes of the pod whose sandbox is gone, once nothing is being started in it any more.
fn after_loss(state: &mut PodState, now: Timestamp) {
    let ends: Vec<Option<Ended>> = state.containers.iter().map(|c| lost_with(c, now)).collect();
    let runs: Vec<loss::Run> = (state.containers.iter().zip(&state.plan.containers).zip(&ends))
        .map(|((c, p), end)| loss::Run {
            role: p.role,
            code: end.as_ref().map(|e| e.code),
            ran_before: c.restarts > 0 || c.last.is_some(),
        })
        .collect();
    let fates = loss::fates(state.plan.restart, &runs);
    for ((c, p), (end, fate)) in
        state.containers.iter_mut().zip(&state.plan.containers).zip(ends.into_iter().zip(fates.containers))
    {
        let was_running = matches!(c.now, ContainerState::Running { .. });
        (c.ready, c.started) = (false, false);
        match (fate, end) {
            (Fate::Over, Some(ended)) => c.now = ContainerState::Ended(ended),
            (Fate::Over, None) if p.role == Role::Main => c.now = ContainerState::Ended(Ended::never(now)),
            (Fate::Over | Fate::Begins, None) => {}
            (Fate::Begins, Some(ended)) => {
                let crash = was_running.then(|| crashed(c, ended.clone()));
                match crash {
                    Some(ContainerState::Crashed { until, .. }) if until > now => {
                        c.now = ContainerState::Crashed { ended, until }
                    }
                    _ => {
                        c.restarts += 1;
                        (c.last, c.now) = (Some(ended), ContainerState::Waiting);
                    }
                }
            }
        }
    }
    if fates.sandbox {
        state.sandbox_attempt += 1;
        state.stage = Stage::Preparing;
    }
}

fn delete(state: &mut PodState, deadline: Timestamp) {
    match &mut state.stage {
        Stage::TearingDown | Stage::Gone => {}
        Stage::Stopping { deadline: old } if *old <= deadline => {}
        Stage::Stopping { deadline: old } | Stage::Failing { deadline: old } => {
            let hurried = deadline < *old;
            state.stage = Stage::Stopping { deadline };
            if hurried {
                // Shorter than before: whoever is ending is hurried.
                for c in &mut state.containers {
                    if let ContainerState::Running { stopping, .. } = &mut c.now {
                        *stopping = false;
                    }
                }
            }
        }
        stage => *stage = Stage::Stopping { deadline },
    }
}

fn remaining(stage: &Stage, now: Timestamp) -> Duration {
    match stage {
        Stage::Stopping { deadline } | Stage::Failing { deadline } => crate::base::clock::between(now, *deadline),
        _ => Duration::ZERO,
    }
}

/// Everything that follows from the state itself.
fn advance(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    if state.is_active() && state.active_until.is_some_and(|until| until <= now) {
        state.overdue = true;
        state.stage = Stage::Failing { deadline: now + state.grace };
        effects.push(Effect::Overdue);
    }
    if state.stage == Stage::Up && state.lost && !state.any_starting() {
        after_loss(state, now);
    }
    let may_work = state.out.is_none() && state.removal.is_none_or(|(at, _)| at <= now);
    match state.stage {
        Stage::Blocked { until } if until <= now => {
            state.stage = Stage::Preparing;
            advance(state, now, effects);
        }
        Stage::Preparing if may_work => begin(state, Work::SetUp, effects),
        Stage::Up if over(state) => finish(state, effects),
        Stage::Up if !state.lost => advance_containers(state, now, effects),
        Stage::Failing { .. } | Stage::Stopping { .. } => {
            if state.lost {
                end_lost(state, now);
            }
            stop_in_order(state, now, effects);
            if state.any_alive() {
                return;
            }
            state.stage = match state.stage {
                Stage::Failing { .. } => Stage::Finishing,
                _ => Stage::TearingDown,
            };
            advance(state, now, effects);
        }
        Stage::Finishing if may_work => begin(state, Work::Finish, effects),
        Stage::TearingDown if may_work => begin(state, Work::TearDown, effects),
        Stage::Preparing
        | Stage::Blocked { .. }
        | Stage::Up
        | Stage::Finishing
        | Stage::Finished
        | Stage::TearingDown
        | Stage::Gone => {}
    }
}

fn begin(state: &mut PodState, work: Work, effects: &mut Vec<Effect>) {
    state.out = Some(work);
    effects.push(match work {
        Work::SetUp => Effect::Prepare,
        Work::Finish => Effect::Finish,
        Work::TearDown => Effect::TearDown,
    });
}

/// Main containers end first, then sidecars in reverse order.
fn stop_in_order(state: &mut PodState, now: Timestamp, effects: &mut Vec<Effect>) {
    let grace = remaining(&state.stage, now);
    let alive = |c: &Container| matches!(c.now, ContainerState::Running { .. } | ContainerState::Starting);
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
    let PodState { containers, plan, .. } = state;
    // Whoever looks into a pod may do so before it is initialized.
    for (c, _) in containers.iter_mut().zip(&plan.containers).filter(|(_, p)| p.role == Role::Ephemeral) {
        begin_if_due(c, false, now, effects);
    }
    let mut held = false;
    for (c, part) in containers.iter_mut().zip(&plan.containers).filter(|(_, p)| p.role != Role::Ephemeral) {
        begin_if_due(c, held, now, effects);
        // The kubelet starts one after the other, hooks included; what must wait for its next try holds nobody back.
        held |= part.post_start
            && matches!(c.now, ContainerState::Pulling | ContainerState::Pulled | ContainerState::Starting);
        let through = match part.role {
            Role::Init => matches!(&c.now, ContainerState::Ended(e) if e.code == 0),
            Role::Sidecar => c.started,
            Role::Main | Role::Ephemeral => true,
        };
        if !through {
            return;
        }
    }
}

fn begin_if_due(c: &mut Container, held: bool, now: Timestamp, effects: &mut Vec<Effect>) {
    if c.now == ContainerState::Pulled && !held {
        c.now = ContainerState::Starting;
        effects.push(Effect::Start { container: c.name.clone(), attempt: c.restarts });
    }
    if let ContainerState::PullFailed { rests_at, .. } = &mut c.now
        && rests_at.is_some_and(|at| at <= now)
    {
        *rests_at = None;
        effects.push(Effect::PullRests { container: c.name.clone() });
    }
    let due = match &c.now {
        ContainerState::Waiting => true,
        ContainerState::PullFailed { until, .. } | ContainerState::StartFailed { until, .. } => *until <= now,
        ContainerState::Crashed { ended, until } if *until <= now => {
            c.last = Some(ended.clone());
            c.restarts += 1;
            true
        }
        ContainerState::Crashed { .. }
        | ContainerState::Pulling
        | ContainerState::Pulled
        | ContainerState::Starting
        | ContainerState::Running { .. }
        | ContainerState::Ended(_) => false,
    };
    if due {
        c.now = ContainerState::Pulling;
        effects.push(Effect::Pull { container: c.name.clone() });
    }
}

/// Whether nothing will be started any more.
fn over(state: &PodState) -> bool {
    let failed_init = state
        .containers
        .iter()
        .zip(&state.plan.containers)
        .any(|(c, p)| p.role == Role::Init && matches!(&c.now, ContainerState::Ended(e) if e.code != 0));
    failed_init || mains_over(state)
}

fn finish(state: &mut PodState, effects: &mut Vec<Effect>) {
    // Sidecars have nothing left to serve.
    let alive =
        state.containers.iter().rev().find(|c| matches!(c.now, ContainerState::Running { .. })).map(|c| c.name.clone());
    if let Some(name) = alive {
        stop(state, &name, Duration::from_secs(30), effects);
        return;
    }
    if state.any_alive() {
        return;
    }
    for c in &mut state.containers {
        if let ContainerState::Crashed { ended, .. } = &c.now {
            c.now = ContainerState::Ended(ended.clone());
        }
    }
    state.stage = Stage::Finishing;
    if state.out.is_none() {
        begin(state, Work::Finish, effects);
    }
}
