//! Who runs, who waits and who is refused, by the objects that are suggested and by others.

use futures::FutureExt;
use serde_json::json;

use super::configuration::SEATS;
use super::seats::NODE_SEATS;
use super::*;
use crate::apimachinery::user::{AUTHENTICATED, MASTERS};
use crate::kinds::flowcontrol::{flowschema, prioritylevelconfiguration};

fn user(name: &str, groups: &[&str]) -> Arc<User> {
    Arc::new(User {
        name: name.into(),
        groups: groups.iter().chain(&[AUTHENTICATED]).map(|g| (*g).to_owned()).collect(),
        ..User::default()
    })
}

fn account(name: &str) -> Arc<User> {
    user(&format!("system:serviceaccount:{name}"), &["system:serviceaccounts"])
}

const PODS: Target<'static> =
    Target { verb: "list", resource: "pods", namespace: "default", group: "", subresource: "", path: "" };

fn level_of(user: &User, target: &Target<'_>) -> Option<String> {
    let place = FlowControl::default().place(user, target);
    place.flow.is_some().then(|| place.level().name.to_string())
}

#[test]
fn requests_are_of_the_levels_that_kubernetes_suggests() {
    let lease = Target { verb: "update", group: "coordination.k8s.io", resource: "leases", ..PODS };
    let status = Target { verb: "patch", resource: "nodes", subresource: "status", namespace: "", ..PODS };
    let node = user("system:node:a", &[NODES]);
    assert_eq!(level_of(&user("admin", &[MASTERS]), &PODS), None);
    let probe = Target { verb: "get", path: "/readyz", ..Target::default() };
    assert_eq!(level_of(&user("x", &[]), &probe), None);
    for (who, what, expected) in [
        (&node, &lease, "node-high"),
        (&node, &status, "node-high"),
        (&node, &PODS, "system"),
        (&account("kube-system:a"), &lease, "leader-election"),
        (&account("kube-system:a"), &PODS, "workload-high"),
        (&account("web:a"), &lease, "workload-low"),
        (&user("system:kube-scheduler", &[]), &PODS, "workload-high"),
        (&user("jane", &[]), &PODS, "global-default"),
        (&Arc::new(User { name: "nobody".into(), ..User::default() }), &PODS, "catch-all"),
    ] {
        assert_eq!(level_of(who, what).as_deref(), Some(expected), "{who:?} {what:?}");
    }
}

fn nominal(control: &FlowControl, level: &str) -> usize {
    control.0.configuration().levels.iter().find(|spec| *spec.name == *level).unwrap().nominal
}

fn schema(name: &str, level: &str, subject: Value) -> Value {
    let all =
        json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true});
    json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}, "spec": {"matchingPrecedence": 2,
        "priorityLevelConfiguration": {"name": level}, "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [subject], "resourceRules": [all]}]}})
}

fn limited(name: &str, shares: usize, response: Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-of-{name}")}, "spec": {"type": "Limited", "limited":
        {"nominalConcurrencyShares": shares, "lendablePercent": 0, "limitResponse": response}}})
}

fn suggested_with(schemas: Vec<Value>, levels: Vec<Value>) -> (Vec<Value>, Vec<Value>) {
    (
        flowschema::suggested().into_iter().chain(schemas).collect(),
        prioritylevelconfiguration::suggested().into_iter().chain(levels).collect(),
    )
}

