//! Tells when something in a directory changes, without looking at it again and again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// What is told of files that are whole: they came, were closed after a write, or went.
const FILES: WatchFlags =
    WatchFlags::CLOSE_WRITE.union(WatchFlags::MOVED_TO).union(WatchFlags::MOVED_FROM).union(WatchFlags::DELETE);
/// Bytes of an event before its name: watch, mask, cookie and length of the name, 4 each.
const EVENT_HEADER: usize = 16;

/// A watch on the entries of one directory.
#[derive(Debug)]
pub struct DirectoryWatch {
    /// Read like a pipe: bytes are there when something has changed.
    events: Receiver,
}

/// A watch on the files of a directory and of those below it.
#[derive(Debug)]
pub struct TreeWatch {
    events: Receiver,
    root: PathBuf,
    /// By the kernel's number for the watch.
    directories: BTreeMap<i32, PathBuf>,
}

// === impl DirectoryWatch ===

impl DirectoryWatch {
    /// Watches its files from now on: a file counts when it is closed, so that nobody reads half of one. Must be called
    /// inside a tokio runtime.
    pub fn files(directory: &Path) -> io::Result<Self> {
        Self::new(directory, FILES)
    }

    /// Watches from now on what is written into its files, while it is written. Must be called inside a tokio runtime.
    pub fn writes(directory: &Path) -> io::Result<Self> {
        Self::new(directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    fn new(directory: &Path, events: WatchFlags) -> io::Result<Self> {
        let watch = Self { events: new_queue()? };
        inotify::add_watch(&watch.events, directory, events)?;
        Ok(watch)
    }

    /// Returns after changes since the last call, and tells whether there was more than writes into files that were there. Safe to
    /// drop and call again.
    pub async fn changed(&mut self) -> io::Result<bool> {
        let mut buffer = [0u8; 4096];
        let length = self.events.read(&mut buffer).await?;
        let mut more = is_more_than_written(&buffer[..length]);
        // All of them are one change.
        while let Ok(length @ 1..) = self.events.try_read(&mut buffer) {
            more |= is_more_than_written(&buffer[..length]);
        }
        Ok(more)
    }
}

fn is_more_than_written(mut events: &[u8]) -> bool {
    while let Some((header, rest)) = events.split_at_checked(EVENT_HEADER) {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if ReadFlags::from_bits_retain(word(4)) != ReadFlags::MODIFY {
            return true;
        }
        events = rest.get(word(12) as usize..).unwrap_or_default();
    }
    false
}

// === impl TreeWatch ===

impl TreeWatch {
    /// Watches from now on. Must be called inside a tokio runtime.
    pub fn new(root: &Path) -> io::Result<Self> {
        let mut watch = Self { events: new_queue()?, root: root.to_owned(), directories: BTreeMap::new() };
        watch.add(root)?;
        watch.follow();
        Ok(watch)
    }

    /// Returns after changes of files since the last call; directories that came are watched by then, so whoever looks now
    /// misses nothing. Safe to drop and call again.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; 4096];
        loop {
            let mut length = self.events.read(&mut buffer).await?;
            let mut counts = self.is_change(&buffer[..length]);
            while let Ok(more @ 1..) = self.events.try_read(&mut buffer) {
                length = more;
                counts |= self.is_change(&buffer[..length]);
            }
            if counts {
                self.follow();
                return Ok(());
            }
        }
    }

    /// The kernel tells of a directory before its entries are read here, so one that comes meanwhile is not missed.
    fn follow(&mut self) {
        for directory in tree(&self.root).directories {
            if let Err(error) = self.add(&directory) {
                tracing::warn!(%error, directory = %directory.display(), "changes in a directory are not followed");
            }
        }
    }

    fn add(&mut self, directory: &Path) -> io::Result<()> {
        let number = inotify::add_watch(&self.events, directory, FILES | WatchFlags::CREATE)?;
        self.directories.insert(number, directory.to_owned());
        Ok(())
    }

    /// Whether one of these events is more than a file that is created and not written yet. What else is created (a directory,
    /// a link) is never closed.
    fn is_change(&self, mut events: &[u8]) -> bool {
        while let Some((header, rest)) = events.split_at_checked(EVENT_HEADER) {
            let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
            let mask = ReadFlags::from_bits_retain(word(4));
            let (name, rest) = rest.split_at_checked(word(12) as usize).unwrap_or_default();
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let directory = self.directories.get(&word(0).cast_signed());
            let is_link = || {
                let found = directory.and_then(|d| d.join(OsStr::from_bytes(name)).symlink_metadata().ok());
                found.is_none_or(|m| m.is_symlink() || m.nlink() > 1)
            };
            if !mask.intersects(ReadFlags::CREATE) || mask.intersects(ReadFlags::ISDIR) || is_link() {
                return true;
            }
            events = rest;
        }
        false
    }
}

fn new_queue() -> io::Result<Receiver> {
    Receiver::from_owned_fd_unchecked(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?)
}

/// What is in and below a directory.
#[derive(Debug, Default)]
pub struct Tree {
    /// In the order of their paths; links are followed.
    pub files: Vec<PathBuf>,
    /// Those below, each before what is in it.
    pub directories: Vec<PathBuf>,
}

/// Walks a directory. Hidden directories are left out. A link to a directory is followed, but none that is below one: links
/// may go around in circles.
pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::default();
    let mut left = vec![(root.to_owned(), false)];
    while let Some((directory, linked)) = left.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if !path.is_dir() {
                found.files.extend(path.is_file().then_some(path));
            } else if !entry.file_name().to_string_lossy().starts_with('.') && !(is_link && linked) {
                found.directories.push(path.clone());
                left.push((path, linked || is_link));
            }
        }
    }
    found.files.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_tree_is_told_of_with_the_directories_that_come() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = TreeWatch::new(dir.path()).unwrap();
        let told = async |watch: &mut TreeWatch| {
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        };
        let quiet = async |watch: &mut TreeWatch| {
            tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_err()
        };
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        told(&mut watch).await;
        // It may be told of the second directory again: the first was watched when it came.
        while !quiet(&mut watch).await {}
        let mut file = std::fs::File::create(dir.path().join("a/b/c.yaml")).unwrap();
        assert!(quiet(&mut watch).await, "a file that is still open is nothing new");
        std::io::Write::write_all(&mut file, b"1").unwrap();
        drop(file);
        told(&mut watch).await;
        std::os::unix::fs::symlink(dir.path(), dir.path().join("a/loop")).unwrap();
        told(&mut watch).await;
        let tree = tree(dir.path());
        assert!(tree.files.contains(&dir.path().join("a/b/c.yaml")));
        assert!(tree.files.len() < 5, "{tree:?}");
    }

    #[tokio::test]
    async fn files_that_come_change_and_go_are_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::files(dir.path()).unwrap();
        let file = dir.path().join("a");
        let told = async |watch: &mut DirectoryWatch| {
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap().unwrap();
        };
        std::fs::write(&file, "1").unwrap();
        told(&mut watch).await;
        std::fs::write(&file, "2").unwrap();
        told(&mut watch).await;
        std::fs::rename(&file, dir.path().join("b")).unwrap();
        told(&mut watch).await;
        std::fs::remove_file(dir.path().join("b")).unwrap();
        told(&mut watch).await;
        assert!(tokio::time::timeout(Duration::from_millis(20), watch.changed()).await.is_err());
    }
}
