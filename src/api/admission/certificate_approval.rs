//! CertificateApproval: who may say yes or no to a certificate of a signer; and when a condition was given.

use async_trait::async_trait;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, list_mut, set_default, text};
use crate::kinds::Subresource;
use crate::kinds::certificates::certificatesigningrequest as csr;

pub(super) struct CertificateApproval;

#[async_trait]
impl Plugin for CertificateApproval {
    fn handles(&self, review: &Review<'_>) -> bool {
        let through = review.request.subresource;
        changes(review) && matches!(through, Some(Subresource::Approval | Subresource::Status))
    }

    async fn mutate(&self, review: &Review<'_>, object: &mut Value) -> Result<()> {
        let now = review.api.clock.now_text();
        for condition in list_mut(object, "status.conditions").into_iter().flatten().filter(|c| c.is_object()) {
            let same = |old: &&Value| old["type"] == condition["type"] && old["status"] == condition["status"];
            let before = review.old.and_then(|old| list(old, "status.conditions").iter().find(same));
            let since = before.map_or("", |before| text(before, "lastTransitionTime"));
            set_default(condition, "lastUpdateTime", now.as_str());
            set_default(condition, "lastTransitionTime", if since.is_empty() { &now } else { since });
        }
        Ok(())
    }

    async fn validate(&self, review: &Review<'_>, _object: &Value) -> Result<Vec<String>> {
        match review.request.subresource {
            Some(Subresource::Approval) => may(review, "approve").map(|()| Vec::new()),
            _ => Ok(Vec::new()),
        }
    }
}

/// Whether a certificate request is changed.
pub(super) fn changes(review: &Review<'_>) -> bool {
    review.operation == Operation::Update && review.request.kind == csr::KIND
}

/// Whether the user may do what a verb says with requests for the signer of what is changed, or of all of its domain.
pub(super) fn may(review: &Review<'_>, verb: &str) -> Result<()> {
    let request = review.request;
    let signer = review.old.map_or("", |old| text(old, "spec.signerName"));
    let allowed = |name: &str| {
        let attributes = Attributes {
            verb: verb.into(),
            group: csr::KIND.group().into(),
            resource: "signers".into(),
            name: name.into(),
            ..Attributes::default()
        };
        authorize(review.api, &request.user, &attributes).allowed
    };
    let domain = signer.split('/').next().unwrap_or_default();
    if allowed(signer) || allowed(&format!("{domain}/*")) {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Status::forbidden(&request.kind, &request.name, why))
}
