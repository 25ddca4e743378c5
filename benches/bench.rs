//! The promises of docs/promises.md, measured on this machine with the release build. Prints a table.
//!
//! Starts the real executable in directories of its own with `--disable-agent` and speaks HTTPS to it as any client does,
//! so the numbers hold TLS, JSON and the durable commit. The numbers of a node (pods, their memory) are not here yet.
//! `cargo bench --bench bench -- [runs]` (5 by default).

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, clippy::too_many_lines)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use amphipod::wire::tls;
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};

const CLIENTS: usize = 50;
const CREATES: usize = 20_000;
const PODS: usize = 5_000;
const IDLE: Duration = Duration::from_secs(30);

struct Server {
    process: Child,
    directory: PathBuf,
    port: u16,
}

// === impl Server ===

impl Server {
    fn start(directory: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = |name: &str| directory.join(name).display().to_string();
        let process = Command::new(env!("CARGO_BIN_EXE_amphipod"))
            .args(["server", "--disable-agent", "--bind-address", "127.0.0.1"])
            .args(["--https-listen-port", &port.to_string(), "--data-dir", &path("data"), "--run-dir", &path("run")])
            .args(["--config-dir", &path("config"), "--write-kubeconfig", &path("kubeconfig.yaml")])
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, directory: directory.to_owned(), port }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig.yaml")
    }

    /// A client as the administrator; `None` while the kubeconfig is not written.
    fn client(&self) -> Option<Client> {
        let text = fs::read_to_string(self.kubeconfig()).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(": "))?;
            base64::engine::general_purpose::STANDARD.decode(line).ok()
        };
        let (chain, key) = (field("client-certificate-data")?, field("client-key-data")?);
        let tls = tls::client(&field("certificate-authority-data")?, Some((&chain, &key))).ok()?;
        let server = format!("https://127.0.0.1:{}", self.port).parse().unwrap();
        Some(Client::new(Target { server, tls, token: None, user_agent: "bench".into() }))
    }

    async fn ready(&self) -> Client {
        loop {
            if let Some(mut client) = self.client()
                && let Ok(response) = client.send(Request::get("/readyz").body(Full::default()).unwrap()).await
                && response.status().is_success()
            {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn stop(&mut self) {
        let _ = Command::new("kill").arg(self.process.id().to_string()).status();
        let _ = self.process.wait();
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap_or_default()
    }

    /// Proportional share of memory in kB.
    fn pss_kb(&self) -> u64 {
        field(&self.proc("smaps_rollup"), "Pss:")
    }

    /// Ticks of 10 ms in user and kernel mode.
    fn cpu_ticks(&self) -> u64 {
        let stat = self.proc("stat");
        let after = stat.rsplit(") ").next().unwrap_or_default();
        after.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum()
    }

    fn written_bytes(&self) -> u64 {
        field(&self.proc("io"), "write_bytes:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

async fn call(client: &mut Client, method: Method, path: &str, body: String) -> Bytes {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = client.send(request.body(Full::from(body)).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(status.is_success(), "{path}: {status} {}", String::from_utf8_lossy(&bytes));
    bytes
}

/// `count` creates by 50 clients, each on a connection of its own; answers how many there were per second.
async fn create(server: &Server, path: &'static str, count: usize, body: fn(usize) -> String) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(server.ready().await);
    }
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let tasks = clients.into_iter().map(|mut client| {
        let next = next.clone();
        amphipod::base::task::spawn("client", async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                call(&mut client, Method::POST, path, body(number)).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().expect("a client failed");
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn config_map(number: usize) -> String {
    format!(r#"{{"metadata":{{"name":"c{number}"}},"data":{{"key":"{}"}}}}"#, "x".repeat(100))
}

fn pod(number: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"p{number}","labels":{{"app":"bench"}}}},"spec":{{"automountServiceAccountToken":false,
        "nodeName":"nowhere","terminationGracePeriodSeconds":0,"containers":[{{"name":"c","image":"example.com/image:1",
        "env":[{{"name":"A","value":"b"}}],"ports":[{{"containerPort":80}}],
        "resources":{{"requests":{{"cpu":"10m","memory":"16Mi"}}}}}}]}}}}"#
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn row(what: &str, value: String, floor: &str, runs: usize) {
    println!("| {what} | {value} | {floor} | {runs} |");
}

async fn starts(runs: usize) {
    let (mut first, mut again) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let directory = tempfile::tempdir().unwrap();
        for list in [&mut first, &mut again] {
            let began = Instant::now();
            let mut server = Server::start(directory.path());
            server.ready().await;
            list.push(began.elapsed().as_secs_f64() * 1e3);
            server.stop();
        }
    }
    row("first start to /readyz (makes keys), median", format!("{:.0} ms", median(first)), "< 500 ms", runs);
    row("later start to /readyz, median", format!("{:.0} ms", median(again)), "< 500 ms", runs);
}

async fn idle(server: &Server) {
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cpu, written) = (server.cpu_ticks(), server.written_bytes());
    tokio::time::sleep(IDLE).await;
    let seconds = IDLE.as_secs_f64();
    let share = (server.cpu_ticks() - cpu) as f64 / seconds;
    let kb = (server.written_bytes() - written) as f64 / 1e3 * 60.0 / seconds;
    row("idle API server without a node, PSS", format!("{:.1} MB", server.pss_kb() as f64 / 1e3), "-", 1);
    row("idle API server without a node, CPU", format!("{share:.2} % of a core"), "< 0.5 %", 1);
    row("idle API server without a node, written", format!("{kb:.1} kB/min"), "< 10 kB/min", 1);
}

async fn measure(runs: usize) {
    let size = fs::metadata(env!("CARGO_BIN_EXE_amphipod")).unwrap().len() as f64 / 1e6;
    row("executable (release profile)", format!("{size:.1} MB"), "< 40 MB", 1);
    starts(runs).await;
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path());
    let mut client = server.ready().await;
    idle(&server).await;
    let namespace = r#"{"metadata":{"name":"bench"}}"#.to_owned();
    call(&mut client, Method::POST, "/api/v1/namespaces", namespace).await;
    let rate = create(&server, "/api/v1/namespaces/bench/configmaps", CREATES, config_map).await;
    row("ConfigMap creates, 50 clients, durable", format!("{rate:.0} /s"), "> 5,000 /s", CREATES);
    let rate = create(&server, "/api/v1/namespaces/bench/pods", PODS, pod).await;
    row("Pod creates, 50 clients, durable", format!("{rate:.0} /s"), "-", PODS);
    let (mut lists, mut bytes) = (Vec::new(), 0);
    for _ in 0..runs.max(10) {
        let began = Instant::now();
        bytes = call(&mut client, Method::GET, "/api/v1/pods", String::new()).await.len();
        lists.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let what = format!("list of 5,000 pods as JSON ({:.1} MB), median", bytes as f64 / 1e6);
    row(&what, format!("{:.0} ms", median(lists)), "< 60 ms", runs.max(10));
    let began = Instant::now();
    let options = r#"{"gracePeriodSeconds":0}"#.to_owned();
    call(&mut client, Method::DELETE, "/api/v1/namespaces/bench/pods", options).await;
    row("deletecollection of 5,000 pods", format!("{:.2} s", began.elapsed().as_secs_f64()), "< 3 s", 1);
    row("API server after all that, PSS", format!("{:.1} MB", server.pss_kb() as f64 / 1e3), "-", 1);
}

fn main() {
    let runs = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5);
    println!("| what | measured | floor | runs |\n|---|---|---|---|");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure(runs));
}
