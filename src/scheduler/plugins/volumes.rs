//! Claims of pods: their volumes must be reachable, and some claims are for one pod at a time.

use super::{Filter, Plugin, Refusal};
use crate::apimachinery::volume::PodClaim;
use crate::scheduler::snapshot::{NodeView, PodView, Snapshot};

/// Whether the volumes of a pod's claims are, or can be, where the node is.
#[derive(Debug)]
pub struct VolumeBinding;

/// Whether nobody else has what only one pod may have.
#[derive(Debug)]
pub struct VolumeRestrictions;

/// Another pod has the claim.
const TAKEN: &str = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";

struct Binding<'c> {
    pod: &'c PodView,
    snapshot: &'c Snapshot,
}

/// Who has the claims that only one pod may have.
struct Taken<'c> {
    pod: &'c PodView,
    claims: Vec<&'c str>,
    users: usize,
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn refuse(&self, pod: &PodView, snapshot: &Snapshot) -> Option<String> {
        snapshot.volumes.refusal(pod.claimant())
    }

    fn pre_filter<'c>(&self, pod: &'c PodView, snapshot: &'c Snapshot) -> Option<Box<dyn Filter + 'c>> {
        if pod.claims.is_empty() { None } else { Some(Box::new(Binding { pod, snapshot })) }
    }
}

impl Filter for Binding<'_> {
    fn filter(&self, node: &NodeView) -> Refusal {
        match self.snapshot.volumes.plan(self.pod.claimant(), &node.object) {
            Ok(_) => Refusal::NONE,
            Err(why) => Refusal::hopeless_if(true, why),
        }
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn pre_filter<'c>(&self, pod: &'c PodView, snapshot: &'c Snapshot) -> Option<Box<dyn Filter + 'c>> {
        let mut exclusive = pod.claims.iter().filter(|of| snapshot.volumes.is_exclusive(pod.claimant(), of)).peekable();
        exclusive.peek()?;
        let claims = exclusive.map(|of| of.claim.as_str()).collect();
        let mut taken = Taken { pod, claims, users: 0 };
        taken.users = snapshot.placed_in(&pod.key.namespace).filter(|(other, _)| taken.is_user(other)).count();
        Some(Box::new(taken))
    }
}

// === impl Taken ===

impl Taken<'_> {
    fn is_user(&self, other: &PodView) -> bool {
        let has = |of: &PodClaim| self.claims.contains(&of.claim.as_str());
        other.key.namespace == self.pod.key.namespace && other.key != self.pod.key && other.claims.iter().any(has)
    }
}

impl Filter for Taken<'_> {
    fn filter(&self, _node: &NodeView) -> Refusal {
        if self.users == 0 {
            return Refusal::NONE;
        }
        Refusal { reasons: vec![TAKEN.to_owned()], preemption_helps: true }
    }

    fn add(&mut self, other: &PodView, _node: &NodeView) {
        self.users += usize::from(self.is_user(other));
    }

    fn remove(&mut self, other: &PodView, _node: &NodeView) {
        self.users -= usize::from(self.is_user(other));
    }
}
