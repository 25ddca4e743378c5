//! The status of ValidatingAdmissionPolicies: which of their expressions do not fit the kinds that they are about
//! (`pkg/controller/validatingadmissionpolicystatus`).

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Context, absent_is_fine};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::int;
use crate::base::task;
use crate::kinds::Subresource;
use crate::kinds::admissionregistration::type_check;
use crate::kinds::admissionregistration::validatingadmissionpolicy::KIND;
use crate::reconcile::{Controller, Key, Outcome, Patch, Reconciler};

struct Policies(Arc<Context>);

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    Controller::new("validatingadmissionpolicy-status", Arc::new(Policies(cx.clone())), cx.clock.clone())
        .for_kind(&*cx.client, &KIND)
        .workers(1)
}

#[async_trait]
impl Reconciler for Policies {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let client = &self.0.client;
        let Some(object) = client.informer(&KIND).get("", &key.name) else { return Ok(Outcome::Done) };
        let policy = object.value();
        let generation = int(&policy, "metadata.generation").unwrap_or(0);
        // Each generation is looked at once, with the kinds that there are then.
        if generation <= int(&policy, "status.observedGeneration").unwrap_or(0) {
            return Ok(Outcome::Done);
        }
        let warnings = task::in_place(true, || type_check::check(&policy, &client.kinds().snapshot()));
        let warnings = if warnings.is_empty() { Value::Null } else { Value::Array(warnings) };
        let patch = json!({
            "metadata": {"uid": &*object.meta.uid, "resourceVersion": object.revision.to_string()},
            "status": {"observedGeneration": generation, "typeChecking": {"expressionWarnings": warnings}},
        });
        let done = client.patch(&KIND, "", &key.name, Some(Subresource::Status), Patch::Merge(patch)).await;
        // Who changed it meanwhile has woken us.
        absent_is_fine(done.map(drop).or_else(|s: Status| if s.code == 409 { Ok(()) } else { Err(s) }))?;
        Ok(Outcome::Done)
    }
}
