//! Admission: what a cluster adds to objects or refuses for reasons beyond the object itself.
//!
//! Plain functions in a fixed order, the built-in plugins that Kubernetes enables by default as far as their kinds exist.

mod escalation;
mod external_ips;
mod ingress;
mod lifecycle;
mod node;
mod pod;
mod podsecurity;

use serde_json::Value;

pub use node::restrict_token;

use super::identity::join;
use super::status::Result;
use super::{Api, Request};
use crate::kinds::{core, networking, rbac};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
}

/// Checks that come even before the object is looked at: does its namespace live?
pub fn before_create(api: &Api, request: &Request, value: &Value) -> Result<()> {
    lifecycle::namespace_lives(api, request, value)
}

/// Lets the account of a new pod come into being: it follows its namespace by a moment.
pub async fn wait(api: &Api, request: &Request, value: &Value) {
    if request.kind == &core::pod::KIND && request.subresource.is_none() {
        pod::wait_for_account(api, request, value).await;
    }
}

/// Changes and refusals before validation.
pub fn admit(api: &Api, request: &Request, operation: Operation, value: &mut Value, old: Option<&Value>) -> Result<()> {
    if request.kind == &core::pod::KIND && operation == Operation::Create && request.subresource.is_none() {
        pod::admit(api, request, value)?;
    } else if request.kind == &core::node::KIND && operation == Operation::Create {
        if let Some(own) = request.user.node_name() {
            join::check_member(api, own)?;
        }
        node::admit(request, value);
    } else if request.kind == &networking::ingress::KIND && operation == Operation::Create {
        ingress::default_class(api, value);
    } else if request.kind == &core::pod::KIND && request.subresource.is_none() {
        pod::default_tolerations(value);
    }
    node::restrict(request, operation, value, old)?;
    match request.kind == &core::pod::KIND && operation == Operation::Create {
        true => node::check_owner(api, request, value),
        false => Ok(()),
    }
}

/// Refusals that need the final object.
pub fn validate(api: &Api, request: &Request, _operation: Operation, value: &Value, old: Option<&Value>) -> Result<()> {
    if request.kind == &core::service::KIND && request.subresource.is_none() {
        external_ips::restrict(api, request, value, old)?;
    }
    if request.kind.group == rbac::role::KIND.group {
        escalation::check(api, request, value, old)?;
    }
    podsecurity::enforce(api, request, value, old)
}

/// What the client is warned of beyond the object itself.
pub fn warnings(api: &Api, request: &Request, value: &Value, old: Option<&Value>) -> Vec<String> {
    podsecurity::warnings(api, request, value, old)
}

/// Refusals of deletions.
pub fn before_delete(_api: &Api, request: &Request, live: &Value) -> Result<()> {
    node::restrict_deletion(request, live)?;
    lifecycle::may_delete(request)
}
