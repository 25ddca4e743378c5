//! Deployments: rollouts by ReplicaSets.
//!
//! [`plan`](plan::plan) is pure: from the Deployment and its ReplicaSets it computes what to create, scale and delete and
//! the status. Only one kind of step is taken in a run; what it changed wakes the next run. The bounds hold at every
//! instant because sets are counted with the larger of what they should have and what they have.

mod annotations;
mod arithmetic;
mod observed;
mod plan;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use annotations::{Annotations, DESIRED, HASH, HISTORY, MAX, REVISION};

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{Context, absent_is_fine, controller_reference, pods, typed};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::delete_options::Propagation;
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::kinds::apps::{deployment, replicaset};
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Patch, Reconciler, Recorder};
use observed::Observed;
use plan::Step;
use sets::Set;

struct Deployments {
    cx: Arc<Context>,
    recorder: Recorder,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let recorder = cx.recorder("deployment-controller");
    let context = cx.clone();
    let free = move |c: &Changed| {
        if c.deleted || c.object.controller().is_some() {
            return Vec::new();
        }
        let all = context.client.informer(&deployment::KIND).list(&c.object.meta.namespace);
        let selects =
            |d: &&Arc<Object>| sets::selector(d).is_ok_and(|s| !s.is_empty() && s.matches(&c.object.meta.labels));
        all.iter().filter(selects).map(|d| Key::of(d)).collect()
    };
    Controller::new("deployment", Arc::new(Deployments { cx: cx.clone(), recorder }), cx.clock.clone())
        .for_kind(&*cx.client, &deployment::KIND)
        .owns(&*cx.client, &replicaset::KIND, &deployment::KIND)
        .watches(&*cx.client, &replicaset::KIND, Box::new(free))
        .workers(16)
}

#[async_trait]
impl Reconciler for Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&deployment::KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let sets = self.claim(&object).await?;
        let observed = Observed {
            deployment: typed(&object)?,
            template: object.value()["spec"]["template"].clone(),
            old_pods_run: self.old_pods_run(&object, &sets)?,
            object: object.clone(),
            sets,
            now: self.cx.clock.now(),
        };
        let plan = plan::plan(&observed);
        // The status first: a rollout is announced before it begins, and its number is known to whoever sees the set.
        let metadata = match &plan.revision {
            Some(revision) => Map::from_iter([("annotations".to_owned(), json!({REVISION: revision}))]),
            None => Map::new(),
        };
        absent_is_fine(self.cx.write_status(&deployment::KIND, &object, plan.status, metadata).await)?;
        for step in plan.steps {
            self.apply(&object, step).await?;
        }
        Ok(plan.wake.map_or(Outcome::Done, Outcome::At))
    }
}

// === impl Deployments ===

impl Deployments {
    /// The sets of the Deployment, after adopting and releasing.
    async fn claim(&self, object: &Arc<Object>) -> Result<Vec<Set>> {
        let selector = sets::selector(object)?;
        let (client, uid) = (&self.cx.client, &*object.meta.uid);
        if object.meta.deleted.is_none() && !selector.is_empty() {
            for set in self.cx.replica_sets.get(&pods::owner_key(uid)) {
                if !selector.matches(&set.meta.labels) {
                    pods::release(client, &replicaset::KIND, &set, uid).await?;
                }
            }
            for set in self.cx.replica_sets.get(&pods::free_key(&object.meta.namespace)) {
                if selector.matches(&set.meta.labels) && set.meta.deleted.is_none() {
                    let reference = controller_reference(&deployment::KIND, object);
                    absent_is_fine(pods::adopt(client, &replicaset::KIND, &set, reference).await)?;
                }
            }
        }
        let mine = self.cx.replica_sets.get(&pods::owner_key(uid)).into_iter();
        mine.filter(|s| selector.matches(&s.meta.labels)).map(Set::new).collect()
    }

