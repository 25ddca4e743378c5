//! The way out: ends every sandbox of this node and removes what this room made outside the data directory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Tree;
use super::error::Result;
use super::runtime::{SHIMS_CGROUP, discard, saved_sandboxes, unmount_below};
use super::users::users_dir;
use super::{Config, Error};

/// How often it is looked whether every container has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Ends every container, by SIGTERM and after `patience` by SIGKILL, and leaves everything on disk: for a machine that
/// shuts down, which has no time for processes that heed no signal.
pub fn stop_all(config: &Config, patience: Duration) -> Result<()> {
    let tree = Tree::new(&config.cgroup_root)?;
    let shims = tree.processes(SHIMS_CGROUP);
    let containers = || tree.processes("").into_iter().filter(|pid| !shims.contains(pid)).collect::<Vec<_>>();
    for pid in containers() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline && !containers().is_empty() {
        #[allow(clippy::disallowed_methods, reason = "the kernel gives no event for an empty version 1 cgroup")]
        std::thread::sleep(LOOK_AGAIN);
    }
    tree.kill("", Duration::from_secs(20));
    Ok(())
}

/// The log directories of the sandboxes that are there.
pub fn log_dirs(config: &Config) -> Vec<PathBuf> {
    saved_sandboxes(&config.sandboxes_dir()).into_iter().map(|saved| saved.spec.log_dir).collect()
}

/// Ends every shim and container, unmounts every root file system, removes all cgroups and the sandboxes' run state.
/// Works from what is on disk, with or without an agent. Goes on after an error and returns the first.
pub fn destroy_all(config: &Config) -> Result<()> {
    let tree = Tree::new(&config.cgroup_root)?;
    let mut first: Result<()> = Ok(());
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!(error = crate::base::error::chain(&error), "while removing everything");
            if first.is_ok() {
                first = Err(error);
            }
        }
    };
    for saved in saved_sandboxes(&config.sandboxes_dir()) {
        note(discard(config, &tree, &saved, true));
    }
    tree.kill("", Duration::from_secs(20));
    note(tree.remove(""));
    note(unmount_below(&config.run_dir));
    note(unmount_below(&config.data_dir.join("containers")));
    let (seccomp, cgroup) = (config.run_dir.join("seccomp"), config.run_dir.join("cgroup"));
    let users = users_dir(&config.run_dir);
    for path in [config.sandboxes_dir(), seccomp, cgroup, users, config.data_dir.join("containers")] {
        if let Err(source) = crate::base::tree::remove(&path) {
            note(Err(Error::Io { what: "removing", path, source }));
        }
    }
    first
}
