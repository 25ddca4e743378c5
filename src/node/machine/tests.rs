//! What a pod does, step by step, and what it never does.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn part(name: &str, role: Role) -> ContainerPlan {
    ContainerPlan { name: name.into(), role, ..ContainerPlan::default() }
}

fn ended(code: i32, from: i64, to: i64) -> Ended {
    Ended { id: "i".into(), code, reason: String::new(), started_at: Some(at(from)), ..Ended::lost(at(to)) }
}

struct Run(PodState, Vec<Effect>);

impl Run {
    fn new(restart: Restart, parts: Vec<ContainerPlan>) -> Self {
        let state = PodState::new(Plan { restart, containers: parts });
        Self(state, Vec::new()).on(Event::Begin, 0).on(Event::Prepared, 0)
    }

    fn on(self, event: Event, seconds: i64) -> Self {
        let (state, effects) = step(self.0, event, at(seconds));
        Self(state, effects)
    }

    fn up(self, name: &str, seconds: i64) -> Self {
        let (container, id) = (name.to_owned(), format!("{name}-id"));
        self.on(
            Event::Pulled { container: container.clone(), image_id: "img".into(), volume_images: BTreeMap::new() },
            seconds,
        )
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
    assert!(matches!(r.0.container("e").unwrap().now, ContainerState::Ended(_)), "{:?}", r.0);
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
        r.1.contains(&Effect::Pull { container: "a".into() }) && r.1.contains(&Effect::Pull { container: "b".into() })
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
            assert!(matches!(r.0.containers[0].now, ContainerState::Crashed { .. }), "{:?}", r.0);
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
    let refused = || Event::Refused { reason: "AppArmor".into(), message: "no".into() };
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
fn a_lost_sandbox_is_made_again_and_everything_restarts_from_the_first_init_container() {
    let parts = vec![part("i", Role::Init), part("a", Role::Main)];
    let r = Run::new(Restart::Always, parts).up("i", 0).exit("i", 0, 0, 1).up("a", 1).on(Event::SandboxGone, 5);
    assert_eq!((&r.0.stage, r.0.phase()), (&Stage::Preparing, Phase::Running));
    assert!(r.1.contains(&Effect::Prepare));
    let a = r.0.container("a").unwrap();
    let last = a.last.as_ref().unwrap();
    assert_eq!((a.restarts, last.id.as_str(), last.code, last.reason.as_str()), (1, "a-id", 255, "Unknown"));
    let r = r.on(Event::Prepared, 6);
    assert_eq!(r.1, [Effect::Pull { container: "i".into() }]);
    let r = r.up("i", 7).exit("i", 0, 7, 8);
    assert_eq!(r.1.last(), Some(&Effect::Pull { container: "a".into() }));
    assert_eq!(r.0.containers.iter().map(|c| c.restarts).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_pod_that_never_restarts_has_failed_when_its_sandbox_is_lost() {
    let parts = || vec![part("a", Role::Main), part("b", Role::Main)];
    let r = Run::new(Restart::Never, parts()).up("a", 0).exit("a", 0, 0, 1).up("b", 1).on(Event::SandboxGone, 5);
    assert_eq!((&r.0.stage, r.0.phase(), r.1.last()), (&Stage::Finishing, Phase::Failed, Some(&Effect::Finish)));
    // What is being started when it is lost is waited for, and does not begin either.
    let pulled = |r: Run| {
        r.on(Event::Pulled { container: "b".into(), image_id: String::new(), volume_images: BTreeMap::new() }, 3)
    };
    let r = pulled(Run::new(Restart::Never, parts()).up("a", 0)).on(Event::SandboxGone, 5);
    assert!(r.0.stage == Stage::Up && !r.1.contains(&Effect::Finish), "{:?}", r.0);
    let r = r.on(Event::StartFailed { container: "b".into(), reason: "e", message: String::new() }, 6);
    assert_eq!((r.0.phase(), r.1.last()), (Phase::Failed, Some(&Effect::Finish)));
    let reasons: Vec<_> =
        r.0.containers.iter().map(|c| matches!(&c.now, ContainerState::Ended(e) if e.code != 0)).collect();
    assert_eq!(reasons, [true, true]);
}

#[test]
fn a_pod_that_is_active_for_too_long_fails_and_keeps_what_its_containers_did() {
    let mut new = PodState::new(Plan { restart: Restart::Always, containers: vec![part("a", Role::Main)] });
    (new.active_until, new.grace) = (Some(at(4)), Duration::from_secs(7));
    let r = Run(new, Vec::new()).on(Event::Begin, 0).on(Event::Prepared, 1).up("a", 1);
    assert_eq!(r.0.next_at(), Some(at(4)));
    let r = r.on(Event::Tick, 4);
    let stop = Effect::Stop { container: "a".into(), grace: Duration::from_secs(7) };
    assert!(r.1.contains(&Effect::Overdue) && r.1.contains(&stop), "{:?}", r.1);
    assert_eq!(r.0.phase(), Phase::Running);
    let r = r.exit("a", 137, 1, 5);
    assert_eq!((r.0.phase(), &r.1[r.1.len() - 1..]), (Phase::Failed, &[Effect::Finish][..]));
    let r = r.on(Event::TornDown, 6);
    assert_eq!((&r.0.stage, r.0.next_at()), (&Stage::Finished, None));
    // Whoever is still being made is waited for.
    let mut new = PodState::new(Plan { restart: Restart::Always, containers: vec![part("a", Role::Main)] });
    new.active_until = Some(at(4));
    let r = Run(new, Vec::new()).on(Event::Begin, 0).on(Event::Tick, 4);
    assert!(!r.1.contains(&Effect::Finish), "{:?}", r.1);
    assert_eq!(r.on(Event::Prepared, 5).1, [Effect::Finish]);
}

#[test]
fn whoever_comes_after_a_hook_waits_for_it_but_not_for_its_next_try() {
    let hooked = ContainerPlan { post_start: true, ..part("a", Role::Main) };
    let r = Run::new(Restart::Always, vec![hooked, part("b", Role::Main)]);
    let pulled =
        |name: &str| Event::Pulled { container: name.into(), image_id: String::new(), volume_images: BTreeMap::new() };
    let starts =
        |r: &Run, name: &str| r.1.iter().any(|e| matches!(e, Effect::Start { container, .. } if container == name));
    let r = r.on(pulled("b"), 1);
    assert!(r.1.is_empty(), "{:?}", r.1);
    let r = r.on(pulled("a"), 2);
    assert!(starts(&r, "a") && !starts(&r, "b"), "{:?}", r.1);
    let failed = Event::StartFailed { container: "a".into(), reason: "e", message: String::new() };
    let tried = Run(r.0.clone(), Vec::new()).on(failed, 3);
    assert!(starts(&tried, "b"));
    let r = r.on(Event::Started { container: "a".into(), id: "x".into(), pid: 1, since: at(3) }, 3);
    assert!(starts(&r, "b"));
}

#[test]
fn readiness_is_asked_for_until_a_container_that_is_being_stopped_has_ended() {
    let probed = ContainerPlan { readiness_probe: true, ..part("a", Role::Main) };
    let r = Run::new(Restart::Always, vec![probed]).up("a", 0);
    let ready = |ready| Event::Ready { container: "a".into(), ready };
    let r = r.on(ready(true), 1).on(Event::Delete { deadline: at(40) }, 2);
    assert!(r.1.contains(&Effect::StopProbes { container: "a".into(), but_readiness: true }), "{:?}", r.1);
    assert!(r.0.containers[0].ready, "it serves until it has ended");
    let r = r.on(ready(false), 3);
    assert!(!r.0.containers[0].ready);
    let r = r.on(ready(true), 4).exit("a", 0, 0, 5);
    assert!(r.1.contains(&Effect::StopProbes { container: "a".into(), but_readiness: false }));
    assert!(!r.0.containers[0].ready);
}

#[test]
fn a_pod_that_is_deleted_while_its_lost_sandbox_is_waited_for_ends() {
    let parts = vec![part("a", Role::Main), part("b", Role::Main)];
    let pulled = Event::Pulled { container: "b".into(), image_id: String::new(), volume_images: BTreeMap::new() };
    let r = Run::new(Restart::Always, parts).up("a", 0).on(pulled, 1).on(Event::SandboxGone, 2);
    let r = r.on(Event::Delete { deadline: at(30) }, 3);
    assert!(!r.1.contains(&Effect::TearDown) && r.0.any_alive(), "b is being started: {:?}", r.0);
    let r = r.on(Event::StartFailed { container: "b".into(), reason: "e", message: String::new() }, 4);
    assert_eq!(r.1, [Effect::TearDown], "nobody tells of the end of a");
}

#[test]
fn what_could_not_be_removed_is_removed_again() {
    let r = Run::new(Restart::Always, vec![part("a", Role::Main)]).on(Event::Delete { deadline: at(1) }, 1);
    assert_eq!(r.1.last(), Some(&Effect::TearDown));
    let r = r.on(Event::TearDownFailed, 2);
    assert_eq!((r.0.next_at(), r.1.as_slice()), (Some(at(3)), &[][..]));
    let r = r.on(Event::Tick, 3);
    assert_eq!(r.1, [Effect::TearDown]);
    let r = r.on(Event::TearDownFailed, 3);
    assert_eq!(r.0.next_at(), Some(at(5)));
    assert_eq!(r.on(Event::Tick, 5).on(Event::TornDown, 6).0.stage, Stage::Gone);
}

fn any_event() -> impl Strategy<Value = (Event, i64)> {
    let name = prop_oneof![Just("i"), Just("s"), Just("a")].prop_map(str::to_owned);
    let event = prop_oneof![
        Just(Event::Prepared),
        Just(Event::PrepareFailed("x".into())),
        name.clone().prop_map(|container| Event::Pulled {
            container,
            image_id: String::new(),
            volume_images: BTreeMap::new()
        }),
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
                let is_busy = |now: &ContainerState| {
                    matches!(now, ContainerState::Pulling | ContainerState::Starting | ContainerState::Running { .. })
                };
                let busy = r.0.containers.iter().any(|c| is_busy(&c.now));
                prop_assert!(busy || r.0.next_at().is_some(), "hangs: {:?}", r.0);
            }
        }
    }
}

/// What the machine asked for and what there is of the pod, as the world has it: every effect may end at any later step.
#[derive(Default)]
struct World {
    out: Vec<Effect>,
    /// There is a sandbox, which may be dead.
    sandbox: Option<bool>,
    /// Containers that run, by name; a dead sandbox has none.
    running: std::collections::BTreeSet<String>,
    gone: bool,
}

/// What happens next: an effect ends (the number chooses which, and whether well), or something comes from outside.
#[derive(Clone, Debug)]
enum Next {
    End { which: usize, well: bool },
    Exit { which: usize, code: i32 },
    Unhealthy { which: usize },
    SandboxDies,
    Delete,
    Wait(i64),
}

fn any_next() -> impl Strategy<Value = Next> {
    prop_oneof![
        8 => (0..8usize, proptest::bool::weighted(0.8)).prop_map(|(which, well)| Next::End { which, well }),
        2 => (0..4usize, 0..2i32).prop_map(|(which, code)| Next::Exit { which, code }),
        1 => (0..4usize).prop_map(|which| Next::Unhealthy { which }),
        1 => Just(Next::SandboxDies),
        1 => Just(Next::Delete),
        2 => (0..50i64).prop_map(Next::Wait),
    ]
}

impl World {
    fn tasks(&self, of: fn(&Effect) -> bool) -> usize {
        self.out.iter().filter(|e| of(e)).count()
    }

    /// Takes what the machine asks for; what may not be asked for now is said.
    fn take(&mut self, effects: &[Effect]) -> Result<(), TestCaseError> {
        for effect in effects {
            let whole = |e: &Effect| matches!(e, Effect::Prepare | Effect::Finish | Effect::TearDown);
            let start = |e: &Effect| matches!(e, Effect::Start { .. });
            if whole(effect) {
                prop_assert_eq!(self.tasks(whole), 0, "{:?} while {:?} are out", effect, self.out);
                prop_assert_eq!(self.tasks(start), 0, "{:?} while {:?} are out", effect, self.out);
                let alive: Vec<_> = self.running.iter().collect();
                prop_assert!(alive.is_empty(), "{:?} while {:?} run", effect, alive);
            }
            if let Effect::Start { container, .. } = effect {
                prop_assert_eq!(self.tasks(whole), 0, "{:?} while {:?} are out", effect, self.out);
                let twice = self.out.iter().any(|e| matches!(e, Effect::Start { container: c, .. } if c == container));
                prop_assert!(!twice && !self.running.contains(container), "{} twice", container);
            }
            match effect {
                Effect::Prepare | Effect::Pull { .. } | Effect::Start { .. } => self.out.push(effect.clone()),
                Effect::Stop { .. } | Effect::Finish | Effect::TearDown => self.out.push(effect.clone()),
                _ => {}
            }
        }
        Ok(())
    }

    /// One effect comes to its end: what it did to the world, and what the machine is told.
    fn end(&mut self, which: usize, well: bool, t: i64) -> Option<Event> {
        if self.out.is_empty() {
            return None;
        }
        let effect = self.out.remove(which % self.out.len());
        Some(match effect {
            Effect::Prepare if well => {
                self.sandbox = Some(true);
                Event::Prepared
            }
            Effect::Prepare => Event::PrepareFailed("x".into()),
            Effect::Pull { container } if well => {
                Event::Pulled { container, image_id: String::new(), volume_images: BTreeMap::new() }
            }
            Effect::Pull { container } => {
                Event::PullFailed { container, reason: "ErrImagePull", message: String::new() }
            }
            Effect::Start { container, .. } if well && self.sandbox == Some(true) => {
                self.running.insert(container.clone());
                Event::Started { container, id: "x".into(), pid: 1, since: at(t) }
            }
            Effect::Start { container, .. } => Event::StartFailed { container, reason: "e", message: String::new() },
            // Whoever stops a container that has ended already has nothing to say.
            Effect::Stop { container, .. } if self.running.remove(&container) => {
                Event::Exited { container, ended: ended(0, t, t) }
            }
            Effect::Stop { .. } => Event::Tick,
            Effect::Finish | Effect::TearDown => {
                self.sandbox = None;
                Event::TornDown
            }
            other => panic!("{other:?} does not last"),
        })
    }

    fn happens(&mut self, next: &Next, t: i64) -> Option<Event> {
        match next {
            Next::End { which, well } => self.end(*which, *well, t),
            Next::Exit { which, code } => {
                let name = self.running.iter().nth(*which)?.clone();
                self.running.remove(&name);
                Some(Event::Exited { container: name, ended: ended(*code, t, t) })
            }
            Next::Unhealthy { which } => {
                let container = self.running.iter().nth(*which)?.clone();
                Some(Event::Unhealthy { container, grace: Duration::ZERO })
            }
            Next::SandboxDies if self.sandbox == Some(true) => {
                self.sandbox = Some(false);
                self.running.clear();
                Some(Event::SandboxGone)
            }
            Next::SandboxDies => None,
            Next::Delete => Some(Event::Delete { deadline: at(t + 30) }),
            Next::Wait(_) => Some(Event::Tick),
        }
    }
}

fn any_restart() -> impl Strategy<Value = Restart> {
    prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]
    #[test]
    fn whatever_ends_when_nothing_is_left_of_a_deleted_pod(
        restart in any_restart(),
        all in proptest::collection::vec(any_next(), 0..80),
        order in proptest::collection::vec(0..8usize, 40),
    ) {
        let parts = vec![part("i", Role::Init), part("s", Role::Sidecar), part("a", Role::Main), part("b", Role::Main)];
        let (mut world, mut t) = (World::default(), 0);
        let (mut state, effects) = step(PodState::new(Plan { restart, containers: parts }), Event::Begin, at(0));
        world.take(&effects)?;
        for next in &all {
            t += if let Next::Wait(seconds) = next { *seconds } else { 0 };
            let Some(event) = world.happens(next, t) else { continue };
            let (new, effects) = step(state, event, at(t));
            state = new;
            world.take(&effects)?;
            world.gone |= state.stage == Stage::Gone;
        }
        // Somebody deletes it at last, and what is out ends in whatever order.
        let mut event = Event::Delete { deadline: at(t) };
        for which in order.iter().cycle().take(400) {
            let (new, effects) = step(state, event, at(t));
            state = new;
            world.take(&effects)?;
            t += 100;
            event = world.end(*which, true, t).unwrap_or(Event::Tick);
        }
        prop_assert_eq!(&state.stage, &Stage::Gone);
        prop_assert!(world.sandbox.is_none() && world.running.is_empty(), "left: {:?} {:?}", world.sandbox, world.running);
        let out: Vec<_> = world.out.iter().filter(|e| !matches!(e, Effect::Pull { .. })).collect();
        prop_assert!(out.is_empty(), "out: {out:?}");
    }
}
