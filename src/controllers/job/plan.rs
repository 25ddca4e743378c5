//! What one run does to a Job's pods, and whether the Job is to end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff::{self, Record};
use super::policy::{self, Action};
use super::view::{View, active, condition, failures, finished_at, index, is_ending, is_tracked, uid};
use crate::controllers::Member;
use crate::controllers::pods;
use crate::controllers::replicaset::choose;
use crate::kinds::batch::indexes::Indexes;

/// Pods that one run creates or deletes at most.
const BURST: usize = 500;

/// What a Job's pods amount to.
pub(super) struct Counts<'a> {
    /// Pods that have ended since the last run.
    pub(super) succeeded_pods: Vec<&'a Pod>,
    pub(super) failed_pods: Vec<&'a Pod>,
    /// With those that are counted already.
    pub(super) succeeded: i64,
    pub(super) failed: i64,
    pub(super) succeeded_indexes: Indexes,
    pub(super) failed_indexes: Option<Indexes>,
    /// The pods that failed last for indexes that have no other: they stay until there is one, which takes their count on.
    pub(super) replaced: HashMap<i64, &'a Member>,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) delete: Vec<Member>,
    /// Pods to make, each for an index where the Job has such.
    pub(super) create: Vec<Option<i64>>,
    /// The condition that ends the Job, or leads to its end.
    pub(super) end: Option<JobCondition>,
    /// Whether the deleted pods were not counted and will not be: the Job does not want them any more.
    pub(super) forgets: bool,
    /// Whether pods are looked after, and not left to an end or a deletion.
    pub(super) manages: bool,
    /// When to look again.
    pub(super) wake: Option<Timestamp>,
}

