//! Which volume fits a claim, and where it can be mounted: what the binder, the scheduler and nodes decide alike
//! (Kubernetes shares this as `k8s.io/component-helpers/storage`).
//!
//! Invariant: everything here is pure, and asks nothing but the objects that it is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;

use super::label_selector::selector_of;
use super::placement::term_matches;
use crate::base::object::Object;
use crate::base::quantity::Quantity;
use crate::kinds::core::claim::BETA_CLASS;

/// On a claim: it was bound, and what becomes of its volume now is a loss.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or a volume: nobody but the cluster has chosen the other.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make its volume, by both names.
pub const PROVISIONERS: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// On a claim: the node on which its first pod is to be.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Who makes the volumes that are directories of a node: this program, under the name that the classes of k3s have.
pub const LOCAL_PATH: &str = "rancher.io/local-path";

/// A claim of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodClaim {
    /// The volume of the pod.
    pub volume: String,
    pub claim: String,
    /// The pod owns it.
    pub is_ephemeral: bool,
    pub read_only: bool,
}

/// The claims of a pod, by its volumes.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = PodClaim> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only == Some(true);
            let (volume, claim) = (volume.name.clone(), source.claim_name.clone());
            return Some(PodClaim { volume, claim, is_ephemeral: false, read_only });
        }
        volume.ephemeral.as_ref()?;
        let claim = format!("{}-{}", pod.metadata.name.as_deref().unwrap_or(""), volume.name);
        Some(PodClaim { volume: volume.name.clone(), claim, is_ephemeral: true, read_only: false })
    })
}

/// Whether a claim is the one that was made for the pod.
pub fn is_owned_by(claim: &Object, pod_uid: &str) -> bool {
    claim.controller().is_some_and(|owner| &*owner.kind == "Pod" && *owner.uid == *pod_uid)
}

fn annotation<'a>(annotations: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?.get(name).map(String::as_str)
}

/// What is written on a claim.
pub fn claim_note<'a>(claim: &'a PersistentVolumeClaim, name: &str) -> Option<&'a str> {
    annotation(claim.metadata.annotations.as_ref(), name)
}

/// What is written on a volume.
pub fn volume_note<'a>(volume: &'a PersistentVolume, name: &str) -> Option<&'a str> {
    annotation(volume.metadata.annotations.as_ref(), name)
}

/// The class that a claim wants; empty: none, or it has not said.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = || claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    claim_note(claim, BETA_CLASS).or_else(spec).unwrap_or("")
}

/// Whether a claim says which class it wants, and be it none.
pub fn has_class(claim: &PersistentVolumeClaim) -> bool {
    claim_note(claim, BETA_CLASS).is_some() || claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some())
}

/// The class of a volume; empty: none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = || volume.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    volume_note(volume, BETA_CLASS).or_else(spec).unwrap_or("")
}

/// Whether volumes of a class are bound when the first pod has a node.
pub fn is_delayed(class: Option<&StorageClass>) -> bool {
    class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

/// The volume that a claim names or has; empty: none.
pub fn volume_of(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or("")
}

/// Whether a claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_of(claim).is_empty() && claim_note(claim, BIND_COMPLETED).is_some()
}

/// Whether a volume is, or is to be, the claim's.
pub fn is_bound_to(volume: &PersistentVolume, claim: &Object) -> bool {
    let Some(to) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else { return false };
    let uid = to.uid.as_deref().unwrap_or("");
    to.name.as_deref() == Some(&*claim.meta.name)
        && to.namespace.as_deref() == Some(&*claim.meta.namespace)
        && (uid.is_empty() || *uid == *claim.meta.uid)
}

/// The phase of a volume.
pub fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("")
}

/// How much a claim asks for.
pub fn requested(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    amount(resources.and_then(|r| r.requests.as_ref()?.get("storage")).map(|q| q.0.as_str()))
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    amount(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()?.get("storage")).map(|q| q.0.as_str()))
}

fn amount(text: Option<&str>) -> Quantity {
    text.and_then(|t| t.parse().ok()).unwrap_or_else(|| Quantity::from_units(0))
}

/// The modes in which a claim wants to mount.
pub fn modes_of_claim(claim: &PersistentVolumeClaim) -> &[String] {
    claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or(&[])
}

