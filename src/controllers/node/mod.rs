//! The life of nodes: who is silent for too long counts as lost, and conditions become taints.
//!
//! A node is heard when its Lease changes; what counts is when that was seen here, so that clocks need not agree. Renewals
//! wake nobody: a node that is well is looked at again when it would be lost, and not before.

pub mod evict;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Context, absent_is_fine, pods, typed};
use crate::api::identity::join;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::json::{at, list, set, text};
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::coordination::lease;
use crate::kinds::core::{node, pod, secret};
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};

/// Where nodes' Leases are.
pub const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Conditions that become taints while they are true.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that nobody knows any more when a node is lost.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// By the clock that nobody sets: a machine that learns the time after its boot must not lose all nodes.
type LastSeen = Arc<Mutex<HashMap<String, Instant>>>;

/// Pods that are written at once.
const AT_ONCE: usize = 16;

struct Nodes {
    cx: Arc<Context>,
    /// When nodes were heard last. Lost with the process: then every node has its time anew.
    heard: LastSeen,
    /// The nodes that people were told of, as they were last.
    registered: Mutex<HashMap<String, Arc<Object>>>,
    recorder: Recorder,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let heard = LastSeen::default();
    let (seen, context) = (heard.clone(), cx.clone());
    let renewed = move |c: &Changed| {
        if *c.object.meta.namespace != *LEASES || c.deleted {
            return Vec::new();
        }
        let name = &c.object.meta.name;
        seen.lock().expect("no panic while held").insert(name.to_string(), Instant::now());
        let node = context.client.informer(&node::KIND).get("", name);
        let ready = node.and_then(|n| n.typed::<Node>().ok()).is_some_and(|n| condition(&n, "Ready") == Some("True"));
        if ready { Vec::new() } else { vec![Key::new("", name)] }
    };
    let recorder = cx.recorder("node-controller");
    Controller::new(
        "node-lifecycle",
        Arc::new(Nodes { cx: cx.clone(), heard, registered: Mutex::default(), recorder }),
        cx.clock.clone(),
    )
    .for_kind(&*cx.client, &node::KIND)
    .watches(&*cx.client, &lease::KIND, Box::new(renewed))
}

fn condition<'a>(node: &'a Node, of_type: &str) -> Option<&'a str> {
    let all = node.status.as_ref()?.conditions.as_ref()?;
    all.iter().find(|c| c.type_ == of_type).map(|c| c.status.as_str())
}

#[async_trait]
impl Reconciler for Nodes {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let found = self.cx.client.informer(&node::KIND).get("", &key.name);
        self.tell(&key.name, found.as_ref());
        let Some(object) = found else {
            if !self.heard.lock().expect("no panic while held").contains_key(&*key.name) {
                // A look that was due for the Node that is gone: by now a machine may be joining under its name.
                return Ok(Outcome::Done);
            }
            // Its name is free for another machine, or for the same one installed anew.
            let name = join::password_name(&key.name);
            let gone = self.cx.client.delete(&secret::KIND, join::NAMESPACE, &name, DeleteOptions::default()).await;
            absent_is_fine(gone)?;
            self.heard.lock().expect("no panic while held").remove(&*key.name);
            return Ok(Outcome::Done);
        };
        let now = self.cx.clock.now();
        let fresh = Instant::now();
        let heard = *self.heard.lock().expect("no panic while held").entry(key.name.to_string()).or_insert(fresh);
        let lost_at = now + self.cx.options.node_grace.saturating_sub(heard.elapsed());
        let node: Arc<Node> = typed(&object)?;
        if lost_at <= now && condition(&node, "Ready") != Some("Unknown") {
            self.lose(&object, &key.name).await?;
        }
        let Some(object) = self.cx.client.informer(&node::KIND).get("", &key.name) else { return Ok(Outcome::Done) };
        if let Some(taints) = taints(&object.value(), now) {
            let metadata = json!({"resourceVersion": object.revision.to_string()});
            let patch = Patch::Merge(json!({"metadata": metadata, "spec": {"taints": taints}}));
            absent_is_fine(self.cx.client.patch(&node::KIND, "", &key.name, None, patch).await)?;
        }
        let node: Arc<Node> = typed(&object)?;
        match condition(&node, "Ready") {
            Some("True") => Ok(Outcome::At(lost_at.max(now))),
            Some("Unknown") => self.unready_pods(&key.name).await.map(|()| Outcome::Done),
            _ => Ok(if lost_at > now { Outcome::At(lost_at) } else { Outcome::Done }),
        }
    }
}

