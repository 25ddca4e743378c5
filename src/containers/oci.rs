//! From a [`ContainerSpec`] to the OCI configuration that libcontainer takes: one pure function.
//!
//! Namespaces that are not listed are the shim's, which are the sandbox's. Memory, CPU and pids limits are not listed
//! either: the agent has written them into the cgroup before. Invariant: everything secure is the default here, and
//! only what the specification says opens it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::error::{Error, Result};
use super::seccomp;
use super::spec::{
    CapabilityChange, ContainerSpec, Device, ExecSpec, Mount, MountSource, Propagation, SandboxSpec, Seccomp, User,
    Users,
};
use super::wire::Staged;

/// What the plan must know of the machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// The container's cgroup, absolute as in `/proc/PID/cgroup`.
    pub cgroup: String,
    /// The kernel has cgroup namespaces.
    pub cgroup_namespace: bool,
    /// Version 1 only: a directory with a place for each of `cgroup_views`.
    pub cgroup_frame: PathBuf,
    /// Version 1 only: names of hierarchies and the container's directories in them.
    pub cgroup_views: Vec<(String, PathBuf)>,
    /// The sandbox's shared memory directory.
    pub shm: PathBuf,
    /// Path of the process namespace that the container joins.
    pub pid_namespace: Option<PathBuf>,
    /// The host has message queues mounted where they usually are.
    pub has_mqueue: bool,
    /// Numbers of the devices asked for: path on the host, type letter, major, minor.
    pub devices: Vec<(PathBuf, char, u64, u64)>,
    /// All capabilities that this kernel has and we may give.
    pub capabilities: Vec<String>,
    /// Hard limits this process cannot exceed: name and value.
    pub hard_limits: Vec<(String, u64)>,
    /// Of the container's user, by what its image says.
    pub home: String,
}

/// What a container gets without asking, as in Docker and containerd.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration of a container and what our own executor does with it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub config: Value,
    /// Loaded by our executor as a finished program, not by libcontainer.
    pub seccomp: Option<Value>,
    /// To be taken on after the program was loaded; the configuration keeps what loading needs.
    pub capabilities: Option<Value>,
    /// What the configuration names by number, where the container has users of its own.
    pub staged: Vec<Staged>,
    /// Nobody says what `HOME` is to be.
    pub home_of_user: bool,
}

/// What an exec in a container is.
#[derive(Debug)]
pub(crate) struct ExecPlan {
    pub process: Value,
    pub seccomp: Option<Value>,
    /// As of a [`Plan`].
    pub home_of_user: bool,
}

/// Where libcontainer finds what is staged, and the user namespace.
pub(crate) const STAGED_MOUNTS: &str = "/mounts";
pub(crate) const STAGED_USERS: &str = "/users";

/// What loading a program without no_new_privs and then dropping capabilities takes.
const FOR_LOADING: &[&str] = &["CAP_SYS_ADMIN", "CAP_SETPCAP"];

/// The configuration of a container.
pub(crate) fn plan(sandbox: &SandboxSpec, container: &ContainerSpec, host: &Host) -> Result<Plan> {
    if container.args.is_empty() {
        return Err(Error::Spec("no command specified".into()));
    }
    let capabilities = capabilities(&container.capabilities, container.privileged, &host.capabilities)?;
    let seccomp = seccomp_profile(container, &capabilities)?;
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": container.rootfs, "readonly": container.readonly_rootfs },
        "process": process(container, sandbox, &container.user, &capabilities, host),
        "mounts": mounts(sandbox, container, host)?,
        "linux": {
            "cgroupsPath": host.cgroup,
            "namespaces": namespaces(sandbox, host),
            "resources": { "devices": device_rules(container, host) },
            "devices": devices(container, host)?,
            "rootfsPropagation": rootfs_propagation(container),
        },
    });
    if !container.privileged && !container.unmasked_proc {
        config["linux"]["maskedPaths"] = json!(MASKED_PATHS);
        config["linux"]["readonlyPaths"] = json!(READONLY_PATHS);
    }
    let mut wanted = None;
    if seccomp.is_some() && !container.no_new_privileges {
        let sets = &mut config["process"]["capabilities"];
        wanted = Some(sets.clone());
        for name in ["bounding", "effective", "permitted"] {
            keep_for_loading(&mut sets[name]);
        }
    }
    let staged = match &sandbox.users {
        Some(users) => stage(users, container, host, &mut config)?,
        None => Vec::new(),
    };
    Ok(Plan { config, seccomp, capabilities: wanted, staged, home_of_user: names_no_home(&container.env) })
}

