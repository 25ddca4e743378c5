//! A machine for the measurement: a network namespace that this process moves into, directories, the real server, and
//! what the kernel says of its processes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use serde_json::Value;

use crate::wire::Access;

const ADDRESS: &str = "192.0.2.1";
const PORT: u16 = 6443;
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/bench";
/// Nothing here takes longer unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The executable that is measured.
pub fn binary() -> PathBuf {
    std::env::var_os("AMPHIPOD_BENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_amphipod").into(), PathBuf::from)
}

/// A network of our own; this process and what it starts is in it.
pub struct Network(String);

/// A running server.
pub struct Server {
    process: Child,
    directory: PathBuf,
    began: jiff::Timestamp,
}

// === impl Network ===

impl Network {
    /// Must be called while the process has one thread.
    pub fn enter() -> Self {
        let name = format!("bench{}", std::process::id());
        for line in [
            format!("netns add {name}"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link add v0 type veth peer name v1"),
            format!("-n {name} addr add {ADDRESS}/24 dev v0"),
            format!("-n {name} link set v0 up"),
            format!("-n {name} link set v1 up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status().expect("ip (iproute2) is needed");
            assert!(status.success(), "ip {line}: run as root");
        }
        let namespace = fs::File::open(format!("/run/netns/{name}")).unwrap();
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        Self(name)
    }

    /// The name of its namespace.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

// === impl Server ===

impl Server {
    /// Starts the server; it is not ready yet.
    pub fn start(directory: &Path) -> Self {
        Self::start_with(directory, &[])
    }

    /// As [`Self::start`], with more flags.
    pub fn start_with(directory: &Path, flags: &[&str]) -> Self {
        let log = fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
        let mut command = Command::new(binary());
        command.arg("server").args(directories(directory)).args(["--node-name", "bench", "--node-ip", ADDRESS]);
        command.args(flags);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let began = jiff::Timestamp::now();
        Self { process: command.spawn().unwrap(), directory: directory.to_owned(), began }
    }

    /// The administrator's access; `None` while the kubeconfig is not written.
    pub fn access(&self) -> Option<Access> {
        let text = fs::read_to_string(self.directory.join("etc/kubeconfig.yaml")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix(": "))?;
            base64::engine::general_purpose::STANDARD.decode(line).ok()
        };
        let (chain, key) = (field("client-certificate-data")?, field("client-key-data")?);
        Some(Access::new(PORT, &field("certificate-authority-data")?, &chain, &key))
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) -> Access {
        let wait = async {
            loop {
                if let Some(access) = self.access()
                    && let Ok(mut connection) = access.connect().await
                    && let Ok((200, _)) = connection.ask(&crate::wire::request("GET", "/readyz", "")).await
                {
                    return access;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never ready: {}", self.log()))
    }

    /// Waits until the node says that it lives, in this run, and is Ready: what an earlier run said does not count.
    pub async fn node_ready(&self, access: &Access) {
        let mut connection = access.connect().await.unwrap();
        let wait = async {
            loop {
                let lease = connection.get(LEASE).await;
                let renewed = lease["spec"]["renewTime"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
                if renewed.is_some_and(|t| t >= self.began) && is_ready(&connection.get("/api/v1/nodes/bench").await) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("no Ready node: {}", self.log()));
    }

    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.process.wait();
    }

    /// Where its directories are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.process.id())).unwrap_or_default()
    }

    /// Proportional share of memory of the server alone, in megabytes.
    pub fn pss(&self) -> f64 {
        pss_of(self.process.id())
    }

    /// The same of the server and every shim that it started, and how many shims there are.
    pub fn pss_with_shims(&self) -> (f64, usize) {
        let run = self.directory.join("run").display().to_string();
        let mut all = (self.pss(), 0);
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.split('\0').nth(1) == Some("shim") && line.contains(&run) {
                all = (all.0 + pss_of(pid), all.1 + 1);
            }
        }
        all
    }

    /// Seconds of a processor in user and kernel mode.
    pub fn cpu(&self) -> f64 {
        seconds_of(self.process.id())
    }

    /// Bytes that it made the kernel write to a disk.
    pub fn written(&self) -> u64 {
        field(&self.proc("io"), "write_bytes:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = Command::new(binary()).arg("killall").args(directories(&self.directory)).output();
    }
}

/// Whether the object's Ready condition is true.
pub fn is_ready(object: &Value) -> bool {
    let all = object["status"]["conditions"].as_array();
    all.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Seconds of a processor that a process has had in user and kernel mode.
pub fn seconds_of(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(") ").next().unwrap_or_default();
    let ticks: u64 = after.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

/// The flags that name the directories below `root`.
pub fn directories(root: &Path) -> Vec<String> {
    let all = [("data", "data"), ("run", "run"), ("config", "etc")];
    all.iter().map(|(flag, part)| format!("--{flag}-dir={}", root.join(part).display())).collect()
}

/// Proportional share of memory of a process, in megabytes.
pub fn pss_of(pid: u32) -> f64 {
    field(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default(), "Pss:") as f64 * 1024.0 / 1e6
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}
