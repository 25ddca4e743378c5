//! What a sandbox leaves on disk and in the kernel: made before its shim starts, removed when it is gone.
//!
//! Order is the invariant: `sandbox.json` is written first, so whatever else exists is found again after a crash at any
//! instant, and the directory is removed last.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use super::super::Config;
use super::super::cgroup::Tree;
use super::super::error::{Error, Result};
use super::super::executable::Executable;
use super::super::shim::{BUNDLES_DIR, CONFIG_FILE, GONE_FILE, PID_FILE};
use super::super::spec::SandboxSpec;
use super::super::sysctl;
use super::super::wire::ShimConfig;
use crate::base::file::{self, write_atomically};

pub(super) const SPEC_FILE: &str = "sandbox.json";
/// Far more than any specification takes.
pub(super) const SPEC_BYTES_MAX: u64 = 16 << 20;
/// A process id.
pub(super) const PID_BYTES_MAX: u64 = 32;
pub(super) const SHM_BYTES: u64 = 64 * 1024 * 1024;

/// The run state of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub spec: SandboxSpec,
    pub created_at: Timestamp,
}

/// Every sandbox of the run directory. One that was only half made, or is damaged, is ended and removed.
pub(crate) fn saved_sandboxes(directory: &Path) -> Vec<Saved> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        match saved(&path) {
            Ok(saved) => found.push(saved),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "what is left of a sandbox cannot be used and is removed");
                end_shim(&path);
                let removed =
                    unmount_below(&path).and_then(|()| crate::base::tree::remove(&path).map_err(io("removing", &path)));
                if let Err(error) = removed {
                    tracing::warn!(error = crate::base::error::chain(&error), "not everything of it was removed");
                }
            }
        }
    }
    found
}

pub(super) fn saved(path: &Path) -> std::io::Result<Saved> {
    let saved: Saved = serde_json::from_slice(&file::read(&path.join(SPEC_FILE), SPEC_BYTES_MAX)?)?;
    let is_its_own = path.file_name().is_some_and(|name| name == &*saved.spec.id);
    if is_its_own { Ok(saved) } else { Err(std::io::Error::other("it is of another sandbox")) }
}

/// Where the shims are, beside the pods of the node.
pub(crate) const SHIMS_CGROUP: &str = "shims";

/// Everything before the shim.
pub(super) fn prepare(config: &Config, tree: &Tree, saved: &Saved) -> Result<()> {
    let spec = &saved.spec;
    let plain = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !plain(&spec.id) {
        return Err(Error::Spec(format!("sandbox id {:?} may hold letters, digits and dashes only", spec.id)));
    }
    let directory = config.sandbox_dir(&spec.id);
    match fs::create_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(Error::Exists(spec.id.clone())),
        result => result.map_err(io("creating", &directory))?,
    }
    let json = serde_json::to_vec(saved).map_err(|error| Error::Spec(error.to_string()))?;
    write_atomically(&directory.join(SPEC_FILE), &json, 0o600).map_err(io("writing", &directory))?;
    for name in ["shm", BUNDLES_DIR, "state"] {
        let path = directory.join(name);
        fs::create_dir(&path).map_err(io("creating", &path))?;
    }
    tree.create(&spec.cgroup_parent, &spec.resources)?;
    if !spec.host_ipc {
        mount_shm(&directory.join("shm"), spec.shm_bytes.unwrap_or(SHM_BYTES))?;
    }
    let shim = ShimConfig {
        hostname: spec.hostname.clone(),
        netns: spec.netns.clone(),
        host_ipc: spec.host_ipc,
        share_process_namespace: spec.share_process_namespace,
        sysctls: parameters(spec),
        log_max_bytes: config.log_max_bytes,
        log_max_files: config.log_max_files,
        cgroup_procs: tree.procs_files(SHIMS_CGROUP),
        users: spec.users.clone(),
    };
    let json = serde_json::to_vec(&shim).map_err(|error| Error::Spec(error.to_string()))?;
    let path = directory.join(CONFIG_FILE);
    fs::write(&path, json).map_err(io("writing", &path))
}

