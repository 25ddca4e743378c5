//! What is done about one claim, and about one volume.
//!
//! A binding is written on the volume first and on the claim last, and the volume names the claim by its uid: whatever is
//! interrupted is completed by looking at both again. Invariant: a volume names one claim, and no other is bound to it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::{Said, Volume};
use crate::apimachinery::volume::{
    self, BIND_COMPLETED, BOUND_BY_CONTROLLER, LOCAL_PATH, Looking, PROVISIONED_BY, SELECTED_NODE, best_match,
    claim_note, is_bound_to, is_delayed, volume_note, volume_of,
};
use crate::base::object::Object;

/// Everything that is looked at for a claim.
#[derive(Debug)]
pub(super) struct ClaimView<'a> {
    pub(super) object: &'a Object,
    pub(super) claim: &'a PersistentVolumeClaim,
    /// The volume that it names, if that is there.
    pub(super) named: Option<Volume>,
    /// Volumes of its class that nobody has, and those that are for it.
    pub(super) candidates: Vec<Volume>,
    pub(super) class: Option<Arc<StorageClass>>,
    /// The class of claims that name none.
    pub(super) default_class: Option<String>,
    /// Pods without a node that want it.
    pub(super) waiting: Vec<String>,
}

/// What is done about a claim.
#[derive(Clone, Debug)]
pub(super) enum ClaimStep {
    /// Both get each other, as far as they have not.
    Bind(Volume),
    /// It has no volume and waits.
    Wait,
    /// What it had is gone.
    Lose,
    /// It gets the class of claims that name none.
    Classify(String),
    /// Somebody is asked to make its volume.
    Ask(String),
    Nothing,
}

/// The plan for a claim, and what is said of it.
pub(super) fn of_claim(view: &ClaimView<'_>) -> (ClaimStep, Option<Said>) {
    let named = volume_of(view.claim);
    match (claim_note(view.claim, BIND_COMPLETED).is_some(), named) {
        (true, "") => {
            let why = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            (ClaimStep::Lose, Some(Said::warning("ClaimLost", why)))
        }
        (true, _) => bound(view),
        (false, "") => unbound(view),
        (false, name) => naming(view, name),
    }
}

fn bound(view: &ClaimView<'_>) -> (ClaimStep, Option<Said>) {
    let Some(volume) = &view.named else {
        let why = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        return (ClaimStep::Lose, Some(Said::warning("ClaimLost", why)));
    };
    let reference = volume.1.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    match reference {
        Some(r) if r.uid.as_deref() != Some(&*view.object.meta.uid) => {
            let why = "Two claims are bound to the same volume, this one is bound incorrectly";
            (ClaimStep::Lose, Some(Said::warning("ClaimMisbound", why)))
        }
        _ => (ClaimStep::Bind(volume.clone()), None),
    }
}

/// A claim that wants one volume and no other.
fn naming(view: &ClaimView<'_>, name: &str) -> (ClaimStep, Option<Said>) {
    let Some(volume) = &view.named else { return (ClaimStep::Wait, None) };
    let reference = volume.1.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    if reference.is_none() {
        return match volume::mismatch(&volume.1, view.claim) {
            None => (ClaimStep::Bind(volume.clone()), None),
            Some(why) => {
                let why = format!("Cannot bind to requested volume {name:?}: {why}");
                (ClaimStep::Wait, Some(Said::warning("VolumeMismatch", why)))
            }
        };
    }
    if is_bound_to(&volume.1, view.object) {
        return (ClaimStep::Bind(volume.clone()), None);
    }
    let why = format!("volume {name:?} already bound to a different claim.");
    (ClaimStep::Wait, Some(Said::warning("FailedBinding", why)))
}

