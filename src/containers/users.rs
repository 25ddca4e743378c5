//! User namespaces of pods: a range of the machine's ids for each, and where its namespaces are pinned.
//!
//! A pod has a directory with its range, its user namespace, and the network namespace that belongs to that. It is there as
//! long as the pod is, whatever becomes of its sandboxes and of this process, and gone after a reboot like the pod's
//! processes; on disks there are no ids of a range but in writable layers, which go with their containers.
//! Invariant: the range is written before anything uses it and forgotten after everything has, so no two pods of a run
//! directory ever have an id in common.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use nix::mount::{MntFlags, umount2};
use sha2::Digest;

use super::error::{Error, Result};
use super::executable::Executable;
use super::runtime::{run_self, unmount_below};
use super::spec::Users;
use super::{Config, idmap, image};
use crate::base::file::{self, claim_private_dir, make_private_dir, write_atomically};
use crate::base::tree;

/// Ids of a pod: what the kubelet gives, and all that 16 bits can say.
pub const COUNT: u32 = 1 << 16;
/// Where ranges begin: far above users of the machine and what is delegated to them by default, and below 2^31, which some
/// programs take for negative.
const FIRST: u32 = 1 << 30;
const END: u32 = 0x7000_0000;

const RANGE_FILE: &str = "range";
pub(super) const USER_PIN: &str = "user";
pub(super) const NET_PIN: &str = "net";
/// A number.
const RANGE_BYTES_MAX: u64 = 32;
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The first free range, looking from the one that `seed` falls on, so that nodes on one machine and pods one after another
/// have others.
fn next_range(seed: u64, used: &BTreeSet<u32>) -> Option<u32> {
    let slots = u64::from((END - FIRST) / COUNT);
    // Each step that does not answer meets a used range.
    let steps = slots.min(used.len() as u64 + 1);
    let range = |step: u64| FIRST + COUNT * u32::try_from((seed % slots + step) % slots).expect("less than the slots");
    (0..steps).map(range).find(|first| !used.contains(first))
}

/// The user namespaces of one run directory.
#[derive(Debug)]
pub(super) struct Registry {
    directory: PathBuf,
    ranges: Mutex<BTreeMap<String, u32>>,
}

// === impl Registry ===

impl Registry {
    /// Finds what is there. What cannot be read belongs to nothing that could be adopted, and goes.
    pub(super) fn open(run_dir: &Path) -> Result<Self> {
        let directory = users_dir(run_dir);
        claim_private_dir(&directory).map_err(io("creating", &directory))?;
        let mut ranges = BTreeMap::new();
        let entries = fs::read_dir(&directory).map_err(io("reading", &directory))?;
        for path in entries.flatten().map(|entry| entry.path()).collect::<BTreeSet<_>>() {
            let pod = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match read_range(&path) {
                Some(first) if !ranges.values().any(|other| *other == first) => drop(ranges.insert(pod, first)),
                _ => {
                    if let Err(error) = discard(&path) {
                        tracing::warn!(
                            error = crate::base::error::chain(&error),
                            "what is left of a pod's users stays"
                        );
                    }
                }
            }
        }
        Ok(Self { directory, ranges: Mutex::new(ranges) })
    }

    fn ranges(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.ranges.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes the namespaces of a pod; the same again where they are there already.
    pub(super) async fn make(&self, executable: &Executable, pod: &str) -> Result<Users> {
        let plain = !pod.is_empty() && pod.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if !plain {
            return Err(Error::Spec(format!("pod id {pod:?} may hold letters, digits and dashes only")));
        }
        let directory = self.directory.join(pod);
        let users = at(&directory, self.reserve(pod, &directory)?);
        if is_pinned(&users.namespace) && is_pinned(&users.netns) {
            return Ok(users);
        }
        let made = pin(executable, &users, &directory).await;
        if let Err(message) = made {
            self.remove(pod)?;
            return Err(Error::Users(message));
        }
        Ok(users)
    }

    fn reserve(&self, pod: &str, directory: &Path) -> Result<u32> {
        let mut ranges = self.ranges();
        if let Some(first) = ranges.get(pod) {
            return Ok(*first);
        }
        let digest = sha2::Sha256::digest(directory.as_os_str().as_encoded_bytes());
        let seed = digest.first_chunk().copied().map_or(0, u64::from_le_bytes);
        let used = ranges.values().copied().collect();
        let first = next_range(seed, &used).ok_or_else(|| Error::Users("every range of ids is in use".into()))?;
        make_private_dir(directory).map_err(io("creating", directory))?;
        let path = directory.join(RANGE_FILE);
        write_atomically(&path, first.to_string().as_bytes(), 0o600).map_err(io("writing", &path))?;
        ranges.insert(pod.to_owned(), first);
        Ok(first)
    }

    /// Ends the namespaces of a pod; fine if there are none. Processes in them must have ended.
    pub(super) fn remove(&self, pod: &str) -> Result<()> {
        let mut ranges = self.ranges();
        if ranges.contains_key(pod) {
            discard(&self.directory.join(pod))?;
            ranges.remove(pod);
        }
        Ok(())
    }

    /// Pods that have namespaces.
    pub(super) fn list(&self) -> Vec<String> {
        self.ranges().keys().cloned().collect()
    }
}

/// The directory below a run directory.
pub(super) fn users_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("users")
}

fn at(directory: &Path, first_id: u32) -> Users {
    Users { namespace: directory.join(USER_PIN), netns: directory.join(NET_PIN), first_id, count: COUNT }
}

