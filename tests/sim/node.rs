//! A pretended node: keeps its Lease, says it is ready, starts and ends the pods that are bound to it, all after random
//! times. A crash is the end of its task; whatever it ran is found again when it returns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use amphipod::apimachinery::delete_options::DeleteOptions;
use amphipod::base::clock::Clock;
use amphipod::base::object::Object;
use amphipod::kinds::Subresource;
use amphipod::kinds::coordination::lease;
use amphipod::kinds::core::{node, pod};
use amphipod::reconcile::{Client, Patch};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::time::Instant;

const LEASE_EVERY: Duration = Duration::from_secs(10);

type Plans = BTreeMap<Arc<str>, (Instant, Action)>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Start,
    Fail,
    End,
    /// A pod that runs once ends well, or not.
    Succeed,
    Break,
}

/// Runs until it is aborted. `failures`: out of a thousand pods, how many break for a while after they started.
pub async fn run(client: Arc<dyn Client>, clock: Clock, name: String, failures: u64) {
    register(&*client, &clock, &name).await;
    let pods = client.informer(&pod::KIND);
    let mut changes = pods.subscribe();
    let mut plans = Plans::new();
    // Each pod is decided about once: it breaks for a while after it started, or it does not.
    let mut judged = BTreeSet::new();
    let mut heartbeat = Instant::now();
    loop {
        if Instant::now() >= heartbeat {
            beat(&*client, &clock, &name).await;
            heartbeat = Instant::now() + LEASE_EVERY;
        }
        let mine: Vec<Arc<Object>> = pods.list("").into_iter().filter(|o| is_on(o, &name)).collect();
        plans.retain(|k, _| mine.iter().any(|o| o.key == *k));
        for object in &mine {
            plan(object, &clock, failures, &mut plans, &mut judged);
        }
        let due: Vec<Arc<str>> =
            plans.iter().filter(|(_, (at, _))| *at <= Instant::now()).map(|(k, _)| k.clone()).collect();
        for key in due {
            let (_, action) = plans.remove(&key).unwrap();
            if let Some(object) = mine.iter().find(|o| o.key == key) {
                act(&*client, &clock, object, action).await;
            }
        }
        let next = plans.values().map(|(at, _)| *at).min().unwrap_or(heartbeat).min(heartbeat);
        tokio::select! {
            biased;
            _ = changes.next() => {}
            () = tokio::time::sleep_until(next) => {}
        }
    }
}

fn is_on(object: &Object, name: &str) -> bool {
    let pod = object.typed::<Pod>().unwrap();
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(name)
}

fn plan(object: &Object, clock: &Clock, failures: u64, plans: &mut Plans, judged: &mut BTreeSet<String>) {
    let pod = object.typed::<Pod>().unwrap();
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let planned = plans.get(&object.key).map(|(_, a)| *a);
    let once = pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) == Some("Never");
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
    let action = if object.meta.deleted.is_some() {
        Action::End
    } else if matches!(phase, "Succeeded" | "Failed") {
        return;
    } else if once && ready {
        if !judged.insert(object.meta.uid.to_string()) {
            return;
        }
        if clock.random_u64().is_multiple_of(4) { Action::Break } else { Action::Succeed }
    } else if !ready {
        Action::Start
    } else if judged.insert(object.meta.uid.to_string()) && clock.random_u64() % 1000 < failures {
        Action::Fail
    } else {
        return;
    };
    if planned != Some(action) {
        let wait = Duration::from_millis(5 + clock.random_u64() % 1500);
        plans.insert(object.key.clone(), (Instant::now() + wait, action));
    }
}

async fn act(client: &dyn Client, clock: &Clock, object: &Object, action: Action) {
    let (namespace, name, uid) = (&object.meta.namespace, &object.meta.name, &object.meta.uid);
    if action == Action::End {
        let options = DeleteOptions { grace_seconds: Some(0), uid: Some(uid.to_string()), ..DeleteOptions::default() };
        let _ = client.delete(&pod::KIND, namespace, name, options).await;
        return;
    }
    let ready = if action == Action::Start { "True" } else { "False" };
    let phase = match action {
        Action::Succeed => "Succeeded",
        Action::Break => "Failed",
        _ => "Running",
    };
    // An address of its own for every pod: from its uid.
    let bytes = u32::from_str_radix(&uid[..6], 16).unwrap_or(1);
    let ip = format!("10.{}.{}.{}", bytes >> 16, (bytes >> 8) & 255, bytes & 255);
    let patch = json!({"metadata": {"uid": uid}, "status": {
        "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": clock.now_text()}],
    }});
    let _ = client.patch(&pod::KIND, namespace, name, Some(Subresource::Status), Patch::Strategic(patch)).await;
}

async fn register(client: &dyn Client, clock: &Clock, name: &str) {
    let _ = client.create(&node::KIND, "", json!({"metadata": {"name": name}})).await;
    loop {
        if client.patch(&node::KIND, "", name, Some(Subresource::Status), Patch::Strategic(status(clock))).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn status(clock: &Clock) -> Value {
    let now = clock.now_text();
    json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now, "lastTransitionTime": now},
        ],
    }})
}

/// Renews the Lease, and says again that the node is ready where somebody has doubted it.
async fn beat(client: &dyn Client, clock: &Clock, name: &str) {
    let spec = json!({"holderIdentity": name, "renewTime": clock.now_micro_text()});
    let patch = Patch::Merge(json!({"spec": spec}));
    if client.patch(&lease::KIND, "kube-node-lease", name, None, patch).await.is_err() {
        let lease = json!({"metadata": {"name": name}, "spec": spec});
        let _ = client.create(&lease::KIND, "kube-node-lease", lease).await;
    }
    let ready = client.informer(&node::KIND).get("", name).is_some_and(|n| {
        let value = n.value();
        let all = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    });
    if !ready {
        register(client, clock, name).await;
    }
}
