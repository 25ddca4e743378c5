//! A machine for one test: a network namespace, directories, a server in it, and kubectl.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The example that the quickstart deploys.
pub const HELLO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/examples/hello.yaml");
/// The machine's address, and that of its only neighbour.
pub const HOST: &str = "192.0.2.1";
pub const OUTSIDE: &str = "192.0.2.2";
pub const BINARY: &str = env!("CARGO_BIN_EXE_amphipod");
const PATIENCE: Duration = Duration::from_secs(30);

/// How many times slower than others the machine is said to be: the emulated one says so.
pub fn slowness() -> u32 {
    std::env::var("AMPHIPOD_TEST_SLOWNESS").map_or(1, |text| text.parse().expect("a number"))
}

/// The machine; everything of it is removed when it is dropped.
pub struct Lab {
    pub name: String,
    directory: tempfile::TempDir,
    server: Option<Child>,
    /// Our executable as it is now on this machine.
    pub binary: PathBuf,
    /// A process in whose mount namespace our executable runs; the host's if there is none.
    pub disk: Option<Child>,
}

/// A process, which is the same one only if it began at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub ticks: u64,
}

/// Runs it to a good end.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be run: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `ip`, to a good end.
pub fn ip(args: &str) {
    run(Command::new("ip").args(args.split(' ')));
}

/// The first process of every container on this machine, by the container's id.
pub fn first_processes() -> BTreeMap<String, Process> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let read = |part: &str| std::fs::read_to_string(entry.path().join(part)).unwrap_or_default();
        let first = read("status").lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"));
        // The fields after the name, which may have spaces; the start is the 22nd of all.
        let started = read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19)?.parse().ok());
        let cgroups = read("cgroup");
        let mut ids = cgroups.lines().filter_map(|l| l.rsplit('/').next()).filter(|n| n.len() == 64);
        if let (true, Some(ticks), Some(id)) = (first, started, ids.next()) {
            all.insert(id.to_owned(), Process { pid, ticks });
        }
    }
    all
}

impl Lab {
    /// A machine with a server that is Ready.
    pub fn start(name: &str) -> Self {
        let mut lab = Self::prepare(name);
        lab.start_server();
        lab
    }

    /// A machine without a server, and beside it, in a namespace of its own, the outside world.
    pub fn prepare(name: &str) -> Self {
        let name = format!("ae{}{name}", std::process::id() % 10_000);
        let outside = format!("{name}-o");
        ip(&format!("netns add {name}"));
        ip(&format!("netns add {outside}"));
        ip(&format!("-n {name} link add v0 type veth peer name v1 netns {outside}"));
        for (namespace, link, address) in [(&name, "v0", HOST), (&outside, "v1", OUTSIDE)] {
            ip(&format!("-n {namespace} link set lo up"));
            ip(&format!("-n {namespace} addr add {address}/24 dev {link}"));
            ip(&format!("-n {namespace} link set {link} up"));
        }
        let directory = tempfile::Builder::new().prefix(&name).tempdir().unwrap();
        Self { name, directory, server: None, binary: BINARY.into(), disk: None }
    }

    /// A path in the machine's directory.
    pub fn path(&self, part: &str) -> PathBuf {
        self.directory.path().join(part)
    }

    /// A program on the machine.
    pub fn command(&self, program: &str) -> Command {
        self.at(&self.name, program)
    }

    /// A program beside the machine.
    pub fn outside(&self, program: &str) -> Command {
        self.at(&format!("{}-o", self.name), program)
    }

    fn at(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{namespace}"));
        if let Some(disk) = self.disk.as_ref().filter(|_| program == BINARY) {
            command.arg(format!("--mount=/proc/{}/ns/mnt", disk.id()));
        }
        command.arg(if program == BINARY { self.binary.as_os_str() } else { program.as_ref() });
        command.env("KUBECONFIG", self.path("etc/kubeconfig.yaml"));
        for name in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
    }

    pub fn directories(&self) -> Vec<String> {
        [("data", "data"), ("run", "run"), ("config", "etc")]
            .iter()
            .map(|(flag, part)| format!("--{flag}-dir={}", self.path(part).display()))
            .collect()
    }

    /// Starts the server and waits until its node is Ready and every pod is taken over.
    pub fn start_server(&mut self) {
        self.start_server_with(&[]);
    }

    /// The same with further flags.
    pub fn start_server_with(&mut self, flags: &[&str]) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(BINARY);
        command.arg("server").args(self.directories()).args(["--node-name", &self.name, "--node-ip", HOST]);
        command.args(flags);
        self.server = Some(command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        self.until("the node is Ready", || {
            let answered = self.command("kubectl").args(["get", "nodes", "-o", "json"]).output().unwrap();
            let nodes: Value = serde_json::from_slice(&answered.stdout).unwrap_or_default();
            let conditions = nodes["items"][0]["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
        });
        self.until("the default service account is there", || {
            self.command("kubectl").args(["get", "serviceaccount", "default"]).output().unwrap().status.success()
        });
    }

    /// Kills the server as a power cut would, but leaves its pods.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// Tells the server to stop, and waits for it.
    pub fn stop_server(&mut self) {
        let mut server = self.server.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(server.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(server.wait().unwrap().success(), "an orderly end");
    }

    /// `amphipod killall`
    pub fn killall(&self) {
        run(self.command(BINARY).arg("killall").args(self.directories()));
    }

    /// What kubectl prints; it must succeed.
    pub fn kubectl(&self, args: &[&str]) -> String {
        String::from_utf8(run(self.command("kubectl").args(args)).stdout).unwrap()
    }

    /// What kubectl prints as JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.kubectl(&[args, &["-o", "json"]].concat())).unwrap()
    }

    /// The revision of the store.
    pub fn revision(&self) -> u64 {
        let list: Value = serde_json::from_str(&self.kubectl(&["get", "--raw", "/api/v1/nodes?limit=1"])).unwrap();
        list["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    /// A pod of the default namespace.
    pub fn pod(&self, name: &str) -> Value {
        self.json(&["get", "pod", name])
    }

    /// The first process of a pod.
    pub fn pod_pid(&self, pod: &str) -> i32 {
        let id = self.pod(pod)["status"]["containerStatuses"][0]["containerID"].as_str().unwrap().to_owned();
        first_processes().get(&id.replace("amphipod://", "")).unwrap_or_else(|| panic!("no process of {id}")).pid
    }

    /// Work on a thread in the machine's network namespace.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// What a page says, asked from the machine.
    pub fn curl(&self, url: &str) -> String {
        self.inside(&["curl", "-sS", "--max-time", "5", url])
    }

    /// Runs a program on the machine.
    pub fn inside(&self, words: &[&str]) -> String {
        String::from_utf8(run(self.command(words[0]).args(&words[1..])).stdout).unwrap()
    }

    /// Waits until it holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
            assert!(began.elapsed() < PATIENCE * slowness(), "never: {what}\n{log}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = self.command(BINARY).arg("killall").args(self.directories()).output();
        // Pods may have made trees on which the standard library's recursion ends the process.
        let _ = amphipod::base::tree::remove(self.directory.path());
        if let Some(mut disk) = self.disk.take() {
            let _ = disk.kill();
            let _ = disk.wait();
        }
        for namespace in [&self.name, &format!("{}-o", self.name)] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}