/// A claim that takes what fits.
fn unbound(view: &ClaimView<'_>) -> (ClaimStep, Option<Said>) {
    let class = view.class.as_deref();
    let is_delayed = is_delayed(class);
    let looking = if is_delayed { Looking::Named } else { Looking::Anywhere };
    if let Some(found) = best_match((view.object, view.claim), &view.candidates, looking) {
        return (ClaimStep::Bind(found.clone()), None);
    }
    if let (false, Some(class)) = (volume::has_class(view.claim), &view.default_class) {
        return (ClaimStep::Classify(class.clone()), None);
    }
    let name = volume::class_of_claim(view.claim);
    if is_delayed && claim_note(view.claim, SELECTED_NODE).is_none() {
        return (ClaimStep::Wait, Some(waits_for_pod(&view.waiting)));
    }
    let failed = |why: String| (ClaimStep::Nothing, Some(Said::warning("ProvisioningFailed", why)));
    match class {
        _ if name.is_empty() => {
            let why = "no persistent volumes available for this claim and no storage class is set";
            (ClaimStep::Wait, Some(Said::normal("FailedBinding", why)))
        }
        None => failed(format!("storageclass.storage.k8s.io {name:?} not found")),
        // There is nobody of these names here.
        Some(class) if class.provisioner.starts_with("kubernetes.io/") => {
            failed(format!("no volume plugin matched name: {}", class.provisioner))
        }
        Some(class) => {
            let who = &class.provisioner;
            let said = (*who != *LOCAL_PATH).then(|| {
                let why = format!(
                    "Waiting for a volume to be created either by the external provisioner '{who}' or manually by the \
                     system administrator. If volume creation is delayed, please verify that the provisioner is running \
                     and correctly registered."
                );
                Said::normal("ExternalProvisioning", why)
            });
            (ClaimStep::Ask(who.clone()), said)
        }
    }
}

fn waits_for_pod(waiting: &[String]) -> Said {
    match waiting {
        [] => Said::normal("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        [one] => Said::normal("WaitForPodScheduled", format!("waiting for pod {one} to be scheduled")),
        all => Said::normal("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", all.join(","))),
    }
}

/// What is done about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim is gone: it is released, and fails for this reason if it has one.
    Release(Option<Said>),
    /// Its claim has another volume: the binding is taken back, or only the claim's uid.
    Unbind { whole: bool },
    /// The claim takes care of it.
    Leave,
    /// Both are told that they do not fit.
    Mismatch,
}

/// The plan for a volume. `claim` is the one that it names.
pub(super) fn of_volume(volume: &PersistentVolume, claim: Option<(&Object, &PersistentVolumeClaim)>) -> VolumeStep {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return VolumeStep::Phase("Available");
    };
    let uid = reference.uid.as_deref().unwrap_or("");
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    let Some((_, claim)) = claim.filter(|(object, _)| *object.meta.uid == *uid) else {
        return VolumeStep::Release(reclaim(volume));
    };
    let name = volume.metadata.name.as_deref().unwrap_or("");
    match volume_of(claim) {
        "" if volume::differ_in_mode(volume, claim) => VolumeStep::Mismatch,
        "" => VolumeStep::Leave,
        its if its == name => VolumeStep::Phase("Bound"),
        _ if volume_note(volume, PROVISIONED_BY).is_some() && policy(volume) == "Delete" => {
            VolumeStep::Release(reclaim(volume))
        }
        _ => VolumeStep::Unbind { whole: volume_note(volume, BOUND_BY_CONTROLLER).is_some() },
    }
}

/// What becomes of a volume without its claim.
pub(super) fn policy(volume: &PersistentVolume) -> &str {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    policy.unwrap_or("Retain")
}

