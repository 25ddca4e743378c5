//! THE decision whether somebody may do something, and the attributes that it is made of.
//!
//! Everybody who asks (the request itself, impersonation, the second right of an upgrade or of an update that creates, RBAC's
//! `bind` and `escalate`, reviews) builds [`Attributes`] from what was parsed, never from text again, and calls [`authorize`].
//! The attributes are those of `k8s.io/apiserver/pkg/authorization/authorizer`, the rules when they are set those of its
//! RequestInfo (Kubernetes 1.37).

use super::attributes::{Attributes, Decision};
use super::node;
use crate::api::Api;
use crate::apimachinery::user::User;

/// Whether the user may do it.
pub fn authorize(api: &Api, user: &User, attributes: &Attributes) -> Decision {
    if node::allows(&api.cache, user, attributes) {
        return Decision { allowed: true, reason: None };
    }
    api.rbac.decide(user, attributes)
}
