//! What the scheduler knows of claims and volumes, and what it does about a pod's: a pure picture, moved by changes.
//!
//! A claim that waits for its first pod is bound where the pod goes: to a volume that can be reached from there, or to one
//! that somebody makes there. What was decided is noted here at once as a promise, until it is seen to be written.
//! Invariant: no volume is promised to two claims, and no claim to two nodes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::apimachinery::volume::{
    self, Looking, PodClaim, SELECTED_NODE, best_match, claim_note, class_of_claim, is_bound, is_bound_to, is_delayed,
    is_owned_by, is_reachable, requested, volume_of,
};
use crate::base::object::Object;
use crate::reconcile::Key;

/// The node is not among those from which a volume can be reached.
const ELSEWHERE: &str = "node(s) didn't match PersistentVolume's node affinity";
/// There is no volume for a claim.
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
/// A claim's volume is not there any more.
const GONE: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
/// A claim that waits for no pod has no volume.
const UNBOUND: &str = "pod has unbound immediate PersistentVolumeClaims";
/// Who makes no volumes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// A pod, as far as its claims know it.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'p> {
    pub key: &'p Key,
    pub uid: &'p str,
    pub claims: &'p [PodClaim],
}

type Volume = (Arc<Object>, Arc<PersistentVolume>);
type Claim = (Arc<Object>, Arc<PersistentVolumeClaim>);

/// Claims, volumes and classes.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<Key, Claim>,
    volumes: BTreeMap<Arc<str>, Volume>,
    classes: HashMap<Arc<str>, Arc<StorageClass>>,
    /// Claims that volumes were promised to.
    promised: HashMap<Arc<str>, Key>,
    /// Nodes that claims were promised to.
    chosen: HashMap<Key, Arc<str>>,
}

/// What is written for a claim of a pod that gets a node.
#[derive(Clone, Debug)]
pub enum Promise {
    /// The volume is the claim's.
    Bind { volume: Arc<Object>, claim: Arc<Object> },
    /// Somebody makes a volume for the claim on this node.
    Provision { claim: Arc<Object>, node: Arc<str> },
}

/// How far the claims of a pod are that has a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All have volumes that can be reached.
    Bound,
    Waiting,
    /// It must be decided anew.
    Failed(String),
}

// === impl Promise ===

impl Promise {
    /// The claim that it is about.
    pub fn claim(&self) -> Key {
        let (Self::Bind { claim, .. } | Self::Provision { claim, .. }) = self;
        Key::of(claim)
    }
}

// === impl Volumes ===

impl Volumes {
    /// Enters a claim or its new state; without one it is gone.
    pub fn put_claim(&mut self, key: &Key, object: Option<&Arc<Object>>) {
        let typed = object.and_then(|o| Some((o.clone(), o.typed().ok()?)));
        let Some((object, claim)) = typed else {
            self.claims.remove(key);
            self.chosen.remove(key);
            return;
        };
        // Written, or done.
        if claim_note(&claim, SELECTED_NODE).is_some() || is_bound(&claim) {
            self.chosen.remove(key);
        }
        self.claims.insert(key.clone(), (object, claim));
    }

    /// Enters a volume or its new state; without one it is gone.
    pub fn put_volume(&mut self, name: &str, object: Option<&Arc<Object>>) {
        let typed = object.and_then(|o| Some((o.clone(), o.typed::<PersistentVolume>().ok()?)));
        let Some((object, volume)) = typed else {
            self.volumes.remove(name);
            self.promised.remove(name);
            return;
        };
        if volume.spec.as_ref().is_some_and(|s| s.claim_ref.is_some()) {
            self.promised.remove(name);
        }
        self.volumes.insert(name.into(), (object, volume));
    }

    /// Enters a class or its new state; without one it is gone.
    pub fn put_class(&mut self, name: &str, object: Option<&Arc<Object>>) {
        match object.and_then(|o| o.typed().ok()) {
            Some(class) => drop(self.classes.insert(name.into(), class)),
            None => drop(self.classes.remove(name)),
        }
    }

    /// Forgets all but the promises.
    pub fn clear(&mut self) {
        self.claims.clear();
        self.volumes.clear();
        self.classes.clear();
    }

