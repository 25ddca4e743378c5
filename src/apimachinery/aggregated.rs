//! How controllers reach objects that other servers of the API keep: those of aggregated group versions.
//!
//! The API registers itself here, as nodes do in `node_access`; controllers know only this trait.

use async_trait::async_trait;

use super::status::Result;

/// Objects that other servers keep.
#[async_trait]
pub trait Aggregated: std::fmt::Debug + Send + Sync {
    /// Deletes everything of a namespace that is deleted, as far as the servers answer.
    async fn empty(&self, namespace: &str) -> Emptied;
    /// The uid of an object that may own others; none where its server says that there is none. `None` around it: no other
    /// server answers for the kind. An error: it cannot be known now.
    async fn owner(&self, api_version: &str, kind: &str, namespace: &str, name: &str)
    -> Result<Option<Option<String>>>;
}

/// What has become of a namespace's objects in other servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emptied {
    /// Group versions of which nobody knows what they have.
    pub undiscovered: Vec<String>,
    /// Resources of which objects are left: `plural.group`, how many, and how many have which finalizer.
    pub left: Vec<Left>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// What is left of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub resource: String,
    pub count: usize,
    pub finalizers: Vec<String>,
}

// === impl Emptied ===

impl Emptied {
    /// Whether nothing is left, as far as is known, and everything is known.
    pub fn is_done(&self) -> bool {
        *self == Self::default()
    }

    /// Why the namespace cannot be known to be empty, in the words of Kubernetes' discovery.
    pub fn discovery_failure(&self) -> Option<String> {
        let count = self.undiscovered.len();
        let each = |version: &String| format!("{version}: stale GroupVersion discovery: {version}");
        let all: Vec<String> = self.undiscovered.iter().map(each).collect();
        (count > 0).then(|| {
            format!(
                "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {}",
                all.join(", ")
            )
        })
    }
}
