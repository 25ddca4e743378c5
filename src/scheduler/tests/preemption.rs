//! Who goes for whom.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::kinds::Subresource;
use crate::kinds::core::event;
use crate::reconcile::{Key, Patch};
use crate::scheduler::preempt::{Candidate, Verdict, preempt};

/// A pod with a priority that asks for some of a processor, with more fields of its spec.
fn ranked(name: &str, priority: i32, cpu: &str, more: Value) -> Arc<PodView> {
    let mut spec = asks(cpu);
    spec["priority"] = priority.into();
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pod(name, spec)
}

/// As [`ranked`], in a group of pods and running since a second.
fn running(name: &str, priority: i32, cpu: &str, group: &str, second: i64) -> Arc<PodView> {
    let mut value = ranked(name, priority, cpu, json!({})).object.value();
    value["metadata"]["labels"] = json!({"app": group});
    value["status"] = json!({"startTime": Timestamp::from_second(second).unwrap().to_string()});
    Arc::new(PodView::new(&Arc::new(Object::new(name.into(), 1, &value, Box::default()))).unwrap())
}

fn budget(group: &str, allowed: i64, disrupted: &[&str]) -> Value {
    let disrupted: BTreeMap<&str, &str> = disrupted.iter().map(|name| (*name, "2026-01-01T00:00:00Z")).collect();
    json!({"metadata": {"name": group, "namespace": "n"}, "spec": {"selector": {"matchLabels": {"app": group}}},
        "status": {"disruptionsAllowed": allowed, "disruptedPods": disrupted}})
}

fn verdict(pod: &PodView, s: &Snapshot, budgets: &[Value]) -> Verdict {
    let why = decide(pod, s).expect_err("it finds a node");
    preempt(pod, s, &why, budgets, Timestamp::from_second(1000).unwrap(), 0)
}

/// The node, and the names of those who go.
fn chosen(pod: &PodView, s: &Snapshot, budgets: &[Value]) -> (String, Vec<String>) {
    match verdict(pod, s, budgets) {
        Verdict::Room(Candidate { node, victims, .. }) => {
            (node.to_string(), victims.iter().map(|v| v.key.name.to_string()).collect())
        }
        other => panic!("{other:?}"),
    }
}

fn refused(pod: &PodView, s: &Snapshot) -> String {
    match verdict(pod, s, &[]) {
        Verdict::NotNow(why) => why.to_owned(),
        Verdict::Hopeless(why) => why,
        Verdict::Room(candidate) => panic!("{candidate:?}"),
    }
}

