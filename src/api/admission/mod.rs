//! Admission: what a cluster adds to objects or refuses for reasons beyond the object itself.
//!
//! [`PLUGINS`] is Kubernetes' order of its plugins, as far as their kinds exist, a file each. All of them change an object
//! before it is validated; all of them look at it once it is final. What is about a pod's own rules is the kind's.

mod default_ingress_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod namespace_lifecycle;
mod node_address;
mod node_restriction;
mod pod_security;
mod priority;
mod rbac_escalation;
mod runtime_class;
mod service_account;
mod taint_nodes_by_condition;

use async_trait::async_trait;
use serde_json::Value;

use super::{Api, Request};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::kinds::KindRef;

/// What is being done (`admission.Operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream to a pod, or a request through the proxy: the object is what was asked, such as `PodExecOptions`.
    Connect,
}

/// What a plugin is asked about (`admission.Attributes`): who asks for what, as a trial or not, is in the request.
pub struct Review<'a> {
    pub api: &'a Api,
    pub request: &'a Request,
    pub operation: Operation,
    /// What the object was; `None` where it is new.
    pub old: Option<&'a Value>,
    /// How a deletion was asked for.
    pub deletion: Option<&'a DeleteOptions>,
}

/// A part of the chain.
#[async_trait]
trait Plugin: Sync {
    /// Whether it has anything to do with this; the chain goes on without it if not.
    fn handles(&self, review: &Review<'_>) -> bool;

    /// Changes or refuses an object before it is validated.
    async fn mutate(&self, _review: &Review<'_>, _object: &mut Value) -> Result<()> {
        Ok(())
    }

    /// Refuses an object in its last form (null where it is to be deleted), or warns the client of it.
    async fn validate(&self, _review: &Review<'_>, _object: &Value) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

static PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes_by_condition::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &runtime_class::RuntimeClass,
    &default_ingress_class::DefaultIngressClass,
    &deny_service_external_ips::DenyServiceExternalIps,
    &rbac_escalation::RbacEscalation,
];

// === impl Review ===

impl<'a> Review<'a> {
    /// About a new object.
    pub fn create(api: &'a Api, request: &'a Request) -> Self {
        Self { api, request, operation: Operation::Create, old: None, deletion: None }
    }

    /// About a change of what was `old`.
    pub fn update(api: &'a Api, request: &'a Request, old: &'a Value) -> Self {
        Self { operation: Operation::Update, old: Some(old), ..Self::create(api, request) }
    }

    /// About the end of what was `old`.
    pub fn delete(api: &'a Api, request: &'a Request, old: &'a Value, options: &'a DeleteOptions) -> Self {
        Self { operation: Operation::Delete, deletion: Some(options), ..Self::update(api, request, old) }
    }

    /// About a stream.
    pub fn connect(api: &'a Api, request: &'a Request) -> Self {
        Self { operation: Operation::Connect, ..Self::create(api, request) }
    }

    /// Lets every plugin change the object, or refuse it.
    pub async fn mutate(&self, object: &mut Value) -> Result<()> {
        for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(self)) {
            plugin.mutate(self, object).await?;
        }
        Ok(())
    }

    /// Lets every plugin refuse the object in its last form; answers their warnings.
    pub async fn validate(&self, object: &Value) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for plugin in PLUGINS.iter().filter(|plugin| plugin.handles(self)) {
            warnings.extend(plugin.validate(self, object).await?);
        }
        Ok(warnings)
    }

    /// Whether an object of the kind itself is created or changed, and not a subresource.
    fn writes(&self, kind: &KindRef) -> bool {
        self.creates(kind) || (self.is_of(kind) && self.operation == Operation::Update)
    }

    /// Whether an object of the kind itself is created.
    fn creates(&self, kind: &KindRef) -> bool {
        self.is_of(kind) && self.operation == Operation::Create
    }

    fn is_of(&self, kind: &KindRef) -> bool {
        self.request.kind == *kind && self.request.subresource.is_none()
    }
}
