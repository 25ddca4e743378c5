//! `amphipod check`: can this machine run a node, and what to do where it cannot; with `--security`, how safe it is.
//!
//! Invariant: a probe leaves nothing behind, and each line that is not ok says what helps.

mod security;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use super::{Directories, output};
use crate::base::fs_stats::FsStats;
use crate::containers::cgroup::Layout;
use crate::net::check::Missing;
use crate::node_paths::{NodePaths, Ranges};
use crate::{containers, net};

/// Kernels before it lack something of what the data plane and the containers use.
const KERNEL: (u32, u32) = (5, 10);
/// When this was written: a clock before that makes certificates that nobody accepts.
const CLOCK_FIRST: i64 = 1_767_225_600;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// What one look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Ok(String),
    /// It works, but something is worth to know.
    Warn(String),
    /// A node cannot run.
    Fail(String),
}

use Found::{Fail, Ok as Fine, Warn};

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// What the CIS benchmark for Kubernetes asks, of the server that runs on this machine and its cluster
    #[arg(long)]
    security: bool,
    #[command(flatten)]
    directories: Directories,
}

/// Runs every probe and prints a line for each; an error when a node cannot run, or when a line of the benchmark failed.
pub fn run(args: &CheckArgs) -> Result<()> {
    if args.security { security::run(&args.directories) } else { probe(&args.directories) }
}

fn probe(directories: &Directories) -> Result<()> {
    let place = NodePaths::new(&directories.data_dir, &directories.run_dir);
    let root = nix::unistd::geteuid().is_root();
    let mut failed = 0;
    let mut show = |what: &str, found: Found| {
        let (mark, text) = match &found {
            Fine(text) => ("ok", text),
            Warn(text) => ("warn", text),
            Fail(text) => ("fail", text),
        };
        failed += u32::from(matches!(found, Fail(_)));
        output(&format!("{mark:<5} {what:<18} {text}"));
    };
    show("root", if root { Fine("yes".into()) } else { Fail("a node needs root: run this as root".into()) });
    show("kernel", kernel(&release()));
    show("control groups", cgroups());
    if root {
        show("overlayfs", overlay(&place.data_dir));
        show("user namespaces", user_namespaces(&place.data_dir));
        let ranges = Ranges { pods: vec!["10.42.0.0/24".parse()?], ..Ranges::default() };
        show("nftables", must(net::check::nftables(&place.network(&ranges)), "takes our rules"));
        show("conntrack", must(net::check::conntrack(), "connections can be listed"));
        show("links", must(net::check::links(), "bridge and veth can be made"));
        show("vxlan", may(net::check::vxlan(), "can be made", "only clusters of several machines need it"));
        let otherwise = "the overlay between machines is not encrypted, and all nodes use vxlan";
        show("wireguard", may(net::check::wireguard(), "can be made", otherwise));
    }
    show("seccomp", seccomp());
    show("ports", port(6443, &place));
    show("clock", clock(jiff::Timestamp::now().as_second()));
    show("disk", disk(&place.data_dir));
    show("memory", memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()));
    if failed > 0 {
        bail!("{failed} of these must be put right before a node can run here");
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error} ({cause})"),
        None => error.to_string(),
    }
}

fn must(result: Result<(), Missing>, good: &str) -> Found {
    result.map_or_else(|missing| Fail(chain(&missing)), |()| Fine(good.into()))
}

fn may(result: Result<(), Missing>, good: &str, otherwise: &str) -> Found {
    result.map_or_else(|missing| Warn(format!("{} ({otherwise})", chain(&missing))), |()| Fine(good.into()))
}

fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

fn kernel(release: &str) -> Found {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse::<u32>().ok());
    match numbers.next().zip(numbers.next()) {
        Some(version) if version >= KERNEL => Fine(release.into()),
        Some(_) => Fail(format!("{release}: {}.{} or newer is needed; install a newer kernel", KERNEL.0, KERNEL.1)),
        None => Warn(format!("{release:?} is no version that can be compared with {}.{}", KERNEL.0, KERNEL.1)),
    }
}

fn cgroups() -> Found {
    let (version, controllers) = match Layout::detect() {
        Ok(Layout::V2 { mount }) => {
            let text = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            ("version 2", text.split_whitespace().map(str::to_owned).collect())
        }
        Ok(Layout::V1 { hierarchies, unified }) => {
            let version = if unified.is_some() { "version 1 (hybrid)" } else { "version 1" };
            (version, hierarchies.into_iter().flat_map(|h| h.controllers).collect::<Vec<String>>())
        }
        Err(error) => return Fail(format!("/proc/self/mountinfo cannot be read ({error}): mount proc")),
    };
    judge_cgroups(version, &controllers)
}

fn judge_cgroups(version: &str, controllers: &[String]) -> Found {
    if controllers.is_empty() {
        return Fail("no controllers are there: mount the cgroup2 file system at /sys/fs/cgroup".into());
    }
    let lacking: Vec<&str> =
        ["cpu", "memory", "pids"].into_iter().filter(|name| !controllers.iter().any(|c| c == name)).collect();
    match lacking.first() {
        None => Fine(format!("{version}: {}", controllers.join(" "))),
        Some(first) => Warn(format!(
            "{version} without {}: limits of that kind do not hold; boot with cgroup_enable={first} on the kernel's command line",
            lacking.join(", ")
        )),
    }
}