#[test]
fn nodes_are_chosen_by_what_it_costs() {
    // Each case: budgets, the pods of node a, those of node b (name, priority, processor, group, start), and who goes.
    type Pods<'a> = &'a [(&'a str, i32, &'a str, &'a str, i64)];
    let cases: &[(&str, &[Value], Pods<'_>, Pods<'_>, &str, &[&str])] = &[
        ("budgets", &[budget("x", 0, &[])], &[("a1", 1, "1", "x", 1)], &[("b1", 5, "1", "y", 1)], "b", &["b1"]),
        ("an empty budget", &[budget("x", 1, &[])], &[("a1", 1, "1", "x", 1)], &[("b1", 5, "1", "y", 1)], "a", &["a1"]),
        (
            "an eviction that is counted",
            &[budget("x", 0, &["a1"])],
            &[("a1", 1, "1", "x", 1)],
            &[("b1", 5, "1", "y", 1)],
            "a",
            &["a1"],
        ),
        ("the highest priority", &[], &[("a1", 3, "1", "x", 1)], &[("b1", 2, "1", "x", 1)], "b", &["b1"]),
        (
            "the sum of priorities",
            &[],
            &[("a1", 3, "500m", "x", 1), ("a2", 3, "500m", "x", 1)],
            &[("b1", 3, "500m", "x", 1), ("b2", 1, "500m", "x", 1)],
            "b",
            &["b1", "b2"],
        ),
        (
            "how many they are",
            &[],
            &[("a1", 3, "500m", "x", 1), ("a2", -2147483648, "500m", "x", 1)],
            &[("b1", 3, "1", "x", 1)],
            "b",
            &["b1"],
        ),
        ("who began last", &[], &[("a1", 3, "1", "x", 1)], &[("b1", 3, "1", "x", 2)], "b", &["b1"]),
        (
            "the earliest of the highest priority",
            &[],
            &[("a1", 3, "500m", "x", 5), ("a2", 3, "500m", "x", 9)],
            &[("b1", 3, "500m", "x", 6), ("b2", 3, "500m", "x", 7)],
            "b",
            &["b1", "b2"],
        ),
        ("the name of the node", &[], &[("a1", 3, "1", "x", 1)], &[("b1", 3, "1", "x", 1)], "a", &["a1"]),
    ];
    for (why, budgets, a, b, node, victims) in cases {
        let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
        for (on, pods) in [("a", a), ("b", b)] {
            for (name, priority, cpu, group, second) in pods.iter() {
                s.place(running(name, *priority, cpu, group, *second), on, false);
            }
        }
        let (on, names) = chosen(&ranked("p", 9, "1", json!({})), &s, budgets);
        assert_eq!((on.as_str(), names), (*node, victims.iter().map(ToString::to_string).collect()), "{why}");
    }
}

#[test]
fn no_more_go_than_must_and_none_of_an_equal_or_higher_priority() {
    let mut s = snapshot(&[("a", json!({}))]);
    s.place(running("old", 1, "300m", "x", 1), "a", false);
    s.place(running("new", 1, "300m", "x", 2), "a", false);
    s.place(running("high", 5, "300m", "x", 3), "a", false);
    let asking = |cpu: &str, priority| ranked("p", priority, cpu, json!({}));
    // Of equals the one that has run for longer stays.
    assert_eq!(chosen(&asking("200m", 5), &s, &[]).1, ["new"]);
    assert_eq!(chosen(&asking("500m", 5), &s, &[]).1, ["old", "new"]);
    assert_eq!(chosen(&asking("800m", 6), &s, &[]).1, ["high", "old", "new"]);
    // One whose budget does not allow it stays before one of a higher priority.
    let mut other = snapshot(&[("a", json!({}))]);
    other.place(running("kept", 1, "500m", "x", 1), "a", false);
    other.place(running("free", 2, "500m", "y", 1), "a", false);
    assert_eq!(chosen(&asking("200m", 5), &other, &[budget("x", 0, &[])]).1, ["free"]);
    assert_eq!(chosen(&asking("200m", 5), &other, &[]).1, ["kept"]);
    let helpless = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(refused(&asking("800m", 5), &s), helpless);
    let nobody = "0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(refused(&asking("200m", 1), &s), nobody);
    let hopeless = "0/1 nodes are available: 1 Preemption is not helpful for scheduling.";
    assert_eq!(refused(&asking("2", 9), &s), hopeless);
    let never = ranked("p", 9, "500m", json!({"preemptionPolicy": "Never"}));
    assert_eq!(refused(&never, &s), "not eligible due to preemptionPolicy=Never.");
    // Not only room: ports, spread, claims.
    let ports = |name: &str| json!({"containers": [{"name": name, "ports": [{"containerPort": 1, "hostPort": 80}]}]});
    let mut s = snapshot(&[("a", json!({}))]);
    s.place(ranked("port", 0, "0", ports("c")), "a", false);
    assert_eq!(chosen(&ranked("p", 1, "0", ports("c")), &s, &[]).1, ["port"]);
}

#[test]
fn spread_and_claims_are_made_room_for_too() {
    let mut s = Snapshot::default();
    for (name, zone) in [("a", "z1"), ("b", "z2")] {
        sized(&mut s, name, zone, "1");
    }
    let full = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
    s.place(labelled("one", json!({})), "a", false);
    s.place(pod("full", full), "b", false);
    // Zone 2 is full and zone 1 has one already: whoever goes of either, it is the one that lets the pod in.
    let mut spec = json!(bound("p", &[json!({})]).pod.spec);
    spec["priority"] = 1.into();
    spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
    assert_eq!(chosen(&labelled("p", spec.clone()), &s, &[]), ("a".into(), vec!["one".into()]));
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": "b"});
    assert_eq!(chosen(&labelled("p", spec), &s, &[]), ("b".into(), vec!["full".into()]));

    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    put_class(&mut s, "e.com/p", LATER);
    put_claim(&mut s, "c", json!({}), json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": "k"}));
    s.place(claiming("user", &["c"]), "b", false);
    let mut spec = json!(claiming("p", &["c"]).pod.spec);
    spec["priority"] = 1.into();
    assert_eq!(chosen(&pod("p", spec), &s, &[]), ("b".into(), vec!["user".into()]));
}

#[test]
fn who_waits_for_room_counts_where_it_is_made_and_has_no_others_removed() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({"unschedulable": true}))]);
    let victim = running("victim", 1, "600m", "x", 1);
    s.place(victim.clone(), "a", false);
    s.place(running("other", 2, "400m", "x", 1), "a", false);
    let preemptor = ranked("p", 5, "500m", json!({}));
    assert_eq!(chosen(&preemptor, &s, &[]).1, ["victim"]);
    s.nominations.put(preemptor.clone(), "a".into());
    s.nominations.doom("victim");
    assert_eq!(refused(&preemptor, &s), "not eligible due to a terminating pod on the nominated node.");
    s.remove_pod(&victim.key);
    // 600m are free, and 500m of it somebody else's, but not for who is more important.
    assert!(decide(&ranked("equal", 5, "200m", json!({})), &s).is_err());
    assert!(decide(&ranked("equal", 5, "100m", json!({})), &s).is_ok());
    assert!(decide(&ranked("higher", 6, "200m", json!({})), &s).is_ok());
    assert_eq!(&*decide(&preemptor, &s).unwrap(), "a", "it does not count against itself");
    // Nominated where it cannot be any more, it may have others removed elsewhere.
    s.nominations.put(preemptor.clone(), "b".into());
    s.place(running("again", 1, "600m", "x", 1), "a", false);
    s.nominations.doom("again");
    assert_eq!(chosen(&preemptor, &s, &[]).1, ["again"]);
    // Whoever is on a node is nominated for none.
    s.place(preemptor.clone(), "a", true);
    assert_eq!(s.nominations.node_of(&preemptor.key), None);
}

