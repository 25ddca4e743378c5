//! An agent on another machine: how long a join takes, what it costs at rest, and what the overlay leaves of the cable.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{PATIENCE, Server, binary, directories, is_ready, pss_of, seconds_of};
use crate::table::{Table, median};
use crate::wire::{Access, request};

const ADDRESS: &str = "192.0.2.2";
const PODS: &str = "/api/v1/namespaces/default/pods";
/// How long an agent rests before it counts, and how long it is watched.
const UNTIL_IDLE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(60);
const FLOW: Duration = Duration::from_secs(2);
const PORT: u16 = 7777;

/// An agent in a network namespace of its own, with a cable to the server's.
struct Agent {
    name: String,
    namespace: String,
    directory: tempfile::TempDir,
    process: Option<Child>,
}

impl Agent {
    fn start(namespace: &str, name: &str, token: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}")).arg(binary()).arg("agent");
        command.args([
            "--server",
            "https://192.0.2.1:6443",
            "--token",
            token,
            "--node-name",
            name,
            "--node-ip",
            ADDRESS,
        ]);
        command.args(directories(directory.path())).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = Some(command.spawn().unwrap());
        Self { name: name.into(), namespace: namespace.into(), directory, process }
    }

    async fn ready(&self, access: &Access) {
        let mut connection = access.connect().await.unwrap();
        let wait = async {
            while !is_ready(&connection.get(&format!("/api/v1/nodes/{}", self.name)).await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the agent is never Ready: {}", log()));
    }

    fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg(binary()).arg("killall");
        let _ = command.args(directories(self.directory.path())).output();
    }
}

/// The rows about agents; `here` is this process's own network namespace.
pub async fn measure(server: &Server, here: &str, access: &Access, runs: usize, table: &mut Table) {
    let there = format!("{here}-a");
    for line in [
        format!("netns add {there}"),
        format!("-n {here} link set v1 netns {there}"),
        format!("-n {there} link set lo up"),
        format!("-n {there} addr add {ADDRESS}/24 dev v1"),
        format!("-n {there} link set v1 up"),
    ] {
        assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
    }
    let token = fs::read_to_string(server.directory().join("data/server/token")).unwrap();
    let mut joins = Vec::new();
    let mut agent = None;
    for run in 0..runs {
        drop(agent.take());
        let began = Instant::now();
        let joining = Agent::start(&there, &format!("agent-{run}"), token.trim());
        joining.ready(access).await;
        joins.push(began.elapsed().as_secs_f64() * 1e3);
        agent = Some(joining);
    }
    let agent = agent.expect("there is a run");
    let largest = joins.iter().copied().fold(0.0, f64::max);
    let value = format!("{:.0} ms (at most {largest:.0})", median(&joins));
    table.row("agent, from its start to Ready node, first join, median", &value, "< 2,000 ms", joins.len());

    tokio::time::sleep(UNTIL_IDLE).await;
    let before = seconds_of(agent.pid());
    tokio::time::sleep(IDLE).await;
    let share = (seconds_of(agent.pid()) - before) / IDLE.as_secs_f64() * 100.0;
    table.row("idle agent with proxy and DNS, PSS", &format!("{:.1} MB", pss_of(agent.pid())), "< 30 MB", 1);
    table.row("idle agent, CPU over 60 s", &format!("{share:.2} % of a core"), "< 0.3 %", 1);
    throughput(server, &agent, here, access, table).await;
    drop(agent);
    let _ = Command::new("ip").args(["netns", "del", &there]).status();
}

/// Pod to pod against machine to machine, over the same cable, in turns.
async fn throughput(server: &Server, agent: &Agent, here: &str, access: &Access, table: &mut Table) {
    let from = pod(access, "flow-here", "bench", server.directory()).await;
    let to = pod(access, "flow-there", &agent.name, agent.directory.path()).await;
    let host = |name: &str| PathBuf::from(format!("/run/netns/{name}"));
    let cable: SocketAddr = format!("{ADDRESS}:{PORT}").parse().unwrap();
    let overlay: SocketAddr = format!("{}:{PORT}", to.1).parse().unwrap();
    let (mut hosts, mut pods) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        hosts.push(flow(host(here), host(&agent.namespace), cable));
        pods.push(flow(from.0.clone(), to.0.clone(), overlay));
    }
    let (host, pod) = (median(&hosts), median(&pods));
    let value = format!("{:.0} % ({:.2} of {:.2} GB/s)", pod / host * 100.0, pod / 1e9, host / 1e9);
    table.row("pod to pod over VXLAN, of machine to machine on the same cable, median", &value, "> 75 %", 3);
    let mut connection = access.connect().await.unwrap();
    for name in ["flow-here", "flow-there"] {
        let _ = connection.ask(&request("DELETE", &format!("{PODS}/{name}?gracePeriodSeconds=0"), "")).await;
    }
}

/// A pod on a node: its network namespace and its address.
async fn pod(access: &Access, name: &str, node: &str, directory: &Path) -> (PathBuf, String) {
    let body = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "c", "image": "amphipod.local/hello"}]},
    });
    let mut connection = access.connect().await.unwrap();
    connection.ask(&request("POST", PODS, &body.to_string())).await.unwrap();
    let wait = async {
        loop {
            let found: Value = connection.get(&format!("{PODS}/{name}")).await;
            if is_ready(&found) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, wait).await.expect("the pod becomes ready");
    let pins = fs::read_dir(directory.join("run/netns")).unwrap();
    let pin = pins.flatten().map(|e| e.path()).next().expect("the pod's namespace is pinned");
    (pin, found["status"]["podIP"].as_str().unwrap().to_owned())
}

/// Bytes a second through one TCP connection between two network namespaces.
fn flow(from: PathBuf, to: PathBuf, address: SocketAddr) -> f64 {
    let enter = |namespace: &Path| {
        let namespace = fs::File::open(namespace).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    };
    let (listening, ready) = std::sync::mpsc::sync_channel(1);
    let receiver = std::thread::spawn(move || {
        enter(&to);
        let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT))).unwrap();
        listening.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 256 << 10];
        let (began, mut bytes) = (Instant::now(), 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return bytes as f64 / began.elapsed().as_secs_f64(),
                n => bytes += n,
            }
        }
    });
    ready.recv().unwrap();
    let sender = std::thread::spawn(move || {
        enter(&from);
        let mut stream = TcpStream::connect(address).unwrap();
        let (began, buffer) = (Instant::now(), vec![0; 256 << 10]);
        while began.elapsed() < FLOW {
            stream.write_all(&buffer).unwrap();
        }
    });
    sender.join().unwrap();
    receiver.join().unwrap()
}
