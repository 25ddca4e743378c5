//! ReplicaSets: as many pods of a template as asked for.
//!
//! Plan and apply: [`plan`] decides from what is observed; pods are created and deleted in growing batches, so that a
//! template that cannot be created costs one refused request and not five hundred. The status is computed after the pods
//! were changed, from what then is: no expectations are kept, because the view shows every acknowledged write.

mod member;
mod rank;
mod status;

pub use member::{Member, min_ready};

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{Context, absent_is_fine, controller_reference, pods, typed};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::apps::replicaset;
use crate::kinds::core::pod;
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Reconciler, Recorder};

/// Pods that one run creates or deletes at most.
const BURST: usize = 500;

struct ReplicaSets {
    cx: Arc<Context>,
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
    let recorder = cx.recorder("replicaset-controller");
    let context = cx.clone();
    // A pod that nobody controls may be adopted by whoever selects it.
    let free = move |c: &Changed| {
        if c.deleted || c.object.controller().is_some() {
            return Vec::new();
        }
        let sets = context.client.informer(&replicaset::KIND).list(&c.object.meta.namespace);
        let selects = |s: &&Arc<Object>| selector(s).is_ok_and(|s| !s.is_empty() && s.matches(&c.object.meta.labels));
        sets.iter().filter(selects).map(|s| Key::of(s)).collect()
    };
    Controller::new("replicaset", Arc::new(ReplicaSets { cx: cx.clone(), recorder }), cx.clock.clone())
        .for_kind(&*cx.client, &replicaset::KIND)
        .owns(&*cx.client, &pod::KIND, &replicaset::KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(free))
        .workers(16)
}

#[async_trait]
impl Reconciler for ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&replicaset::KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let set: Arc<ReplicaSet> = typed(&object)?;
        let selector = selector(&object)?;
        let members = self.claim(&object, &selector).await?;
        let (mut failure, mut changed) = (None, false);
        if object.meta.deleted.is_none() {
            let wanted = set.spec.replicas.unwrap_or(1).max(0) as usize;
            let plan = self.plan(&object, &members, wanted);
            changed = plan.create > 0 || !plan.delete.is_empty();
            failure = self.apply(&object, plan).await.err();
        }
        let members = if changed { self.owned(&object, &selector)? } else { members };
        let reason = if failure.as_ref().is_some_and(|f| f.deleting) { "FailedDelete" } else { "FailedCreate" };
        let failed = failure.as_ref().map(|f| (reason, f.status.message.as_str()));
        let now = self.cx.clock.now();
        let (status, wake) = status::compute(&object, &set, &members, failed, now);
        // Read again: the status is written onto what is there now.
        let Some(current) = self.cx.client.informer(&replicaset::KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        if current.meta.uid == object.meta.uid {
            absent_is_fine(self.cx.write_status(&replicaset::KIND, &current, status, Map::new()).await)?;
        }
        match failure {
            Some(failure) if !failure.namespace_ends => Err(failure.status),
            _ => Ok(wake.map_or(Outcome::Done, Outcome::At)),
        }
    }
}

/// Why pods could not be made or removed.
struct Failure {
    status: Status,
    deleting: bool,
    namespace_ends: bool,
}

// === impl ReplicaSets ===

impl ReplicaSets {
    /// The pods of the set that have not ended for good, after adopting and releasing.
    async fn claim(&self, set: &Arc<Object>, selector: &Selector) -> Result<Vec<Member>> {
        for pod in self.cx.pods.get(&pods::owner_key(&set.meta.uid)) {
            if !selector.matches(&pod.meta.labels) && set.meta.deleted.is_none() && pod.meta.deleted.is_none() {
                pods::release(&self.cx.client, &pod::KIND, &pod, &set.meta.uid).await?;
            }
        }
        if set.meta.deleted.is_none() && !selector.is_empty() {
            for pod in self.cx.pods.get(&pods::free_key(&set.meta.namespace)) {
                if selector.matches(&pod.meta.labels) && pods::is_active(&*typed::<Pod>(&pod)?) {
                    let reference = controller_reference(&replicaset::KIND, set);
                    absent_is_fine(pods::adopt(&self.cx.client, &pod::KIND, &pod, reference).await)?;
                }
            }
        }
        self.owned(set, selector)
    }

