//! The controller with all others running, against the API on the store in memory.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{HASH, pod};
use crate::api::in_memory;
use crate::api::local::Local;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::base::clock::Clock;
use crate::base::object::Object;
use crate::controllers::{MANAGER, Options, start};
use crate::kinds::apps::controllerrevision;
use crate::kinds::apps::daemonset::KIND;
use crate::kinds::core::{event, namespace, node, pod as pod_kind};
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Client, Patch};

struct Cluster {
    client: Arc<dyn Client>,
    tasks: Vec<tokio::task::JoinHandle<Option<()>>>,
}

impl Cluster {
    async fn new(nodes: &[&str]) -> Self {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let tasks = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        for name in nodes {
            client.create(&node::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
            let ready = json!({"type": "Ready", "status": "True"});
            let status = Patch::Strategic(json!({"status": {"conditions": [ready]}}));
            client.patch(&node::KIND, "", name, Some(Subresource::Status), status).await.unwrap();
        }
        Self { client, tasks }
    }

    async fn until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..1000 {
            if look() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; {:?}", self.list(&KIND).iter().map(|d| d.value()["status"].clone()).collect::<Vec<_>>());
    }

    fn list(&self, kind: &KindRef) -> Vec<Arc<Object>> {
        self.client.informer(kind).list("n")
    }

    fn status(&self) -> Value {
        self.client.informer(&KIND).get("n", "d").map(|d| d.value()["status"].clone()).unwrap_or_default()
    }

    /// Node, revision and name of each pod that is not ending.
    fn pods(&self) -> Vec<(String, String, String)> {
        let all = self.list(&pod_kind::KIND).into_iter().filter(|o| o.meta.deleted.is_none());
        let mut all: Vec<_> = all
            .map(|object| {
                let member = super::Member { pod: object.typed().unwrap(), object: object.clone() };
                let node = pod::target(&member).unwrap_or("").to_owned();
                (node, member.label(HASH).to_owned(), object.meta.name.to_string())
            })
            .collect();
        all.sort();
        all
    }

    async fn patch(&self, patch: Value) {
        self.client.patch(&KIND, "n", "d", None, Patch::Strategic(patch)).await.unwrap();
    }

    /// What the scheduler and the nodes do: binds every pod and says that it is ready; removes what is ending.
    async fn work(&self) {
        for object in self.list(&pod_kind::KIND) {
            let (name, uid) = (&object.meta.name, &object.meta.uid);
            let member = super::Member { pod: object.typed().unwrap(), object: object.clone() };
            if object.meta.deleted.is_some() {
                let now = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
                let _ = self.client.delete(&pod_kind::KIND, "n", name, now).await;
            } else if super::pods::phase(&member.pod) != "Running" && super::pods::phase(&member.pod) != "Failed" {
                let _ = self.client.bind("n", name, uid, pod::target(&member).unwrap()).await;
                self.set_phase(name, "Running").await;
            }
        }
    }

    async fn set_phase(&self, name: &str, phase: &str) {
        let ready = if phase == "Running" { "True" } else { "False" };
        let since = "2026-01-01T00:00:00Z";
        let status =
            json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": since}]});
        let patch = Patch::Strategic(json!({"status": status}));
        let _ = self.client.patch(&pod_kind::KIND, "n", name, Some(Subresource::Status), patch).await;
    }

    /// Works until it is so.
    async fn work_until(&self, what: &str, look: impl Fn() -> bool) {
        for _ in 0..1000 {
            if look() {
                return;
            }
            self.work().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; {} {:?}", self.status(), self.pods());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

fn daemons(image: &str) -> Value {
    let spec = json!({"containers": [{"name": "c", "image": image}]});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
    json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}})
}

fn image(name: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}})
}

#[tokio::test]
async fn nodes_get_a_pod_when_they_come_and_lose_it_when_they_are_meant_no_more() {
    let cluster = Cluster::new(&["x", "y"]).await;
    cluster.client.create(&KIND, "n", daemons("i")).await.unwrap();
    let on = || cluster.pods().into_iter().map(|(node, ..)| node).collect::<Vec<_>>();
    cluster.until("a pod on each", || on() == ["x", "y"]).await;
    cluster.client.create(&node::KIND, "", json!({"metadata": {"name": "z"}})).await.unwrap();
    cluster.work_until("on the new one too", || on() == ["x", "y", "z"]).await;
    cluster
        .work_until("all are counted", || {
            cluster.status()
                == json!({"currentNumberScheduled": 3, "desiredNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 3,
                    "observedGeneration": 1, "updatedNumberScheduled": 3, "numberAvailable": 3})
        })
        .await;
    // Labels choose; whoever is chosen no more is rid of its pod.
    let label = |name: &'static str, value: Value| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"color": value}}}));
        let client = cluster.client.clone();
        async move { client.patch(&node::KIND, "", name, None, patch).await.unwrap() }
    };
    cluster.patch(json!({"spec": {"template": {"spec": {"nodeSelector": {"color": "blue"}}}}})).await;
    cluster.work_until("nowhere", || on().is_empty() && cluster.status()["desiredNumberScheduled"] == 0).await;
    label("y", "blue".into()).await;
    cluster.work_until("on the blue one", || on() == ["y"] && cluster.status()["numberAvailable"] == 1).await;
    label("y", Value::Null).await;
    cluster.work_until("nowhere again", || on().is_empty()).await;
}

