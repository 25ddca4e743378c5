//! From what pods use to how many there are to be: pure (`pkg/controller/podautoscaler/replica_calculator.go`).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::base::quantity::Quantity;

/// How long after its start what a pod uses of the CPU may be that of its start.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// How long a pod that starts may be said to be unready before it is so for the first time.
const INITIAL_READINESS: Duration = Duration::from_secs(30);

/// What a metric is of one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub milli: i64,
    pub at: Timestamp,
    pub window: Duration,
}

/// By the names of pods.
pub(super) type Samples = BTreeMap<String, Sample>;

/// How far a ratio may be from one without any change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub down: f64,
    pub up: f64,
}

/// How many pods a metric asks for, and what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Proposal {
    pub replicas: i32,
    /// Percent of what was requested.
    pub utilization: Option<i32>,
    /// Thousandths, of a pod on average where it is one of pods.
    pub milli: i64,
}

/// What is known of the pods of a workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload<'a> {
    pub pods: &'a [std::sync::Arc<Pod>],
    /// How many there are to be now.
    pub current: i32,
    pub tolerance: Tolerance,
    pub now: Timestamp,
}

/// Pods by what their samples are good for.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Groups {
    pub ready: usize,
    pub unready: Vec<String>,
    pub missing: Vec<String>,
    /// Those that end or have failed.
    pub ignored: Vec<String>,
}

// === impl Tolerance ===

impl Tolerance {
    fn allows(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

// === impl Groups ===

impl Groups {
    pub(super) fn of(workload: &Workload<'_>, samples: &Samples, is_cpu: bool) -> Self {
        let mut groups = Self::default();
        for pod in workload.pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            if pod.metadata.deletion_timestamp.is_some() || phase == Some("Failed") {
                groups.ignored.push(name);
            } else if phase == Some("Pending") {
                groups.unready.push(name);
            } else {
                match samples.get(&name) {
                    None => groups.missing.push(name),
                    Some(sample) if is_cpu && !says_something(pod, sample, workload.now) => groups.unready.push(name),
                    Some(_) => groups.ready += 1,
                }
            }
        }
        groups
    }
}

/// Whether what a pod uses of the CPU is more than its start.
fn says_something(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let condition = status.and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
    let started = status.and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    let (Some(condition), Some(started)) = (condition, started) else { return false };
    let is_unready = condition.status == "False";
    let since = condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    if started + CPU_INITIALIZATION > now {
        !is_unready && sample.at >= since + sample.window
    } else {
        // One that was ready once has done its start.
        !(is_unready && started + INITIAL_READINESS > since)
    }
}

/// What all containers of each pod, or the one of a name, ask for of a resource, in thousandths.
pub(super) fn requests(
    pods: &[std::sync::Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> Result<BTreeMap<String, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(spec) = &pod.spec else { continue };
        let whole =
            spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource)).filter(|_| container.is_none());
        let sum = match whole {
            Some(whole) => milli(&whole.0),
            None => {
                let sidecars =
                    spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
                let mut sum = 0i64;
                for of in spec.containers.iter().chain(sidecars).filter(|c| container.is_none_or(|name| c.name == name))
                {
                    let missing = || format!("missing request for {resource} in container {} of Pod {name}", of.name);
                    sum = sum.saturating_add(request(of, resource).ok_or_else(missing)?);
                }
                sum
            }
        };
        all.insert(name, sum);
    }
    Ok(all)
}

fn request(container: &Container, resource: &str) -> Option<i64> {
    Some(milli(&container.resources.as_ref()?.requests.as_ref()?.get(resource)?.0))
}

fn milli(text: &str) -> i64 {
    text.parse::<Quantity>().map_or(0, |quantity| quantity.milli())
}

/// Percent of what was requested: ratio to the target, percent, and what a pod uses on average.
fn utilization(samples: &Samples, requests: &BTreeMap<String, i64>, target: i32) -> Result<(f64, i32, i64), String> {
    let known = samples.iter().filter_map(|(name, sample)| Some((sample.milli, *requests.get(name)?)));
    let (mut used, mut requested, mut count) = (0i128, 0i128, 0i128);
    for (milli, request) in known {
        (used, requested, count) = (used + i128::from(milli), requested + i128::from(request), count + 1);
    }
    if requested == 0 {
        return Err("no metrics returned matched known pods".into());
    }
    let percent = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
    let average = i64::try_from(used / count.max(1)).unwrap_or(i64::MAX);
    Ok((f64::from(percent) / f64::from(target), percent, average))
}

/// What a pod uses on average, and its ratio to the target.
fn average(samples: &Samples, target: i64) -> (f64, i64) {
    let sum: i128 = samples.values().map(|sample| i128::from(sample.milli)).sum();
    let average = i64::try_from(sum / samples.len().max(1) as i128).unwrap_or(i64::MAX);
    (average as f64 / target as f64, average)
}

