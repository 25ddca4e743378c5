//! Who depends on whom, by the owners' uids, over all kinds.
//!
//! As an [`Index`](crate::controllers::index::Index) it pulls what has changed when asked. Only objects with owners are in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use futures::FutureExt;

use crate::base::object::Object;
use crate::reconcile::{Changes, Informer};

/// The graph.
pub(super) struct Graph {
    informers: Vec<Informer>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    changes: Vec<Box<dyn Changes>>,
    /// By owner uid, then by store key.
    dependents: HashMap<Box<str>, BTreeMap<Arc<str>, Arc<Object>>>,
    /// The last state of every object with owners.
    known: HashMap<Arc<str>, Arc<Object>>,
}

// === impl Graph ===

impl Graph {
    pub(super) fn new(informers: Vec<Informer>) -> Self {
        Self { informers, inner: Mutex::default() }
    }

    /// The objects that name this uid as an owner, in the order of their store keys.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        let mut inner = self.inner.lock().expect("no panic while held");
        if inner.changes.is_empty() {
            inner.changes = self.informers.iter().map(|i| i.subscribe()).collect();
            self.informers.iter().for_each(|i| inner.fill(i));
        }
        for (i, informer) in self.informers.iter().enumerate() {
            loop {
                let next = inner.changes[i].next().now_or_never();
                match next {
                    None => break,
                    Some(None) => inner.fill(informer),
                    Some(Some(changes)) => changes.iter().for_each(|c| inner.take(&c.object, c.deleted)),
                }
            }
        }
        inner.dependents.get(uid).map(|d| d.values().cloned().collect()).unwrap_or_default()
    }
}

// === impl Inner ===

impl Inner {
    fn fill(&mut self, informer: &Informer) {
        let prefix = informer.kind().prefix();
        let old: Vec<_> = self.known.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, o)| o.clone()).collect();
        old.iter().for_each(|o| self.forget(o));
        informer.list("").iter().for_each(|o| self.take(o, false));
    }

    fn take(&mut self, object: &Arc<Object>, deleted: bool) {
        if let Some(known) = self.known.get(&object.key).cloned() {
            if known.revision > object.revision {
                return;
            }
            self.forget(&known);
        }
        if deleted || object.meta.owners.is_empty() {
            return;
        }
        for owner in &object.meta.owners {
            let list = self.dependents.entry(owner.uid.clone()).or_default();
            list.insert(object.key.clone(), object.clone());
        }
        self.known.insert(object.key.clone(), object.clone());
    }

    fn forget(&mut self, object: &Arc<Object>) {
        self.known.remove(&object.key);
        for owner in &object.meta.owners {
            if let Some(list) = self.dependents.get_mut(&owner.uid) {
                list.remove(&object.key);
                if list.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}
