//! NodeRestriction: what an agent may write at all: its own Node, its own Lease, its own pods and tokens for them.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::service_account::MIRROR;
use super::{Operation, Plugin, Review, node_address};
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::api::identity::join;
use crate::api::identity::node::LEASES;
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, flag, list, map, text};
use crate::kinds::coordination::lease;
use crate::kinds::core::pod::references::references;
use crate::kinds::core::{node, pod, secret, serviceaccount};
use crate::kinds::storage::csidriver;
use crate::kinds::{KindRef, Subresource};

/// Labels in Kubernetes' own domains that an agent may give its node (`k8s.io/kubelet/pkg/apis/well_known_labels.go`).
const OWN_LABELS: [&str; 14] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];
const OWN_LABEL_DOMAINS: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

pub(super) struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.request.user.node_name().is_some() && review.operation != Operation::Connect
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        let (api, request) = (review.api, review.request);
        if let (Operation::Delete, Some(old)) = (review.operation, review.old) {
            return restrict_deletion(request, old);
        }
        if request.subresource == Some(Subresource::Eviction) {
            // It is the deletion that it becomes that is looked at.
            return Ok(());
        }
        if review.creates(&node::KIND)
            && let Some(own) = request.user.node_name()
        {
            join::check_member(api, own)?;
        }
        if request.kind == serviceaccount::KIND && request.subresource == Some(Subresource::Token) {
            return restrict_token(api, request, object);
        }
        restrict(api, request, review.operation, object, review.old)?;
        match review.creates(&pod::KIND) {
            true => check_owner(api, request, object),
            false => Ok(()),
        }
    }
}

/// Refuses what an agent may not create or change.
fn restrict(api: &Api, request: &Request, operation: Operation, value: &Value, old: Option<&Value>) -> Result<()> {
    let Some(own) = request.user.node_name() else { return Ok(()) };
    let name = match request.name.as_str() {
        "" => text(value, "metadata.name"),
        name => name,
    };
    let refuse = |why: String| Err(Status::forbidden(&request.kind, name, why));
    let why = match &request.kind {
        k if *k == pod::KIND => pod_refusal(api, own, request, operation, value, old),
        k if *k == node::KIND => node_refusal(own, name, operation, value, old)
            .or_else(|| node_address::refusal_of_node(api, own, value, old))
            .or_else(|| key_refusal(api, own, value, old)),
        k if *k == lease::KIND => lease_refusal(own, name, request),
        _ => None,
    };
    why.map_or(Ok(()), refuse)
}

/// Refuses a pod of an agent whose owner is a Node that was there before and has the same name.
fn check_owner(api: &Api, request: &Request, pod: &Value) -> Result<()> {
    let (Some(own), [owner]) = (request.user.node_name(), list(pod, "metadata.ownerReferences")) else { return Ok(()) };
    let found = api.cache.kind(&node::KIND).get(&node::KIND.key("", own));
    let Some(found) = found else { return Err(Status::not_found(&node::KIND, own)) };
    if *found.meta.uid == *text(owner, "uid") {
        return Ok(());
    }
    let why = format!("node {own} UID mismatch: expected {} got {}", found.meta.uid, text(owner, "uid"));
    Err(Status::forbidden(&request.kind, text(pod, "metadata.name"), why))
}

/// Refuses what an agent may not delete.
fn restrict_deletion(request: &Request, live: &Value) -> Result<()> {
    let Some(own) = request.user.node_name() else { return Ok(()) };
    let why = match &request.kind {
        k if *k == pod::KIND && text(live, "spec.nodeName") != own => {
            Some(format!("node {own:?} can only delete pods with spec.nodeName set to itself"))
        }
        k if *k == lease::KIND => lease_refusal(own, &request.name, request),
        _ => None,
    };
    why.map_or(Ok(()), |why| Err(Status::forbidden(&request.kind, &request.name, why)))
}

