//! What is done for a pod that finds no node: room is made for it if that may be, and it is told.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Done, Scheduler};
use crate::apimachinery::status::Status;
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::reconcile::{EventType, Key, Patch};
use crate::scheduler::decide::Unschedulable;
use crate::scheduler::preempt::{Candidate, Verdict, preempt};
use crate::scheduler::snapshot::PodView;
use crate::scheduler::victims;

impl Scheduler {
    /// Says that there is no node for the pod, makes room if that may be, and lets it wait for a change.
    pub(super) fn refuse(&mut self, view: Arc<PodView>, attempts: u32, mut why: Unschedulable) {
        let before = self.snapshot.nominations.node_of(&view.key).cloned();
        match (!self.snapshot.nodes.is_empty()).then(|| self.preempt(&view, &why)) {
            None => {}
            Some(Verdict::Room(candidate)) => self.make_room(&view, candidate),
            Some(Verdict::NotNow(reason)) => why.message = format!("{} preemption: {reason}", why.message),
            Some(Verdict::Hopeless(reason)) => {
                why.message = format!("{} preemption: {reason}", why.message);
                if self.snapshot.nominations.remove(&view.key) {
                    self.room_is_free();
                }
            }
        }
        let nomination = self.snapshot.nominations.node_of(&view.key).cloned();
        self.recorder.event(&pod::KIND, &view.object, EventType::Warning, "FailedScheduling", &why.message);
        let conditions = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let said = conditions.into_iter().any(|c| {
            c.type_ == "PodScheduled" && c.status == "False" && c.message.as_deref() == Some(why.message.as_str())
        });
        let is_known = nomination == before && nomination.as_deref().unwrap_or("") == view.nominated();
        if !said || !is_known {
            self.say(&view, &why.message, nomination.as_deref());
        }
        self.queue.unschedulable(view, attempts, why.by, Instant::now());
    }

    fn preempt(&mut self, view: &PodView, why: &Unschedulable) -> Verdict {
        self.preemptions = self.preemptions.wrapping_add(1);
        let budgets: Vec<Value> = self.budgets.list("").iter().map(|b| b.value()).collect();
        preempt(view, &self.snapshot, why, &budgets, self.clock.now(), self.preemptions)
    }

    /// Ends the victims, and keeps their room for the pod.
    fn make_room(&mut self, view: &Arc<PodView>, candidate: Candidate) {
        let Candidate { node, victims, .. } = candidate;
        let lower = self.snapshot.nominations.on(&node).filter(|other| other.priority < view.priority);
        for other in lower.cloned().collect::<Vec<_>>() {
            self.unnominate(&other);
        }
        self.snapshot.nominations.put(view.clone(), node.clone());
        for victim in victims {
            if victim.object.meta.deleted.is_some() || self.snapshot.nominations.is_victim(&victim) {
                continue;
            }
            self.snapshot.nominations.doom(&victim.object.meta.uid);
            let (client, clock, preemptor) = (self.client.clone(), self.clock.clone(), view.clone());
            let message = format!("Preempted by pod {} on node {node}", preemptor.object.meta.uid);
            self.writes.push(Box::pin(async move {
                let result = victims::end(&client, &clock, &victim, &preemptor).await;
                Done::Preempted { preemptor: preemptor.key.clone(), victim, result, message }
            }));
        }
    }

    /// Others come before this pod on the node that it was nominated for: it looks for another one.
    fn unnominate(&mut self, view: &Arc<PodView>) {
        self.snapshot.nominations.remove(&view.key);
        let patch = json!({"metadata": {"uid": &*view.object.meta.uid}, "status": {"nominatedNodeName": null}});
        self.tell(view, patch);
        self.queue.activate(&view.key, Instant::now());
    }

    /// A victim was told to go, or could not be.
    pub(super) fn preempted(&mut self, preemptor: &Key, victim: &PodView, result: Result<(), Status>, message: &str) {
        match result {
            Ok(()) => {
                self.recorder.event(&pod::KIND, &victim.object, EventType::Normal, "Preempted", message);
            }
            Err(status) => {
                tracing::warn!(pod = %victim.key, %preemptor, error = %status, "a pod was not ended for another one");
                self.snapshot.nominations.spare(&victim.object.meta.uid);
                self.queue.activate(preemptor, Instant::now());
            }
        }
    }

    /// Writes why the pod has no node, and which one it is nominated for.
    fn say(&mut self, view: &Arc<PodView>, message: &str, nomination: Option<&str>) {
        let conditions = view.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let before = conditions.into_iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let since = before.and_then(|c| c.last_transition_time.as_ref());
        let since = since.map_or_else(|| self.clock.now_text(), |t| crate::base::clock::seconds_text(t.0));
        let mut condition = json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
            "lastProbeTime": null, "lastTransitionTime": since,
        });
        if view.object.meta.generation > 0 {
            condition["observedGeneration"] = view.object.meta.generation.into();
        }
        let status = json!({"conditions": [condition], "nominatedNodeName": nomination});
        self.tell(view, json!({"metadata": {"uid": &*view.object.meta.uid}, "status": status}));
    }

    fn tell(&mut self, view: &PodView, patch: Value) {
        let (client, key) = (self.client.clone(), view.key.clone());
        self.writes.push(Box::pin(async move {
            let status = Some(Subresource::Status);
            let patch = Patch::Strategic(patch);
            if let Err(error) = client.patch(&pod::KIND, &key.namespace, &key.name, status, patch).await {
                tracing::debug!(pod = %key, %error, "a pod was not told that it has no node");
            }
            Done::Said
        }));
    }
}
