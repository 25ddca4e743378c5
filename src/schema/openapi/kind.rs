//! A kind as the documents describe it.

use std::sync::Arc;

use serde_json::Value;

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
    /// What the bundle does not have.
    pub custom: Option<CustomApi>,
}

/// What the documents say of a custom kind alone.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomApi {
    pub list_kind: String,
    /// The fields that may be selected, dotted.
    pub selectable: Vec<String>,
    /// The schema as its definition has it: JSON, compressed.
    pub compressed: Arc<[u8]>,
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

// === impl CustomApi ===

impl CustomApi {
    /// The schema and how long its text is; none where there is none, or a longer one.
    pub(super) fn openapi(&self, bytes_max: usize) -> Option<(Value, usize)> {
        let text = zstd::decode_all(&*self.compressed).ok().filter(|text| text.len() <= bytes_max)?;
        Some((serde_json::from_slice(&text).ok()?, text.len()))
    }
}

impl std::fmt::Debug for CustomApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Fingerprints are made of it, for every kind with every request: no number by number.
        let hash = hash(self.compressed.iter().copied());
        write!(f, "{} {:?} {hash:x}", self.list_kind, self.selectable)
    }
}

// === impl ApiKind ===

impl ApiKind {
    pub(super) fn group_version(&self) -> (&str, &str) {
        (&self.group, &self.version)
    }

    /// The name of the schema of its lists.
    pub(super) fn list_definition(&self) -> String {
        match self.definition.strip_suffix(self.kind.as_str()).zip(self.custom.as_ref()) {
            Some((package, custom)) => {
                let name = format!("{package}{}", custom.list_kind);
                if crate::schema::type_of(&name).is_some() { format!("{name}_v2") } else { name }
            }
            None => format!("{}List", self.definition),
        }
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

/// FNV-1a: stable from build to build, unlike the standard library's hasher.
pub(super) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
