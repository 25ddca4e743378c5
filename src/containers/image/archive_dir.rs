//! The directory into which users put archives: what is there at the start, and what comes, is taken in.
//!
//! A file is known by name, inode, size and time, so a start with unchanged archives reads none of them. Its images are
//! pinned as long as the file is there. What cannot be read is said, and tried again with the next change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::io;
use super::store::ImageStore;
use super::store::index::{Archive, FileStamp, stamp};
use super::{Images, Result};
use crate::base::directory::DirectoryWatch;
use crate::base::task;

/// What archives are called; other files are left alone.
const ENDINGS: [&str; 7] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst", ".oci"];

/// Takes in archives until it is dropped.
pub type Taking = tokio::task::JoinHandle<Option<()>>;

impl ImageStore {
    /// Begins to take in what is in the directory, which is made if needed. Pulls that fail meanwhile wait for the end.
    pub fn take_in(&self) -> Result<Taking> {
        let directory = self.inner.config.archives_dir();
        crate::base::file::make_private_dir(&directory).map_err(io("creating", &directory))?;
        // Before the first look, so that nothing is missed in between.
        let mut watch = DirectoryWatch::files(&directory).map_err(io("watching", &directory))?;
        let first = self.inner.taking_in.clone().try_write_owned();
        let store = self.clone();
        Ok(task::spawn("image archives", async move {
            store.take_in_all(&directory).await;
            drop(first);
            while watch.changed().await.is_ok() {
                let _busy = store.inner.taking_in.clone().write_owned().await;
                store.take_in_all(&directory).await;
            }
        }))
    }

    async fn take_in_all(&self, directory: &Path) {
        let look = directory.to_owned();
        let there = self.blocking(move |_| files(&look)).await;
        let known = self.inner.archives();
        for name in known.keys().filter(|name| !there.contains_key(*name)) {
            tracing::info!(file = name, "an image archive is gone; its images may be removed when nobody uses them");
            self.remember(name, None);
        }
        for (name, (path, file)) in there {
            let whole = known.get(&name).is_some_and(|archive| archive.file == file && self.has_all(archive));
            if whole {
                continue;
            }
            let images = match self.import(&path).await {
                Ok(images) => images,
                Err(error) => {
                    tracing::warn!(%error, file = %path.display(), "an image archive cannot be taken in");
                    self.remember(&name, None);
                    continue;
                }
            };
            for image in &images {
                tracing::info!(file = name, image = image.tags.join(", "), id = image.id, "an image was taken in");
            }
            self.remember(&name, Some(Archive { file, images: images.into_iter().map(|image| image.id).collect() }));
        }
    }

    fn has_all(&self, archive: &Archive) -> bool {
        archive.images.iter().all(|id| self.inner.image(id).is_some())
    }

    fn remember(&self, name: &str, archive: Option<Archive>) {
        if let Err(error) = self.inner.set_archive(name, archive) {
            tracing::warn!(%error, file = name, "what became of an image archive cannot be remembered");
        }
    }
}

/// The archives of a directory.
fn files(directory: &Path) -> BTreeMap<String, (PathBuf, FileStamp)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return BTreeMap::new() };
    let file = |entry: std::fs::DirEntry| {
        let (name, path) = (entry.file_name().into_string().ok()?, entry.path());
        let fits = !name.starts_with('.') && ENDINGS.iter().any(|ending| name.ends_with(ending)) && path.is_file();
        let stamp = stamp(&path)?;
        fits.then_some((name, (path, stamp)))
    };
    entries.flatten().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_told_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.tar", "b.tar.zst", "c.tgz", ".d.tar", "e.txt", "f.tar.part"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("g.tar")).unwrap();
        assert_eq!(files(dir.path()).into_keys().collect::<Vec<_>>(), ["a.tar", "b.tar.zst", "c.tgz"]);
    }
}