/// Mounts an overlay where images will be.
fn overlay(data_dir: &Path) -> Found {
    let Some(parent) = existing(data_dir) else { return Fail("--data-dir: no part of the path exists".into()) };
    let scratch = parent.join(format!(".amphipod-check-{}", std::process::id()));
    let result = containers::image::probe_overlay(&scratch);
    let _ = crate::base::tree::remove(&scratch);
    match result {
        Ok(()) => Fine(format!("can be mounted at {}", parent.display())),
        Err(error) => Fail(format!(
            "{}; load the kernel module overlay, and put --data-dir on a file system that carries it (ext4, xfs, btrfs)",
            chain(&error)
        )),
    }
}

/// Makes one, and mounts with its ids where volumes and images will be.
fn user_namespaces(data_dir: &Path) -> Found {
    let Some(parent) = existing(data_dir) else { return Fail("--data-dir: no part of the path exists".into()) };
    let scratch = parent.join(format!(".amphipod-check-users-{}", std::process::id()));
    let config = containers::Config::new(scratch.join("data"), scratch.join("run"));
    let lacks = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_or_else(|error| Some(error.to_string()), |runtime| runtime.block_on(containers::lacks_for_users(&config)));
    let _ = crate::base::tree::remove(&scratch);
    match lacks {
        None => Fine("pods can have users of their own (hostUsers: false)".into()),
        Some(why) => Warn(format!("{why} (pods with hostUsers: false are refused)")),
    }
}

/// The closest directory that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    path.ancestors().find(|p| p.is_dir()).map(Path::to_owned)
}

fn seccomp() -> Found {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => Fine("filters can be set".into()),
        _ => Fail("the kernel has no seccomp filters: use one built with CONFIG_SECCOMP_FILTER".into()),
    }
}

/// The API's port, which may be the own server's already.
fn port(port: u16, place: &NodePaths) -> Found {
    let own = place.recorded_server().filter(|server| server.address.port() == port);
    if let Some(process) = place.running().filter(|_| own.is_some()) {
        return Fine(format!("{port} is the own server's, which runs (process {process})"));
    }
    match TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
        Ok(_) => Fine(format!("{port} is free")),
        Err(error) => {
            Warn(format!("{port} cannot be used ({error}): stop what uses it, or choose --https-listen-port"))
        }
    }
}

fn clock(now_seconds: i64) -> Found {
    match now_seconds >= CLOCK_FIRST {
        true => Fine("plausible".into()),
        false => Fail("the clock is years behind: set the time, and let a time service keep it".into()),
    }
}

fn disk(data_dir: &Path) -> Found {
    let Some(path) = existing(data_dir) else { return Fail("--data-dir: no part of the path exists".into()) };
    let (free, total) = match FsStats::of(&path) {
        Ok(space) => (space.available_bytes, space.capacity_bytes.max(1)),
        Err(error) => return Warn(format!("{} cannot be looked at: {error}", path.display())),
    };
    let text = format!("{} MiB free at {}", free / MIB, path.display());
    match free {
        free if free < GIB / 4 => Fail(format!("{text}: make room, or choose another --data-dir")),
        free if free < 2 * GIB || free < total / 20 => Warn(format!("{text}: images may not fit")),
        _ => Fine(text),
    }
}

fn memory(meminfo: &str) -> Found {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib / 1024)
    };
    match (field("MemTotal"), field("MemAvailable")) {
        (Some(total), Some(free)) if free < 128 => Warn(format!("{free} of {total} MiB available: pods may not fit")),
        (Some(total), Some(free)) => Fine(format!("{free} of {total} MiB available")),
        _ => Warn("/proc/meminfo cannot be read: mount proc".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_paths::ServerRecord;

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(matches!(kernel("6.1.0-18-amd64"), Fine(_)));
        assert!(matches!(kernel("5.10.0"), Fine(_)));
        assert!(matches!(kernel("5.9.16"), Fail(_)));
        assert!(matches!(kernel("odd"), Warn(_)));
    }

    #[test]
    fn missing_controllers_are_named() {
        let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert!(matches!(judge_cgroups("version 2", &all(&["cpu", "memory", "pids", "io"])), Fine(_)));
        let Warn(text) = judge_cgroups("version 2", &all(&["cpu", "pids"])) else { panic!() };
        assert!(text.contains("without memory") && text.contains("cgroup_enable=memory"), "{text}");
        assert!(matches!(judge_cgroups("version 1", &[]), Fail(_)));
    }

    #[test]
    fn a_port_of_the_own_server_is_no_complaint_and_one_of_others_is() {
        let dir = tempfile::tempdir().unwrap();
        let place = NodePaths::new(&dir.path().join("data"), &dir.path().join("run"));
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        assert!(matches!(port(number, &place), Warn(_)), "of others");
        let claim = place.claim().unwrap();
        let record = ServerRecord {
            address: SocketAddr::from(([0, 0, 0, 0], number)),
            config_dir: PathBuf::new(),
            kubeconfig: PathBuf::new(),
        };
        place.record_server(&record).unwrap();
        let process = std::process::id();
        assert_eq!(port(number, &place), Fine(format!("{number} is the own server's, which runs (process {process})")));
        drop(claim);
        fs::write(dir.path().join("run/server.pid"), "4000000000\n").unwrap();
        assert!(matches!(port(number, &place), Warn(_)), "the own server has ended");
    }

    #[test]
    fn memory_and_clock() {
        assert_eq!(
            memory("MemTotal: 2048000 kB\nMemAvailable:  1024000 kB\n"),
            Fine("1000 of 2000 MiB available".into())
        );
        assert!(matches!(memory("MemTotal: 512000 kB\nMemAvailable: 1024 kB\n"), Warn(_)));
        assert!(matches!(memory(""), Warn(_)));
        assert!(matches!(clock(0), Fail(_)) && matches!(clock(CLOCK_FIRST + 1), Fine(_)));
    }
}
