//! The client of an agent: the same [`Client`] over one HTTPS connection to a server.
//!
//! Reads come from stores that watches keep current, writes are requests. The pods are those of the agent's own node, and
//! of Secrets and ConfigMaps only those that these pods name are followed: an agent may read no others. Invariant: a pod is
//! shown only after what it names was asked for, so that nothing seems to be missing that is only late. What was told is
//! kept for a process that begins while the server is away ([`Checkpoint`]).

mod checkpoint;
mod follow;
mod pods;
mod server;
mod view;

pub use server::Server;
use server::collection;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use http::Method;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::informer::Informer;
use super::{Client, Patch};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::core::{configmap, pod, secret, serviceaccount};
use crate::kinds::registry::Registry;
use crate::kinds::{KindRef, Subresource};
use crate::wire::channel::Channel;
pub use checkpoint::Checkpoint;
use follow::{Fallback, Scope, Sink, Whole};
use view::{RemoteView, Store};

/// A client of a server elsewhere, on behalf of one node.
pub struct Remote {
    server: Arc<Server>,
    node: String,
    known: Option<Checkpoint>,
    stores: Mutex<HashMap<String, Followed>>,
}

struct Followed {
    store: Arc<Store>,
    tasks: Vec<JoinHandle<Option<()>>>,
}

// === impl Remote ===

impl Remote {
    /// A client that sees the cluster as the named node does. What it is told is kept in `known`, and taken from there
    /// while the server is away. Must be made inside a tokio runtime.
    pub fn new(channel: Arc<Channel>, node: &str, known: Option<Checkpoint>) -> Self {
        Self { server: Arc::new(Server(channel)), node: node.into(), known, stores: Mutex::default() }
    }

    fn store(&self, kind: &KindRef) -> Arc<Store> {
        let mut stores = self.stores.lock().expect("no panic while held");
        if let Some(followed) = stores.get(&kind.prefix()) {
            return followed.store.clone();
        }
        let new = if [&pod::KIND, &secret::KIND, &configmap::KIND].contains(&kind) {
            self.follow_pods()
        } else {
            let store = Arc::new(Store::new(kind));
            vec![self.follow(&store, "", Whole(store.clone()), std::slice::from_ref(&store))]
        };
        stores.extend(new.into_iter().map(|followed| (followed.store.kind().prefix(), followed)));
        stores[&kind.prefix()].store.clone()
    }

    /// The node's pods, and what they name: they decide what is followed of the other two kinds, which have nothing to
    /// wait for by themselves.
    fn follow_pods(&self) -> Vec<Followed> {
        let [pods, secrets, maps] = [&pod::KIND, &secret::KIND, &configmap::KIND].map(|k| Arc::new(Store::new(k)));
        secrets.fill();
        maps.fill();
        let sink = pods::Pods::new(self.server.clone(), pods.clone(), secrets.clone(), maps.clone());
        // The pods come last: whoever sees one finds what it names.
        let all = [secrets.clone(), maps.clone(), pods.clone()];
        let followed = self.follow(&pods, &format!("spec.nodeName={}", self.node), sink, &all);
        let others = [secrets, maps].map(|store| Followed { tasks: self.keep(&store, &pods), store });
        std::iter::once(followed).chain(others).collect()
    }

    /// Follows what is on `store`; `recalled` is what is known of before, with `store` itself at the end.
    fn follow(&self, store: &Arc<Store>, fields: &str, sink: impl Sink, recalled: &[Arc<Store>]) -> Followed {
        let scope = Scope { kind: store.kind().clone(), namespace: String::new(), fields: fields.into() };
        let restore = self.known.clone().map(|known| {
            let (store, all) = (store.clone(), recalled.to_vec());
            let restore = move || {
                if !store.is_filled() && known.has(store.kind()) {
                    all.iter().for_each(|store| known.restore(store));
                }
            };
            Box::new(restore) as Fallback
        });
        let (told, _) = watch::channel(false);
        let mut tasks = self.keep(store, store);
        tasks.push(follow::spawn(self.server.clone(), scope, sink, told, restore));
        Followed { store: store.clone(), tasks }
    }