/// A pod of a random cluster, as the reference knows it.
#[derive(Clone, Debug)]
struct Plain {
    priority: i32,
    cpu: i64,
    port: bool,
    group: usize,
    start: i64,
}

fn plain() -> impl Strategy<Value = Plain> {
    let fields = (0..4i32, 0..4i64, proptest::bool::weighted(0.2), 0..3usize, 1..4i64);
    fields.prop_map(|(priority, cpu, port, group, start)| Plain { priority, cpu, port, group, start })
}

impl Plain {
    fn view(&self, name: &str) -> Arc<PodView> {
        let base = running(name, self.priority, &self.cpu.to_string(), &format!("g{}", self.group), self.start);
        let mut value = base.object.value();
        if self.port {
            value["spec"]["containers"][0]["ports"] = json!([{"containerPort": 1, "hostPort": 80}]);
        }
        Arc::new(PodView::new(&Arc::new(Object::new(name.into(), 1, &value, Box::default()))).unwrap())
    }
}

type Named = (String, Plain);

/// Whether a pod can be beside others, on a node with four processors and room for five pods.
fn fits(pod: &Plain, others: &[&Plain]) -> bool {
    let used: i64 = others.iter().map(|other| other.cpu).sum();
    let has_room = pod.cpu == 0 || pod.cpu <= 4 - used;
    has_room && others.len() < 5 && !(pod.port && others.iter().any(|other| other.port))
}

