//! Layer 6: the names one node has on its machine, so that several nodes can live there and each can be removed exactly.
//!
//! The default run directory has the plain names; another one has names made from its path. What cannot be derived is
//! recorded in the run directory when a server starts. Invariant: who knows the directories finds everything the node made.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::base::file::{self, claim_file, take_private_dir, write_atomically};
use crate::{containers, net};

/// The run directory whose node has the plain names.
const PLAIN: &str = "/run/amphipod";
/// Where users look for the logs of pods.
const POD_LOGS: &str = "/var/log/pods";
const PID_FILE: &str = "server.pid";
const LOCK_FILE: &str = "lock";
const RECORD_FILE: &str = "node.json";
const SERVER_FILE: &str = "server.json";
/// Far more than some ranges take.
const RECORD_BYTES_MAX: u64 = 1 << 20;
/// How long the claim of a server that has ended may outlive it: until its children have begun to run their program, which
/// on a machine that has no time or no memory for them takes long. They hold its sockets as well.
const HEIR_PATIENCE: Duration = Duration::from_secs(20);

/// A node's place on its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePaths {
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
}

/// What only the running server knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranges {
    pub pods: Vec<IpNet>,
    pub cluster: Vec<IpNet>,
    pub services: Vec<IpNet>,
}

/// How the commands on its machine find a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerRecord {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whose server it is: another configuration directory is another server's.
    pub config_dir: PathBuf,
    pub kubeconfig: PathBuf,
}

/// Held by the process that runs a server or a node in a directory; the kernel drops it with the process. A directory that
/// it made and that holds nothing of a node goes with it, so that a start that is refused leaves nothing behind.
#[derive(Debug)]
pub struct Claim {
    #[allow(dead_code, reason = "closing it is what gives it up")]
    file: File,
    path: PathBuf,
    /// The directory was made for it.
    made: bool,
}

// === impl NodePaths ===