/// Replaces every path of the machine by the number of what the shim has mounted for it.
fn stage(users: &Users, container: &ContainerSpec, host: &Host, config: &mut Value) -> Result<Vec<Staged>> {
    has_ids(users, &container.user)?;
    if !container.devices.is_empty() {
        return Err(Error::Spec("devices are not possible with hostUsers: false".into()));
    }
    let shared = |m: &&Mount| matches!(m.source, MountSource::Bind { propagation: Propagation::Bidirectional, .. });
    if let Some(shared) = container.mounts.iter().find(shared) {
        let path = shared.container_path.display();
        return Err(Error::Spec(format!(
            "mount {path}: mountPropagation Bidirectional is not possible with hostUsers: false"
        )));
    }
    // The layers of the root file system are mapped already.
    let mut staged = vec![Staged { source: container.rootfs.clone(), mapped: false, read_only: false }];
    config["root"]["path"] = json!(format!("{STAGED_MOUNTS}/0"));
    let is_cgroup =
        |path: &Path| path == host.cgroup_frame || host.cgroup_views.iter().any(|(_, directory)| directory == path);
    // What is of the root file system or of an image has its ids already.
    let has_ids = |path: &Path| {
        let of_image = |m: &Mount| match &m.source {
            MountSource::Image { host_path } | MountSource::OfRootfs { host_path } => host_path == path,
            MountSource::Bind { .. } | MountSource::Tmpfs { .. } => false,
        };
        path.starts_with(&container.rootfs) || container.mounts.iter().any(of_image)
    };
    for mount in config["mounts"].as_array_mut().into_iter().flatten().filter(|mount| mount["type"] == "bind") {
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        mount["source"] = json!(format!("{STAGED_MOUNTS}/{}", staged.len()));
        let (mapped, mut read_only) = (!is_cgroup(&source) && !has_ids(&source), false);
        if let Some(options) = mount["options"].as_array_mut() {
            read_only = options.iter().any(|option| option == "ro");
            // How times of access are kept is not for the namespace to change.
            options.retain(|option| option != "relatime");
        }
        staged.push(Staged { source, mapped, read_only });
    }
    Ok(staged)
}

fn has_ids(users: &Users, user: &User) -> Result<()> {
    let mut all = [user.uid, user.gid].into_iter().chain(user.additional_gids.iter().copied());
    match all.find(|id| users.on_the_machine(*id).is_none()) {
        Some(id) => {
            Err(Error::Spec(format!("user or group {id} is none of the pod's {} (hostUsers: false)", users.count)))
        }
        None => Ok(()),
    }
}

fn keep_for_loading(set: &mut Value) {
    let Value::Array(names) = set else { return };
    for name in FOR_LOADING {
        if !names.iter().any(|other| other == name) {
            names.push(json!(name));
        }
    }
}

/// The process and seccomp profile for an exec in `container`.
pub(crate) fn plan_exec(
    sandbox: &SandboxSpec,
    container: &ContainerSpec,
    exec: &ExecSpec,
    host: &Host,
) -> Result<ExecPlan> {
    if exec.args.is_empty() {
        return Err(Error::Spec("no command specified".into()));
    }
    let capabilities = capabilities(&container.capabilities, container.privileged, &host.capabilities)?;
    let mut like = container.clone();
    like.args.clone_from(&exec.args);
    like.tty = exec.tty;
    like.env.extend(exec.env.iter().cloned());
    if let Some(cwd) = &exec.cwd {
        like.cwd.clone_from(cwd);
    }
    let user = exec.user.as_ref().unwrap_or(&container.user);
    sandbox.users.as_ref().map_or(Ok(()), |users| has_ids(users, user))?;
    let seccomp = seccomp_profile(container, &capabilities)?;
    let process = process(&like, sandbox, user, &capabilities, host);
    Ok(ExecPlan { process, seccomp, home_of_user: names_no_home(&like.env) })
}

