//! The end of namespaces: everything in them goes, pods first, then the namespace itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use serde_json::{Map, Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::aggregated::{Emptied, Left};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, text};
use crate::base::object::Object;
use crate::kinds::core::{namespace, pod};
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Controller, Key, Outcome, Reconciler};

/// The finalizer that this controller takes off.
const OURS: &str = "kubernetes";

struct Namespaces(Arc<Context>);

/// Whether objects of the kind live in namespaces.
fn is_content(kind: &KindRef) -> bool {
    kind.namespaced()
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let namespaces = cx.client.informer(&namespace::KIND);
    let ending = move |c: &Changed| {
        let name = &c.object.meta.namespace;
        // Only what goes or comes matters, and only in a namespace that ends.
        let moves = c.deleted || c.previous.is_none() || c.object.meta.deleted.is_some();
        match moves && namespaces.get("", name).is_some_and(|n| n.meta.deleted.is_some()) {
            true => vec![Key::new("", name)],
            false => Vec::new(),
        }
    };
    Controller::new("namespace", Arc::new(Namespaces(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &namespace::KIND)
        .watches_every(&cx.client, is_content, ending)
}

#[async_trait]
impl Reconciler for Namespaces {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let Some(object) = client.informer(&namespace::KIND).get("", &key.name) else { return Ok(Outcome::Done) };
        if object.meta.deleted.is_none() {
            return Ok(Outcome::Done);
        }
        let value = object.value();
        let finalizers = list(&value, "spec.finalizers");
        if !finalizers.iter().any(|f| f == OURS) {
            return Ok(Outcome::Done);
        }
        let kinds = client.kinds().snapshot();
        let contents = || kinds.stored().filter(|k| is_content(k));
        // Pods first: what they use stays until they have ended.
        let mut failures = self.empty(&key.name, &[&pod::KIND]).await;
        if failures.is_empty() && client.informer(&pod::KIND).list(&key.name).is_empty() {
            let rest: Vec<&KindRef> = contents().filter(|k| **k != pod::KIND).collect();
            failures = self.empty(&key.name, &rest).await;
        }
        let left: Vec<(&KindRef, Vec<Arc<Object>>)> =
            contents().map(|k| (k, client.informer(k).list(&key.name))).filter(|(_, all)| !all.is_empty()).collect();
        let elsewhere = match &self.0.options.aggregated {
            // Pods may need what is there until they have ended.
            Some(aggregated) if failures.is_empty() && client.informer(&pod::KIND).list(&key.name).is_empty() => {
                aggregated.empty(&key.name).await
            }
            _ => Emptied::default(),
        };
        failures.extend(elsewhere.failures.iter().map(Status::unavailable));
        if left.is_empty() && failures.is_empty() && elsewhere.is_done() {
            let rest: Vec<Value> = finalizers.iter().filter(|f| *f != OURS).cloned().collect();
            let mut value = value;
            value["spec"]["finalizers"] = rest.into();
            let finalize = Some(Subresource::Finalize);
            let done = client.update(&namespace::KIND, "", &key.name, finalize, value).await;
            return absent_is_fine(done).map(|()| Outcome::Done);
        }
        let mut status = value["status"].clone();
        let now = self.0.clock.now_text();
        status["conditions"] = conditions(list(&value, "status.conditions"), &left, &elsewhere, &failures, &now);
        absent_is_fine(self.0.write_status(&namespace::KIND, &object, status, Map::new()).await)?;
        // Nobody tells when another server has done its part: that is asked again.
        let unknown = elsewhere.discovery_failure().map(Status::unavailable);
        let pending = elsewhere.left.first().map(|left| Status::unavailable(format!("{} are left", left.resource)));
        failures.into_iter().chain(unknown).chain(pending).next().map_or(Ok(Outcome::Done), Err)
    }
}

// === impl Namespaces ===

impl Namespaces {
    /// Begins to delete everything of these kinds.
    async fn empty(&self, namespace: &str, kinds: &[&KindRef]) -> Vec<Status> {
        let client = &self.0.client;
        let mut deletions = Vec::new();
        for kind in kinds {
            for object in client.informer(kind).list(namespace) {
                if object.meta.deleted.is_none() {
                    deletions.push(async move {
                        let options = DeleteOptions {
                            uid: Some(object.meta.uid.to_string()),
                            propagation: Some(Propagation::Background),
                            ..DeleteOptions::default()
                        };
                        absent_is_fine(client.delete(kind, namespace, &object.meta.name, options).await)
                    });
                }
            }
        }
        join_all(deletions).await.into_iter().filter_map(Result::err).filter(|s| s.code != 409).collect()
    }
}

/// The five conditions of an ending namespace, in Kubernetes' order.
fn conditions(
    old: &[Value],
    left: &[(&KindRef, Vec<Arc<Object>>)],
    elsewhere: &Emptied,
    failures: &[Status],
    now: &str,
) -> Value {
    let errors = failures.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join(", ");
    let (remaining, finalizers) = (remaining(left, &elsewhere.left), finalizers(left, &elsewhere.left));
    let all = [
        match elsewhere.discovery_failure() {
            None => (
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered".to_owned(),
            ),
            Some(why) => ("NamespaceDeletionDiscoveryFailure", true, "DiscoveryFailed", why),
        },
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        match failures {
            [] => (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            ),
            _ => (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, {} remaining: {errors}", failures.len()),
            ),
        },
        match left {
            [] if elsewhere.left.is_empty() => {
                ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
            }
            _ => ("NamespaceContentRemaining", true, "SomeResourcesRemain", remaining),
        },
        match finalizers {
            None => (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            ),
            Some(text) => ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", text),
        },
    ];
    all.into_iter().map(|(of_type, is, reason, message)| condition(old, of_type, is, reason, &message, now)).collect()
}

fn condition(old: &[Value], of_type: &str, is: bool, reason: &str, message: &str, now: &str) -> Value {
    let status = if is { "True" } else { "False" };
    let before = old.iter().find(|c| text(c, "type") == of_type && text(c, "status") == status);
    let since = before.map_or(now, |c| text(c, "lastTransitionTime"));
    json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
}

fn remaining(left: &[(&KindRef, Vec<Arc<Object>>)], elsewhere: &[Left]) -> String {
    let here = left.iter().map(|(kind, all)| (format!("{}.{}", kind.plural(), kind.group()), all.len()));
    let all = here.chain(elsewhere.iter().map(|left| (left.resource.clone(), left.count)));
    let each: Vec<String> = all.map(|(resource, n)| format!("{resource} has {n} resource instances")).collect();
    format!("Some resources are remaining: {}", each.join(", "))
}

fn finalizers(left: &[(&KindRef, Vec<Arc<Object>>)], elsewhere: &[Left]) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for object in left.iter().flat_map(|(_, all)| all) {
        for finalizer in &object.meta.finalizers {
            *counts.entry(finalizer).or_default() += 1;
        }
    }
    for finalizer in elsewhere.iter().flat_map(|left| &left.finalizers) {
        *counts.entry(finalizer).or_default() += 1;
    }
    if counts.is_empty() {
        return None;
    }
    let each: Vec<String> = counts.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
    Some(format!("Some content in the namespace has finalizers remaining: {}", each.join(", ")))
}
