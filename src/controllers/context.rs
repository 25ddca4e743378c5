//! What all controllers share, and small things that all of them need.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::certificates::Authority;
use super::index::Index;
use crate::apimachinery::aggregated::Aggregated;
use crate::apimachinery::metrics::Metrics;
use crate::apimachinery::node_access::Nodes;
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::Clock;
use crate::base::object::Object;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Client, Patch, Recorder};

/// What differs from cluster to cluster.
#[derive(Clone, Debug)]
pub struct Options {
    /// The certificate authority of the API, in PEM, which pods get to trust it.
    pub root_ca: String,
    /// Signs certificates that are asked for; without it nobody does.
    pub authority: Option<Arc<Authority>>,
    /// Where the pod networks of nodes are cut from, one of each family.
    pub cluster_cidrs: Vec<IpNet>,
    /// How long a node may be silent before it counts as lost.
    pub node_grace: Duration,
    /// How long events are kept.
    pub event_ttl: Duration,
    /// How many pods that have ended are kept.
    pub terminated_pods: usize,
    /// The nodes that can be reached, for volumes that are directories of them.
    pub nodes: Nodes,
    /// Objects that other servers of the API keep.
    pub aggregated: Option<Arc<dyn Aggregated>>,
    /// The numbers that autoscalers go by.
    pub metrics: Option<Arc<dyn Metrics>>,
}

/// What all controllers share.
pub struct Context {
    pub client: Arc<dyn Client>,
    pub clock: Clock,
    pub options: Options,
    /// All pods, by owner, namespace, label and node.
    pub pods: Index,
    /// All Jobs by owner and namespace.
    pub jobs: Index,
    /// All ReplicaSets by owner and namespace.
    pub replica_sets: Index,
    /// All ControllerRevisions by owner and namespace.
    pub revisions: Index,
    /// All claims by their volumes, or by class while they have none.
    pub claims: Index,
    /// All volumes by their claims, or by class while they have none.
    pub volumes: Index,
    /// All IPAddresses that Services have, by Service.
    pub service_addresses: Index,
}

// === impl Context ===

impl Context {
    /// Lets go of objects that changed or went since the indexes were last asked.
    pub fn keep_fresh(&self) {
        let Self { pods, jobs, replica_sets, revisions, claims, volumes, service_addresses, .. } = self;
        let all = [pods, jobs, replica_sets, revisions, claims, volumes, service_addresses];
        all.iter().for_each(|index| index.keep_fresh());
    }
}

/// The merge patch that makes `new` of `old`, one level deep: what is not in `new` any more becomes null.
pub(super) fn replacing(old: &Value, mut new: Value) -> Value {
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) {
        for key in old.keys().filter(|k| !new.contains_key(*k)).cloned().collect::<Vec<_>>() {
            new.insert(key, Value::Null);
        }
    }
    new
}

/// The typed form of an object, as a Status when it cannot be had.
pub fn typed<T: DeserializeOwned + Send + Sync + 'static>(object: &Object) -> Result<Arc<T>> {
    object.typed().map_err(|e| Status::internal(format!("{}: {e}", object.key)))
}

/// Success also where the object is gone already.
pub fn absent_is_fine<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

/// The controlling ownerReference to an object.
pub fn controller_reference(kind: &KindRef, owner: &Object) -> Value {
    serde_json::json!({
        "apiVersion": kind.api_version(), "kind": kind.kind(), "name": &*owner.meta.name, "uid": &*owner.meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    })
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            authority: None,
            cluster_cidrs: Vec::new(),
            node_grace: Duration::from_secs(40),
            event_ttl: Duration::from_secs(3600),
            terminated_pods: 12_500,
            nodes: Nodes::default(),
            aggregated: None,
            metrics: None,
        }
    }
}

// === impl Context ===

impl Context {
    /// A recorder under a component's name.
    pub fn recorder(&self, component: &str) -> Recorder {
        Recorder::new(self.client.clone(), self.clock.clone(), component, "")
    }

    /// Brings an object's status to `status`, with what `metadata` adds; no write when it is there already.
    pub async fn write_status(
        &self,
        kind: &KindRef,
        object: &Object,
        status: Value,
        metadata: Map<String, Value>,
    ) -> Result<()> {
        let old = object.value();
        let old = old.get("status").cloned().unwrap_or_else(|| Value::Object(Map::new()));
        if old == status && metadata.is_empty() {
            return Ok(());
        }
        let mut body = Map::new();
        let mut metadata = metadata;
        metadata.insert("uid".into(), (&*object.meta.uid).into());
        body.insert("metadata".into(), metadata.into());
        body.insert("status".into(), replacing(&old, status));
        let (namespace, name) = (&*object.meta.namespace, &*object.meta.name);
        let patch = Patch::Merge(body.into());
        self.client.patch(kind, namespace, name, Some(Subresource::Status), patch).await.map(|_| ())
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({:?})", self.options)
    }
}