    /// Keeps what is on a store, once `after` is filled too.
    fn keep(&self, store: &Arc<Store>, after: &Arc<Store>) -> Vec<JoinHandle<Option<()>>> {
        let keep = |known: Checkpoint| task::spawn("known", known.keep(store.clone(), after.clone()));
        self.known.clone().map(keep).into_iter().collect()
    }

    async fn write(
        &self,
        kind: &KindRef,
        method: Method,
        path: &str,
        content: &str,
        value: &Value,
    ) -> Result<Arc<Object>> {
        let answer = self.server.call(method, path, content, Some(value)).await?;
        Ok(follow::decode(kind, answer))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let stores = self.stores.get_mut().expect("no panic while held");
        stores.values().flat_map(|f| &f.tasks).for_each(JoinHandle::abort);
    }
}

#[async_trait]
impl Client for Remote {
    fn kinds(&self) -> Registry {
        Registry::new()
    }

    fn informer(&self, kind: &KindRef) -> Informer {
        Arc::new(RemoteView(self.store(kind)))
    }

    async fn get(&self, kind: &KindRef, namespace: &str, name: &str) -> Result<Arc<Object>> {
        let path = item(kind, namespace, name, None);
        Ok(follow::decode(kind, self.server.call(Method::GET, &path, "application/json", None).await?))
    }

    async fn create(&self, kind: &KindRef, namespace: &str, value: Value) -> Result<Arc<Object>> {
        self.write(kind, Method::POST, &collection(kind, namespace), "application/json", &named(kind, value)).await
    }

    async fn update(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        value: Value,
    ) -> Result<Arc<Object>> {
        let path = item(kind, namespace, name, subresource);
        self.write(kind, Method::PUT, &path, "application/json", &named(kind, value)).await
    }

    async fn patch(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        patch: Patch,
    ) -> Result<Arc<Object>> {
        let (content, patch) = match &patch {
            Patch::Merge(p) => ("application/merge-patch+json", p),
            Patch::Strategic(p) => ("application/strategic-merge-patch+json", p),
        };
        self.write(kind, Method::PATCH, &item(kind, namespace, name, subresource), content, patch).await
    }

    async fn delete(&self, kind: &KindRef, namespace: &str, name: &str, options: DeleteOptions) -> Result<()> {
        let path = item(kind, namespace, name, None);
        let body = delete_options(&options);
        self.server.call(Method::DELETE, &path, "application/json", Some(&body)).await.map(|_| ())
    }

    async fn bind(&self, namespace: &str, pod: &str, uid: &str, node: &str) -> Result<()> {
        let path = item(&pod::KIND, namespace, pod, Some(Subresource::Binding));
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "uid": uid},
                          "target": {"kind": "Node", "name": node}});
        self.server.call(Method::POST, &path, "application/json", Some(&body)).await.map(|_| ())
    }

    async fn review(&self, kind: &KindRef, spec: Value) -> Result<Value> {
        let body = json!({"apiVersion": kind.api_version(), "kind": kind.kind(), "spec": spec});
        self.server.call(Method::POST, &collection(kind, ""), "application/json", Some(&body)).await
    }

    async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<Value> {
        let path = item(&serviceaccount::KIND, namespace, account, Some(Subresource::Token));
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        self.server.call(Method::POST, &path, "application/json", Some(&body)).await
    }
}

fn named(kind: &KindRef, mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind().into());
    }
    value
}

fn item(kind: &KindRef, namespace: &str, name: &str, subresource: Option<Subresource>) -> String {
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    let tail = subresource.map(|s| format!("/{}", s.name())).unwrap_or_default();
    format!("{}/{name}{tail}", collection(kind, namespace))
}

fn delete_options(options: &DeleteOptions) -> Value {
    let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
    options.write_into(&mut body);
    body
}
