//! `amphipod killall`: ends every pod of this node and removes everything outside of its data directory.
//!
//! Works from the directories alone, with or without what a server left in them, and goes on after an error. Invariant:
//! nothing of another node on the machine is touched, and nothing while a server still runs here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::Args;

use super::{Directories, complain, output};
use crate::base::{file, tree};
use crate::node_paths::{NodePaths, Ranges};
use crate::{containers, net};

/// How long containers may take to end when the machine shuts down.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);

/// Flags of `killall`.
#[derive(Clone, Debug, Args)]
pub struct KillallArgs {
    /// Only end the containers, as they wish and then at once, and keep everything: for a machine that shuts down
    #[arg(long)]
    shutdown: bool,
    #[command(flatten)]
    directories: Directories,
}

/// Runs the command.
pub fn run(args: &KillallArgs) -> Result<()> {
    let directories = &args.directories;
    if !nix::unistd::geteuid().is_root() {
        bail!("killall needs root");
    }
    file::keep_new_files_private();
    let place = NodePaths::new(&directories.data_dir, &directories.run_dir);
    let claim = if place.run_dir.exists() { Some(place.claim()?) } else { None };
    if place.data_dir.exists() {
        place.take_data_dir()?;
    }
    let mut failures = 0;
    let mut note = |what: &str, result: Result<()>| {
        if let Err(error) = result {
            failures += 1;
            complain(&format!("{what}: {error:#}"));
        }
    };
    let config = place.containers();
    if args.shutdown {
        return containers::stop_all(&config, SHUTDOWN_PATIENCE).context("the containers cannot be ended");
    }
    let logs = log_dirs(&place, &containers::log_dirs(&config));
    note("containers", containers::destroy_all(&config).map_err(Into::into));
    note("volumes", containers::unmount_below(&place.data_dir.join("pods")).map_err(Into::into));
    let ranges = place.recorded().unwrap_or_else(|error| {
        complain(&format!("what the server recorded cannot be read, the default ranges are used: {error}"));
        None
    });
    let network = place.network(&ranges.unwrap_or_else(default_ranges));
    note("network", net::destroy(&network).map_err(Into::into));
    for path in &logs {
        note("logs", remove(path));
    }
    // Made by the first pod; fails as it should while others have logs there.
    let _ = fs::remove_dir(place.log_dir());
    let kubeconfig = super::kubeconfig::path(directories);
    note("run directory", remove(&place.run_dir));
    note("kubeconfig", remove_kubeconfig(directories, &kubeconfig));
    drop(claim);
    if failures > 0 {
        bail!("not everything could be removed");
    }
    output(&format!("nothing of this node remains outside of {}", place.data_dir.display()));
    Ok(())
}

/// The ranges of a server that was started without flags.
fn default_ranges() -> Ranges {
    let net = |text: &str| text.parse().expect("written here");
    Ranges { pods: vec![net("10.42.0.0/24")], cluster: vec![net("10.42.0.0/16")], services: vec![net("10.43.0.0/16")] }
}

/// The logs of the sandboxes that are there, and of the pods whose volumes are in the data directory.
fn log_dirs(place: &NodePaths, of_sandboxes: &[PathBuf]) -> Vec<PathBuf> {
    let names = |path: &Path| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let mut uids = names(&place.data_dir.join("pods"));
    uids.extend(names(&place.run_dir.join("pods")));
    let ours = |name: &String| name.rsplit_once('_').is_some_and(|(_, uid)| uids.iter().any(|u| u == uid));
    let mut all: Vec<PathBuf> =
        names(&place.log_dir()).into_iter().filter(ours).map(|name| place.log_dir().join(name)).collect();
    all.extend(of_sandboxes.iter().filter(|path| path.starts_with(place.log_dir())).cloned());
    all.sort();
    all.dedup();
    all
}

/// The next start writes it again. One that is for another cluster stays, and so does everything else there.
fn remove_kubeconfig(directories: &Directories, path: &Path) -> Result<()> {
    let authority = fs::read(directories.data_dir.join("server/tls/ca.crt"));
    let (Ok(text), Ok(authority)) = (fs::read_to_string(path), authority) else { return Ok(()) };
    if text.contains(&base64::engine::general_purpose::STANDARD.encode(authority)) {
        fs::remove_file(path).with_context(|| format!("{} cannot be removed", path.display()))?;
        // Fails as it should while the user has something there.
        let _ = fs::remove_dir(&directories.config_dir);
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    tree::remove(path).with_context(|| format!("{} cannot be removed", path.display()))
}