fn process(
    container: &ContainerSpec,
    sandbox: &SandboxSpec,
    user: &User,
    capabilities: &[String],
    host: &Host,
) -> Value {
    // Processes of other users than root get no permitted capability at exec; the set only bounds what they may gain.
    let held: &[String] = if user.uid == 0 { capabilities } else { &[] };
    let mut process = json!({
        "terminal": container.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
        "args": container.args,
        "env": environment(container, sandbox, host),
        "cwd": if container.cwd.is_empty() { "/" } else { &container.cwd },
        "capabilities": {
            "bounding": capabilities,
            "effective": held,
            "permitted": held,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": rlimits(container, host),
    });
    if let Some(profile) = &container.app_armor {
        process["apparmorProfile"] = json!(profile);
    }
    if container.no_new_privileges {
        // Absent and false differ to libcontainer: with either value it loads the filter after dropping privileges.
        process["noNewPrivileges"] = json!(true);
    }
    process
}

/// An empty one counts as none.
fn names_no_home(env: &[(String, String)]) -> bool {
    env.iter().rev().find(|(name, _)| name == "HOME").is_none_or(|(_, value)| value.is_empty())
}

/// Later entries win; PATH, HOSTNAME, TERM and HOME are as users expect them unless given.
fn environment(container: &ContainerSpec, sandbox: &SandboxSpec, host: &Host) -> Vec<String> {
    let mut all: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH)];
    if !sandbox.hostname.is_empty() {
        all.push(("HOSTNAME", &sandbox.hostname));
    }
    if container.tty {
        all.push(("TERM", "xterm"));
    }
    all.extend(container.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    if names_no_home(&container.env) && !host.home.is_empty() {
        // Where there is none, libcontainer asks name services, and those are libraries of the container.
        all.push(("HOME", &host.home));
    }
    let mut kept: Vec<(&str, &str)> = Vec::new();
    for (name, value) in all.into_iter().filter(|(name, _)| !name.is_empty()) {
        kept.retain(|(other, _)| *other != name);
        kept.push((name, value));
    }
    kept.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The default set with what is dropped and added; `drop: [ALL]` with adds keeps only those, whatever the order.
fn capabilities(change: &CapabilityChange, privileged: bool, all: &[String]) -> Result<Vec<String>> {
    if privileged {
        return Ok(all.to_vec());
    }
    let normal = |name: &String| {
        let name = name.to_ascii_uppercase();
        if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
    };
    let (add, drop): (Vec<_>, Vec<_>) =
        (change.add.iter().map(normal).collect(), change.drop.iter().map(normal).collect());
    let known = |name: &&String| *name == "ALL" || all.contains(name);
    if let Some(unknown) = add.iter().find(|name| !known(name)) {
        return Err(Error::Spec(format!("unknown capability to add: {unknown:?}")));
    }
    let mut set: Vec<String> = if add.iter().any(|name| name == "ALL") {
        all.to_vec()
    } else if drop.iter().any(|name| name == "ALL") {
        Vec::new()
    } else {
        DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).filter(|name| all.contains(name)).collect()
    };
    set.retain(|name| !drop.contains(name));
    for name in add.into_iter().filter(|name| name != "ALL" && all.contains(name)) {
        if !set.contains(&name) {
            set.push(name);
        }
    }
    set.sort();
    Ok(set)
}

fn seccomp_profile(container: &ContainerSpec, capabilities: &[String]) -> Result<Option<Value>> {
    match &container.seccomp {
        _ if container.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        // With this capability a container may mount anything as it is.
        Seccomp::Unsaid if capabilities.iter().any(|name| name == "CAP_SYS_ADMIN") => Ok(None),
        Seccomp::Unsaid => Ok(Some(seccomp::control_groups_profile())),
        Seccomp::RuntimeDefault => Ok(Some(seccomp::default_profile(capabilities))),
        Seccomp::Localhost(path) => seccomp::load_profile(path, capabilities).map(Some),
    }
}

