//! Pods leave nodes with a NoExecute taint: at once, or when the time ends for which they tolerate it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::placement::is_tolerated_by;
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::controllers::{Context, absent_is_fine, pods, typed};
use crate::kinds::Subresource;
use crate::kinds::core::{node, pod};
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};

struct Evictions {
    cx: Arc<Context>,
    recorder: Recorder,
    /// When taints that do not say it were seen first, by node. Lost with the process: then their time begins anew.
    seen: Mutex<HashMap<String, Vec<Taint>>>,
}

/// The controller; its keys are nodes.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let nodes = cx.client.informer(&node::KIND);
    let by_pod = move |c: &Changed| {
        let Ok(pod) = c.object.typed::<Pod>() else { return Vec::new() };
        let Some(name) = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) else { return Vec::new() };
        let node = nodes.get("", name).and_then(|n| n.typed::<Node>().ok());
        match !c.deleted && node.is_some_and(|n| !hard(&n).is_empty()) {
            true => vec![Key::new("", name)],
            false => Vec::new(),
        }
    };
    let by_node = |c: &Changed| {
        let taints = |o: &Arc<Object>| o.typed::<Node>().ok().and_then(|n| n.spec.as_ref().map(|s| s.taints.clone()));
        match c.deleted || c.previous.as_ref().is_some_and(|p| taints(p) == taints(&c.object)) {
            true => Vec::new(),
            false => vec![Key::of(&c.object)],
        }
    };
    let recorder = cx.recorder("taint-eviction-controller");
    let evictions = Evictions { cx: cx.clone(), recorder, seen: Mutex::default() };
    Controller::new("taint-eviction", Arc::new(evictions), cx.clock.clone())
        .watches(&*cx.client, &node::KIND, Box::new(by_node))
        .watches(&*cx.client, &pod::KIND, Box::new(by_pod))
}

fn hard(node: &Node) -> Vec<Taint> {
    let all = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    all.into_iter().filter(|t| t.effect == "NoExecute").cloned().collect()
}

#[async_trait]
impl Reconciler for Evictions {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let found = self.cx.client.informer(&node::KIND).get("", &key.name);
        let taints = found.map(|o| typed::<Node>(&o).map(|n| hard(&n))).transpose()?.unwrap_or_default();
        let (now, mut next) = (self.cx.clock.now(), None::<Timestamp>);
        let taints = self.dated(&key.name, taints, now);
        if taints.is_empty() {
            return Ok(Outcome::Done);
        }
        for object in self.cx.pods.get(&pods::node_key(&key.name)) {
            let pod: Arc<Pod> = typed(&object)?;
            if object.meta.deleted.is_some() || pods::is_over(&pod) {
                continue;
            }
            match leaves_at(&taints, &pod, now) {
                Some(at) if at <= now => self.evict(&object).await?,
                Some(at) => next = Some(next.map_or(at, |n| n.min(at))),
                None => {}
            }
        }
        Ok(next.map_or(Outcome::Done, Outcome::At))
    }
}

// === impl Evictions ===

impl Evictions {
    /// A node's taints, each with the time since when it is there.
    fn dated(&self, node: &str, taints: Vec<Taint>, now: Timestamp) -> Vec<Taint> {
        let mut seen = self.seen.lock().expect("no panic while held");
        let before = seen.remove(node).unwrap_or_default();
        let (taints, undated) = dated(taints, before, now);
        if !undated.is_empty() {
            seen.insert(node.to_owned(), undated);
        }
        taints
    }

    async fn evict(&self, object: &Arc<Object>) -> Result<()> {
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.recorder.event(&pod::KIND, object, EventType::Normal, "TaintManagerEviction", &message);
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": self.cx.clock.now_text(),
        });
        let patch = json!({"metadata": {"uid": &*object.meta.uid}, "status": {"conditions": [condition]}});
        let (status, patch) = (Some(Subresource::Status), Patch::Strategic(patch));
        absent_is_fine(self.cx.client.patch(&pod::KIND, namespace, name, status, patch).await)?;
        let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
        absent_is_fine(self.cx.client.delete(&pod::KIND, namespace, name, options).await)
    }
}

