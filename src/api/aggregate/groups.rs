//! The versions of groups that there are, who answers for each, and in which order they are listed.

use std::collections::HashMap;
use std::sync::Arc;

use super::priority::{self, Priority};
use super::remote::Remote;
use super::table::Table;
use crate::api::{Api, resource_metrics};
use crate::kinds::apiregistration::apiservice;
use crate::kinds::version::version_rank;

/// A version of a group, and who answers for it.
#[derive(Clone, Debug)]
pub struct GroupVersion {
    pub version: String,
    /// `None`: this server.
    pub remote: Option<Arc<Remote>>,
    priority: Priority,
}

/// Groups with their versions, each in the order in which they are listed.
pub type Groups = Vec<(String, Vec<GroupVersion>)>;

// === impl Api ===

impl Api {
    fn registered(&self) -> Arc<Table> {
        self.aggregate.table(&self.cache.kind(&apiservice::KIND))
    }

    /// Who answers for a version of a group, if it is not this server.
    pub fn remote(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        let table = self.registered();
        table.remotes.iter().find(|r| (&*r.group, &*r.version) == (group, version)).cloned()
    }

    /// All servers that answer for some version.
    pub fn remotes(&self) -> Vec<Arc<Remote>> {
        self.registered().remotes.clone()
    }

    /// Every group that is served, by whomever.
    pub fn groups(&self) -> Groups {
        let table = self.registered();
        let mut all: HashMap<(String, String), (Priority, Option<Arc<Remote>>)> = HashMap::new();
        for kind in self.kinds.snapshot().iter() {
            let key = (kind.group().to_owned(), kind.version().to_owned());
            all.entry(key).or_insert_with(|| (priority::local(kind), None));
        }
        if self.options.resource_metrics {
            let key = (resource_metrics::GROUP.to_owned(), resource_metrics::VERSION.to_owned());
            all.insert(key, (priority::METRICS, None));
        }
        for service in &table.services {
            let key = (service.group.to_string(), service.version.to_string());
            match (all.get_mut(&key), &service.remote) {
                (Some(served), remote) => *served = (service.priority, remote.clone()),
                (None, Some(remote)) => drop(all.insert(key, (service.priority, Some(remote.clone())))),
                // Nobody serves what it speaks of.
                (None, None) => {}
            }
        }
        in_order(
            all.into_iter()
                .map(|((group, version), (priority, remote))| (group, GroupVersion { version, remote, priority })),
        )
    }
}

/// The best first: by the priority of groups, then of versions, then by name.
fn in_order(all: impl Iterator<Item = (String, GroupVersion)>) -> Groups {
    let mut all: Vec<(String, GroupVersion)> = all.collect();
    // The core group is listed apart from the others.
    let rank =
        |group: &str, v: &GroupVersion| (!group.is_empty(), -v.priority.group, apiservice::name_of(group, &v.version));
    all.sort_by_cached_key(|(group, version)| rank(group, version));
    let mut groups = Groups::new();
    for (group, version) in all {
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by(|a, b| {
            let best_first = b.priority.version.cmp(&a.priority.version);
            best_first.then_with(|| version_rank(&b.version).cmp(&version_rank(&a.version)))
        });
    }
    groups
}
