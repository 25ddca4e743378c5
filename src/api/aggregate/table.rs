//! The APIServices, as the API goes by them.

use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

use super::priority::Priority;
use super::remote::{Backend, Remote};
use super::trust::{FrontProxy, Trust};
use crate::api::cache::KindCache;

/// What the API knows of other servers.
#[derive(Debug, Default)]
pub struct Aggregator {
    table: RwLock<Arc<Table>>,
    identity: RwLock<Option<Arc<FrontProxy>>>,
}

/// The APIServices at one revision.
#[derive(Debug, Default)]
pub(super) struct Table {
    revision: u64,
    pub services: Vec<Registered>,
    /// Those of `services` for which others answer.
    pub remotes: Vec<Arc<Remote>>,
}

/// An APIService.
#[derive(Debug)]
pub(super) struct Registered {
    pub group: Box<str>,
    pub version: Box<str>,
    pub priority: Priority,
    pub remote: Option<Arc<Remote>>,
}

/// An APIService as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    group: String,
    version: String,
    group_priority_minimum: i64,
    version_priority: i64,
    service: Option<Reference>,
    ca_bundle: Option<String>,
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    namespace: String,
    name: String,
    port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    r#type: String,
    status: String,
}

// === impl Aggregator ===

impl Aggregator {
    /// With which certificate other servers are asked from now on.
    pub fn identify(&self, identity: FrontProxy) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(identity));
        // What was made of the old one goes.
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    pub(super) fn identity(&self) -> Option<Arc<FrontProxy>> {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn table(&self, services: &KindCache) -> Arc<Table> {
        let now = self.table.read().unwrap_or_else(PoisonError::into_inner).clone();
        let revision = services.last();
        if now.revision == revision && revision > 0 {
            return now;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.revision != revision || revision == 0 {
            *table = Arc::new(Table::of(services, revision, &table, &self.identity()));
        }
        table.clone()
    }
}

// === impl Table ===

impl Table {
    fn of(services: &KindCache, revision: u64, before: &Self, identity: &Option<Arc<FrontProxy>>) -> Self {
        let mut table = Self { revision, ..Self::default() };
        for object in services.list("", "") {
            let Ok(written) = object.typed::<Written>() else { continue };
            let spec = &written.spec;
            let remote = spec.service.as_ref().map(|service| {
                let is_available =
                    written.status.conditions.iter().any(|c| c.r#type == "Available" && c.status == "True");
                let backend = backend_of(spec, service);
                let known = before.remotes.iter().find(|r| *r.name == *object.meta.name && r.uid == object.meta.uid);
                match known.filter(|known| known.backend == backend) {
                    Some(known) if known.is_available == is_available => known.clone(),
                    Some(known) => Arc::new(known.with_availability(is_available)),
                    None => Arc::new(Remote::new(&object, &spec.group, &spec.version, backend, is_available, identity)),
                }
            });
            table.remotes.extend(remote.clone());
            let priority = Priority { group: spec.group_priority_minimum, version: spec.version_priority };
            let (group, version) = (spec.group.as_str().into(), spec.version.as_str().into());
            table.services.push(Registered { group, version, priority, remote });
        }
        table
    }
}

fn backend_of(spec: &Spec, service: &Reference) -> Backend {
    let trust = match spec.ca_bundle.as_deref().filter(|bundle| !bundle.is_empty()) {
        Some(bundle) => Trust::Bundle(bundle.into()),
        None if spec.insecure_skip_tls_verify => Trust::Anyone,
        None => Trust::System,
    };
    Backend {
        namespace: service.namespace.as_str().into(),
        service: service.name.as_str().into(),
        port: service.port.unwrap_or(443),
        trust,
    }
}
