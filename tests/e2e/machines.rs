//! Several machines in one cluster: a network namespace each, joined by cables to one switch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cable::Switch;
use crate::lab::{BINARY, Process, first_processes, ip, run};

const PATIENCE: Duration = Duration::from_secs(40);
/// How long a node may be silent, in seconds.
pub const GRACE: u64 = 6;

/// The machines; the first one is the server. Everything of them is removed when it is dropped.
pub struct Machines {
    name: String,
    directory: tempfile::TempDir,
    pub all: Vec<Machine>,
    /// What joins them, where it is not the kernel.
    pub switch: Option<Switch>,
}

/// One machine.
pub struct Machine {
    pub name: String,
    pub address: String,
    directory: PathBuf,
    process: Option<Child>,
}

impl Machines {
    /// Machines with cables and nothing on them.
    pub fn prepare(name: &str, count: usize) -> Self {
        let mut machines = Self::without_cables(name, count);
        let switch = format!("{}-sw", machines.name);
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add bridge type bridge"));
        ip(&format!("-n {switch} link set bridge up"));
        for (n, machine) in (1..).zip(&machines.all) {
            ip(&format!("-n {} link add eth0 type veth peer name p{n} netns {switch}", machine.name));
            ip(&format!("-n {switch} link set p{n} master bridge up"));
        }
        machines.set_up();
        machines
    }

    /// As [`Machines::prepare`], with cables on which every frame is late and some are lost.
    pub fn prepare_slow(name: &str, count: usize, delay: Duration, loss_percent: f64) -> Self {
        let mut machines = Self::without_cables(name, count);
        let names: Vec<String> = machines.all.iter().map(|m| m.name.clone()).collect();
        machines.switch = Some(Switch::start(&names, delay, loss_percent));
        machines.set_up();
        machines
    }

    fn without_cables(name: &str, count: usize) -> Self {
        let name = format!("ac{}{name}", std::process::id() % 10_000);
        let directory = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        let mut all = Vec::new();
        for n in 1..=count {
            let (machine, address) = (format!("{name}-{n}"), format!("192.0.2.{n}"));
            ip(&format!("netns add {machine}"));
            let directory = directory.path().join(n.to_string());
            std::fs::create_dir(&directory).unwrap();
            all.push(Machine { name: machine, address, directory, process: None });
        }
        Self { name, directory, all, switch: None }
    }

