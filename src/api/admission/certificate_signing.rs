//! CertificateSigning: who may give out a certificate of a signer.

use async_trait::async_trait;
use serde_json::Value;

use super::certificate_approval::{changes, may};
use super::{Plugin, Review};
use crate::apimachinery::status::Result;
use crate::base::json::at;
use crate::kinds::Subresource;

pub(super) struct CertificateSigning;

#[async_trait]
impl Plugin for CertificateSigning {
    fn handles(&self, review: &Review<'_>) -> bool {
        changes(review) && review.request.subresource == Some(Subresource::Status)
    }

    async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        let changed = |path: &str| at(object, path) != review.old.and_then(|old| at(old, path));
        if changed("status.certificate") || changed("status.conditions") {
            may(review, "sign")?;
        }
        Ok(Vec::new())
    }
}
