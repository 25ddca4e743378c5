//! The annotations and labels by which a Deployment and its ReplicaSets know each other.

use std::collections::BTreeMap;

/// The annotation that numbers rollouts.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";

/// Earlier numbers of a set that became current again.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";

/// How many replicas the Deployment wanted when the set was scaled last.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";

/// As [`DESIRED`], with the surge.
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// The label that tells the pods of one template from those of another.
pub(super) const HASH: &str = "pod-template-hash";

/// Annotations by name.
pub(super) type Annotations = BTreeMap<String, String>;
