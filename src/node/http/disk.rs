//! What directories take of file systems: counting files is dear, so it is done at most once a minute for
//! each directory, on a thread for work that blocks, and never because nobody asks.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::task;
pub(super) use crate::base::tree::Taken;
use crate::base::tree::measure;

/// How long a count holds.
const COUNT_HOLDS: Duration = Duration::from_secs(60);
/// How long an answer waits for counts; what takes longer is there for the next one.
const PATIENCE: Duration = Duration::from_secs(2);
/// Counts that hold for a while; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<PathBuf, (Instant, Taken)>,
    counting: HashSet<PathBuf>,
}

// === impl Counts ===

impl Counts {
    /// What each directory takes, as far as it is known in time.
    pub(super) async fn of(&self, directories: Vec<PathBuf>) -> HashMap<PathBuf, Taken> {
        let due = self.due(&directories);
        if !due.is_empty() {
            let counts = self.clone();
            let counting = task::blocking(move || {
                for directory in due {
                    counts.counted(directory);
                }
            });
            let _ = tokio::time::timeout(PATIENCE, counting).await;
        }
        let mut inner = self.0.lock().expect("no panic while held");
        let now = Instant::now();
        // What nobody asked about for long belongs to a pod that is gone.
        inner.known.retain(|path, (at, _)| directories.contains(path) || now - *at < COUNT_HOLDS * 2);
        let known = directories.into_iter().filter_map(|d| inner.known.get(&d).map(|(_, taken)| (d.clone(), *taken)));
        known.collect()
    }

    fn due(&self, directories: &[PathBuf]) -> Vec<PathBuf> {
        let mut inner = self.0.lock().expect("no panic while held");
        let now = Instant::now();
        let fresh = |inner: &Inner, d: &PathBuf| inner.known.get(d).is_some_and(|(at, _)| now - *at < COUNT_HOLDS);
        let due: Vec<PathBuf> =
            directories.iter().filter(|d| !fresh(&inner, d) && !inner.counting.contains(*d)).cloned().collect();
        inner.counting.extend(due.iter().cloned());
        due
    }

    fn counted(&self, directory: PathBuf) {
        let taken = measure(&directory);
        let mut inner = self.0.lock().expect("no panic while held");
        inner.counting.remove(&directory);
        inner.known.insert(directory, (Instant::now(), taken));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_counted_once_a_minute() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        std::fs::create_dir(path.join("d")).unwrap();
        std::fs::write(path.join("d/big"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(path.join("d/big"), path.join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", path.join("elsewhere")).unwrap();
        let counts = Counts::default();
        let taken = counts.of(vec![path.clone()]).await[&path];
        assert!(taken.bytes >= 1 << 20 && taken.bytes < (1 << 20) + (64 << 10), "{taken:?}");
        assert_eq!(taken.inodes, 4, "the directories, the file, the link");
        std::fs::write(path.join("more"), b"x").unwrap();
        assert_eq!(counts.of(vec![path.clone()]).await[&path], taken, "it holds for a while");
        tokio::time::pause();
        tokio::time::advance(COUNT_HOLDS).await;
        tokio::time::resume();
        assert_eq!(counts.of(vec![path.clone()]).await[&path].inodes, 5);
        assert_eq!(measure(&path.join("absent")), Taken::default());
    }
}
