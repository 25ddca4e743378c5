//! Volumes and claims: who gets which volume, how long both are held, and the claims and volumes that the cluster makes itself.
//!
//! - [`bind`] brings claims and volumes together; what it does is planned in [`plan`].
//! - [`protect`] lets go of claims and volumes that nobody has any more.
//! - [`ephemeral`] makes the claims of pods that bring their own.
//! - [`provision`] makes and removes the volumes that are directories of a node.

pub mod bind;
pub mod ephemeral;
mod plan;
pub mod protect;
pub mod provision;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::apimachinery::volume::{self, class_of_claim, class_of_volume};
use crate::base::object::Object;
use crate::reconcile::{EventType, Key};

/// The key of a volume among those of claims.
fn volume_key(name: &str) -> Key {
    Key::new("", name)
}

/// The index keys of a claim: by the volume that it names, or by its class while it has none.
pub fn claim_keys(object: &Object) -> Vec<String> {
    let Ok(claim) = object.typed::<PersistentVolumeClaim>() else { return Vec::new() };
    match volume::volume_of(&claim) {
        "" => vec![pending_key(class_of_claim(&claim))],
        name => vec![naming_key(name)],
    }
}

/// The index keys of a volume: by class while nobody has it, and else by the claim that it is for.
pub fn volume_keys(object: &Object) -> Vec<String> {
    let Ok(volume) = object.typed::<PersistentVolume>() else { return Vec::new() };
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    vec![match reference {
        None => free_key(class_of_volume(&volume)),
        Some(r) => for_key(r.namespace.as_deref().unwrap_or(""), r.name.as_deref().unwrap_or("")),
    }]
}

/// Claims of a class that have no volume.
fn pending_key(class: &str) -> String {
    format!("pending/{class}")
}

/// Claims that name a volume.
fn naming_key(volume: &str) -> String {
    format!("naming/{volume}")
}

/// Volumes of a class that nobody has.
fn free_key(class: &str) -> String {
    format!("free/{class}")
}

/// Volumes that are for a claim.
fn for_key(namespace: &str, claim: &str) -> String {
    format!("for/{namespace}/{claim}")
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    event_type: EventType,
    reason: &'static str,
    message: String,
}

// === impl Said ===

impl Said {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Normal, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { event_type: EventType::Warning, reason, message: message.into() }
    }
}

/// A volume in both forms.
type Volume = (Arc<Object>, Arc<PersistentVolume>);

fn typed_volume(object: Arc<Object>) -> Option<Volume> {
    let typed = object.typed().ok()?;
    Some((object, typed))
}
