//! The binder: brings claims and volumes together, and says where they stand.
//!
//! One worker at a time looks at claims and volumes, so that no two claims look at one volume at once; each write carries
//! the version of what was looked at, so that whoever else writes is not overrun.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::plan::{self, ClaimStep, ClaimView, VolumeStep};
use super::{Said, Volume, for_key, free_key, naming_key, pending_key, typed_volume, volume_key};
use crate::apimachinery::status::Result;
use crate::apimachinery::volume::{
    self, BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONERS, claims_of, class_of_claim, is_bound_to,
};
use crate::base::json::text;
use crate::base::object::Object;
use crate::controllers::{Context, absent_is_fine, pods, typed};
use crate::kinds::core::{persistentvolume, persistentvolumeclaim, pod};
use crate::kinds::storage::storageclass;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler, Recorder};

const CLAIMS: &KindRef = &persistentvolumeclaim::KIND;
const VOLUMES: &KindRef = &persistentvolume::KIND;

struct Binder {
    cx: Arc<Context>,
    recorder: Recorder,
    /// What was said last of each claim and volume, by uid: it is not said again while it holds.
    said: Mutex<HashMap<Box<str>, Said>>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let recorder = cx.recorder("persistentvolume-controller");
    let binder = Binder { cx: cx.clone(), recorder, said: Mutex::default() };
    let (of_volume, of_class, of_pod) = (cx.clone(), cx.clone(), cx.clone());
    Controller::new("persistentvolume-binder", Arc::new(binder), cx.clock.clone())
        .watches(&*cx.client, CLAIMS, Box::new(claim_changed))
        .watches(&*cx.client, VOLUMES, Box::new(move |c| volume_changed(&of_volume, c)))
        .watches(&*cx.client, &storageclass::KIND, Box::new(move |c| class_changed(&of_class, c)))
        .watches(&*cx.client, &pod::KIND, Box::new(move |c| pod_changed(&of_pod, c)))
        .workers(1)
}

/// The claim itself, and the volumes that it has and had.
fn claim_changed(c: &Changed) -> Vec<Key> {
    let mut keys = vec![Key::of(&c.object)];
    for object in [Some(&c.object), c.previous.as_ref()].into_iter().flatten() {
        let Ok(claim) = object.typed::<PersistentVolumeClaim>() else { continue };
        let name = volume::volume_of(&claim);
        if !name.is_empty() {
            keys.push(volume_key(name));
        }
    }
    keys
}

/// The volume itself, the claims that it is for and that name it, and if nobody has it those that could.
fn volume_changed(cx: &Context, c: &Changed) -> Vec<Key> {
    let mut keys = vec![Key::of(&c.object)];
    for object in [Some(&c.object), c.previous.as_ref()].into_iter().flatten() {
        let Ok(volume) = object.typed::<PersistentVolume>() else { continue };
        if let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) {
            let (namespace, name) = (reference.namespace.as_deref(), reference.name.as_deref());
            keys.push(Key::new(namespace.unwrap_or(""), name.unwrap_or("")));
        } else if volume::phase(&volume) == "Available" && !c.deleted {
            let class = volume::class_of_volume(&volume);
            keys.extend(cx.claims.get(&pending_key(class)).iter().map(|o| Key::of(o)));
        }
    }
    keys.extend(cx.claims.get(&naming_key(&c.object.meta.name)).iter().map(|o| Key::of(o)));
    keys
}

/// Claims that wait for a class, and those that have none when there is a default.
fn class_changed(cx: &Context, c: &Changed) -> Vec<Key> {
    let waiting = [&*c.object.meta.name, ""].map(|class| cx.claims.get(&pending_key(class)));
    waiting.iter().flatten().map(|o| Key::of(o)).collect()
}

/// Claims that a pod without a node waits for: they say so.
fn pod_changed(cx: &Context, c: &Changed) -> Vec<Key> {
    let Ok(pod) = c.object.typed::<Pod>() else { return Vec::new() };
    if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
        return Vec::new();
    }
    let claims = cx.client.informer(CLAIMS);
    let named = claims_of(&pod).filter_map(|of| claims.get(&c.object.meta.namespace, &of.claim));
    let is_pending = |o: &Arc<Object>| o.typed::<PersistentVolumeClaim>().is_ok_and(|c| !volume::is_bound(&c));
    named.filter(is_pending).map(|o| Key::of(&o)).collect()
}

#[async_trait]
impl Reconciler for Binder {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        match key.namespace.is_empty() {
            true => self.volume(&key.name).await?,
            false => self.claim(key).await?,
        }
        Ok(Outcome::Done)
    }
}

// === impl Binder ===

