//! `amphipod image`: the node's own store, with or without a running server.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::progress::{Progress, size};
use super::{Directories, complain, output};
use crate::containers::Images;
use crate::containers::image::{Image, ImageStore, Registries};
use crate::node_paths::NodePaths;

/// Stands for the name of an image that has none.
const NAMELESS: &str = "<none>";

/// Flags of `image`.
#[derive(Clone, Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    directories: Directories,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// List what is there
    Ls,
    /// Take in a docker-archive or OCI-layout file, plain or compressed
    Import {
        /// The file
        file: PathBuf,
        /// What images are called that have no name there, or only a tag
        #[arg(long, alias = "base-name")]
        name: Option<String>,
    },
    /// Write images into one archive, as OCI layout and docker archive at once
    #[command(visible_alias = "save")]
    Export {
        /// Names, or ids
        #[arg(required = true)]
        references: Vec<String>,
        /// The file; .gz, .tgz, .zst or .tzst at its end compresses it
        #[arg(long, short)]
        output: PathBuf,
    },
    /// Download an image, with the mirrors and logins of registries.yaml
    Pull {
        /// Its name
        reference: String,
    },
    /// Remove a name, and the image with its last name
    Rm {
        /// Name, or id
        #[arg(required = true)]
        references: Vec<String>,
    },
}

/// Runs the command.
pub fn run(args: ImageArgs) -> Result<()> {
    let directories = &args.directories;
    let config = NodePaths::new(&directories.data_dir, &directories.run_dir).containers();
    let path = directories.config_dir.join("registries.yaml");
    let registries = Registries::load(&path).with_context(|| path.display().to_string())?;
    let store = ImageStore::open(&config, registries)
        .with_context(|| format!("the images under {} cannot be used (this needs root)", config.data_dir.display()))?;
    // Layers are unpacked on other threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work(&store, args.command))
}

async fn work(store: &ImageStore, command: Command) -> Result<()> {
    match command {
        Command::Ls => list(&store.list().await).iter().for_each(|line| output(line)),
        Command::Import { file, name } => {
            let shown = Progress::of(&format!("importing {}", file.display()));
            let images = match &name {
                Some(name) => store.import_as(&file, name).await?,
                None => store.import(&file).await?,
            };
            drop(shown);
            for image in images {
                // With the names that it had before, if it was there.
                match [&image.tags, &image.digests].into_iter().find(|names| !names.is_empty()) {
                    Some(names) => output(&format!("imported {}", names.join(", "))),
                    None => {
                        output(&format!("imported {}", image.id));
                        complain(
                            "this image has no name in the archive: import it again with --name NAME to give it one",
                        );
                    }
                }
            }
        }
        Command::Export { references, output: file } => {
            let shown = Progress::of(&format!("exporting {}", references.join(", ")));
            store.export(&references, &file).await?;
            drop(shown);
            output(&format!("exported {} to {}", references.join(", "), file.display()));
        }
        Command::Pull { reference } => {
            let shown = Progress::of(&format!("pulling {reference}"));
            let image = store.pull(&reference, &[]).await?;
            drop(shown);
            output(&format!("pulled {reference} ({})", short(&image.id)));
        }
        Command::Rm { references } => {
            for reference in references {
                store.remove(&reference).await?;
                output(&format!("removed {reference}"));
            }
        }
    }
    Ok(())
}

fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// A head line, then a line per name.
fn list(images: &[Image]) -> Vec<String> {
    let mut rows = vec![("IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned())];
    for image in images {
        let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
        let none = [NAMELESS.to_owned()];
        for name in if names.is_empty() { &none[..] } else { names } {
            rows.push((name.clone(), short(&image.id).to_owned(), size(image.size_bytes)));
        }
    }
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    rows.iter().map(|(name, id, size)| format!("{name:<width$}  {id:<12}  {size:>9}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::image::ImageConfig;

    #[test]
    fn every_image_is_listed_by_its_names_or_without_one() {
        let image = |tags: &[&str], digests: &[&str]| Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            digests: digests.iter().map(|t| (*t).to_owned()).collect(),
            size_bytes: 7,
            pinned: true,
            last_used: jiff::Timestamp::UNIX_EPOCH,
            config: ImageConfig::default(),
        };
        let lines = list(&[image(&["a:1", "b:2"], &["a@d"]), image(&[], &["c@d"]), image(&[], &[])]);
        let shown: Vec<Vec<&str>> = lines.iter().map(|l| l.split_whitespace().take(2).collect()).collect();
        let id = "abababababab";
        assert_eq!(shown, [["IMAGE", "ID"], ["a:1", id], ["b:2", id], ["c@d", id], ["<none>", id]]);
    }
}
