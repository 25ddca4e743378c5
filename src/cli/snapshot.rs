//! `amphipod snapshot`: take, show, restore and remove snapshots of a server.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::progress::Progress;
use super::{Directories, complain, output};
use crate::base::clock::{Clock, seconds_text};
use crate::node_paths::NodePaths;
use crate::server::snapshot;

#[derive(Debug, Args)]
pub struct SnapshotArgs {
    #[command(flatten)]
    directories: Directories,
    /// Where snapshots are [default: <data-dir>/server/snapshots]
    #[arg(global = true, long, env = "AMPHIPOD_SNAPSHOT_DIR", alias = "dir")]
    snapshot_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Take one now, while the server runs or not
    Save {
        /// How its name begins
        #[arg(long, default_value = "on-demand", value_parser = super::value::file_name)]
        name: String,
    },
    /// Show those there are
    #[command(alias = "ls")]
    List,
    /// Make this server what the snapshot holds; the server must not run
    Restore {
        /// Its name, as `list` shows it, or a file
        snapshot: PathBuf,
    },
    /// Remove all but the newest
    Prune {
        /// How many are kept
        #[arg(long, default_value_t = 5)]
        keep: usize,
    },
}

/// Runs the command.
pub fn run(args: SnapshotArgs) -> Result<()> {
    let server = args.directories.data_dir.join("server");
    let directory = args.snapshot_dir.unwrap_or_else(|| server.join("snapshots"));
    let clock = Clock::system();
    match args.command {
        SnapshotCommand::Save { name } => {
            let shown = Progress::of("taking a snapshot");
            let (path, about) = snapshot::save(&server, &directory, &name, &clock)?;
            drop(shown);
            complain(&format!("{} objects at revision {}", about.objects, about.revision));
            output(&path.display().to_string());
        }
        SnapshotCommand::List => {
            output(&format!("{:<50} {:<21} {:>10} {:>9}", "NAME", "CREATED", "REVISION", "OBJECTS"));
            for (path, about) in snapshot::list(&directory) {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                output(&match about {
                    Ok(a) => format!("{name:<50} {:<21} {:>10} {:>9}", seconds_text(a.created), a.revision, a.objects),
                    Err(why) => format!("{name:<50} cannot be used: {why:#}"),
                });
            }
        }
        SnapshotCommand::Restore { snapshot } => {
            // A name is looked for where `list` shows it.
            let listed = directory.join(&snapshot);
            let file = if snapshot.exists() { snapshot } else { listed };
            // Held until the end: no server starts meanwhile.
            let _claim = NodePaths::new(&args.directories.data_dir, &args.directories.run_dir).claim_data()?;
            if !file.exists() {
                bail!("{} is not there; `amphipod snapshot list` shows those there are", file.display());
            }
            let shown = Progress::of(&format!("restoring {}", file.display()));
            let (about, aside) = snapshot::restore(&file, &server, &clock)?;
            drop(shown);
            if let Some(aside) = aside {
                complain(&format!("what was there is kept as {}", aside.display()));
            }
            output(&format!(
                "restored {} objects as of {}; start the server now",
                about.objects,
                seconds_text(about.created)
            ));
        }
        SnapshotCommand::Prune { keep } => {
            for path in snapshot::prune(&directory, keep)? {
                output(&format!("{} removed", path.display()));
            }
        }
    }
    Ok(())
}
