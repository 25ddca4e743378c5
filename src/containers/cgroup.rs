//! The one cgroup tree of this node, on version 1, hybrid and version 2 alike.
//!
//! Paths given to a [`Tree`] are relative to its root; limits are planned as `(controller, file, value)` by a pure
//! function and written by a thin one. Invariant: nothing outside the root is created, changed or removed, except that
//! version 2 needs controllers to be switched on in the root's ancestors.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::spec::Resources;
use super::stats::{self, Stats};

/// How cgroups are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Version 1 (also hybrid): one hierarchy a controller set. `unified` is hybrid's version 2 mount without controllers.
    V1 {
        hierarchies: Vec<Hierarchy>,
        unified: Option<PathBuf>,
    },
    V2 {
        mount: PathBuf,
    },
}

/// One mounted version 1 hierarchy, e.g. `cpu,cpuacct`; `name=systemd` has no controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub controllers: Vec<String>,
    pub mount: PathBuf,
}

const CONTROLLERS: &[&str] =
    &["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio", "devices", "freezer", "hugetlb", "perf_event"];

/// The controllers that containers are put into on version 2.
const V2_CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

impl Layout {
    /// Reads what this process sees.
    pub fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let (mut hierarchies, mut unified) = (Vec::<Hierarchy>::new(), None);
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(mount),
                "cgroup" => {
                    let known = |option: &&str| CONTROLLERS.contains(option);
                    let controllers: Vec<String> = options.split(',').filter(known).map(str::to_owned).collect();
                    if !hierarchies.iter().any(|other| other.controllers == controllers) {
                        hierarchies.push(Hierarchy { controllers, mount });
                    }
                }
                _ => {}
            }
        }
        match unified {
            Some(mount) if hierarchies.iter().all(|hierarchy| hierarchy.controllers.is_empty()) => Self::V2 { mount },
            unified => Self::V1 { hierarchies, unified },
        }
    }
}

/// The cgroups below one root.
#[derive(Debug, Clone)]
pub struct Tree {
    layout: Layout,
    root: String,
}

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ControlFile {
    controller: &'static str,
    file: &'static str,
    value: String,
}

fn setting(controller: &'static str, file: &'static str, value: impl ToString) -> ControlFile {
    ControlFile { controller, file, value: value.to_string() }
}

fn plan_v1(resources: &Resources) -> Vec<ControlFile> {
    let mut plan = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        plan.push(setting("cpu", "cpu.shares", shares.max(2)));
    }
    if let Some(period) = resources.cpu_period {
        plan.push(setting("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = resources.cpu_quota {
        plan.push(setting("cpu", "cpu.cfs_quota_us", quota));
    }
    plan_cpuset(resources, &mut plan);
    if let Some(limit) = resources.memory_limit_bytes {
        plan.push(setting("memory", "memory.limit_in_bytes", limit));
        plan.push(setting("memory", "memory.memsw.limit_in_bytes", limit));
    }
    if let Some(limit) = resources.pids_limit {
        plan.push(setting("pids", "pids.max", limit));
    }
    plan
}

fn plan_v2(resources: &Resources) -> Vec<ControlFile> {
    let mut plan = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        plan.push(setting("cpu", "cpu.weight", weight(shares)));
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let quota = match resources.cpu_quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        plan.push(setting("cpu", "cpu.max", format!("{quota} {}", resources.cpu_period.unwrap_or(100_000))));
    }
    plan_cpuset(resources, &mut plan);
    if let Some(limit) = resources.memory_limit_bytes {
        plan.push(setting("memory", "memory.max", limit));
        plan.push(setting("memory", "memory.swap.max", 0));
    }
    if let Some(limit) = resources.pids_limit {
        plan.push(setting("pids", "pids.max", limit));
    }
    plan
}

fn plan_cpuset(resources: &Resources, plan: &mut Vec<ControlFile>) {
    if let Some(cpus) = &resources.cpuset_cpus {
        plan.push(setting("cpuset", "cpuset.cpus", cpus));
    }
    if let Some(mems) = &resources.cpuset_mems {
        plan.push(setting("cpuset", "cpuset.mems", mems));
    }
}

/// Shares (2 to 262144) on the scale of weights (1 to 10000), as every runtime converts them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

