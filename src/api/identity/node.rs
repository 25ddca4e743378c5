//! What the agent of a node may do, by what runs on its node (Kubernetes' Node authorizer).
//!
//! Rules of roles cannot say "the secrets of its own pods". This answers from the pods in the cache at the time of the
//! request; what is left to say about objects themselves is NodeRestriction's. Invariant: an agent whose node runs no pod
//! that names a Secret cannot read it.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::attributes::Attributes;
use crate::api::cache::Cache;
use crate::apimachinery::user::User;
use crate::apimachinery::volume::{claims_of, is_bound_to, volume_of};
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::core::pod::{self, references::references};
use crate::kinds::core::{configmap, node, persistentvolume, persistentvolumeclaim, secret};

/// Where nodes' Leases are.
pub const LEASES: &str = "kube-node-lease";
/// An administrator's word that what a node calls its images is true: no agent may give its own node a label of this
/// domain.
pub const IMAGE_SOURCE: &str = "node-restriction.kubernetes.io/image-source";
const READ: [&str; 3] = ["get", "list", "watch"];

/// Whether the user is a node's agent and may do it.
pub fn allows(cache: &Cache, user: &User, a: &Attributes) -> bool {
    let Some(node) = user.node_name() else { return false };
    let verb = a.verb.as_str();
    let read = READ.contains(&verb);
    match (a.group.as_str(), a.resource.as_str(), a.subresource.as_str()) {
        ("", "secrets", "") => read && is_named(cache, node, &secret::KIND, &a.namespace, &a.name),
        ("", "configmaps", "") => read && is_named(cache, node, &configmap::KIND, &a.namespace, &a.name),
        ("", "persistentvolumeclaims", "") => verb == "get" && is_claimed(cache, node, &a.namespace, &a.name),
        ("", "persistentvolumes", "") => verb == "get" && is_mounted(cache, node, &a.name),
        ("", "serviceaccounts", "token") => verb == "create" && is_account(cache, node, &a.namespace, &a.name),
        ("", "pods", "") => match verb {
            "list" | "watch" => a.required("spec.nodeName") == Some(node),
            "get" => runs(cache, node, &a.namespace, &a.name),
            _ => matches!(verb, "create" | "delete"),
        },
        ("", "pods", "status") => matches!(verb, "update" | "patch"),
        ("", "pods", "eviction") => verb == "create",
        ("", "nodes", "") => read || matches!(verb, "create" | "update" | "patch"),
        ("", "nodes", "status") => matches!(verb, "update" | "patch"),
        ("", "services" | "namespaces", "") | ("discovery.k8s.io", "endpointslices", "") => read,
        ("networking.k8s.io", "servicecidrs" | "networkpolicies", "") => read,
        ("" | "events.k8s.io", "events", "") => matches!(verb, "create" | "update" | "patch"),
        ("node.k8s.io", "runtimeclasses", "") => read,
        ("coordination.k8s.io", "leases", "") => {
            a.namespace == LEASES
                && match verb {
                    "create" => true,
                    "get" | "update" | "patch" | "delete" => a.name == node,
                    _ => false,
                }
        }
        ("authentication.k8s.io", "tokenreviews", "") | ("authorization.k8s.io", "subjectaccessreviews", "") => {
            verb == "create"
        }
        _ => false,
    }
}

/// Whether an administrator has said that the node's word on tags counts.
pub fn is_image_source(cache: &Cache, name: &str) -> bool {
    let kind: &KindRef = &node::KIND;
    let found = cache.kind(kind).get(&kind.key("", name));
    found.is_some_and(|node| node.meta.labels.get(IMAGE_SOURCE).is_some_and(|value| &**value == "true"))
}

