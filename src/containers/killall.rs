//! The way out: ends every sandbox of this node and removes what this room made outside the data directory.

use std::path::PathBuf;
use std::time::Duration;

use super::cgroup::Tree;
use super::error::Result;
use super::runtime::{discard, saved_sandboxes, unmount_below};
use super::{Config, Error};

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
            tracing::warn!(error = super::error::chain(&error), "while removing everything");
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
    for path in [config.sandboxes_dir(), config.run_dir.join("seccomp"), config.data_dir.join("containers")] {
        match std::fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                note(Err(Error::Io { what: "removing", path, source }));
            }
            _ => {}
        }
    }
    first
}
