//! Counts that are exact whatever is killed in between.
//!
//! A pod that has ended keeps its finalizer until the Job's status names it as uncounted; only when the finalizer is gone is
//! it taken from there into the count. So each pod is counted once: whoever comes after a crash finds it with its finalizer and not
//! named (not begun), named and with it (goes on), or named and without it (counts).

use std::collections::HashSet;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};

use super::plan::{Counts, make_condition};
use super::policy::{self, Action};
use super::view::{View, active, condition, is_ending, is_tracked, uid};
use crate::controllers::Member;
use crate::controllers::pods;

/// Pods that the status names at most, and that one run lets go.
const UNCOUNTED_MAX: usize = 500;

/// Which pods are let go, and whether there are more.
#[derive(Debug, Default)]
pub(super) struct Released {
    pub(super) members: Vec<Member>,
    pub(super) more: bool,
}

/// Names in the status which pods are counted next.
pub(super) fn begin(
    status: &mut JobStatus,
    view: &View<'_>,
    members: &[Member],
    end: Option<&JobCondition>,
) -> Released {
    count(status, members);
    let counts = Counts::of(view, status, members);
    let mut released = Released::default();
    let fails = end.is_some_and(|e| e.type_ != "SuccessCriteriaMet");
    let mut listed = uncounted(status).len();
    let named: HashSet<String> = uncounted(status).into_iter().collect();
    let mut tracked: Vec<&Member> = members.iter().filter(|m| is_tracked(&m.pod)).collect();
    tracked.sort_by_key(|m| view.index(&m.pod));
    for member in tracked {
        let pod = &member.pod;
        let failed = view.is_failed(pod);
        let kept = view.index(pod).and_then(|i| counts.replaced.get(&i)).is_some_and(|m| uid(m) == uid(member));
        let ends = view.is_deleted() || end.is_some() || pods::phase(pod) == "Succeeded";
        if !ends && (!failed || kept) {
            continue;
        }
        if listed >= UNCOUNTED_MAX || released.members.len() >= UNCOUNTED_MAX {
            released.more = true;
            break;
        }
        released.members.push(member.clone());
        if named.contains(uid(member)) {
            continue;
        }
        let lists = status.uncounted_terminated_pods.get_or_insert_default();
        // The indexes that succeeded are in the status already, which is as good as a name.
        if pods::phase(pod) == "Succeeded" {
            if !view.is_indexed {
                lists.succeeded.get_or_insert_default().push(uid(member).into());
                listed += 1;
            }
        } else if (failed || fails) && view.is_valid(pod) && policy::on_failure(view, pod) != Action::Ignore {
            lists.failed.get_or_insert_default().push(uid(member).into());
            listed += 1;
        }
    }
    if view.is_indexed {
        let completed = counts.succeeded_indexes.to_string();
        status.succeeded = Some(counts.succeeded_indexes.count() as i32).filter(|c| *c > 0);
        status.completed_indexes = Some(completed).filter(|c| !c.is_empty());
        status.failed_indexes = counts.failed_indexes.as_ref().map(ToString::to_string);
    }
    if let Some(end) = end.filter(|e| condition(status, &e.type_).is_none()) {
        put_condition(status, end.clone());
    }
    observe(status, members);
    released
}

/// Takes those into the count that were named and whose finalizer is gone; with all done and nobody left, the Job has ended.
/// Answers the condition that says so.
pub(super) fn settle(
    status: &mut JobStatus,
    members: &[Member],
    end: Option<&JobCondition>,
    more: bool,
    now: Timestamp,
) -> Option<JobCondition> {
    count(status, members);
    observe(status, members);
    let waits = more || !uncounted(status).is_empty() || status.terminating.unwrap_or(0) > 0;
    let end = end.filter(|_| !waits && status.active.is_none())?;
    let of_type = if end.type_ == "SuccessCriteriaMet" { "Complete" } else { "Failed" };
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let ended = make_condition(of_type, "True", &text(&end.reason), &text(&end.message), now);
    put_condition(status, ended.clone());
    if of_type == "Complete" {
        status.completion_time = ended.last_transition_time.clone();
    }
    Some(ended)
}

/// Puts a condition in the place of one of its type, or at the end.
pub(super) fn put_condition(status: &mut JobStatus, new: JobCondition) {
    let all = status.conditions.get_or_insert_default();
    match all.iter_mut().find(|c| c.type_ == new.type_) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

/// All that are named as uncounted.
fn uncounted(status: &JobStatus) -> Vec<String> {
    let lists = status.uncounted_terminated_pods.clone().unwrap_or_default();
    lists.succeeded.into_iter().chain(lists.failed).flatten().collect()
}

fn count(status: &mut JobStatus, members: &[Member]) {
    let tracked: HashSet<&str> = members.iter().filter(|m| is_tracked(&m.pod)).map(uid).collect();
    let mut lists = status.uncounted_terminated_pods.take().unwrap_or_default();
    for (list, total) in [(&mut lists.succeeded, &mut status.succeeded), (&mut lists.failed, &mut status.failed)] {
        let before = list.as_ref().map_or(0, Vec::len);
        list.iter_mut().for_each(|l| l.retain(|uid| tracked.contains(&**uid)));
        let counted = before - list.as_ref().map_or(0, Vec::len);
        if counted > 0 {
            *total = Some(total.unwrap_or(0).saturating_add(counted as i32));
        }
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    }
    status.uncounted_terminated_pods = Some(lists);
}

fn observe(status: &mut JobStatus, members: &[Member]) {
    let running = active(members).count() as i32;
    status.active = Some(running).filter(|c| *c > 0);
    status.ready = Some(active(members).filter(|m| pods::is_ready(&m.pod)).count() as i32);
    status.terminating = Some(members.iter().filter(|m| is_ending(&m.pod)).count() as i32);
}
