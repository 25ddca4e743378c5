//! A cluster for tests of workloads: the API on the store in memory, all controllers, and pods that are played.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{MANAGER, Options, pods, start};
use crate::api::in_memory;
use crate::api::local::Local;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::base::clock::Clock;
use crate::base::object::Object;
use crate::kinds::core::{event, namespace, node, pod};
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Client, Patch};

/// The cluster, with one namespace `n` and one workload in it.
pub(super) struct Cluster {
    pub(super) client: Arc<dyn Client>,
    kind: &'static KindRef,
    name: &'static str,
    tasks: Vec<JoinHandle<Option<()>>>,
}

impl Cluster {
    /// With these nodes, for a workload of this kind and name.
    pub(super) async fn new(kind: &'static KindRef, name: &'static str, nodes: &[&str]) -> Self {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let tasks = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        for name in nodes {
            client.create(&node::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
            let ready = json!({"type": "Ready", "status": "True"});
            let status = Patch::Strategic(json!({"status": {"conditions": [ready]}}));
            client.patch(&node::KIND, "", name, Some(Subresource::Status), status).await.unwrap();
        }
        Self { client, kind, name, tasks }
    }

    pub(super) fn list(&self, kind: &KindRef) -> Vec<Arc<Object>> {
        self.client.informer(kind).list("n")
    }

    pub(super) fn status(&self) -> Value {
        self.client.informer(self.kind).get("n", self.name).map(|o| o.value()["status"].clone()).unwrap_or_default()
    }

    pub(super) async fn create(&self, value: Value) {
        self.client.create(self.kind, "n", value).await.unwrap();
    }

    pub(super) async fn patch(&self, patch: Value) {
        self.client.patch(self.kind, "n", self.name, None, Patch::Strategic(patch)).await.unwrap();
    }

    pub(super) async fn delete_pod(&self, name: &str) {
        self.client.delete(&pod::KIND, "n", name, DeleteOptions::default()).await.unwrap();
    }

    /// Pods that are not ending.
    pub(super) fn pods(&self) -> Vec<Arc<Object>> {
        self.list(&pod::KIND).into_iter().filter(|o| o.meta.deleted.is_none()).collect()
    }

    /// Reasons of all events.
    pub(super) fn reasons(&self) -> Vec<String> {
        let all = self.list(&event::KIND).into_iter().map(|e| e.value());
        all.map(|e| e["reason"].as_str().unwrap_or("").to_owned()).collect()
    }

    pub(super) async fn set_phase(&self, name: &str, phase: &str) {
        let ready = if phase == "Running" { "True" } else { "False" };
        let since = "2026-01-01T00:00:00Z";
        let condition = json!({"type": "Ready", "status": ready, "lastTransitionTime": since});
        let patch = Patch::Strategic(json!({"status": {"phase": phase, "conditions": [condition]}}));
        let _ = self.client.patch(&pod::KIND, "n", name, Some(Subresource::Status), patch).await;
    }

    /// Waits until it is so; nobody works meanwhile.
    pub(super) async fn until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..1000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; {}", self.told());
    }

    /// Plays scheduler and nodes until it is so.
    pub(super) async fn work_until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..1000 {
            if look() {
                return;
            }
            self.work().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; {}", self.told());
    }

    fn told(&self) -> String {
        let pods: Vec<String> = self.list(&pod::KIND).iter().map(|p| p.value().to_string()).collect();
        format!("{}\n{}", self.status(), pods.join("\n"))
    }

    /// Binds every pod and says that it is ready; removes what is ending.
    async fn work(&self) {
        for object in self.list(&pod::KIND) {
            let (name, uid) = (&object.meta.name, &object.meta.uid);
            let phase = pods::phase(&object.typed::<Pod>().unwrap()).to_owned();
            if object.meta.deleted.is_some() {
                let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                let _ = self.client.delete(&pod::KIND, "n", name, now).await;
            } else if phase == "Pending" {
                let required = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
                let value = object.value();
                let node = value.pointer(&format!("{required}/nodeSelectorTerms/0/matchFields/0/values/0"));
                let _ = self.client.bind("n", name, uid, node.and_then(Value::as_str).unwrap_or("x")).await;
                self.set_phase(name, "Running").await;
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}
