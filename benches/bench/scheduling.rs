//! How fast the scheduler gives pods a place among many nodes that exist in the API alone.
//!
//! Nodes and pods are made while the scheduler is off. Then the server starts again with it: what is measured is from there
//! until all pods are bound, decisions, durable bindings and events together, without the cost of the creates.

use std::fmt::Write;
use std::time::{Duration, Instant};

use crate::load::create;
use crate::machine::{PATIENCE, Server};
use crate::table::{Table, all, median};
use crate::wire::Access;

const PODS: usize = 5_000;
const ZONES: usize = 10;
const DEFAULT: &str = "/api/v1/namespaces/default/pods";

/// So many nodes, the pods they get, and what is promised.
struct Case {
    nodes: usize,
    what: &'static str,
    pod: fn(&mut String, usize),
    floor: &'static str,
}

const CASES: [Case; 4] = [
    Case { nodes: 100, what: "plain pods", pod: plain, floor: "> 5,000 /s" },
    Case { nodes: 1_000, what: "plain pods", pod: plain, floor: "> 3,000 /s" },
    Case { nodes: 5_000, what: "plain pods", pod: plain, floor: "> 2,000 /s" },
    Case { nodes: 5_000, what: "pods with required affinity and anti-affinity", pod: choosy, floor: "> 1,000 /s" },
];

/// The rows about the scheduler; `rounds` of each case.
pub async fn measure(rounds: usize, table: &mut Table) {
    for Case { nodes, what, pod, floor } in CASES {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            rates.push(scheduled_per_second(nodes, pod).await);
        }
        let row = format!("scheduled on {nodes} nodes, {PODS} {what}, bound durably, median");
        table.row(&row, &format!("{:.0} /s ({})", median(&rates), all(&rates, 0)), floor, rates.len());
    }
}

async fn scheduled_per_second(nodes: usize, pod: fn(&mut String, usize)) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start_with(directory.path(), &["--disable-agent", "--disable=scheduler"]);
    let access = server.ready().await;
    create(&access, "/api/v1/nodes", nodes, node).await;
    create(&access, DEFAULT, PODS, pod).await;
    server.stop();
    let mut server = Server::start_with(directory.path(), &["--disable-agent"]);
    let access = server.ready().await;
    let began = Instant::now();
    all_bound(&access).await;
    let rate = PODS as f64 / began.elapsed().as_secs_f64();
    server.stop();
    rate
}

async fn all_bound(access: &Access) {
    let mut connection = access.connect().await.unwrap();
    let wait = async {
        loop {
            let text = connection.call("GET", "/metrics", "").await;
            if bound(&String::from_utf8_lossy(&text)) >= PODS {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("not all pods were bound in time");
}

/// How many pods were bound since the start, as the server's metrics have it.
fn bound(metrics: &str) -> usize {
    let of_bound =
        |line: &&str| line.starts_with("scheduler_schedule_attempts_total") && line.contains("\"scheduled\"");
    metrics.lines().find(of_bound).and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn node(out: &mut String, number: usize) {
    let zone = number % ZONES;
    let has = r#"{"cpu":"32","memory":"64Gi","pods":"110"}"#;
    write!(
        out,
        r#"{{"metadata":{{"name":"n{number}","labels":{{"kubernetes.io/hostname":"n{number}",
        "topology.kubernetes.io/zone":"z{zone}"}}}},"status":{{"capacity":{has},"allocatable":{has},
        "conditions":[{{"type":"Ready","status":"True","reason":"KubeletReady"}}]}}}}"#
    )
    .unwrap();
}

fn plain(out: &mut String, number: usize) {
    write_pod(out, number, "plain", "{}");
}

/// By turns one that wants to be in a zone with those like it, and one that wants a node for itself.
fn choosy(out: &mut String, number: usize) {
    let (app, wish, topology) = match number % 2 {
        0 => ("near", "podAffinity", "topology.kubernetes.io/zone"),
        _ => ("apart", "podAntiAffinity", "kubernetes.io/hostname"),
    };
    let term = format!(r#"{{"topologyKey":"{topology}","labelSelector":{{"matchLabels":{{"app":"{app}"}}}}}}"#);
    let wishes = format!(r#"{{"{wish}":{{"requiredDuringSchedulingIgnoredDuringExecution":[{term}]}}}}"#);
    write_pod(out, number, app, &wishes);
}

/// A pod that stays, whatever is said of its node: nobody lives there.
fn write_pod(out: &mut String, number: usize, app: &str, affinity: &str) {
    write!(
        out,
        r#"{{"metadata":{{"name":"p{number}","labels":{{"app":"{app}"}}}},"spec":{{"automountServiceAccountToken":false,
        "tolerations":[{{"operator":"Exists"}}],"affinity":{affinity},"containers":[{{"name":"c","image":"example.com/image:1",
        "resources":{{"requests":{{"cpu":"10m","memory":"16Mi"}}}}}}]}}}}"#
    )
    .unwrap();
}
