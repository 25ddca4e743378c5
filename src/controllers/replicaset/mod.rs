//! ReplicaSets and ReplicationControllers: as many pods of a template as asked for.
//!
//! Plan and apply: [`plan`] decides from what is observed. The status is computed after the pods were changed, from what
//! then is: no expectations are kept, because the view shows every acknowledged write.

mod rank;
mod set;
mod status;

pub(super) use rank::choose;

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value};

use super::pod_writer::{self, BURST, Failure, PodWriter, told_plainly};
use super::{Context, Member, absent_is_fine, member, pods};
use crate::apimachinery::status::Result;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::apps::replicaset;
use crate::kinds::core::{pod, replicationcontroller};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler, Recorder};
use set::Set;

struct ReplicaSets {
    cx: Arc<Context>,
    /// What they are: the same work is done for both kinds.
    kind: &'static KindRef,
    recorder: Recorder,
}

/// What one run does to pods.
#[derive(Debug, Default)]
struct Plan {
    create: usize,
    delete: Vec<Member>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    of_kind(cx, &replicaset::KIND, "replicaset", "replicaset-controller")
}

/// The controller of ReplicationControllers.
pub fn replication_controller(cx: &Arc<Context>) -> Controller {
    of_kind(cx, &replicationcontroller::KIND, "replicationcontroller", "replication-controller")
}

fn of_kind(cx: &Arc<Context>, kind: &'static KindRef, name: &'static str, component: &str) -> Controller {
    let recorder = cx.recorder(component);
    let context = cx.clone();
    // A pod that nobody controls may be adopted by whoever selects it.
    let free = move |c: &Changed| {
        if c.deleted || c.object.controller().is_some() {
            return Vec::new();
        }
        let sets = context.client.informer(kind).list(&c.object.meta.namespace);
        let selects = |s: &&Arc<Object>| {
            Set::of(kind, s).is_ok_and(|s| !s.selector.is_empty() && s.selector.matches(&c.object.meta.labels))
        };
        sets.iter().filter(selects).map(|s| Key::of(s)).collect()
    };
    Controller::new(name, Arc::new(ReplicaSets { cx: cx.clone(), kind, recorder }), cx.clock.clone())
        .for_kind(&*cx.client, kind)
        .owns(&*cx.client, &pod::KIND, kind)
        .watches(&*cx.client, &pod::KIND, Box::new(free))
        .workers(16)
}

#[async_trait]
impl Reconciler for ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(self.kind).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let set = Set::of(self.kind, &object)?;
        let selector = &set.selector;
        let members = self.claim(&object, selector).await?;
        let (mut failure, mut changed) = (None, false);
        if object.meta.deleted.is_none() {
            let wanted = set.replicas;
            let plan = self.plan(&object, &members, wanted);
            changed = plan.create > 0 || !plan.delete.is_empty();
            failure = self.apply(&object, plan).await.err();
        }
        let members = if changed { self.owned(&object, selector)? } else { members };
        let reason = if failure.as_ref().is_some_and(|f| f.deleting) { "FailedDelete" } else { "FailedCreate" };
        let failed = failure.as_ref().map(|f| (reason, f.status.message.as_str()));
        let now = self.cx.clock.now();
        let (status, wake) = status::compute(&object, &set, &members, failed, now);
        // Read again: the status is written onto what is there now.
        let Some(current) = self.cx.client.informer(self.kind).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if current.meta.uid == object.meta.uid {
            absent_is_fine(self.cx.write_status(self.kind, &current, status, Map::new()).await)?;
        }
        match failure {
            Some(failure) if !failure.namespace_ends => Err(failure.status),
            _ => Ok(wake.map_or(Outcome::Done, Outcome::At)),
        }
    }
}

// === impl ReplicaSets ===

impl ReplicaSets {
    /// The pods of the set that have not ended for good, after adopting and releasing.
    async fn claim(&self, set: &Arc<Object>, selector: &Selector) -> Result<Vec<Member>> {
        member::claim(&self.cx, self.kind, set, selector, |_, pod| pods::is_active(pod)).await?;
        self.owned(set, selector)
    }

    fn owned(&self, set: &Object, selector: &Selector) -> Result<Vec<Member>> {
        let mut members = Member::of_owner(&self.cx.pods, &set.meta.uid)?;
        members.retain(|m| selector.matches(&m.object.meta.labels) && !pods::is_over(&m.pod));
        Ok(members)
    }

    fn plan(&self, set: &Object, members: &[Member], wanted: usize) -> Plan {
        let active: Vec<&Member> = members.iter().filter(|m| pods::is_active(&m.pod)).collect();
        if active.len() <= wanted {
            return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
        }
        let surplus = (active.len() - wanted).min(BURST);
        let related = if wanted == 0 { Vec::new() } else { self.related(set) };
        Plan { create: 0, delete: choose(&active, &related, surplus, self.cx.clock.now()) }
    }