/// The others are inherited from the shim.
fn namespaces(sandbox: &SandboxSpec, host: &Host) -> Value {
    let mut list = vec![json!({ "type": "mount" })];
    if sandbox.users.is_some() {
        list.push(json!({ "type": "user", "path": STAGED_USERS }));
    }
    match &host.pid_namespace {
        _ if sandbox.host_pid => {}
        Some(path) => list.push(json!({ "type": "pid", "path": path })),
        None => list.push(json!({ "type": "pid" })),
    }
    if host.cgroup_namespace {
        list.push(json!({ "type": "cgroup" }));
    }
    json!(list)
}

fn rlimits(container: &ContainerSpec, host: &Host) -> Value {
    let list = container.rlimits.iter().map(|rlimit| {
        let ceiling =
            host.hard_limits.iter().find(|(name, _)| *name == rlimit.name).map_or(u64::MAX, |(_, hard)| *hard);
        if rlimit.hard > ceiling {
            tracing::warn!(container = container.name, limit = rlimit.name, ceiling, "may not raise the limit so far");
        }
        json!({ "type": rlimit.name, "soft": rlimit.soft.min(ceiling), "hard": rlimit.hard.min(ceiling) })
    });
    Value::Array(list.collect())
}

fn rootfs_propagation(container: &ContainerSpec) -> &'static str {
    let mut strongest = Propagation::Private;
    for mount in &container.mounts {
        if let MountSource::Bind { propagation, .. } = mount.source {
            match (strongest, propagation) {
                (_, Propagation::Bidirectional) => strongest = Propagation::Bidirectional,
                (Propagation::Private, Propagation::HostToContainer) => strongest = Propagation::HostToContainer,
                _ => {}
            }
        }
    }
    match strongest {
        Propagation::Private => "private",
        // libcontainer knows the words without `r`, and applies them to everything below.
        Propagation::HostToContainer => "slave",
        Propagation::Bidirectional => "shared",
    }
}

fn mounts(sandbox: &SandboxSpec, container: &ContainerSpec, host: &Host) -> Result<Value> {
    let access = if container.privileged { "rw" } else { "ro" };
    let mut usual = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/dev/shm", "bind", &host.shm.to_string_lossy(), &["rbind", "rw"]),
    ];
    usual.extend(cgroup_mounts(host, access));
    let mut list: Vec<Value> = Vec::new();
    for usual in usual {
        let path = Path::new(usual["destination"].as_str().unwrap_or_default()).to_owned();
        let hides = |mount: &Mount| mount.container_path == path || is_below_cgroups(&path, &mount.container_path);
        let replaced = container.mounts.iter().any(hides);
        // Without an ipc namespace of our own there is no right to mount mqueue: take the host's, if it has it.
        if path == Path::new("/dev/mqueue") && sandbox.host_ipc && !replaced {
            if !host.has_mqueue {
                continue;
            }
            list.push(mount("/dev/mqueue", "bind", "/dev/mqueue", &["rbind", "nosuid", "noexec", "nodev"]));
        } else if !replaced {
            list.push(usual);
        }
    }
    // Parents before children, so that none hides another; the order among equals is the caller's.
    let mut own: Vec<&Mount> = container.mounts.iter().collect();
    own.sort_by_key(|mount| mount.container_path.components().count());
    for mount in own {
        list.push(own_mount(mount)?);
    }
    Ok(Value::Array(list))
}

const CGROUPS: &str = "/sys/fs/cgroup";

/// A mount of the caller's over all cgroups replaces each of ours.
fn is_below_cgroups(path: &Path, given: &Path) -> bool {
    given == Path::new(CGROUPS) && path.starts_with(given)
}