#[tokio::test(start_paused = true)]
async fn requests_are_of_the_level_that_an_object_says_and_what_runs_keeps_its_seat() {
    let control = FlowControl::default();
    let jane = user("jane", &[]);
    let before = control.admit(&jane, &PODS).await.unwrap();
    let subject = json!({"kind": "User", "user": {"name": "jane"}});
    let level = limited("janes", 10, json!({"type": "Reject"}));
    let (schemas, levels) = suggested_with(vec![schema("jane", "janes", subject)], vec![level]);
    control.configure(schemas, levels);
    let place = control.place(&jane, &PODS);
    assert_eq!((place.uids().0.as_bytes(), place.uids().1.as_bytes()), (&b"uid-of-jane"[..], &b"uid-of-janes"[..]));
    let mut janes = fill(&control, [jane.clone()].into_iter());
    assert_eq!(janes.len(), nominal(&control, "janes") / 2);
    let refused = control.admit(&jane, &PODS).await.unwrap_err();
    assert_eq!((refused.code, refused.details.retry_after_seconds), (429, Some(1)));
    // The level ends; what runs goes on, and its slot is nobody else's until it has ended.
    let (schemas, levels) = suggested_with(vec![], vec![limited("other", 1, json!({"type": "Reject"}))]);
    control.configure(schemas, levels);
    assert!(control.0.lock().seats.levels.iter().any(|l| *l.spec.name == *"janes" && l.in_use == janes.len()));
    janes.pop();
    control.enter(&jane, &place).await.expect("who was placed there before it ended still runs");
    assert!(control.admit(&jane, &PODS).await.is_ok());
    drop(janes);
    let (schemas, levels) = suggested_with(vec![], vec![limited("third", 1, json!({"type": "Reject"}))]);
    control.configure(schemas, levels);
    assert!(!control.0.lock().seats.levels.iter().any(|l| *l.spec.name == *"janes"));
    control.enter(&jane, &place).await.expect("its level has ended: it is of the level that takes everything");
    drop(before);
    let state = control.0.lock();
    assert!(state.seats.running == 0 && state.seats.levels.iter().all(|l| l.in_use == 0 && l.seats.most().is_none()));
    assert_eq!(state.seats.spoken_for, state.seats.levels.iter().map(|l| l.spec.guaranteed).sum::<usize>());
}

#[tokio::test(start_paused = true)]
async fn whatever_objects_say_nodes_have_seats_and_no_more_run_than_there_are() {
    let control = FlowControl::default();
    let node = user("system:node:a", &[NODES]);
    // Everybody, nodes too, in a level without any seat; and one in a level that has them all and lends none.
    let all = json!({"kind": "Group", "group": {"name": "*"}});
    let none = json!({"type": "Reject"});
    let mut nothing = limited("nothing", 0, none.clone());
    nothing["spec"]["limited"]["borrowingLimitPercent"] = json!(0);
    let levels = vec![nothing, limited("all", 1_000_000_000, none.clone())];
    let jane = json!({"kind": "User", "user": {"name": "jane"}});
    let mut whole = schema("a", "all", jane);
    whole["spec"].as_object_mut().unwrap().remove("distinguisherMethod");
    let (schemas, levels) = suggested_with(vec![whole, schema("b", "nothing", all)], levels);
    control.configure(schemas.clone(), levels.clone());
    let jane = user("jane", &[]);
    let held = fill(&control, [jane.clone()].into_iter());
    assert!(held.len() > SEATS - 10 && held.len() <= SEATS, "{}: all are one flow", held.len());
    assert_eq!(control.admit(&user("joe", &[]), &PODS).await.unwrap_err().code, 429);
    let nodes = fill(&control, [node.clone()].into_iter());
    assert_eq!(nodes.len(), NODE_SEATS / 2, "and no node has all of them");
    let others = fill(&control, (0..9).map(|n| user(&format!("system:node:{n}"), &[NODES])));
    assert_eq!(nodes.len() + others.len(), NODE_SEATS);
    // Another level with all seats, while those of the first are in use.
    let (schemas, mut levels) =
        suggested_with(vec![schema("c", "more", json!({"kind": "User", "user": {"name": "eve"}}))], vec![]);
    levels.push(limited("more", 1_000_000_000, none));
    control.configure(schemas, levels);
    let more = fill(&control, (0..600).map(|n| user("eve", &[&n.to_string()])));
    assert!(held.len() + more.len() <= SEATS, "{} {}", held.len(), more.len());
    drop((nodes, others));
    assert!(control.admit(&node, &PODS).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_flow_waits_as_far_as_its_level_says() {
    let control = FlowControl::default();
    let queue = json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 3}});
    let subject = json!({"kind": "Group", "group": {"name": "system:authenticated"}});
    let (schemas, levels) = suggested_with(vec![schema("s", "small", subject)], vec![limited("small", 1, queue)]);
    control.configure(schemas, levels);
    let names = |n: usize| user(&format!("u{n}"), &[]);
    let _held = fill(&control, (0..100).map(names));
    let mut waiting = Vec::new();
    for (n, expected) in [(0, 6), (1, 6), (2, 0)] {
        let user = names(n);
        for i in 0..7 {
            let mut asked = Box::pin({
                let (control, user) = (control.clone(), user.clone());
                async move { control.admit(&user, &PODS).await.map(drop) }
            });
            match (&mut asked).now_or_never() {
                None => waiting.push(asked),
                Some(refused) => {
                    assert_eq!((i, refused.unwrap_err().code), (expected, 429), "u{n}");
                    break;
                }
            }
        }
    }
    assert_eq!(waiting.len(), 12, "two hands, or four queues, of three");
}

