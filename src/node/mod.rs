//! The node agent: runs the pods that are bound to this node.
//!
//! One worker a pod turns what the API wants and what the kernel reports into steps of [`machine`], does what they ask for
//! ([`worker`]), and reports ([`status`]). Everything is woken by changes; nothing polls.

pub mod access;
pub mod admit;
mod advertised;
pub mod capacity;
pub mod env;
pub mod error;
pub mod files;
pub mod fit;
pub mod heartbeat;
pub mod host_ports;
pub mod http;
pub mod image_config;
pub mod image_gc;
pub mod launch;
pub mod logs;
pub mod loss;
pub mod machine;
pub mod pods;
pub mod probe_results;
pub mod probes;
pub mod pull;
pub mod reported;
pub mod resize;
pub mod sandbox_context;
pub mod spec;
pub mod status;
pub mod tunnel;
pub mod volumes;
pub mod worker;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::base::clock::Clock;
use crate::containers::{Images, Runtime};
use crate::net::{HostPort, PodNetwork, Unpublished};
use crate::reconcile::{Client, Recorder};

/// What differs from node to node.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Addresses at which others reach the node from outside.
    pub external_addresses: Vec<IpAddr>,
    /// Labels beside those that every node has.
    pub labels: Vec<(String, String)>,
    /// What the node says of itself from its first moment on.
    pub annotations: Vec<(String, String)>,
    /// `v1.Taint`s that the node registers with.
    pub taints: Vec<serde_json::Value>,
    /// Where its own endpoints listen; 0 for nowhere.
    pub kubelet_port: u16,
    /// How long the node may be silent before it counts as lost.
    pub grace: std::time::Duration,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Pod logs, `/var/log/pods` where users look for them.
    pub log_dir: PathBuf,
    /// The control group that holds all pods.
    pub cgroup_root: String,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Stands in for docker.io.
    pub default_registry: Option<String>,
    /// Parameters of the kernel beyond the safe ones that pods may set, see [`admit`].
    pub unsafe_sysctls: Vec<String>,
}

/// Everything a worker needs, shared by all of them.
pub struct Node {
    pub config: Config,
    pub client: Arc<dyn Client>,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn PodNetwork>,
    pub clock: Clock,
    pub recorder: Recorder,
    pub capacity: capacity::Capacity,
    /// The host ports of all pods, which the service proxy opens.
    pub host_ports: watch::Sender<Vec<HostPort>>,
    /// Those of them that the service proxy cannot open.
    pub unpublished: watch::Receiver<Vec<Unpublished>>,
    pub probe_results: probe_results::Results,
    /// CA of the API's certificates, PEM.
    pub ca: Vec<u8>,
}

// === impl Node ===

impl Node {
    /// Where the pod's own volumes are that survive a restart of its containers.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.data_dir.join("pods").join(uid)
    }

    /// Where what is made from API objects is: never on a disk where the run directory is none.
    pub fn pod_run_dir(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("pods").join(uid)
    }

    /// Where the small files of a pod are: a file system of its own.
    pub fn pod_files_dir(&self, uid: &str) -> PathBuf {
        self.pod_run_dir(uid).join("files")
    }

    /// Where the pod's logs are.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({})", self.config.name)
    }
}