fn pod_refusal(
    api: &Api,
    own: &str,
    request: &Request,
    operation: Operation,
    value: &Value,
    old: Option<&Value>,
) -> Option<String> {
    if operation == Operation::Create {
        if value["metadata"]["annotations"].get(MIRROR).is_none() {
            return Some(format!("pod does not have {MIRROR:?} annotation, node {own:?} can only create mirror pods"));
        }
        if text(value, "spec.nodeName") != own {
            return Some(format!("node {own:?} can only create pods with spec.nodeName set to itself"));
        }
        return mirror_refusal(own, value);
    }
    if request.subresource != Some(Subresource::Status) {
        return Some(format!("node {own:?} can only update pod status"));
    }
    let old = old?;
    if text(old, "spec.nodeName") != own {
        return Some(format!("node {own:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    let labels = |pod: &Value| map(pod, "metadata.labels").cloned().unwrap_or_default();
    if labels(old) != labels(value) {
        return Some(format!("node {own:?} cannot update labels through pod status"));
    }
    node_address::refusal_of_pod(api, own, value, old)
}

/// What a mirror pod may not name: through it an agent could read any Secret there is.
fn mirror_refusal(own: &str, value: &Value) -> Option<String> {
    let cannot = |what: &str| Some(format!("node {own:?} can not create pods that reference {what}"));
    let owner = match list(value, "metadata.ownerReferences") {
        [owner] => owner,
        [] => return Some(format!("node {own:?} can only create pods with an owner reference set to itself")),
        _ => return Some(format!("node {own:?} can only create pods with a single owner reference set to itself")),
    };
    if text(owner, "apiVersion") != "v1" || text(owner, "kind") != "Node" || text(owner, "name") != own {
        return Some(format!("node {own:?} can only create pods with an owner reference set to itself"));
    }
    if !flag(owner, "controller") {
        return Some(format!("node {own:?} can only create pods with a controller owner reference set to itself"));
    }
    if flag(owner, "blockOwnerDeletion") {
        return Some(format!("node {own:?} must not set blockOwnerDeletion on an owner reference"));
    }
    if !text(value, "spec.serviceAccountName").is_empty() {
        return cannot("a service account");
    }
    let Ok(pod) = serde_json::from_value::<Pod>(value.clone()) else { return cannot("what cannot be read") };
    let named = references(&pod);
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let (mut claims, mut tokens) = (false, false);
    for volume in volumes {
        claims |= volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        tokens |= sources.into_iter().any(|s| s.service_account_token.is_some());
    }
    match () {
        () if named.iter().any(|(kind, _)| *kind == &secret::KIND) => cannot("secrets"),
        () if !named.is_empty() => cannot("configmaps"),
        () if claims => cannot("persistentvolumeclaims"),
        () if tokens => cannot("a service account"),
        () => None,
    }
}

fn node_refusal(own: &str, name: &str, operation: Operation, value: &Value, old: Option<&Value>) -> Option<String> {
    if name != own {
        return Some(format!("node {own:?} is not allowed to modify node {name:?}"));
    }
    let taints = |node: &Value| at(node, "spec.taints").cloned().filter(|t| !t.is_null());
    if operation == Operation::Update && old.is_some_and(|old| taints(old) != taints(value)) {
        return Some(format!("node {own:?} is not allowed to modify taints"));
    }
    let owners = |node: &Value| list(node, "metadata.ownerReferences").to_vec();
    if owners(value) != old.map(owners).unwrap_or_default() {
        return Some(format!("node {own:?} is not allowed to modify ownerReferences"));
    }
    // The other nodes lead what is sent there to this one.
    let range = |node: &Value| {
        let all: Vec<String> = list(node, "spec.podCIDRs").iter().map(ToString::to_string).collect();
        (text(node, "spec.podCIDR").to_owned(), all)
    };
    if range(value) != old.map(range).unwrap_or_default() {
        return Some(format!("node {own:?} is not allowed to modify its pod range"));
    }
    let labels = |node: Option<&Value>| node.and_then(|n| map(n, "metadata.labels")).cloned().unwrap_or_default();
    let (before, after) = (labels(old), labels(Some(value)));
    let changed = before.keys().chain(after.keys()).filter(|k| before.get(*k) != after.get(*k));
    let mut forbidden: Vec<&str> = changed.map(String::as_str).filter(|k| !may_give_itself(k)).collect();
    forbidden.sort_unstable();
    forbidden.dedup();
    (!forbidden.is_empty()).then(|| format!("node {own:?} is not allowed to modify labels: {}", forbidden.join(", ")))
}

/// A key for the overlay that another Node says is its own: what is sent there would go to whoever says it last.
fn key_refusal(api: &Api, own: &str, value: &Value, old: Option<&Value>) -> Option<String> {
    let key = |node: &Value| node["metadata"]["annotations"][node::OVERLAY_KEY].as_str().map(str::to_owned);
    let told = key(value).filter(|told| !told.is_empty() && old.and_then(key).as_ref() != Some(told))?;
    let kind: &KindRef = &node::KIND;
    let nodes = api.cache.kind(kind).list(&kind.prefix(), "");
    let other = nodes.iter().find(|o| *o.meta.name != *own && key(&o.value()).as_ref() == Some(&told))?;
    Some(format!("node {own:?} is not allowed to have the key for the overlay that node {:?} has", other.meta.name))
}

/// Whether a node may give itself a label with this key.
pub fn may_give_itself(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let within = |parent: &str| domain == parent || domain.strip_suffix(parent).is_some_and(|d| d.ends_with('.'));
    let reserved = within("kubernetes.io") || within("k8s.io");
    !reserved || OWN_LABELS.contains(&key) || OWN_LABEL_DOMAINS.iter().any(|d| within(d))
}

fn lease_refusal(own: &str, name: &str, request: &Request) -> Option<String> {
    if request.namespace != LEASES {
        return Some(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    (name != own).then(|| "can only access node lease with the same name as the requesting node".to_owned())
}

/// Refuses a token that is not for a pod of the agent's own node.
fn restrict_token(api: &Api, request: &Request, asked: &Value) -> Result<()> {
    let Some(own) = request.user.node_name() else { return Ok(()) };
    let refuse = |why: &str| Err(Status::forbidden(&request.kind, &request.name, why));
    let bound = at(asked, "spec.boundObjectRef").filter(|b| text(b, "kind") == "Pod" && !text(b, "uid").is_empty());
    let Some(bound) = bound else { return refuse("node requested token not bound to a pod") };
    let kind: &KindRef = &pod::KIND;
    let found = api.cache.kind(kind).get(&kind.key(&request.namespace, text(bound, "name")));
    match found.map(|o| o.value()) {
        Some(pod) if text(&pod, "metadata.uid") != text(bound, "uid") => refuse("the pod is another one by now"),
        Some(pod) if text(&pod, "spec.nodeName") == own => restrict_audience(api, request, asked, &pod),
        Some(_) => refuse("node requested token bound to a pod scheduled on a different node"),
        None => refuse("the pod is not there"),
    }
}

/// Refuses a token for somebody whom the pod has nothing to show to: the audience is one of the pod's projected tokens, one that
/// a driver of its volumes asks for, or one that a rule lets nodes ask for.
fn restrict_audience(api: &Api, request: &Request, asked: &Value, pod: &Value) -> Result<()> {
    let refuse = |why: &str| Err(Status::forbidden(&request.kind, &request.name, why));
    let audience = match list(asked, "spec.audiences") {
        [] => "",
        [audience] => audience.as_str().unwrap_or_default(),
        _ => return refuse("node may only request 0 or 1 audiences"),
    };
    let volumes = list(pod, "spec.volumes");
    let sources = volumes.iter().flat_map(|volume| list(volume, "projected.sources"));
    let mut projected = sources.filter_map(|source| at(source, "serviceAccountToken")).filter(|token| !token.is_null());
    let driver_asks = |driver: &str| {
        let found = api.cache.kind(&csidriver::KIND).get(&csidriver::KIND.key("", driver));
        found.is_some_and(|d| list(&d.value(), "spec.tokenRequests").iter().any(|r| text(r, "audience") == audience))
    };
    let mut drivers = volumes.iter().map(|volume| text(volume, "csi.driver")).filter(|driver| !driver.is_empty());
    let rule = Attributes {
        verb: "request-serviceaccounts-token-audience".into(),
        resource: audience.into(),
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        ..Attributes::default()
    };
    if projected.any(|token| text(token, "audience") == audience)
        || drivers.any(driver_asks)
        || authorize(api, &request.user, &rule).allowed
    {
        return Ok(());
    }
    refuse(&format!(
        "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
        request.user.name
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::write::Change;
    use crate::apimachinery::user::User;

    fn restrict(request: &Request, operation: Operation, value: &Value, old: Option<&Value>) -> Result<()> {
        super::restrict(&in_memory::api(), request, operation, value, old)
    }

    fn request(kind: &KindRef, name: &str, subresource: Option<Subresource>) -> Request {
        let user = std::sync::Arc::new(User::node("a"));
        Request { user, subresource, ..Request::internal("kubelet", kind, "default", name) }
    }

    #[test]
    fn an_agent_writes_only_what_is_its_own() {
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let status = request(&pod::KIND, "p", Some(Subresource::Status));
        assert!(restrict(&status, Operation::Update, &pod("a"), Some(&pod("a"))).is_ok());
        let refused = restrict(&status, Operation::Update, &pod("b"), Some(&pod("b"))).unwrap_err();
        let expect =
            r#"pods "p" is forbidden: node "a" can only update pod status for pods with spec.nodeName set to itself"#;
        assert_eq!((refused.code, refused.message.as_str()), (403, expect));
        assert!(restrict(&request(&pod::KIND, "p", None), Operation::Update, &pod("a"), Some(&pod("a"))).is_err());
        assert!(restrict(&request(&pod::KIND, "", None), Operation::Create, &pod("a"), None).is_err());
        assert!(restrict_deletion(&request(&pod::KIND, "p", None), &pod("a")).is_ok());
        assert!(restrict_deletion(&request(&pod::KIND, "p", None), &pod("b")).is_err());
    }

    #[tokio::test]
    async fn an_agent_removes_the_pods_of_its_own_node_and_no_others() {
        let api = in_memory::api();
        let create = in_memory::pod_creator(&api, "n").await;
        create("p", json!({})).await.unwrap();
        let mut bind = |live: &Value| {
            let mut new = live.clone();
            new["spec"]["nodeName"] = "a".into();
            Ok(new)
        };
        let pod = Request::internal("test", &pod::KIND, "n", "p").on(Subresource::Binding);
        api.update(&pod, Change::Patch(&mut bind)).await.unwrap();
        let delete = async |node: &str| {
            let user = std::sync::Arc::new(User::node(node));
            let request = Request { user, ..Request::internal("test", &pod::KIND, "n", "p") };
            api.delete(&request, &Default::default()).await.map(|_| ()).map_err(|status| status.code)
        };
        assert_eq!((delete("b").await, delete("a").await), (Err(403), Ok(())));
    }

    #[test]
    fn an_agent_reaches_nothing_through_pods_that_it_makes_up() {
        let refusal = |spec: Value, owners: Value| {
            let mut spec = spec;
            spec["nodeName"] = "a".into();
            let metadata = json!({"name": "p", "annotations": {MIRROR: "x"}, "ownerReferences": owners});
            let pod = json!({"metadata": metadata, "spec": spec});
            restrict(&request(&pod::KIND, "", None), Operation::Create, &pod, None).err().map(|s| s.message)
        };
        let with = |env: Value| json!({"containers": [{"name": "c", "envFrom": [env]}]});
        let own = json!([{"apiVersion": "v1", "kind": "Node", "name": "a", "uid": "u", "controller": true}]);
        assert_eq!(refusal(json!({"containers": [{"name": "c"}]}), own.clone()), None);
        let secrets = refusal(with(json!({"secretRef": {"name": "s"}})), own.clone()).unwrap();
        assert!(secrets.ends_with(r#"node "a" can not create pods that reference secrets"#), "{secrets}");
        assert!(refusal(with(json!({"configMapRef": {"name": "m"}})), own.clone()).unwrap().ends_with("configmaps"));
        let token = json!({"sources": [{"serviceAccountToken": {"path": "t"}}]});
        for volume in [json!({"persistentVolumeClaim": {"claimName": "c"}}), json!({"projected": token})] {
            let mut volume = volume;
            volume["name"] = "v".into();
            assert!(refusal(json!({"containers": [], "volumes": [volume]}), own.clone()).is_some());
        }
        let other = json!([{"apiVersion": "v1", "kind": "Node", "name": "b", "uid": "u", "controller": true}]);
        assert!(refusal(json!({"containers": []}), other).unwrap().contains("an owner reference set to itself"));
        let plain = || json!({"containers": [{"name": "c"}]});
        assert!(refusal(plain(), json!([])).unwrap().contains("an owner reference set to itself"));
        let two = json!([own[0].clone(), own[0].clone()]);
        assert!(refusal(plain(), two).unwrap().contains("a single owner reference"));
        let mut lax = own.clone();
        lax[0]["controller"] = false.into();
        assert!(refusal(plain(), lax).unwrap().contains("a controller owner reference"));
        let mut blocking = own.clone();
        blocking[0]["blockOwnerDeletion"] = true.into();
        assert!(refusal(plain(), blocking).unwrap().contains("must not set blockOwnerDeletion"));
    }

    #[test]
    fn an_agent_takes_no_range_and_no_owner() {
        let node =
            |spec: Value, owners: Value| json!({"metadata": {"name": "a", "ownerReferences": owners}, "spec": spec});
        let own = request(&node::KIND, "a", None);
        let ranged = node(json!({"podCIDR": "192.0.2.0/24", "podCIDRs": ["192.0.2.0/24"]}), json!([]));
        let plain = node(json!({}), json!([]));
        assert!(restrict(&own, Operation::Create, &ranged, None).is_err(), "traffic of others would come here");
        assert!(restrict(&own, Operation::Update, &ranged, Some(&plain)).is_err());
        assert!(restrict(&own, Operation::Update, &ranged, Some(&ranged)).is_ok());
        let owned = node(json!({}), json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "u"}]));
        assert!(restrict(&own, Operation::Update, &owned, Some(&plain)).is_err(), "it would be collected");
    }

    #[tokio::test]
    async fn an_agent_takes_no_other_nodes_key_for_the_overlay() {
        let api = in_memory::api();
        let node = |name: &str, key: &str| json!({"metadata": {"name": name, "annotations": {node::OVERLAY_KEY: key}}});
        let made = Request::internal("test", &node::KIND, "", "");
        api.create(&made, node("b", "theirs")).await.unwrap();
        let own = Request { namespace: String::new(), ..request(&node::KIND, "a", None) };
        let made_by_itself = super::restrict(&api, &own, Operation::Create, &node("a", "theirs"), None);
        let refused = made_by_itself.unwrap_err();
        assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
        assert!(refused.message.contains("the key for the overlay that node \"b\" has"), "{}", refused.message);
        api.create(&made, node("a", "mine")).await.unwrap();
        for subresource in [None, Some(Subresource::Status)] {
            let own = Request { subresource, ..own.clone() };
            let taken = super::restrict(&api, &own, Operation::Update, &node("a", "theirs"), Some(&node("a", "mine")));
            assert_eq!(taken.unwrap_err().code, 403, "{subresource:?}");
            let next = super::restrict(&api, &own, Operation::Update, &node("a", "next"), Some(&node("a", "mine")));
            next.unwrap();
        }
        let kept = super::restrict(&api, &own, Operation::Update, &node("a", "theirs"), Some(&node("a", "theirs")));
        kept.unwrap();
    }

    #[test]
    fn an_agent_gives_its_node_no_role_and_no_taints() {
        let node = |labels: Value, taints: Value| json!({"metadata": {"name": "a", "labels": labels}, "spec": {"taints": taints}});
        let plain = node(json!({"kubernetes.io/hostname": "a", "example.com/x": "y"}), json!([]));
        let own = request(&node::KIND, "a", None);
        assert!(restrict(&own, Operation::Create, &plain, None).is_ok());
        assert!(restrict(&request(&node::KIND, "b", None), Operation::Create, &plain, None).is_err());
        let role = node(json!({"node-role.kubernetes.io/control-plane": "true"}), json!([]));
        assert!(restrict(&own, Operation::Create, &role, None).is_err());
        let tainted = node(json!({}), json!([{"key": "k", "effect": "NoSchedule"}]));
        assert!(restrict(&own, Operation::Create, &tainted, None).is_ok(), "it may begin with taints");
        assert!(restrict(&own, Operation::Update, &plain, Some(&tainted)).is_err());
    }
}
