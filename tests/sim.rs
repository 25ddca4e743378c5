//! Deterministic simulation of the control plane: the real API on the model store, the real controllers and scheduler,
//! pretended nodes, one thread, a clock that jumps, and everything random from one seed.
//!
//! A failure prints the seed and what happened; `AMPHIPOD_SIM_SEED=<seed>` repeats it alone, `AMPHIPOD_SIM_SEEDS=<n>`
//! runs that many, `AMPHIPOD_SIM_TRACE=1` prints the trace also of what holds.

#![allow(clippy::unwrap_used)] // A test that cannot go on says where.

#[path = "sim/checkers.rs"]
mod checkers;
#[path = "sim/commits.rs"]
mod commits;
#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/follower.rs"]
mod follower;
#[path = "sim/node.rs"]
mod node;
#[path = "sim/places.rs"]
mod places;
#[path = "sim/rest.rs"]
mod rest;
#[path = "sim/scenario.rs"]
mod scenario;
#[path = "sim/world.rs"]
mod world;

/// Seeds of a normal run.
const SEEDS: u64 = 20;

fn paused() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime can be built")
}

fn run(seed: u64) -> world::Outcome {
    paused().block_on(scenario::run(seed))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_seed_keeps_the_invariants_and_comes_to_rest() {
    let seeds: Vec<u64> = match number("AMPHIPOD_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("AMPHIPOD_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let outcome = run(seed);
        if number("AMPHIPOD_SIM_TRACE").is_some() || !outcome.violations.is_empty() {
            for line in &outcome.trace {
                println!("{line}");
            }
            println!("seed {seed}: {}", outcome.violations.join("\n"));
        }
        if !outcome.violations.is_empty() {
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?} failed: repeat one with AMPHIPOD_SIM_SEED=<seed>");
}

#[test]
fn a_seed_repeats_itself() {
    let (a, b) = (run(7), run(7));
    let differs = a.trace.iter().zip(&b.trace).position(|(x, y)| x != y);
    let text = |o: &world::Outcome, i: usize| o.trace[i.saturating_sub(5)..(i + 3).min(o.trace.len())].join("\n");
    assert!(differs.is_none(), "the runs part:\n{}\n\n{}", text(&a, differs.unwrap()), text(&b, differs.unwrap()));
    assert_eq!(a.trace.len(), b.trace.len());
}

/// One commit each: the Deployment as asked for, its revision, its status with the new set, then with the pod, then complete
/// (5); the set, its status with the pod, then with the pod ready (3); the pod, its binding, its first report and its
/// Ready (4).
const ROLLOUT_COMMITS: usize = 12;

#[test]
fn a_rollout_of_one_replica_holds_its_budget_of_commits() {
    for seed in 1..=5 {
        let mut commits = paused().block_on(commits::of_a_rollout(seed));
        // The node tells of the image that it has pulled: once an image, not once a pod.
        commits.retain(|c| !c.starts_with("/core/nodes/"));
        assert!(commits.len() <= ROLLOUT_COMMITS, "{} commits:\n{}", commits.len(), commits.join("\n"));
    }
}

#[test]
fn a_pod_whose_users_cannot_be_told_apart_from_the_machines_does_not_run() {
    let told = paused().block_on(commits::of_users_that_cannot_be("Linux 6.3 or newer is needed"));
    let expected = "Failed to create pod sandbox: user namespaces are not supported by this node (hostUsers: false): Linux 6.3 or newer is needed";
    assert_eq!(told, [expected]);
}

#[test]
fn an_idle_node_writes_once_an_hour() {
    let commits = paused().block_on(commits::of_an_idle_hour());
    assert!(commits.len() <= 1, "{} commits:\n{}", commits.len(), commits.join("\n"));
}
