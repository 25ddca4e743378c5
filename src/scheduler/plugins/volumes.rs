//! Claims of pods: their volumes must be reachable, and some claims are for one pod at a time.

use super::{Filter, Plugin, Refusal};
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

struct Taken;

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
        let names: Vec<&str> = exclusive.map(|of| of.claim.as_str()).collect();
        let has = |other: &PodView| other.claims.iter().any(|of| names.contains(&of.claim.as_str()));
        let is_taken = snapshot.placed_in(&pod.key.namespace).any(|(other, _)| other.key != pod.key && has(other));
        is_taken.then(|| Box::new(Taken) as Box<dyn Filter + 'c>)
    }
}

impl Filter for Taken {
    fn filter(&self, _node: &NodeView) -> Refusal {
        Refusal { reasons: vec![TAKEN.to_owned()], preemption_helps: true }
    }
}
