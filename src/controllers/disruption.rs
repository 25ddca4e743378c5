//! How many pods a PodDisruptionBudget leaves to be evicted.
//!
//! Eviction takes from `disruptionsAllowed` and notes the pod; here it is counted anew from the pods there are. A count is
//! written only onto the budget it was begun with, so that an eviction meanwhile is not forgotten.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use super::{Context, absent_is_fine, pods, typed};
use crate::apimachinery::status::Result;
use crate::base::clock::parse_time;
use crate::base::json::{at, int, map, map_mut, remove, set};
use crate::base::object::Object;
use crate::kinds::core::pod;
use crate::kinds::policy::poddisruptionbudget::{self as budget, KIND};
use crate::kinds::{KindRef, Subresource, check};
use crate::reconcile::{Changed, Client, Controller, EventType, Key, Outcome, Reconciler, Recorder};

/// How long a pod that was evicted may take to begin to end, until it counts again.
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

struct Disruptions {
    cx: Arc<Context>,
    recorder: Recorder,
}

/// A pod of a budget.
struct Member {
    object: Arc<Object>,
    pod: Arc<Pod>,
}

/// What a budget says of its pods.
#[derive(Debug, Default, PartialEq)]
struct Counts {
    expected: i64,
    healthy: i64,
    desired: i64,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let client = cx.client.clone();
    let of_pod = move |c: &Changed| {
        let budgets = client.informer(&KIND).list(&c.object.meta.namespace);
        let selected = |b: &&Arc<Object>| {
            let value = b.value();
            let mut states = [Some(&c.object), c.previous.as_ref()].into_iter().flatten();
            states.any(|pod| budget::selects(&value, &pod.meta.labels))
        };
        budgets.iter().filter(selected).map(|b| Key::of(b)).collect()
    };
    let disruptions = Disruptions { cx: cx.clone(), recorder: cx.recorder("controllermanager") };
    Controller::new("disruption", Arc::new(disruptions), cx.clock.clone()).for_kind(&*cx.client, &KIND).watches(
        &*cx.client,
        &pod::KIND,
        Box::new(of_pod),
    )
}

#[async_trait]
impl Reconciler for Disruptions {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.cx.client;
        // Read before the pods: see above.
        let Some(object) = client.informer(&KIND).get(&key.namespace, &key.name) else { return Ok(Outcome::Done) };
        if object.meta.deleted.is_some() {
            return Ok(Outcome::Done);
        }
        let (old, now) = (object.value(), self.cx.clock.now());
        let all = client.informer(&pod::KIND).list(&key.namespace);
        let mine = all.into_iter().filter(|p| budget::selects(&old, &p.meta.labels));
        let members: Vec<Member> = mine.map(|o| Ok(Member { pod: typed(&o)?, object: o })).collect::<Result<_>>()?;
        let mut new = old.clone();
        let mut wake = None;
        match self.expected(&old["spec"], &members) {
            Err(why) => budget::set_failed(&mut new, &why, now),
            Ok((expected, desired)) => {
                let (disrupted, recheck) = still_to_go(&old, &members, now);
                let healthy = members.iter().filter(|m| is_healthy(m, &disrupted)).count() as i64;
                wake = recheck;
                note(&mut new, &Counts { expected, healthy, desired }, disrupted);
                budget::set_condition(&mut new, now);
            }
        }
        if new["status"] != old["status"] {
            self.tell(&object, &new, &members);
            let through = Some(Subresource::Status);
            absent_is_fine(client.update(&KIND, &key.namespace, &key.name, through, new).await)?;
        }
        Ok(wake.map_or(Outcome::Done, Outcome::At))
    }
}

// === impl Disruptions ===

impl Disruptions {
    fn tell(&self, object: &Arc<Object>, new: &Value, members: &[Member]) {
        let condition = &new["status"]["conditions"][0];
        if condition["reason"] == budget::SYNC_FAILED {
            let why = condition["message"].as_str().unwrap_or("");
            let message = format!("Failed to calculate the number of expected pods: {why}");
            self.recorder.event(&KIND, object, EventType::Warning, "CalculateExpectedPodCountFailed", &message);
        }
        if members.is_empty() {
            self.recorder.event(&KIND, object, EventType::Normal, "NoPods", "No matching pods found");
        }
    }

