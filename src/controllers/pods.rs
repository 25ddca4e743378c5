//! What controllers want to know of pods: how they are indexed, whether they are active, ready, available.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

use crate::apimachinery::status::Result;
use crate::apimachinery::volume::claims_of;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::batch::job::TRACKING_FINALIZER;
use crate::reconcile::{Client, Patch};

/// The index keys of a pod: controlling owner (or none, by namespace), labels, node and claims.
pub fn index_keys(object: &Object) -> Vec<String> {
    let mut keys = owner_keys(object);
    for (k, v) in &object.meta.labels {
        keys.push(label_key(&object.meta.namespace, k, v));
    }
    if let Ok(pod) = object.typed::<Pod>() {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        keys.push(node_key(node.unwrap_or("")));
        if is_over(&pod) {
            keys.push(OVER.into());
        }
        keys.extend(claims_of(&pod).map(|of| claim_key(&object.meta.namespace, &of.claim)));
    }
    if let Some(owner) = object.controller().filter(|o| &*o.kind == "Job" && is_tracked(object)) {
        keys.push(tracked_key(&object.meta.namespace, &owner.name));
    }
    keys
}

/// The index key of pods that have ended for good.
pub const OVER: &str = "over";

/// The index keys of what may have a controlling owner: its uid, or that there is none.
pub fn owner_keys(object: &Object) -> Vec<String> {
    vec![match object.controller() {
        Some(owner) => owner_key(&owner.uid),
        None => free_key(&object.meta.namespace),
    }]
}

/// What an owner controls.
pub fn owner_key(uid: &str) -> String {
    format!("owner/{uid}")
}

/// What nobody controls in a namespace.
pub fn free_key(namespace: &str) -> String {
    format!("free/{namespace}")
}

/// What has a label in a namespace.
pub fn label_key(namespace: &str, key: &str, value: &str) -> String {
    format!("label/{namespace}/{key}={value}")
}

/// What runs on a node (empty: what has none).
pub fn node_key(node: &str) -> String {
    format!("node/{node}")
}

/// What has a claim.
pub fn claim_key(namespace: &str, claim: &str) -> String {
    format!("claim/{namespace}/{claim}")
}

/// What a Job of this name has not counted yet.
pub fn tracked_key(namespace: &str, job: &str) -> String {
    format!("tracked/{namespace}/{job}")
}

/// Whether a Job has to count the pod before it may go.
pub fn is_tracked(pod: &Object) -> bool {
    pod.meta.finalizers.iter().any(|f| **f == *TRACKING_FINALIZER)
}

/// The phase; empty where there is none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// Whether it has ended for good.
pub fn is_over(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it has not ended and is not asked to.
pub fn is_active(pod: &Pod) -> bool {
    !is_over(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// One of its conditions.
pub fn condition<'a>(pod: &'a Pod, of_type: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == of_type)
}

/// Whether it is ready.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when it is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|c| c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

/// From when on it counts as available: it has then been ready for so long.
pub fn available_at(pod: &Pod, min_ready: Duration) -> Option<Timestamp> {
    Some(ready_since(pod)? + min_ready)
}

/// Whether it counts as available.
pub fn is_available(pod: &Pod, min_ready: Duration, now: Timestamp) -> bool {
    available_at(pod, min_ready).is_some_and(|at| min_ready.is_zero() || at <= now)
}

/// The addresses of a pod, the first being the main one.
pub fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all: Vec<String> = status.pod_ips.iter().flatten().map(|i| i.ip.clone()).collect();
    if all.is_empty() { status.pod_ip.iter().cloned().collect() } else { all }
}

/// Makes `owner` the controller of an object.
pub async fn adopt(client: &Arc<dyn Client>, kind: &KindRef, object: &Object, reference: Value) -> Result<()> {
    let patch = json!({"metadata": {"uid": &*object.meta.uid, "ownerReferences": [reference]}});
    client.patch(kind, &object.meta.namespace, &object.meta.name, None, Patch::Strategic(patch)).await.map(|_| ())
}

/// Takes an owner with this uid off an object.
pub async fn release(client: &Arc<dyn Client>, kind: &KindRef, object: &Object, owner_uid: &str) -> Result<()> {
    let gone = json!({"$patch": "delete", "uid": owner_uid});
    let patch = json!({"metadata": {"uid": &*object.meta.uid, "ownerReferences": [gone]}});
    let result = client.patch(kind, &object.meta.namespace, &object.meta.name, None, Patch::Strategic(patch)).await;
    super::absent_is_fine(result)
}
