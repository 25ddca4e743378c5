//! Who depends on whom, by the owners' uids, over all kinds.
//!
//! As an [`Index`](crate::controllers::index::Index) it pulls what has changed when asked. Only objects with owners are in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use futures::FutureExt;

use crate::base::object::Object;
use crate::kinds::registry::Snapshot;
use crate::kinds::{KindRef, Volatile};
use crate::reconcile::{Changes, Client, Informer};

/// The graph.
pub(super) struct Graph {
    client: Arc<dyn Client>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The kinds that were served when it was last asked.
    kinds: Option<Arc<Snapshot>>,
    followed: Vec<(Informer, Box<dyn Changes>)>,
    /// By owner uid, then by store key.
    dependents: HashMap<Box<str>, BTreeMap<Arc<str>, Arc<Object>>>,
    /// The last state of every object with owners.
    known: HashMap<Arc<str>, Arc<Object>>,
}

// === impl Graph ===

impl Graph {
    pub(super) fn new(client: Arc<dyn Client>) -> Self {
        Self { client, inner: Mutex::default() }
    }

    /// The objects that name this uid as an owner, in the order of their store keys.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Arc<Object>> {
        let mut inner = self.inner.lock().expect("no panic while held");
        inner.follow(&*self.client);
        inner.pull();
        inner.dependents.get(uid).map(|d| d.values().cloned().collect()).unwrap_or_default()
    }
}

// === impl Inner ===

impl Inner {
    /// Takes up kinds that came, and forgets those that went.
    fn follow(&mut self, client: &dyn Client) {
        let now = client.kinds().snapshot();
        if self.kinds.as_ref().is_some_and(|known| Arc::ptr_eq(known, &now)) {
            return;
        }
        let wanted: Vec<&KindRef> = now.stored().filter(|k| is_collected(k)).collect();
        let (stay, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.followed).into_iter().partition(|(informer, _)| wanted.contains(&informer.kind()));
        gone.iter().for_each(|(informer, _)| self.clear(informer.kind()));
        let new = wanted.iter().filter(|kind| stay.iter().all(|(informer, _)| informer.kind() != **kind));
        let new: Vec<Informer> = new.map(|kind| client.informer(kind)).collect();
        self.followed = stay;
        for informer in new {
            let changes = informer.subscribe();
            self.fill(&informer);
            self.followed.push((informer, changes));
        }
        self.kinds = Some(now);
    }

    /// Takes what has changed since.
    fn pull(&mut self) {
        let mut followed = std::mem::take(&mut self.followed);
        for (informer, changes) in &mut followed {
            while !changes.is_current()
                && let Some(next) = changes.next().now_or_never()
            {
                match next {
                    None => self.fill(informer),
                    Some(changes) => changes.iter().for_each(|c| self.take(&c.object, c.deleted)),
                }
            }
        }
        self.followed = followed;
    }

    fn fill(&mut self, informer: &Informer) {
        self.clear(informer.kind());
        informer.list("").iter().for_each(|o| self.take(o, false));
    }

    fn clear(&mut self, kind: &KindRef) {
        let prefix = kind.prefix();
        let old: Vec<_> = self.known.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, o)| o.clone()).collect();
        old.iter().for_each(|o| self.forget(o));
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

/// Whether objects of the kind own and are owned; what is not written down for good is not.
pub(super) fn is_collected(kind: &KindRef) -> bool {
    kind.volatile() != Volatile::Always
}