    /// How many pods there should be, and how many must be healthy.
    fn expected(&self, spec: &Value, members: &[Member]) -> Result<(i64, i64), String> {
        let given = |key: &str| spec.get(key).filter(|v| !v.is_null());
        match (given("maxUnavailable"), given("minAvailable")) {
            (Some(most), _) => {
                let expected = self.scale(members)?;
                Ok((expected, (expected - scaled(most, expected)).max(0)))
            }
            (None, Some(least @ Value::String(_))) => {
                let expected = self.scale(members)?;
                Ok((expected, scaled(least, expected)))
            }
            (None, Some(least)) => Ok((members.len() as i64, least.as_i64().unwrap_or(0))),
            (None, None) => Ok((0, 0)),
        }
    }

    /// How many pods the controllers of these pods want in all. Pods that nobody controls do not count.
    fn scale(&self, members: &[Member]) -> Result<i64, String> {
        let (mut scales, mut seen) = (HashMap::new(), HashSet::new());
        for member in members {
            let Some(owner) = member.object.controller().filter(|o| seen.insert(o.uid.clone())) else { continue };
            let (uid, replicas) = owner_scale(&*self.cx.client, &member.object, true)?
                .ok_or_else(|| format!("found no controllers for pod {:?}", &*member.object.meta.name))?;
            debug_assert!(!owner.uid.is_empty());
            scales.insert(uid, replicas);
        }
        Ok(scales.values().sum())
    }
}

/// The controller of an object that has a scale, and how many pods it wants: a ReplicaSet's Deployment stands for it.
fn owner_scale(client: &dyn Client, of: &Object, is_pod: bool) -> Result<Option<(String, i64)>, String> {
    let Some(owner) = of.controller() else { return Ok(None) };
    let kinds = client.kinds().snapshot();
    let Some(kind) = kinds.by_kind(&owner.api_version, &owner.kind) else { return Ok(None) };
    let has_scale = kind.subresources().contains(&Subresource::Scale);
    if !has_scale {
        let name = |kind: &KindRef| match kind.group() {
            "" => kind.plural().to_owned(),
            group => format!("{}.{group}", kind.plural()),
        };
        return if is_pod { Err(format!("{} does not implement the scale subresource", name(kind))) } else { Ok(None) };
    }
    let found = client.informer(kind.stored()).get(&of.meta.namespace, &owner.name).filter(|o| o.meta.uid == owner.uid);
    let Some(found) = found else { return Ok(None) };
    if is_pod && let Some(above) = owner_scale(client, &found, false)? {
        return Ok(Some(above));
    }
    Ok(Some((found.meta.uid.to_string(), int(&found.value(), "spec.replicas").unwrap_or(0))))
}

/// A number, or a part of all, rounded up.
fn scaled(value: &Value, of: i64) -> i64 {
    match value.as_str().and_then(check::percent) {
        Some(percent) => (percent * of + 99) / 100,
        None => value.as_i64().unwrap_or(0),
    }
}

fn is_healthy(member: &Member, disrupted: &Map<String, Value>) -> bool {
    member.object.meta.deleted.is_none()
        && !disrupted.contains_key(&*member.object.meta.name)
        && pods::is_ready(&member.pod)
}

/// The pods that were evicted and have not begun to end, and when the first of them counts again.
fn still_to_go(old: &Value, members: &[Member], now: Timestamp) -> (Map<String, Value>, Option<Timestamp>) {
    let (mut kept, mut recheck) = (Map::new(), None::<Timestamp>);
    let noted = map(old, "status.disruptedPods");
    for member in members.iter().filter(|m| m.object.meta.deleted.is_none()) {
        let name = &*member.object.meta.name;
        let Some(since) = noted.and_then(|all| all.get(name)) else { continue };
        let Some(end) = since.as_str().and_then(parse_time).map(|t| t + DELETION_TIMEOUT) else { continue };
        if end > now {
            kept.insert(name.to_owned(), since.clone());
            recheck = Some(recheck.map_or(end, |r| r.min(end)));
        }
    }
    (kept, recheck)
}

