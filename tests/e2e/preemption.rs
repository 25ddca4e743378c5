//! Pods of higher priority make room for themselves, on a server's node and on an agent's.

use serde_json::{Value, json};

use crate::cluster::text;
use crate::machines::Machines;

const WIDGET: &str = "example.com/widget";

/// A pod with a priority class that asks for widgets; with a node it is for that one alone.
fn pod(name: &str, class: &str, widgets: u32, node: &str) -> Value {
    let amount = json!({WIDGET: widgets.to_string()});
    let container = json!({
        "name": "hello", "image": "amphipod.local/hello", "resources": {"requests": amount, "limits": amount},
    });
    let mut spec = json!({"priorityClassName": class, "terminationGracePeriodSeconds": 1, "containers": [container]});
    if !node.is_empty() {
        let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
        let terms = json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
        spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}});
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn apply(machines: &Machines, objects: &[Value]) {
    let path = machines.all[0].path("objects.yaml");
    let documents: Vec<String> = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    std::fs::write(&path, documents.concat()).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
}

fn get(machines: &Machines, namespace: &str, name: &str) -> Value {
    let words = ["get", "pod", name, "-n", namespace, "--ignore-not-found", "-o", "json"];
    serde_json::from_str(&machines.kubectl(&words)).unwrap_or(Value::Null)
}

fn is_running_on(machines: &Machines, namespace: &str, name: &str, node: &str) -> bool {
    let pod = get(machines, namespace, name);
    text(&pod, "/status/phase") == "Running" && text(&pod, "/spec/nodeName") == node
}

fn delete(machines: &Machines, names: &[&str]) {
    machines.kubectl(&[&["delete", "pod", "--now"], names].concat());
}

/// Gives both nodes widgets, by their capacity alone, as whoever brings them would.
fn advertise(machines: &Machines) {
    for machine in &machines.all {
        let patch = json!({"status": {"capacity": {WIDGET: "3"}}}).to_string();
        machines.kubectl(&["patch", "node", &machine.name, "--subresource=status", "--type=merge", "-p", &patch]);
        machines.until("they are there for pods", || {
            machines.json(&["get", "node", &machine.name])["status"]["allocatable"][WIDGET] == "3"
        });
    }
}

/// A set of pods with a priority, of which each asks for one widget of a node.
fn set(name: &str, class: &str, replicas: u32, node: &str) -> Value {
    let pod = pod(name, class, 1, node);
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"set": name}},
        "template": {"metadata": {"labels": {"set": name}}, "spec": pod["spec"]}}})
}

fn ready(machines: &Machines, name: &str) -> i64 {
    machines.json(&["get", "replicaset", name])["status"]["readyReplicas"].as_i64().unwrap_or(0)
}

#[test]
fn pods_of_higher_priority_make_room_for_themselves_on_either_node() {
    let machines = Machines::start("preempt", 2);
    let (server, agent) = (machines.all[0].name.clone(), machines.all[1].name.clone());
    let class = |name: &str, value: i64| json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value});
    apply(&machines, &[class("low", 1), class("middle", 100), class("high", 1000)]);
    advertise(&machines);

    // Of two full nodes, the one whose pod matters less is made room on: first the agent's, then the server's.
    for (low, other, preemptor, namespace, priority) in [
        (&agent, &server, "preemptor", "default", "high"),
        (&server, &agent, "critical", "kube-system", "system-node-critical"),
    ] {
        apply(&machines, &[pod("low", "low", 2, low), pod("middle", "middle", 2, other)]);
        machines.until("they run", || {
            is_running_on(&machines, "default", "low", low) && is_running_on(&machines, "default", "middle", other)
        });
        let victim = get(&machines, "default", "low");
        let mut incoming = pod(preemptor, priority, 2, "");
        incoming["metadata"]["namespace"] = namespace.into();
        apply(&machines, &[incoming]);
        machines.until("it has its place", || is_running_on(&machines, namespace, preemptor, low));
        let left = get(&machines, "default", "low");
        assert!(left.is_null() || text(&left, "/metadata/uid") != text(&victim, "/metadata/uid"), "{left}");
        assert!(machines.processes(&victim).is_empty(), "its room is another's once it has ended");
        let middle = get(&machines, "default", "middle");
        assert!(middle["metadata"]["deletionTimestamp"].is_null() && text(&middle, "/status/phase") == "Running");
        let uid = get(&machines, namespace, preemptor);
        let told = machines.kubectl(&["get", "events", "--field-selector=reason=Preempted", "-o", "json"]);
        let message = format!("Preempted by pod {} on node {low}", text(&uid, "/metadata/uid"));
        assert!(told.contains(&message), "{told}");
        delete(&machines, &["middle"]);
        machines.kubectl(&["delete", "pod", preemptor, "-n", namespace, "--now"]);
    }

    // The victim is told why before it ends; a finalizer keeps it to be looked at.
    let mut held = pod("held", "low", 3, &agent);
    held["metadata"]["finalizers"] = json!(["example.com/look"]);
    apply(&machines, &[held]);
    machines.until("it runs", || is_running_on(&machines, "default", "held", &agent));
    apply(&machines, &[pod("high", "high", 1, &agent)]);
    machines.until("it is ending", || !get(&machines, "default", "held")["metadata"]["deletionTimestamp"].is_null());
    let conditions = get(&machines, "default", "held")["status"]["conditions"].as_array().cloned().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("it is told why");
    assert_eq!((text(target, "/status"), text(target, "/reason")), ("True", "PreemptionByScheduler"));
    machines.kubectl(&["patch", "pod", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    machines.until("it has its place", || is_running_on(&machines, "default", "high", &agent));
    delete(&machines, &["high"]);

    // Sets of pods: each takes from those below it as much as it needs, and what is left of them runs on.
    apply(&machines, &[set("lower", "low", 3, &server)]);
    machines.until("all run", || ready(&machines, "lower") == 3);
    apply(&machines, &[set("upper", "middle", 2, &server)]);
    machines.until("they have their places", || ready(&machines, "upper") == 2);
    assert_eq!(ready(&machines, "lower"), 1, "no more have gone than had to");
    apply(&machines, &[set("top", "high", 2, &server)]);
    machines.until("they have their places", || ready(&machines, "top") == 2);
    machines.until("the least has gone first", || (ready(&machines, "upper"), ready(&machines, "lower")) == (1, 0));
    let waiting = machines.json(&["get", "pods", "-l", "set=lower"])["items"][0].clone();
    let message = text(&waiting, "/status/conditions/0/message");
    let preemption = "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not \
                      helpful for scheduling.";
    assert!(message.ends_with(preemption), "{message}");
}
