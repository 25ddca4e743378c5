//! The class of a claim that names none (DefaultStorageClass): the newest of those that are marked as default.

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::apimachinery::status::Result;
use crate::base::json::{at, set};
use crate::kinds::core::{claim, persistentvolumeclaim};
use crate::kinds::storage::storageclass;

pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&persistentvolumeclaim::KIND)
    }

    async fn mutate(&self, review: &Review<'_>, claim: &mut Value) -> Result<()> {
        // An empty name is a choice too: a volume without a class.
        let is_chosen = at(claim, "spec.storageClassName").is_some_and(Value::is_string)
            || claim["metadata"]["annotations"].get(claim::BETA_CLASS).is_some();
        if !is_chosen {
            let kind = &storageclass::KIND;
            let classes = review.api.cache.kind(kind).list(&kind.prefix(), "");
            if let Some(class) = storageclass::default_of(classes) {
                set(claim, "spec.storageClassName", &*class.meta.name);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::api::Request;
    use crate::api::in_memory;
    use crate::kinds::KindRef;
    use crate::kinds::core::{namespace, persistentvolumeclaim};
    use crate::kinds::storage::storageclass;

    #[tokio::test]
    async fn a_claim_that_names_no_class_gets_the_default_one_and_is_held() {
        let api = in_memory::api();
        let create = async |kind: &KindRef, namespace: &str, value| {
            api.create(&Request::internal("test", kind, namespace, ""), value).await.unwrap().object.value()
        };
        create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await;
        for (name, marked) in [("plain", "false"), ("b", "true"), ("a", "true")] {
            let annotations = json!({storageclass::IS_DEFAULT[0]: marked});
            let class = json!({"metadata": {"name": name, "annotations": annotations}, "provisioner": "e.com/p"});
            create(&storageclass::KIND, "", class).await;
        }
        let claim = async |name: &str, class: serde_json::Value| {
            let resources = json!({"requests": {"storage": "1"}});
            let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": resources, "storageClassName": class});
            create(&persistentvolumeclaim::KIND, "n", json!({"metadata": {"name": name}, "spec": spec})).await
        };
        let made = claim("none", json!(null)).await;
        assert_eq!(made["spec"]["storageClassName"], "a");
        assert_eq!(made["metadata"]["finalizers"], json!([persistentvolumeclaim::PROTECTION]));
        assert_eq!(claim("empty", json!("")).await["spec"]["storageClassName"], "");
        assert_eq!(claim("other", json!("other")).await["spec"]["storageClassName"], "other");
    }
}
