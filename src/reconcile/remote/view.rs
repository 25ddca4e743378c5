//! What an agent knows of the objects of one kind: the last state that the server told, kept while the server is away.
//!
//! The same contract as the watch cache inside a server: whoever subscribes and then lists misses nothing, and a reader that
//! falls behind is told to list again. Positions are counted here, because the kinds of an agent come from many watches whose
//! revisions do not arrive in one order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::base::object::Object;
use crate::base::signal::{Receiver, Signal};
use crate::kinds::KindRef;
use crate::reconcile::informer::{Changed, Changes, View};

/// Changes that are kept for readers who are behind.
const RING: usize = 2048;
/// Changes that are taken at once.
const BATCH: usize = 512;

/// The objects of one kind.
#[derive(Debug)]
pub struct Store {
    kind: KindRef,
    content: RwLock<Content>,
    changed: Signal,
    filled: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Content {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    ring: VecDeque<Changed>,
    /// The position of the ring's first change.
    first: u64,
}

// === impl Store ===

impl Store {
    /// Nothing is known yet.
    pub fn new(kind: &KindRef) -> Self {
        let (filled, _) = watch::channel(false);
        Self { kind: kind.clone(), content: RwLock::default(), changed: Signal::default(), filled }
    }

    /// Takes one state of an object. One with a lower revision counts as well: a server that was restored from a snapshot
    /// tells what it has, and each object is told by one watch only, in order.
    pub fn put(&self, object: Arc<Object>) {
        let mut content = self.content.write().expect("no panic while held");
        let previous = content.objects.get(&object.key).cloned();
        let known = previous.as_ref().is_some_and(|p| p.meta.uid == object.meta.uid && p.revision == object.revision);
        if !known {
            content.objects.insert(object.key.clone(), object.clone());
            content.push(Changed { object, previous, deleted: false });
            drop(content);
            self.changed.tell();
        }
    }

    /// Takes the end of an object.
    pub fn remove(&self, key: &str) {
        let mut content = self.content.write().expect("no panic while held");
        if let Some(object) = content.objects.remove(key) {
            content.push(Changed { previous: Some(object.clone()), object, deleted: true });
            drop(content);
            self.changed.tell();
        }
    }

    /// The keys of what is there.
    pub fn keys(&self) -> Vec<Arc<str>> {
        self.content.read().expect("no panic while held").objects.keys().cloned().collect()
    }

    /// The first states are all there.
    pub fn fill(&self) {
        self.filled.send_replace(true);
    }

    /// Whether they are.
    pub fn is_filled(&self) -> bool {
        *self.filled.borrow()
    }

    /// Takes what was known before, as far as nothing better is here, as the first states.
    pub fn restore(&self, objects: impl Iterator<Item = Arc<Object>>) {
        for object in objects {
            if self.get(&object.key).is_none() {
                self.put(object);
            }
        }
        self.fill();
    }

    /// What the objects are of.
    pub fn kind(&self) -> &KindRef {
        &self.kind
    }

    /// The object of a key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.content.read().expect("no panic while held").objects.get(key).cloned()
    }
}

impl Content {
    fn push(&mut self, change: Changed) {
        if self.ring.len() == RING {
            self.ring.pop_front();
            self.first += 1;
        }
        self.ring.push_back(change);
    }

    fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }
}

/// A [`Store`] as its readers see it.
pub struct RemoteView(pub Arc<Store>);

#[async_trait]
impl View for RemoteView {
    fn kind(&self) -> &KindRef {
        &self.0.kind
    }

    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.0.get(&self.0.kind.key(namespace, name))
    }

    fn list(&self, namespace: &str) -> Vec<Arc<Object>> {
        let content = self.0.content.read().expect("no panic while held");
        let wanted = |o: &&Arc<Object>| namespace.is_empty() || *o.meta.namespace == *namespace;
        content.objects.values().filter(wanted).cloned().collect()
    }

    fn subscribe(&self) -> Box<dyn Changes> {
        let changed = self.0.changed.subscribe();
        let position = self.0.content.read().expect("no panic while held").end();
        Box::new(RemoteChanges { store: self.0.clone(), position, changed })
    }

    async fn synced(&self) {
        let _ = self.0.filled.subscribe().wait_for(|filled| *filled).await;
    }
}

struct RemoteChanges {
    store: Arc<Store>,
    position: u64,
    changed: Receiver,
}

#[async_trait]
impl Changes for RemoteChanges {
    async fn next(&mut self) -> Option<Vec<Changed>> {
        loop {
            self.changed.mark_unchanged();
            {
                let content = self.store.content.read().expect("no panic while held");
                if self.position < content.first {
                    self.position = content.end();
                    return None;
                }
                let from = (self.position - content.first) as usize;
                let news: Vec<Changed> = content.ring.iter().skip(from).take(BATCH).cloned().collect();
                if !news.is_empty() {
                    self.position += news.len() as u64;
                    return Some(news);
                }
            }
            if self.changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::core::configmap;
    use serde_json::json;

    fn object(name: &str, revision: u64) -> Arc<Object> {
        let kind = &configmap::KIND;
        let value = json!({"metadata": {"name": name, "namespace": "n", "uid": name}});
        Arc::new(Object::new(kind.key("n", name), revision, &value, Box::default()))
    }

    #[tokio::test]
    async fn changes_come_once_and_in_order_and_what_a_restored_server_tells_counts() {
        let store = Arc::new(Store::new(&configmap::KIND));
        let view = RemoteView(store.clone());
        store.put(object("before", 1));
        let mut changes = view.subscribe();
        store.put(object("a", 5));
        store.put(object("a", 5));
        store.put(object("a", 6));
        store.put(object("a", 4));
        store.remove(&configmap::KIND.key("n", "a"));
        let seen = changes.next().await.unwrap();
        let brief: Vec<(u64, bool)> = seen.iter().map(|c| (c.object.revision, c.deleted)).collect();
        assert_eq!(brief, [(5, false), (6, false), (4, false), (4, true)]);
        assert!(view.get("n", "before").is_some() && view.get("n", "a").is_none());
    }

    #[tokio::test]
    async fn a_reader_that_fell_behind_is_told_to_list_again() {
        let store = Arc::new(Store::new(&configmap::KIND));
        let view = RemoteView(store.clone());
        let mut changes = view.subscribe();
        (1..=RING as u64 + 1).for_each(|n| store.put(object("a", n)));
        assert!(changes.next().await.is_none());
        store.put(object("b", 1));
        assert_eq!(changes.next().await.map(|c| c.len()), Some(1));
    }
}
