//! PersistentVolumeClaimResize: only bound claims of a class whose volumes can grow may ask for more.

use async_trait::async_trait;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{flag, text};
use crate::kinds::core::claim;
use crate::kinds::core::persistentvolumeclaim::{KIND, requested};
use crate::kinds::storage::storageclass;

pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.is_of(&KIND) && review.operation == Operation::Update
    }

    async fn validate(&self, review: &Review<'_>, claim: &Value) -> Result<Vec<String>> {
        let Some(old) = review.old else { return Ok(Vec::new()) };
        if requested(claim) <= requested(old) {
            return Ok(Vec::new());
        }
        let refuse = |why: &str| Err(Status::forbidden(&KIND, text(claim, "metadata.name"), why));
        if text(old, "status.phase") != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = claim::class_of(claim);
        let kind = &storageclass::KIND;
        let found = review.api.cache.kind(kind).get(&kind.key("", class));
        match found.is_some_and(|class| flag(&class.value(), "allowVolumeExpansion")) {
            true => Ok(Vec::new()),
            false => refuse(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            ),
        }
    }
}