    /// Why a pod can be on no node at all because of its claims.
    pub fn refusal(&self, pod: Claimant<'_>) -> Option<String> {
        let mut has_unbound = false;
        for of in pod.claims {
            let name = &of.claim;
            let Some((object, claim)) = self.claim(pod, of) else {
                return Some(match of.is_ephemeral {
                    false => format!("persistentvolumeclaim {name:?} not found"),
                    true => {
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}")
                    }
                });
            };
            if claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Lost") {
                let volume = volume_of(claim);
                return Some(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            if object.meta.deleted.is_some() {
                return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if of.is_ephemeral && !is_owned_by(object, pod.uid) {
                return Some(format!("PVC {} was not created for pod {} (pod is not owner)", Key::of(object), pod.key));
            }
            has_unbound |= !is_bound(claim) && !self.waits_for_pod(claim);
        }
        has_unbound.then(|| UNBOUND.to_owned())
    }

    /// What is to be written for the claims of a pod on a node, or why it cannot be there. None where all are bound.
    pub fn plan(&self, pod: Claimant<'_>, node: &Object) -> Result<Vec<Promise>, &'static str> {
        let (mut open, mut promises) = (Vec::new(), Vec::new());
        for of in pod.claims {
            let Some(claim) = self.claim(pod, of) else { return Err(GONE) };
            if is_bound(&claim.1) {
                let Some((_, volume)) = self.volumes.get(volume_of(&claim.1)) else { return Err(GONE) };
                if !is_reachable(volume, node) {
                    return Err(ELSEWHERE);
                }
                continue;
            }
            match self.node_of(claim) {
                Some(chosen) if *chosen != *node.meta.name => return Err(NO_VOLUME),
                Some(_) => {}
                None => open.push(claim),
            }
        }
        // Two volumes of a pod may be of one claim.
        open.sort_by_key(|(object, claim)| (requested(claim), object.meta.name.clone()));
        open.dedup_by_key(|(object, _)| object.key.clone());
        let mut taken: Vec<Arc<str>> = Vec::new();
        for claim in open {
            promises.push(self.promise(claim, node, &mut taken)?);
        }
        Ok(promises)
    }

    fn promise(&self, claim: &Claim, node: &Object, taken: &mut Vec<Arc<str>>) -> Result<Promise, &'static str> {
        let key = Key::of(&claim.0);
        let free = self
            .volumes
            .iter()
            .filter(|(name, _)| self.promised.get(*name).is_none_or(|to| *to == key) && !taken.contains(name));
        let free: Vec<&Volume> = free.map(|(_, volume)| volume).collect();
        if let Some((volume, _)) = best_match((&claim.0, &claim.1), free.iter().copied(), Looking::On(node)) {
            taken.push((&*volume.meta.name).into());
            return Ok(Promise::Bind { volume: volume.clone(), claim: claim.0.clone() });
        }
        // A volume that names the claim and cannot be reached is its volume all the same.
        let is_named = self.volumes.values().any(|(_, volume)| is_bound_to(volume, &claim.0));
        let class = self.classes.get(class_of_claim(&claim.1)).filter(|_| !is_named);
        let class = class.filter(|c| !c.provisioner.is_empty() && c.provisioner != NO_PROVISIONER);
        match class.is_some_and(|class| is_allowed(class, node)) {
            true => Ok(Promise::Provision { claim: claim.0.clone(), node: (&*node.meta.name).into() }),
            false => Err(NO_VOLUME),
        }
    }

    /// Notes what will be written.
    pub fn keep(&mut self, promises: &[Promise]) {
        for promise in promises {
            match promise {
                Promise::Bind { volume, .. } => {
                    self.promised.insert((&*volume.meta.name).into(), promise.claim());
                }
                Promise::Provision { node, .. } => {
                    self.chosen.insert(promise.claim(), node.clone());
                }
            }
        }
    }

    /// Takes back what could not be written.
    pub fn take_back(&mut self, promises: &[Promise]) {
        for promise in promises {
            match promise {
                Promise::Bind { volume, .. } => drop(self.promised.remove(&*volume.meta.name)),
                Promise::Provision { .. } => drop(self.chosen.remove(&promise.claim())),
            }
        }
    }

    /// How far the claims of a pod are that waits for them on a node.
    pub fn progress(&self, pod: Claimant<'_>, node: Option<&Object>) -> Progress {
        let Some(node) = node else { return Progress::Failed("its node is gone".into()) };
        let mut is_waiting = false;
        for of in pod.claims {
            let Some(claim) = self.claim(pod, of) else {
                return Progress::Failed(format!("persistentvolumeclaim {:?} not found", of.claim));
            };
            if is_bound(&claim.1) {
                let volume = self.volumes.get(volume_of(&claim.1));
                if !volume.is_some_and(|(_, volume)| is_reachable(volume, node)) {
                    return Progress::Failed(format!("the volume of claim {:?} is elsewhere", of.claim));
                }
                continue;
            }
            let key = Key::of(&claim.0);
            let is_chosen = self.node_of(claim).is_some_and(|chosen| *chosen == *node.meta.name);
            let is_promised = || {
                let names = |(name, (_, volume)): (&Arc<str>, &Volume)| {
                    self.promised.get(name) == Some(&key) || is_bound_to(volume, &claim.0)
                };
                self.volumes.iter().any(names)
            };
            if !is_chosen && !is_promised() {
                return Progress::Failed(format!("no volume could be made for claim {:?} on its node", of.claim));
            }
            is_waiting = true;
        }
        if is_waiting { Progress::Waiting } else { Progress::Bound }
    }

    /// Whether only one pod at a time may have a claim.
    pub fn is_exclusive(&self, pod: Claimant<'_>, of: &PodClaim) -> bool {
        let of_one = |claim: &Claim| volume::modes_of_claim(&claim.1).iter().any(|mode| mode == "ReadWriteOncePod");
        self.claim(pod, of).is_some_and(of_one)
    }

    fn claim(&self, pod: Claimant<'_>, of: &PodClaim) -> Option<&Claim> {
        self.claims.get(&Key::new(&pod.key.namespace, &of.claim))
    }

    fn waits_for_pod(&self, claim: &PersistentVolumeClaim) -> bool {
        volume_of(claim).is_empty() && is_delayed(self.classes.get(class_of_claim(claim)).map(|class| &**class))
    }

    /// The node that a claim was promised to.
    fn node_of<'c>(&'c self, claim: &'c Claim) -> Option<&'c str> {
        let noted = claim_note(&claim.1, SELECTED_NODE);
        noted.or_else(|| self.chosen.get(&Key::of(&claim.0)).map(|node| &**node))
    }
}

/// Whether volumes of a class may be made on a node.
fn is_allowed(class: &StorageClass, node: &Object) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or(&[]);
    let labels = &node.meta.labels;
    terms.is_empty()
        || terms.iter().any(|term| {
            term.match_label_expressions.iter().flatten().all(|e| {
                labels.get(e.key.as_str()).is_some_and(|label| e.values.iter().any(|value| **value == **label))
            })
        })
}
