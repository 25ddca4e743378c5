//! What a plugin of the chain is, and what it is asked about.

use async_trait::async_trait;
use serde_json::Value;

use crate::api::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::kinds::KindRef;
use crate::kinds::admissionregistration::validatingadmissionpolicy;

/// What is being done (`admission.Operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream to a pod, or a request through the proxy: the object is what was asked, such as `PodExecOptions`.
    Connect,
}

/// What a plugin is asked about (`admission.Attributes`): who asks for what, as a trial or not, is in the request.
pub struct Review<'a> {
    pub api: &'a Api,
    pub request: &'a Request,
    pub operation: Operation,
    /// What the object was; `None` where it is new.
    pub old: Option<&'a Value>,
    /// How a deletion was asked for.
    pub deletion: Option<&'a DeleteOptions>,
}

/// A part of the chain.
#[async_trait]
pub(super) trait Plugin: Sync {
    /// Whether it has anything to do with this; the chain goes on without it if not.
    fn handles(&self, review: &Review<'_>) -> bool;

    /// Changes or refuses an object before it is validated.
    async fn mutate(&self, _review: &Review<'_>, _object: &mut Value) -> Result<()> {
        Ok(())
    }

    /// Refuses an object in its last form (null where it is to be deleted), or warns the client of it.
    async fn validate(&self, _review: &Review<'_>, _object: &Value) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

// === impl Review ===

impl<'a> Review<'a> {
    /// About a new object.
    pub fn create(api: &'a Api, request: &'a Request) -> Self {
        Self { api, request, operation: Operation::Create, old: None, deletion: None }
    }

    /// About a change of what was `old`.
    pub fn update(api: &'a Api, request: &'a Request, old: &'a Value) -> Self {
        Self { operation: Operation::Update, old: Some(old), ..Self::create(api, request) }
    }

    /// About the end of what was `old`.
    pub fn delete(api: &'a Api, request: &'a Request, old: &'a Value, options: &'a DeleteOptions) -> Self {
        Self { operation: Operation::Delete, deletion: Some(options), ..Self::update(api, request, old) }
    }

    /// About a stream.
    pub fn connect(api: &'a Api, request: &'a Request) -> Self {
        Self { operation: Operation::Connect, ..Self::create(api, request) }
    }

    /// Whether an object of the kind itself is created or changed, and not a subresource.
    pub(super) fn writes(&self, kind: &KindRef) -> bool {
        self.creates(kind) || (self.is_of(kind) && self.operation == Operation::Update)
    }

    /// Whether an object of the kind itself is created.
    pub(super) fn creates(&self, kind: &KindRef) -> bool {
        self.is_of(kind) && self.operation == Operation::Create
    }

    /// Whether neither policies nor webhooks are asked. What decides on admission is not decided on, or nobody could mend it; and
    /// the server's own part of another request is not a request.
    pub(super) fn is_exempt(&self) -> bool {
        let request = self.request;
        let is_part = request.subresource.and_then(|s| request.kind.update_strategy(s)).is_some_and(|s| !s.tracked);
        request.kind.group() == validatingadmissionpolicy::KIND.group()
            || (is_part && self.operation == Operation::Update)
    }

    pub(super) fn is_of(&self, kind: &KindRef) -> bool {
        self.request.kind == *kind && self.request.subresource.is_none()
    }
}
