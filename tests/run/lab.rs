//! A laboratory: own directories and cgroup root, a root file system made of busybox, all removed at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use amphipod::containers::runtime::ShimRuntime;
use amphipod::containers::{
    Config, ContainerSpec, ContainerState, ContainerStatus, Runtime, SandboxSpec, destroy_all, new_id,
};

pub struct Lab {
    pub config: Config,
    pub runtime: ShimRuntime,
    pub rootfs: PathBuf,
    pins: std::sync::Mutex<Vec<PathBuf>>,
    _directory: tempfile::TempDir,
}

/// Switches a network link of this thread's namespace on.
fn up(name: &str) {
    // SAFETY: an ioctl that reads the structure, on a socket of ours.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request), 0);
        libc::close(socket);
    }
}

impl Lab {
    pub async fn new() -> Self {
        Self::with_executable(env!("CARGO_BIN_EXE_amphipod").into()).await
    }

    /// Its shims are started from another file.
    pub async fn with_executable(executable: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(directory.path().join("data"), directory.path().join("run"));
        config.executable = executable;
        config.cgroup_root = format!("amphipod-test-{}", &new_id()[..8]);
        fs::create_dir_all(&config.data_dir).unwrap();
        let rootfs = directory.path().join("rootfs");
        busybox_rootfs(&rootfs);
        let runtime = ShimRuntime::open(config.clone()).await.unwrap();
        Self { config, runtime, rootfs, pins: Default::default(), _directory: directory }
    }

    pub fn sandbox_spec(&self) -> SandboxSpec {
        let id = new_id();
        SandboxSpec {
            cgroup_parent: format!("kubepods/burstable/pod{}", &id[..8]),
            log_dir: self.config.data_dir.join("logs").join(&id),
            hostname: "lab-pod".into(),
            pod_name: "lab-pod".into(),
            id,
            ..SandboxSpec::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.runtime.create_sandbox(self.sandbox_spec()).await.unwrap().spec.id
    }

    /// A container that runs a shell script.
    pub fn script(&self, script: &str) -> ContainerSpec {
        ContainerSpec {
            id: new_id(),
            name: "main".into(),
            rootfs: self.rootfs.clone(),
            args: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: Some(format!("{}.log", new_id()).into()),
            labels: BTreeMap::from([("test".into(), "yes".into())]),
            ..ContainerSpec::default()
        }
    }

    pub async fn start(&self, sandbox: &str, spec: ContainerSpec) -> String {
        let id = spec.id.clone();
        self.runtime.start_container(sandbox, spec).await.unwrap();
        id
    }

    pub async fn exit(&self, container: &str) -> ContainerStatus {
        exit_of(&self.runtime, container).await
    }

    /// Runs a script to its end: exit code and output.
    pub async fn run(&self, sandbox: &str, spec: ContainerSpec) -> (i32, String) {
        let id = self.start(sandbox, spec).await;
        let status = self.exit(&id).await;
        (status.exit_code().unwrap(), self.log(&status))
    }

    /// The texts of a log file.
    pub fn log(&self, status: &ContainerStatus) -> String {
        let raw = fs::read_to_string(status.log_path.as_ref().unwrap()).unwrap();
        raw.lines().map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap())).collect()
    }

    /// A network namespace with its loopback up, pinned in the laboratory's directory.
    pub fn netns(&self) -> PathBuf {
        let path = self.config.data_dir.join(format!("netns-{}", &new_id()[..8]));
        fs::write(&path, "").unwrap();
        let pin = path.clone();
        // A namespace belongs to a thread: use one of our own.
        let made = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            up("lo");
            let own = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
            let none: Option<&str> = None;
            nix::mount::mount(Some(own.as_str()), &pin, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        });
        made.join().unwrap();
        self.pins.lock().unwrap().push(path.clone());
        path
    }

    /// GET / on a port of the network namespace in which process `pid` lives; waits until it answers.
    pub async fn http_get_in(&self, pid: u32, port: u16) -> String {
        let ask = move || {
            let namespace = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            for _ in 0..500 {
                if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
                    return std::io::read_to_string(stream).unwrap();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            panic!("nobody listens on port {port}");
        };
        amphipod::base::task::blocking(move || std::thread::spawn(ask).join().unwrap()).await.unwrap()
    }

    pub fn new_runtime_config(&self) -> Config {
        self.config.clone()
    }
}

/// Waits for an exit through events, as a caller would.
pub async fn exit_of(runtime: &ShimRuntime, container: &str) -> ContainerStatus {
    let mut events = runtime.events();
    let wait = async {
        loop {
            let status = runtime.container(container).await.expect("the container is known");
            if matches!(status.state, ContainerState::Exited { .. }) {
                return status;
            }
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the container exits")
}

impl Drop for Lab {
    fn drop(&mut self) {
        destroy_all(&self.config).unwrap();
        for pin in self.pins.lock().unwrap().iter() {
            nix::mount::umount(pin).unwrap();
        }
        let leftovers = leftovers(&self.config);
        if !std::thread::panicking() {
            assert!(leftovers.is_empty(), "left behind: {leftovers:?}");
        }
    }
}

/// Mounts, cgroups and processes that still have to do with this laboratory.
fn leftovers(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let directory = config.run_dir.parent().unwrap().to_string_lossy().into_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&directory)).map(str::to_owned));
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let path = hierarchy.path().join(&config.cgroup_root);
        if path.symlink_metadata().is_ok() {
            found.push(path.display().to_string());
        }
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let cwd = fs::read_link(process.path().join("cwd")).unwrap_or_default();
        if cwd.starts_with(&directory) {
            found.push(process.path().display().to_string());
        }
    }
    found
}

pub fn busybox_rootfs(rootfs: &Path) {
    for name in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "sleep", "cat", "echo", "id", "true", "ls", "hostname", "head", "dd", "kill", "ps", "stty", "env",
        "mount", "grep", "tty", "touch", "mkdir", "seq", "wc", "tail", "ulimit", "unshare", "chroot", "nproc", "yes",
    ] {
        let _ = std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet));
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n").unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nweb:x:1000:\n").unwrap();
}
