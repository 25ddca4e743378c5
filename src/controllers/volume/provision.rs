//! Volumes that are directories of a node (the class `local-path`): made where the first pod of their claim is to be, and
//! removed with their claim.
//!
//! The node makes and removes the directory, and says where it is: it is asked in the way in which the API asks it for logs.
//! A directory is named after its volume, and that after the claim's uid, so that making one twice is making it once. A
//! finalizer holds the volume until the directory is gone. Invariant: only what a Released volume with the policy Delete
//! names is removed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};

use super::plan::policy;
use super::{Said, volume_key};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::node_access::{LocalVolume, VolumeRequest};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::volume::{
    self, BOUND_BY_CONTROLLER, LOCAL_PATH, PROVISIONED_BY, PROVISIONERS, SELECTED_NODE, claim_note, class_of_claim,
    modes_of_claim, volume_note,
};
use crate::base::object::Object;
use crate::controllers::{Context, absent_is_fine, typed};
use crate::kinds::core::{node, persistentvolume, persistentvolumeclaim};
use crate::kinds::storage::storageclass;
use crate::kinds::{KindRef, Subresource};
use crate::reconcile::{Changed, Controller, Key, Outcome, Patch, Reconciler, Recorder};

const CLAIMS: &KindRef = &persistentvolumeclaim::KIND;
const VOLUMES: &KindRef = &persistentvolume::KIND;
/// Holds a volume until what it stands for is gone.
const HELD: &str = "kubernetes.io/pv-controller";
/// The label by which volumes name their node.
const HOSTNAME: &str = "kubernetes.io/hostname";

struct Provisioner {
    cx: Arc<Context>,
    recorder: Recorder,
    /// What was said last of a claim or a volume, by uid.
    said: Mutex<HashMap<Box<str>, Said>>,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let recorder = cx.recorder(&format!("{LOCAL_PATH}_amphipod"));
    let provisioner = Provisioner { cx: cx.clone(), recorder, said: Mutex::default() };
    let client = cx.client.clone();
    let came = move |c: &Changed| match c.previous.is_none() && !c.deleted {
        true => client.informer(VOLUMES).list("").iter().filter(|o| is_over(o)).map(|o| Key::of(o)).collect(),
        false => Vec::new(),
    };
    let wanted = |c: &Changed| if !c.deleted && is_wanted(&c.object) { vec![Key::of(&c.object)] } else { Vec::new() };
    let over = |c: &Changed| match !c.deleted && is_over(&c.object) {
        true => vec![volume_key(&c.object.meta.name)],
        false => Vec::new(),
    };
    Controller::new("local-path", Arc::new(provisioner), cx.clock.clone())
        .watches(&*cx.client, CLAIMS, Box::new(wanted))
        .watches(&*cx.client, VOLUMES, Box::new(over))
        .watches(&*cx.client, &node::KIND, Box::new(came))
}

/// Whether a claim wants a volume from here.
fn is_wanted(object: &Arc<Object>) -> bool {
    let Ok(claim) = object.typed::<PersistentVolumeClaim>() else { return false };
    volume::volume_of(&claim).is_empty()
        && object.meta.deleted.is_none()
        && PROVISIONERS.iter().all(|name| claim_note(&claim, name) == Some(LOCAL_PATH))
}

/// Whether a volume from here is at its end.
fn is_over(object: &Arc<Object>) -> bool {
    let Ok(volume) = object.typed::<PersistentVolume>() else { return false };
    let is_ours = volume_note(&volume, PROVISIONED_BY) == Some(LOCAL_PATH);
    is_ours && matches!(volume::phase(&volume), "Released" | "Failed")
}

#[async_trait]
impl Reconciler for Provisioner {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        match key.namespace.is_empty() {
            true => self.remove(&key.name).await?,
            false => self.make(key).await?,
        }
        Ok(Outcome::Done)
    }
}

