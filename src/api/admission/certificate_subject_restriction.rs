//! CertificateSubjectRestriction: nobody becomes an administrator of everything by a certificate that is asked for.

use async_trait::async_trait;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::{Plugin, Review};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::MASTERS;
use crate::base::json::text;
use crate::kinds::certificates::certificatesigningrequest as csr;

pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&csr::KIND)
    }

    async fn validate(&self, _review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        if text(object, "spec.signerName") != csr::API_CLIENT {
            return Ok(Vec::new());
        }
        let refused = |why: String| Status::forbidden(&csr::KIND, text(object, "metadata.name"), why);
        let der = csr::request_der(object).map_err(|why| refused(format!("failed to parse CSR: {why}")))?;
        let (_, parsed) =
            X509CertificationRequest::from_der(&der).map_err(|e| refused(format!("failed to parse CSR: {e}")))?;
        let mut groups = parsed.certification_request_info.subject.iter_organization();
        if groups.any(|group| group.as_str().is_ok_and(|group| group == MASTERS)) {
            return Err(refused(format!("use of {} signer with {MASTERS} group is not allowed", csr::API_CLIENT)));
        }
        Ok(Vec::new())
    }
}