/// What the sandbox asks for, and what containers of every network namespace of their own find elsewhere: whoever they run as may
/// listen on every port, and ping.
pub(super) fn parameters(spec: &SandboxSpec) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if spec.netns.is_some() {
        // Every group that there is.
        let last = spec.users.as_ref().map_or(i32::MAX.unsigned_abs(), |users| users.count.saturating_sub(1));
        let usual =
            [("net.ipv4.ip_unprivileged_port_start", "0".into()), ("net.ipv4.ping_group_range", format!("0 {last}"))];
        let is_given = |name: &str| spec.sysctls.keys().any(|given| sysctl::normal(given) == name);
        all.extend(usual.into_iter().filter(|(name, _)| !is_given(name)).map(|(name, value)| (name.to_owned(), value)));
    }
    all.extend(spec.sysctls.clone());
    all
}

pub(super) fn mount_shm(path: &Path, bytes: u64) -> Result<()> {
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("mode=1777,size={bytes}");
    mount(Some("shm"), path, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|error| io("mounting shared memory", path)(error.into()))
}

/// Starts the shim; it serves when this returns.
pub(super) async fn spawn_shim(config: &Config, executable: &Executable, sandbox: &str) -> Result<(), String> {
    run_self(executable, &["shim".as_ref(), config.sandbox_dir(sandbox).as_os_str()]).await
}

/// Runs this executable with other arguments to its end; the error is what it printed.
pub(crate) async fn run_self(executable: &Executable, arguments: &[&OsStr]) -> Result<(), String> {
    #[allow(clippy::disallowed_methods, reason = "this executable itself")]
    let mut command = tokio::process::Command::new(executable.path());
    command.args(arguments).env_clear().stdin(std::process::Stdio::null());
    command.kill_on_drop(true);
    let output = match tokio::time::timeout(ANSWER_PATIENCE, command.output()).await {
        Ok(output) => output.map_err(|error| format!("starting the shim: {error}"))?,
        Err(_) => return Err("the shim did not start in time".into()),
    };
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

/// Ends the shim and everything it had, and removes the run state. Nothing is assumed to be there.
pub(crate) fn discard(config: &Config, tree: &Tree, saved: &Saved, with_parent_cgroup: bool) -> Result<()> {
    let spec = &saved.spec;
    let directory = config.sandbox_dir(&spec.id);
    end_shim(&directory);
    let parent = spec.cgroup_parent.trim_matches('/');
    for container in bundles(&directory) {
        let cgroup = format!("{parent}/{container}");
        tree.kill(&cgroup, KILL_PATIENCE);
        tree.remove(&cgroup)?;
    }
    if with_parent_cgroup && !parent.is_empty() {
        tree.kill(parent, KILL_PATIENCE);
        tree.remove(parent)?;
    }
    unmount_below(&directory)?;
    crate::base::tree::remove(&directory).map_err(io("removing", &directory))
}

pub(super) fn bundles(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory.join(BUNDLES_DIR)) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Kills the shim and waits for its end; one that only begins does not. It is known by its number and by living in its
/// directory, since the number alone may be someone else's by now.
pub(super) fn end_shim(directory: &Path) {
    // Fails where nothing is left.
    let _ = fs::write(directory.join(GONE_FILE), "");
    let text = file::read_text(&directory.join(PID_FILE), PID_BYTES_MAX);
    let Some(pid) = text.ok().and_then(|text| text.trim().parse::<i32>().ok()) else {
        return;
    };
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    for _ in 0..1000 {
        if fs::read_link(format!("/proc/{pid}/cwd")).ok().as_deref() != Some(&directory) {
            return;
        }
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        #[allow(clippy::disallowed_methods, reason = "someone else's child: there is no event for its end")]
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Unmounts everything at or below `directory`, newest first, and nothing else: what is a copy of the machine's own mounts,
/// such as a volume that was being mounted, is cut off from them first, because the end of a shared mount is told to its peers.
pub(crate) fn unmount_below(directory: &Path) -> Result<()> {
    let Ok(directory) = fs::canonicalize(directory) else { return Ok(()) };
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(io("reading", Path::new("/proc/self/mountinfo")))?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(&directory))
        .collect();
    points.reverse();
    for point in &points {
        match mount(None::<&str>, point, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(io("making private", point)(error.into())),
        }
    }
    for point in points {
        if let Err(error) = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            && error != nix::errno::Errno::EINVAL
            && error != nix::errno::Errno::ENOENT
        {
            return Err(io("unmounting", &point)(error.into()));
        }
    }
    Ok(())
}

/// mountinfo writes blanks and backslashes as octal.
pub(super) fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A shim answers at once, or something is wrong with it.
pub(super) const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What SIGKILL does not end in this time hangs in the kernel.
pub(super) const KILL_PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}
