//! The index: which images and layers there are, and what they came as.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::MutexGuard;

use serde::{Deserialize, Serialize};

use crate::base::file::{set_aside, write_atomically};
use crate::containers::image::access::{Access, Verdict};
use crate::containers::image::content::Content;
use crate::containers::image::error::io;
use crate::containers::image::{Credentials, Image, ImageError, Reference, Result};

/// The index as it was read last, and of which file.
pub(super) struct CachedIndex {
    pub(super) index: Index,
    pub(super) file: Option<FileStamp>,
}

/// Far more than any index takes.
pub(super) const INDEX_BYTES_MAX: u64 = 64 << 20;

/// Tells one state of a file that is only ever replaced from another: inode, size, seconds and nanoseconds.
pub(in crate::containers::image) type FileStamp = (u64, u64, i64, i64);

pub(in crate::containers::image) fn stamp(path: &Path) -> Option<FileStamp> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

pub(super) fn read_index(path: &Path) -> Result<CachedIndex> {
    // Before the content: who replaces it in between makes the next reader read again.
    let file = stamp(path);
    let index = match crate::base::file::read(path, INDEX_BYTES_MAX) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| ImageError::invalid("image index", error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Index::default(),
        Err(error) => return Err(io("reading", path)(error)),
    };
    Ok(CachedIndex { index, file })
}

/// The index at a start: one that cannot be used is set aside, and images are pulled again.
pub(super) fn first_index(directory: &Path) -> Result<Index> {
    let path = directory.join("index.json");
    let mut index = match read_index(&path) {
        Ok(known) => known.index,
        Err(error) => {
            tracing::error!(%error, "the image index cannot be used; images will be pulled again");
            set_aside(&path).map_err(io("setting aside", &path))?;
            Index::default()
        }
    };
    // A layer that it does not name may still be mounted, so its number is not given again.
    let names = fs::read_dir(directory.join("layers")).into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok());
    let highest = numbers.max().unwrap_or(0);
    if highest > index.next_layer {
        index.next_layer = highest;
        let bytes = serde_json::to_vec(&index).map_err(|error| ImageError::invalid("image index", error))?;
        write_atomically(&path, &bytes, 0o600).map_err(io("writing", &path))?;
    }
    Ok(index)
}

/// The index of one who holds the lock.
pub(super) struct Reading<'a>(pub(super) MutexGuard<'a, CachedIndex>);

impl std::ops::Deref for Reading<'_> {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.0.index
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(in crate::containers::image) struct Index {
    pub(super) images: BTreeMap<String, Entry>,
    /// By chain id.
    pub(super) layers: BTreeMap<String, Layer>,
    pub(super) next_layer: u64,
    /// Archives that were put into their directory, by file name.
    pub(in crate::containers::image) archives: BTreeMap<String, Archive>,
}

/// A file that was taken in, or could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::containers::image) struct Archive {
    pub file: FileStamp,
    /// Ids of its images.
    pub images: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) image: Image,
    pub(super) chain: Vec<String>,
    /// All that it came as, the latest first: one image may have several manifests. Empty when it came before any was kept.
    #[serde(default)]
    pub(super) contents: Vec<Content>,
    /// For whom it came, by repository; empty when it is everyone's or came before that was kept.
    #[serde(default)]
    pub(super) access: BTreeMap<String, Access>,
}

impl Entry {
    /// Whether other nodes may have it, and so everybody.
    pub(super) fn is_open(&self) -> bool {
        self.contents.is_empty() || self.contents.iter().any(|content| !content.private)
    }

    pub(super) fn verdict(&self, repository: &str, credentials: &[Credentials]) -> Verdict {
        match self.access.get(repository) {
            Some(access) => access.verdict(credentials),
            None if self.is_open() => Verdict::Yes,
            None => Verdict::No,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) number: u64,
    pub(super) size_bytes: u64,
}

impl Index {
    /// The id of the image that a user means.
    pub(super) fn find(&self, reference: &str) -> Option<String> {
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        if hex.len() >= 12 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let mut matches = self.images.keys().filter(|id| id["sha256:".len()..].starts_with(hex));
            if let (Some(id), None) = (matches.next(), matches.next()) {
                return Some(id.clone());
            }
        }
        let name = Reference::parse(reference).ok()?.to_string();
        let holds = |entry: &&Entry| entry.image.tags.contains(&name) || entry.image.digests.contains(&name);
        self.images.values().find(holds).map(|entry| entry.image.id.clone())
    }
}
