//! Tells when something in a directory changes, without looking at it again and again.

use std::io;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// A watch on the entries of one directory.
#[derive(Debug)]
pub struct DirectoryWatch {
    /// Read like a pipe: bytes are there when something has changed.
    events: Receiver,
}

// === impl DirectoryWatch ===

impl DirectoryWatch {
    /// Watches its files from now on: a file counts when it is closed, so that nobody reads half of one. Must be called
    /// inside a tokio runtime.
    pub fn files(directory: &Path) -> io::Result<Self> {
        Self::new(
            directory,
            WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE,
        )
    }

    /// Watches from now on what is written into its files, while it is written. Must be called inside a tokio runtime.
    pub fn writes(directory: &Path) -> io::Result<Self> {
        Self::new(directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    fn new(directory: &Path, events: WatchFlags) -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&descriptor, directory, events)?;
        Ok(Self { events: Receiver::from_owned_fd_unchecked(descriptor)? })
    }

    /// Returns after changes since the last call. Safe to drop and call again.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; 4096];
        let _ = self.events.read(&mut buffer).await?;
        // All of them are one change.
        while self.events.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

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
