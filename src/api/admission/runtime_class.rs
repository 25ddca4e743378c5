//! RuntimeClass: there is one runtime, so no pod may name another one.

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::api::Request;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, text};
use crate::kinds::core::pod;

pub(super) struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&pod::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        runtime_class(review.request, pod)
    }
}

/// There are no runtime classes, so none can be found; and overhead is what a class asks for.
fn runtime_class(request: &Request, pod: &Value) -> Result<()> {
    let name = text(pod, "metadata.name");
    if let Some(class) = at(pod, "spec.runtimeClassName").and_then(Value::as_str) {
        let why = format!("pod rejected: RuntimeClass {class:?} not found");
        return Err(Status::forbidden(&request.kind, name, why));
    }
    if at(pod, "spec.overhead").is_some_and(|o| o.as_object().is_some_and(|o| !o.is_empty())) {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(Status::forbidden(&request.kind, name, why));
    }
    Ok(())
}