pub(super) fn make_condition(of_type: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: of_type.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

// === impl Counts ===

impl<'a> Counts<'a> {
    pub(super) fn of(view: &View<'_>, status: &JobStatus, members: &'a [Member]) -> Self {
        let waiting = status.uncounted_terminated_pods.clone().unwrap_or_default();
        let (good, bad) = (waiting.succeeded.unwrap_or_default(), waiting.failed.unwrap_or_default());
        let fresh = |waiting: &[String]| {
            let waiting: HashSet<&str> = waiting.iter().map(String::as_str).collect();
            let new = members.iter().filter(|m| is_tracked(&m.pod) && view.is_valid(&m.pod));
            new.filter(|m| !waiting.contains(uid(m))).map(|m| &*m.pod).collect::<Vec<_>>()
        };
        let succeeded_pods: Vec<&Pod> = fresh(&good).into_iter().filter(|p| pods::phase(p) == "Succeeded").collect();
        let failed_pods: Vec<&Pod> = fresh(&bad).into_iter().filter(|p| view.is_failed(p)).collect();
        let counting = failed_pods.iter().filter(|p| policy::on_failure(view, p) != Action::Ignore).count();
        let mut counts = Self {
            succeeded: i64::from(status.succeeded.unwrap_or(0)) + (succeeded_pods.len() + good.len()) as i64,
            failed: i64::from(status.failed.unwrap_or(0)) + (counting + bad.len()) as i64,
            succeeded_pods,
            failed_pods,
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            replaced: HashMap::new(),
        };
        if view.is_indexed {
            counts.take_indexes(view, status, members);
        }
        counts
    }

    fn take_indexes(&mut self, view: &View<'_>, status: &JobStatus, members: &'a [Member]) {
        let completions = view.completions.unwrap_or(0);
        let tracked = || members.iter().filter(|m| is_tracked(&m.pod));
        let of =
            |pods: &mut dyn Iterator<Item = &'a Member>| pods.filter_map(|m| view.index(&m.pod)).collect::<Indexes>();
        let before = Indexes::of_status(status.completed_indexes.as_deref().unwrap_or(""), completions);
        let new = of(&mut tracked().filter(|m| pods::phase(&m.pod) == "Succeeded"));
        self.succeeded_indexes = before.union(&new);
        self.succeeded = self.succeeded_indexes.count();
        let Some(limit) = view.per_index else { return };
        let before = Indexes::of_status(status.failed_indexes.as_deref().unwrap_or(""), completions);
        let new = of(&mut tracked().filter(|m| fails_index(view, &m.pod, limit)));
        let failed = before.union(&new);
        let running = of(&mut active(members));
        for member in tracked().filter(|m| view.is_failed(&m.pod)) {
            let Some(index) = view.index(&member.pod) else { continue };
            if self.succeeded_indexes.has(index) || failed.has(index) || running.has(index) {
                continue;
            }
            let last = self.replaced.entry(index).or_insert(member);
            let rank = |m: &Member| (total_failures(&m.pod), finished_at(&m.pod));
            if rank(last) <= rank(member) {
                *last = member;
            }
        }
        self.failed_indexes = Some(failed);
    }

    fn failed_index_count(&self) -> i64 {
        self.failed_indexes.as_ref().map_or(0, Indexes::count)
    }
}

fn total_failures(pod: &Pod) -> i64 {
    let (counted, ignored) = failures(pod);
    counted + ignored
}

/// Whether with this pod its index has failed for good.
fn fails_index(view: &View<'_>, pod: &Pod, limit: i64) -> bool {
    view.is_failed(pod)
        && match policy::on_failure(view, pod) {
            Action::FailIndex => true,
            Action::Ignore => false,
            Action::Count | Action::FailJob(_) => failures(pod).0 >= limit,
        }
}

/// What is to be done for a Job that has not ended.
pub(super) fn plan(
    view: &View<'_>,
    status: &JobStatus,
    members: &[Member],
    counts: &Counts<'_>,
    record: Record,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    if let Some(end) = end(view, status, members, counts, now) {
        plan.delete = active(members).cloned().collect();
        plan.end = Some(end);
        return plan;
    }
    plan.wake = deadline(view, status);
    let mut left = active(members).count() as i64;
    if !view.is_deleted() {
        plan.manages = true;
        manage(&mut plan, view, members, counts, record, now);
        left += plan.create.len() as i64 - plan.delete.len() as i64;
    }
    let complete = match view.completions {
        Some(completions) => counts.succeeded >= completions,
        // One pod that succeeds says that there is no more to do.
        None => counts.succeeded > 0,
    };
    if complete && left == 0 {
        let why = "Reached expected number of succeeded pods";
        plan.end = Some(make_condition("SuccessCriteriaMet", "True", "CompletionsReached", why, now));
    }
    plan
}

/// Why the Job ends, whatever its pods do.
fn end(
    view: &View<'_>,
    status: &JobStatus,
    members: &[Member],
    counts: &Counts<'_>,
    now: Timestamp,
) -> Option<JobCondition> {
    // What was decided before stands.
    if let Some(decided) = condition(status, "SuccessCriteriaMet").or_else(|| condition(status, "FailureTarget")) {
        return Some(decided.clone());
    }
    let fail = |reason: &str, why: &str| Some(make_condition("FailureTarget", "True", reason, why, now));
    if view.spec.pod_failure_policy.is_some() {
        let failed = members.iter().filter(|m| view.is_failed(&m.pod));
        let why = failed.map(|m| policy::on_failure(view, &m.pod)).find_map(|a| match a {
            Action::FailJob(why) => Some(why),
            _ => None,
        });
        if let Some(why) = why {
            return fail("PodFailurePolicy", &why);
        }
    }
    let limit = i64::from(view.spec.backoff_limit.unwrap_or(6));
    if counts.failed > limit || restarts_exceed(view, members, limit) {
        return fail("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if deadline(view, status).is_some_and(|end| end <= now) {
        return fail("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let failed = counts.failed_index_count();
    if view.spec.max_failed_indexes.is_some_and(|max| failed > i64::from(max)) {
        return fail("MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes");
    }
    let completions = view.completions.unwrap_or(0);
    if failed > 0 && failed + counts.succeeded_indexes.count() >= completions {
        return fail("FailedIndexes", "Job has failed indexes");
    }
    let met = policy::success(view.spec.success_policy.as_ref(), completions, &counts.succeeded_indexes)?;
    Some(make_condition("SuccessCriteriaMet", "True", "SuccessPolicy", &met, now))
}

/// Containers that are restarted in their pods count where pods restart them.
fn restarts_exceed(view: &View<'_>, members: &[Member], limit: i64) -> bool {
    let policy = view.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
    if policy != Some("OnFailure") {
        return false;
    }
    let alive = members.iter().filter(|m| matches!(pods::phase(&m.pod), "Running" | "Pending"));
    let statuses = alive.filter_map(|m| m.pod.status.as_ref()).flat_map(|s| {
        let init = s.init_container_statuses.iter().flatten();
        init.chain(s.container_statuses.iter().flatten())
    });
    let restarts: i64 = statuses.map(|s| i64::from(s.restart_count)).sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// When it has been active for as long as it may be.
fn deadline(view: &View<'_>, status: &JobStatus) -> Option<Timestamp> {
    let seconds = view.spec.active_deadline_seconds.filter(|_| !view.is_suspended)?;
    let start = status.start_time.as_ref()?.0;
    start.checked_add(Duration::from_secs(seconds.max(0) as u64)).ok()
}

fn manage(plan: &mut Plan, view: &View<'_>, members: &[Member], counts: &Counts<'_>, record: Record, now: Timestamp) {
    let running: Vec<&Member> = active(members).collect();
    let have = running.len() as i64;
    if view.is_suspended {
        plan.delete = running.into_iter().cloned().collect();
        plan.forgets = true;
        return;
    }
    let wanted = match view.completions {
        Some(completions) => (completions - counts.succeeded).min(view.parallelism).max(0),
        None if counts.succeeded > 0 => have,
        None => view.parallelism,
    };
    plan.delete = surplus(view, running, (have - wanted).max(0) as usize, now);
    plan.delete.truncate(BURST);
    if !plan.delete.is_empty() {
        plan.forgets = true;
        return;
    }
    let ending = if view.replaces_ended { members.iter().filter(|m| is_ending(&m.pod)).count() as i64 } else { 0 };
    let missing = (wanted - have - ending).clamp(0, BURST as i64) as usize;
    if missing == 0 {
        return;
    }
    let mut until = None;
    if view.per_index.is_none() {
        until = record.until().filter(|t| *t > now);
    }
    if until.is_none() {
        plan.create = match view.is_indexed {
            false => vec![None; missing],
            true => indexes(view, members, counts, missing, now, &mut until),
        };
    }
    plan.wake = [plan.wake, until].into_iter().flatten().min();
}

/// The indexes to make pods for. Those that wait after a failure are left out, and `until` is when the first of them may be.
fn indexes(
    view: &View<'_>,
    members: &[Member],
    counts: &Counts<'_>,
    count: usize,
    now: Timestamp,
    until: &mut Option<Timestamp>,
) -> Vec<Option<i64>> {
    let has_pod = |m: &&Member| pods::is_active(&m.pod) || view.replaces_ended && is_ending(&m.pod);
    let with_pod: Indexes = members.iter().filter(has_pod).filter_map(|m| index(&m.pod)).collect();
    let mut done = counts.succeeded_indexes.union(&with_pod);
    if let Some(failed) = &counts.failed_indexes {
        done = done.union(failed);
    }
    let first = done.absent(count, view.completions.unwrap_or(0));
    let ready = first.into_iter().filter(|i| {
        let wait = counts.replaced.get(i).and_then(|m| backoff::until_replaced(total_failures(&m.pod), &m.pod));
        let wait = wait.filter(|t| *t > now);
        *until = [*until, wait].into_iter().flatten().min();
        wait.is_none()
    });
    ready.map(Some).collect()
}

/// Which pods are too many: those of no index or of one that another pod has, then the least useful ones.
fn surplus(view: &View<'_>, running: Vec<&Member>, at_least: usize, now: Timestamp) -> Vec<Member> {
    let (mut gone, mut left) = (Vec::new(), Vec::new());
    if view.is_indexed {
        let mut by_index: HashMap<i64, Vec<&Member>> = HashMap::new();
        for member in running {
            match view.index(&member.pod) {
                Some(index) => by_index.entry(index).or_default().push(member),
                None => gone.push(member.clone()),
            }
        }
        let mut by_index: Vec<_> = by_index.into_iter().collect();
        by_index.sort_by_key(|(index, _)| *index);
        for (_, same) in by_index {
            let going = choose(&same, &[], same.len() - 1, now);
            left.extend(same.into_iter().filter(|m| going.iter().all(|g| uid(g) != uid(m))));
            gone.extend(going);
        }
    } else {
        left = running;
    }
    if gone.len() < at_least {
        gone.extend(choose(&left, &[], at_least - gone.len(), now));
    }
    gone
}
