//! What the rules about pods depend on.

use serde_json::Value;

use super::names;

/// What a pod spec is validated as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// It belongs to a pod and not to a template.
    pub pod: bool,
}

/// What the checks of containers need to know of the whole spec.
pub(super) struct Context<'a> {
    pub(super) spec: &'a Value,
    pub(super) names: &'a names::Names<'a>,
    pub(super) host_users: bool,
    pub(super) grace: i64,
}