#[tokio::test]
async fn a_failed_pod_is_replaced_and_a_deleted_one_comes_again() {
    let cluster = Cluster::new(&["x"]).await;
    cluster.client.create(&KIND, "n", daemons("i")).await.unwrap();
    cluster.work_until("it runs", || cluster.status()["numberReady"] == 1).await;
    let first = cluster.pods()[0].2.clone();
    cluster.set_phase(&first, "Failed").await;
    cluster
        .work_until("another runs", || {
            cluster.pods().iter().any(|p| p.2 != first) && cluster.status()["numberReady"] == 1
        })
        .await;
    let told = || {
        let all = cluster.list(&event::KIND).into_iter().map(|e| e.value());
        all.map(|e| e["reason"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    cluster
        .until("it is told", || {
            ["FailedDaemonPod", "SuccessfulCreate", "SuccessfulDelete"].iter().all(|r| told().iter().any(|t| t == r))
        })
        .await;
    let second = cluster.pods()[0].2.clone();
    cluster.client.delete(&pod_kind::KIND, "n", &second, DeleteOptions::default()).await.unwrap();
    cluster
        .work_until("a third runs", || {
            cluster.pods().iter().any(|p| p.2 != second) && cluster.status()["numberReady"] == 1
        })
        .await;
}

#[tokio::test]
async fn a_template_that_comes_back_keeps_the_pods_that_it_still_has() {
    let cluster = Cluster::new(&["x", "y"]).await;
    cluster.client.create(&KIND, "n", daemons("first")).await.unwrap();
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 2).await;
    let before = cluster.pods();
    // One node after the other: the second waits as the first never becomes ready.
    cluster.patch(image("broken")).await;
    cluster.until("one is ending", || cluster.pods().len() == 1).await;
    let kept = cluster.pods();
    cluster.patch(image("first")).await;
    cluster
        .work_until("both are of the first template", || {
            cluster.status()["updatedNumberScheduled"] == 2 && cluster.status()["numberAvailable"] == 2
        })
        .await;
    let after = cluster.pods();
    assert!(after.contains(&kept[0]), "{after:?} has not {kept:?}");
    assert_eq!(after[0].1, before[0].1, "the revision of the first template is its again");
    let mut revisions: Vec<i64> =
        cluster.list(&controllerrevision::KIND).iter().map(|r| r.value()["revision"].as_i64().unwrap()).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3], "renumbered and not made anew");
}

#[tokio::test]
async fn an_update_replaces_pods_old_revisions_are_cleaned_up_and_on_delete_waits() {
    let cluster = Cluster::new(&["x"]).await;
    let mut object = daemons("0");
    object["spec"]["revisionHistoryLimit"] = 1.into();
    cluster.client.create(&KIND, "n", object).await.unwrap();
    for (number, name) in ["1", "2", "3"].into_iter().enumerate() {
        cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 1).await;
        cluster.patch(image(name)).await;
        let generation = number as i64 + 2;
        let done = || {
            let status = cluster.status();
            status["observedGeneration"] == generation
                && status["updatedNumberScheduled"] == 1
                && status["numberAvailable"] == 1
        };
        cluster.work_until("it is updated", done).await;
    }
    cluster.until("one old revision is left", || cluster.list(&controllerrevision::KIND).len() == 2).await;
    let running = cluster.pods();
    cluster.patch(json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}})).await;
    cluster.patch(image("4")).await;
    cluster
        .until("it is seen", || {
            cluster.status()["observedGeneration"] == 6 && cluster.status()["updatedNumberScheduled"].is_null()
        })
        .await;
    assert_eq!(cluster.pods(), running);
    cluster.client.delete(&pod_kind::KIND, "n", &running[0].2, DeleteOptions::default()).await.unwrap();
    cluster.work_until("it is new", || cluster.status()["updatedNumberScheduled"] == 1).await;
}

#[tokio::test]
async fn pods_and_revisions_that_were_let_go_are_taken_by_who_comes_after() {
    let cluster = Cluster::new(&["x"]).await;
    cluster.client.create(&KIND, "n", daemons("i")).await.unwrap();
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 1).await;
    let before = cluster.pods();
    let orphan = DeleteOptions {
        propagation: Some(crate::apimachinery::delete_options::Propagation::Orphan),
        ..DeleteOptions::default()
    };
    cluster.client.delete(&KIND, "n", "d", orphan).await.unwrap();
    cluster.until("it is gone", || cluster.list(&KIND).is_empty()).await;
    let free = |kind: &KindRef| cluster.list(kind).iter().all(|o| o.controller().is_none());
    cluster.until("nobody owns them", || free(&pod_kind::KIND) && free(&controllerrevision::KIND)).await;
    cluster.client.create(&KIND, "n", daemons("i")).await.unwrap();
    cluster.work_until("they are taken", || cluster.status()["numberAvailable"] == 1).await;
    assert_eq!(cluster.pods(), before);
    assert_eq!(cluster.list(&controllerrevision::KIND).len(), 1);
    cluster.client.delete(&KIND, "n", "d", DeleteOptions::default()).await.unwrap();
    cluster
        .work_until("everything goes", || {
            cluster.pods().is_empty() && cluster.list(&controllerrevision::KIND).is_empty()
        })
        .await;
}
