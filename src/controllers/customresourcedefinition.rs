//! The end of custom kinds: everything of a kind goes before its definition does
//! (`k8s.io/apiextensions-apiserver/pkg/controller/finalizer`).

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, set};
use crate::kinds::apiextensions::customresourcedefinition::{self as crd, KIND};
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

struct Definitions(Arc<Context>);

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let definitions = cx.client.informer(&KIND);
    let gone = move |c: &Changed| {
        let mut parts = c.object.key.split('/').skip(1);
        let (Some(group), Some(plural), true) = (parts.next(), parts.next(), c.deleted) else { return Vec::new() };
        let name = format!("{plural}.{group}");
        match definitions.get("", &name).is_some_and(|d| d.meta.deleted.is_some()) {
            true => vec![Key::new("", &name)],
            false => Vec::new(),
        }
    };
    Controller::new("customresourcedefinition", Arc::new(Definitions(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .watches_every(&cx.client, |kind| kind.as_custom().is_some(), gone)
}

#[async_trait]
impl Reconciler for Definitions {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.0.client.informer(&KIND).get("", &key.name) else { return Ok(Outcome::Done) };
        let is_held = object.meta.finalizers.iter().any(|f| **f == *crd::CLEANUP);
        if object.meta.deleted.is_none() || !is_held {
            return Ok(Outcome::Done);
        }
        let mut value = object.value();
        let kind = crd::kinds(&value).unwrap_or_default().into_iter().next().map(|(kind, _)| kind);
        let failures = match &kind {
            Some(kind) => self.empty(kind).await,
            None => Vec::new(),
        };
        let is_empty = kind.as_ref().is_none_or(|kind| self.0.client.informer(kind).list("").is_empty());
        let words: String;
        let state = match (failures.first(), &kind, is_empty) {
            (Some(failure), ..) => {
                words = format!("could not issue all deletes: {failure}");
                (true, "InstanceDeletionFailed", words.as_str())
            }
            (None, None, _) => (false, "NeverEstablished", "resource was never established"),
            (None, Some(_), true) => (false, "InstanceDeletionCompleted", "removed all instances"),
            (None, Some(_), false) => (true, "InstanceDeletionInProgress", "CustomResource deletion is in progress"),
        };
        let before = value["status"].clone();
        crd::set_condition(&mut value, "Terminating", state, &self.0.clock.now_text());
        if !state.0 {
            let rest: Vec<Value> =
                list(&value, "metadata.finalizers").iter().filter(|f| **f != json!(crd::CLEANUP)).cloned().collect();
            set(&mut value, "metadata.finalizers", rest);
        }
        if !state.0 || value["status"] != before {
            let status = Some(Subresource::Status);
            let done = self.0.client.update(&KIND, "", &key.name, status, value).await.map(drop);
            // Who changed it meanwhile has woken us.
            absent_is_fine(done.or_else(|s: Status| if s.code == 409 { Ok(()) } else { Err(s) }))?;
        }
        failures.into_iter().next().map_or(Ok(Outcome::Done), Err)
    }
}

// === impl Definitions ===

impl Definitions {
    /// Begins to delete everything of a kind.
    async fn empty(&self, kind: &KindRef) -> Vec<Status> {
        let client = &self.0.client;
        let all = client.informer(kind).list("");
        let deletions = all.iter().filter(|o| o.meta.deleted.is_none()).map(|object| async move {
            let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
            absent_is_fine(client.delete(kind, &object.meta.namespace, &object.meta.name, options).await)
        });
        join_all(deletions).await.into_iter().filter_map(Result::err).filter(|s| s.code != 409).collect()
    }
}