/// Why a claim gets no volume from here.
fn refusal(claim: &PersistentVolumeClaim, class: &StorageClass) -> Option<String> {
    let spec = claim.spec.as_ref()?;
    if spec.selector.is_some() {
        return Some("claim.Spec.Selector is not supported".into());
    }
    if let Some(mode) =
        modes_of_claim(claim).iter().find(|m| !matches!(m.as_str(), "ReadWriteOnce" | "ReadWriteOncePod"))
    {
        return Some(format!("access mode {mode} is not supported: only ReadWriteOnce and ReadWriteOncePod are"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("volumes of mode Block are not supported".into());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("volumes with a data source are not supported".into());
    }
    if let Some(name) = class.parameters.iter().flat_map(|p| p.keys()).next() {
        return Some(format!("the class has parameter {name:?}, which is not supported"));
    }
    if class.mount_options.as_ref().is_some_and(|o| !o.is_empty()) {
        return Some("the class has mount options, which are not supported".into());
    }
    if claim_note(claim, SELECTED_NODE).is_none() {
        return Some("configuration error, no node was specified".into());
    }
    None
}

// === impl Provisioner ===

impl Provisioner {
    async fn make(&self, key: &Key) -> Result<()> {
        let client = &self.cx.client;
        let Some(object) = client.informer(CLAIMS).get(&key.namespace, &key.name).filter(is_wanted) else {
            return Ok(());
        };
        let claim = typed::<PersistentVolumeClaim>(&object)?;
        let class_name = class_of_claim(&claim);
        let class = client.informer(&storageclass::KIND).get("", class_name);
        let Some(class) = class.and_then(|o| o.typed::<StorageClass>().ok()).filter(|c| *c.provisioner == *LOCAL_PATH)
        else {
            return Ok(());
        };
        let name = format!("pvc-{}", object.meta.uid);
        if client.informer(VOLUMES).get("", &name).is_some() {
            return Ok(());
        }
        let failed = |why: &str| {
            let why = format!("failed to provision volume with StorageClass {class_name:?}: {why}");
            self.say(CLAIMS, &object, Said::warning("ProvisioningFailed", why));
        };
        if let Some(why) = refusal(&claim, &class) {
            failed(&why);
            return Ok(());
        }
        let node_name = claim_note(&claim, SELECTED_NODE).unwrap_or("");
        let Some(on) = client.informer(&node::KIND).get("", node_name) else {
            failed(&format!("node {node_name:?} not found"));
            return self.choose_again(&object).await;
        };
        let begun = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.say(CLAIMS, &object, Said::normal("Provisioning", begun));
        let wanted =
            LocalVolume { volume: name.clone(), namespace: key.namespace.to_string(), claim: key.name.to_string() };
        let access = self.cx.options.nodes.get(node_name).inspect_err(|status| failed(&status.message))?;
        let path = match access.volume(&VolumeRequest::Make(wanted)).await {
            Ok(path) => path,
            Err(status) => {
                failed(&status.message);
                // It may be away only now; else it has said no, and another one may say yes.
                return if status.code == 503 { Err(status) } else { self.choose_again(&object).await };
            }
        };
        let volume = new_volume(&object, &claim, &class, &on, &name, &path);
        match client.create(VOLUMES, "", volume).await {
            Err(status) if status.reason != "AlreadyExists" => {
                failed(&status.message);
                return Err(status);
            }
            _ => {}
        }
        self.say(
            CLAIMS,
            &object,
            Said::normal("ProvisioningSucceeded", format!("Successfully provisioned volume {name}")),
        );
        let free =
            format!("volume {name} is not limited to its size: it can take what the disk of node {node_name} has");
        self.say(CLAIMS, &object, Said::normal("SizeNotEnforced", free));
        Ok(())
    }

    /// Lets the scheduler choose a node anew.
    async fn choose_again(&self, claim: &Object) -> Result<()> {
        let metadata = json!({
            "uid": &*claim.meta.uid, "resourceVersion": claim.revision.to_string(), "annotations": {SELECTED_NODE: null},
        });
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let (namespace, name) = (&claim.meta.namespace, &claim.meta.name);
        absent_is_fine(self.cx.client.patch(CLAIMS, namespace, name, None, patch).await)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let client = &self.cx.client;
        let Some(object) = client.informer(VOLUMES).get("", name).filter(is_over) else { return Ok(()) };
        let volume = typed::<PersistentVolume>(&object)?;
        if policy(&volume) != "Delete" {
            // What is kept is kept, whoever deletes the volume.
            return if object.meta.deleted.is_some() { self.let_go(&object).await } else { Ok(()) };
        }
        match self.remove_directory(&volume).await {
            Ok(true) => {
                self.let_go(&object).await?;
                let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
                absent_is_fine(client.delete(VOLUMES, "", name, options).await)
            }
            Ok(false) => Ok(()),
            Err(status) => {
                self.say(VOLUMES, &object, Said::warning("VolumeFailedDelete", &*status.message));
                if volume::phase(&volume) != "Failed" {
                    let now = self.cx.clock.now_text();
                    let status =
                        json!({"phase": "Failed", "message": &*status.message, "lastPhaseTransitionTime": now});
                    let patch = Patch::Merge(json!({"metadata": {"uid": &*object.meta.uid}, "status": status}));
                    absent_is_fine(client.patch(VOLUMES, "", name, Some(Subresource::Status), patch).await)?;
                }
                match status.code {
                    // Nobody can do it until the node comes back, which wakes this.
                    404 => Ok(()),
                    _ => Err(status),
                }
            }
        }
    }

    /// Whether the directory is gone; false: the volume names none.
    async fn remove_directory(&self, volume: &PersistentVolume) -> Result<bool> {
        let (Some(node_name), Some(directory)) = (self.node_of(volume), LocalVolume::of(volume)) else {
            return Ok(false);
        };
        if self.cx.client.informer(&node::KIND).get("", &node_name).is_none() {
            return Err(Status::not_found(&node::KIND, &node_name));
        }
        let access = self.cx.options.nodes.get(&node_name)?;
        // What a node says with this code is of its directory and not of the node.
        let refused = |status: Status| match status.code {
            404 => Status::new(500, "InternalError", status.message),
            _ => status,
        };
        access.volume(&VolumeRequest::Remove(directory)).await.map_err(refused)?;
        Ok(true)
    }

    /// The node that has a volume: the one that it can be mounted on.
    fn node_of(&self, volume: &PersistentVolume) -> Option<String> {
        let required = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
        let term = required.node_selector_terms.first()?;
        let expression = term.match_expressions.iter().flatten().find(|e| e.key == HOSTNAME)?;
        let host = expression.values.as_ref()?.first()?;
        let all = self.cx.client.informer(&node::KIND).list("");
        let found = all.iter().find(|o| o.meta.labels.get(HOSTNAME).is_some_and(|label| **label == **host));
        Some(found.map_or_else(|| host.clone(), |o| o.meta.name.to_string()))
    }

    async fn let_go(&self, volume: &Object) -> Result<()> {
        if !volume.meta.finalizers.iter().any(|f| **f == *HELD) {
            return Ok(());
        }
        let rest: Vec<&str> = volume.meta.finalizers.iter().map(|f| &**f).filter(|f| *f != HELD).collect();
        let version = volume.revision.to_string();
        let metadata = json!({"uid": &*volume.meta.uid, "resourceVersion": version, "finalizers": rest});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        absent_is_fine(self.cx.client.patch(VOLUMES, "", &volume.meta.name, None, patch).await)
    }

    fn say(&self, kind: &KindRef, object: &Object, said: Said) {
        let mut known = self.said.lock().expect("no panic while held");
        if known.len() >= SAID_MAX {
            known.clear();
        }
        // A failure is told once, though it is tried again.
        let is_news = said.reason == "Provisioning" && known.contains_key(&*object.meta.uid);
        if is_news || known.get(&*object.meta.uid) == Some(&said) {
            return;
        }
        self.recorder.event(kind, object, said.event_type, said.reason, &said.message);
        known.insert(object.meta.uid.clone(), said);
    }
}

/// What was said is remembered of so many at most.
const SAID_MAX: usize = 10_000;

fn new_volume(
    claim_object: &Object,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    on: &Object,
    name: &str,
    path: &str,
) -> Value {
    let policy = class.reclaim_policy.as_deref().unwrap_or("Delete");
    let host = on.meta.labels.get(HOSTNAME).map_or(&*on.meta.name, |label| &**label);
    let expression = json!({"key": HOSTNAME, "operator": "In", "values": [host]});
    let mut metadata = json!({
        "name": name, "annotations": {PROVISIONED_BY: LOCAL_PATH, BOUND_BY_CONTROLLER: "yes"},
    });
    if policy == "Delete" {
        metadata["finalizers"] = json!([HELD]);
    }
    json!({"metadata": metadata, "spec": {
        "capacity": {"storage": volume::requested(claim).to_string()},
        "accessModes": modes_of_claim(claim),
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": class_of_claim(claim),
        "volumeMode": "Filesystem",
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
        "claimRef": {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": &*claim_object.meta.namespace,
            "name": &*claim_object.meta.name, "uid": &*claim_object.meta.uid,
        },
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_directory_cannot_be_is_refused() {
        let why = |spec: Value, notes: Value, class: Value| {
            let mut all = json!({"accessModes": ["ReadWriteOnce"]});
            all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let claim = json!({"metadata": {"name": "c", "annotations": notes}, "spec": all});
            let mut of_class = json!({"metadata": {"name": "k"}, "provisioner": LOCAL_PATH});
            of_class.as_object_mut().unwrap().extend(class.as_object().unwrap().clone());
            refusal(&serde_json::from_value(claim).unwrap(), &serde_json::from_value(of_class).unwrap())
                .unwrap_or_default()
        };
        let chosen = json!({SELECTED_NODE: "a"});
        let of = |spec: Value| why(spec, chosen.clone(), json!({}));
        assert_eq!(of(json!({})), "");
        assert_eq!(of(json!({"accessModes": ["ReadWriteOncePod"]})), "");
        assert!(of(json!({"accessModes": ["ReadWriteMany"]})).contains("ReadWriteMany"));
        assert!(of(json!({"volumeMode": "Block"})).contains("Block"));
        assert!(of(json!({"selector": {}})).contains("Selector"));
        assert!(of(json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "x"}})).contains("data source"));
        assert!(why(json!({}), json!({}), json!({})).contains("no node was specified"));
        assert!(why(json!({}), chosen.clone(), json!({"parameters": {"nodePath": "/"}})).contains("nodePath"));
        assert!(why(json!({}), chosen.clone(), json!({"mountOptions": ["ro"]})).contains("mount options"));
    }
}
