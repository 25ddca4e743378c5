//! Decisions about single pods, and the queue over time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::decide::{self, Unschedulable, scores};
use super::plugins::{Cycle, Plugin, spread};
use super::queue::Queue;
use super::resources;
use super::snapshot::{PodView, Snapshot};
use crate::base::labels::Selector;
use crate::base::object::Object;

fn pod(name: &str, spec: Value) -> Arc<PodView> {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": spec});
    Arc::new(PodView::new(&Arc::new(Object::new(name.into(), 1, &value, Box::default()))).unwrap())
}

fn asks(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

fn snapshot(nodes: &[(&str, Value)]) -> Snapshot {
    let mut out = Snapshot::default();
    for (name, more) in nodes {
        let mut value = json!({"metadata": {"name": name, "labels": {"name": name}}, "spec": {},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "3"}}});
        value["spec"] = more.clone();
        out.put_node(&Arc::new(Object::new((*name).into(), 1, &value, Box::default())));
    }
    out
}

/// A decision about a pod that nothing else is like.
fn decide(pod: &PodView, snapshot: &Snapshot) -> Result<Arc<str>, Unschedulable> {
    decide::decide(pod, snapshot, Selector::default)
}

fn why(pod: &PodView, snapshot: &Snapshot) -> String {
    let Err(Unschedulable { message, .. }) = decide(pod, snapshot) else { panic!("it was placed") };
    message
}

#[test]
fn refusals_read_as_in_kubernetes() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({"unschedulable": true}))]);
    assert_eq!(
        why(&pod("p", asks("2")), &s),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: \
         2 Preemption is not helpful for scheduling."
    );
    s.place(pod("big", asks("800m")), "a", false);
    assert_eq!(
        why(&pod("p", asks("500m")), &s),
        "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable. preemption: 0/2 nodes are available: \
         1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
    );
    assert_eq!(why(&pod("p", json!({})), &Snapshot::default()), "no nodes available to schedule pods");
    let taints = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let message = why(&pod("p", json!({})), &snapshot(&[("a", taints)]));
    assert!(message.starts_with("0/1 nodes are available: 1 node(s) had untolerated taint {k: v}."), "{message}");
    let message = why(&pod("p", json!({"nodeSelector": {"x": "y"}})), &snapshot(&[("a", json!({}))]));
    assert!(message.contains("1 node(s) didn't match Pod's node affinity/selector"), "{message}");
}

#[test]
fn pods_spread_over_equal_nodes_and_respect_counts_and_ports() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    for i in 0..6 {
        let view = pod(&format!("p{i}"), json!({}));
        let node = decide(&view, &s).unwrap();
        assert_eq!(&*node, ["a", "b"][i % 2]);
        s.place(view, &node, true);
    }
    assert!(why(&pod("p", json!({})), &s).contains("2 Too many pods"));
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]});
    let mut s = snapshot(&[("a", json!({}))]);
    s.place(pod("first", port.clone()), "a", false);
    assert!(why(&pod("second", port.clone()), &s).contains("didn't have free ports"));
    s.remove_pod(&pod("first", json!({})).key);
    assert!(decide(&pod("second", port), &s).is_ok());
}

fn labelled(name: &str, spec: Value) -> Arc<PodView> {
    let value = json!({
        "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "a"}},
        "spec": if spec.get("containers").is_some() { spec } else { json!({"containers": [{"name": "c"}]}) },
    });
    Arc::new(PodView::new(&Arc::new(Object::new(name.into(), 1, &value, Box::default()))).unwrap())
}