impl Binder {
    async fn claim(&self, key: &Key) -> Result<()> {
        let Some(object) = self.cx.client.informer(CLAIMS).get(&key.namespace, &key.name) else { return Ok(()) };
        let claim = typed::<PersistentVolumeClaim>(&object)?;
        let (step, said) = plan::of_claim(&self.look(&object, &claim));
        match step {
            ClaimStep::Bind(volume) => self.bind(&object, &claim, volume).await?,
            ClaimStep::Wait => self.write_claim_status(&object, "Pending", None).await?,
            ClaimStep::Lose => self.write_claim_status(&object, "Lost", None).await?,
            ClaimStep::Classify(class) => {
                let patch = json!({"spec": {"storageClassName": class}});
                self.patch(CLAIMS, &object, None, patch).await?;
            }
            ClaimStep::Ask(who) => {
                let notes = PROVISIONERS.map(|name| (name.to_owned(), Value::from(who.as_str())));
                if PROVISIONERS.iter().any(|name| volume::claim_note(&claim, name) != Some(&who)) {
                    let notes: serde_json::Map<_, _> = notes.into_iter().collect();
                    self.patch(CLAIMS, &object, None, json!({"metadata": {"annotations": notes}})).await?;
                }
            }
            ClaimStep::Nothing => {}
        }
        self.say(CLAIMS, &object, said);
        Ok(())
    }

    fn look<'a>(&self, object: &'a Object, claim: &'a PersistentVolumeClaim) -> ClaimView<'a> {
        let client = &self.cx.client;
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let class = class_of_claim(claim);
        let classes = client.informer(&storageclass::KIND);
        let named = match volume::volume_of(claim) {
            "" => None,
            name => client.informer(VOLUMES).get("", name).and_then(typed_volume),
        };
        let mut candidates = Vec::new();
        if volume::volume_of(claim).is_empty() {
            for key in [for_key(namespace, name), free_key(class)] {
                candidates.extend(self.cx.volumes.get(&key).into_iter().filter_map(typed_volume));
            }
        }
        let waiting = self.cx.pods.get(&pods::claim_key(namespace, name)).into_iter().filter(is_waiting);
        ClaimView {
            object,
            claim,
            named,
            candidates,
            class: classes.get("", class).and_then(|o| o.typed::<StorageClass>().ok()),
            default_class: match volume::has_class(claim) {
                true => None,
                false => storageclass::default_of(classes.list("")).map(|o| o.meta.name.to_string()),
            },
            waiting: waiting.map(|o| o.meta.name.to_string()).collect(),
        }
    }