fn note(new: &mut Value, counts: &Counts, disrupted: Map<String, Value>) {
    // Nothing is allowed where nothing is expected: the first pods may be there before they are counted.
    let allowed = if counts.expected > 0 { (counts.healthy - counts.desired).max(0) } else { 0 };
    let generation = at(new, "metadata.generation").cloned().unwrap_or_default();
    let status = map_mut(new, "status");
    for (key, count) in [
        ("currentHealthy", counts.healthy),
        ("desiredHealthy", counts.desired),
        ("disruptionsAllowed", allowed),
        ("expectedPods", counts.expected),
    ] {
        status.insert(key.to_owned(), count.into());
    }
    status.insert("observedGeneration".to_owned(), generation);
    if disrupted.is_empty() {
        remove(new, "status.disruptedPods");
    } else {
        set(new, "status.disruptedPods", disrupted);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::local::Local;
    use crate::api::{Request, in_memory};
    use crate::base::clock::Clock;
    use crate::controllers::{MANAGER, Options, start};
    use crate::kinds::apps::{deployment, replicaset};
    use crate::kinds::core::namespace;
    use crate::reconcile::Patch;

    #[test]
    fn parts_are_rounded_up() {
        for (value, of, want) in [(json!(3), 10, 3), (json!("50%"), 3, 2), (json!("1%"), 10, 1), (json!("0%"), 10, 0)] {
            assert_eq!(scaled(&value, of), want, "{value}");
        }
    }

    async fn shows(client: &Arc<dyn Client>, name: &str, want: [i64; 4]) -> Value {
        let mut last = Value::Null;
        for _ in 0..500 {
            let value = client.get(&KIND, "n", name).await.unwrap().value();
            let keys = ["expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed"];
            last = value["status"].clone();
            if last["observedGeneration"] == value["metadata"]["generation"]
                && keys.map(|key| last[key].as_i64().unwrap()) == want
            {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name}: {last} is not {want:?}");
    }

    async fn set_ready(client: &Arc<dyn Client>, name: &str, ready: &str) {
        let now = "2026-01-01T00:00:00Z";
        let status =
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now}]});
        let patch = Patch::Strategic(json!({"status": status}));
        client.patch(&pod::KIND, "n", name, Some(Subresource::Status), patch).await.unwrap();
    }

    fn make_budget(name: &str, key: &str, count: Value) -> Value {
        json!({"metadata": {"name": name}, "spec": {key: count, "selector": {"matchLabels": {"a": "b"}}}})
    }

    /// A pod that is bound, so that it is given time to end.
    fn make_pod(name: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"a": "b"}},
            "spec": {"nodeName": "m", "containers": [{"name": "c", "image": "i"}]}})
    }

    #[tokio::test]
    async fn a_budget_counts_ready_pods_and_eviction_takes_from_it() {
        let api = in_memory::api();
        let client: Arc<dyn Client> = Arc::new(Local::new(api.clone(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        client.create(&KIND, "n", make_budget("b", "minAvailable", json!(1))).await.unwrap();
        let status = shows(&client, "b", [0, 0, 1, 0]).await;
        assert_eq!(status["conditions"][0]["reason"], "InsufficientPods");
        for name in ["x", "y"] {
            client.create(&pod::KIND, "n", make_pod(name)).await.unwrap();
            set_ready(&client, name, "True").await;
        }
        let status = shows(&client, "b", [2, 2, 1, 1]).await;
        assert_eq!(
            (&status["conditions"][0]["status"], &status["conditions"][0]["reason"]),
            (&json!("True"), &json!("SufficientPods"))
        );
        let evict = async |name: &str| {
            let request = Request::internal("test", &pod::KIND, "n", name).on(Subresource::Eviction);
            api.evict(&request, &json!({"metadata": {"name": name}})).await
        };
        let trial = Request { dry_run: true, ..Request::internal("test", &pod::KIND, "n", "x") };
        api.evict(&trial, &json!({})).await.unwrap();
        shows(&client, "b", [2, 2, 1, 1]).await;
        evict("x").await.unwrap();
        let gone = client.get(&pod::KIND, "n", "x").await.unwrap().value();
        assert!(gone["metadata"]["deletionTimestamp"].is_string());
        let told = gone["status"]["conditions"].as_array().unwrap();
        assert!(
            told.iter().any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "EvictionByEvictionAPI"),
            "{told:?}"
        );
        shows(&client, "b", [2, 1, 1, 0]).await;
        let refused = evict("y").await.unwrap_err();
        assert_eq!((refused.code, refused.reason), (429, "TooManyRequests"));
        assert_eq!(refused.message, "Cannot evict pod as it would violate the pod's disruption budget.");
        let cause = &refused.details.causes[0];
        assert_eq!((cause.reason.as_str(), refused.details.retry_after_seconds), ("DisruptionBudget", None));
        assert_eq!(cause.message, "The disruption budget b needs 1 healthy pods and has 1 currently");
        // A budget that has not been counted says so, and when to come again.
        client.create(&KIND, "n", make_budget("c", "minAvailable", json!(1))).await.unwrap();
        client.delete(&KIND, "n", "b", Default::default()).await.unwrap();
        shows(&client, "c", [2, 1, 1, 0]).await;
        // A pod that is not ready is let go where enough others are, or always.
        set_ready(&client, "y", "False").await;
        shows(&client, "c", [2, 0, 1, 0]).await;
        assert_eq!(evict("y").await.unwrap_err().code, 429);
        let always = Patch::Merge(json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}}));
        client.patch(&KIND, "n", "c", None, always).await.unwrap();
        evict("y").await.unwrap();
        controllers.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn two_budgets_of_one_pod_and_one_that_is_not_counted_let_nothing_go() {
        let api = in_memory::api();
        let client: Arc<dyn Client> = Arc::new(Local::new(api.clone(), MANAGER));
        // No controllers: nobody counts.
        let _ = in_memory::pod_creator(&api, "n").await;
        client.create(&pod::KIND, "n", make_pod("x")).await.unwrap();
        set_ready(&client, "x", "True").await;
        client.create(&KIND, "n", make_budget("b", "minAvailable", json!(0))).await.unwrap();
        let request = Request::internal("test", &pod::KIND, "n", "x").on(Subresource::Eviction);
        let refused = api.evict(&request, &json!({})).await.unwrap_err();
        assert_eq!((refused.code, refused.details.retry_after_seconds), (429, Some(10)));
        assert_eq!(
            refused.details.causes[0].message,
            "The disruption budget b is still being processed by the server."
        );
        client.create(&KIND, "n", make_budget("c", "minAvailable", json!(0))).await.unwrap();
        let refused = api.evict(&request, &json!({})).await.unwrap_err();
        assert_eq!(refused.code, 500);
        assert!(client.get(&pod::KIND, "n", "x").await.unwrap().meta.deleted.is_none());
    }

    #[tokio::test]
    async fn parts_are_parts_of_what_the_controllers_of_the_pods_want() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let spec = json!({"replicas": 5, "selector": {"matchLabels": {"a": "b"}}, "template": template});
        client.create(&deployment::KIND, "n", json!({"metadata": {"name": "d"}, "spec": spec})).await.unwrap();
        client.create(&KIND, "n", make_budget("most", "maxUnavailable", json!("25%"))).await.unwrap();
        client.create(&KIND, "n", make_budget("least", "minAvailable", json!("50%"))).await.unwrap();
        shows(&client, "most", [5, 0, 3, 0]).await;
        shows(&client, "least", [5, 0, 3, 0]).await;
        for object in client.informer(&pod::KIND).list("n") {
            set_ready(&client, &object.meta.name, "True").await;
        }
        shows(&client, "most", [5, 5, 3, 2]).await;
        assert_eq!(client.informer(&replicaset::KIND).list("n").len(), 1);
        // A pod whose controller has no scale cannot be counted.
        let mut other = make_pod("odd");
        let (owner, uid) = (client.get(&namespace::KIND, "", "n").await.unwrap(), "metadata");
        other[uid]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Namespace", "name": "n",
            "uid": &*owner.meta.uid, "controller": true}]);
        client.create(&pod::KIND, "n", other).await.unwrap();
        for _ in 0..500 {
            let status = client.get(&KIND, "n", "most").await.unwrap().value()["status"].clone();
            if status["conditions"][0]["reason"] == budget::SYNC_FAILED {
                assert_eq!(status["disruptionsAllowed"], 0);
                assert_eq!(status["conditions"][0]["message"], "namespaces does not implement the scale subresource");
                controllers.iter().for_each(|task| task.abort());
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it was counted");
    }
}
