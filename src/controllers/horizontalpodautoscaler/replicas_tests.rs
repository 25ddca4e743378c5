//! Upstream's cases of its calculator, and what holds for all.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: &str = "2026-01-01T01:00:00Z";
const TENTH: Tolerance = Tolerance { down: 0.1, up: 0.1 };

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Ready,
    Unready,
    Pending,
    Failed,
    Ending,
}

use State::{Ending, Failed, Pending, Ready, Unready};

fn pod(i: usize, state: State, milli: i64) -> Arc<Pod> {
    let (phase, ready) = match state {
        Pending => ("Pending", "False"),
        Failed => ("Failed", "False"),
        Unready => ("Running", "False"),
        Ready | Ending => ("Running", "True"),
    };
    // One that is unready has never been otherwise.
    let mut pod = json!({"metadata": {"name": format!("p{i}")},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": format!("{milli}m")}}}]},
        "status": {"phase": phase, "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:05Z"}]}});
    if state == Ending {
        pod["metadata"]["deletionTimestamp"] = NOW.into();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn samples(used: &[i64]) -> Samples {
    let sample = |milli: i64| Sample { milli, at: NOW.parse().unwrap(), window: Duration::from_secs(15) };
    used.iter().enumerate().map(|(i, milli)| (format!("p{i}"), sample(*milli))).collect()
}

/// Pods of these states that ask for so much each; what the first of them use; how many there are to be.
fn percent(states: &[State], request: i64, used: &[i64], current: i32, target: i32) -> Result<Proposal, String> {
    let pods: Vec<_> = states.iter().enumerate().map(|(i, state)| pod(i, *state, request)).collect();
    let workload = Workload { pods: &pods, current, tolerance: TENTH, now: NOW.parse().unwrap() };
    by_utilization(&workload, samples(used), &requests(&pods, "cpu", None)?, target, true)
}

fn replicas(states: &[State], request: i64, used: &[i64], current: i32, target: i32) -> i32 {
    percent(states, request, used, current, target).unwrap().replicas
}

#[test]
fn upstreams_cases_come_out_as_upstream_has_them() {
    // Names are those of replica_calculator_test.go.
    assert_eq!(
        percent(&[Ready; 3], 1000, &[300, 500, 700], 3, 30).unwrap(),
        Proposal { replicas: 5, utilization: Some(50), milli: 500 },
        "ScaleUp"
    );
    assert_eq!(replicas(&[Unready, Ready, Ready], 1000, &[300, 500, 700], 3, 30), 4, "ScaleUpUnreadyLessScale");
    assert_eq!(replicas(&[Unready, Ready, Unready], 1000, &[400, 500, 700], 3, 30), 3, "ScaleUpUnreadyNoScale");
    assert_eq!(replicas(&[Ready, Ready, Pending], 1000, &[500, 700], 3, 30), 4, "ScaleUpIgnoresPending");
    assert_eq!(replicas(&[Ready, Ready, Failed, Failed], 1000, &[500, 700], 2, 30), 4, "ScaleUpIgnoresFailedPods");
    assert_eq!(replicas(&[Ready, Ready, Ending, Ending], 1000, &[500, 700], 2, 30), 4, "ScaleUpIgnoresDeletionPods");
    assert_eq!(replicas(&[Ready; 5], 1000, &[100, 300, 500, 250, 250], 5, 50), 3, "ScaleDown");
    assert_eq!(replicas(&[Ready, Unready, Ready, Ready, Ready], 1000, &[100, 300, 500, 250, 250], 5, 50), 3);
    assert_eq!(replicas(&[Ready; 3], 900, &[1010, 1030, 1020], 3, 110), 3, "Tolerance");
    assert_eq!(replicas(&[Ready; 3], 1000, &[950], 3, 100), 3, "MissingMetricsNoChangeEq");
    assert_eq!(replicas(&[Ready; 2], 1000, &[1000], 2, 50), 2, "MissingMetricsNoChangeGt");
    assert_eq!(replicas(&[Ready; 2], 1000, &[450], 2, 50), 2, "MissingMetricsNoChangeLt");
    assert_eq!(replicas(&[Ready; 3], 1000, &[2000], 3, 50), 4, "MissingMetricsUnreadyChange and its like");
    assert_eq!(
        percent(&[Ready; 4], 1000, &[], 4, 100).unwrap_err(),
        "did not receive metrics for targeted pods (pods might be unready)"
    );
    assert_eq!(
        percent(&[], 1000, &[5], 4, 100).unwrap_err(),
        "no pods returned by selector while calculating replica count"
    );
}

#[test]
fn a_pod_that_asks_for_nothing_is_named() {
    let pods = [Arc::new(
        serde_json::from_value::<Pod>(json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}))
            .unwrap(),
    )];
    assert_eq!(requests(&pods, "cpu", None).unwrap_err(), "missing request for cpu in container c of Pod p");
    assert_eq!(requests(&pods, "cpu", Some("other")).unwrap(), BTreeMap::from([("p".to_owned(), 0)]));
}

