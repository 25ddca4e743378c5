//! Names that quotas have for what they count.

/// What objects count under besides `count/...`, of which there are only whole ones.
pub(super) const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
/// What pods ask for and may use.
pub(super) const COMPUTE: &[&str] = &[
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Whether a name without a domain is one that quotas know.
pub(super) fn is_standard(name: &str) -> bool {
    COUNTED.contains(&name) || COMPUTE.contains(&name) || name == "requests.storage" || is_hugepages(name)
}

pub(super) fn is_hugepages(name: &str) -> bool {
    name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}