impl NodePaths {
    /// A node's place.
    pub fn new(data_dir: &Path, run_dir: &Path) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { data_dir: absolute(data_dir), run_dir: absolute(run_dir) }
    }

    /// Nothing for the plain node, else eight digits of its run directory's digest.
    fn suffix(&self) -> String {
        let path = fs::canonicalize(&self.run_dir).unwrap_or_else(|_| self.run_dir.clone());
        if path == Path::new(PLAIN) {
            return String::new();
        }
        hex::encode(sha2::Sha256::digest(path.as_os_str().as_encoded_bytes()))[..8].to_owned()
    }

    /// Name of the link that holds the node's address in the pod range.
    pub fn bridge(&self) -> String {
        match &*self.suffix() {
            "" => "amphipod0".into(),
            suffix => format!("amp{suffix}"),
        }
    }

    /// The one cgroup that holds all others.
    pub fn cgroup_root(&self) -> String {
        match &*self.suffix() {
            "" => "amphipod".into(),
            suffix => format!("amphipod-{suffix}"),
        }
    }

    /// Where the logs of pods are.
    pub fn log_dir(&self) -> PathBuf {
        POD_LOGS.into()
    }

    /// Configuration of the containers.
    pub fn containers(&self) -> containers::Config {
        let config = containers::Config::new(self.data_dir.clone(), self.run_dir.clone());
        containers::Config { cgroup_root: self.cgroup_root(), ..config }
    }

    /// Configuration of the network.
    pub fn network(&self, ranges: &Ranges) -> net::Config {
        net::Config {
            cluster_cidrs: ranges.cluster.clone(),
            service_cidrs: ranges.services.clone(),
            bridge: self.bridge(),
            ..net::Config::new(self.run_dir.clone(), ranges.pods.clone())
        }
    }

    /// Remembers what `killall` has to know. After a reboot it is gone together with what it is about.
    pub fn record(&self, ranges: &Ranges) -> io::Result<()> {
        write_atomically(&self.run_dir.join(RECORD_FILE), &serde_json::to_vec(ranges)?, 0o600)
    }

    /// Forgets it: nothing of it is there any more.
    pub fn forget(&self) -> io::Result<()> {
        match fs::remove_file(self.run_dir.join(RECORD_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// What was remembered; nothing if no server ran here since the last reboot.
    pub fn recorded(&self) -> io::Result<Option<Ranges>> {
        match file::read(&self.run_dir.join(RECORD_FILE), RECORD_BYTES_MAX) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Remembers how the server is found.
    pub fn record_server(&self, server: &ServerRecord) -> io::Result<()> {
        write_atomically(&self.run_dir.join(SERVER_FILE), &serde_json::to_vec(server)?, 0o600)
    }

    /// How the server is found that ran here last, if this user may know.
    pub fn recorded_server(&self) -> Option<ServerRecord> {
        serde_json::from_slice(&file::read(&self.run_dir.join(SERVER_FILE), RECORD_BYTES_MAX).ok()?).ok()
    }

    /// The process that has the run directory, if one has.
    pub fn running(&self) -> Option<u32> {
        let pid = file::read_text(&self.run_dir.join(PID_FILE), RECORD_BYTES_MAX).ok()?;
        pid.trim().parse().ok().filter(|_| !has_ended(pid.trim()))
    }

    /// Makes the data directory, or takes it as it is: from then on nobody else may enter it.
    pub fn take_data_dir(&self) -> Result<()> {
        take_private_dir(&self.data_dir).with_context(|| {
            format!("--data-dir: {} cannot be written: make it writable or choose another", self.data_dir.display())
        })
    }

    /// Takes the run directory, which one process may have at a time, and writes `server.pid` there.
    pub fn claim(&self) -> Result<Claim> {
        claim(&self.run_dir, PID_FILE, "run")
    }

    /// Takes the data directory as well: whatever else they are told, two processes on one database or one node's keys would
    /// each believe its own memory of them.
    pub fn claim_data(&self) -> Result<Claim> {
        claim(&self.data_dir, LOCK_FILE, "data")
    }
}

/// Takes a directory by the lock on a file in it, which holds the process number of whoever has it.
fn claim(directory: &Path, name: &str, which: &str) -> Result<Claim> {
    let path = directory.join(name);
    let mut made = !directory.is_dir();
    let open = || {
        take_private_dir(directory)?;
        claim_file(&path)?;
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)
    };
    let cannot =
        || format!("--{which}-dir: {} cannot be written: make it writable or choose another", directory.display());
    let mut file = open().with_context(cannot)?;
    let began = Instant::now();
    loop {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            if is_at(&file, &path) {
                break;
            }
            // Whoever held it has taken its directory away.
            made = true;
            file = open().with_context(cannot)?;
            continue;
        }
        let mut pid = String::new();
        let _ = file.rewind();
        let _ = file.read_to_string(&mut pid);
        // A child of a killed server holds what it inherited until it has become the shim that it was forked for.
        if has_ended(pid.trim()) && began.elapsed() < HEIR_PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        bail!(
            "a server (process {}) runs with the {which} directory {}: stop it first",
            pid.trim(),
            directory.display()
        );
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    // The lock is what counts: a full disk must not keep a server from what it can still read.
    if let Err(error) = write() {
        tracing::warn!(%error, "{} does not tell the process number", path.display());
    }
    Ok(Claim { file, path, made })
}

/// Whether this is the file that has the name.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: fs::Metadata, b: fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().ok().zip(fs::symlink_metadata(path).ok()).is_some_and(|(a, b)| same(a, b))
}

// === impl Claim ===

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(directory) = self.path.parent().filter(|_| self.made) else { return };
        let is_own = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|e| e.path() == self.path);
        if fs::read_dir(directory).is_ok_and(|mut entries| entries.all(is_own)) {
            let _ = fs::remove_file(&self.path);
            // Not where somebody has put something there meanwhile.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Whether no such process runs; one that nobody has waited for yet runs no more.
fn has_ended(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| pid.is_empty() || stat.contains(") Z "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_differ_in_their_names() {
        let plain = NodePaths::new(Path::new("/var/lib/amphipod"), Path::new(PLAIN));
        assert_eq!((plain.bridge(), plain.cgroup_root()), ("amphipod0".into(), "amphipod".into()));
        let other = NodePaths::new(Path::new("/x"), Path::new("/x/run"));
        assert!(other.bridge().len() <= 12 && other.bridge() != plain.bridge());
        assert_ne!(other.cgroup_root(), NodePaths::new(Path::new("/x"), Path::new("/y/run")).cgroup_root());
        assert_ne!(plain.network(&Ranges::default()).table(), other.network(&Ranges::default()).table());
    }

    #[test]
    fn a_run_directory_is_claimed_once_and_freed_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePaths::new(dir.path(), &dir.path().join("run"));
        let first = place.claim().unwrap();
        let refused = place.claim().unwrap_err().to_string();
        assert!(
            refused.contains(&format!("process {}", std::process::id())) && refused.contains("stop it"),
            "{refused}"
        );
        drop(first);
        place.claim().unwrap();
    }

    #[test]
    fn a_data_directory_has_one_holder_whatever_run_directories_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let place = |run: &str| NodePaths::new(&dir.path().join("data"), &dir.path().join(run));
        let (one, two) = (place("one"), place("two"));
        let _running = (one.claim().unwrap(), one.claim_data().unwrap());
        let _other = two.claim().unwrap();
        let refused = format!("{:#}", two.claim_data().unwrap_err());
        let pid = std::process::id();
        let data = dir.path().join("data");
        let expected =
            format!("a server (process {pid}) runs with the data directory {}: stop it first", data.display());
        assert_eq!(refused, expected);
    }

    #[test]
    fn the_claim_of_a_dead_server_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePaths::new(dir.path(), dir.path());
        let heir = place.claim().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        fs::write(dir.path().join(PID_FILE), format!("{}\n", ended.id())).unwrap();
        ended.wait().unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(heir);
        });
        place.claim().unwrap();
        letting_go.join().unwrap();
    }

    #[test]
    fn a_directory_that_was_made_for_a_claim_goes_with_it_unless_something_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePaths::new(&dir.path().join("data"), &dir.path().join("run"));
        drop((place.claim().unwrap(), place.claim_data().unwrap()));
        assert!(!place.run_dir.exists() && !place.data_dir.exists(), "refused starts leave nothing");
        let claim = place.claim().unwrap();
        fs::write(place.run_dir.join("pod"), "").unwrap();
        drop(claim);
        assert!(place.run_dir.join(PID_FILE).exists(), "a node was here");
        fs::remove_file(place.run_dir.join("pod")).unwrap();
        drop(place.claim().unwrap());
        assert!(place.run_dir.join(PID_FILE).exists(), "it was there before");
    }

    #[test]
    fn what_is_recorded_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePaths::new(dir.path(), dir.path());
        assert_eq!(place.recorded().unwrap(), None);
        let ranges = Ranges { pods: vec!["10.42.0.0/24".parse().unwrap()], ..Ranges::default() };
        place.record(&ranges).unwrap();
        assert_eq!(place.recorded().unwrap(), Some(ranges));
    }
}