// === impl Nodes ===

impl Nodes {
    /// Tells of nodes that come and go.
    fn tell(&self, name: &str, now: Option<&Arc<Object>>) {
        let mut registered = self.registered.lock().expect("no panic while held");
        let before = match now {
            Some(now) => registered.insert(name.to_owned(), now.clone()),
            None => registered.remove(name),
        };
        drop(registered);
        let same = |old: &Arc<Object>| now.is_some_and(|now| now.meta.uid == old.meta.uid);
        if let Some(old) = before.as_ref().filter(|old| !same(old)) {
            let message = format!("Node {name} event: Removing Node {name} from Controller");
            self.recorder.event(&node::KIND, old, EventType::Normal, "RemovingNode", &message);
        }
        if let Some(now) = now.filter(|_| !before.as_ref().is_some_and(same)) {
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            self.recorder.event(&node::KIND, now, EventType::Normal, "RegisteredNode", &message);
        }
    }

    async fn lose(&self, object: &Arc<Object>, name: &str) -> Result<()> {
        let mut status = object.value().get("status").cloned().unwrap_or_else(|| json!({}));
        lost(&mut status, &self.cx.clock.now_text());
        let patch = json!({
            "metadata": {"resourceVersion": object.revision.to_string()},
            "status": {"conditions": status["conditions"]},
        });
        let (subresource, patch) = (Some(Subresource::Status), Patch::Merge(patch));
        self.cx.client.patch(&node::KIND, "", name, subresource, patch).await?;
        tracing::warn!(node = name, "a node is silent; it counts as lost");
        let message = format!("Node {name} status is now: NodeNotReady");
        self.recorder.event(&node::KIND, object, EventType::Normal, "NodeNotReady", &message);
        Ok(())
    }

    /// What ran on a lost node is not ready for anybody.
    async fn unready_pods(&self, name: &str) -> Result<()> {
        let ready = |o: &Arc<Object>| o.typed::<Pod>().is_ok_and(|p| pods::is_ready(&p));
        let all: Vec<Arc<Object>> = self.cx.pods.get(&pods::node_key(name)).into_iter().filter(ready).collect();
        let now = self.cx.clock.now_text();
        let unready = |object: &Arc<Object>| {
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
            let patch = json!({"metadata": {"uid": &*object.meta.uid}, "status": {"conditions": [condition]}});
            let (namespace, name) = (object.meta.namespace.clone(), object.meta.name.clone());
            async move {
                let (status, patch) = (Some(Subresource::Status), Patch::Strategic(patch));
                absent_is_fine(self.cx.client.patch(&pod::KIND, &namespace, &name, status, patch).await)
            }
        };
        for some in all.chunks(AT_ONCE) {
            try_join_all(some.iter().map(unready)).await?;
        }
        Ok(())
    }
}

/// Makes every reported condition unknown.
fn lost(status: &mut Value, now: &str) {
    let mut all = list(status, "conditions").to_vec();
    for of_type in REPORTED {
        match all.iter_mut().find(|c| text(c, "type") == of_type) {
            Some(c) if text(c, "status") == "Unknown" => {}
            Some(c) => {
                set(c, "status", "Unknown");
                set(c, "reason", "NodeStatusUnknown");
                set(c, "message", "Kubelet stopped posting node status.");
                set(c, "lastTransitionTime", now);
            }
            None => all.push(json!({
                "type": of_type, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.", "lastHeartbeatTime": now, "lastTransitionTime": now,
            })),
        }
    }
    status["conditions"] = all.into();
}

