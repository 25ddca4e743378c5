//! Decisions about single pods, and the queue over time.

mod between;
mod preemption;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::decide::{self, Unschedulable, scores};
use super::plugins::{Cycle, Plugin, image, spread};
use super::preempt::{self, Verdict};
use super::queue::Queue;
use super::snapshot::{PodView, Snapshot};
use super::volumes::{Progress, Promise};
use crate::api::in_memory;
use crate::apimachinery::resources;
use crate::base::clock::Clock;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::core::{namespace, node, pod, serviceaccount};
use crate::reconcile::Client;

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
    decide::decide(pod, snapshot, 0, Selector::default).map(|decision| decision.node)
}

/// What is told of a pod that finds no node, and for which nobody goes.
fn why(pod: &PodView, snapshot: &Snapshot) -> String {
    let Err(why) = decide(pod, snapshot) else { panic!("it was placed") };
    if snapshot.nodes.is_empty() {
        return why.message;
    }
    match preempt::preempt(pod, snapshot, &why, &[], jiff::Timestamp::UNIX_EPOCH, 0) {
        Verdict::Hopeless(reason) => format!("{} preemption: {reason}", why.message),
        other => panic!("{other:?}"),
    }
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
            let node = decide::decide(&view, &s, 0, alike).unwrap().node;
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
fn in_a_large_cluster_some_of_the_nodes_are_enough_and_each_gets_its_turn() {
    let mut s = Snapshot::default();
    for n in 0..300 {
        sized(&mut s, &format!("n{n:03}"), "", "4");
    }
    let looked =
        |s: &Snapshot, first: usize| decide::decide(&pod("p", json!({})), s, first, Selector::default).unwrap();
    let first = looked(&s, 0);
    assert_eq!((&*first.node, first.looked_at), ("n000", 144), "50 - 300 / 125 per cent");
    let next = looked(&s, 144);
    assert_eq!((&*next.node, next.looked_at), ("n144", 144));
    // It goes on at the beginning.
    for n in 288..300 {
        s.remove_node(&format!("n{n}"));
        sized(&mut s, &format!("n{n}"), "", "0");
    }
    let last = decide::decide(&pod("p", asks("1")), &s, 288, Selector::default).unwrap();
    assert_eq!((&*last.node, last.looked_at), ("n000", 12 + 144));
    // However few would do, they are found.
    let one = json!({"nodeSelector": {"kubernetes.io/hostname": "n299"}});
    let only = decide::decide(&pod("p", one), &s, 0, Selector::default).unwrap();
    assert_eq!((&*only.node, only.looked_at), ("n299", 300));
}

#[test]
fn nodes_that_have_the_images_are_better() {
    let mut s = Snapshot::default();
    for (name, images) in
        [("a", json!([])), ("b", json!([{"names": ["r/i:latest", "r/i@sha256:0"], "sizeBytes": 523 << 20}]))]
    {
        let value = json!({"metadata": {"name": name}, "status": {"images": images}});
        s.put_node(&Arc::new(Object::new(name.into(), 1, &value, Box::default())));
    }
    let rates = |s: &Snapshot, images: &[&str]| -> Option<Vec<i64>> {
        let containers: Vec<Value> = images.iter().map(|image| json!({"name": "c", "image": image})).collect();
        let pod = pod("p", json!({"containers": containers}));
        let cycle = Cycle { pod: &pod, snapshot: s, alike: Selector::default() };
        let nodes: Vec<_> = s.nodes.values().collect();
        let rating = image::ImageLocality.pre_score(&cycle, &nodes)?;
        Some(nodes.iter().map(|node| rating.score(node)).collect())
    };
    // 523 MB on one of two nodes are 261.5 MB, of 23 to 1000 for each container.
    assert_eq!(rates(&s, &["r/i"]), Some(vec![0, 24]));
    assert_eq!(rates(&s, &["r/i:latest", "other"]), Some(vec![0, 12]));
    assert_eq!(rates(&s, &["r/i@sha256:0"]), Some(vec![0, 24]));
    assert_eq!(rates(&s, &["r/i:1"]), None);
    s.remove_node("b");
    assert_eq!(rates(&s, &["r/i"]), None, "whoever has it is gone");
}

/// Constraints of a pod with the label `app=a`, over zones unless they say otherwise.
fn bound(name: &str, constraints: &[Value]) -> Arc<PodView> {
    let whole = |more: &Value| {
        let mut c = json!({"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}});
        c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        c
    };
    let all: Vec<Value> = constraints.iter().map(whole).collect();
    labelled(name, json!({"containers": [{"name": "c"}], "topologySpreadConstraints": all}))
}

#[test]
fn no_domain_gets_more_pods_than_the_emptiest_by_more_than_the_skew() {
    let mut s = Snapshot::default();
    for (name, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2"), ("d", "")] {
        sized(&mut s, name, zone, "4");
    }
    let mut zones = Vec::new();
    for i in 0..6 {
        let view = bound(&format!("p{i}"), &[json!({})]);
        let node = decide(&view, &s).unwrap();
        zones.push(if &*node == "c" { 2 } else { 1 });
        s.place(view, &node, true);
        let twos = zones.iter().filter(|z| **z == 2).count();
        assert!(twos.abs_diff(zones.len() - twos) <= 1, "{zones:?}");
    }
    // Three in each zone; the node without a zone is never one.
    s.place(labelled("more", json!({})), "a", false);
    assert_eq!(&*decide(&bound("p", &[json!({})]), &s).unwrap(), "c");
    let full = json!({"nodeSelector": {"kubernetes.io/hostname": "a"}});
    let mut spec = json!(bound("p", &[json!({"nodeAffinityPolicy": "Ignore"})]).pod.spec);
    spec["nodeSelector"] = full["nodeSelector"].clone();
    assert_eq!(
        why(&labelled("p", spec), &s),
        "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints, 3 node(s) didn't match Pod's node \
         affinity/selector. preemption: 0/4 nodes are available: 1 No preemption victims found for incoming pod, 3 Preemption \
         is not helpful for scheduling."
    );
    // By default only the nodes count that the pod may go to: of one zone alone, it is the emptiest.
    let mut spec = json!(bound("p", &[json!({})]).pod.spec);
    spec["nodeSelector"] = full["nodeSelector"].clone();
    assert_eq!(&*decide(&labelled("p", spec.clone()), &s).unwrap(), "a");
    // Unless there ought to be more domains.
    spec["topologySpreadConstraints"][0]["minDomains"] = 2.into();
    assert!(why(&labelled("p", spec), &s).contains("1 node(s) didn't match pod topology spread constraints,"));
    let by_disk = why(&bound("p", &[json!({"topologyKey": "disk"})]), &s);
    assert!(
        by_disk.contains("4 node(s) didn't match pod topology spread constraints (missing required label)"),
        "{by_disk}"
    );
    // Others do not count: not those of another label, not those that are ending, and who is not selected itself may go anywhere.
    let other = bound("p", &[json!({"labelSelector": {"matchLabels": {"app": "b"}}})]);
    assert!(decide(&other, &s).is_ok());
    assert!(decide(&bound("p", &[json!({"labelSelector": null})]), &s).is_ok());
}

#[test]
fn each_of_several_constraints_holds_and_ending_pods_make_room() {
    let mut s = Snapshot::default();
    for (name, zone) in [("a", "z1"), ("b", "z2")] {
        sized(&mut s, name, zone, "4");
    }
    let ending = json!({"metadata": {"name": "e", "namespace": "n", "uid": "e", "labels": {"app": "a", "v": "1"},
        "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": [{"name": "c"}]}});
    let ending = PodView::new(&Arc::new(Object::new("e".into(), 1, &ending, Box::default()))).unwrap();
    s.place(Arc::new(ending), "a", false);
    let hostname = json!({"topologyKey": "kubernetes.io/hostname", "maxSkew": 2});
    let two = [json!({}), hostname.clone()];
    assert_eq!(&*decide(&bound("p", &two), &s).unwrap(), "b", "fewest pods; who is ending counts for room alone");
    s.place(bound("q", &[]), "a", false);
    assert_eq!(&*decide(&bound("p", &two), &s).unwrap(), "b");
    s.place(bound("r", &[]), "b", false);
    s.place(bound("t", &[]), "b", false);
    assert_eq!(&*decide(&bound("p", &two), &s).unwrap(), "a");
    let repelled = json!({"metadata": {"name": "c", "labels": {"kubernetes.io/hostname": "c", "topology.kubernetes.io/zone": "z3"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
        "status": {"allocatable": {"cpu": "4", "memory": "1Gi", "pods": "9"}}});
    s.put_node(&Arc::new(Object::new("c".into(), 1, &repelled, Box::default())));
    // An empty zone that it cannot go to counts, unless taints are honoured.
    assert!(decide(&bound("p", &[json!({})]), &s).is_err());
    assert_eq!(&*decide(&bound("p", &[json!({"nodeTaintsPolicy": "Honor"})]), &s).unwrap(), "a");
    // Only pods of the same revision, by the label that is named.
    let keys = json!({"matchLabelKeys": ["app", "none"], "nodeTaintsPolicy": "Honor"});
    assert_eq!(&*decide(&bound("p", &[keys]), &s).unwrap(), "a");
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
    assert!(names(&mut q, now + Duration::from_secs(60)).is_empty(), "nothing that they wait for has changed");
    q.stir(Some(&["NodeResourcesFit"]), now);
    assert_eq!(q.next_at(), Some(now + Duration::from_secs(1)));
    assert!(names(&mut q, now).is_empty());
    assert_eq!(names(&mut q, now + Duration::from_secs(1)).len(), 2);
    q.put(pod("gated", json!({})), false, now);
    assert_eq!(names(&mut q, now).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_its_domain_goes_on_when_others_have_filled_up() {
    let client: Arc<dyn Client> = in_memory::client();
    client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
    client.create(&serviceaccount::KIND, "n", json!({"metadata": {"name": "default"}})).await.unwrap();
    for (name, zone, cordoned) in [("a", "z1", false), ("b", "z2", true)] {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        let status = json!({"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "9"}});
        let object = json!({"metadata": {"name": name, "labels": labels}, "spec": {"unschedulable": cordoned}, "status": status});
        client.create(&node::KIND, "", object).await.unwrap();
    }
    let _tasks = super::start(client.clone(), Clock::system());
    let create = async |view: Arc<PodView>, node: &str| {
        let mut spec = json!(view.pod.spec);
        spec["nodeName"] = node.into();
        spec["containers"][0]["image"] = "i".into();
        let object = json!({"metadata": {"name": &*view.key.name, "labels": {"app": "a"}}, "spec": spec});
        client.create(&pod::KIND, "n", object).await.unwrap();
    };
    let node_of = |name: &str| {
        let object = client.informer(&pod::KIND).get("n", name).unwrap();
        json!(object.typed::<Pod>().unwrap().spec)["nodeName"].as_str().unwrap_or_default().to_owned()
    };
    create(bound("first", &[json!({})]), "").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    create(bound("second", &[json!({})]), "").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!((node_of("first"), node_of("second")), ("a".to_owned(), String::new()), "the empty zone is cordoned");
    // Somebody else's pod comes to that zone.
    create(bound("other", &[]), "b").await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(node_of("second"), "a");
}

/// A pod with these claims.
fn claiming(name: &str, claims: &[&str]) -> Arc<PodView> {
    let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
    pod(name, json!({"volumes": claims.iter().map(volume).collect::<Vec<Value>>()}))
}

fn put_claim(s: &mut Snapshot, name: &str, notes: Value, spec: Value) {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let metadata = json!({"name": name, "namespace": "n", "uid": name, "annotations": notes});
    let object = Arc::new(Object::new(name.into(), 1, &json!({"metadata": metadata, "spec": all}), Box::default()));
    s.volumes.put_claim(&crate::reconcile::Key::new("n", name), Some(&object));
}

/// A volume of the class `k` on one node, for whoever.
fn put_volume(s: &mut Snapshot, name: &str, node: &str, of: Value) {
    let expression = json!({"key": "name", "operator": "In", "values": [node]});
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "storageClassName": "k",
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
    });
    spec.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
    let value = json!({"metadata": {"name": name}, "spec": spec, "status": {"phase": "Available"}});
    let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
    s.volumes.put_volume(name, Some(&object));
}

fn put_class(s: &mut Snapshot, provisioner: &str, mode: &str) {
    let class = json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode});
    s.volumes.put_class("k", Some(&Arc::new(Object::new("k".into(), 1, &class, Box::default()))));
}

const LATER: &str = "WaitForFirstConsumer";

#[test]
fn a_pod_waits_for_claims_that_are_not_there_or_have_no_volume_of_their_own() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    let preemption = "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    let why_of = |s: &Snapshot| {
        let all = why(&claiming("p", &["c"]), s);
        let rest = all.strip_prefix("0/2 nodes are available: ").unwrap().strip_suffix(preemption).unwrap().to_owned();
        rest.trim_end().to_owned()
    };
    assert_eq!(why_of(&s), "persistentvolumeclaim \"c\" not found.");
    put_claim(&mut s, "c", json!({}), json!({}));
    assert_eq!(why_of(&s), "pod has unbound immediate PersistentVolumeClaims.");
    put_class(&mut s, "e.com/p", "Immediate");
    put_claim(&mut s, "c", json!({}), json!({"storageClassName": "k"}));
    assert_eq!(why_of(&s), "pod has unbound immediate PersistentVolumeClaims.");
    put_class(&mut s, "kubernetes.io/no-provisioner", LATER);
    assert_eq!(why_of(&s), "2 node(s) didn't find available persistent volumes to bind.");
    put_class(&mut s, "e.com/p", LATER);
    decide(&claiming("p", &["c"]), &s).unwrap();
}

#[test]
fn a_pod_goes_where_its_volumes_are_or_can_be() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    put_class(&mut s, "kubernetes.io/no-provisioner", LATER);
    put_claim(&mut s, "c", json!({}), json!({"storageClassName": "k"}));
    put_volume(&mut s, "on-b", "b", json!({}));
    let p = claiming("p", &["c"]);
    assert_eq!(&*decide(&p, &s).unwrap(), "b");
    let promises = s.volumes.plan(p.claimant(), &s.nodes["b"].object).unwrap();
    assert!(matches!(&promises[..], [Promise::Bind { volume, .. }] if &*volume.meta.name == "on-b"));
    // What is promised is not promised again, and is its own claim's still.
    s.volumes.keep(&promises);
    put_claim(&mut s, "d", json!({}), json!({"storageClassName": "k"}));
    assert!(why(&claiming("q", &["d"]), &s).contains("didn't find available persistent volumes"));
    assert_eq!(&*decide(&p, &s).unwrap(), "b");
    assert_eq!(s.volumes.progress(p.claimant(), s.nodes.get("b").map(|n| &*n.object)), Progress::Waiting);
    s.volumes.take_back(&promises);
    assert_eq!(&*decide(&claiming("q", &["d"]), &s).unwrap(), "b");
    // Two claims of one pod do not get one volume.
    assert!(why(&claiming("r", &["c", "d"]), &s).contains("didn't find available persistent volumes"));
    // Bound, it is where it is.
    let notes = json!({"pv.kubernetes.io/bind-completed": "yes"});
    put_claim(&mut s, "c", notes, json!({"storageClassName": "k", "volumeName": "on-b"}));
    assert_eq!(&*decide(&p, &s).unwrap(), "b");
    assert_eq!(s.volumes.progress(p.claimant(), s.nodes.get("b").map(|n| &*n.object)), Progress::Bound);
    assert!(matches!(s.volumes.progress(p.claimant(), s.nodes.get("a").map(|n| &*n.object)), Progress::Failed(_)));
    s.remove_node("b");
    assert!(why(&p, &s).contains("1 node(s) didn't match PersistentVolume's node affinity"));
}

#[test]
fn a_claim_whose_volume_is_being_made_keeps_its_pods_on_one_node() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    put_class(&mut s, "e.com/p", LATER);
    put_claim(&mut s, "c", json!({}), json!({"storageClassName": "k"}));
    let p = claiming("p", &["c"]);
    let promises = s.volumes.plan(p.claimant(), &s.nodes["b"].object).unwrap();
    assert!(matches!(&promises[..], [Promise::Provision { node, .. }] if &**node == "b"));
    s.volumes.keep(&promises);
    assert_eq!(&*decide(&claiming("q", &["c"]), &s).unwrap(), "b", "it was chosen");
    let of_class = json!({"storageClassName": "k"});
    put_claim(&mut s, "c", json!({"volume.kubernetes.io/selected-node": "b"}), of_class.clone());
    assert_eq!(s.volumes.progress(p.claimant(), s.nodes.get("b").map(|n| &*n.object)), Progress::Waiting);
    assert_eq!(&*decide(&claiming("q", &["c"]), &s).unwrap(), "b");
    // Whoever makes it has given up: it is decided anew.
    put_claim(&mut s, "c", json!({}), of_class);
    assert!(matches!(s.volumes.progress(p.claimant(), s.nodes.get("b").map(|n| &*n.object)), Progress::Failed(_)));
}

#[test]
fn what_one_pod_alone_may_have_is_one_pods() {
    let mut s = snapshot(&[("a", json!({})), ("b", json!({}))]);
    put_class(&mut s, "e.com/p", LATER);
    let spec = json!({"accessModes": ["ReadWriteOncePod"], "storageClassName": "k"});
    put_claim(&mut s, "c", json!({}), spec);
    s.place(claiming("p", &["c"]), "a", false);
    let message = why(&claiming("q", &["c"]), &s);
    assert!(message.contains("2 node has pod using PersistentVolumeClaim with the same name"), "{message}");
    s.remove_pod(&claiming("p", &["c"]).key);
    decide(&claiming("q", &["c"]), &s).unwrap();
}
