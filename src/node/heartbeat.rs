//! The node itself in the API: registration, capacity, conditions, and the Lease that says it lives.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node as NodeObject;
use serde_json::{Value, json};

use super::{Config, Node, advertised};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::version::GIT_VERSION;
use crate::base::json::{list, map_mut, text};
use crate::base::object::Object;
use crate::containers::{Images, Runtime};
use crate::kinds::Subresource;
use crate::kinds::coordination::lease;
use crate::kinds::core::node;
use crate::kinds::node::runtimeclass::HANDLERS;
use crate::reconcile::{Client, EventType, Informer, Patch, Recorder};

/// How often the Lease is renewed at most; a node that may be silent for less renews more often.
const RENEW: Duration = Duration::from_secs(10);
/// How long to wait before saying again that the node is ready.
const AGAIN: Duration = Duration::from_millis(200);
/// How often the conditions' heartbeat times are written though nothing has changed. The Lease is what says that a node
/// lives and costs no disk; this does (some 100 kB with its compaction), so it is rarer than Kubernetes' five minutes.
pub(super) const REPORT: Duration = Duration::from_secs(3600);
/// The condition of a node whose pods have no network, and our reason for it.
const NO_NETWORK: &str = "NetworkUnavailable";
const NETWORK_FAILED: &str = "NetworkFailed";
/// How long a node waits for its pod range before it says so.
const RANGE_PATIENCE: Duration = Duration::from_secs(5);

/// Makes the Node object where it is missing, and answers its pod ranges, for which it waits.
pub async fn register(client: &dyn Client, config: &Config) -> Result<Vec<String>> {
    let informer = client.informer(&node::KIND);
    informer.synced().await;
    let mut changes = informer.subscribe();
    match informer.get("", &config.name) {
        None => {
            let spec = json!({"taints": config.taints});
            let annotations: serde_json::Map<String, Value> =
                config.annotations.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            let metadata = json!({"name": config.name, "labels": labels(config), "annotations": annotations});
            // Whose pods are where is believed only of addresses that the Node has.
            let object = json!({"metadata": metadata, "spec": spec, "status": {"addresses": addresses(config)}});
            match client.create(&node::KIND, "", object).await {
                Err(error) if error.code != 409 => return Err(error),
                _ => {}
            }
        }
        Some(old) => match label(client, config).await.and(tell_addresses(client, config, &old).await) {
            // Known from before: `run` does it once the server is there.
            Err(error) if error.code == 503 => {}
            other => other?,
        },
    }
    let mut silent = true;
    loop {
        let found = informer.get("", &config.name).and_then(|o| o.typed::<NodeObject>().ok());
        let spec = found.and_then(|n| n.spec.clone());
        let ranges = spec.map(|s| s.pod_cidrs.or_else(|| s.pod_cidr.map(|c| vec![c])).unwrap_or_default());
        if let Some(ranges) = ranges.filter(|r| !r.is_empty()) {
            return Ok(ranges);
        }
        let told = tokio::time::timeout(RANGE_PATIENCE, changes.next()).await;
        if told.is_err() && std::mem::take(&mut silent) {
            tracing::warn!(
                "this node has no pod range and waits for one: the server gives it, unless --cluster-cidr is used up or \
                 node-cidr is disabled"
            );
        }
    }
}

fn labels(config: &Config) -> Value {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let mut labels = json!({
        "kubernetes.io/hostname": config.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch,
        "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": arch,
        "node.kubernetes.io/instance-type": "amphipod",
    });
    for (key, value) in &config.labels {
        labels[key] = value.as_str().into();
    }
    labels
}

fn addresses(config: &Config) -> Vec<Value> {
    let of = |kind: &'static str, all: &[IpAddr]| -> Vec<Value> {
        all.iter().map(|a| json!({"type": kind, "address": a.to_string()})).collect()
    };
    let name = json!({"type": "Hostname", "address": config.name});
    [of("InternalIP", &config.addresses), of("ExternalIP", &config.external_addresses), vec![name]].concat()
}