/// The container's own cgroups. On version 1 they are bound one by one: libcontainer would mount every hierarchy for
/// writing, systemd's too.
fn cgroup_mounts(host: &Host, access: &str) -> Vec<Value> {
    let options = ["nosuid", "noexec", "nodev", "relatime", access];
    if host.cgroup_views.is_empty() {
        return vec![mount(CGROUPS, "cgroup", "cgroup", &options)];
    }
    let bind = |destination: &str, source: &Path, access: &str| {
        let options = ["bind", "nosuid", "noexec", "nodev", "relatime", access];
        mount(destination, "bind", &source.to_string_lossy(), &options)
    };
    let views = host.cgroup_views.iter().map(|(name, source)| bind(&format!("{CGROUPS}/{name}"), source, access));
    std::iter::once(bind(CGROUPS, &host.cgroup_frame, "ro")).chain(views).collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn own_mount(wanted: &Mount) -> Result<Value> {
    if !wanted.container_path.is_absolute() {
        return Err(Error::Spec(format!("mount path {:?} is not absolute", wanted.container_path)));
    }
    let destination = wanted.container_path.to_string_lossy();
    let access = if wanted.read_only { "ro" } else { "rw" };
    Ok(match &wanted.source {
        MountSource::Bind { host_path, propagation } => {
            let propagation = match propagation {
                Propagation::Private => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            mount(&destination, "bind", &host_path.to_string_lossy(), &["rbind", propagation, access])
        }
        MountSource::Image { host_path } => {
            let options = ["rbind", "rprivate", "ro", "noexec", "nosuid", "nodev"];
            mount(&destination, "bind", &host_path.to_string_lossy(), &options)
        }
        MountSource::OfRootfs { host_path } => {
            mount(&destination, "bind", &host_path.to_string_lossy(), &["rbind", "rprivate", access])
        }
        MountSource::Tmpfs { size_bytes } => {
            let size = size_bytes.map(|bytes| format!("size={bytes}"));
            let mut options = vec!["nosuid", "nodev", "noexec", access];
            options.extend(size.as_deref());
            mount(&destination, "tmpfs", "tmpfs", &options)
        }
    })
}

fn devices(container: &ContainerSpec, host: &Host) -> Result<Value> {
    let list: Result<Vec<Value>> = container.devices.iter().map(|device| device_node(device, host)).collect();
    list.map(Value::Array)
}

fn device_node(device: &Device, host: &Host) -> Result<Value> {
    let (_, kind, major, minor) = numbers(device, host)
        .ok_or_else(|| Error::Spec(format!("{:?} is not a device on this host", device.host_path)))?;
    Ok(json!({
        "path": device.container_path, "type": kind.to_string(), "major": major, "minor": minor, "fileMode": 0o666,
    }))
}

fn numbers<'a>(device: &Device, host: &'a Host) -> Option<&'a (PathBuf, char, u64, u64)> {
    host.devices.iter().find(|(path, ..)| *path == device.host_path)
}

