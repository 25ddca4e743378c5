//! The controller with all others running, against the API on the store in memory.

use serde_json::{Value, json};

use super::{HASH, pod};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::controllers::cluster::Cluster;
use crate::kinds::KindRef;
use crate::kinds::apps::controllerrevision;
use crate::kinds::apps::daemonset::KIND;
use crate::kinds::core::{node, pod as pod_kind};
use crate::reconcile::Patch;

async fn on_nodes(nodes: &[&str]) -> Cluster {
    Cluster::new(&KIND, "d", nodes).await
}

/// Node, revision and name of each pod that is not ending.
fn pods(cluster: &Cluster) -> Vec<(String, String, String)> {
    let mut all: Vec<_> = cluster
        .pods()
        .into_iter()
        .map(|object| {
            let member = super::Member { pod: object.typed().unwrap(), object: object.clone() };
            let node = pod::target(&member).unwrap_or("").to_owned();
            (node, member.label(HASH).to_owned(), object.meta.name.to_string())
        })
        .collect();
    all.sort();
    all
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
    let cluster = on_nodes(&["x", "y"]).await;
    cluster.create(daemons("i")).await;
    let on = || pods(&cluster).into_iter().map(|(node, ..)| node).collect::<Vec<_>>();
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
    let cluster = on_nodes(&["x"]).await;
    cluster.create(daemons("i")).await;
    cluster.work_until("it runs", || cluster.status()["numberReady"] == 1).await;
    let first = pods(&cluster)[0].2.clone();
    cluster.set_phase(&first, "Failed").await;
    cluster
        .work_until("another runs", || {
            pods(&cluster).iter().any(|p| p.2 != first) && cluster.status()["numberReady"] == 1
        })
        .await;
    let wanted = ["FailedDaemonPod", "SuccessfulCreate", "SuccessfulDelete"];
    cluster.until("it is told", || wanted.iter().all(|r| cluster.reasons().iter().any(|t| t == r))).await;
    let second = pods(&cluster)[0].2.clone();
    cluster.delete_pod(&second).await;
    cluster
        .work_until("a third runs", || {
            pods(&cluster).iter().any(|p| p.2 != second) && cluster.status()["numberReady"] == 1
        })
        .await;
}

#[tokio::test]
async fn a_template_that_comes_back_keeps_the_pods_that_it_still_has() {
    let cluster = on_nodes(&["x", "y"]).await;
    cluster.create(daemons("first")).await;
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 2).await;
    let before = pods(&cluster);
    // One node after the other: the second waits as the first never becomes ready.
    cluster.patch(image("broken")).await;
    cluster.until("one is ending", || pods(&cluster).len() == 1).await;
    let kept = pods(&cluster);
    cluster.patch(image("first")).await;
    cluster
        .work_until("both are of the first template", || {
            cluster.status()["updatedNumberScheduled"] == 2 && cluster.status()["numberAvailable"] == 2
        })
        .await;
    let after = pods(&cluster);
    assert!(after.contains(&kept[0]), "{after:?} has not {kept:?}");
    assert_eq!(after[0].1, before[0].1, "the revision of the first template is its again");
    let mut revisions: Vec<i64> =
        cluster.list(&controllerrevision::KIND).iter().map(|r| r.value()["revision"].as_i64().unwrap()).collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [2, 3], "renumbered and not made anew");
}

#[tokio::test]
async fn an_update_replaces_pods_old_revisions_are_cleaned_up_and_on_delete_waits() {
    let cluster = on_nodes(&["x"]).await;
    let mut object = daemons("0");
    object["spec"]["revisionHistoryLimit"] = 1.into();
    cluster.create(object).await;
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
    let running = pods(&cluster);
    cluster.patch(json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}})).await;
    cluster.patch(image("4")).await;
    cluster
        .until("it is seen", || {
            cluster.status()["observedGeneration"] == 6 && cluster.status()["updatedNumberScheduled"].is_null()
        })
        .await;
    assert_eq!(pods(&cluster), running);
    cluster.delete_pod(&running[0].2).await;
    cluster.work_until("it is new", || cluster.status()["updatedNumberScheduled"] == 1).await;
}

#[tokio::test]
async fn pods_and_revisions_that_were_let_go_are_taken_by_who_comes_after() {
    let cluster = on_nodes(&["x"]).await;
    cluster.create(daemons("i")).await;
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 1).await;
    let before = pods(&cluster);
    let orphan = DeleteOptions { propagation: Some(Propagation::Orphan), ..DeleteOptions::default() };
    cluster.client.delete(&KIND, "n", "d", orphan).await.unwrap();
    cluster.until("it is gone", || cluster.list(&KIND).is_empty()).await;
    let free = |kind: &KindRef| cluster.list(kind).iter().all(|o| o.controller().is_none());
    cluster.until("nobody owns them", || free(&pod_kind::KIND) && free(&controllerrevision::KIND)).await;
    cluster.create(daemons("i")).await;
    cluster.work_until("they are taken", || cluster.status()["numberAvailable"] == 1).await;
    assert_eq!(pods(&cluster), before);
    assert_eq!(cluster.list(&controllerrevision::KIND).len(), 1);
    cluster.client.delete(&KIND, "n", "d", DeleteOptions::default()).await.unwrap();
    cluster
        .work_until("everything goes", || {
            pods(&cluster).is_empty() && cluster.list(&controllerrevision::KIND).is_empty()
        })
        .await;
}

#[tokio::test]
async fn a_revision_that_somebody_made_of_the_same_template_takes_the_place_of_ours() {
    let cluster = on_nodes(&["x"]).await;
    cluster.create(daemons("i")).await;
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 1).await;
    let before = pods(&cluster);
    let ours = cluster.list(&controllerrevision::KIND)[0].value();
    let mut theirs = json!({"metadata": {"name": "theirs", "labels": {"a": "b"}}, "revision": 5});
    theirs["data"] = ours["data"].clone();
    cluster.client.create(&controllerrevision::KIND, "n", theirs).await.unwrap();
    let names = || cluster.list(&controllerrevision::KIND).iter().map(|r| r.meta.name.to_string()).collect::<Vec<_>>();
    cluster.until("only theirs is left", || names() == ["theirs"]).await;
    let renamed = || pods(&cluster).iter().all(|p| p.1 == "theirs" && p.2 == before[0].2);
    cluster.until("the pod is of it", renamed).await;
}

#[tokio::test]
async fn a_revision_that_is_owned_already_stays_beside_ours_until_the_set_changes() {
    let cluster = on_nodes(&["x"]).await;
    cluster.create(daemons("i")).await;
    cluster.work_until("it runs", || cluster.status()["numberAvailable"] == 1).await;
    let ours = cluster.list(&controllerrevision::KIND)[0].clone();
    let value = ours.value();
    let mut theirs =
        json!({"metadata": {"name": "theirs", "labels": {"a": "b"}}, "revision": 2, "data": value["data"]});
    theirs["metadata"]["ownerReferences"] = value["metadata"]["ownerReferences"].clone();
    cluster.client.create(&controllerrevision::KIND, "n", theirs).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(cluster.list(&controllerrevision::KIND).len(), 2, "one more revision wakes nobody");
    cluster.client.delete(&controllerrevision::KIND, "n", &ours.meta.name, DeleteOptions::default()).await.unwrap();
    cluster.patch(image("2")).await;
    let newest = || {
        let all = cluster.list(&controllerrevision::KIND);
        all.iter().map(|r| r.value()["revision"].as_i64().unwrap()).max()
    };
    cluster.work_until("the next one is numbered behind theirs", || newest() == Some(3)).await;
}
