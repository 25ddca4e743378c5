//! A kind as the documents describe it.

use std::sync::Arc;

use super::super::types::Schema;

/// One served kind, as far as the documents need it.
#[derive(Debug, Clone)]
pub struct ApiKind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    /// The resource's name in paths.
    pub plural: String,
    pub namespaced: bool,
    /// As in discovery: `create`, `get`, `list`...
    pub verbs: Vec<String>,
    pub subresources: Vec<ApiSubresource>,
    /// The schema's name, such as `io.k8s.api.core.v1.Pod`.
    pub definition: String,
    /// The schema of a custom kind, which the bundle does not have.
    pub schema: Option<Arc<Schema>>,
}

/// A subresource of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiSubresource {
    /// Such as `status` or `scale`.
    pub name: String,
    /// Group, version and kind of what is exchanged.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
    /// The schema's name; empty where there is none (logs, connections).
    pub definition: String,
}

// === impl ApiKind ===

impl ApiKind {
    pub(super) fn group_version(&self) -> (&str, &str) {
        (&self.group, &self.version)
    }

    /// Where the group's resources are served: `/api/v1` or `/apis/apps/v1`.
    pub(super) fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}