/// Why a volume cannot be reclaimed as it says. Who has made it removes it.
fn reclaim(volume: &PersistentVolume) -> Option<Said> {
    let name = volume.metadata.name.as_deref().unwrap_or("");
    match policy(volume) {
        "Retain" => None,
        "Recycle" => Some(Said::warning("VolumeFailedRecycle", "No recycler plugin found for the volume!")),
        "Delete" if volume_note(volume, PROVISIONED_BY).is_some() => None,
        "Delete" => {
            let why =
                format!("error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched");
            Some(Said::warning("VolumeFailedDelete", why))
        }
        _ => {
            let why = "Volume has unrecognized PersistentVolumeReclaimPolicy";
            Some(Said::warning("VolumeUnknownReclaimPolicy", why))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Arc<Object> {
        Arc::new(Object::new(value["metadata"]["name"].as_str().unwrap().into(), 1, &value, Box::default()))
    }

    fn claim(notes: Value, spec: Value) -> Arc<Object> {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let metadata = json!({"name": "c", "namespace": "n", "uid": "u", "annotations": notes});
        object(json!({"metadata": metadata, "spec": all}))
    }

    fn volume(notes: Value, spec: Value) -> Volume {
        let mut all = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let metadata = json!({"name": "v", "annotations": notes});
        let object = object(json!({"metadata": metadata, "spec": all, "status": {"phase": "Available"}}));
        (object.clone(), object.typed().unwrap())
    }

    fn class(provisioner: &str, mode: &str) -> Option<Arc<StorageClass>> {
        let class = json!({"metadata": {"name": "k"}, "provisioner": provisioner, "volumeBindingMode": mode});
        Some(Arc::new(serde_json::from_value(class).unwrap()))
    }

    /// Step and reason, in short.
    fn told(object: &Arc<Object>, change: impl FnOnce(&mut ClaimView<'_>)) -> (String, String) {
        let claim = object.typed().unwrap();
        let mut view = ClaimView {
            object,
            claim: &claim,
            named: None,
            candidates: Vec::new(),
            class: None,
            default_class: None,
            waiting: Vec::new(),
        };
        change(&mut view);
        let (step, said) = of_claim(&view);
        let step = match step {
            ClaimStep::Bind((object, _)) => format!("bind {}", object.meta.name),
            ClaimStep::Wait => "wait".into(),
            ClaimStep::Lose => "lose".into(),
            ClaimStep::Classify(class) => format!("class {class}"),
            ClaimStep::Ask(who) => format!("ask {who}"),
            ClaimStep::Nothing => String::new(),
        };
        (step, said.map(|s| s.reason.to_owned()).unwrap_or_default())
    }

    fn pair(step: &str, reason: &str) -> (String, String) {
        (step.into(), reason.into())
    }

    #[test]
    fn a_claim_without_a_volume_gets_one_or_somebody_who_makes_one() {
        let plain = claim(json!({}), json!({}));
        let of_class = claim(json!({}), json!({"storageClassName": "k"}));
        let later = "WaitForFirstConsumer";
        assert_eq!(told(&plain, |v| v.candidates = vec![volume(json!({}), json!({}))]), pair("bind v", ""));
        assert_eq!(told(&plain, |v| v.default_class = Some("d".into())), pair("class d", ""));
        assert_eq!(told(&plain, |_| {}), pair("wait", "FailedBinding"));
        let none = claim(json!({}), json!({"storageClassName": ""}));
        assert_eq!(told(&none, |v| v.default_class = Some("d".into())), pair("wait", "FailedBinding"));
        assert_eq!(told(&of_class, |_| {}), pair("", "ProvisioningFailed"));
        let no_one = |v: &mut ClaimView<'_>| v.class = class("kubernetes.io/no-provisioner", "Immediate");
        assert_eq!(told(&of_class, no_one), pair("", "ProvisioningFailed"));
        let other = |v: &mut ClaimView<'_>| v.class = class("e.com/p", "Immediate");
        assert_eq!(told(&of_class, other), pair("ask e.com/p", "ExternalProvisioning"));
        assert_eq!(told(&of_class, |v| v.class = class(LOCAL_PATH, later)), pair("wait", later));
        let wanted = |v: &mut ClaimView<'_>| {
            v.class = class(LOCAL_PATH, later);
            v.waiting = vec!["p".into(), "q".into()];
        };
        assert_eq!(told(&of_class, wanted), pair("wait", "WaitForPodScheduled"));
        let chosen = claim(json!({SELECTED_NODE: "a"}), json!({"storageClassName": "k"}));
        let local = |v: &mut ClaimView<'_>| v.class = class(LOCAL_PATH, later);
        assert_eq!(told(&chosen, local), pair(&format!("ask {LOCAL_PATH}"), ""));
        let named = json!({"storageClassName": "k", "claimRef": {"name": "c", "namespace": "n"}});
        let promised = |v: &mut ClaimView<'_>| {
            v.class = class(LOCAL_PATH, later);
            v.candidates = vec![volume(json!({}), named)];
        };
        assert_eq!(told(&of_class, promised), pair("bind v", ""), "what names it needs no pod");
    }

    #[test]
    fn a_claim_that_names_a_volume_waits_for_that_one() {
        let naming = claim(json!({}), json!({"volumeName": "v"}));
        let with = |spec: Value| told(&naming, |v| v.named = Some(volume(json!({}), spec)));
        assert_eq!(told(&naming, |_| {}), pair("wait", ""));
        assert_eq!(with(json!({})), pair("bind v", ""));
        assert_eq!(with(json!({"capacity": {"storage": "1"}})), pair("wait", "VolumeMismatch"));
        assert_eq!(with(json!({"claimRef": {"name": "c", "namespace": "n", "uid": "u"}})), pair("bind v", ""));
        assert_eq!(
            with(json!({"claimRef": {"name": "c", "namespace": "n", "uid": "old"}})),
            pair("wait", "FailedBinding")
        );
    }

    #[test]
    fn a_claim_that_had_its_volume_keeps_it_or_is_lost() {
        let done = json!({BIND_COMPLETED: "yes"});
        let bound = claim(done.clone(), json!({"volumeName": "v"}));
        let with = |spec: Value| told(&bound, |v| v.named = Some(volume(json!({}), spec)));
        assert_eq!(told(&claim(done, json!({})), |_| {}), pair("lose", "ClaimLost"));
        assert_eq!(told(&bound, |_| {}), pair("lose", "ClaimLost"));
        assert_eq!(with(json!({"claimRef": {"name": "c", "namespace": "n", "uid": "u"}})), pair("bind v", ""));
        assert_eq!(with(json!({})), pair("bind v", ""));
        assert_eq!(
            with(json!({"claimRef": {"name": "d", "namespace": "n", "uid": "w"}})),
            pair("lose", "ClaimMisbound")
        );
    }

    #[test]
    fn a_volume_follows_its_claim_and_is_reclaimed_as_it_says() {
        let of = |notes: Value, spec: Value, of_claim: Option<Value>| {
            let object = of_claim.map(|spec| claim(json!({}), spec));
            let typed = object.as_ref().map(|o| o.typed::<PersistentVolumeClaim>().unwrap());
            let (_, volume) = volume(notes, spec);
            of_volume(&volume, object.as_deref().zip(typed.as_deref()))
        };
        let its = |uid: &str, policy: &str| json!({"claimRef": {"name": "c", "namespace": "n", "uid": uid}, "persistentVolumeReclaimPolicy": policy});
        let by = |who: &str| json!({PROVISIONED_BY: who});
        assert_eq!(of(json!({}), json!({}), None), VolumeStep::Phase("Available"));
        assert_eq!(of(json!({}), its("", "Retain"), None), VolumeStep::Phase("Available"));
        assert_eq!(of(json!({}), its("u", "Retain"), None), VolumeStep::Release(None));
        assert_eq!(of(json!({}), its("old", "Retain"), Some(json!({}))), VolumeStep::Release(None));
        assert_eq!(of(by("e.com/p"), its("u", "Delete"), None), VolumeStep::Release(None));
        let reason = |policy: &str| match of(json!({}), its("u", policy), None) {
            VolumeStep::Release(Some(said)) => said.reason,
            _ => "",
        };
        assert_eq!([reason("Delete"), reason("Recycle")], ["VolumeFailedDelete", "VolumeFailedRecycle"]);
        assert_eq!(of(json!({}), its("u", "Retain"), Some(json!({"volumeName": "v"}))), VolumeStep::Phase("Bound"));
        assert_eq!(of(json!({}), its("u", "Retain"), Some(json!({}))), VolumeStep::Leave);
        assert_eq!(of(json!({}), its("u", "Retain"), Some(json!({"volumeMode": "Block"}))), VolumeStep::Mismatch);
        let elsewhere = || Some(json!({"volumeName": "w"}));
        assert_eq!(of(json!({}), its("u", "Retain"), elsewhere()), VolumeStep::Unbind { whole: false });
        let chosen = json!({BOUND_BY_CONTROLLER: "yes"});
        assert_eq!(of(chosen, its("u", "Retain"), elsewhere()), VolumeStep::Unbind { whole: true });
        assert_eq!(of(by("e.com/p"), its("u", "Delete"), elsewhere()), VolumeStep::Release(None));
    }
}
