//! Makes and removes the pods of a workload, and says so.
//!
//! Pods are created in growing batches, so that a template that cannot be created costs one refused request and not five
//! hundred.

use std::sync::Arc;

use futures::future::join_all;
use serde_json::{Value, json};

use super::{Member, absent_is_fine, controller_reference};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::pod;
use crate::reconcile::{Client, EventType, Recorder};

/// Pods that one run creates or deletes at most.
pub(super) const BURST: usize = 500;

/// Whoever writes the pods of one workload.
pub(super) struct PodWriter<'a> {
    pub(super) client: &'a Arc<dyn Client>,
    pub(super) recorder: &'a Recorder,
    pub(super) kind: &'static KindRef,
    pub(super) owner: &'a Object,
    /// What is said of a pod that was made or removed.
    pub(super) told: Told,
}

/// What is said: `create` or `delete`, the names of the pod and of its owner, and why it could not be.
pub(super) type Told = fn(&str, &str, &str, Option<&Status>) -> String;

/// Why pods could not be made or removed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) deleting: bool,
    pub(super) namespace_ends: bool,
}

// === impl Failure ===

impl Failure {
    /// What a pod needs could not be made.
    pub(super) fn of(status: Status) -> Self {
        let namespace_ends = status.details.causes.iter().any(|c| c.reason == "NamespaceTerminating");
        Self { status, deleting: false, namespace_ends }
    }
}

// === impl PodWriter ===

impl PodWriter<'_> {
    /// Creates these pods, until one is refused.
    pub(super) async fn create_all(&self, mut pods: Vec<Value>) -> Result<(), Failure> {
        let mut batch = 1;
        while !pods.is_empty() {
            let left = pods.split_off(batch.min(pods.len()));
            let results = join_all(pods.into_iter().map(|pod| self.create(pod))).await;
            results.into_iter().collect::<Result<Vec<()>, Failure>>()?;
            pods = left;
            batch *= 2;
        }
        Ok(())
    }

    /// Deletes these pods.
    pub(super) async fn delete_all(&self, members: &[Member]) -> Result<(), Failure> {
        join_all(members.iter().map(|m| self.delete(m))).await.into_iter().collect()
    }

    async fn create(&self, pod: Value) -> Result<(), Failure> {
        let named = pod["metadata"]["name"].as_str().map(str::to_owned);
        match self.client.create(&pod::KIND, &self.owner.meta.namespace, pod).await {
            Ok(pod) => {
                self.say("create", &pod.meta.name, None);
                Ok(())
            }
            Err(status) => {
                // Somebody else's pod has the name: it may go, or be taken over.
                let taken = named.is_some() && status.reason == "AlreadyExists";
                let failure = Failure::of(status);
                if !failure.namespace_ends && !taken {
                    self.say("create", named.as_deref().unwrap_or(""), Some(&failure.status));
                }
                Err(failure)
            }
        }
    }

    async fn delete(&self, member: &Member) -> Result<(), Failure> {
        let meta = &member.object.meta;
        let options = DeleteOptions { uid: Some(meta.uid.to_string()), ..DeleteOptions::default() };
        let deleted = absent_is_fine(self.client.delete(&pod::KIND, &meta.namespace, &meta.name, options).await);
        self.say("delete", &meta.name, deleted.as_ref().err());
        deleted.map_err(|status| Failure { status, deleting: true, namespace_ends: false })
    }

    fn say(&self, verb: &str, pod: &str, error: Option<&Status>) {
        let (event_type, reason) = match (verb, error.is_some()) {
            ("create", false) => (EventType::Normal, "SuccessfulCreate"),
            ("create", true) => (EventType::Warning, "FailedCreate"),
            (_, false) => (EventType::Normal, "SuccessfulDelete"),
            (_, true) => (EventType::Warning, "FailedDelete"),
        };
        let message = (self.told)(verb, pod, &self.owner.meta.name, error);
        self.recorder.event(self.kind, self.owner, event_type, reason, &message);
    }
}

/// As most controllers say it.
pub(super) fn told_plainly(verb: &str, pod: &str, _owner: &str, error: Option<&Status>) -> String {
    match (verb, error) {
        ("create", None) => format!("Created pod: {pod}"),
        ("create", Some(error)) => format!("Error creating: {error}"),
        (_, None) => format!("Deleted pod: {pod}"),
        (_, Some(error)) => format!("Error deleting: {error}"),
    }
}

/// The pod that a template describes.
pub(super) fn new_pod(kind: &KindRef, owner: &Object, template: &Value) -> Value {
    let mut metadata = json!({
        "generateName": format!("{}-", owner.meta.name),
        "ownerReferences": [controller_reference(kind, owner)],
    });
    for key in ["labels", "annotations", "finalizers"] {
        if let Some(given) = template["metadata"].get(key) {
            metadata[key] = given.clone();
        }
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}
