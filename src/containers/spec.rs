//! What callers say about sandboxes and containers, and what they are told: plain values, no behaviour.
//!
//! They are also the run state on disk, so every field keeps its name, and new ones get `#[serde(default)]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A pod's share of the kernel: namespaces, cgroup, one shim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxSpec {
    /// Unique; see [`crate::containers::new_id`].
    pub id: String,
    /// The pod's namespace, name, uid and how often its sandbox was made before.
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    pub attempt: u32,
    /// Set in the sandbox's own UTS namespace; ignored with `host_network`-like sandboxes that have none.
    pub hostname: String,
    /// Path of the network namespace; `None` is the host's.
    pub netns: Option<PathBuf>,
    pub host_ipc: bool,
    pub host_pid: bool,
    /// One process namespace for all containers, whose first process is the sandbox's own tiny reaper.
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    /// Below the cgroup root, e.g. `kubepods/burstable/pod<uid>`; containers are its children.
    pub cgroup_parent: String,
    /// Limits of the pod as a whole.
    pub resources: Resources,
    /// Where relative [`ContainerSpec::log_path`]s go, e.g. `/var/log/pods/<ns>_<name>_<uid>`.
    pub log_dir: PathBuf,
    /// Size of the /dev/shm that its containers share; 64 MiB when `None`.
    pub shm_bytes: Option<u64>,
    /// The pod's own users, from [`crate::containers::Runtime::make_users`]; `None` is the machine's.
    pub users: Option<Users>,
    /// For the caller; kept and given back as they are.
    pub labels: BTreeMap<String, String>,
}

/// A user namespace: ids from 0 on inside are ids of the machine from another number on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// Where the user namespace is pinned.
    pub namespace: PathBuf,
    /// Where a network namespace that belongs to it is pinned.
    pub netns: PathBuf,
    /// What the machine calls its user and group 0.
    pub first_id: u32,
    pub count: u32,
}

impl Users {
    /// What the machine calls one of its ids.
    pub fn on_the_machine(&self, id: u32) -> Option<u32> {
        (id < self.count).then_some(self.first_id + id)
    }
}

/// Limits. `None` means no limit, or in an update: unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight, 2 to 262144 (1024 a core).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time per period; -1 is no limit.
    pub cpu_quota: Option<i64>,
    /// Microseconds; 100000 when only a quota is given.
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub memory_limit_bytes: Option<u64>,
    pub pids_limit: Option<u64>,
}

/// One container.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// As [`crate::containers::Images::prepare_rootfs`] returned it.
    pub rootfs: PathBuf,
    /// Entry point and arguments; the first is looked up in the container's PATH.
    pub args: Vec<String>,
    /// In order; a later one of the same name wins.
    pub env: Vec<(String, String)>,
    /// `/` when empty; made if missing.
    pub cwd: String,
    pub user: User,
    pub capabilities: CapabilityChange,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    /// A process whose process namespace it is to share; the sandbox's shared one or its own when `None`.
    pub pid_namespace_of: Option<u32>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// A profile that is loaded on this host.
    pub app_armor: Option<String>,
    /// `procMount: Unmasked` shows all of /proc and /sys.
    pub unmasked_proc: bool,
    pub mounts: Vec<Mount>,
    /// Directories of the root file system that are to be mounts of their own, for writing, and are made where they are missing.
    pub volumes: Vec<PathBuf>,
    pub devices: Vec<Device>,
    pub resources: Resources,
    pub oom_score_adj: Option<i32>,
    pub tty: bool,
    /// Keep standard input open for attach.
    pub stdin: bool,
    /// Close standard input after the first attach ended.
    pub stdin_once: bool,
    /// Absolute, or relative to the sandbox's `log_dir`. `None`: output is dropped.
    pub log_path: Option<PathBuf>,
    /// SIGTERM when `None`.
    pub stop_signal: Option<i32>,
    pub rlimits: Vec<Rlimit>,
    /// For the caller; kept and given back as they are.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// Names without the `CAP_` prefix or with it; `ALL` means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilityChange {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The profile that container runtimes apply by default.
    #[default]
    RuntimeDefault,
    /// No profile, as the user said.
    Unconfined,
    /// Nobody said anything: everything but what makes control groups writable.
    Unsaid,
    /// A profile in Docker's or OCI's JSON format on this host.
    Localhost(PathBuf),
}

/// A mount that the caller adds to the usual ones (/proc, /dev, /sys, ...); one of the same path replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub container_path: PathBuf,
    pub read_only: bool,
    pub source: MountSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A directory, file, socket or device of the host.
    Bind {
        host_path: PathBuf,
        propagation: Propagation,
    },
    Tmpfs {
        size_bytes: Option<u64>,
    },
    /// What [`crate::containers::Images::prepare_volume`] answered, or a part of it: for reading only, and nothing in it is executed.
    Image {
        host_path: PathBuf,
    },
    /// A directory of the container's own root file system, held under another name.
    OfRootfs {
        host_path: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    /// Some of `rwm`.
    pub permissions: String,
}

/// E.g. `RLIMIT_NOFILE`. What this process may not raise is lowered to what it may, with a warning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// One more process in a running container.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExecSpec {
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub env: Vec<(String, String)>,
    /// The container's own when `None`.
    pub user: Option<User>,
    pub cwd: Option<String>,
}

/// A sandbox as it is now.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    pub spec: SandboxSpec,
    /// The shim's process id: `/proc/<pid>/ns/{net,ipc,uts}` are the sandbox's.
    pub pid: u32,
    /// False when the shim is gone: its containers are lost, remove the sandbox.
    pub alive: bool,
    pub created_at: Timestamp,
    pub containers: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerStatus {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// 0 until it runs.
    pub pid: u32,
    pub state: ContainerState,
    pub log_path: Option<PathBuf>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Being started; becomes Running, or vanishes when the start fails.
    Created,
    /// Becomes Exited.
    Running { started_at: Timestamp },
    /// Final.
    Exited {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
        signal: Option<i32>,
        oom_killed: bool,
        started_at: Timestamp,
        finished_at: Timestamp,
    },
}

impl ContainerStatus {
    /// Whether the first process is alive.
    pub fn is_running(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. })
    }

    /// The exit code, once it has exited.
    pub fn exit_code(&self) -> Option<i32> {
        match self.state {
            ContainerState::Exited { code, .. } => Some(code),
            ContainerState::Created | ContainerState::Running { .. } => None,
        }
    }
}
