//! The one way to the API for everything above it, in-process or over the network.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::Informer;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::kinds::registry::Registry;
use crate::kinds::{KindRef, Subresource};

/// A change of an object that needs no knowledge of the rest of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, which knows list keys.
    Strategic(Value),
}

/// Reads through shared caches, writes through the API.
#[async_trait]
pub trait Client: Send + Sync + 'static {
    /// The kinds that the server serves, as far as this client works with them.
    fn kinds(&self) -> Registry;

    /// The shared view of all objects of a kind.
    fn informer(&self, kind: &KindRef) -> Informer;

    /// The object as the API has it now.
    async fn get(&self, kind: &KindRef, namespace: &str, name: &str) -> Result<Arc<Object>>;

    /// Creates an object; its name is in `value`.
    async fn create(&self, kind: &KindRef, namespace: &str, value: Value) -> Result<Arc<Object>>;

    /// Replaces an object or its subresource; `value` carries the resourceVersion it was made from, or none.
    async fn update(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        value: Value,
    ) -> Result<Arc<Object>>;

    /// Patches an object or its subresource. A patch that carries `metadata.resourceVersion` or `metadata.uid` is
    /// refused as a conflict when they differ.
    async fn patch(
        &self,
        kind: &KindRef,
        namespace: &str,
        name: &str,
        subresource: Option<Subresource>,
        patch: Patch,
    ) -> Result<Arc<Object>>;

    /// Deletes an object, or begins to.
    async fn delete(&self, kind: &KindRef, namespace: &str, name: &str, options: DeleteOptions) -> Result<()>;

    /// Binds a pod to a node. A `uid` that is not empty must be the pod's.
    async fn bind(&self, namespace: &str, pod: &str, uid: &str, node: &str) -> Result<()>;

    /// A token for a service account: `spec` is a TokenRequest's. Answers the TokenRequest with its status.
    async fn token(&self, namespace: &str, account: &str, spec: Value) -> Result<Value>;

    /// Asks a review, a kind that is answered and never stored. Answers it with its status.
    async fn review(&self, kind: &KindRef, spec: Value) -> Result<Value>;
}
