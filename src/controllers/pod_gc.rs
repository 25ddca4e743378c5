//! Pods that nobody will end any more: on nodes that are gone, ending without ever having had a node, long over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::{Context, absent_is_fine, pods};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::kinds::Subresource;
use crate::kinds::core::{node, pod};
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler};

/// How long a node must be gone before its pods are.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Pods that are removed at once.
const AT_ONCE: usize = 16;
/// The keys: nodes by name, and these two.
const OVER: &str = "/over";
const UNSCHEDULED: &str = "/unscheduled";

struct PodGc {
    cx: Arc<Context>,
    /// Since when nodes are missing. Lost with the process, which only makes the wait begin anew.
    missing: Mutex<HashMap<String, Timestamp>>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let nodes = cx.client.informer(&node::KIND);
    let context = cx.clone();
    let by_pod = move |c: &Changed| {
        let Ok(pod) = c.object.typed::<Pod>() else { return Vec::new() };
        let mut keys = Vec::new();
        match pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or("") {
            _ if c.deleted => {}
            "" if c.object.meta.deleted.is_some() => keys.push(Key::new("", UNSCHEDULED)),
            "" => {}
            name if nodes.get("", name).is_none() => keys.push(Key::new("", name)),
            _ => {}
        }
        if pods::is_over(&pod) && !c.deleted && context.pods.count(pods::OVER) > context.options.terminated_pods {
            keys.push(Key::new("", OVER));
        }
        keys
    };
    Controller::new("pod-gc", Arc::new(PodGc { cx: cx.clone(), missing: Mutex::default() }), cx.clock.clone())
        .for_kind(&*cx.client, &node::KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(by_pod))
        .workers(1)
}

#[async_trait]
impl Reconciler for PodGc {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        match &*key.name {
            OVER => {
                let mut over = self.cx.pods.get(pods::OVER);
                over.sort_by_key(|o| o.meta.created);
                let surplus = over.len().saturating_sub(self.cx.options.terminated_pods);
                self.remove(&over[..surplus], None).await?;
            }
            UNSCHEDULED => {
                let all = self.cx.pods.get(&pods::node_key(""));
                let ending: Vec<_> = all.into_iter().filter(|o| o.meta.deleted.is_some()).collect();
                self.remove(&ending, None).await?;
            }
            name => return self.node(name).await,
        }
        Ok(Outcome::Done)
    }
}

// === impl PodGc ===

impl PodGc {
    async fn node(&self, name: &str) -> Result<Outcome> {
        let pods = self.cx.pods.get(&pods::node_key(name));
        if pods.is_empty() || self.cx.client.informer(&node::KIND).get("", name).is_some() {
            self.missing.lock().expect("no panic while held").remove(name);
            return Ok(Outcome::Done);
        }
        let now = self.cx.clock.now();
        let since = *self.missing.lock().expect("no panic while held").entry(name.to_owned()).or_insert(now);
        if now < since + QUARANTINE {
            return Ok(Outcome::At(since + QUARANTINE));
        }
        self.remove(&pods, Some("PodGC: node no longer exists")).await?;
        Ok(Outcome::Done)
    }

    /// Removes pods without waiting for anybody; `why` is told to watchers of pods that had not ended.
    async fn remove(&self, all: &[Arc<Object>], why: Option<&str>) -> Result<()> {
        for some in all.chunks(AT_ONCE) {
            try_join_all(some.iter().map(|o| self.remove_one(o, why))).await?;
        }
        Ok(())
    }

    async fn remove_one(&self, object: &Arc<Object>, why: Option<&str>) -> Result<()> {
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        if let Some(why) = why
            && object.typed::<Pod>().is_ok_and(|p| !pods::is_over(&p))
        {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": why,
                "lastTransitionTime": self.cx.clock.now_text(),
            });
            let metadata = json!({"uid": &*object.meta.uid});
            let patch = json!({"metadata": metadata, "status": {"phase": "Failed", "conditions": [condition]}});
            let (status, patch) = (Some(Subresource::Status), Patch::Strategic(patch));
            absent_is_fine(self.cx.client.patch(&pod::KIND, namespace, name, status, patch).await)?;
        }
        let uid = Some(object.meta.uid.to_string());
        let options = DeleteOptions { grace_seconds: Some(0), uid, ..DeleteOptions::default() };
        absent_is_fine(self.cx.client.delete(&pod::KIND, namespace, name, options).await)
    }
}