/// The same with those who are nominated there, and without them.
fn does(pod: &Plain, others: &[&Plain], nominated: &[&Plain]) -> bool {
    let both: Vec<&Plain> = others.iter().chain(nominated).copied().collect();
    fits(pod, &both) && fits(pod, others)
}

/// Who would go from one node, and how many against their budgets; straight from the description of the algorithm.
fn victims_of(pod: &Plain, node: &[Named], waiting: &[&Plain], allowed: &[i64]) -> Option<(Vec<Named>, usize)> {
    let mut lower: Vec<&Named> = node.iter().filter(|(_, other)| other.priority < pod.priority).collect();
    let mut stay: Vec<&Plain> =
        node.iter().filter(|(_, other)| other.priority >= pod.priority).map(|(_, other)| other).collect();
    if lower.is_empty() || !does(pod, &stay, waiting) {
        return None;
    }
    lower.sort_by_key(|(name, other)| (-other.priority, other.start, name.clone()));
    let mut left = allowed.to_vec();
    let mut violating = BTreeSet::new();
    for (name, other) in &lower {
        left[other.group] -= 1;
        if left[other.group] < 0 {
            violating.insert(name.clone());
        }
    }
    let (mut victims, mut violations) = (Vec::new(), 0);
    for of_violating in [true, false] {
        for named in lower.iter().filter(|(name, _)| violating.contains(name) == of_violating) {
            stay.push(&named.1);
            if !does(pod, &stay, waiting) {
                stay.pop();
                victims.push((*named).clone());
                violations += usize::from(of_violating);
            }
        }
    }
    victims.sort_by_key(|(name, other)| (-other.priority, other.start, name.clone()));
    (!victims.is_empty()).then_some((victims, violations))
}

