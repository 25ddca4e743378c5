//! The claims of pods that bring their own: made from the template in the pod, and owned by the pod.

use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::volume::{claims_of, is_owned_by};
use crate::base::json::{list, text};
use crate::base::object::Object;
use crate::controllers::{Context, controller_reference, pods, typed};
use crate::kinds::core::{persistentvolumeclaim, pod};
use crate::reconcile::{Changed, Controller, EventType, Key, Outcome, Reconciler, Recorder};

struct Ephemeral {
    cx: Arc<Context>,
    recorder: Recorder,
}

/// The controller.
pub fn controller(cx: &Arc<Context>) -> Controller {
    let has_own = |c: &Changed| match c.object.typed::<Pod>() {
        Ok(pod) if !c.deleted && claims_of(&pod).any(|of| of.is_ephemeral) => vec![Key::of(&c.object)],
        _ => Vec::new(),
    };
    let recorder = cx.recorder("ephemeral_volume");
    Controller::new("ephemeral-volume", Arc::new(Ephemeral { cx: cx.clone(), recorder }), cx.clock.clone())
        .watches(&*cx.client, &pod::KIND, Box::new(has_own))
        .owns(&*cx.client, &persistentvolumeclaim::KIND, &pod::KIND)
}

#[async_trait]
impl Reconciler for Ephemeral {
    async fn reconcile(&self, key: &Key) -> Result<Outcome> {
        let Some(object) = self.cx.client.informer(&pod::KIND).get(&key.namespace, &key.name) else {
            return Ok(Outcome::Done);
        };
        let pod = typed::<Pod>(&object)?;
        if object.meta.deleted.is_some() || pods::is_over(&pod) {
            return Ok(Outcome::Done);
        }
        let claims = self.cx.client.informer(&persistentvolumeclaim::KIND);
        for of in claims_of(&pod).filter(|of| of.is_ephemeral) {
            let made = match claims.get(&key.namespace, &of.claim) {
                None => self.make(&object, &of.volume, &of.claim).await,
                Some(claim) if is_owned_by(&claim, &object.meta.uid) => Ok(()),
                Some(_) => {
                    let why =
                        format!("PVC {}/{} was not created for pod {key} (pod is not owner)", key.namespace, of.claim);
                    Err(Status::internal(why))
                }
            };
            if let Err(status) = made {
                let why = format!("ephemeral volume {}: {}", of.volume, status.message);
                self.recorder.event(&pod::KIND, &object, EventType::Warning, "FailedBinding", &why);
                return Err(status);
            }
        }
        Ok(Outcome::Done)
    }
}

// === impl Ephemeral ===

impl Ephemeral {
    async fn make(&self, pod: &Object, volume: &str, name: &str) -> Result<()> {
        let value = pod.value();
        let volumes = list(&value, "spec.volumes");
        let Some(of) = volumes.iter().find(|v| text(v, "name") == volume) else { return Ok(()) };
        let claim = claim(pod, &of["ephemeral"]["volumeClaimTemplate"], name);
        let made = self.cx.client.create(&persistentvolumeclaim::KIND, &pod.meta.namespace, claim).await;
        match made {
            // Not seen yet: it is looked at again when it is.
            Err(status) if status.reason == "AlreadyExists" => Ok(()),
            made => made.map(drop),
        }
    }
}

fn claim(pod: &Object, template: &Value, name: &str) -> Value {
    let mut metadata = json!({"name": name, "ownerReferences": [controller_reference(&pod::KIND, pod)]});
    for key in ["labels", "annotations"] {
        if let Some(given) = template["metadata"].get(key) {
            metadata[key] = given.clone();
        }
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}
