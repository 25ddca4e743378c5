//! Admission: what a cluster adds to objects or refuses for reasons beyond the object itself.
//!
//! [`PLUGINS`] is Kubernetes' order of its plugins, as far as their kinds exist, a file each. All of them change an object
//! before it is validated; all of them look at it once it is final. Policies and then webhooks come after them each time, and where
//! one has changed the object the others see it once more. Quotas come last, because what an object takes is written with it. What is
//! about a pod's own rules is the kind's.

mod authorizer;
mod certificate_approval;
mod certificate_signing;
mod certificate_subject_restriction;
mod conditions;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod dra_admin_access;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_address;
mod node_restriction;
mod persistent_volume_claim_resize;
mod plugin;
mod pod_security;
mod policy;
mod policy_params;
mod presented;
mod priority;
mod rbac_escalation;
mod reinvocation;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod webhook;

pub use node_restriction::may_give_itself;
use plugin::Plugin;
pub use plugin::{Operation, Review};
use reinvocation::Reinvocation;
pub use resource_quota::Charge;
use serde_json::Value;

use crate::apimachinery::status::Result;

static PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes_by_condition::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &default_storage_class::DefaultStorageClass,
    &storage_object_in_use_protection::StorageObjectInUseProtection,
    &persistent_volume_claim_resize::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificate_approval::CertificateApproval,
    &certificate_signing::CertificateSigning,
    &certificate_subject_restriction::CertificateSubjectRestriction,
    &default_ingress_class::DefaultIngressClass,
    &deny_service_external_ips::DenyServiceExternalIps,
    &dra_admin_access::DraAdminAccess,
    &rbac_escalation::RbacEscalation,
    &policy_params::PolicyParams,
];

// === impl Review ===

impl<'a> Review<'a> {
    /// Lets every plugin change the object, or refuse it; answers their warnings.
    pub async fn mutate(&self, object: &mut Value) -> Result<Vec<String>> {
        self.mutate_here(object).await?;
        let (policies, webhooks) = (policy::are_mutating(self), webhook::are_mutating(self));
        let mut warnings = Vec::new();
        let (mut of_policies, mut of_webhooks) = (Reinvocation::default(), Reinvocation::default());
        for is_second in [false, true] {
            if is_second {
                if !of_policies.is_needed && !of_webhooks.is_needed {
                    break;
                }
                self.mutate_here(object).await?;
                of_policies.again(object);
            }
            if policies {
                policy::mutate(self, object, &mut of_policies).await?;
            }
            if is_second {
                of_webhooks.again(object);
            }
            if webhooks {
                warnings.extend(webhook::mutate(self, object, &mut of_webhooks).await?);
            }
        }
        Ok(warnings)
    }

    async fn mutate_here(&self, object: &mut Value) -> Result<()> {
        for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(self)) {
            plugin.mutate(self, object).await?;
        }
        Ok(())
    }

    /// Whether looking at the object takes a question to somebody else, during which nothing may be held.
    pub fn asks_others(&self, object: &Value) -> bool {
        webhook::would_validate(self, object)
    }

    /// Whether a policy or a webhook looks at an object that is deleted.
    pub fn is_looked_at(&self) -> bool {
        policy::would_look(self) || webhook::would_look(self)
    }

    /// Lets every plugin refuse the object in its last form; answers their warnings.
    pub async fn validate(&self, object: &Value) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(self)) {
            warnings.extend(plugin.validate(self, object).await?);
        }
        warnings.extend(policy::validate(self, object).await?);
        warnings.extend(webhook::validate(self, object).await?);
        Ok(warnings)
    }

    /// What the object in its last form takes of quotas, which is written together with it; refused where it does not fit.
    pub async fn charge(&self, object: &Value) -> Result<Charge<'a>> {
        resource_quota::charge(self, object).await
    }
}
