//! How an object is to be deleted.

use serde_json::{Value, json};

use super::status::{Result, Status};
use crate::base::json::{at, int, list};
use crate::kinds::field;

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    /// `None`: what the object says.
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

/// What happens to dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

// === impl Propagation ===

impl Propagation {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Orphan => "Orphan",
            Self::Background => "Background",
            Self::Foreground => "Foreground",
        }
    }
}

// === impl DeleteOptions ===

impl DeleteOptions {
    /// Writes into a body what was asked for; whether it is a trial is left to the caller.
    pub fn write_into(&self, body: &mut Value) {
        if let Some(seconds) = self.grace_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(revision) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = revision.as_str().into();
        }
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = propagation.name().into();
        }
    }

    /// From a decoded body.
    pub fn from_value(value: &Value) -> Result<Self> {
        let orphan = value.get("orphanDependents").and_then(Value::as_bool);
        let policy = value.get("propagationPolicy").and_then(Value::as_str);
        let propagation = match (policy, orphan) {
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "propagationPolicy",
                    policy,
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            (Some("Orphan"), None) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), None) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some(other), None) => {
                let mut status =
                    invalid("propagationPolicy", Some(other), "must be \"Foreground\", \"Background\" or \"Orphan\"");
                status.details.causes[0].reason = "FieldValueNotSupported".into();
                return Err(status);
            }
            (None, None) => None,
        };
        if let Some(other) = list(value, "dryRun").iter().filter_map(Value::as_str).find(|v| *v != "All") {
            let mut status = invalid("dryRun", Some(other), "supported values: \"All\"");
            status.details.causes[0].reason = "FieldValueNotSupported".into();
            return Err(status);
        }
        Ok(Self {
            grace_seconds: int(value, "gracePeriodSeconds"),
            uid: at(value, "preconditions.uid").and_then(Value::as_str).map(str::to_owned),
            resource_version: at(value, "preconditions.resourceVersion").and_then(Value::as_str).map(str::to_owned),
            propagation,
            dry_run: list(value, "dryRun").iter().any(|v| v == "All"),
        })
    }
}

fn invalid(field: &str, value: Option<&str>, why: &str) -> Status {
    Status::invalid_options("meta.k8s.io", "DeleteOptions", "", &[field::invalid(field, json!(value), why)])
}
