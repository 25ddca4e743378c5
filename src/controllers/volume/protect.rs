//! Claims are held while pods have them, volumes while they are bound (the finalizers of StorageObjectInUseProtection).

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use serde_json::json;

use crate::apimachinery::status::Result;
use crate::apimachinery::volume::{claims_of, phase};
use crate::base::object::Object;
use crate::controllers::{Context, absent_is_fine, pods, typed};
use crate::kinds::KindRef;
use crate::kinds::core::{persistentvolume, persistentvolumeclaim, pod};
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler};

struct Claims(Arc<Context>);
struct Volumes(Arc<Context>);

/// The controller of claims.
pub fn claims(cx: &Arc<Context>) -> Controller {
    let client = cx.client.clone();
    let let_go = move |c: &Changed| {
        let Ok(pod) = c.object.typed::<Pod>() else { return Vec::new() };
        let claims = client.informer(&persistentvolumeclaim::KIND);
        let named = claims_of(&pod).filter_map(|of| claims.get(&c.object.meta.namespace, &of.claim));
        named.filter(|o| o.meta.deleted.is_some()).map(|o| Key::of(&o)).collect()
    };
    Controller::new("pvc-protection", Arc::new(Claims(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &persistentvolumeclaim::KIND)
        .watches(&*cx.client, &pod::KIND, Box::new(let_go))
}

/// The controller of volumes.
pub fn volumes(cx: &Arc<Context>) -> Controller {
    Controller::new("pv-protection", Arc::new(Volumes(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &persistentvolume::KIND)
}

#[async_trait]
impl Reconciler for Claims {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let kind = &persistentvolumeclaim::KIND;
        let Some(claim) = self.0.client.informer(kind).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        // One that has a node: no other can get one any more, the scheduler sees that the claim ends.
        let has_node =
            |o: &Arc<Object>| o.typed::<Pod>().is_ok_and(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()));
        let is_used = || self.0.pods.get(&pods::claim_key(&key.namespace, &key.name)).iter().any(has_node);
        hold(&self.0, kind, &claim, persistentvolumeclaim::PROTECTION, is_used).await
    }
}

#[async_trait]
impl Reconciler for Volumes {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let kind = &persistentvolume::KIND;
        let Some(object) = self.0.client.informer(kind).get("", &key.name) else { return Ok(Outcome::Done) };
        let volume = typed::<PersistentVolume>(&object)?;
        hold(&self.0, kind, &object, persistentvolume::PROTECTION, || phase(&volume) == "Bound").await
    }
}

/// Holds an object that was made before it could be, and lets go of one that is to end and that nobody uses.
async fn hold(
    cx: &Context,
    kind: &KindRef,
    object: &Object,
    finalizer: &str,
    is_used: impl FnOnce() -> bool,
) -> Result<Outcome> {
    let meta = &object.meta;
    let is_held = meta.finalizers.iter().any(|f| **f == *finalizer);
    let rest = match (meta.deleted.is_some(), is_held) {
        (true, true) if !is_used() => meta.finalizers.iter().filter(|f| ***f != *finalizer).map(|f| &**f).collect(),
        (false, false) => meta.finalizers.iter().map(|f| &**f).chain([finalizer]).collect::<Vec<&str>>(),
        _ => return Ok(Outcome::Done),
    };
    let version = object.revision.to_string();
    let metadata = json!({"uid": &*meta.uid, "resourceVersion": version, "finalizers": rest});
    let patch = Patch::Merge(json!({"metadata": metadata}));
    absent_is_fine(cx.client.patch(kind, &meta.namespace, &meta.name, None, patch).await)?;
    Ok(Outcome::Done)
}
