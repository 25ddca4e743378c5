//! Pods that have a node and wait there for the volumes of their claims.
//!
//! They count as placed, so that nobody else gets their room meanwhile, and are bound when their claims are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::snapshot::PodView;
use super::volumes::Promise;
use crate::apimachinery::status::Result;
use crate::apimachinery::volume::{BOUND_BY_CONTROLLER, SELECTED_NODE};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::{persistentvolume, persistentvolumeclaim};
use crate::reconcile::{Client, Key, Patch};

/// How long a pod waits for its volumes on one node.
const PATIENCE: Duration = Duration::from_secs(600);

/// A pod that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) view: Arc<PodView>,
    pub(super) node: Arc<str>,
    pub(super) attempts: u32,
    pub(super) begun: Instant,
    pub(super) until: Instant,
    pub(super) promises: Vec<Promise>,
}

/// All of them.
pub(super) type Room = BTreeMap<Key, Waiting>;

// === impl Waiting ===

impl Waiting {
    pub(super) fn new(
        view: Arc<PodView>,
        node: Arc<str>,
        attempts: u32,
        begun: Instant,
        promises: Vec<Promise>,
    ) -> Self {
        Self { view, node, attempts, begun, until: begun + PATIENCE, promises }
    }
}

/// When the first of them has waited for too long.
pub(super) fn due(room: &Room) -> Option<Instant> {
    room.values().map(|waiting| waiting.until).min()
}

/// Writes what was promised; whoever has changed a claim or a volume meanwhile comes first.
pub(super) async fn write(client: &Arc<dyn Client>, promises: &[Promise]) -> Result<()> {
    for promise in promises {
        match promise {
            Promise::Bind { volume, claim } => {
                let reference = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &*claim.meta.namespace,
                    "name": &*claim.meta.name, "uid": &*claim.meta.uid,
                });
                let patch = json!({
                    "metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}, "spec": {"claimRef": reference},
                });
                write_one(client, &persistentvolume::KIND, volume, patch).await?;
            }
            Promise::Provision { claim, node } => {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: &**node}}});
                write_one(client, &persistentvolumeclaim::KIND, claim, patch).await?;
            }
        }
    }
    Ok(())
}

async fn write_one(client: &Arc<dyn Client>, kind: &KindRef, object: &Object, mut patch: Value) -> Result<()> {
    let (namespace, name) = (&object.meta.namespace, &object.meta.name);
    patch["metadata"]["uid"] = (&*object.meta.uid).into();
    patch["metadata"]["resourceVersion"] = object.revision.to_string().into();
    client.patch(kind, namespace, name, None, Patch::Merge(patch)).await.map(drop)
}