    fn owned(&self, set: &Object, selector: &Selector) -> Result<Vec<Member>> {
        let owned = self.cx.pods.get(&pods::owner_key(&set.meta.uid)).into_iter();
        let mine = owned.filter(|o| selector.matches(&o.meta.labels));
        let members = mine.map(|object| Ok(Member { pod: typed(&object)?, object }));
        members.filter(|m| m.as_ref().map_or(true, |m| !pods::is_over(&m.pod))).collect()
    }

    fn plan(&self, set: &Object, members: &[Member], wanted: usize) -> Plan {
        let active: Vec<&Member> = members.iter().filter(|m| pods::is_active(&m.pod)).collect();
        if active.len() <= wanted {
            return Plan { create: (wanted - active.len()).min(BURST), delete: Vec::new() };
        }
        let surplus = (active.len() - wanted).min(BURST);
        let related = if wanted == 0 { Vec::new() } else { self.related(set) };
        Plan { create: 0, delete: rank::choose(&active, &related, surplus, self.cx.clock.now()) }
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
        let new_pod = new_pod(set);
        let (mut left, mut batch) = (plan.create, 1);
        while left > 0 {
            let now = batch.min(left);
            let results = join_all((0..now).map(|_| self.create(set, new_pod.clone()))).await;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                return Err(error);
            }
            left -= now;
            batch *= 2;
        }
        let deletions = plan.delete.iter().map(|m| self.delete(set, m));
        join_all(deletions).await.into_iter().collect()
    }

    async fn create(&self, set: &Object, pod: Value) -> Result<(), Failure> {
        match self.cx.client.create(&pod::KIND, &set.meta.namespace, pod).await {
            Ok(pod) => {
                let message = format!("Created pod: {}", pod.meta.name);
                self.recorder.event(&replicaset::KIND, set, EventType::Normal, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(status) => {
                let ends = status.details.causes.iter().any(|c| c.reason == "NamespaceTerminating");
                if !ends {
                    let message = format!("Error creating: {status}");
                    self.recorder.event(&replicaset::KIND, set, EventType::Warning, "FailedCreate", &message);
                }
                Err(Failure { status, deleting: false, namespace_ends: ends })
            }
        }
    }

    async fn delete(&self, set: &Object, member: &Member) -> Result<(), Failure> {
        let meta = &member.object.meta;
        let options = DeleteOptions { uid: Some(meta.uid.to_string()), ..DeleteOptions::default() };
        match absent_is_fine(self.cx.client.delete(&pod::KIND, &meta.namespace, &meta.name, options).await) {
            Ok(()) => {
                let message = format!("Deleted pod: {}", meta.name);
                self.recorder.event(&replicaset::KIND, set, EventType::Normal, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(status) => {
                let message = format!("Error deleting: {status}");
                self.recorder.event(&replicaset::KIND, set, EventType::Warning, "FailedDelete", &message);
                Err(Failure { status, deleting: true, namespace_ends: false })
            }
        }
    }
}

/// The selector of a ReplicaSet (or of anything else with `spec.selector`).
pub fn selector(object: &Object) -> Result<Selector> {
    let set: Arc<ReplicaSet> = typed(object)?;
    let selector = serde_json::to_value(&set.spec.selector).unwrap_or_default();
    Selector::from_object(&selector).map_err(|e| Status::internal(format!("{}: {e}", object.key)))
}

/// The pod that a ReplicaSet's template describes.
fn new_pod(set: &Object) -> Value {
    let value = set.value();
    let template = &value["spec"]["template"];
    let mut metadata = json!({
        "generateName": format!("{}-", set.meta.name),
        "ownerReferences": [controller_reference(&replicaset::KIND, set)],
    });
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(given) = template["metadata"].get(key) {
            metadata[key] = given.clone();
        }
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}