fn read_range(directory: &Path) -> Option<u32> {
    let first = file::read_text(&directory.join(RANGE_FILE), RANGE_BYTES_MAX).ok()?.trim().parse().ok()?;
    ((FIRST..END).contains(&first) && first % COUNT == 0).then_some(first)
}

/// By a process of its own with one thread, which is what changing the user namespace takes.
async fn pin(executable: &Executable, users: &Users, directory: &Path) -> Result<(), String> {
    for path in [&users.namespace, &users.netns] {
        while is_pinned(path) {
            umount2(path, MntFlags::MNT_DETACH).map_err(|error| error.to_string())?;
        }
        fs::write(path, "").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let (first, count) = (users.first_id.to_string(), users.count.to_string());
    run_self(executable, &["shim".as_ref(), "users".as_ref(), first.as_ref(), count.as_ref(), directory.as_os_str()])
        .await
}

fn is_pinned(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|found| found.filesystem_type().0 == NSFS_MAGIC)
}

fn discard(directory: &Path) -> Result<()> {
    unmount_below(directory)?;
    tree::remove(directory).map_err(io("removing", directory))
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

/// As [`super::Runtime::lacks_for_users`], for a machine on which no node runs yet.
pub async fn lacks_for_users(config: &Config) -> Option<String> {
    match Executable::open(&config.executable) {
        Ok(executable) => probe(config, &executable).await,
        Err(error) => Some(crate::base::error::chain(&error)),
    }
}

/// Why pods cannot have users of their own here, by trying everything that it takes.
pub(super) async fn probe(config: &Config, executable: &Executable) -> Option<String> {
    let directory = config.run_dir.join("users-probe");
    let scratch = config.data_dir.join("users-probe");
    let clear = || {
        for path in [&directory, &scratch] {
            let _ = discard(path);
        }
    };
    clear();
    let result = try_everything(executable, &directory, &scratch).await;
    clear();
    result.err()
}

async fn try_everything(executable: &Executable, directory: &Path, scratch: &Path) -> Result<(), String> {
    let said = |error: io::Error| format!("what is tried needs room: {error}");
    for path in [directory, scratch] {
        make_private_dir(path).map_err(said)?;
    }
    let users = at(directory, END);
    pin(executable, &users, directory).await?;
    let (directory, scratch) = (directory.to_owned(), scratch.to_owned());
    crate::containers::blocking::blocking(move || try_mounts(&users, &directory, &scratch)).await
}

fn try_mounts(users: &Users, directory: &Path, scratch: &Path) -> Result<(), String> {
    let namespace = fs::File::open(&users.namespace).map_err(|error| error.to_string())?;
    let try_to_map =
        |path: &Path| -> io::Result<()> { idmap::map(idmap::clone_of(path, false)?.as_fd(), namespace.as_fd()) };
    try_to_map(scratch).map_err(|error| {
        format!("the file system of the data directory cannot map ids ({error}): ext4, xfs or btrfs and Linux 5.12 or newer are needed")
    })?;
    image::probe_mapped_overlay(scratch, users).map_err(|error| {
        format!("the kernel cannot map the ids of overlay mounts ({error}): Linux 5.19 or newer is needed")
    })?;
    let memory = directory.join("tmpfs");
    fs::create_dir(&memory).map_err(|error| error.to_string())?;
    let none: Option<&str> = None;
    nix::mount::mount(Some("tmpfs"), &memory, Some("tmpfs"), nix::mount::MsFlags::empty(), none)
        .map_err(|error| error.to_string())?;
    try_to_map(&memory)
        .map_err(|error| format!("the kernel cannot map the ids of tmpfs ({error}): Linux 6.3 or newer is needed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_apart_from_the_machines_users_and_every_one_is_found() {
        let (mut used, mut last) = (BTreeSet::new(), None);
        while let Some(first) = next_range(u64::MAX, &used) {
            assert!(first >= FIRST && first.checked_add(COUNT).is_some_and(|end| end <= END));
            assert!(used.insert(first), "{first} was given twice");
            last = Some(first);
        }
        assert_eq!(used.len(), 12_288);
        used.remove(&FIRST);
        assert_eq!(next_range(7, &used), Some(FIRST), "the only free one is found, wherever the search begins");
        assert!(last.is_some());
    }

    proptest! {
        #[test]
        fn a_range_is_never_given_to_two(seeds in proptest::collection::vec(any::<u64>(), 1..100)) {
            let mut used = BTreeSet::new();
            for seed in seeds {
                let first = next_range(seed, &used).unwrap();
                prop_assert_eq!(first % COUNT, 0);
                prop_assert!(used.insert(first));
            }
        }
    }

    #[test]
    fn ranges_survive_a_restart_and_damaged_ones_are_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).unwrap();
        let place = |pod: &str| users_dir(dir.path()).join(pod);
        let (a, b) = (registry.reserve("a", &place("a")).unwrap(), registry.reserve("b", &place("b")).unwrap());
        assert_ne!(a, b);
        for (pod, text) in [("zeros", "0"), ("odd", "1073741825"), ("twice", &*a.to_string()), ("none", "")] {
            fs::create_dir(place(pod)).unwrap();
            fs::write(place(pod).join(RANGE_FILE), text).unwrap();
        }
        let registry = Registry::open(dir.path()).unwrap();
        assert_eq!(registry.list(), ["a", "b"]);
        assert_eq!(registry.reserve("b", &place("b")).unwrap(), b);
        registry.remove("a").unwrap();
        registry.remove("never").unwrap();
        assert!(!place("a").exists() && place("b").exists());
        assert_eq!(Registry::open(dir.path()).unwrap().list(), ["b"]);
    }
}
