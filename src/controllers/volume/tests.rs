//! The controllers of volumes on the API in memory, with nodes that are played.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::api::in_memory;
use crate::api::local::Local;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::node_access::{
    Destination, Duplex, ExecOptions, LogOptions, NodeAccess, Nodes, Session, Target, VolumeRequest,
};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::volume::{LOCAL_PATH, SELECTED_NODE};
use crate::base::clock::Clock;
use crate::controllers::{MANAGER, Options, start};
use crate::kinds::KindRef;
use crate::kinds::core::{event, namespace, node, persistentvolume, persistentvolumeclaim, pod, serviceaccount};
use crate::kinds::storage::storageclass;
use crate::reconcile::{Client, Patch};
use crate::wire::images::{BlobRequest, BlobResponse};

const CLAIMS: &KindRef = &persistentvolumeclaim::KIND;
const VOLUMES: &KindRef = &persistentvolume::KIND;

/// A node that only has directories.
#[derive(Default)]
struct Directories {
    all: Mutex<BTreeSet<String>>,
    /// What it says to everything.
    refusal: Mutex<Option<String>>,
}

fn none<T>() -> Result<T> {
    Err(Status::internal("not here"))
}

#[async_trait]
impl NodeAccess for Directories {
    async fn volume(&self, ask: &VolumeRequest) -> Result<String> {
        if let Some(why) = self.refusal.lock().unwrap().clone() {
            return Err(Status::new(500, "InternalError", why));
        }
        let (VolumeRequest::Make(of) | VolumeRequest::Remove(of)) = ask;
        let path = format!("/storage/{}_{}_{}", of.volume, of.namespace, of.claim);
        let mut all = self.all.lock().unwrap();
        match ask {
            VolumeRequest::Make(_) => all.insert(path.clone()),
            VolumeRequest::Remove(_) => all.remove(&path),
        };
        Ok(path)
    }

    async fn logs(&self, _: &Target, _: &LogOptions) -> Result<mpsc::Receiver<Bytes>> {
        none()
    }

    async fn exec(&self, _: &Target, _: &ExecOptions) -> Result<Session> {
        none()
    }

    async fn attach(&self, _: &Target, _: &ExecOptions) -> Result<Session> {
        none()
    }

    async fn connect(&self, _: &Target, _: u16) -> Result<Box<dyn Duplex>> {
        none()
    }

    async fn dial(&self, _: &Destination) -> Result<Box<dyn Duplex>> {
        none()
    }

    async fn image(&self, _: &BlobRequest) -> Result<BlobResponse> {
        none()
    }
}

struct Cluster {
    client: Arc<dyn Client>,
    disk: Arc<Directories>,
    tasks: Vec<JoinHandle<Option<()>>>,
}

impl Cluster {
    async fn new() -> Self {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let (disk, nodes) = (Arc::new(Directories::default()), Nodes::default());
        nodes.register("a", disk.clone());
        let tasks = start(client.clone(), Clock::system(), Options { nodes, ..Options::default() });
        let cluster = Self { client, disk, tasks };
        // What is said of volumes is in the second one.
        for name in ["n", "default"] {
            cluster.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await;
        }
        cluster
            .until("the account", || cluster.client.informer(&serviceaccount::KIND).get("n", "default").is_some())
            .await;
        let labels = json!({"kubernetes.io/hostname": "host-a"});
        cluster.create(&node::KIND, "", json!({"metadata": {"name": "a", "labels": labels}})).await;
        cluster
    }

    async fn create(&self, kind: &KindRef, namespace: &str, value: Value) {
        self.client.create(kind, namespace, value).await.unwrap();
    }

    async fn claim(&self, name: &str, spec: Value) {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.create(CLAIMS, "n", json!({"metadata": {"name": name}, "spec": all})).await;
    }

    async fn volume(&self, name: &str, spec: Value) {
        let mut all = json!({
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/srv"},
        });
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.create(VOLUMES, "", json!({"metadata": {"name": name}, "spec": all})).await;
    }

    async fn class(&self, mode: &str) {
        let class = json!({"metadata": {"name": "local-path"}, "provisioner": LOCAL_PATH, "volumeBindingMode": mode});
        self.create(&storageclass::KIND, "", class).await;
    }

    async fn delete(&self, kind: &KindRef, namespace: &str, name: &str) {
        let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
        self.client.delete(kind, namespace, name, options).await.unwrap();
    }