    /// The active pods of all sets of the same owner: where many of them share a node, one goes first.
    fn related(&self, set: &Object) -> Vec<Arc<Pod>> {
        let sets = match set.controller() {
            Some(owner) => self.cx.replica_sets.get(&pods::owner_key(&owner.uid)),
            None => Vec::new(),
        };
        let mut uids: Vec<&str> = sets.iter().map(|s| &*s.meta.uid).collect();
        if uids.is_empty() {
            uids.push(&set.meta.uid);
        }
        let all = uids.into_iter().flat_map(|uid| self.cx.pods.get(&pods::owner_key(uid)));
        all.filter_map(|o| o.typed::<Pod>().ok()).filter(|p| pods::is_active(p)).collect()
    }

    async fn apply(&self, set: &Arc<Object>, plan: Plan) -> Result<(), Failure> {
        let (client, recorder) = (&self.cx.client, &self.recorder);
        let writer = PodWriter { client, recorder, kind: self.kind, owner: set, told: told_plainly };
        if plan.create > 0 {
            writer.create_all(vec![new_pod(self.kind, set); plan.create]).await?;
        }
        writer.delete_all(&plan.delete).await
    }
}

/// The pod that the template of a set describes.
fn new_pod(kind: &KindRef, set: &Object) -> Value {
    pod_writer::new_pod(kind, set, &set.value()["spec"]["template"])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::apimachinery::delete_options::DeleteOptions;
    use crate::base::clock::Clock;
    use crate::controllers::{MANAGER, Options, start};
    use crate::kinds::core::namespace;
    use crate::kinds::core::resourcequota;
    use crate::reconcile::{Client, Patch};

    /// Waits until what is looked at has this form.
    async fn until(what: &str, look: impl AsyncFn() -> bool) {
        for _ in 0..500 {
            if look().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}");
    }

    #[tokio::test]
    async fn a_replication_controller_adopts_makes_and_releases_pods() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        let free = json!({"metadata": {"name": "free", "labels": {"a": "b"}}, "spec": spec});
        client.create(&pod::KIND, "n", free).await.unwrap();
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
        let wanted = json!({"metadata": {"name": "r"}, "spec": {"replicas": 2, "template": template}});
        let kind = &replicationcontroller::KIND;
        client.create(kind, "n", wanted).await.unwrap();
        let status = async || client.get(kind, "n", "r").await.unwrap().value()["status"].clone();
        until("it has two pods", async || {
            status().await == json!({"replicas": 2, "fullyLabeledReplicas": 2, "observedGeneration": 1})
        })
        .await;
        let pods = || client.informer(&pod::KIND).list("n");
        assert_eq!(pods().len(), 2, "one was there");
        let is_ours = |name: &str| {
            let found = client.informer(&pod::KIND).get("n", name).unwrap();
            found.controller().is_some_and(|o| &*o.kind == "ReplicationController" && &*o.name == "r")
        };
        assert!(is_ours("free"));
        let other = Patch::Merge(json!({"metadata": {"labels": {"a": "c"}}}));
        client.patch(&pod::KIND, "n", "free", None, other).await.unwrap();
        until("another is made", async || pods().len() == 3 && !is_ours("free")).await;
        // Who deletes it without saying more keeps the pods.
        client.delete(kind, "n", "r", DeleteOptions::default()).await.unwrap();
        until("it is gone", async || client.get(kind, "n", "r").await.is_err()).await;
        assert!(pods().len() == 3 && pods().iter().all(|p| p.controller().is_none() && p.meta.deleted.is_none()));
        controllers.iter().for_each(|task| task.abort());
    }

    #[tokio::test]
    async fn a_quota_that_is_used_up_is_a_condition_of_the_replication_controller_until_there_is_less_to_make() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), MANAGER));
        let controllers = start(client.clone(), Clock::system(), Options::default());
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
        client.create(&resourcequota::KIND, "n", quota).await.unwrap();
        let counted =
            async || client.get(&resourcequota::KIND, "n", "q").await.unwrap().value()["status"]["used"]["pods"] == "0";
        until("the quota is counted", counted).await;
        let spec = json!({"containers": [{"name": "c", "image": "i"}]});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": spec});
        let wanted = json!({"metadata": {"name": "r"}, "spec": {"replicas": 3, "template": template}});
        let kind = &replicationcontroller::KIND;
        client.create(kind, "n", wanted).await.unwrap();
        let failure = async || {
            let status = client.get(kind, "n", "r").await.unwrap().value()["status"].clone();
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|c| c["type"] == "ReplicaFailure")
        };
        until("it says so", async || {
            failure().await.is_some_and(|c| c["message"].as_str().unwrap().contains("exceeded quota: q"))
        })
        .await;
        assert_eq!(client.informer(&pod::KIND).list("n").len(), 2);
        client.patch(kind, "n", "r", None, Patch::Merge(json!({"spec": {"replicas": 2}}))).await.unwrap();
        until("it says so no longer", async || failure().await.is_none()).await;
        controllers.iter().for_each(|task| task.abort());
    }
}
