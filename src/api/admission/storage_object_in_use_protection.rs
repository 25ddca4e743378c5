//! StorageObjectInUseProtection: volumes and claims are held from their first moment on, until nobody has them.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Plugin, Review};
use crate::apimachinery::status::Result;
use crate::base::json::map_mut;
use crate::kinds::core::{persistentvolume, persistentvolumeclaim};

pub(super) struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&persistentvolumeclaim::KIND) || review.creates(&persistentvolume::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        let finalizer = match review.request.kind == persistentvolume::KIND {
            true => persistentvolume::PROTECTION,
            false => persistentvolumeclaim::PROTECTION,
        };
        let finalizers = map_mut(object, "metadata").entry("finalizers").or_insert(Value::Null);
        match finalizers.as_array_mut() {
            Some(all) if all.iter().any(|f| f == finalizer) => {}
            Some(all) => all.push(finalizer.into()),
            None => *finalizers = json!([finalizer]),
        }
        Ok(())
    }
}
