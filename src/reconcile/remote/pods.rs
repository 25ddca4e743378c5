//! The pods of the agent's node, and with them the Secrets and ConfigMaps that they name.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::follow::{self, One, Scope, Sink};
use super::server::Server;
use super::view::Store;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::pod::references::references;
use crate::kinds::core::secret;

/// How long a pod waits for what it names; after that it is shown, and what is missing is missing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the watch over the node's pods leads.
pub struct Pods {
    server: Arc<Server>,
    pods: Arc<Store>,
    secrets: Arc<Store>,
    maps: Arc<Store>,
    /// What each pod names, by the pods' keys, and the generation that said so.
    named: HashMap<Arc<str>, (i64, Vec<Arc<str>>)>,
    followed: HashMap<Arc<str>, Followed>,
}

struct Followed {
    store: Arc<Store>,
    task: JoinHandle<Option<()>>,
    told: watch::Receiver<bool>,
    users: usize,
}

// === impl Pods ===

impl Pods {
    /// Fills the three stores.
    pub fn new(server: Arc<Server>, pods: Arc<Store>, secrets: Arc<Store>, maps: Arc<Store>) -> Self {
        Self { server, pods, secrets, maps, named: HashMap::new(), followed: HashMap::new() }
    }

    fn follow(&mut self, kind: &KindRef, namespace: &str, name: &str) -> Arc<str> {
        let key = kind.key(namespace, name);
        if let Some(followed) = self.followed.get_mut(&key) {
            followed.users += 1;
            return key;
        }
        let store = if *kind == secret::KIND { self.secrets.clone() } else { self.maps.clone() };
        let scope = Scope { kind: kind.clone(), namespace: namespace.into(), fields: format!("metadata.name={name}") };
        let (tell, told) = watch::channel(false);
        let sink = One { store: store.clone(), key: key.clone() };
        let task = follow::spawn(self.server.clone(), scope, sink, tell, None);
        self.followed.insert(key.clone(), Followed { store, task, told, users: 1 });
        key
    }

    fn leave(&mut self, keys: Vec<Arc<str>>) {
        for key in keys {
            let Some(followed) = self.followed.get_mut(&key) else { continue };
            followed.users -= 1;
            if followed.users == 0 {
                followed.task.abort();
                followed.store.remove(&key);
                self.followed.remove(&key);
            }
        }
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.followed.values().for_each(|f| f.task.abort());
    }
}

impl Sink for Pods {
    async fn put(&mut self, object: Arc<Object>) {
        if self.named.get(&object.key).is_none_or(|(generation, _)| *generation != object.meta.generation) {
            let named = object.typed::<Pod>().map(|p| references(&p)).unwrap_or_default();
            let keys = named.iter().map(|(kind, name)| self.follow(kind, &object.meta.namespace, name)).collect();
            let old = self.named.insert(object.key.clone(), (object.meta.generation, keys));
            self.leave(old.map(|(_, keys)| keys).unwrap_or_default());
        }
        let waited = self.named[&object.key].1.iter().filter_map(|k| self.followed.get(k)).map(|f| f.told.clone());
        let all = join_all(waited.map(|mut told| async move { drop(told.wait_for(|t| *t).await) }));
        let _ = tokio::time::timeout(PATIENCE, all).await;
        self.pods.put(object);
    }

    fn remove(&mut self, key: &str) {
        self.pods.remove(key);
        let named = self.named.remove(key);
        self.leave(named.map(|(_, keys)| keys).unwrap_or_default());
    }

    fn complete(&mut self, keys: &HashSet<Arc<str>>) {
        for key in self.pods.keys().iter().filter(|k| !keys.contains(*k)) {
            self.remove(key);
        }
        // What an earlier process knew, and no pod names any more.
        for store in [&self.secrets, &self.maps] {
            for key in store.keys().iter().filter(|k| !self.followed.contains_key(*k)) {
                store.remove(key);
            }
        }
        self.pods.fill();
    }
}