/// Gives the Node the machine's addresses, if it has others.
async fn tell_addresses(client: &dyn Client, config: &Config, old: &Object) -> Result<()> {
    let addresses = addresses(config);
    if list(&old.value(), "status.addresses") == addresses {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
    client.patch(&node::KIND, "", &config.name, Some(Subresource::Status), patch).await.map(|_| ())
}

/// Gives the Node the labels that it lacks.
async fn label(client: &dyn Client, config: &Config) -> Result<()> {
    let labels = labels(config);
    let Some(old) = client.informer(&node::KIND).get("", &config.name) else { return Ok(()) };
    let given = |(key, value): (&String, &Value)| old.meta.labels.get(key.as_str()).map(|v| &**v) == value.as_str();
    if labels.as_object().is_some_and(|l| l.iter().all(given)) {
        return Ok(());
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
    client.patch(&node::KIND, "", &config.name, None, patch).await.map(|_| ())
}

/// Keeps Node status and Lease current until aborted.
pub async fn run(node: Arc<Node>) {
    let mut reported: Option<(Value, tokio::time::Instant)> = None;
    let informer = node.client.informer(&node::KIND);
    let mut changes = informer.subscribe();
    let renew_every = (node.config.grace / 4).min(RENEW);
    let (mut was_there, mut started) = (true, false);
    loop {
        // A node that was deleted stays so until its agent is started again, as kubelets have it.
        let is_there = informer.get("", &node.config.name).is_some();
        if was_there && !is_there {
            tracing::warn!(
                node = node.config.name,
                "the Node object of this machine was deleted: its pods will be removed and it is given no others; to make it a \
                 node again, restart the agent (with --token)"
            );
        }
        was_there = is_there;
        if !is_there {
            let _ = tokio::time::timeout(renew_every, changes.next()).await;
            continue;
        }
        if !std::mem::replace(&mut started, true)
            && let Some(object) = informer.get("", &node.config.name)
        {
            node.recorder.event(&node::KIND, &object, EventType::Normal, "Starting", "Starting kubelet.");
        }
        if let Err(error) = renew(&node).await {
            tracing::warn!(%error, "the node's lease was not renewed");
        }
        // What takes trying comes after the node has said that it is there.
        let mut status = status(&node).await;
        if reported.is_some() {
            status["runtimeHandlers"] = handlers(&*node.runtime).await;
        }
        let due = reported.as_ref().is_none_or(|(s, at)| *s != status || at.elapsed() > REPORT)
            || !is_ready(&informer, &node.config.name)
            || has_news(&informer, &node);
        if due {
            let first = reported.is_none();
            let labelled = if first { label(&*node.client, &node.config).await } else { Ok(()) };
            match labelled.and(report(&node, &status).await) {
                Ok(()) => reported = Some((status, tokio::time::Instant::now())),
                Err(error) => tracing::warn!(%error, "the node's status was not written"),
            }
        }
        let next = tokio::time::Instant::now() + renew_every;
        // A node that was given up says at once that it lives, and what others advertise is there for pods at once.
        let given_up = async {
            loop {
                let _ = changes.next().await;
                if !is_ready(&informer, &node.config.name) || has_news(&informer, &node) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout_at(next, given_up).await;
        if !is_ready(&informer, &node.config.name) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether the API says that the node is ready.
fn is_ready(informer: &Informer, name: &str) -> bool {
    let object = informer.get("", name).and_then(|o| o.typed::<NodeObject>().ok());
    let conditions = object.and_then(|n| n.status.clone()?.conditions).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether others advertise resources that are not there for pods yet.
fn has_news(informer: &Informer, node: &Node) -> bool {
    let object = informer.get("", &node.config.name);
    object.is_some_and(|object| !advertised::changes(&object.value(), &node.capacity.to_json()).is_empty())
}

async fn renew(of: &Node) -> Result<()> {
    let (client, name) = (&*of.client, of.config.name.as_str());
    let now = of.clock.now_micro_text();
    let patch = Patch::Merge(json!({"spec": {"renewTime": now}}));
    match client.patch(&lease::KIND, "kube-node-lease", name, None, patch).await {
        Err(error) if error.code == 404 => {
            let found = client.informer(&node::KIND).get("", name);
            let uid = found.ok_or_else(|| Status::not_found(&node::KIND, name))?.meta.uid.to_string();
            let object = json!({
                "metadata": {"name": name, "namespace": "kube-node-lease",
                             "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}]},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": of.config.grace.as_secs(), "renewTime": now},
            });
            client.create(&lease::KIND, "kube-node-lease", object).await.map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

/// Everything but the times.
async fn status(node: &Node) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os = read("/etc/os-release");
    let os =
        os.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).map_or("Linux", |v| v.trim_matches('"')).to_owned();
    json!({
        "capacity": node.capacity.to_json(), "allocatable": node.capacity.to_json(), "addresses": addresses(&node.config),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": node.config.kubelet_port}},
        "nodeInfo": {
            "machineID": read("/etc/machine-id"), "systemUUID": read("/sys/class/dmi/id/product_uuid"),
            "bootID": read("/proc/sys/kernel/random/boot_id"), "kernelVersion": read("/proc/sys/kernel/osrelease"), "osImage": os,
            "containerRuntimeVersion": concat!("amphipod://", env!("CARGO_PKG_VERSION")), "kubeletVersion": GIT_VERSION,
            "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        },
        "images": images(&*node.images).await, "features": {"supplementalGroupsPolicy": true},
    })
}

/// The one way to run a pod, and what of it depends on the machine.
async fn handlers(runtime: &dyn Runtime) -> Value {
    let own_users = runtime.lacks_for_users().await.is_none();
    let features = json!({"recursiveReadOnlyMounts": false, "userNamespaces": own_users});
    HANDLERS.iter().map(|name| json!({"name": name, "features": features})).collect()
}

async fn images(images: &dyn Images) -> Vec<Value> {
    let all = images.list().await;
    all.into_iter()
        .take(50)
        .map(|i| {
            let names = [i.digests, i.tags].concat();
            json!({"names": names, "sizeBytes": i.size_bytes})
        })
        .collect()
}

async fn report(node: &Node, status: &Value) -> Result<()> {
    let (client, name, now) = (&*node.client, node.config.name.as_str(), node.clock.now_text());
    let object = client.get(&crate::kinds::core::node::KIND, "", name).await?;
    let current = object.value();
    let mut conditions: Vec<Condition<'_>> = vec![
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ];
    // Others may say this, too: of their own networks.
    let failed = |c: &Value| c["type"] == NO_NETWORK && c["reason"] == NETWORK_FAILED;
    if list(&current, "status.conditions").iter().any(failed) {
        conditions.push((NO_NETWORK, "False", "NetworkIsUp", "the network of this node's pods is set up"));
    }
    let mut full = status.clone();
    full["conditions"] = with_conditions(&current, &conditions, &now);
    map_mut(&mut full, "allocatable").extend(advertised::changes(&current, &status["capacity"]));
    let news = news(name, &current, &full);
    let patch = Patch::Merge(json!({"status": full}));
    client.patch(&crate::kinds::core::node::KIND, "", name, Some(Subresource::Status), patch).await?;
    for (event_type, reason, message) in news {
        node.recorder.event(&crate::kinds::core::node::KIND, &object, event_type, reason, &message);
    }
    Ok(())
}

/// What people are told of a Node whose status becomes another one, as the kubelet tells it.
fn news(name: &str, old: &Value, new: &Value) -> Vec<(EventType, &'static str, String)> {
    let mut news = Vec::new();
    let (was, is) = (text(old, "status.nodeInfo.bootID"), text(new, "nodeInfo.bootID"));
    if !was.is_empty() && !is.is_empty() && was != is {
        let message = format!("Node {name} has been rebooted, boot id: {is}");
        news.push((EventType::Warning, "Rebooted", message));
    }
    let old = list(old, "status.conditions");
    for condition in list(new, "conditions") {
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        if old.iter().any(|c| text(c, "type") == kind && text(c, "status") == status) {
            continue;
        }
        let reason = match (kind, status) {
            ("MemoryPressure", "False") => "NodeHasSufficientMemory",
            ("MemoryPressure", _) => "NodeHasInsufficientMemory",
            ("DiskPressure", "False") => "NodeHasNoDiskPressure",
            ("DiskPressure", _) => "NodeHasDiskPressure",
            ("PIDPressure", "False") => "NodeHasSufficientPID",
            ("PIDPressure", _) => "NodeHasInsufficientPID",
            ("Ready", "True") => "NodeReady",
            ("Ready", _) => "NodeNotReady",
            _ => continue,
        };
        news.push((EventType::Normal, reason, format!("Node {name} status is now: {reason}")));
    }
    news
}

/// Says of a Node, if there is one, why its pods cannot have a network, before its agent gives up: nothing else of it would show.
pub async fn report_no_network(
    client: &dyn Client,
    recorder: &Recorder,
    name: &str,
    why: &str,
    now: &str,
) -> Result<()> {
    let object = client.get(&node::KIND, "", name).await?;
    let current = object.value();
    let message = format!("container runtime network not ready: {why}");
    let conditions =
        [(NO_NETWORK, "True", NETWORK_FAILED, why), ("Ready", "False", "KubeletNotReady", message.as_str())];
    let status = json!({"conditions": with_conditions(&current, &conditions, now)});
    let news = news(name, &current, &status);
    client.patch(&node::KIND, "", name, Some(Subresource::Status), Patch::Merge(json!({"status": status}))).await?;
    for (event_type, reason, message) in news {
        recorder.event(&node::KIND, &object, event_type, reason, &message);
    }
    recorder.written().await;
    Ok(())
}

/// Type, status, reason and message.
type Condition<'a> = (&'a str, &'a str, &'a str, &'a str);

/// These conditions, and those of other types that the Node has.
fn with_conditions(node: &Value, conditions: &[Condition<'_>], now: &str) -> Value {
    let old = list(node, "status.conditions");
    let new = conditions.iter().map(|(kind, value, reason, message)| {
        let since =
            old.iter().find(|c| c["type"] == *kind && c["status"] == *value).map(|c| c["lastTransitionTime"].clone());
        json!({"type": kind, "status": value, "reason": reason, "message": message, "lastHeartbeatTime": now,
               "lastTransitionTime": since.unwrap_or_else(|| now.into())})
    });
    let others = old.iter().filter(|c| !conditions.iter().any(|(kind, ..)| c["type"] == *kind));
    new.chain(others.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::base::clock::Clock;
    use crate::kinds::core::{event, namespace};

    #[test]
    fn what_becomes_of_a_node_is_told_once_and_as_the_kubelet_tells_it() {
        let conditions = |pressure: &str, ready: &str| {
            json!([{"type": "MemoryPressure", "status": pressure}, {"type": "DiskPressure", "status": pressure},
                   {"type": "PIDPressure", "status": pressure}, {"type": "Ready", "status": ready}, {"type": "Own", "status": "x"}])
        };
        let status = |pressure: &str, ready: &str, boot: &str| json!({"nodeInfo": {"bootID": boot}, "conditions": conditions(pressure, ready)});
        let well = status("False", "True", "b1");
        let all = [
            (EventType::Normal, "NodeHasSufficientMemory", "Node n status is now: NodeHasSufficientMemory".to_owned()),
            (EventType::Normal, "NodeHasNoDiskPressure", "Node n status is now: NodeHasNoDiskPressure".to_owned()),
            (EventType::Normal, "NodeHasSufficientPID", "Node n status is now: NodeHasSufficientPID".to_owned()),
            (EventType::Normal, "NodeReady", "Node n status is now: NodeReady".to_owned()),
        ];
        assert_eq!(news("n", &json!({}), &well), all, "a new node");
        assert_eq!(news("n", &json!({"status": status("Unknown", "Unknown", "b1")}), &well), all, "one that was lost");
        assert_eq!(news("n", &json!({"status": well}), &well), [], "nothing new");
        let rebooted = news("n", &json!({"status": well}), &status("False", "True", "b2"));
        let message = "Node n has been rebooted, boot id: b2".to_owned();
        assert_eq!(rebooted, [(EventType::Warning, "Rebooted", message)]);
        let ready = news("n", &json!({"status": status("False", "False", "b1")}), &well);
        assert_eq!(ready, [all[3].clone()]);
    }

    #[tokio::test]
    async fn a_node_without_a_network_says_why_and_keeps_its_other_conditions() {
        let client = in_memory::client();
        let recorder = Recorder::new(client.clone(), Clock::system(), "kubelet", "a");
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        assert_eq!(
            report_no_network(&*client, &recorder, "a", "no", "2026-01-01T00:00:00Z").await.unwrap_err().code,
            404
        );
        let before = json!([
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": "2025-01-01T00:00:00Z"},
            {"type": "Own", "status": "True"},
        ]);
        let object = json!({"metadata": {"name": "a"}, "status": {"conditions": before}});
        client.create(&node::KIND, "", object).await.unwrap();
        for (why, time) in [("a port is taken", "2026-01-01T00:00:00Z"), ("another", "2026-02-02T00:00:00Z")] {
            report_no_network(&*client, &recorder, "a", why, time).await.unwrap();
            let node = client.get(&node::KIND, "", "a").await.unwrap().value();
            let expect = json!([
                {"type": "NetworkUnavailable", "status": "True", "reason": "NetworkFailed", "message": why,
                 "lastHeartbeatTime": time, "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Ready", "status": "False", "reason": "KubeletNotReady",
                 "message": format!("container runtime network not ready: {why}"),
                 "lastHeartbeatTime": time, "lastTransitionTime": "2026-01-01T00:00:00Z"},
                {"type": "Own", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null},
            ]);
            assert_eq!(node["status"]["conditions"], expect);
        }
        // Told when it turned, and written before the process that says so ends.
        let events = client.informer(&event::KIND);
        events.synced().await;
        let events = events.list("default");
        let told = |o: &Arc<Object>| (text(&o.value(), "reason").to_owned(), text(&o.value(), "message").to_owned());
        let told: Vec<_> = events.iter().map(told).collect();
        assert_eq!(told, [("NodeNotReady".to_owned(), "Node a status is now: NodeNotReady".to_owned())]);
    }
}