    async fn choose(&self, claim: &str) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {SELECTED_NODE: "a"}}}));
        self.client.patch(CLAIMS, "n", claim, None, patch).await.unwrap();
    }

    fn value(&self, kind: &KindRef, name: &str) -> Value {
        let namespace = if kind.namespaced() { "n" } else { "" };
        self.client.informer(kind).get(namespace, name).map(|o| o.value()).unwrap_or_default()
    }

    fn phase(&self, kind: &KindRef, name: &str) -> String {
        self.value(kind, name)["status"]["phase"].as_str().unwrap_or_default().to_owned()
    }

    fn reasons(&self) -> Vec<String> {
        let all = self.client.informer(&event::KIND).list("").into_iter().map(|e| e.value());
        all.map(|e| e["reason"].as_str().unwrap_or("").to_owned()).collect()
    }

    async fn until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..1000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let all = [CLAIMS, VOLUMES].map(|kind| self.client.informer(kind).list(""));
        let told: Vec<String> = all.iter().flatten().map(|o| o.value().to_string()).collect();
        panic!("never: {what}; {:?}\n{}", self.reasons(), told.join("\n"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_and_a_volume_get_each_other_and_the_volume_outlives_the_claim() {
    let c = Cluster::new().await;
    c.claim("c", json!({})).await;
    c.until("told", || c.reasons().contains(&"FailedBinding".to_owned())).await;
    c.volume("v", json!({})).await;
    c.until("bound", || c.phase(CLAIMS, "c") == "Bound" && c.phase(VOLUMES, "v") == "Bound").await;
    let (claim, volume) = (c.value(CLAIMS, "c"), c.value(VOLUMES, "v"));
    assert_eq!(claim["spec"]["volumeName"], "v");
    assert_eq!(claim["status"]["capacity"], json!({"storage": "1Gi"}));
    assert_eq!(claim["status"]["accessModes"], json!(["ReadWriteOnce"]));
    let notes = json!({"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"});
    assert_eq!(claim["metadata"]["annotations"], notes);
    assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
    // A second claim does not get it.
    c.claim("d", json!({})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(c.phase(CLAIMS, "d"), "Pending");
    c.delete(CLAIMS, "n", "c").await;
    c.until("released", || c.phase(VOLUMES, "v") == "Released").await;
    assert_eq!((c.value(CLAIMS, "c"), c.phase(CLAIMS, "d")), (Value::Null, "Pending".to_owned()));
    c.delete(VOLUMES, "", "v").await;
    c.until("gone", || c.value(VOLUMES, "v").is_null()).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_volume_goes_is_lost() {
    let c = Cluster::new().await;
    c.volume("v", json!({"claimRef": {"namespace": "n", "name": "c"}})).await;
    c.claim("other", json!({})).await;
    c.claim("c", json!({})).await;
    c.until("bound", || c.phase(CLAIMS, "c") == "Bound").await;
    assert_eq!(c.phase(CLAIMS, "other"), "Pending", "it was promised");
    let forced = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    c.delete(VOLUMES, "", "v").await;
    c.until("held", || c.value(VOLUMES, "v")["metadata"]["deletionTimestamp"].is_string()).await;
    c.client.patch(VOLUMES, "", "v", None, forced).await.unwrap();
    c.until("lost", || c.phase(CLAIMS, "c") == "Lost").await;
    c.until("told", || c.reasons().contains(&"ClaimLost".to_owned())).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_held_while_a_pod_on_a_node_has_it() {
    let c = Cluster::new().await;
    c.claim("c", json!({})).await;
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "i"}], "volumes": volumes});
    c.create(&pod::KIND, "n", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    c.delete(CLAIMS, "n", "c").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(c.value(CLAIMS, "c")["metadata"]["deletionTimestamp"].is_string());
    c.delete(&pod::KIND, "n", "p").await;
    c.until("gone", || c.value(CLAIMS, "c").is_null()).await;
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_made_where_the_pod_is_and_goes_with_its_claim() {
    let c = Cluster::new().await;
    c.class("WaitForFirstConsumer").await;
    c.claim("c", json!({"storageClassName": "local-path"})).await;
    c.until("waits", || c.reasons().contains(&"WaitForFirstConsumer".to_owned())).await;
    assert!(c.disk.all.lock().unwrap().is_empty());
    c.choose("c").await;
    c.until("bound", || c.phase(CLAIMS, "c") == "Bound").await;
    let name = c.value(CLAIMS, "c")["spec"]["volumeName"].as_str().unwrap().to_owned();
    let volume = c.value(VOLUMES, &name);
    assert_eq!(volume["spec"]["local"]["path"], format!("/storage/{name}_n_c"));
    let expression = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!(*expression, json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-a"]}));
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Delete");
    assert_eq!(c.disk.all.lock().unwrap().len(), 1);
    // Whoever deletes the volume first does not lose its content before the claim goes.
    c.delete(VOLUMES, "", &name).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((c.disk.all.lock().unwrap().len(), c.phase(CLAIMS, "c")), (1, "Bound".to_owned()));
    c.delete(CLAIMS, "n", "c").await;
    c.until("removed", || c.disk.all.lock().unwrap().is_empty() && c.value(VOLUMES, &name).is_null()).await;
    let reasons = c.reasons();
    for reason in ["Provisioning", "ProvisioningSucceeded", "SizeNotEnforced"] {
        assert_eq!(reasons.iter().filter(|r| *r == reason).count(), 1, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_be_removed_is_told_and_tried_again() {
    let c = Cluster::new().await;
    c.class("WaitForFirstConsumer").await;
    c.claim("c", json!({"storageClassName": "local-path"})).await;
    c.choose("c").await;
    c.until("bound", || c.phase(CLAIMS, "c") == "Bound").await;
    let name = c.value(CLAIMS, "c")["spec"]["volumeName"].as_str().unwrap().to_owned();
    *c.disk.refusal.lock().unwrap() = Some("it is in use".into());
    c.delete(CLAIMS, "n", "c").await;
    c.until("failed", || c.phase(VOLUMES, &name) == "Failed").await;
    assert_eq!(c.value(VOLUMES, &name)["status"]["message"], "it is in use");
    *c.disk.refusal.lock().unwrap() = None;
    c.until("removed", || c.value(VOLUMES, &name).is_null()).await;
    assert!(c.disk.all.lock().unwrap().is_empty());
    assert_eq!(c.reasons().iter().filter(|r| *r == "VolumeFailedDelete").count(), 1, "once");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_refuses_is_chosen_anew() {
    let c = Cluster::new().await;
    c.class("WaitForFirstConsumer").await;
    c.claim("c", json!({"storageClassName": "local-path"})).await;
    *c.disk.refusal.lock().unwrap() = Some("the disk is full".into());
    c.choose("c").await;
    let chosen = || c.value(CLAIMS, "c")["metadata"]["annotations"].get(SELECTED_NODE).is_some();
    c.until("given back", || !chosen()).await;
    c.until("told", || c.reasons().contains(&"ProvisioningFailed".to_owned())).await;
    *c.disk.refusal.lock().unwrap() = None;
    c.choose("c").await;
    c.until("bound", || c.phase(CLAIMS, "c") == "Bound").await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_the_claims_that_it_brings() {
    let c = Cluster::new().await;
    c.volume("v", json!({})).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    let volumes = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]);
    let spec = json!({"containers": [{"name": "c", "image": "i"}], "volumes": volumes});
    c.create(&pod::KIND, "n", json!({"metadata": {"name": "p"}, "spec": spec})).await;
    c.until("bound", || c.phase(CLAIMS, "p-scratch") == "Bound").await;
    let claim = c.value(CLAIMS, "p-scratch");
    assert_eq!(claim["metadata"]["labels"], json!({"a": "b"}));
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], c.value(&pod::KIND, "p")["metadata"]["uid"]);
    // With its pod it goes.
    c.delete(&pod::KIND, "n", "p").await;
    c.until("gone", || c.value(CLAIMS, "p-scratch").is_null()).await;
    // Somebody else's claim of the name is not taken.
    c.claim("q-scratch", json!({})).await;
    c.create(&pod::KIND, "n", json!({"metadata": {"name": "q"}, "spec": spec})).await;
    c.until("told", || c.reasons().iter().filter(|r| *r == "FailedBinding").count() >= 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_gets_the_default_class_that_comes_later() {
    let c = Cluster::new().await;
    c.claim("c", json!({})).await;
    c.claim("none", json!({"storageClassName": ""})).await;
    let annotations = json!({storageclass::IS_DEFAULT[0]: "true"});
    let class = json!({"metadata": {"name": "d", "annotations": annotations}, "provisioner": "e.com/p"});
    c.create(&storageclass::KIND, "", class).await;
    c.until("classified", || c.value(CLAIMS, "c")["spec"]["storageClassName"] == "d").await;
    c.until("asked", || {
        c.value(CLAIMS, "c")["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] == "e.com/p"
    })
    .await;
    assert_eq!(c.value(CLAIMS, "none")["spec"]["storageClassName"], "");
    c.until("told", || c.reasons().contains(&"ExternalProvisioning".to_owned())).await;
}
