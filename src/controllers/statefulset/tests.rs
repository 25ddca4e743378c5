//! The controller with all others running, against the API on the store in memory.

use serde_json::{Value, json};

use super::{HASH, pod};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::controllers::cluster::Cluster;
use crate::kinds::apps::controllerrevision;
use crate::kinds::apps::statefulset::KIND;
use crate::kinds::core::{persistentvolumeclaim, pod as pod_kind};
use crate::kinds::policy::poddisruptionbudget;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::Patch;

async fn cluster() -> Cluster {
    Cluster::new(&KIND, "w", &["x"]).await
}

fn set(replicas: i64, spec: Value) -> Value {
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "first"}]}});
    let mut object = json!({"metadata": {"name": "w"}, "spec": {"replicas": replicas, "serviceName": "s",
        "selector": {"matchLabels": {"a": "b"}}, "template": template}});
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    object
}

fn image(name: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": name}]}}}})
}

/// Names and images of the pods that are not ending.
fn pods(cluster: &Cluster) -> Vec<String> {
    let told = |o: &std::sync::Arc<crate::base::object::Object>| {
        let image = o.value()["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
        format!("{}:{image}", o.meta.name)
    };
    cluster.pods().iter().map(told).collect()
}

fn is(cluster: &Cluster, wanted: &[&str]) -> bool {
    let status = cluster.status();
    pods(cluster) == wanted && status["availableReplicas"] == wanted.len() && status["replicas"] == wanted.len()
}

#[tokio::test]
async fn pods_come_one_after_the_other_and_go_the_other_way() {
    let cluster = cluster().await;
    cluster.create(set(3, json!({}))).await;
    cluster.until("the first is made", || pods(&cluster) == ["w-0:first"]).await;
    let revision = cluster.status()["updateRevision"].clone();
    let first = cluster.pods()[0].value();
    assert_eq!((&first["spec"]["hostname"], &first["spec"]["subdomain"]), (&json!("w-0"), &json!("s")));
    assert_eq!(first["metadata"]["labels"], json!({"a": "b", HASH: revision, pod::NAME: "w-0", pod::INDEX: "0"}));
    cluster.set_phase("w-0", "Running").await;
    cluster.until("then the second", || pods(&cluster).len() == 2).await;
    cluster.work_until("all run", || is(&cluster, &["w-0:first", "w-1:first", "w-2:first"])).await;
    let status = json!({"replicas": 3, "readyReplicas": 3, "availableReplicas": 3, "currentReplicas": 3, "updatedReplicas": 3,
        "observedGeneration": 1, "collisionCount": 0, "currentRevision": revision, "updateRevision": revision});
    assert_eq!(cluster.status(), status);
    // One that is broken halts the way up and down.
    cluster.set_phase("w-1", "Pending").await;
    cluster.patch(json!({"spec": {"replicas": 1}})).await;
    cluster
        .until("it is seen", || cluster.status()["observedGeneration"] == 2 && cluster.status()["readyReplicas"] == 2)
        .await;
    cluster.work_until("the last are gone", || is(&cluster, &["w-0:first"])).await;
    let told = |r: &str| cluster.reasons().iter().any(|t| t == r);
    cluster.until("it is told", || told("SuccessfulCreate") && told("SuccessfulDelete")).await;
}

#[tokio::test]
async fn in_parallel_all_come_at_once_and_a_lost_one_comes_again_under_its_name() {
    let cluster = cluster().await;
    cluster.create(set(3, json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}}))).await;
    cluster.until("all are made", || pods(&cluster) == ["w-5:first", "w-6:first", "w-7:first"]).await;
    cluster.work_until("all run", || cluster.status()["readyReplicas"] == 3).await;
    let before = cluster.list(&pod_kind::KIND)[1].meta.uid.clone();
    cluster.delete_pod("w-6").await;
    // While it is ending there is no other of its name.
    cluster.until("it is ending", || pods(&cluster).len() == 2).await;
    cluster
        .work_until("it is there again", || cluster.pods().len() == 3 && cluster.status()["readyReplicas"] == 3)
        .await;
    assert_ne!(cluster.list(&pod_kind::KIND)[1].meta.uid, before);
    // Evicted ones are replaced.
    cluster.set_phase("w-7", "Failed").await;
    cluster
        .work_until("it runs again", || cluster.status()["readyReplicas"] == 3 && cluster.status()["replicas"] == 3)
        .await;
    cluster.patch(json!({"spec": {"ordinals": {"start": 6}}})).await;
    cluster.work_until("the numbers move", || is(&cluster, &["w-6:first", "w-7:first", "w-8:first"])).await;
}

