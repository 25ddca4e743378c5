//! The priority levels and flow schemas that Kubernetes suggests, and of which level and flow a request is.

use std::sync::Arc;

use crate::api::identity::token::service_account;
use crate::apimachinery::user::{MASTERS, NODES, User};

/// Requests that run at once: Kubernetes' 400 reading and 200 changing ones.
pub(super) const SEATS: usize = 600;

/// A priority level's configuration.
pub(super) struct LevelSpec {
    pub(super) name: &'static str,
    shares: usize,
    lendable_percent: usize,
    /// Whether requests wait; else they are refused.
    pub(super) queues: bool,
}

pub(super) const fn level(name: &'static str, shares: usize, lendable_percent: usize, queues: bool) -> LevelSpec {
    LevelSpec { name, shares, lendable_percent, queues }
}

/// In the order in which free seats are offered.
pub(super) const LEVELS: [LevelSpec; 7] = [
    level("system", 30, 33, true),
    level("node-high", 40, 25, true),
    level("leader-election", 10, 0, true),
    level("workload-high", 40, 50, true),
    level("workload-low", 100, 90, true),
    level("global-default", 20, 50, true),
    level("catch-all", 5, 0, false),
];

/// What is asked, as far as flows depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Target<'a> {
    pub verb: &'a str,
    pub group: &'a str,
    /// Empty for paths that lead to no resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub path: &'a str,
}

/// What tells the flows of a schema apart.
pub(super) enum Distinguisher {
    ByUser,
    ByNamespace,
}

/// Which requests are of which level.
pub(super) struct FlowSchema {
    name: &'static str,
    /// `None`: exempt.
    level: Option<&'static str>,
    distinguisher: Distinguisher,
    subjects: fn(&User) -> bool,
    rule: fn(&Target<'_>) -> bool,
}

pub(super) fn everything(_: &Target<'_>) -> bool {
    true
}

pub(super) fn is_kube_system_account(user: &User) -> bool {
    service_account(&user.name).is_some_and(|(namespace, _)| namespace == "kube-system")
}

/// In the order of their precedence; the last one fits everybody.
pub(super) static SCHEMAS: [FlowSchema; 9] = [
    FlowSchema {
        name: "exempt",
        level: None,
        distinguisher: Distinguisher::ByUser,
        subjects: |user| user.is_in(MASTERS),
        rule: everything,
    },
    FlowSchema {
        name: "probes",
        level: None,
        distinguisher: Distinguisher::ByUser,
        subjects: |_| true,
        rule: |target| target.resource.is_empty() && matches!(target.path, "/healthz" | "/readyz" | "/livez"),
    },
    FlowSchema {
        name: "system-leader-election",
        level: Some("leader-election"),
        distinguisher: Distinguisher::ByUser,
        subjects: |user| {
            matches!(user.name.as_str(), "system:kube-controller-manager" | "system:kube-scheduler")
                || is_kube_system_account(user)
        },
        rule: |target| is_lease(target) && matches!(target.verb, "get" | "create" | "update"),
    },
    FlowSchema {
        name: "system-node-high",
        level: Some("node-high"),
        distinguisher: Distinguisher::ByUser,
        subjects: |user| user.is_in(NODES),
        rule: |target| is_lease(target) || (target.group.is_empty() && target.resource == "nodes"),
    },
    FlowSchema {
        name: "system-nodes",
        level: Some("system"),
        distinguisher: Distinguisher::ByUser,
        subjects: |user| user.is_in(NODES),
        rule: everything,
    },
    FlowSchema {
        name: "kube-controllers",
        level: Some("workload-high"),
        distinguisher: Distinguisher::ByNamespace,
        subjects: |user| matches!(user.name.as_str(), "system:kube-controller-manager" | "system:kube-scheduler"),
        rule: everything,
    },
    FlowSchema {
        name: "kube-system-service-accounts",
        level: Some("workload-high"),
        distinguisher: Distinguisher::ByNamespace,
        subjects: is_kube_system_account,
        rule: everything,
    },
    FlowSchema {
        name: "service-accounts",
        level: Some("workload-low"),
        distinguisher: Distinguisher::ByUser,
        subjects: |user| user.is_in("system:serviceaccounts"),
        rule: everything,
    },
    FlowSchema {
        name: "global-default",
        level: Some("global-default"),
        distinguisher: Distinguisher::ByUser,
        subjects: |_| true,
        rule: everything,
    },
];

pub(super) fn is_lease(target: &Target<'_>) -> bool {
    target.group == "coordination.k8s.io" && target.resource == "leases"
}

pub(super) fn is_privileged(user: &User) -> bool {
    user.is_in(MASTERS) || user.is_in(NODES)
}

/// Level and flow of a request; `None` where it is exempt.
pub(super) fn classify(user: &User, target: &Target<'_>) -> Option<(usize, Arc<str>)> {
    let schema = SCHEMAS.iter().find(|s| (s.subjects)(user) && (s.rule)(target))?;
    let level = LEVELS.iter().position(|l| Some(l.name) == schema.level)?;
    let distinguisher = match schema.distinguisher {
        Distinguisher::ByUser => user.name.as_str(),
        Distinguisher::ByNamespace => target.namespace,
    };
    // The owner of a flow is that of its user.
    Some((level, format!("{distinguisher}/{}", schema.name).into()))
}

/// A level's seats.
pub(super) const fn nominal(level: usize) -> usize {
    let (mut shares, mut i) = (0, 0);
    while i < LEVELS.len() {
        shares += LEVELS[i].shares;
        i += 1;
    }
    (SEATS * LEVELS[level].shares).div_ceil(shares)
}

/// The seats that a level does not lend.
pub(super) const fn guaranteed(level: usize) -> usize {
    let nominal = nominal(level);
    nominal - nominal * LEVELS[level].lendable_percent / 100
}