/// A node with its labels and size.
fn sized(s: &mut Snapshot, name: &str, zone: &str, cpu: &str) {
    let mut labels = json!({"kubernetes.io/hostname": name});
    if !zone.is_empty() {
        labels["topology.kubernetes.io/zone"] = zone.into();
    }
    let value = json!({"metadata": {"name": name, "labels": labels}, "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "110"}}});
    s.put_node(&Arc::new(Object::new(name.into(), 1, &value, Box::default())));
}

fn alike() -> Selector {
    Selector::parse("app=a").unwrap()
}

#[test]
fn replicas_go_to_different_nodes_although_one_has_more_room() {
    let mut s = Snapshot::default();
    sized(&mut s, "large", "", "64");
    sized(&mut s, "middle", "", "4");
    sized(&mut s, "small", "", "2");
    for (i, asked) in [asks("100m"), json!({})].into_iter().enumerate() {
        let mut nodes = BTreeSet::new();
        for n in 0..3 {
            let view = labelled(&format!("p{i}{n}"), asked.clone());
            let node = decide::decide(&view, &s, alike).unwrap();
            s.place(view.clone(), &node, true);
            nodes.insert(node);
        }
        assert_eq!(nodes.len(), 3, "{nodes:?}");
        for n in 0..3 {
            s.remove_pod(&labelled(&format!("p{i}{n}"), json!({})).key);
        }
    }
}

#[test]
fn spreading_is_rated_with_the_arithmetic_of_kubernetes() {
    let mut s = Snapshot::default();
    for (name, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "")] {
        sized(&mut s, name, zone, "4");
    }
    for (i, node) in ["a", "a", "b", "c"].iter().enumerate() {
        s.place(labelled(&format!("p{i}"), json!({})), node, false);
    }
    let view = labelled("new", json!({}));
    let cycle = Cycle { pod: &view, snapshot: &s, alike: alike() };
    let nodes: Vec<_> = s.nodes.values().collect();
    let rating = spread::PodTopologySpread.pre_score(&cycle, &nodes).unwrap();
    let mut rates: Vec<i64> = nodes.iter().map(|n| rating.score(n)).collect();
    // Pods on the node times ln(4 + 2), and 2; pods in the zone times ln(3 + 2), as a node without a zone is one too, and 4.
    assert_eq!(rates, [14, 13, 9, 2]);
    rating.normalize(&nodes, &mut rates);
    assert_eq!(rates, [100 * 2 / 14, 100 * 3 / 14, 100 * 7 / 14, 100 * 14 / 14]);
    let none = Cycle { alike: Selector::default(), ..cycle };
    assert!(spread::PodTopologySpread.pre_score(&none, &nodes).is_none(), "nothing is like it");

    // All considerations together: tolerations 3 x 100, spreading twice, least allocated once; balance says nothing.
    let none = Cycle { pod: &view, snapshot: &s, alike: Selector::default() };
    let cycle = Cycle { pod: &view, snapshot: &s, alike: alike() };
    let (with, without) = (scores(&cycle, &nodes), scores(&none, &nodes));
    let spread: Vec<i64> = with.iter().zip(&without).map(|(a, b)| a - b).collect();
    assert_eq!(spread, [28, 42, 100, 200]);
    // 100m of 4 cores and 200Mi of 64Gi for each pod and the new one: (92 + 99) / 2 where there are two already.
    assert_eq!(without, [300 + 95, 300 + 97, 300 + 97, 300 + 98]);
}

#[test]
fn affinity_and_tolerations_choose_nodes() {
    let taint = json!({"taints": [{"key": "k", "effect": "NoExecute"}]});
    let s = snapshot(&[("a", json!({})), ("b", taint), ("c", json!({}))]);
    let terms = |field: &str, value: &str| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {field: [{"key": if field == "matchFields" { "metadata.name" } else { "name" }, "operator": "In", "values": [value]}]},
        ]}}}})
    };
    assert_eq!(&*decide(&pod("p", terms("matchExpressions", "c")), &s).unwrap(), "c");
    assert_eq!(&*decide(&pod("p", terms("matchFields", "a")), &s).unwrap(), "a");
    assert!(decide(&pod("p", terms("matchFields", "b")), &s).is_err());
    let mut tolerant = terms("matchFields", "b");
    tolerant["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    assert_eq!(&*decide(&pod("p", tolerant), &s).unwrap(), "b");
    let likes = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "name", "operator": "In", "values": ["c"]}]}},
    ]}}});
    assert_eq!(&*decide(&pod("p", likes), &s).unwrap(), "c");
}

#[test]
fn requests_count_sidecars_starts_and_overhead() {
    let one = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
    let mut sidecar = one("100m");
    sidecar["restartPolicy"] = "Always".into();
    let view = pod(
        "p",
        json!({"containers": [one("200m")], "initContainers": [sidecar, one("500m")], "overhead": {"cpu": "10m"}}),
    );
    assert_eq!(resources::requests(&view.pod).get("cpu"), 610);
    let view = pod("p", json!({"containers": [one("200m")], "resources": {"requests": {"cpu": "1"}}}));
    assert_eq!(resources::requests(&view.pod).get("cpu"), 1000);
}

#[tokio::test(start_paused = true)]
async fn pods_wait_for_what_refused_them_and_for_their_turn() {
    let mut q = Queue::default();
    let now = Instant::now();
    q.put(pod("low", json!({"priority": 1})), false, now);
    q.put(pod("high", json!({"priority": 9})), false, now);
    q.put(pod("gated", json!({})), true, now);
    let names = |q: &mut Queue, at: Instant| -> Vec<(Arc<PodView>, u32)> { std::iter::from_fn(|| q.pop(at)).collect() };
    let first = names(&mut q, now);
    assert_eq!(first.iter().map(|(v, n)| (&*v.key.name, *n)).collect::<Vec<_>>(), [("high", 1), ("low", 1)]);
    let fit: BTreeSet<&'static str> = ["NodeResourcesFit"].into();
    for (view, attempts) in first {
        q.unschedulable(view, attempts, fit.clone(), now);
    }
    q.stir(Some(&["NodePorts"]), now);
    assert_eq!(q.next_at(), None);
    q.stir(Some(&["NodeResourcesFit"]), now);
    assert_eq!(q.next_at(), Some(now + Duration::from_secs(1)));
    assert!(names(&mut q, now).is_empty());
    assert_eq!(names(&mut q, now + Duration::from_secs(1)).len(), 2);
    q.put(pod("gated", json!({})), false, now);
    assert_eq!(names(&mut q, now).len(), 1);
}