/// The modes in which a volume can be mounted.
pub fn modes_of_volume(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or(&[])
}

fn has_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    modes_of_claim(claim).iter().all(|mode| modes_of_volume(volume).contains(mode))
}

/// Whether a claim and a volume differ in what the volume is to those who mount it.
pub fn differ_in_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    of_volume != of_claim
}

fn differ_in_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or("");
    let of_claim = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()).unwrap_or("");
    of_volume != of_claim
}

/// Why a volume that a claim names cannot be its.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    if volume.metadata.deletion_timestamp.is_some() {
        let name = volume.metadata.name.as_deref().unwrap_or("");
        return Some(format!("the volume is marked for deletion {name:?}"));
    }
    let checks = [
        (capacity(volume) < requested(claim), "requested PV is too small"),
        (class_of_volume(volume) != class_of_claim(claim), "storageClassName does not match"),
        (differ_in_attributes(volume, claim), "volumeAttributesClassName does not match"),
        (differ_in_mode(volume, claim), "incompatible volumeMode"),
        (!has_modes(volume, claim), "incompatible accessMode"),
    ];
    checks.iter().find(|(wrong, _)| *wrong).map(|(_, why)| (*why).to_owned())
}

/// Whether a volume can be mounted on a node.
pub fn is_reachable(volume: &PersistentVolume, node: &Object) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    affinity.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

/// Among which volumes one is looked for.
#[derive(Clone, Copy, Debug)]
pub enum Looking<'n> {
    /// For a claim whose pods may be anywhere.
    Anywhere,
    /// For a claim that waits for its first pod: only a volume that names it.
    Named,
    /// For a pod on this node.
    On(&'n Object),
}