/// The node and the victims that the reference chooses, rule by rule.
fn reference(
    pod: &Plain,
    nodes: &[Vec<Named>],
    waiting: &[Vec<Plain>],
    allowed: &[i64],
) -> Option<(usize, Vec<String>)> {
    let of = |i: usize| {
        let waiting: Vec<&Plain> = waiting[i].iter().filter(|other| other.priority >= pod.priority).collect();
        victims_of(pod, &nodes[i], &waiting, allowed).map(|(victims, violations)| (i, victims, violations))
    };
    let mut left: Vec<_> = (0..nodes.len()).filter_map(of).collect();
    type Rule = fn(&(usize, Vec<Named>, usize)) -> i64;
    let rules: [Rule; 5] = [
        |c| c.2 as i64,
        |c| c.1.iter().map(|(_, v)| i64::from(v.priority)).max().unwrap(),
        |c| c.1.iter().map(|(_, v)| i64::from(v.priority) + (1 << 31)).sum(),
        |c| c.1.len() as i64,
        |c| {
            let highest = c.1.iter().map(|(_, v)| v.priority).max().unwrap();
            -c.1.iter().filter(|(_, v)| v.priority == highest).map(|(_, v)| v.start).min().unwrap()
        },
    ];
    for rule in rules {
        let least = left.iter().map(rule).min()?;
        left.retain(|candidate| rule(candidate) == least);
    }
    let (node, victims, _) = left.swap_remove(0);
    Some((node, victims.into_iter().map(|(name, _)| name).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn victims_are_those_of_the_reference(
        nodes in proptest::collection::vec(proptest::collection::vec(plain(), 0..6), 1..4),
        waiting in proptest::collection::vec((0..3usize, plain()), 0..3),
        allowed in proptest::collection::vec(0..2i64, 3),
        incoming in plain(),
    ) {
        let names: Vec<String> = (0..nodes.len()).map(|i| format!("node{i}")).collect();
        let mut s = Snapshot::default();
        for name in &names {
            let value = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "4", "pods": "5"}}});
            s.put_node(&Arc::new(Object::new(name.as_str().into(), 1, &value, Box::default())));
        }
        let mut named = Vec::new();
        for (i, pods) in nodes.iter().enumerate() {
            named.push(pods.iter().enumerate().map(|(k, p)| (format!("p{i}{k}"), p.clone())).collect::<Vec<Named>>());
            for (name, p) in &named[i] {
                s.place(p.view(name), &names[i], false);
            }
        }
        let mut nominated = vec![Vec::new(); nodes.len()];
        for (k, (on, p)) in waiting.iter().enumerate().filter(|(_, (on, _))| *on < nodes.len()) {
            nominated[*on].push(p.clone());
            s.nominations.put(p.view(&format!("w{k}")), names[*on].as_str().into());
        }
        let budgets: Vec<Value> = allowed.iter().enumerate().map(|(i, n)| budget(&format!("g{i}"), *n, &[])).collect();
        let pod = incoming.view("incoming");
        let finds = (0..nodes.len()).any(|i| {
            let others: Vec<&Plain> = named[i].iter().map(|(_, p)| p).collect();
            let waiting: Vec<&Plain> = nominated[i].iter().filter(|p| p.priority >= incoming.priority).collect();
            does(&incoming, &others, &waiting)
        });
        let decided = decide(&pod, &s);
        prop_assert_eq!(decided.is_ok(), finds);
        let Err(why) = decided else { return Ok(()) };
        let verdict = preempt(&pod, &s, &why, &budgets, Timestamp::from_second(1000).unwrap(), 0);
        let expected = reference(&incoming, &named, &nominated, &allowed);
        let got = match verdict {
            Verdict::Room(candidate) => {
                prop_assert!(candidate.victims.iter().all(|v| v.priority < incoming.priority));
                let node = names.iter().position(|name| **name == *candidate.node).unwrap();
                Some((node, candidate.victims.iter().map(|v| v.key.name.to_string()).collect()))
            }
            _ => None,
        };
        prop_assert_eq!(got, expected);
    }
}

