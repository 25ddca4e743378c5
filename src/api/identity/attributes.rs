//! What is to be allowed, and what was decided.

use crate::api::Request;
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
