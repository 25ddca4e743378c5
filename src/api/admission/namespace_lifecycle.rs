//! NamespaceLifecycle: nothing new in a namespace that is missing or ending; some namespaces stay.

use async_trait::async_trait;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::kinds::core::namespace;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn handles(&self, review: &Review<'_>) -> bool {
        match review.operation {
            Operation::Create => review.request.subresource.is_none(),
            Operation::Delete => review.request.kind == namespace::KIND,
            Operation::Update | Operation::Connect => false,
        }
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        match review.operation {
            Operation::Delete => may_delete(review.request),
            _ => namespace_lives(review.api, review.request, object),
        }
    }
}

fn namespace_lives(api: &Api, request: &Request, value: &Value) -> Result<()> {
    if !request.kind.namespaced() || request.namespace.is_empty() {
        return Ok(());
    }
    let kind = &namespace::KIND;
    let Some(found) = api.cache.kind(kind).get(&kind.key("", &request.namespace)) else {
        return Err(Status::not_found(kind, &request.namespace));
    };
    if found.meta.deleted.is_some() {
        let why =
            format!("unable to create new content in namespace {} because it is being terminated", request.namespace);
        let message = format!("namespace {} is being terminated", request.namespace);
        return Err(Status::forbidden(&request.kind, text(value, "metadata.name"), why).cause(
            "NamespaceTerminating",
            message,
            "metadata.namespace",
        ));
    }
    Ok(())
}

fn may_delete(request: &Request) -> Result<()> {
    if IMMORTAL.contains(&request.name.as_str()) {
        return Err(Status::forbidden(&request.kind, &request.name, "this namespace may not be deleted"));
    }
    Ok(())
}