impl Tree {
    /// The tree under `root` (one name or a relative path) of this machine's mounts.
    pub fn new(root: &str) -> Result<Self> {
        let path = PathBuf::from("/proc/self/mountinfo");
        let layout = Layout::detect().map_err(|source| Error::Cgroup { path: path.clone(), source })?;
        let empty = matches!(&layout, Layout::V1 { hierarchies, .. } if hierarchies.is_empty());
        if empty {
            return Err(Error::Cgroup { path, source: io::Error::other("no cgroup file system is mounted") });
        }
        Ok(Self { layout, root: root.trim_matches('/').to_owned() })
    }

    /// What kind of machine this is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// `relative` as the kernel's `/proc/PID/cgroup` shows it.
    pub fn absolute(&self, relative: &str) -> String {
        let relative = relative.trim_matches('/');
        if relative.is_empty() { format!("/{}", self.root) } else { format!("/{}/{relative}", self.root) }
    }

    fn directory(&self, mount: &Path, relative: &str) -> PathBuf {
        mount.join(self.absolute(relative).trim_start_matches('/'))
    }

    /// The directory of `relative` in the hierarchy of a controller.
    fn controller_directory(&self, controller: &str, relative: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V2 { mount } => Some(self.directory(mount, relative)),
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
                .map(|hierarchy| self.directory(&hierarchy.mount, relative)),
        }
    }

    /// The directory of `relative` in every hierarchy with controllers.
    fn directories(&self, relative: &str) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V2 { mount } => vec![self.directory(mount, relative)],
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .filter(|hierarchy| !hierarchy.controllers.is_empty())
                .map(|hierarchy| self.directory(&hierarchy.mount, relative))
                .collect(),
        }
    }

    /// Makes a cgroup and its parents, and sets its limits.
    pub fn create(&self, relative: &str, resources: &Resources) -> Result<()> {
        match &self.layout {
            Layout::V1 { hierarchies, .. } => {
                for hierarchy in hierarchies.iter().filter(|hierarchy| !hierarchy.controllers.is_empty()) {
                    let directory = self.directory(&hierarchy.mount, relative);
                    fs::create_dir_all(&directory)
                        .map_err(|source| Error::Cgroup { path: directory.clone(), source })?;
                    if hierarchy.controllers.iter().any(|name| name == "cpuset") {
                        inherit_cpuset(&hierarchy.mount, &directory)?;
                    }
                }
            }
            Layout::V2 { mount } => enable_controllers(mount, &self.directory(mount, relative))?,
        }
        self.set(relative, resources)
    }

    /// Changes limits. A controller that this machine does not have is passed over: the limit cannot be enforced.
    pub fn set(&self, relative: &str, resources: &Resources) -> Result<()> {
        let plan = match &self.layout {
            Layout::V1 { .. } => plan_v1(resources),
            Layout::V2 { .. } => plan_v2(resources),
        };
        let mut postponed = Vec::new();
        for step in &plan {
            let Some(directory) = self.controller_directory(step.controller, relative) else {
                tracing::warn!(
                    controller = step.controller,
                    file = step.file,
                    "no such controller: limit not enforced"
                );
                continue;
            };
            match fs::write(directory.join(step.file), &step.value) {
                Ok(()) => {}
                // Swap accounting is often absent; what it limits is then unlimited for everyone.
                Err(_) if step.file.contains("swap") => {}
                // memory <= memory+swap must hold at every instant, so raising needs the reverse order.
                Err(_) if step.controller == "memory" => postponed.push(step),
                Err(source) => return Err(Error::Cgroup { path: directory.join(step.file), source }),
            }
        }
        for step in postponed {
            let path = self.controller_directory(step.controller, relative).unwrap_or_default().join(step.file);
            match fs::write(&path, &step.value) {
                Ok(()) => {}
                Err(_) if step.file.contains("memsw") => {}
                Err(source) => return Err(Error::Cgroup { path, source }),
            }
        }
        Ok(())
    }

    /// The `cgroup.procs` files through which a process joins `relative`.
    pub fn procs_files(&self, relative: &str) -> Vec<PathBuf> {
        self.directories(relative).into_iter().map(|directory| directory.join("cgroup.procs")).collect()
    }

    /// One `cgroup.procs` file that lists the processes of `relative`.
    pub fn procs_file(&self, relative: &str) -> Option<PathBuf> {
        let directory = ["pids", "memory", "cpu"].iter().find_map(|name| self.controller_directory(name, relative))?;
        Some(directory.join("cgroup.procs"))
    }

    /// What a container of `relative` sees of version 1 hierarchies with controllers: their names and directories.
    /// Nothing on version 2, whose file system shows a cgroup namespace by itself.
    pub fn views(&self, relative: &str) -> Vec<(String, PathBuf)> {
        let Layout::V1 { hierarchies, .. } = &self.layout else { return Vec::new() };
        let with_controllers = hierarchies.iter().filter(|hierarchy| !hierarchy.controllers.is_empty());
        let view = |hierarchy: &Hierarchy| {
            let name = hierarchy.mount.file_name()?.to_string_lossy().into_owned();
            Some((name, self.directory(&hierarchy.mount, relative)))
        };
        with_controllers.filter_map(view).collect()
    }

    /// Makes `place` a directory with a place to mount for each of [`Tree::views`], and the usual links beside them.
    pub fn make_frame(&self, place: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let make = |path: &Path| {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        };
        make(place)?;
        for (name, _) in self.views("") {
            make(&place.join(&name))?;
            for controller in name.split(',').filter(|controller| **controller != *name) {
                match std::os::unix::fs::symlink(&name, place.join(controller)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The file with the `oom_kill` counter.
    pub fn oom_file(&self, relative: &str) -> Option<PathBuf> {
        let file = match &self.layout {
            Layout::V1 { .. } => "memory.oom_control",
            Layout::V2 { .. } => "memory.events",
        };
        Some(self.controller_directory("memory", relative)?.join(file))
    }

    /// Where device rules must be attached as a program; version 1 has control files for them.
    pub fn device_program_directory(&self, relative: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V1 { .. } => None,
            Layout::V2 { mount } => Some(self.directory(mount, relative)),
        }
    }

    /// All processes in `relative` and below.
    pub fn processes(&self, relative: &str) -> Vec<i32> {
        let mut found = Vec::new();
        for directory in self.directories(relative) {
            collect_processes(&directory, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills everything in `relative` and below, until nothing is left or `patience` is over.
    pub fn kill(&self, relative: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            let processes = self.processes(relative);
            if processes.is_empty() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            for pid in processes {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            #[allow(clippy::disallowed_methods, reason = "the kernel gives no event for an empty version 1 cgroup")]
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Removes `relative` and everything below in every hierarchy; a missing one is fine.
    pub fn remove(&self, relative: &str) -> Result<()> {
        let mut directories = self.directories(relative);
        if let Layout::V1 { hierarchies, unified } = &self.layout {
            let bare = hierarchies.iter().filter(|hierarchy| hierarchy.controllers.is_empty());
            directories.extend(bare.map(|hierarchy| self.directory(&hierarchy.mount, relative)));
            directories.extend(unified.iter().map(|mount| self.directory(mount, relative)));
        }
        for directory in directories {
            remove_tree(&directory).map_err(|source| Error::Cgroup { path: directory, source })?;
        }
        Ok(())
    }

    /// What `relative` uses now, as far as the kernel tells.
    pub fn stats(&self, relative: &str) -> Stats {
        let stats = self.stats_by(|controller, file| {
            fs::read_to_string(self.controller_directory(controller, relative)?.join(file)).ok()
        });
        Stats { processes: Some(self.processes(relative).len() as u64), ..stats }
    }

    /// What the whole machine uses, as far as it is visible from here.
    pub fn machine_stats(&self) -> Stats {
        let read = |controller: &str, file: &str| {
            let mount = match &self.layout {
                Layout::V2 { mount } => mount,
                Layout::V1 { hierarchies, .. } => {
                    &hierarchies.iter().find(|h| h.controllers.iter().any(|name| name == controller))?.mount
                }
            };
            fs::read_to_string(mount.join(file)).ok()
        };
        let inactive_file = read("memory", "memory.stat").and_then(|table| stats::keyed(&table, "inactive_file"));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        stats::complete_root(self.stats_by(read), &meminfo, inactive_file)
    }

    fn stats_by(&self, read: impl Fn(&'static str, &'static str) -> Option<String>) -> Stats {
        match &self.layout {
            Layout::V1 { .. } => stats::of_v1(read),
            Layout::V2 { .. } => stats::of_v2(read),
        }
    }
}

/// A new version 1 cpuset has no processors, and nothing can join it: copy the parent's, from the top down.
fn inherit_cpuset(mount: &Path, directory: &Path) -> Result<()> {
    let below = directory.strip_prefix(mount).unwrap_or(Path::new(""));
    let mut parent = mount.to_owned();
    for part in below {
        let child = parent.join(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = child.join(file);
            let failed = |source| Error::Cgroup { path: path.clone(), source };
            if fs::read_to_string(&path).map_err(failed)?.trim().is_empty() {
                let value = fs::read_to_string(parent.join(file)).map_err(failed)?;
                fs::write(&path, value.trim()).map_err(failed)?;
            }
        }
        parent = child;
    }
    Ok(())
}

/// Makes a version 2 cgroup, switching the controllers on in each ancestor.
fn enable_controllers(mount: &Path, directory: &Path) -> Result<()> {
    let below = directory.strip_prefix(mount).unwrap_or(Path::new(""));
    let mut parent = mount.to_owned();
    for part in below {
        let available = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        let control = parent.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&control).unwrap_or_default();
        for name in V2_CONTROLLERS {
            let listed = |text: &str| text.split_whitespace().any(|word| word == *name);
            if listed(&available) && !listed(&enabled) {
                switch_on(&parent, &control, name)?;
            }
        }
        let child = parent.join(part);
        match fs::create_dir(&child) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Cgroup { path: child, source: error });
            }
            _ => parent = child,
        }
    }
    Ok(())
}

/// In a container or a delegated cgroup our "root" holds processes, and those must move to a leaf of their own first.
fn switch_on(parent: &Path, control: &Path, controller: &str) -> Result<()> {
    let value = format!("+{controller}");
    match fs::write(control, &value) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let leaf = parent.join("init");
            let failed = |source| Error::Cgroup { path: control.to_owned(), source };
            fs::create_dir_all(&leaf).map_err(failed)?;
            let mut processes = Vec::new();
            collect_own(parent, &mut processes);
            for pid in processes {
                let _ = fs::write(leaf.join("cgroup.procs"), pid.to_string());
            }
            fs::write(control, &value).map_err(failed)
        }
        result => result.map_err(|source| Error::Cgroup { path: control.to_owned(), source }),
    }
}

fn collect_own(directory: &Path, found: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) {
        // 0 is a process outside of our process namespace: not ours to touch.
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
}

fn collect_processes(directory: &Path, found: &mut Vec<i32>) {
    collect_own(directory, found);
    for child in children(directory) {
        collect_processes(&child, found);
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    // A killed process leaves its cgroup a moment after it was reaped.
    for _ in 0..100 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                #[allow(clippy::disallowed_methods, reason = "no event tells that the cgroup can be removed")]
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate";

    #[test]
    fn the_three_kinds_of_machines_are_told_apart() {
        let Layout::V1 { hierarchies, unified } = Layout::parse(HYBRID) else { panic!("hybrid is version 1") };
        assert_eq!(hierarchies.len(), 3);
        assert_eq!(hierarchies[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(unified.unwrap(), Path::new("/sys/fs/cgroup/unified"));
        let v2 = Layout::parse("29 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw");
        assert_eq!(v2, Layout::V2 { mount: "/sys/fs/cgroup".into() });
    }

    #[test]
    fn a_container_is_shown_hierarchies_with_controllers_only() {
        let tree = Tree { layout: Layout::parse(HYBRID), root: "amphipod".into() };
        let names: Vec<String> = tree.views("pod").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cpu,cpuacct", "memory"]);
        let directory = tempfile::tempdir().unwrap();
        tree.make_frame(directory.path()).unwrap();
        tree.make_frame(directory.path()).unwrap();
        assert_eq!(fs::read_link(directory.path().join("cpuacct")).unwrap(), Path::new("cpu,cpuacct"));
        assert!(directory.path().join("memory").is_dir());
    }

    #[test]
    fn limits_are_planned_for_both_versions() {
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: Some(10),
            ..Resources::default()
        };
        let v2: Vec<_> = plan_v2(&resources).into_iter().map(|step| (step.file, step.value)).collect();
        let expected = [("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("memory.max", "1048576")];
        for (file, value) in expected {
            assert!(v2.contains(&(file, value.to_owned())), "{file} in {v2:?}");
        }
        let v1: Vec<_> = plan_v1(&resources).into_iter().map(|step| (step.file, step.value)).collect();
        for (file, value) in [("cpu.shares", "1024"), ("cpu.cfs_quota_us", "50000"), ("pids.max", "10")] {
            assert!(v1.contains(&(file, value.to_owned())), "{file} in {v1:?}");
        }
        assert!(plan_v1(&Resources::default()).is_empty());
    }

    #[test]
    fn shares_become_weights_at_the_known_points() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
