//! Services with their slices, and the rows planned from them.
//!
//! Invariant: `rows` answers what planning everything anew would answer; only what was marked since is planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::plan::plan;
use crate::base::object::Object;
use crate::net::ServicePort;
use crate::reconcile::label_index::SERVICE_NAME;
use crate::reconcile::{Key, LabelIndex};

/// What is known of the cluster's Services.
#[derive(Debug)]
pub(super) struct Index {
    node: String,
    services: BTreeMap<Key, Arc<Object>>,
    slices: LabelIndex,
    planned: BTreeMap<Key, Vec<ServicePort>>,
    marked: BTreeSet<Key>,
}

// === impl Index ===

impl Index {
    pub(super) fn new(node: String) -> Self {
        Self {
            node,
            services: BTreeMap::new(),
            slices: LabelIndex::by(SERVICE_NAME),
            planned: BTreeMap::new(),
            marked: BTreeSet::new(),
        }
    }

    pub(super) fn service(&mut self, object: &Arc<Object>, deleted: bool) {
        let key = Key::of(object);
        if deleted {
            self.services.remove(&key);
        } else {
            self.services.insert(key.clone(), object.clone());
        }
        self.marked.insert(key);
    }

    pub(super) fn slice(&mut self, object: &Arc<Object>, deleted: bool) {
        self.marked.extend(self.slices.take(object, deleted));
    }

    /// These are all Services there are.
    pub(super) fn replace_services(&mut self, all: &[Arc<Object>]) {
        self.marked.extend(std::mem::take(&mut self.services).into_keys());
        all.iter().for_each(|object| self.service(object, false));
    }

    /// These are all slices there are.
    pub(super) fn replace_slices(&mut self, all: &[Arc<Object>]) {
        self.marked.extend(self.slices.replace(all));
    }

    /// All rows, in the order of their Services.
    pub(super) fn rows(&mut self) -> Vec<ServicePort> {
        for key in std::mem::take(&mut self.marked) {
            match self.services.get(&key).map(|object| self.plan(&key, object)) {
                Some(rows) if !rows.is_empty() => drop(self.planned.insert(key, rows)),
                _ => drop(self.planned.remove(&key)),
            }
        }
        self.planned.values().flatten().cloned().collect()
    }

    fn plan(&self, key: &Key, object: &Object) -> Vec<ServicePort> {
        let service = match object.typed::<Service>() {
            Ok(service) => service,
            Err(error) => {
                tracing::warn!(service = %key, %error, "not a Service; it is left out");
                return Vec::new();
            }
        };
        let slices: Vec<Arc<EndpointSlice>> = self.slices.members(key).filter_map(|slice| slice.typed().ok()).collect();
        plan(&service, &slices.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &self.node)
    }
}
