//! Which pods are like a pod: those that its Services and its owner select too, whatever the pod itself says of spreading.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Service;

use super::snapshot::PodView;
use crate::apimachinery::label_selector::selector_of;
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::apps::replicaset;
use crate::kinds::core::service;
use crate::reconcile::{Client, Informer};

/// Who may select pods.
pub(super) struct Kin {
    services: Informer,
    replica_sets: Informer,
}

// === impl Kin ===

impl Kin {
    pub(super) fn new(client: &dyn Client) -> Self {
        Self { services: client.informer(&service::KIND), replica_sets: client.informer(&replicaset::KIND) }
    }

    /// What selects the pods that are like this one; empty where nothing does.
    pub(super) fn alike(&self, pod: &PodView) -> Selector {
        let mut labels = BTreeMap::new();
        for object in self.services.list(&pod.key.namespace) {
            let Ok(service) = object.typed::<Service>() else { continue };
            let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()) else { continue };
            if Selector::from_map(selector).matches(&pod.object.meta.labels) {
                labels.extend(selector.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
        }
        let mut alike = Selector::from_map(&labels);
        alike.0.extend(self.owner(&pod.object).into_iter().flat_map(|s| s.0));
        alike
    }

    fn owner(&self, pod: &Object) -> Option<Selector> {
        let owner = pod.controller().filter(|o| &*o.kind == "ReplicaSet")?;
        let object = self.replica_sets.get(&pod.meta.namespace, &owner.name)?;
        let set = object.typed::<ReplicaSet>().ok()?;
        Some(selector_of(&set.spec.selector))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::namespace;

    #[tokio::test]
    async fn what_services_and_the_owner_select_is_alike() {
        let client = in_memory::client();
        for name in ["n", "other"] {
            client.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
        }
        let service = async |namespace: &str, name: &str, selector: serde_json::Value| {
            let ports = json!([{"port": 80}]);
            let object = json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": ports}});
            client.create(&service::KIND, namespace, object).await.unwrap();
        };
        service("n", "mine", json!({"app": "a"})).await;
        service("n", "another", json!({"app": "b"})).await;
        service("n", "nobodys", json!(null)).await;
        service("other", "elsewhere", json!({"tier": "t"})).await;
        let template = json!({"metadata": {"labels": {"app": "a", "x": "1"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let selector = json!({"matchExpressions": [{"key": "x", "operator": "In", "values": ["1", "2"]}]});
        let set = json!({"metadata": {"name": "set"}, "spec": {"selector": selector, "template": template}});
        let set = client.create(&replicaset::KIND, "n", set).await.unwrap();
        let kin = Kin::new(&*client);
        let pod = |name: &str, owners: serde_json::Value| {
            let mut object = template.clone();
            let labels = json!({"app": "a", "x": "1", "tier": "t"});
            object["metadata"] = json!({"name": name, "namespace": "n", "labels": labels, "ownerReferences": owners});
            let object = Arc::new(Object::new(name.into(), 1, &object, Box::default()));
            kin.alike(&PodView::new(&object).unwrap()).to_string()
        };
        assert_eq!(pod("alone", json!([])), "app=a");
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "set", "uid": &*set.meta.uid, "controller": true,
        });
        assert_eq!(pod("owned", json!([owner])), "app=a,x in (1,2)");
    }
}