fn rounded_up(pods: f64) -> i32 {
    // As Go converts: what does not fit is not asked for.
    pods.ceil().clamp(0.0, f64::from(i32::MAX)) as i32
}

/// Pods without samples count as what makes a change smallest: those that are missing as all of the request, or more, when
/// there are to be fewer, and all as nothing when there are to be more.
fn replicas_of(
    workload: &Workload<'_>,
    mut samples: Samples,
    groups: &Groups,
    ratio: f64,
    full: impl Fn(&str) -> i64,
    again: impl Fn(&Samples) -> Result<f64, String>,
) -> Result<i32, String> {
    let current = workload.current;
    let is_rebalanced = !groups.unready.is_empty() && ratio > 1.0;
    if !is_rebalanced && groups.missing.is_empty() {
        if workload.tolerance.allows(ratio) {
            return Ok(current);
        }
        return Ok(rounded_up(ratio * groups.ready as f64));
    }
    let count_as = |milli: i64| Sample { milli, at: workload.now, window: Duration::ZERO };
    for name in &groups.missing {
        if ratio < 1.0 {
            samples.insert(name.clone(), count_as(full(name)));
        } else if ratio > 1.0 {
            samples.insert(name.clone(), count_as(0));
        }
    }
    if is_rebalanced {
        samples.extend(groups.unready.iter().map(|name| (name.clone(), count_as(0))));
    }
    let new = again(&samples)?;
    if workload.tolerance.allows(new) || (ratio < 1.0 && new > 1.0) || (ratio > 1.0 && new < 1.0) {
        return Ok(current);
    }
    let replicas = rounded_up(new * samples.len() as f64);
    // More pods than there were in the calculation are no change of direction.
    if (new < 1.0 && replicas > current) || (new > 1.0 && replicas < current) {
        return Ok(current);
    }
    Ok(replicas)
}

/// How many pods keep each at a part of what it asks for.
pub(super) fn by_utilization(
    workload: &Workload<'_>,
    mut samples: Samples,
    requests: &BTreeMap<String, i64>,
    target: i32,
    is_cpu: bool,
) -> Result<Proposal, String> {
    let groups = begun(workload, &mut samples, is_cpu)?;
    let (ratio, percent, milli) = utilization(&samples, requests, target)?;
    let full = |name: &str| {
        let request = i128::from(requests.get(name).copied().unwrap_or(0));
        i64::try_from(request * i128::from(target.max(100)) / 100).unwrap_or(i64::MAX)
    };
    let again = |samples: &Samples| utilization(samples, requests, target).map(|(ratio, ..)| ratio);
    let replicas = replicas_of(workload, samples, &groups, ratio, full, again)?;
    Ok(Proposal { replicas, utilization: Some(percent), milli })
}

/// How many pods keep the average of each at an amount.
pub(super) fn by_average(
    workload: &Workload<'_>,
    mut samples: Samples,
    target: i64,
    is_cpu: bool,
) -> Result<Proposal, String> {
    let groups = begun(workload, &mut samples, is_cpu)?;
    let (ratio, milli) = average(&samples, target);
    let again = |samples: &Samples| Ok(average(samples, target).0);
    let replicas = replicas_of(workload, samples, &groups, ratio, |_| target, again)?;
    Ok(Proposal { replicas, utilization: None, milli })
}

/// Takes the samples away that say nothing.
fn begun(workload: &Workload<'_>, samples: &mut Samples, is_cpu: bool) -> Result<Groups, String> {
    if workload.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let groups = Groups::of(workload, samples, is_cpu);
    samples.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    Ok(groups)
}

/// How many pods bring a number that is of all of them together to what it is to be.
pub(super) fn by_total(workload: &Workload<'_>, total: i64, target: i64) -> Result<Proposal, String> {
    let ratio = total as f64 / target as f64;
    let proposal = |replicas| Proposal { replicas, utilization: None, milli: total };
    if workload.current == 0 {
        return Ok(proposal(rounded_up(ratio)));
    }
    if workload.tolerance.allows(ratio) {
        return Ok(proposal(workload.current));
    }
    if workload.pods.is_empty() {
        return Err(
            "unable to calculate ready pods: no pods returned by selector while calculating replica count".into()
        );
    }
    let ready = workload.pods.iter().filter(|pod| is_ready(pod)).count();
    Ok(proposal(rounded_up(ratio * ready as f64)))
}

fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let mut conditions = status.conditions.iter().flatten();
    status.phase.as_deref() == Some("Running") && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// How many pods share a number so that each has an amount of it; `replicas` is how many there are.
pub(super) fn by_share(replicas: i32, tolerance: Tolerance, total: i64, target: i64) -> Proposal {
    let ratio = total as f64 / (target as f64 * f64::from(replicas));
    let wanted = match tolerance.allows(ratio) {
        true => replicas,
        false => rounded_up(total as f64 / target as f64),
    };
    let milli = if replicas > 0 { (total as f64 / f64::from(replicas)).ceil() as i64 } else { 0 };
    Proposal { replicas: wanted, utilization: None, milli }
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