    /// Whether pods of other templates still run, which a Recreate waits for. Those that are ending count.
    fn old_pods_run(&self, object: &Object, sets: &[Set]) -> Result<bool> {
        let template = &object.value()["spec"]["template"];
        for set in sets.iter().filter(|s| !s.has_template(template)) {
            for pod in self.cx.pods.get(&pods::owner_key(&set.object.meta.uid)) {
                if !pods::is_over(&*typed::<Pod>(&pod)?) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn apply(&self, object: &Arc<Object>, step: Step) -> Result<()> {
        match step {
            Step::Create { set, replicas } => self.create(object, set, replicas).await,
            Step::Annotate { name, uid, annotations } => {
                self.patch_set(object, &name, &uid, json!({"metadata": {"annotations": annotations}})).await
            }
            Step::MinReady { name, uid, seconds } => {
                self.patch_set(object, &name, &uid, json!({"spec": {"minReadySeconds": seconds}})).await
            }
            Step::Scale { name, uid, from, to, annotations } => {
                let patch = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
                self.patch_set(object, &name, &uid, patch).await?;
                if from != to {
                    self.say_scaled(object, &name, Some(from), to);
                }
                Ok(())
            }
            Step::Delete { name, uid } => {
                let options = DeleteOptions {
                    uid: Some(uid),
                    propagation: Some(Propagation::Background),
                    ..DeleteOptions::default()
                };
                let namespace = &object.meta.namespace;
                absent_is_fine(self.cx.client.delete(&replicaset::KIND, namespace, &name, options).await)
            }
        }
    }

    async fn patch_set(&self, object: &Object, name: &str, uid: &str, mut patch: Value) -> Result<()> {
        patch["metadata"]["uid"] = uid.into();
        let patch = Patch::Merge(patch);
        self.cx.client.patch(&replicaset::KIND, &object.meta.namespace, name, None, patch).await.map(|_| ())
    }

    async fn create(&self, object: &Arc<Object>, set: Value, replicas: i32) -> Result<()> {
        let name = set["metadata"]["name"].as_str().unwrap_or("").to_owned();
        match self.cx.client.create(&replicaset::KIND, &object.meta.namespace, set).await {
            Ok(_) => {
                self.say_scaled(object, &name, None, replicas);
                Ok(())
            }
            Err(status) if status.reason == "AlreadyExists" => self.collide(object).await,
            Err(status) if status.details.causes.iter().any(|c| c.reason == "NamespaceTerminating") => Ok(()),
            Err(status) => {
                self.report_create_error(object, &name, &status).await?;
                Err(status)
            }
        }
    }

    /// The name is taken by a set of another template: the next attempt takes another name.
    async fn collide(&self, object: &Arc<Object>) -> Result<()> {
        let value = object.value();
        let count = value["status"]["collisionCount"].as_i64().unwrap_or(0) + 1;
        let patch = json!({"metadata": {"uid": &*object.meta.uid}, "status": {"collisionCount": count}});
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let subresource = Some(crate::kinds::Subresource::Status);
        self.cx.client.patch(&deployment::KIND, namespace, name, subresource, Patch::Merge(patch)).await.map(|_| ())
    }

    async fn report_create_error(&self, object: &Arc<Object>, name: &str, error: &Status) -> Result<()> {
        let message = format!("Failed to create new replica set {name:?}: {error}");
        self.recorder.event(&deployment::KIND, object, EventType::Warning, "ReplicaSetCreateError", &message);
        let Some(current) = self.cx.client.informer(&deployment::KIND).get(&object.meta.namespace, &object.meta.name)
        else {
            return Ok(());
        };
        let mut status = current.value().get("status").cloned().unwrap_or_else(|| json!({}));
        let condition = status::Condition::new("Progressing", "False", "ReplicaSetCreateError", &error.message);
        status::set_condition(&mut status, condition, self.cx.clock.now());
        absent_is_fine(self.cx.write_status(&deployment::KIND, &current, status, Map::new()).await)
    }

    fn say_scaled(&self, object: &Object, name: &str, from: Option<i32>, to: i32) {
        let message = match from {
            None if to == 0 => return,
            None => format!("Scaled up replica set {name} from 0 to {to}"),
            Some(from) if from < to => format!("Scaled up replica set {name} from {from} to {to}"),
            Some(from) => format!("Scaled down replica set {name} from {from} to {to}"),
        };
        self.recorder.event(&deployment::KIND, object, EventType::Normal, "ScalingReplicaSet", &message);
    }
}