/// A cluster with nodes of one processor, and the scheduler.
async fn cluster(nodes: &[&str]) -> Arc<dyn Client> {
    let client: Arc<dyn Client> = in_memory::client();
    client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
    client.create(&serviceaccount::KIND, "n", json!({"metadata": {"name": "default"}})).await.unwrap();
    for (class, value) in [("low", 1), ("middle", 100), ("high", 1000)] {
        let object = json!({"metadata": {"name": class}, "value": value});
        client.create(&crate::kinds::scheduling::priorityclass::KIND, "", object).await.unwrap();
    }
    for name in nodes {
        let status = json!({"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "9"}});
        client.create(&node::KIND, "", json!({"metadata": {"name": name}, "status": status})).await.unwrap();
    }
    let tasks = crate::scheduler::start(client.clone(), Clock::system());
    drop(tasks);
    client
}

async fn create(client: &Arc<dyn Client>, name: &str, class: &str, cpu: &str, node: &str) {
    let resources = json!({"requests": {"cpu": cpu}});
    let mut spec =
        json!({"priorityClassName": class, "containers": [{"name": "c", "image": "i", "resources": resources}]});
    if !node.is_empty() {
        spec["nodeSelector"] = json!({});
        spec["nodeName"] = node.into();
    }
    client.create(&pod::KIND, "n", json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
}

fn value_of(client: &Arc<dyn Client>, name: &str) -> Value {
    client.informer(&pod::KIND).get("n", name).map_or(Value::Null, |object| object.value())
}

async fn end(client: &Arc<dyn Client>, name: &str) {
    let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    client.delete(&pod::KIND, "n", name, options).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
}

fn events(client: &Arc<dyn Client>, reason: &str) -> Vec<String> {
    let all = client.informer(&event::KIND).list("n").into_iter().map(|o| o.value());
    let of = all.filter(|e| e["reason"] == reason);
    of.map(|e| format!("{}: {}", e["involvedObject"]["name"].as_str().unwrap(), e["message"].as_str().unwrap()))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_lower_priority_ends_gracefully_for_one_of_a_higher() {
    let client = cluster(&["a", "b"]).await;
    create(&client, "low", "low", "600m", "a").await;
    create(&client, "middle", "middle", "600m", "b").await;
    create(&client, "high", "high", "600m", "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (low, high) = (value_of(&client, "low"), value_of(&client, "high"));
    assert_eq!(low["metadata"]["deletionGracePeriodSeconds"], 30);
    let conditions = low["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    assert_eq!(target["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    assert!(value_of(&client, "middle")["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(high["status"]["nominatedNodeName"], "a");
    let message = "0/2 nodes are available: 2 Insufficient cpu.";
    assert_eq!(high["status"]["conditions"][0]["message"], message);
    let uid = high["metadata"]["uid"].as_str().unwrap();
    assert_eq!(events(&client, "Preempted"), [format!("low: Preempted by pod {uid} on node a")]);
    assert_eq!(events(&client, "FailedScheduling"), [format!("high: {message}")]);

    // While it ends, nobody else goes, whatever happens; and one of lower priority does not take the room.
    create(&client, "late", "middle", "200m", "").await;
    let labels = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
    client.patch(&node::KIND, "", "b", None, labels).await.unwrap();
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(value_of(&client, "middle")["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(value_of(&client, "late")["spec"]["nodeName"], "b");
    end(&client, "low").await;
    let high = value_of(&client, "high");
    assert_eq!(high["spec"]["nodeName"], "a");
    assert_eq!(high["status"].get("nominatedNodeName"), None, "it is there");
}

#[tokio::test(start_paused = true)]
async fn who_is_nominated_gives_way_to_a_higher_priority_and_looks_elsewhere() {
    let client = cluster(&["a"]).await;
    create(&client, "low", "low", "1", "a").await;
    create(&client, "middle", "middle", "1", "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(value_of(&client, "middle")["status"]["nominatedNodeName"], "a");
    create(&client, "high", "high", "1", "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(value_of(&client, "high")["status"]["nominatedNodeName"], "a");
    assert_eq!(value_of(&client, "middle")["status"].get("nominatedNodeName"), None);
    end(&client, "low").await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(value_of(&client, "high")["spec"]["nodeName"], "a");
    let middle = value_of(&client, "middle");
    assert_eq!(middle["spec"].get("nodeName"), None);
    assert!(value_of(&client, "high")["metadata"]["deletionTimestamp"].is_null());
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims \
                   found for incoming pod.";
    assert_eq!(middle["status"]["conditions"][0]["message"], message);
    // The nominated pod is gone: its room is anybody's.
    end(&client, "high").await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(value_of(&client, "middle")["spec"]["nodeName"], "a");
}

#[tokio::test(start_paused = true)]
async fn somebody_else_may_take_a_nomination_back() {
    let client = cluster(&["a"]).await;
    create(&client, "low", "low", "1", "a").await;
    create(&client, "high", "high", "1", "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(value_of(&client, "high")["status"]["nominatedNodeName"], "a");
    create(&client, "middle", "middle", "1", "").await;
    end(&client, "high").await;
    end(&client, "low").await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(value_of(&client, "middle")["spec"]["nodeName"], "a", "who is gone keeps no room");
    let status = Patch::Strategic(json!({"status": {"nominatedNodeName": "a"}}));
    create(&client, "other", "middle", "1", "").await;
    client.patch(&pod::KIND, "n", "other", Some(Subresource::Status), status).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    create(&client, "small", "low", "0", "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(value_of(&client, "small")["spec"]["nodeName"], "a");
    assert!(client.informer(&pod::KIND).get("n", "other").is_some_and(|o| Key::of(&o) == Key::new("n", "other")));
}
