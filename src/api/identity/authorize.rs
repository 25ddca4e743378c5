//! THE decision whether somebody may do something, and the attributes that it is made of.
//!
//! Everybody who asks (the request itself, impersonation, the second right of an upgrade or of an update that creates, RBAC's
//! `bind` and `escalate`, reviews) builds [`Attributes`] from what was parsed, never from text again, and calls [`authorize`].
//! The attributes are those of `k8s.io/apiserver/pkg/authorization/authorizer`, the rules when they are set those of its
//! RequestInfo (Kubernetes 1.37).

use super::node;
use crate::api::{Api, Request};
use crate::apimachinery::user::User;
use crate::base::labels::FieldTerm;
use crate::kinds::Subresource;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub verb: String,
    /// Empty for non-resource paths.
    pub resource: String,
    pub subresource: String,
    pub group: String,
    pub namespace: String,
    /// Empty for a collection, unless it is listed or watched for one name.
    pub name: String,
    /// The path of a non-resource request.
    pub path: String,
    /// What the field selector of a list, a watch or a deletion of a collection requires.
    pub fields: Vec<FieldTerm>,
}

/// An answer to [`Attributes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    /// Which binding allows it, in Kubernetes' words.
    pub reason: Option<String>,
}

// === impl Attributes ===

impl Attributes {
    /// What `verb` on the request's object is.
    pub fn of_request(request: &Request, verb: &str) -> Self {
        Self {
            verb: verb.into(),
            group: request.kind.group().into(),
            resource: request.kind.plural().into(),
            subresource: request.subresource.map_or("", Subresource::name).into(),
            namespace: request.namespace.clone(),
            name: request.name.clone(),
            ..Self::default()
        }
    }

    /// Whether it is about a path and no resource.
    pub fn is_path(&self) -> bool {
        self.resource.is_empty() && !self.path.is_empty()
    }

    /// The value that the field selector requires of a field.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.fields.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }
}

/// Whether the user may do it.
pub fn authorize(api: &Api, user: &User, attributes: &Attributes) -> Decision {
    if node::allows(&api.cache, user, attributes) {
        return Decision { allowed: true, reason: None };
    }
    api.rbac.decide(user, attributes)
}
