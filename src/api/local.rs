//! The client inside the server: no HTTP, no JSON round trip, reads straight from the watch cache.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Api, Request};
use crate::api::cache::{Batch, KindCache};
use crate::api::write::Change;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::object::Object;
use crate::base::signal::Receiver;
use crate::kinds::core::{pod, serviceaccount};
use crate::kinds::registry::Registry;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Changes, Client, Informer, Patch, View};
use crate::schema;

/// Changes that are taken at once.
const BATCH: Batch = Batch::of_count(512);

/// A client of the API in this process, writing under one manager's name.
#[derive(Clone, Debug)]
pub struct Local {
    api: Api,
    manager: Arc<str>,
}

// === impl Local ===

impl Local {
    /// A client whose writes are owned by `manager`.
    pub fn new(api: Api, manager: &str) -> Self {
        Self { api, manager: manager.into() }
    }

    /// The kind as which an object was written, and in whose form it stays: what is changed here of custom objects is their
    /// metadata, which is the same in all versions.
    fn as_written(&self, kind: &KindRef, namespace: &str, name: &str) -> KindRef {
        let written = || {
            let object = self.api.cache.kind(kind).get(&kind.key(namespace, name))?;
            kind.kept_in(kind.version_of(&object))
        };
        kind.as_custom().and_then(|_| written()).unwrap_or_else(|| kind.clone())
    }

    /// A Scale is no object of its own kind.
    async fn rescale(&self, request: &Request, patch: Patch) -> Result<Arc<Object>> {
        let (Patch::Merge(patch) | Patch::Strategic(patch)) = &patch;
        let mut change = |scale: &Value| {
            let mut new = scale.clone();
            let patched = schema::patch::merge::apply(&mut new, patch, &mut Budget::new());
            patched.map_err(|e| Status::new(e.code(), e.reason(), e.to_string()))?;
            Ok(new)
        };
        Ok(self.api.rescale(request, false, &mut change).await?.object)
    }

    fn request(&self, kind: &KindRef, namespace: &str, name: &str, subresource: Option<Subresource>) -> Request {
        Request { subresource, ..Request::internal(&self.manager, kind, namespace, name) }
    }
}

#[async_trait]
impl Client for Local {
    fn kinds(&self) -> Registry {
        self.api.kinds.clone()
    }

    fn informer(&self, kind: &KindRef) -> Informer {
        Arc::new(LocalView { api: self.api.clone(), kind: kind.clone() })
    }

    async fn get(&self, kind: &KindRef, namespace: &str, name: &str) -> Result<Arc<Object>> {
        self.api.get(&self.request(kind, namespace, name, None))
    }

    async fn create(&self, kind: &KindRef, namespace: &str, value: Value) -> Result<Arc<Object>> {
        let mut value = value;
        decode(kind, &mut value)?;
        Ok(self.api.create(&self.request(kind, namespace, "", None), value).await?.object)
    }

    async fn update(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        value: Value,
    ) -> Result<Arc<Object>> {
        let mut value = value;
        decode(kind, &mut value)?;
        let request = self.request(kind, namespace, name, subresource);
        Ok(self.api.update(&request, Change::Replace(value)).await?.object)
    }

    async fn patch(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        patch: Patch,
    ) -> Result<Arc<Object>> {
        if subresource == Some(Subresource::Scale) {
            return self.rescale(&self.request(kind, namespace, name, subresource), patch).await;
        }
        let kind = &self.as_written(kind, namespace, name);
        let shape = kind.type_ref();
        let mut change = |live: &Value| {
            let mut new = live.clone();
            match &patch {
                Patch::Merge(p) => schema::patch::merge::apply(&mut new, p, &mut Budget::new()),
                Patch::Strategic(p) => schema::patch::strategic::apply(&mut new, p, &shape, &mut Budget::new()),
            }
            .map_err(|e| Status::new(e.code(), e.reason(), e.to_string()))?;
            decode(kind, &mut new)?;
            Ok(new)
        };
        let request = self.request(kind, namespace, name, subresource);
        Ok(self.api.update(&request, Change::Patch(&mut change)).await?.object)
    }

    async fn delete(&self, kind: &KindRef, namespace: &str, name: &str, options: DeleteOptions) -> Result<()> {
        self.api.delete(&self.request(kind, namespace, name, None), &options).await.map(|_| ())
    }

