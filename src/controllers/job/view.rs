//! What plans look at of a Job and its pods.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::controllers::Member;
use crate::controllers::pods;
use crate::kinds::batch::job::{COMPLETION_INDEX, TRACKING_FINALIZER};

/// How often an index had failed when a pod was made for it: failures that count, and others.
pub(super) const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
pub(super) const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// A Job with the numbers of its spec at hand.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) job: &'a Job,
    pub(super) spec: &'a JobSpec,
    pub(super) parallelism: i64,
    pub(super) completions: Option<i64>,
    pub(super) is_indexed: bool,
    pub(super) is_suspended: bool,
    /// How often an index may fail, where they fail by themselves.
    pub(super) per_index: Option<i64>,
    /// Whether a pod is replaced only when it has ended, and not when it begins to.
    pub(super) replaces_ended: bool,
}

// === impl View ===

impl<'a> View<'a> {
    pub(super) fn of(job: &'a Job, spec: &'a JobSpec) -> Self {
        Self {
            job,
            spec,
            parallelism: i64::from(spec.parallelism.unwrap_or(1)),
            completions: spec.completions.map(i64::from),
            is_indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            is_suspended: spec.suspend == Some(true),
            per_index: spec.backoff_limit_per_index.map(i64::from),
            replaces_ended: spec.pod_replacement_policy.as_deref() == Some("Failed")
                || spec.pod_failure_policy.is_some(),
        }
    }

    pub(super) fn status(&self) -> JobStatus {
        self.job.status.clone().unwrap_or_default()
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.job.metadata.deletion_timestamp.is_some()
    }

    /// Whether a pod counts as failed: it has, or, where it is replaced already, it was asked to end.
    pub(super) fn is_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => !self.replaces_ended && pod.metadata.deletion_timestamp.is_some(),
        }
    }

    /// The index that a pod is for, if this Job has it.
    pub(super) fn index(&self, pod: &Pod) -> Option<i64> {
        index(pod).filter(|i| *i < self.completions.unwrap_or(0))
    }

    /// Whether a pod can count for this Job at all.
    pub(super) fn is_valid(&self, pod: &Pod) -> bool {
        !self.is_indexed || self.index(pod).is_some()
    }
}

/// The true condition of a type.
pub(super) fn condition<'a>(status: &'a JobStatus, of_type: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == of_type && c.status == "True")
}

/// Whether the Job has not counted a pod yet.
pub(super) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|f| f == TRACKING_FINALIZER)
}

pub(super) fn is_ending(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some() && !pods::is_over(pod)
}

pub(super) fn active(members: &[Member]) -> impl Iterator<Item = &Member> {
    members.iter().filter(|m| pods::is_active(&m.pod))
}

pub(super) fn uid(member: &Member) -> &str {
    &member.object.meta.uid
}

/// The index in a pod's annotation.
pub(super) fn index(pod: &Pod) -> Option<i64> {
    number(pod.metadata.annotations.as_ref(), COMPLETION_INDEX)
}

/// How often a pod's index had failed before: failures that count, and others.
pub(super) fn failures(pod: &Pod) -> (i64, i64) {
    let count = |key| number(pod.metadata.annotations.as_ref(), key).unwrap_or(0);
    (count(FAILURES), count(IGNORED_FAILURES))
}

/// Annotations may be anybody's: what is no number of their range is none.
fn number(annotations: Option<&BTreeMap<String, String>>, key: &str) -> Option<i64> {
    annotations?.get(key)?.parse::<i32>().ok().filter(|n| *n >= 0).map(i64::from)
}

/// When a pod ended, as well as can be told: its last container, else since when it is not ready, else when it was asked to.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    let ends: Option<Vec<Timestamp>> = statuses
        .map(|s| s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0))
        .collect::<Option<_>>();
    let last = ends.and_then(|all| all.into_iter().max());
    let unready = || pods::condition(pod, "Ready").filter(|c| c.status == "False")?.last_transition_time.as_ref();
    let asked = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0).clamp(0, i64::from(i32::MAX));
        let end = pod.metadata.deletion_timestamp.as_ref()?.0;
        end.checked_sub(Duration::from_secs(grace as u64)).ok()
    };
    last.or_else(|| unready().map(|t| t.0)).or_else(asked).unwrap_or(created)
}