/// The taints that a node should have, if they are not what it has.
fn taints(node: &Value, now: Timestamp) -> Option<Vec<Value>> {
    let status = |of_type: &str| {
        let all = list(node, "status.conditions");
        all.iter().find(|c| text(c, "type") == of_type).map(|c| text(c, "status"))
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status("Ready") {
        Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some("Unknown") => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        _ => {}
    }
    wanted.extend(PRESSURE.iter().filter(|(c, _)| status(c) == Some("True")).map(|(_, key)| (*key, "NoSchedule")));
    if at(node, "spec.unschedulable") == Some(&Value::Bool(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |key: &str| {
        matches!(key, NOT_READY | UNREACHABLE | UNSCHEDULABLE) || PRESSURE.iter().any(|(_, taint)| *taint == key)
    };
    let is = |t: &Value, key: &str, effect: &str| text(t, "key") == key && text(t, "effect") == effect;
    let old = list(node, "spec.taints");
    let stays = |t: &&Value| {
        let key = text(t, "key");
        // A node without any condition is new: what it registered with stays.
        !ours(key) || status("Ready").is_none() || wanted.iter().any(|(k, e)| is(t, k, e))
    };
    let mut new: Vec<Value> = old.iter().filter(stays).cloned().collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| is(t, key, effect)) {
            new.push(json!({"key": key, "effect": effect, "timeAdded": crate::base::clock::seconds_text(now)}));
        }
    }
    (new != old).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::base::clock::Clock;
    use crate::controllers::{self, Options};
    use crate::kinds::core::{event, namespace};
    use crate::reconcile::Client;

    #[tokio::test(start_paused = true)]
    async fn nodes_that_come_and_go_are_told_of_and_the_password_of_a_deleted_node_goes_once_and_that_of_a_machine_that_joins_anew_stays()
     {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), "test"));
        for name in [join::NAMESPACE, "default"] {
            client.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
        }
        let grace = std::time::Duration::from_secs(5);
        let options = Options { node_grace: grace, ..Options::default() };
        controllers::start(client.clone(), Clock::system(), options);
        let name = join::password_name("one");
        let joined = async || {
            let record = json!({"metadata": {"name": name}});
            client.create(&secret::KIND, join::NAMESPACE, record).await.unwrap();
        };
        let is_there = || client.informer(&secret::KIND).get(join::NAMESPACE, &name).is_some();
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        client.create(&node::KIND, "", json!({"metadata": {"name": "one"}, "status": ready})).await.unwrap();
        joined().await;
        tokio::time::sleep(grace / 5).await;
        assert!(is_there());
        client.delete(&node::KIND, "", "one", DeleteOptions::default()).await.unwrap();
        tokio::time::sleep(grace / 5).await;
        assert!(!is_there());
        let told = || {
            let mut events = client.informer(&event::KIND).list("default");
            events.retain(|e| text(&e.value(), "source.component") == "node-controller");
            let said =
                |e: &Arc<Object>| (text(&e.value(), "reason").to_owned(), text(&e.value(), "message").to_owned());
            events.iter().map(said).collect::<Vec<_>>()
        };
        let expect = [
            ("RegisteredNode", "Node one event: Registered Node one in Controller"),
            ("RemovingNode", "Node one event: Removing Node one from Controller"),
        ];
        assert_eq!(told(), expect.map(|(reason, message)| (reason.to_owned(), message.to_owned())));
        joined().await;
        tokio::time::sleep(grace * 3).await;
        assert!(is_there(), "the look that was due for the node before");
    }

    #[test]
    fn conditions_become_taints_and_back() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut node = json!({"spec": {"taints": [{"key": "own", "effect": "NoSchedule"}], "unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "DiskPressure", "status": "True"}]}});
        let keys =
            |t: &[Value]| t.iter().map(|t| format!("{}:{}", text(t, "key"), text(t, "effect"))).collect::<Vec<_>>();
        let taints_of = |node: &Value| taints(node, now).map(|t| keys(&t));
        let disk = "node.kubernetes.io/disk-pressure:NoSchedule";
        let cordon = "node.kubernetes.io/unschedulable:NoSchedule";
        assert_eq!(taints_of(&node).unwrap(), ["own:NoSchedule", disk, cordon]);
        lost(&mut node["status"], "2026-01-01T00:00:00Z");
        assert_eq!(list(&node, "status.conditions").len(), 4);
        node["spec"]["taints"] = taints(&node, now).unwrap().into();
        let unreachable = ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        assert_eq!(keys(list(&node, "spec.taints")), ["own:NoSchedule", unreachable[0], unreachable[1], cordon]);
        assert_eq!(taints_of(&node), None);
        node["status"]["conditions"][0]["status"] = "True".into();
        node["spec"]["unschedulable"] = false.into();
        assert_eq!(taints_of(&node).unwrap(), ["own:NoSchedule"]);
    }
}