#[tokio::test]
async fn updates_go_down_to_the_partition_and_come_back_by_the_old_revision() {
    let cluster = cluster().await;
    let partition =
        |n: i64| json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}}});
    cluster.create(set(3, json!({}))).await;
    cluster.work_until("it runs", || is(&cluster, &["w-0:first", "w-1:first", "w-2:first"])).await;
    let first = cluster.status()["currentRevision"].clone();
    cluster.patch(partition(2)).await;
    cluster.patch(image("second")).await;
    cluster.work_until("the canary is new", || is(&cluster, &["w-0:first", "w-1:first", "w-2:second"])).await;
    let status = cluster.status();
    assert_eq!(
        (&status["currentRevision"], &status["currentReplicas"], &status["updatedReplicas"]),
        (&first, &json!(2), &json!(1))
    );
    // One below the partition comes back as it was, one above as it shall be.
    cluster.delete_pod("w-0").await;
    cluster.delete_pod("w-2").await;
    cluster.work_until("both are there", || is(&cluster, &["w-0:first", "w-1:first", "w-2:second"])).await;
    cluster.patch(partition(0)).await;
    let all_new =
        || is(&cluster, &["w-0:second", "w-1:second", "w-2:second"]) && cluster.status()["currentReplicas"] == 3;
    cluster.work_until("all are new", all_new).await;
    assert_eq!(cluster.status()["currentRevision"], cluster.status()["updateRevision"]);
    assert_ne!(cluster.status()["currentRevision"], first);
    cluster.patch(image("first")).await;
    let all_old =
        || is(&cluster, &["w-0:first", "w-1:first", "w-2:first"]) && cluster.status()["currentRevision"] == first;
    cluster.work_until("all are as before", all_old).await;
    let revisions = cluster.list(&controllerrevision::KIND);
    let mut numbers: Vec<i64> = revisions.iter().map(|r| r.value()["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "renumbered and not made anew");
}

#[tokio::test]
async fn on_delete_pods_become_new_when_they_are_deleted_and_old_revisions_go() {
    let cluster = cluster().await;
    let spec =
        json!({"updateStrategy": {"type": "OnDelete"}, "revisionHistoryLimit": 1, "podManagementPolicy": "Parallel"});
    cluster.create(set(2, spec)).await;
    cluster.work_until("it runs", || is(&cluster, &["w-0:first", "w-1:first"])).await;
    for name in ["second", "third", "fourth"] {
        cluster.patch(image(name)).await;
        let seen = || cluster.status()["updatedReplicas"].is_null();
        cluster.until("it is seen", seen).await;
        assert!(pods(&cluster).iter().all(|p| !p.ends_with(name)));
        for pod in ["w-0", "w-1"] {
            cluster.delete_pod(pod).await;
        }
        cluster
            .work_until("they are new", || {
                cluster.status()["updatedReplicas"] == 2 && cluster.status()["readyReplicas"] == 2
            })
            .await;
    }
    // That of the status, that of the pods, and one.
    cluster.patch(json!({"spec": {"minReadySeconds": 0, "replicas": 1}})).await;
    cluster.work_until("old revisions are gone", || cluster.list(&controllerrevision::KIND).len() == 3).await;
}

#[tokio::test]
async fn pods_that_were_let_go_are_taken_again_and_one_of_other_labels_is_let_go() {
    let cluster = cluster().await;
    cluster.create(set(1, json!({}))).await;
    cluster.work_until("it runs", || is(&cluster, &["w-0:first"])).await;
    let uid = cluster.pods()[0].meta.uid.clone();
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    cluster.client.delete(&KIND, "n", "w", orphan).await.unwrap();
    cluster.until("it is gone", || cluster.list(&KIND).is_empty() && cluster.pods()[0].controller().is_none()).await;
    cluster.create(set(1, json!({}))).await;
    cluster.until("it is taken", || cluster.pods()[0].controller().is_some() && is(&cluster, &["w-0:first"])).await;
    assert_eq!(cluster.pods()[0].meta.uid, uid);
    let other = Patch::Merge(json!({"metadata": {"labels": {"a": "c"}}}));
    cluster.client.patch(&pod_kind::KIND, "n", "w-0", None, other).await.unwrap();
    cluster
        .until("it is let go", || cluster.pods()[0].controller().is_none() && cluster.status()["replicas"] == 0)
        .await;
    assert_eq!(cluster.pods()[0].meta.uid, uid, "its name is taken, so there is no other");
    cluster.delete_pod("w-0").await;
    cluster.work_until("there is another", || is(&cluster, &["w-0:first"])).await;
    assert_ne!(cluster.pods()[0].meta.uid, uid);
}

#[tokio::test]
async fn a_budget_counts_parts_of_what_the_set_wants_and_a_scale_is_its_scale() {
    let cluster = cluster().await;
    cluster.create(set(2, json!({"podManagementPolicy": "Parallel"}))).await;
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": "50%", "selector": {"matchLabels": {"a": "b"}}}});
    let kind: &KindRef = &poddisruptionbudget::KIND;
    cluster.client.create(kind, "n", budget).await.unwrap();
    let allowed = |expected: i64, allowed: i64| {
        let status = cluster.client.informer(kind).get("n", "b").unwrap().value()["status"].clone();
        status["expectedPods"] == expected && status["disruptionsAllowed"] == allowed
    };
    cluster.work_until("one of two may go", || allowed(2, 1)).await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    cluster.client.patch(&KIND, "n", "w", Some(Subresource::Scale), scale).await.unwrap();
    cluster.work_until("two of four may go", || allowed(4, 2)).await;
}

fn claimed(replicas: i64, policy: (&str, &str)) -> Value {
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    set(
        replicas,
        json!({
            "volumeClaimTemplates": [claim],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy.0, "whenScaled": policy.1},
        }),
    )
}

