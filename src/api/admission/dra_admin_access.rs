//! What Kubernetes' API of resource claims checks itself: devices that are in use are given to administrators of them alone, in
//! namespaces that say so.

use async_trait::async_trait;
use serde_json::Value;

use super::{Plugin, Review};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::kinds::core::namespace;
use crate::kinds::field::{self, Errors};
use crate::kinds::resource::{resourceclaim, resourceclaimtemplate};

/// The label of such a namespace.
const ADMIN_ACCESS: &str = "resource.kubernetes.io/admin-access";

pub(super) struct DraAdminAccess;

#[async_trait]
impl Plugin for DraAdminAccess {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&resourceclaim::KIND) || review.creates(&resourceclaimtemplate::KIND)
    }

    async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        let kind = &review.request.kind;
        let (requests, path) = match *kind == resourceclaim::KIND {
            true => (resourceclaim::admin_requests(object), "spec.devices"),
            false => (resourceclaimtemplate::admin_requests(object), "spec.spec.devices"),
        };
        let namespaces = review.api.cache.kind(&namespace::KIND);
        let found = namespaces.get(&namespace::KIND.key("", &review.request.namespace));
        let is_admins = found.is_some_and(|ns| ns.meta.labels.get(ADMIN_ACCESS).is_some_and(|v| &**v == "true"));
        if is_admins || requests.is_empty() {
            return Ok(Vec::new());
        }
        let why =
            format!("admin access to devices requires the `{ADMIN_ACCESS}: true` label on the containing namespace");
        let refused = |i| field::forbidden(format!("{path}.requests[{i}].adminAccess"), why.clone());
        let errors: Errors = requests.into_iter().map(refused).collect();
        Err(Status::invalid(kind, text(object, "metadata.name"), &errors))
    }
}
