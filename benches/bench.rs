//! The promises of docs/promises.md, measured on this machine with the release build. Prints a table.
//!
//! Starts the real executable, server and node in one, in a network namespace and directories of its own and speaks HTTPS
//! to it as any client does, so the numbers hold TLS, JSON and the durable commit. Needs root and `ip`. The load comes
//! from one thread of this process on the same machine: it is kept lean on purpose and links nothing of the server.
//!
//! `scripts/bench [runs] [start] [idle] [scheduling] [pods] [api] [agents]`: by default 11 runs of everything, of loads 3.
//! `AMPHIPOD_BENCH_BINARY` names another executable to measure; directories are made under `TMPDIR`, which decides the disk.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "bench/agents.rs"]
mod agents;
#[path = "bench/load.rs"]
mod load;
#[path = "bench/machine.rs"]
mod machine;
#[path = "bench/pods.rs"]
mod pods;
#[path = "bench/scheduling.rs"]
mod scheduling;
#[path = "bench/table.rs"]
mod table;
#[path = "bench/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use machine::{Network, Server};
use table::{Table, median};

const RUNS: usize = 11;
const ROUNDS: usize = 3;
/// The store forgets history after five minutes: what an idle node costs from then on is the number that counts.
const UNTIL_IDLE: Duration = Duration::from_secs(330);
const IDLE: Duration = Duration::from_secs(120);

async fn starts(runs: usize, table: &mut Table) {
    let (mut first, mut again, mut node_first, mut node_again) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs {
        let directory = tempfile::tempdir().unwrap();
        for (api, node) in [(&mut first, &mut node_first), (&mut again, &mut node_again)] {
            let began = Instant::now();
            let mut server = Server::start(directory.path());
            let access = server.ready().await;
            api.push(began.elapsed().as_secs_f64() * 1e3);
            server.node_ready(&access).await;
            node.push(began.elapsed().as_secs_f64() * 1e3);
            server.stop();
        }
    }
    let mut row = |what: &str, values: &[f64], floor: &str| {
        let largest = values.iter().copied().fold(0.0, f64::max);
        table.row(what, &format!("{:.0} ms (at most {largest:.0})", median(values)), floor, values.len());
    };
    row("first start to `/readyz` (makes keys), median", &first, "< 500 ms");
    row("later start to `/readyz`, median", &again, "< 500 ms");
    row("first start to Ready node, median", &node_first, "< 1,000 ms");
    row("later start to Ready node, median", &node_again, "< 1,000 ms");
}

async fn idle(server: &Server, table: &mut Table) {
    tokio::time::sleep(UNTIL_IDLE).await;
    let (cpu, written) = (server.cpu(), server.written());
    tokio::time::sleep(IDLE).await;
    let share = (server.cpu() - cpu) / IDLE.as_secs_f64() * 100.0;
    let kb = (server.written() - written) as f64 / 1e3 * 60.0 / IDLE.as_secs_f64();
    let what = |figure: &str| format!("idle server with node, proxy and DNS, {figure}");
    table.row(&what("PSS"), &format!("{:.1} MB", server.pss()), "< 60 MB", 1);
    table.row(&what("CPU over 120 s"), &format!("{share:.2} % of a core"), "< 0.5 %", 1);
    table.row(&what("written over 120 s"), &format!("{kb:.1} kB/min"), "< 10 kB/min", 1);
}

async fn measure(runs: usize, network: &Network, wanted: impl Fn(&str) -> bool) {
    let rounds = ROUNDS.min(runs);
    let mut table = Table::begin();
    let size = std::fs::metadata(machine::binary()).unwrap().len() as f64 / 1e6;
    table.row("executable", &format!("{size:.1} MB"), "< 40 MB", 1);
    if wanted("start") {
        starts(runs, &mut table).await;
    }
    if wanted("scheduling") {
        scheduling::measure(rounds, &mut table).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::start(directory.path());
    let access = server.ready().await;
    server.node_ready(&access).await;
    if wanted("idle") {
        idle(&server, &mut table).await;
    }
    if wanted("pods") {
        pods::measure(&server, &access, runs, rounds, &mut table).await;
    }
    if wanted("api") {
        load::measure(&server, &access, rounds, &mut table).await;
    }
    if wanted("agents") {
        agents::measure(&server, network.name(), &access, rounds, &mut table).await;
    }
    server.stop();
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with("--")).collect();
    let runs = words.iter().find_map(|word| word.parse().ok()).unwrap_or(RUNS);
    let parts: Vec<String> = words.into_iter().filter(|w| w.parse::<usize>().is_err()).collect();
    let network = Network::enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, measure(runs, &network, |part| parts.is_empty() || parts.iter().any(|p| p == part)));
    drop(network);
}