    fn set_up(&mut self) {
        for Machine { name, address, .. } in &self.all {
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name} link set eth0 up"));
            ip(&format!("-n {name} route add default via 192.0.2.254"));
        }
    }

    /// A cluster: a server and agents that have joined, all Ready.
    pub fn start(name: &str, count: usize) -> Self {
        Self::prepare(name, count).joined()
    }

    /// With a server on the first one and agents that have joined on the others, all Ready.
    pub fn joined(self) -> Self {
        self.joined_with(&[])
    }

    /// The same with further flags of the server.
    pub fn joined_with(mut self, flags: &[&str]) -> Self {
        self.start_server(flags);
        let token = self.token();
        for n in 1..self.all.len() {
            self.start_agent(n, &token);
        }
        for n in 0..self.all.len() {
            self.until("all nodes are Ready", || self.is_ready(n));
        }
        self
    }

    /// The join token of the server.
    pub fn token(&self) -> String {
        let path = self.all[0].path("data/server/token");
        self.until("there is a token", || std::fs::read_to_string(&path).is_ok_and(|t| !t.is_empty()));
        std::fs::read_to_string(&path).unwrap().trim().to_owned()
    }

    /// Starts the server on the first machine.
    pub fn start_server(&mut self, flags: &[&str]) {
        let grace = format!("--node-monitor-grace-period={GRACE}");
        let machine = &mut self.all[0];
        machine.spawn(&[&["server", "--node-ip", &machine.address.clone(), &grace], flags].concat());
        self.until("the server answers", || {
            self.command(0, "kubectl").args(["get", "serviceaccount", "default"]).output().unwrap().status.success()
        });
    }

    /// Starts an agent on a machine; one that has joined needs no token.
    pub fn start_agent(&mut self, n: usize, token: &str) {
        self.start_agent_with(n, token, &[]);
    }

    /// The same with further flags.
    pub fn start_agent_with(&mut self, n: usize, token: &str, flags: &[&str]) {
        let server = format!("https://{}:6443", self.all[0].address);
        let machine = &mut self.all[n];
        let address = machine.address.clone();
        let joining: &[&str] = if token.is_empty() { &[] } else { &["--token", token] };
        machine.spawn(&[&["agent", "--server", &server, "--node-ip", &address], joining, flags].concat());
    }

    /// Whether the API says that the machine's node is ready.
    pub fn is_ready(&self, n: usize) -> bool {
        let output =
            self.command(0, "kubectl").args(["get", "node", &self.all[n].name, "-o", "json"]).output().unwrap();
        let node: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    }

    /// A program on a machine.
    pub fn command(&self, n: usize, program: &str) -> Command {
        let mut command = self.all[n].command(program);
        command.env("KUBECONFIG", self.all[0].path("etc/kubeconfig.yaml"));
        command
    }

    /// What kubectl prints on the server; it must succeed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        String::from_utf8(run(self.command(0, "kubectl").args(args)).stdout).unwrap()
    }

    /// What kubectl prints as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// The pods with a label that are not on their way out.
    pub fn pods(&self, label: &str) -> Vec<Value> {
        let all = self.json(&["get", "pods", "-l", label])["items"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null()).collect()
    }

    /// The first processes of a pod's containers.
    pub fn processes(&self, pod: &Value) -> Vec<Process> {
        let all: BTreeMap<String, Process> = first_processes();
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let id = |s: &Value| s["containerID"].as_str().unwrap_or("").replace("amphipod://", "");
        statuses.iter().filter_map(|s| all.get(&id(s)).cloned()).collect()
    }

    /// Runs a program in the network of a pod.
    pub fn in_pod(&self, pod: &Value, words: &[&str]) -> Option<String> {
        let process = self.processes(pod).into_iter().next()?;
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", process.pid)).args(words);
        let output = command.output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Pulls a machine's cable out, or plugs it in.
    pub fn cable(&self, n: usize, plugged: bool) {
        match &self.switch {
            Some(switch) => switch.plug(n, plugged),
            None => ip(&format!("-n {}-sw link set p{} {}", self.name, n + 1, if plugged { "up" } else { "down" })),
        }
    }

    /// Waits until it holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            if began.elapsed() > PATIENCE {
                let logs: Vec<String> = self.all.iter().map(|m| format!("== {}\n{}", m.name, m.log())).collect();
                let state = self.command(0, "kubectl").args(["get", "nodes,pods", "-o", "wide"]).output().unwrap();
                panic!("never: {what}\n{}\n{}", String::from_utf8_lossy(&state.stdout), logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Machine {
    /// A path in the machine's directory.
    pub fn path(&self, part: &str) -> PathBuf {
        self.directory.join(part)
    }

    /// What the machine's process has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The flags that name its directories.
    pub fn directories(&self) -> Vec<String> {
        [("data", "data"), ("run", "run"), ("config", "etc")]
            .iter()
            .map(|(flag, part)| format!("--{flag}-dir={}", self.path(part).display()))
            .collect()
    }

    /// A program on it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    /// Starts our executable on it, with its directories and its name.
    pub fn spawn(&mut self, args: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(BINARY);
        command.args(args).args(self.directories()).args(["--node-name", &self.name]);
        self.process = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    }

    /// Tells its process to stop, and waits for it; its pods go on.
    pub fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(process.wait().unwrap().success(), "an orderly end: {}", self.log());
    }

    /// kill -9 of its process; its pods go on.
    pub fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for machine in &mut self.all {
            if let Some(mut process) = machine.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
            let _ = machine.command(BINARY).arg("killall").args(machine.directories()).output();
            let _ = Command::new("ip").args(["netns", "del", &machine.name]).output();
        }
        let _ = Command::new("ip").args(["netns", "del", &format!("{}-sw", self.name)]).output();
        let _ = self.directory.path();
    }
}
