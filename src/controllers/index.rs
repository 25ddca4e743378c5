//! Objects of a kind under keys of one's own choice, such as pods by owner.
//!
//! An index pulls what has changed when it is asked, so that it shows at least everything that was acknowledged before,
//! costs nothing while nobody asks, and needs no task. Invariant: after [`Index::get`] has caught up, an object is listed
//! under exactly the keys of its last state.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use futures::FutureExt;

use crate::base::object::Object;
use crate::reconcile::{Changes, Informer};

/// The keys of an object.
pub type Keys = fn(&Object) -> Vec<String>;

/// The objects of one kind, by keys.
pub struct Index {
    informer: Informer,
    keys: Keys,
    inner: Mutex<Inner>,
}

struct Inner {
    changes: Option<Box<dyn Changes>>,
    /// In store key order, so that all runs of one seed are alike.
    lists: HashMap<String, BTreeMap<Arc<str>, Arc<Object>>>,
    all: HashMap<Arc<str>, Arc<Object>>,
}

// === impl Index ===

impl Index {
    /// An index that is filled when it is first asked.
    pub fn new(informer: Informer, keys: Keys) -> Self {
        Self { informer, keys, inner: Mutex::new(Inner { changes: None, lists: HashMap::new(), all: HashMap::new() }) }
    }

    /// The objects under a key, in the order of their store keys.
    pub fn get(&self, key: &str) -> Vec<Arc<Object>> {
        self.with(|inner| inner.lists.get(key).map(|l| l.values().cloned().collect()).unwrap_or_default())
    }

    /// How many objects are under a key.
    pub fn count(&self, key: &str) -> usize {
        self.with(|inner| inner.lists.get(key).map_or(0, BTreeMap::len))
    }

    /// Takes what has changed since it was last asked, if it ever was: until then it keeps what has changed or gone.
    pub fn keep_fresh(&self) {
        let mut inner = self.inner.lock().expect("no panic while held");
        if inner.changes.is_some() {
            self.catch_up(&mut inner);
        }
    }

    fn with<T>(&self, read: impl FnOnce(&Inner) -> T) -> T {
        let mut inner = self.inner.lock().expect("no panic while held");
        self.catch_up(&mut inner);
        read(&inner)
    }

    fn catch_up(&self, inner: &mut Inner) {
        if inner.changes.is_none() {
            inner.changes = Some(self.informer.subscribe());
            self.fill(inner);
        }
        loop {
            let next = inner.changes.as_mut().and_then(|c| c.next().now_or_never());
            match next {
                None => return,
                Some(None) => self.fill(inner),
                Some(Some(changes)) => {
                    for change in changes {
                        inner.take(&change.object, change.deleted, self.keys);
                    }
                }
            }
        }
    }

    fn fill(&self, inner: &mut Inner) {
        inner.lists.clear();
        inner.all.clear();
        for object in self.informer.list("") {
            inner.take(&object, false, self.keys);
        }
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({:?})", self.informer.kind())
    }
}

// === impl Inner ===

impl Inner {
    fn take(&mut self, object: &Arc<Object>, deleted: bool, keys: Keys) {
        // The list that came first may be newer than the change.
        if self.all.get(&object.key).is_some_and(|known| known.revision > object.revision) {
            return;
        }
        if let Some(old) = self.all.remove(&object.key) {
            for key in keys(&old) {
                let Some(list) = self.lists.get_mut(&key) else { continue };
                list.remove(&old.key);
                if list.is_empty() {
                    self.lists.remove(&key);
                }
            }
        }
        if !deleted {
            for key in keys(object) {
                self.lists.entry(key).or_default().insert(object.key.clone(), object.clone());
            }
            self.all.insert(object.key.clone(), object.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::apimachinery::delete_options::DeleteOptions;
    use crate::kinds::core::{configmap, namespace};
    use crate::reconcile::Client;

    #[tokio::test]
    async fn what_is_gone_is_kept_until_it_is_asked_or_told_to_keep_fresh() {
        let client: Arc<dyn Client> = Arc::new(Local::new(in_memory::api(), "test"));
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        let index = Index::new(client.informer(&configmap::KIND), |_| vec!["all".into()]);
        index.keep_fresh();
        assert!(index.inner.lock().unwrap().changes.is_none(), "whom nobody asks follows nothing");
        client.create(&configmap::KIND, "n", json!({"metadata": {"name": "a"}})).await.unwrap();
        assert_eq!(index.count("all"), 1);
        client.delete(&configmap::KIND, "n", "a", DeleteOptions::default()).await.unwrap();
        assert_eq!(index.inner.lock().unwrap().all.len(), 1);
        index.keep_fresh();
        assert!(index.inner.lock().unwrap().all.is_empty());
    }
}
