//! Where a node keeps its things.

use std::path::PathBuf;

use clap::Args;

/// Where this node keeps its things; movable so that several nodes can live on one machine.
#[derive(Clone, Debug, Args)]
pub struct Directories {
    /// What survives a reboot: database, keys, images
    #[arg(global = true, long, short = 'd', env = "AMPHIPOD_DATA_DIR", default_value = "/var/lib/amphipod")]
    pub data_dir: PathBuf,
    /// What does not: sockets, run state
    #[arg(global = true, long, env = "AMPHIPOD_RUN_DIR", default_value = "/run/amphipod")]
    pub run_dir: PathBuf,
    /// config.yaml, registries.yaml and the kubeconfig
    #[arg(global = true, long, env = "AMPHIPOD_CONFIG_DIR", default_value = "/etc/amphipod")]
    pub config_dir: PathBuf,
}