/// What may be opened: nothing, then the harmless ones that every container has, then what was asked for.
fn device_rules(container: &ContainerSpec, host: &Host) -> Value {
    if container.privileged {
        return json!([{ "allow": true, "access": "rwm" }]);
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx and the terminals
    let harmless: [(u64, Option<u64>); 9] = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    for (major, minor) in harmless {
        let mut rule = json!({ "allow": true, "type": "c", "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = json!(minor);
        }
        rules.push(rule);
    }
    for device in &container.devices {
        if let Some((_, kind, major, minor)) = numbers(device, host) {
            rules.push(json!({
                "allow": true, "type": kind.to_string(), "major": major, "minor": minor, "access": device.permissions,
            }));
        }
    }
    Value::Array(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::Spec;

    fn host() -> Host {
        let capabilities = DEFAULT_CAPABILITIES.iter().chain(&["CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
        Host {
            cgroup: "/amphipod/pod/c".into(),
            shm: "/run/shm".into(),
            home: "/home/of".into(),
            capabilities: capabilities.map(|name| (*name).to_owned()).collect(),
            ..Host::default()
        }
    }

    fn container() -> ContainerSpec {
        ContainerSpec { args: vec!["sh".into()], rootfs: "/rootfs".into(), ..ContainerSpec::default() }
    }

    #[test]
    fn the_plan_is_a_valid_configuration() {
        let plan = plan(&SandboxSpec::default(), &container(), &host()).unwrap();
        let spec: Spec = serde_json::from_value(plan.config).unwrap();
        assert!(plan.seccomp.is_some() && spec.linux().as_ref().unwrap().masked_paths().is_some());
        assert_eq!(spec.process().as_ref().unwrap().no_new_privileges(), None);
    }

    #[test]
    fn users_of_its_own_are_joined_and_every_path_is_staged() {
        let users = Users { namespace: "/u".into(), netns: "/n".into(), first_id: 1 << 30, count: 65_536 };
        let sandbox = SandboxSpec { users: Some(users), ..SandboxSpec::default() };
        let bind = |propagation| Mount {
            container_path: "/data".into(),
            read_only: false,
            source: MountSource::Bind { host_path: "/host/data".into(), propagation },
        };
        let v1 =
            Host { cgroup_frame: "/frame".into(), cgroup_views: vec![("pids".into(), "/cg/pids".into())], ..host() };
        let image = Mount {
            container_path: "/image".into(),
            read_only: true,
            source: MountSource::Image { host_path: "/images/1".into() },
        };
        let mut wanted = ContainerSpec { mounts: vec![bind(Propagation::HostToContainer), image], ..container() };
        let found = plan(&sandbox, &wanted, &v1).unwrap();
        let staged: Vec<_> = found.staged.iter().map(|s| (s.source.to_str().unwrap(), s.mapped, s.read_only)).collect();
        let expected = [
            ("/rootfs", false, false),
            ("/run/shm", true, false),
            ("/frame", false, true),
            ("/cg/pids", false, true),
            ("/host/data", true, false),
            ("/images/1", false, true),
        ];
        assert_eq!(staged, expected);
        let text = found.config.to_string();
        assert!(!staged.iter().any(|(path, ..)| text.contains(&format!("{path:?}"))), "{text}");
        assert!(found.config["linux"]["namespaces"].to_string().contains(r#""path":"/users","type":"user""#), "{text}");
        serde_json::from_value::<Spec>(found.config).unwrap();
        wanted.user.additional_gids = vec![65_535];
        assert!(plan(&sandbox, &wanted, &v1).is_ok());
        let exec = ExecSpec {
            args: vec!["id".into()],
            user: Some(User { uid: 65_536, ..User::default() }),
            ..ExecSpec::default()
        };
        assert!(plan_exec(&sandbox, &wanted, &exec, &v1).is_err());
        wanted.user.additional_gids.push(65_536);
        assert!(plan(&sandbox, &wanted, &v1).unwrap_err().to_string().contains("65536"));
        wanted.user.additional_gids.clear();
        wanted.mounts = vec![bind(Propagation::Bidirectional)];
        assert!(plan(&sandbox, &wanted, &v1).unwrap_err().to_string().contains("Bidirectional"));
    }

    #[test]
    fn capabilities_are_dropped_and_added() {
        let set = |add: &[&str], drop: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
            capabilities(&CapabilityChange { add: owned(add), drop: owned(drop) }, false, &host().capabilities)
        };
        assert_eq!(set(&["NET_BIND_SERVICE"], &["ALL"]).unwrap(), ["CAP_NET_BIND_SERVICE"]);
        assert_eq!(set(&[], &[]).unwrap().len(), DEFAULT_CAPABILITIES.len());
        assert!(!set(&[], &["cap_net_raw"]).unwrap().contains(&"CAP_NET_RAW".to_owned()));
        assert_eq!(set(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), host().capabilities.len() - 1);
        assert!(set(&["NO_SUCH"], &[]).is_err());
    }

    #[test]
    fn privileged_opens_everything_and_nothing_else_does() {
        let privileged = ContainerSpec { privileged: true, ..container() };
        let plan = plan(&SandboxSpec::default(), &privileged, &host()).unwrap();
        let value = plan.config;
        assert!(plan.seccomp.is_none() && value["linux"].get("maskedPaths").is_none());
        assert_eq!(value["process"]["capabilities"]["effective"].as_array().unwrap().len(), host().capabilities.len());
    }

    #[test]
    fn a_profile_confines_the_first_process_and_every_exec() {
        let confined = ContainerSpec { app_armor: Some("strict".into()), ..container() };
        let first = plan(&SandboxSpec::default(), &confined, &host()).unwrap().config;
        let exec = ExecSpec { args: vec!["sh".into()], ..ExecSpec::default() };
        let second = plan_exec(&SandboxSpec::default(), &confined, &exec, &host()).unwrap().process;
        for process in [&first["process"], &second] {
            let parsed: libcontainer::oci_spec::runtime::Process = serde_json::from_value(process.clone()).unwrap();
            assert_eq!(parsed.apparmor_profile().as_deref(), Some("strict"));
        }
    }

    #[test]
    fn later_variables_win_and_path_and_home_are_there() {
        let mut wanted = container();
        wanted.env = vec![("A".into(), "1".into()), ("A".into(), "2".into())];
        let env = |wanted: &ContainerSpec| environment(wanted, &SandboxSpec::default(), &host()).join(" ");
        assert_eq!(env(&wanted), format!("PATH={DEFAULT_PATH} A=2 HOME=/home/of"));
        assert!(plan(&SandboxSpec::default(), &wanted, &host()).unwrap().home_of_user);
        wanted.env = vec![("HOME".into(), String::new()), (String::new(), "x".into())];
        assert_eq!(env(&wanted), format!("PATH={DEFAULT_PATH} HOME=/home/of"));
        wanted.env = vec![("HOME".into(), "/mine".into())];
        assert_eq!(env(&wanted), format!("PATH={DEFAULT_PATH} HOME=/mine"));
        assert!(!plan(&SandboxSpec::default(), &wanted, &host()).unwrap().home_of_user);
    }

    #[test]
    fn another_user_holds_no_capabilities() {
        let mut wanted = container();
        wanted.user.uid = 1000;
        let first = plan(&SandboxSpec::default(), &wanted, &host()).unwrap();
        assert_eq!(first.capabilities.unwrap()["effective"], json!([]));
        assert_eq!(first.config["process"]["capabilities"]["effective"], json!(FOR_LOADING));
        wanted.no_new_privileges = true;
        let second = plan(&SandboxSpec::default(), &wanted, &host()).unwrap();
        assert!(second.capabilities.is_none());
        assert_eq!(second.config["process"]["capabilities"]["effective"], json!([]));
    }

    #[test]
    fn cgroups_are_read_only_but_for_the_privileged() {
        let v1 = Host { cgroup_views: vec![("memory".into(), "/cg/memory/pod/c".into())], ..host() };
        for host in [host(), v1] {
            for (privileged, access) in [(false, "ro"), (true, "rw")] {
                let wanted = ContainerSpec { privileged, ..container() };
                let config = plan(&SandboxSpec::default(), &wanted, &host).unwrap().config;
                let below = |m: &&Value| m["destination"].as_str().unwrap().starts_with(CGROUPS);
                let found: Vec<&Value> = config["mounts"].as_array().unwrap().iter().filter(below).collect();
                let last = found.last().unwrap()["options"].as_array().unwrap();
                assert!(last.contains(&json!(access)), "{found:?}");
                assert!(found.len() == 1 || found[0]["options"].as_array().unwrap().contains(&json!("ro")));
            }
        }
    }

    #[test]
    fn own_mounts_replace_the_usual_ones_and_parents_come_first() {
        let tmpfs = |path: &str| Mount {
            container_path: path.into(),
            read_only: false,
            source: MountSource::Tmpfs { size_bytes: Some(1) },
        };
        let wanted = ContainerSpec { mounts: vec![tmpfs("/a/b"), tmpfs("/a"), tmpfs("/dev/shm")], ..container() };
        let value = plan(&SandboxSpec::default(), &wanted, &host()).unwrap().config;
        let paths: Vec<_> =
            value["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
        assert_eq!(paths.iter().filter(|path| **path == "/dev/shm").count(), 1);
        assert_eq!(&paths[paths.len() - 3..], ["/a", "/a/b", "/dev/shm"]);
    }
}
