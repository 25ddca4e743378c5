//! In which order discovery lists what this server serves itself (`apiVersionPriorities` of the API server).

use crate::kinds::KindRef;
use crate::kinds::apiregistration::apiservice;

/// How a version of a group is ordered: `groupPriorityMinimum` and `versionPriority` of its APIService.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Priority {
    pub group: i64,
    pub version: i64,
}

/// Of versions that follow from definitions of custom kinds.
pub(super) const CUSTOM: Priority = Priority { group: 1000, version: 100 };

/// Of what metrics-server serves elsewhere.
pub(super) const METRICS: Priority = Priority { group: 100, version: 100 };

/// The group in which APIServices themselves are comes before all that they order.
const FIRST: i64 = i64::MAX;

const GROUPS: &[(&str, i64)] = &[
    ("", 18_000),
    (apiservice::GROUP, FIRST),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("internal.apiserver.k8s.io", 16_000),
    ("storagemigration.k8s.io", 15_800),
];

/// Versions that are not as all others (`v1` has 15).
const VERSIONS: &[(&str, &str, i64)] = &[
    ("", "v1", 1),
    ("autoscaling", "v2", 30),
    ("flowcontrol.apiserver.k8s.io", "v1", 21),
    ("resource.k8s.io", "v1", 20),
];

/// The priority of a version that is built in; `None` where Kubernetes has no such group.
pub(super) fn builtin(group: &str, version: &str) -> Option<Priority> {
    let (_, of_group) = GROUPS.iter().find(|(name, _)| *name == group)?;
    let own = VERSIONS.iter().find(|(g, v, _)| (*g, *v) == (group, version)).map(|(.., priority)| *priority);
    let usual = match version {
        "v1" => 15,
        beta if beta.contains("beta") => 9,
        _ => 1,
    };
    Some(Priority { group: *of_group, version: own.unwrap_or(usual) })
}

/// The priority of a version that this server serves.
pub(super) fn local(kind: &KindRef) -> Priority {
    match kind.as_custom() {
        None => builtin(kind.group(), kind.version()).unwrap_or(CUSTOM),
        Some(_) => CUSTOM,
    }
}
