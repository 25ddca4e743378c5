//! Tells pods that they go to make room for another one, and ends them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::nominations::REASON;
use super::snapshot::PodView;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::clock::{Clock, seconds_text};
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::reconcile::{Client, Patch};

/// Ends a pod for another one. That somebody else has ended it is fine.
pub(super) async fn end(client: &Arc<dyn Client>, clock: &Clock, victim: &PodView, preemptor: &PodView) -> Result<()> {
    let (namespace, name, uid) = (&victim.key.namespace, &victim.key.name, &victim.object.meta.uid);
    let patch = json!({
        "metadata": {"uid": &**uid}, "status": {"conditions": [condition(victim, preemptor, &clock.now_text())]},
    });
    let is_gone = |code: u16| matches!(code, 404 | 409);
    match client.patch(&pod::KIND, namespace, name, Some(Subresource::Status), Patch::Strategic(patch)).await {
        Err(status) if is_gone(status.code) => return Ok(()),
        Err(status) => return Err(status),
        Ok(_) => {}
    }
    let options = DeleteOptions { uid: Some(uid.to_string()), ..DeleteOptions::default() };
    match client.delete(&pod::KIND, namespace, name, options).await {
        Err(status) if is_gone(status.code) => Ok(()),
        other => other,
    }
}

/// Why it goes.
fn condition(victim: &PodView, preemptor: &PodView, now: &str) -> Value {
    let conditions = victim.pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let before = conditions.into_iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    let since = before.and_then(|c| c.last_transition_time.as_ref()).map(|time| seconds_text(time.0));
    let scheduler = preemptor.pod.spec.as_ref().and_then(|s| s.scheduler_name.as_deref()).unwrap_or(super::NAME);
    let mut condition = json!({
        "type": "DisruptionTarget", "status": "True", "reason": REASON,
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "lastProbeTime": null, "lastTransitionTime": since.as_deref().unwrap_or(now),
    });
    if victim.object.meta.generation > 0 {
        condition["observedGeneration"] = victim.object.meta.generation.into();
    }
    condition
}
