//! `AdmissionReview`: what a webhook is asked, and how its answer is read.

use serde_json::{Value, json};

use super::configured::Spec;
use super::matching::Invocation;
use crate::api::admission::Review;
use crate::api::admission::presented::{request, shown};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{int, list, text};

/// What is asked, in one of the versions that the webhook reads.
pub(super) struct Question {
    pub uid: String,
    version: &'static str,
    pub body: Value,
}

/// What a webhook has answered.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub allowed: bool,
    /// Base64 of a JSON patch.
    pub patch: Option<String>,
    pub warnings: Vec<String>,
    /// Why not, as a `Status`.
    pub result: Value,
}

// === impl Question ===

impl Question {
    /// Asks about an object; the error says why the webhook cannot be asked.
    pub fn of(review: &Review<'_>, spec: &Spec, invocation: &Invocation, object: &Value) -> Result<Self, String> {
        let known = spec.admission_review_versions.iter().find_map(|version| match version.as_str() {
            "v1" => Some("admission.k8s.io/v1"),
            "v1beta1" => Some("admission.k8s.io/v1beta1"),
            _ => None,
        });
        let version = known.ok_or("webhook does not accept known AdmissionReview versions (v1, v1beta1)".to_owned())?;
        let uid = review.api.clock.uuid();
        let mut asked = request(review, &invocation.kind, object);
        asked["uid"] = uid.as_str().into();
        asked["object"] = shown(review, &invocation.kind, object).into_owned();
        let old = review.old.map(|old| shown(review, &invocation.kind, old).into_owned());
        asked["oldObject"] = old.unwrap_or_default();
        let body = json!({"kind": "AdmissionReview", "apiVersion": version, "request": asked});
        Ok(Self { uid, version, body })
    }

    /// Reads the answer; the error says what is wrong with it.
    pub fn read(&self, review: &Value, mutating: bool) -> Result<Answer, String> {
        let response = &review["response"];
        if !response.is_object() {
            return Err("webhook response was absent".into());
        }
        let patch = text(response, "patch");
        let kind = response.get("patchType").filter(|kind| !kind.is_null());
        if self.version.ends_with("/v1") {
            self.check(review, patch, kind.map(|kind| kind.as_str().unwrap_or_default()), mutating)?;
        }
        Ok(Answer {
            allowed: response["allowed"] == true,
            patch: Some(patch.to_owned()).filter(|patch| mutating && !patch.is_empty()),
            warnings: list(response, "warnings").iter().filter_map(|w| w.as_str().map(str::to_owned)).collect(),
            result: response.get("status").cloned().unwrap_or_default(),
        })
    }

    /// What the older version leaves open.
    fn check(&self, review: &Value, patch: &str, patch_type: Option<&str>, mutating: bool) -> Result<(), String> {
        let uid = text(review, "response.uid");
        if uid != self.uid {
            return Err(format!("expected response.uid={:?}, got {uid:?}", self.uid));
        }
        let (version, kind) = (text(review, "apiVersion"), text(review, "kind"));
        if (version, kind) != (self.version, "AdmissionReview") {
            return Err(format!(
                "expected webhook response of {}, Kind=AdmissionReview, got {version}, Kind={kind}",
                self.version
            ));
        }
        match (mutating, patch, patch_type) {
            (false, "", None) | (true, "", None) => Ok(()),
            (false, "", Some(_)) => Err("validating webhook may not return response.patchType".into()),
            (false, ..) => Err("validating webhook may not return response.patch".into()),
            (true, "", Some(_)) => Err("webhook returned response.patchType but not response.patch".into()),
            (true, _, None) => Err("webhook returned response.patch but not response.patchType".into()),
            (true, _, Some("JSONPatch")) => Ok(()),
            (true, _, Some(other)) => Err(format!("unsupported patch type {other:?}")),
        }
    }
}

/// The refusal as the client is told of it.
pub(super) fn refusal(webhook: &str, result: &Value) -> Status {
    let denied = format!("admission webhook {webhook:?} denied the request");
    let message = match (text(result, "message"), text(result, "reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let code = int(result, "code").and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
    let mut status = Status::received(code.unwrap_or(400), text(result, "reason"), message);
    for cause in list(result, "details.causes") {
        status = status.cause(text(cause, "reason"), text(cause, "message"), text(cause, "field"));
    }
    for (key, at) in [
        ("details.name", &mut status.details.name),
        ("details.group", &mut status.details.group),
        ("details.kind", &mut status.details.kind),
    ] {
        *at = text(result, key).to_owned();
    }
    status
}