/// The names of the claims that are not ending, and of the kinds that own them.
fn claims(cluster: &Cluster) -> Vec<(String, String)> {
    let all = cluster.list(&persistentvolumeclaim::KIND).into_iter().filter(|o| o.meta.deleted.is_none());
    all.map(|o| (o.meta.name.to_string(), o.controller().map(|w| w.kind.to_string()).unwrap_or_default())).collect()
}

fn owned(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|(name, owner)| ((*name).to_owned(), (*owner).to_owned())).collect()
}

#[tokio::test]
async fn each_number_has_its_claim_which_outlives_its_pods() {
    let cluster = cluster().await;
    cluster.create(claimed(2, ("Retain", "Retain"))).await;
    cluster.work_until("both run", || is(&cluster, &["w-0:first", "w-1:first"])).await;
    let both = owned(&[("data-w-0", ""), ("data-w-1", "")]);
    assert_eq!(claims(&cluster), both);
    let volumes = cluster.pods()[1].value()["spec"]["volumes"].clone();
    assert_eq!(volumes[0], json!({"name": "data", "persistentVolumeClaim": {"claimName": "data-w-1"}}));
    let uid = cluster.list(&persistentvolumeclaim::KIND)[1].meta.uid.clone();
    cluster.delete_pod("w-1").await;
    cluster.work_until("it is back", || is(&cluster, &["w-0:first", "w-1:first"])).await;
    cluster.patch(json!({"spec": {"replicas": 1}})).await;
    cluster.work_until("one is left", || is(&cluster, &["w-0:first"])).await;
    assert_eq!((claims(&cluster), &cluster.list(&persistentvolumeclaim::KIND)[1].meta.uid), (both, &uid));
    let told = cluster.reasons().iter().filter(|r| *r == "SuccessfulCreate").count();
    assert!(told >= 4, "claims and pods: {told}");
}

#[tokio::test]
async fn claims_go_with_their_number_or_with_the_set_if_that_is_wanted() {
    let cluster = cluster().await;
    cluster.create(claimed(2, ("Delete", "Delete"))).await;
    cluster.work_until("both run", || is(&cluster, &["w-0:first", "w-1:first"])).await;
    let of_set = owned(&[("data-w-0", "StatefulSet"), ("data-w-1", "StatefulSet")]);
    cluster.work_until("they are the set's", || claims(&cluster) == of_set).await;
    cluster.patch(json!({"spec": {"replicas": 1}})).await;
    let first = owned(&[("data-w-0", "StatefulSet")]);
    cluster.work_until("the claim goes with its pod", || claims(&cluster) == first).await;
    let retained = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}}});
    cluster.patch(retained).await;
    cluster.work_until("it is nobody's", || claims(&cluster) == owned(&[("data-w-0", "")])).await;
    cluster.patch(json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}})).await;
    cluster.work_until("it is the set's again", || claims(&cluster) == first).await;
    let options = DeleteOptions { propagation: Some(Propagation::Background), ..DeleteOptions::default() };
    cluster.client.delete(&KIND, "n", "w", options).await.unwrap();
    cluster.work_until("all goes", || cluster.list(&persistentvolumeclaim::KIND).is_empty()).await;
}

#[tokio::test]
async fn without_its_claim_there_is_no_pod() {
    let cluster = cluster().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"persistentvolumeclaims": "0"}}});
    cluster.client.create(&crate::kinds::core::resourcequota::KIND, "n", quota).await.unwrap();
    let counted = || {
        let quotas = cluster.list(&crate::kinds::core::resourcequota::KIND);
        quotas[0].value()["status"]["hard"].is_object()
    };
    cluster.until("counted", counted).await;
    cluster.create(claimed(1, ("Retain", "Retain"))).await;
    cluster.until("told", || cluster.reasons().iter().any(|r| r == "FailedCreate")).await;
    assert!(cluster.pods().is_empty() && claims(&cluster).is_empty());
    cluster.client.delete(&crate::kinds::core::resourcequota::KIND, "n", "q", DeleteOptions::default()).await.unwrap();
    cluster.work_until("it runs", || is(&cluster, &["w-0:first"])).await;
}