/// The pods of a node in a namespace.
fn pods_of(cache: &Cache, node: &str, namespace: &str) -> impl Iterator<Item = std::sync::Arc<Pod>> {
    let prefix = format!("{}{namespace}/", pod::KIND.prefix());
    let on = |o: &Object| o.typed::<Pod>().ok().filter(|p| node_of(p) == Some(node));
    cache.kind(&pod::KIND).list(&prefix, "").iter().filter_map(|o| on(o)).collect::<Vec<_>>().into_iter()
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

fn runs(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    let found = cache.kind(&pod::KIND).get(&pod::KIND.key(namespace, name));
    found.and_then(|o| o.typed::<Pod>().ok()).is_some_and(|p| node_of(&p) == Some(node))
}

fn is_named(cache: &Cache, node: &str, kind: &KindRef, namespace: &str, name: &str) -> bool {
    !name.is_empty()
        && !namespace.is_empty()
        && pods_of(cache, node, namespace).any(|p| references(&p).iter().any(|(k, n)| *k == kind && n == name))
}

/// Whether a pod of the node has this claim.
fn is_claimed(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    !name.is_empty()
        && !namespace.is_empty()
        && pods_of(cache, node, namespace).any(|p| claims_of(&p).any(|of| of.claim == name))
}

/// Whether a pod of the node has the claim that this volume is bound to.
fn is_mounted(cache: &Cache, node: &str, name: &str) -> bool {
    let (volumes, claims) = (&persistentvolume::KIND, &persistentvolumeclaim::KIND);
    let Some(volume) = cache.kind(volumes).get(&volumes.key("", name)) else { return false };
    let Ok(volume) = volume.typed::<PersistentVolume>() else { return false };
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let (namespace, claim) = (reference.namespace.as_deref().unwrap_or(""), reference.name.as_deref().unwrap_or(""));
    let is_its = |o: &std::sync::Arc<Object>| {
        let is_named = o.typed::<PersistentVolumeClaim>().is_ok_and(|c| volume_of(&c) == name);
        is_named && is_bound_to(&volume, o)
    };
    is_claimed(cache, node, namespace, claim)
        && cache.kind(claims).get(&claims.key(namespace, claim)).is_some_and(|o| is_its(&o))
}

fn is_account(cache: &Cache, node: &str, namespace: &str, name: &str) -> bool {
    let account = |p: &Pod| p.spec.as_ref().and_then(|s| s.service_account_name.as_deref()) == Some(name);
    !name.is_empty() && pods_of(cache, node, namespace).any(|p| account(&p))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::base::labels::FieldSelector;
    use crate::kinds::KindRef;
    use crate::reconcile::Client;
    use serde_json::{Value, json};

    async fn put(client: &dyn Client, kind: &KindRef, namespace: &str, value: Value) {
        client.create(kind, namespace, value).await.unwrap();
    }

    fn ask(verb: &str, resource: &str, name: &str) -> Attributes {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Attributes {
            verb: verb.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "default".into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[tokio::test]
    async fn an_agent_reads_the_claims_of_its_pods_and_their_volumes_alone() {
        let api = in_memory::api();
        let client = crate::api::local::Local::new(api.clone(), "test");
        put(&client, &crate::kinds::core::namespace::KIND, "", json!({"metadata": {"name": "default"}})).await;
        put(&client, &crate::kinds::core::serviceaccount::KIND, "default", json!({"metadata": {"name": "default"}}))
            .await;
        for (node, claim) in [("a", "mine"), ("b", "other")] {
            let resources = json!({"requests": {"storage": "1"}});
            let spec =
                json!({"accessModes": ["ReadWriteOnce"], "resources": resources, "volumeName": format!("v-{claim}")});
            let made = json!({"metadata": {"name": claim}, "spec": spec});
            client.create(&persistentvolumeclaim::KIND, "default", made).await.unwrap();
            let uid = client.get(&persistentvolumeclaim::KIND, "default", claim).await.unwrap().meta.uid.clone();
            for (name, uid) in [(format!("v-{claim}"), &*uid), (format!("w-{claim}"), &*uid)] {
                let reference = json!({"namespace": "default", "name": claim, "uid": uid});
                let spec = json!({
                    "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1"}, "hostPath": {"path": "/srv"},
                    "claimRef": reference,
                });
                put(&client, &persistentvolume::KIND, "", json!({"metadata": {"name": name}, "spec": spec})).await;
            }
            let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
            let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i"}], "volumes": volume});
            put(&client, &pod::KIND, "default", json!({"metadata": {"name": claim}, "spec": spec})).await;
        }
        let user = User::node("a");
        let may = |verb: &str, resource: &str, name: &str| allows(&api.cache, &user, &ask(verb, resource, name));
        assert!(may("get", "persistentvolumeclaims", "mine") && !may("get", "persistentvolumeclaims", "other"));
        assert!(may("get", "persistentvolumes", "v-mine") && !may("get", "persistentvolumes", "v-other"));
        assert!(!may("get", "persistentvolumes", "w-mine"), "which only says that it is the claim's");
        for resource in ["persistentvolumeclaims", "persistentvolumes"] {
            assert!(!may("list", resource, "") && !may("watch", resource, "mine") && !may("update", resource, "mine"));
        }
    }

    #[tokio::test]
    async fn an_agent_reads_what_its_own_pods_name_and_nothing_else() {
        let api = in_memory::api();
        let client = crate::api::local::Local::new(api.clone(), "test");
        put(&client, &crate::kinds::core::namespace::KIND, "", json!({"metadata": {"name": "default"}})).await;
        for account in ["default", "other"] {
            let kind = &crate::kinds::core::serviceaccount::KIND;
            put(&client, kind, "default", json!({"metadata": {"name": account}})).await;
        }
        for (name, node, secret) in [("mine", "a", "s-a"), ("other", "b", "s-b")] {
            let env = json!([{"secretRef": {"name": secret}}]);
            let spec = json!({"nodeName": node, "containers": [{"name": "c", "image": "i", "envFrom": env}]});
            put(&client, &pod::KIND, "default", json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        let user = User::node("a");
        let may = |a: Attributes| allows(&api.cache, &user, &a);
        assert!(may(ask("get", "secrets", "s-a")) && may(ask("watch", "secrets", "s-a")));
        assert!(!may(ask("get", "secrets", "s-b")), "another node's");
        assert!(!may(ask("list", "secrets", "")), "all of them");
        assert!(!may(ask("update", "secrets", "s-a")));
        assert!(may(ask("get", "pods", "mine")) && !may(ask("get", "pods", "other")));
        assert!(may(ask("create", "serviceaccounts/token", "default")));
        assert!(!may(ask("create", "serviceaccounts/token", "other")));
        let on = |node: &str| {
            let selector = FieldSelector::parse(&format!("spec.nodeName={node}")).unwrap();
            Attributes { fields: selector.0, ..ask("list", "pods", "") }
        };
        assert!(may(on("a")) && !may(on("b")) && !may(ask("list", "pods", "")));
        let stranger = User { name: "system:node:a".into(), ..User::default() };
        assert!(!allows(&api.cache, &stranger, &ask("get", "secrets", "s-a")), "the name alone is not enough");
    }
}
