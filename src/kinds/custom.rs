//! Kinds that are defined while the server runs.

use std::sync::Arc;

use crate::kinds::Subresource;
use crate::schema::{Schema, TypeRef};

/// What there is to know of a custom kind: names, and a schema that drives everything else.
#[derive(Debug)]
pub struct CustomKind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Of these only [`Subresource::Status`] needs nothing else.
    pub subresources: Vec<Subresource>,
    /// What its objects look like; has a type of the name [`CustomKind::definition`].
    pub schema: Arc<Schema>,
}

// === impl CustomKind ===

impl CustomKind {
    /// The name of its definition: the group backwards, the version and the kind.
    pub fn definition(&self) -> String {
        definition_name(&self.group, &self.version, &self.kind)
    }

    pub(super) fn type_ref(&self) -> TypeRef<'_> {
        self.schema.type_of(&self.definition()).expect("the schema was made for this kind")
    }
}

/// As Kubernetes names the definitions of custom kinds: `com.example.v1.Widget`.
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    parts.join(".")
}
