//! What plans look at of a ReplicaSet or a ReplicationController.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController};
use serde_json::Value;

use crate::apimachinery::status::{Result, Status};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::controllers::{min_ready, typed};
use crate::kinds::KindRef;
use crate::kinds::core::replicationcontroller;

/// One of them, of either kind.
#[derive(Debug)]
pub(super) struct Set {
    /// How many pods it wants.
    pub(super) replicas: usize,
    pub(super) selector: Selector,
    /// Labels of the template.
    pub(super) labels: BTreeMap<String, String>,
    pub(super) min_ready: Duration,
    /// The conditions of its status.
    pub(super) conditions: Vec<Value>,
    /// Whether its status says how many pods are ending.
    pub(super) tells_ending: bool,
}

// === impl Set ===

impl Set {
    pub(super) fn of(kind: &KindRef, object: &Object) -> Result<Self> {
        if *kind == replicationcontroller::KIND {
            let set: Arc<ReplicationController> = typed(object)?;
            let spec = set.spec.clone().unwrap_or_default();
            let conditions = set.status.iter().flat_map(|s| s.conditions.iter().flatten());
            return Ok(Self {
                replicas: spec.replicas.unwrap_or(1).max(0) as usize,
                selector: Selector::from_map(spec.selector.iter().flatten()),
                labels: labels(spec.template.as_ref()),
                min_ready: min_ready(spec.min_ready_seconds),
                conditions: conditions.filter_map(|c| serde_json::to_value(c).ok()).collect(),
                tells_ending: false,
            });
        }
        let set: Arc<ReplicaSet> = typed(object)?;
        let selector = serde_json::to_value(&set.spec.selector).unwrap_or_default();
        let conditions = set.status.iter().flat_map(|s| s.conditions.iter().flatten());
        Ok(Self {
            replicas: set.spec.replicas.unwrap_or(1).max(0) as usize,
            selector: Selector::from_object(&selector).map_err(|e| Status::internal(format!("{}: {e}", object.key)))?,
            labels: labels(set.spec.template.as_ref()),
            min_ready: min_ready(set.spec.min_ready_seconds),
            conditions: conditions.filter_map(|c| serde_json::to_value(c).ok()).collect(),
            tells_ending: true,
        })
    }
}

fn labels(template: Option<&PodTemplateSpec>) -> BTreeMap<String, String> {
    template.and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone()).unwrap_or_default()
}