    async fn bind(&self, namespace: &str, pod: &str, uid: &str, node: &str) -> Result<()> {
        let request = self.request(&pod::KIND, namespace, pod, Some(Subresource::Binding));
        let binding = json!({"metadata": {"name": pod, "uid": uid}, "target": {"kind": "Node", "name": node}});
        self.api.bind(&request, &binding).await
    }

    async fn review(&self, kind: &KindRef, spec: Value) -> Result<Value> {
        self.api.review(&self.request(kind, "", "", None), json!({"spec": spec}))
    }

    async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<Value> {
        let request = self.request(&serviceaccount::KIND, namespace, account, Some(Subresource::Token));
        self.api.request_token(&request, json!({"spec": spec})).await
    }
}

/// Gives what our own code has built the exact shape of the kind.
fn decode(kind: &KindRef, value: &mut Value) -> Result<()> {
    let shape = kind.type_ref();
    schema::decode(value, &shape, &mut Budget::new()).map(|_| ()).map_err(|e| Status::bad_request(e.to_string()))
}

struct LocalView {
    api: Api,
    kind: KindRef,
}

// === impl LocalView ===

impl LocalView {
    fn kind_cache(&self) -> Arc<KindCache> {
        self.api.cache.kind(&self.kind)
    }
}

#[async_trait]
impl View for LocalView {
    fn kind(&self) -> &KindRef {
        &self.kind
    }

    fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.kind_cache().get(&self.kind.key(namespace, name))
    }

    fn list(&self, namespace: &str) -> Vec<Arc<Object>> {
        let prefix = self.kind.prefix();
        match namespace {
            "" => self.kind_cache().list(&prefix, ""),
            namespace => self.kind_cache().list(&format!("{prefix}{namespace}/"), ""),
        }
    }

    fn subscribe(&self) -> Box<dyn Changes> {
        let kind_cache = self.kind_cache();
        let changed = kind_cache.subscribe();
        let (api, kind, position) = (self.api.clone(), self.kind.clone(), kind_cache.last());
        Box::new(LocalChanges { api, kind, position, changed, drained: true })
    }

    async fn synced(&self) {}
}

struct LocalChanges {
    api: Api,
    kind: KindRef,
    position: u64,
    changed: Receiver,
    /// Everything until what was last seen of `changed` has been told.
    drained: bool,
}

// === impl LocalChanges ===

impl LocalChanges {
    /// Follows what is served under the kind's name from now on: its definition changed, or it goes and may come again.
    async fn resubscribe(&mut self) {
        let mut registry = self.api.kinds.subscribe();
        loop {
            if let Some(kind_cache) = self.api.cache.served(&self.kind) {
                self.changed = kind_cache.subscribe();
                self.position = kind_cache.last();
                return;
            }
            if registry.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[async_trait]
impl Changes for LocalChanges {
    async fn next(&mut self) -> Option<Vec<Changed>> {
        loop {
            self.changed.mark_unchanged();
            self.drained = false;
            let kind_cache = self.api.cache.kind(&self.kind);
            match kind_cache.changes(self.position, BATCH) {
                None => {
                    self.position = kind_cache.last();
                    return None;
                }
                Some(events) if !events.is_empty() => {
                    self.position = events.last().map_or(self.position, |e| e.revision);
                    let changed = |e: crate::api::cache::Event| Changed {
                        object: e.object,
                        previous: e.previous,
                        deleted: e.deleted,
                    };
                    return Some(events.into_iter().map(changed).collect());
                }
                Some(_) => self.drained = true,
            }
            if self.changed.changed().await.is_err() {
                self.resubscribe().await;
                return None;
            }
        }
    }

    fn is_current(&self) -> bool {
        self.drained && !self.changed.has_changed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::{configmap, namespace};

    #[tokio::test]
    async fn changes_are_current_until_something_is_written() {
        let api = in_memory::api();
        let client = Local::new(api.clone(), "test");
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "default"}})).await.unwrap();
        let mut changes = client.informer(&configmap::KIND).subscribe();
        assert!(changes.is_current());
        client.create(&configmap::KIND, "default", json!({"metadata": {"name": "a"}})).await.unwrap();
        assert!(!changes.is_current());
        let told = changes.next().await.unwrap();
        assert_eq!(&*told[0].object.meta.name, "a");
        assert!(!changes.is_current(), "there may be more");
        assert!(futures::FutureExt::now_or_never(changes.next()).is_none());
        assert!(changes.is_current());
    }
}