#[test]
fn numbers_of_others_are_shared_or_compared() {
    let pods: Vec<_> = (0..3).map(|i| pod(i, Ready, 1)).collect();
    let workload = Workload { pods: &pods, current: 3, tolerance: TENTH, now: NOW.parse().unwrap() };
    assert_eq!(by_total(&workload, 8600, 4400).unwrap().replicas, 6, "ScaleUpCMExternal has a ratio of 1.95");
    assert_eq!(by_total(&workload, 4500, 4400).unwrap().replicas, 3);
    assert_eq!(by_share(3, TENTH, 8600, 2150).replicas, 4, "ScaleUpPerPodCMExternal");
    assert_eq!(by_share(3, TENTH, 8600, 2150).milli, 2867);
    assert_eq!(by_share(0, TENTH, 8600, 2150), Proposal { replicas: 4, utilization: None, milli: 0 });
    let none = Workload { pods: &[], ..workload };
    assert!(by_total(&none, 8600, 4400).is_err());
    assert_eq!(by_total(&Workload { current: 0, ..none }, 8600, 4400).unwrap().replicas, 2);
}

#[test]
fn a_pod_that_has_just_started_says_nothing_of_the_cpu() {
    let workload_at = |now: &str, used: i64| {
        let pods = [pod(0, Ready, 1000), pod(1, Ready, 1000)];
        let now: Timestamp = now.parse().unwrap();
        let workload = Workload { pods: &pods, current: 2, tolerance: TENTH, now };
        let sample = Sample { milli: used, at: now, window: Duration::from_secs(30) };
        let all: Samples = [("p0".to_owned(), sample), ("p1".to_owned(), sample)].into();
        Groups::of(&workload, &all, true)
    };
    assert_eq!(workload_at("2026-01-01T00:00:20Z", 5).unready.len(), 2, "its window began before it was ready");
    assert_eq!(workload_at("2026-01-01T00:00:40Z", 5).ready, 2);
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![Just(Ready), Just(Unready), Just(Pending), Just(Failed), Just(Ending)]
}

proptest! {
    /// More use never asks for fewer pods, and use at the target for no change.
    #[test]
    fn more_use_never_asks_for_fewer_pods(
        states in prop::collection::vec(state(), 1..12),
        used in prop::collection::vec(0i64..3000, 1..12),
        more in 0i64..2000,
        target in 1i32..200,
    ) {
        let current = states.iter().filter(|state| !matches!(state, Failed | Ending)).count() as i32;
        let used = &used[..used.len().min(states.len())];
        let grown: Vec<i64> = used.iter().map(|milli| milli + more).collect();
        let (before, after) = (percent(&states, 1000, used, current, target), percent(&states, 1000, &grown, current, target));
        if let (Ok(before), Ok(after)) = (before, after) {
            prop_assert!(after.replicas >= before.replicas, "{before:?} {after:?}");
            prop_assert!(before.replicas >= 0);
        }
    }

    #[test]
    fn at_the_target_nothing_changes(count in 1usize..20, target in 1i32..150) {
        let used = vec![i64::from(target) * 10; count];
        let current = count as i32;
        prop_assert_eq!(replicas(&vec![Ready; count], 1000, &used, current, target), current);
    }
}