/// Gives every taint a time: its own, or when it was seen first. Also answers those whose time is remembered.
fn dated(taints: Vec<Taint>, seen: Vec<Taint>, now: Timestamp) -> (Vec<Taint>, Vec<Taint>) {
    let mut undated = Vec::new();
    let date = |mut taint: Taint| {
        if taint.time_added.is_none() {
            let same = |t: &&Taint| (&t.key, &t.value, &t.effect) == (&taint.key, &taint.value, &taint.effect);
            taint.time_added = seen.iter().find(same).map_or(Some(Time(now)), |t| t.time_added.clone());
            undated.push(taint.clone());
        }
        taint
    };
    let taints = taints.into_iter().map(date).collect();
    (taints, undated)
}

/// When a pod came to its node.
fn arrived(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let bound = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "True");
    let bound = bound.and_then(|c| c.last_transition_time.as_ref());
    bound.or(pod.metadata.creation_timestamp.as_ref()).map(|t| t.0)
}

/// When a pod must leave; `None`: it may stay as long as the taints are these.
fn leaves_at(taints: &[Taint], pod: &Pod, now: Timestamp) -> Option<Timestamp> {
    let tolerations: Vec<&Toleration> = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten()).collect();
    let mut first: Option<Timestamp> = None;
    for taint in taints {
        let mine: Vec<&&Toleration> = tolerations.iter().filter(|t| is_tolerated_by(t, taint)).collect();
        if mine.is_empty() {
            return Some(now);
        }
        // The shortest of all that tolerate it; none with a time means for ever.
        let Some(seconds) = mine.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        // A pod that came to a tainted node has its whole time as well.
        let since = taint.time_added.as_ref().map(|t| t.0).max(arrived(pod)).unwrap_or(now);
        let at = since + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        first = Some(first.map_or(at, |f| f.min(at)));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_leave_when_they_tolerate_no_longer() {
        let now: Timestamp = "2026-01-01T00:10:00Z".parse().unwrap();
        let taint: Taint = serde_json::from_value(
            json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:08:00Z"}),
        )
        .unwrap();
        let pod = |tolerations: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "tolerations": tolerations}}))
                .unwrap()
        };
        let key = "node.kubernetes.io/unreachable";
        let for_300 = json!([{"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        let expect = "2026-01-01T00:13:00Z".parse().unwrap();
        assert_eq!(leaves_at(&[taint.clone()], &pod(for_300), now), Some(expect));
        assert_eq!(leaves_at(&[taint.clone()], &pod(json!([])), now), Some(now));
        assert_eq!(leaves_at(&[taint], &pod(json!([{"operator": "Exists"}])), now), None);
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen_and_a_late_pod_from_its_arrival() {
        let at = |text: &str| -> Timestamp { format!("2026-01-01T{text}Z").parse().unwrap() };
        let taint: Taint = serde_json::from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).unwrap();
        let other = Taint { value: Some("w".into()), ..taint.clone() };
        let (_, seen) = dated(vec![taint.clone()], Vec::new(), at("00:00:00"));
        let (dated, seen) = dated(vec![other, taint], seen, at("00:00:03"));
        let times: Vec<Timestamp> = dated.iter().map(|t| t.time_added.as_ref().unwrap().0).collect();
        assert_eq!(times, [at("00:00:03"), at("00:00:00")]);
        assert_eq!(seen, dated);
        let pod = |created: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": format!("2026-01-01T{created}Z")},
                "spec": {"containers": [], "tolerations": [{"key": "k", "operator": "Exists", "tolerationSeconds": 5}]},
            }))
            .unwrap()
        };
        let leaves = |created: &str| leaves_at(&dated[1..], &pod(created), at("00:00:04"));
        assert_eq!(leaves("00:00:00"), Some(at("00:00:05")), "not five seconds from each look");
        assert_eq!(leaves("00:00:04"), Some(at("00:00:09")));
    }
}