/// The smallest volume that fits a claim; one that names the claim before all others.
pub fn best_match<'v>(
    claim: (&Object, &PersistentVolumeClaim),
    volumes: impl IntoIterator<Item = &'v (Arc<Object>, Arc<PersistentVolume>)>,
    looking: Looking<'_>,
) -> Option<&'v (Arc<Object>, Arc<PersistentVolume>)> {
    let (object, claim) = claim;
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref()).map(selector_of);
    let wanted = requested(claim);
    let mut best = None;
    for found in volumes {
        let (volume_object, volume) = (&found.0, &*found.1);
        let is_its = is_bound_to(volume, object);
        let is_taken = volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some()) && !is_its;
        if is_taken
            || volume.metadata.deletion_timestamp.is_some()
            || capacity(volume) < wanted
            || differ_in_mode(volume, claim)
            || differ_in_attributes(volume, claim)
        {
            continue;
        }
        let is_near = if let Looking::On(node) = looking { is_reachable(volume, node) } else { true };
        if is_its {
            return is_near.then_some(found);
        }
        let fits = phase(volume) == "Available"
            && selector.as_ref().is_none_or(|s| s.matches(&volume_object.meta.labels))
            && class_of_volume(volume) == class_of_claim(claim)
            && is_near
            && has_modes(volume, claim);
        if !fits || matches!(looking, Looking::Named) {
            continue;
        }
        // A volume that could serve more is kept for who needs it.
        let modes = if matches!(looking, Looking::Anywhere) { modes_of_volume(volume).len() } else { 0 };
        let rank = (modes, capacity(volume), &*volume_object.meta.name);
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, found));
        }
    }
    best.map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    type Volume = (Arc<Object>, Arc<PersistentVolume>);

    fn volume(name: &str, size: &str, spec: Value) -> Volume {
        let mut all = json!({"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let labels = json!({"size": size});
        let value =
            json!({"metadata": {"name": name, "labels": labels}, "spec": all, "status": {"phase": "Available"}});
        let object = Arc::new(Object::new(name.into(), 1, &value, Box::default()));
        (object.clone(), object.typed().unwrap())
    }

    fn claim(spec: Value) -> Arc<Object> {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u"});
        Arc::new(Object::new("c".into(), 1, &json!({"metadata": metadata, "spec": all}), Box::default()))
    }

    fn node(name: &str) -> Object {
        let labels = json!({"kubernetes.io/hostname": name});
        Object::new(name.into(), 1, &json!({"metadata": {"name": name, "labels": labels}}), Box::default())
    }

    fn found<'v>(spec: Value, volumes: &'v [Volume], looking: Looking<'_>) -> &'v str {
        let object = claim(spec);
        let typed = object.typed::<PersistentVolumeClaim>().unwrap();
        best_match((&object, &typed), volumes, looking).map_or("", |(o, _)| &*o.meta.name)
    }

    #[test]
    fn the_smallest_volume_that_fits_is_taken_and_one_that_names_the_claim_before_all() {
        let plain =
            [volume("big", "8Gi", json!({})), volume("fit", "3Gi", json!({})), volume("small", "1Gi", json!({}))];
        assert_eq!(found(json!({}), &plain, Looking::Anywhere), "fit");
        assert_eq!(found(json!({}), &plain, Looking::Named), "");
        assert_eq!(found(json!({"selector": {"matchLabels": {"size": "8Gi"}}}), &plain, Looking::Anywhere), "big");
        assert_eq!(found(json!({"storageClassName": "x"}), &plain, Looking::Anywhere), "");
        assert_eq!(found(json!({"volumeMode": "Block"}), &plain, Looking::Anywhere), "");
        assert_eq!(found(json!({"accessModes": ["ReadWriteMany"]}), &plain, Looking::Anywhere), "");
        let shared = volume("shared", "2Gi", json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}));
        let both = [shared, volume("own", "3Gi", json!({}))];
        assert_eq!(found(json!({}), &both, Looking::Anywhere), "own", "the other is kept for who needs it");
        for (uid, want) in [("", "named"), ("u", "named"), ("other", "fit")] {
            let reference = json!({"name": "c", "namespace": "n", "uid": uid});
            let named = volume("named", "9Gi", json!({"claimRef": reference, "storageClassName": "x"}));
            let all = [plain[1].clone(), named];
            assert_eq!(found(json!({}), &all, Looking::Anywhere), want, "{uid}");
        }
        let taken = volume("taken", "2Gi", json!({"claimRef": {"name": "other", "namespace": "n"}}));
        assert_eq!(found(json!({}), &[taken], Looking::Anywhere), "");
    }

    #[test]
    fn a_volume_of_one_node_is_taken_there_alone() {
        let required = |name: &str| {
            let expression = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": [name]});
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}})
        };
        let all = [volume("a", "2Gi", required("a")), volume("b", "2Gi", required("b"))];
        assert_eq!(found(json!({}), &all, Looking::On(&node("b"))), "b");
        assert_eq!(found(json!({}), &all, Looking::On(&node("c"))), "");
        let mut named = required("a");
        named["claimRef"] = json!({"name": "c", "namespace": "n"});
        let all = [volume("named", "2Gi", named), volume("any", "2Gi", json!({}))];
        assert_eq!(found(json!({}), &all, Looking::On(&node("b"))), "", "the claim is promised to another node's");
        assert_eq!(found(json!({}), &all, Looking::On(&node("a"))), "named");
    }

    #[test]
    fn what_a_claim_names_must_fit_it() {
        let why = |of_volume: Value, of_claim: Value| {
            let (_, volume) = volume("v", "2Gi", of_volume);
            mismatch(&volume, &claim(of_claim).typed().unwrap()).unwrap_or_default()
        };
        assert_eq!(why(json!({}), json!({})), "");
        assert_eq!(why(json!({"capacity": {"storage": "1Gi"}}), json!({})), "requested PV is too small");
        assert_eq!(why(json!({}), json!({"storageClassName": "x"})), "storageClassName does not match");
        assert_eq!(why(json!({"volumeMode": "Block"}), json!({})), "incompatible volumeMode");
        assert_eq!(why(json!({}), json!({"accessModes": ["ReadOnlyMany"]})), "incompatible accessMode");
    }

    #[test]
    fn a_pod_has_the_claims_that_it_names_and_those_of_its_own() {
        let volumes = json!([
            {"name": "a", "persistentVolumeClaim": {"claimName": "x", "readOnly": true}},
            {"name": "b", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}, {"name": "c", "emptyDir": {}},
        ]);
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": volumes}}))
                .unwrap();
        let claims: Vec<_> = claims_of(&pod).map(|c| (c.volume, c.claim, c.is_ephemeral, c.read_only)).collect();
        let want = [("a", "x", false, true), ("b", "p-b", true, false)];
        assert_eq!(claims, want.map(|(v, c, e, r)| (v.to_owned(), c.to_owned(), e, r)));
    }
}
