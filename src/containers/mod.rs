//! Layer 2: running containers from images.
//!
//! Two seams: [`Runtime`] (sandboxes and containers; real: [`runtime::ShimRuntime`], fake: [`fake::FakeRuntime`]) and
//! [`Images`] (pull, store, root file systems; real: [`image::ImageStore`], fake: [`fake::FakeImages`]).
//! Forking and namespace set-up never happen in the multi-threaded agent: it re-executes itself as one small
//! single-threaded `shim` per sandbox, which is parent, reaper and log writer of its containers and outlives the agent.
//! Invariant: everything this room leaves on a machine is under [`Config`]'s directories and its one cgroup root, and is
//! found again from there, never by process name.

mod blocking;
pub mod cgroup;
mod device_program;
mod error;
mod executable;
#[cfg(any(test, feature = "fakes", debug_assertions))]
pub mod fake;
pub mod hello;
mod idmap;
pub mod image;
mod killall;
pub mod memory;
mod oci;
pub mod runtime;
mod seccomp;
mod seccomp_filter;
mod session;
mod shim;
pub mod spec;
pub mod stats;
pub mod sysctl;
mod users;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

pub use error::{Error, Result};
pub use hello::hello_main;
pub use image::{Credentials, Image, ImageConfig, ImageError, Images};
pub use killall::{destroy_all, log_dirs, stop_all};
pub(crate) use runtime::unmount_below;
pub use session::{Session, SessionControl};
pub use shim::shim_main;
pub use spec::*;
pub use stats::{Device, Stats};
pub use users::lacks_for_users;

/// Where this room keeps things. Several of these can live on one machine, each with its own directories and root.
#[derive(Debug, Clone)]
pub struct Config {
    /// Survives reboots: image content and the writable layers of containers.
    pub data_dir: PathBuf,
    /// Gone after a reboot: one directory per sandbox with its run state and its shim's socket.
    pub run_dir: PathBuf,
    /// Name of the one cgroup (a path below the mount points) that holds all others, `amphipod` by default.
    pub cgroup_root: String,
    /// What is re-executed as `shim`; the running executable by default, which also works after its file was replaced.
    pub executable: PathBuf,
    /// A container's log file is rotated beyond this size.
    pub log_max_bytes: u64,
    /// How many log files a container keeps, the current one included.
    pub log_max_files: u32,
}

impl Config {
    /// The defaults, with the given directories.
    pub fn new(data_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cgroup_root: "amphipod".into(),
            executable: "/proc/self/exe".into(),
            log_max_bytes: 10 * 1024 * 1024,
            log_max_files: 5,
        }
    }

    /// The directory that holds one directory per sandbox.
    pub fn sandboxes_dir(&self) -> PathBuf {
        self.run_dir.join("sandboxes")
    }

    /// The directory of one sandbox's run state.
    pub fn sandbox_dir(&self, sandbox: &str) -> PathBuf {
        self.sandboxes_dir().join(sandbox)
    }

    /// The directory that holds the writable layer and root file system of one container.
    pub fn container_dir(&self, container: &str) -> PathBuf {
        self.data_dir.join("containers").join(container)
    }

    /// The content-addressed image store.
    pub fn images_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// Where users put archives with images, to be taken in.
    pub fn archives_dir(&self) -> PathBuf {
        self.data_dir.join("agent/images")
    }
}

/// What happened to a sandbox or container without the caller asking right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The container's first process ended; its status says how. Its logs are complete in the file.
    ContainerExited { sandbox: String, container: String },
    /// The shim is gone (killed, or the sandbox was removed): whatever it held is to be removed and made anew.
    SandboxGone { sandbox: String },
}

/// Runs sandboxes (the namespaces and cgroup of a pod) and containers in them.
///
/// Every call is idempotent where that has a meaning: stopping what has stopped and removing what is gone succeed.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes cgroup, namespaces and shim. On failure nothing remains.
    async fn create_sandbox(&self, spec: SandboxSpec) -> Result<Sandbox>;
    /// Creates and starts a container; its first process has passed `exec` of the given command when this returns
    /// its process id. On failure nothing of the container remains and the message says why (for the user's event).
    async fn start_container(&self, sandbox: &str, spec: ContainerSpec) -> Result<u32>;
    /// Sends a signal to the container's first process.
    async fn kill(&self, container: &str, signal: i32) -> Result<()>;
    /// Stop signal, then SIGKILL after `grace`; returns when the container has exited.
    async fn stop_container(&self, container: &str, grace: Duration) -> Result<()>;
    /// Kills the container if it runs, and forgets it. Its root file system and log files are the caller's.
    async fn remove_container(&self, container: &str) -> Result<()>;
    /// Kills everything in the sandbox and removes cgroup, namespaces, mounts and run state.
    async fn remove_sandbox(&self, sandbox: &str) -> Result<()>;
    /// Makes a user namespace for a pod, with ids that no other pod has, and a network namespace that belongs to it; the same
    /// again where they are there already, also after a restart.
    async fn make_users(&self, pod: &str) -> Result<Users>;
    /// Ends them, after everything that uses them; fine if there are none.
    async fn remove_users(&self, pod: &str) -> Result<()>;
    /// Pods that have users of their own, also from before a restart.
    async fn users_list(&self) -> Vec<String>;
    /// Why pods cannot have users of their own on this machine; `None` where they can. Tried once.
    async fn lacks_for_users(&self) -> Option<String>;
    /// Everything known, also what an earlier process of the agent started and what ended while no agent was there.
    async fn list(&self) -> Vec<Sandbox>;
    /// One container's status.
    async fn container(&self, container: &str) -> Option<ContainerStatus> {
        let sandboxes = self.list().await;
        sandboxes.into_iter().flat_map(|sandbox| sandbox.containers).find(|status| status.id == container)
    }
    /// Wakes on exits. The channel is bounded: a receiver that lags is told so and calls [`Runtime::list`].
    fn events(&self) -> broadcast::Receiver<Event>;
    /// Runs one more process in a container, under the container's user, capabilities, seccomp profile and limits.
    /// Dropping the session before it ended kills that process.
    async fn exec(&self, container: &str, spec: ExecSpec) -> Result<Session>;
    /// Connects to the first process's streams; what it prints goes on to the log as well. One that feeds standard input of a
    /// container that takes it once is the one that ends it.
    async fn attach(&self, container: &str, stdin: bool) -> Result<Session>;
    /// Changes limits in place; `None` leaves a limit as it is.
    async fn update_resources(&self, container: &str, resources: &Resources) -> Result<()>;
    /// Changes the limits of a whole sandbox in the same way.
    async fn update_sandbox(&self, sandbox: &str, resources: &Resources) -> Result<()>;
    /// What a container uses now.
    async fn stats(&self, container: &str) -> Result<Stats>;
    /// What a whole sandbox uses now.
    async fn sandbox_stats(&self, sandbox: &str) -> Result<Stats>;
    /// What the whole machine uses now.
    async fn machine_stats(&self) -> Stats;
    /// What all sandboxes together use now.
    async fn all_stats(&self) -> Stats;
}

/// A fresh random id of 64 hexadecimal digits, as container ids look everywhere.
pub fn new_id() -> String {
    let mut bytes = [0u8; 32];
    let random = ring::rand::SystemRandom::new();
    ring::rand::SecureRandom::fill(&random, &mut bytes).expect("the kernel always has random bytes");
    hex::encode(bytes)
}
