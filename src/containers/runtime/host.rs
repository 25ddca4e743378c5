//! What the OCI plan has to know of this machine.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::Config;
use super::super::cgroup::Tree;
use super::super::image;
use super::super::oci::Host;
use super::super::shim::REAPER_FILE;
use super::super::spec::{ContainerSpec, SandboxSpec};

pub(super) fn describe(config: &Config, tree: &Tree, sandbox: &SandboxSpec, container: &ContainerSpec) -> Host {
    let directory = config.sandbox_dir(&sandbox.id);
    let reaper = crate::base::file::read_text(&directory.join(REAPER_FILE), 32).ok();
    let shared = reaper.filter(|_| sandbox.share_process_namespace);
    let cgroup = container_cgroup(sandbox, &container.id);
    Host {
        cgroup: tree.absolute(&cgroup),
        cgroup_namespace: Path::new("/proc/self/ns/cgroup").symlink_metadata().is_ok(),
        cgroup_frame: cgroup_frame(config),
        cgroup_views: tree.views(&cgroup),
        shm: if sandbox.host_ipc { "/dev/shm".into() } else { directory.join("shm") },
        pid_namespace: container
            .pid_namespace_of
            .map(|pid| pid.to_string())
            .or_else(|| shared.map(|pid| pid.trim().to_owned()))
            .map(|pid| PathBuf::from(format!("/proc/{pid}/ns/pid"))),
        has_mqueue: Path::new("/dev/mqueue").is_dir(),
        devices: container.devices.iter().filter_map(|device| numbers(device.host_path.clone())).collect(),
        capabilities: available_capabilities(),
        home: image::home_in(&image::read_in(&container.rootfs, Path::new("etc/passwd")), container.user.uid),
        hard_limits: if may_raise_limits() { Vec::new() } else { hard_limits() },
    }
}

/// What containers see of `/sys/fs/cgroup` on version 1.
pub(super) fn cgroup_frame(config: &Config) -> PathBuf {
    config.run_dir.join("cgroup")
}

pub(super) fn numbers(path: PathBuf) -> Option<(PathBuf, char, u64, u64)> {
    let metadata = fs::metadata(&path).ok()?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return None,
    };
    let device = metadata.rdev();
    Some((path, kind, u64::from(libc::major(device)), u64::from(libc::minor(device))))
}

/// Every capability of this kernel that this process could pass on.
pub(super) fn available_capabilities() -> Vec<String> {
    let bounding = caps::read(None, caps::CapSet::Bounding).unwrap_or_default();
    let mut names: Vec<String> = bounding.into_iter().map(|capability| capability.to_string()).collect();
    names.sort();
    names
}

pub(super) fn may_raise_limits() -> bool {
    caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap_or(false)
}

pub(super) fn hard_limits() -> Vec<(String, u64)> {
    let known = [
        ("RLIMIT_AS", libc::RLIMIT_AS),
        ("RLIMIT_CORE", libc::RLIMIT_CORE),
        ("RLIMIT_CPU", libc::RLIMIT_CPU),
        ("RLIMIT_DATA", libc::RLIMIT_DATA),
        ("RLIMIT_FSIZE", libc::RLIMIT_FSIZE),
        ("RLIMIT_MEMLOCK", libc::RLIMIT_MEMLOCK),
        ("RLIMIT_NOFILE", libc::RLIMIT_NOFILE),
        ("RLIMIT_NPROC", libc::RLIMIT_NPROC),
        ("RLIMIT_STACK", libc::RLIMIT_STACK),
    ];
    let limit = |(name, resource): (&str, libc::__rlimit_resource_t)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes the structure.
        let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
        (result == 0).then(|| (name.to_owned(), limit.rlim_max))
    };
    known.into_iter().filter_map(limit).collect()
}

pub(super) fn container_cgroup(sandbox: &SandboxSpec, container: &str) -> String {
    format!("{}/{container}", sandbox.cgroup_parent.trim_matches('/'))
}