    /// Gives a claim and a volume to each other, the volume first; what is so already is not written.
    async fn bind(&self, object: &Arc<Object>, claim: &PersistentVolumeClaim, volume: Volume) -> Result<()> {
        let (mut volume_object, mut of_volume) = volume;
        let reference = of_volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let is_named = reference.is_some_and(|r| r.uid.as_deref() == Some(&*object.meta.uid));
        if !is_named {
            // Whoever has named the claim has chosen it.
            let chosen = is_bound_to(&of_volume, object);
            let patch = claim_reference(object, !chosen);
            volume_object = self.patch(VOLUMES, &volume_object, None, patch).await?;
            of_volume = typed(&volume_object)?;
        }
        self.write_phase(&volume_object, &of_volume, "Bound", "").await?;
        let mut object = object.clone();
        let is_its = volume::volume_of(claim) == &*volume_object.meta.name;
        if !is_its || volume::claim_note(claim, BIND_COMPLETED).is_none() {
            let mut patch = json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}}});
            if !is_its {
                patch["metadata"]["annotations"][BOUND_BY_CONTROLLER] = "yes".into();
                patch["spec"] = json!({"volumeName": &*volume_object.meta.name});
            }
            object = self.patch(CLAIMS, &object, None, patch).await?;
        }
        self.write_claim_status(&object, "Bound", Some(&volume_object.value())).await
    }

    /// The phase of a claim, and with it what it has of its volume.
    async fn write_claim_status(&self, object: &Arc<Object>, phase: &str, volume: Option<&Value>) -> Result<()> {
        let value = object.value();
        let mut status = value.get("status").cloned().unwrap_or_else(|| json!({}));
        let was = text(&value, "status.phase").to_owned();
        status["phase"] = phase.into();
        let map = status.as_object_mut().expect("a status is an object");
        match volume {
            None => ["accessModes", "capacity", "currentVolumeAttributesClassName"].iter().for_each(|key| {
                map.remove(*key);
            }),
            Some(volume) => {
                map.insert("accessModes".into(), volume["spec"]["accessModes"].clone());
                // Later on the sizes may differ for a while: that is for whoever makes it grow to say.
                if was != phase {
                    map.insert("capacity".into(), volume["spec"]["capacity"].clone());
                    if let Some(class) = volume["spec"].get("volumeAttributesClassName").filter(|_| was == "Pending") {
                        map.insert("currentVolumeAttributesClassName".into(), class.clone());
                    }
                }
            }
        }
        absent_is_fine(self.cx.write_status(CLAIMS, object, status, serde_json::Map::new()).await)
    }

    async fn volume(&self, name: &str) -> Result<()> {
        let Some(object) = self.cx.client.informer(VOLUMES).get("", name) else { return Ok(()) };
        let volume = typed::<PersistentVolume>(&object)?;
        let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        let named = reference.and_then(|r| Some((r.namespace.as_deref()?, r.name.as_deref()?)));
        let claim = named.and_then(|(namespace, name)| self.cx.client.informer(CLAIMS).get(namespace, name));
        let of_claim = claim.as_ref().and_then(|o| o.typed::<PersistentVolumeClaim>().ok());
        match plan::of_volume(&volume, claim.as_deref().zip(of_claim.as_deref())) {
            VolumeStep::Phase(phase) => self.write_phase(&object, &volume, phase, "").await?,
            VolumeStep::Release(None) if volume::phase(&volume) == "Failed" => {}
            VolumeStep::Release(None) => self.write_phase(&object, &volume, "Released", "").await?,
            VolumeStep::Release(Some(said)) => {
                self.write_phase(&object, &volume, "Failed", &said.message).await?;
                self.say(VOLUMES, &object, Some(said));
            }
            VolumeStep::Unbind { whole } => {
                let patch = match whole {
                    true => {
                        json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}, "spec": {"claimRef": null}})
                    }
                    false => json!({"spec": {"claimRef": {"uid": null}}}),
                };
                let object = self.patch(VOLUMES, &object, None, patch).await?;
                let volume = typed(&object)?;
                self.write_phase(&object, &volume, "Available", "").await?;
            }
            VolumeStep::Leave => {}
            VolumeStep::Mismatch => {
                let Some(claim) = claim else { return Ok(()) };
                let of_volume = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible volumeMode.",
                    claim.meta.name
                );
                let of_claim = format!(
                    "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible \
                     volumeMode."
                );
                self.say(VOLUMES, &object, Some(Said::warning("VolumeMismatch", of_volume)));
                self.say(CLAIMS, &claim, Some(Said::warning("VolumeMismatch", of_claim)));
            }
        }
        Ok(())
    }

    async fn write_phase(&self, object: &Object, volume: &PersistentVolume, phase: &str, why: &str) -> Result<()> {
        if volume::phase(volume) == phase {
            return Ok(());
        }
        let message = if why.is_empty() { Value::Null } else { why.into() };
        let status = json!({"phase": phase, "message": message, "lastPhaseTransitionTime": self.cx.clock.now_text()});
        let patch = Patch::Merge(json!({"metadata": {"uid": &*object.meta.uid}, "status": status}));
        let status = Some(Subresource::Status);
        absent_is_fine(self.cx.client.patch(VOLUMES, "", &object.meta.name, status, patch).await)
    }

    /// Changes what was looked at, unless somebody else has changed it meanwhile.
    async fn patch(
        &self,
        kind: &KindRef,
        object: &Object,
        through: Option<Subresource>,
        mut patch: Value,
    ) -> Result<Arc<Object>> {
        let (namespace, name) = (&object.meta.namespace, &object.meta.name);
        let metadata = crate::base::json::map_mut(&mut patch, "metadata");
        metadata.insert("uid".into(), (&*object.meta.uid).into());
        metadata.insert("resourceVersion".into(), object.revision.to_string().into());
        self.cx.client.patch(kind, namespace, name, through, Patch::Merge(patch)).await
    }

    fn say(&self, kind: &KindRef, object: &Object, said: Option<Said>) {
        let mut known = self.said.lock().expect("no panic while held");
        let Some(said) = said else {
            known.remove(&*object.meta.uid);
            return;
        };
        if known.get(&*object.meta.uid) == Some(&said) {
            return;
        }
        if known.len() >= SAID_MAX {
            known.clear();
        }
        self.recorder.event(kind, object, said.event_type, said.reason, &said.message);
        known.insert(object.meta.uid.clone(), said);
    }
}

/// What was said is remembered of so many at most.
const SAID_MAX: usize = 10_000;

/// What makes a volume a claim's.
fn claim_reference(claim: &Object, by_controller: bool) -> Value {
    let reference = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &*claim.meta.namespace,
        "name": &*claim.meta.name, "uid": &*claim.meta.uid, "resourceVersion": claim.revision.to_string(),
    });
    let mut patch = json!({"spec": {"claimRef": reference}});
    if by_controller {
        patch["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
    }
    patch
}

/// Whether a pod has no node yet.
fn is_waiting(object: &Arc<Object>) -> bool {
    let is_free = |pod: &Pod| pod.spec.as_ref().is_none_or(|s| s.node_name.is_none()) && !pods::is_over(pod);
    object.typed::<Pod>().is_ok_and(|pod| is_free(&pod))
}