/// Takes seats until one would have to wait.
fn fill(control: &FlowControl, users: impl Iterator<Item = Arc<User>>) -> Vec<Admission> {
    let mut held = Vec::new();
    for user in users {
        while let Some(Ok(admission)) = control.admit(&user, &PODS).now_or_never() {
            held.push(admission);
        }
    }
    held
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_everything_leaves_the_others_their_seats() {
    let control = FlowControl::default();
    let one = fill(&control, [account("web:a")].into_iter());
    let nominal = nominal(&control, "workload-low");
    assert_eq!(one.len(), nominal / 2, "half of the level");
    assert!(fill(&control, (0..100).map(|n| account(&format!("web:{n}")))).is_empty(), "for all of its namespace");
    let all = fill(&control, (0..100).map(|n| account(&format!("web{n}:a"))));
    assert!(one.len() + all.len() > nominal, "seats that others lend");
    assert!(one.len() + all.len() < SEATS);
    let node = user("system:node:a", &[NODES]);
    assert!(control.admit(&node, &PODS).now_or_never().is_some(), "a node runs at once");
    let jane = user("jane", &[]);
    assert!(control.admit(&jane, &PODS).now_or_never().is_some(), "and so does a user");
    let masters = user("admin", &[MASTERS]);
    assert!(control.admit(&masters, &PODS).now_or_never().is_some());
}

#[tokio::test(start_paused = true)]
async fn flows_take_turns_and_a_queue_ends() {
    let control = FlowControl::default();
    let users: Vec<_> = (0..20).map(|n| user(&format!("u{n}"), &[])).collect();
    let mut held = fill(&control, users.iter().cloned());
    let order = Arc::new(Mutex::new(Vec::new()));
    let ask = |user: Arc<User>| {
        let (control, order) = (control.clone(), order.clone());
        crate::base::task::spawn("test", async move {
            let admission = control.admit(&user, &PODS).await.unwrap();
            order.lock().unwrap().push(user.name.clone());
            drop(admission);
        })
    };
    // One asks ten times before another asks once.
    let (greedy, modest) = (user("greedy", &[]), user("modest", &[]));
    let asked: Vec<_> = (0..10).map(|_| ask(greedy.clone())).collect();
    tokio::task::yield_now().await;
    let last = ask(modest);
    tokio::task::yield_now().await;
    held.pop();
    last.await.unwrap();
    assert!(order.lock().unwrap().iter().position(|name| name == "modest").unwrap() <= 1, "{order:?}");
    drop(held);
    for task in asked {
        task.await.unwrap();
    }
    assert_eq!(control.0.lock().seats.waiting, 0);
    // Too many of one flow are refused at once; those who wait too long, and those who go away, leave nothing.
    let held = fill(&control, users.iter().cloned());
    let waiting: Vec<_> = (0..300)
        .map(|_| {
            let (control, greedy) = (control.clone(), greedy.clone());
            crate::base::task::spawn("test", async move { control.admit(&greedy, &PODS).await.map(drop) })
        })
        .collect();
    tokio::task::yield_now().await;
    let refused = control.admit(&greedy, &PODS).await.unwrap_err();
    assert_eq!((refused.code, refused.details.retry_after_seconds), (429, Some(1)));
    waiting[0].abort();
    for task in waiting.into_iter().skip(1) {
        assert_eq!(task.await.unwrap().unwrap().unwrap_err().code, 429);
    }
    assert_eq!(control.0.lock().seats.waiting, 0);
    drop(held);
    let state = control.0.lock();
    assert!(state.seats.levels.iter().all(|l| l.in_use == 0 && l.seats.most().is_none() && l.queue.len() == 0));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_come_slowly_make_room_for_others() {
    let control = FlowControl::default();
    let admit = async |name: &str| control.admit(&user(name, &[]), &PODS).await.unwrap();
    let (slow, other) = (admit("slow").await, admit("other").await);
    let body = 3 << 20;
    let held: Vec<_> = (0..READING_BYTES / body).map(|_| slow.begin_reading(body).unwrap()).collect();
    assert!(slow.begin_reading(body).is_err(), "nobody makes room for oneself");
    let small = other.begin_reading(1000).unwrap();
    assert_eq!(held[0].ended().await.code, 429);
    let has_ended = |reading: &Reading| *reading.ended.borrow();
    assert!(!has_ended(&small) && !held[1..].iter().any(has_ended), "one is enough");
    drop((held, small));
    assert!(control.0.lock().reading.is_empty());
    assert_eq!(control.0.lock().reading_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn accounts_of_one_namespace_are_one_in_bodies_and_long_running_requests() {
    let control = FlowControl::default();
    let admit = async |user: Arc<User>| control.admit(&user, &PODS).await.unwrap();
    let body = 3 << 20;
    let running = admit(account("web:0")).await;
    running.reserve_body(body).await.unwrap();
    let mut held = Vec::new();
    for n in 1..100 {
        held.push(admit(account(&format!("web:{n}"))).await);
    }
    let mut waiting: Vec<_> = held.iter().map(|admission| Box::pin(admission.reserve_body(body))).collect();
    waiting.retain_mut(|wait| wait.now_or_never().is_none());
    let of_owner = control.0.lock().bodies_bytes.of_owner("system:serviceaccount:web:0");
    assert_eq!(of_owner / body_cost(body).0, waiting.len() + 1, "the others were refused at once");
    assert!(of_owner <= BODIES_BYTES_OF_OWNER);
    let other = admit(account("db:0")).await;
    let mut other = Box::pin(other.reserve_body(body));
    assert!((&mut other).now_or_never().is_none());
    drop(running);
    let begun = waiting.iter_mut().filter_map(|wait| wait.now_or_never()).filter(Result::is_ok).count();
    assert_eq!(begun, 1, "it was the next one when the other came");
    drop(waiting);
    drop(held);
    other.now_or_never().unwrap().unwrap();
    let left = control.0.lock().bodies_bytes.of_owner("system:serviceaccount:web:0");
    assert_eq!(left, 0, "those who stopped waiting are not counted any more");

    let long: Vec<_> = (0..5)
        .flat_map(|n| std::iter::repeat_with(move || account(&format!("web:{n}"))).take(LONG_RUNNING_MAX))
        .filter_map(|user| control.begin_long_running(&user).ok())
        .collect();
    assert_eq!(long.len(), LONG_RUNNING_OF_OWNER_MAX);
    assert!(control.begin_long_running(&account("db:0")).is_ok());
}

#[tokio::test(start_paused = true)]
async fn bodies_and_long_running_requests_are_bounded_by_user_and_in_all() {
    let control = FlowControl::default();
    let admit = async |name: &str, groups: &[&str]| control.admit(&user(name, groups), &PODS).await.unwrap();
    let body = 3 << 20;
    let held = admit("a", &[]).await;
    held.reserve_body(body).await.unwrap();
    // One at a time that makes much, whoever asks; what is small passes.
    assert_eq!(admit("system:node:a", &[NODES]).await.reserve_body(body).await.unwrap_err().code, 429);
    let small = admit("b", &[]).await;
    small.reserve_body(2000).await.unwrap();
    // One who asks for more while enough waits is told at once.
    let shared = control.clone();
    let waits = crate::base::task::spawn("test", async move {
        let admission = shared.admit(&user("a", &[]), &PODS).await.unwrap();
        admission.reserve_body(3 << 20).await
    });
    tokio::task::yield_now().await;
    let begun = tokio::time::Instant::now();
    assert_eq!(admit("a", &[]).await.reserve_body(body).await.unwrap_err().code, 429);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let mut ended = control.large_ended();
    drop(held);
    ended.changed().await.unwrap();
    waits.await.unwrap().unwrap().unwrap();
    admit("c", &[]).await.reserve_body(body).await.unwrap();
    drop(small);
    assert!(control.0.lock().bodies_bytes.most().is_none());

    let jane = user("jane", &[]);
    let long: Vec<_> = (0..LONG_RUNNING_MAX).map(|_| control.begin_long_running(&jane).unwrap()).collect();
    assert!(control.begin_long_running(&jane).is_err());
    assert!(control.begin_long_running(&user("other", &[])).unwrap().is_some());
    drop(long);
    assert!(control.begin_long_running(&jane).is_ok() && control.0.lock().long_running.most().is_none());
}
