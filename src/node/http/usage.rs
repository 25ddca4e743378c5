//! What the machine, its pods and their containers use now: gathered when somebody asks, and only then.
//!
//! A rate needs two samples, so the last one of each control group is kept; whoever asks first, or after long, waits a moment
//! for a second one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::Mutex;

use super::disk::{Counts, Taken};
use super::network::Network;
use crate::base::fs_stats::FsStats;
use crate::containers::{ContainerState, Sandbox, Stats};
use crate::kinds::core::pod;
use crate::node::Node;
use crate::node::reported::reported;

/// A sample that is younger than this makes no rate; the one before is said again.
const YOUNG: Duration = Duration::from_secs(1);
/// A sample that is older than this says nothing about now.
const OLD: Duration = Duration::from_secs(120);
/// How long to wait for a second sample.
const BETWEEN: Duration = Duration::from_millis(200);

/// One control group.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Usage {
    pub at: Timestamp,
    pub stats: Stats,
    /// CPU time per second, in billionths of a core.
    pub nano_cores: Option<u64>,
}

/// Everything at one instant.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    pub at: Timestamp,
    pub booted: Option<Timestamp>,
    pub machine: Usage,
    /// All pods together.
    pub all: Usage,
    pub network: Option<Network>,
    pub disk: Disk,
    pub pods: Vec<PodUsage>,
}

/// Where pods and images are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub node: Option<FsStats>,
    pub images: Option<Taken>,
}

/// One pod.
#[derive(Clone, Debug, Default)]
pub(super) struct PodUsage {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its control group below the node's root.
    pub cgroup: String,
    pub sandbox: String,
    pub started: Timestamp,
    pub usage: Usage,
    /// `None` in the machine's own network.
    pub network: Option<Network>,
    pub containers: Vec<ContainerUsage>,
    /// Volumes that live and die with the pod.
    pub volumes: Vec<VolumeUsage>,
}

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VolumeUsage {
    pub name: String,
    /// Of its own file system, which is one of memory for some.
    pub space: FsStats,
    pub taken: Taken,
    pub in_memory: bool,
}

/// One running container.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerUsage {
    pub id: String,
    pub name: String,
    pub image: String,
    pub started: Timestamp,
    pub usage: Usage,
    /// The writable layer.
    pub root: Option<Taken>,
    pub logs: Option<Taken>,
}

/// What is kept between two questions.
#[derive(Debug, Default)]
pub(super) struct Samples {
    last: Mutex<HashMap<String, Sample>>,
    counts: Counts,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Timestamp,
    cpu_ns: u64,
    nano_cores: Option<u64>,
}

/// Which parts are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// Rates of CPU use.
    pub rates: bool,
    /// Disks, networks and volumes.
    pub disks: bool,
}

/// The kind of a file system in memory, as `statfs` says it.
const TMPFS: i64 = 0x0102_1994;

const MACHINE: &str = "machine";
const ALL: &str = "pods";

// === impl Sample ===

impl Sample {
    /// The rate since the sample before, and what is to be kept.
    fn after(before: Option<&Self>, at: Timestamp, cpu_ns: u64) -> Self {
        let fresh = Self { at, cpu_ns, nano_cores: None };
        let Some(before) = before else { return fresh };
        let Ok(passed) = Duration::try_from(at.duration_since(before.at)) else { return fresh };
        if cpu_ns < before.cpu_ns || passed > OLD {
            return fresh;
        }
        if passed < YOUNG && before.nano_cores.is_some() {
            return *before;
        }
        if passed < BETWEEN / 2 {
            return *before;
        }
        let rate = u128::from(cpu_ns - before.cpu_ns) * 1_000_000_000 / passed.as_nanos().max(1);
        Self { nano_cores: u64::try_from(rate).ok(), ..fresh }
    }
}

// === impl Samples ===

impl Samples {
    /// Gathers everything that is wanted.
    pub(super) async fn gather(&self, node: &Node, want: Want) -> Snapshot {
        let mut snapshot = measure(node).await;
        if want.rates {
            let mut last = self.last.lock().await;
            if !rate(&mut last, &mut snapshot) {
                tokio::time::sleep(BETWEEN).await;
                snapshot = measure(node).await;
                rate(&mut last, &mut snapshot);
            }
        }
        if want.disks {
            self.disks(node, &mut snapshot).await;
        }
        snapshot
    }

    async fn disks(&self, node: &Node, snapshot: &mut Snapshot) {
        snapshot.network = Network::of_process("self");
        let data = &node.config.data_dir;
        snapshot.disk.node = FsStats::of(data).ok();
        let images = data.join("images");
        let mut wanted = Vec::new();
        let root = |id: &str| data.join("containers").join(id).join("upper");
        let logs = |p: &PodUsage, c: &str| node.pod_log_dir(&p.namespace, &p.name, &p.uid).join(c);
        let volumes = |p: &PodUsage| node.pod_dir(&p.uid).join("volumes/empty-dir");
        let mut by_pod: Vec<Vec<(String, PathBuf)>> = Vec::new();
        for p in &snapshot.pods {
            wanted.extend(p.containers.iter().flat_map(|c| [root(&c.id), logs(p, &c.name)]));
            let entries = std::fs::read_dir(volumes(p)).into_iter().flatten().flatten();
            let found: Vec<(String, PathBuf)> =
                entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path())).collect();
            wanted.extend(found.iter().map(|(_, path)| path.clone()));
            by_pod.push(found);
        }
        // The largest last, so that it keeps nobody waiting.
        wanted.push(images.clone());
        let taken = self.counts.of(wanted).await;
        snapshot.disk.images = taken.get(&images).copied();
        for (p, volumes) in snapshot.pods.iter_mut().zip(by_pod) {
            let paths: Vec<_> = p.containers.iter().map(|c| (root(&c.id), logs(p, &c.name))).collect();
            for (c, (root, logs)) in p.containers.iter_mut().zip(paths) {
                c.root = taken.get(&root).copied();
                c.logs = taken.get(&logs).copied();
            }
            p.volumes =
                volumes.into_iter().filter_map(|(name, path)| volume(name, &path, *taken.get(&path)?)).collect();
        }
    }
}

fn volume(name: String, path: &Path, taken: Taken) -> Option<VolumeUsage> {
    let kind = rustix::fs::statfs(path).ok()?.f_type;
    Some(VolumeUsage { name, space: FsStats::of(path).ok()?, taken, in_memory: kind == TMPFS })
}

/// Fills in the rates; false where one is missing that a second sample would give.
fn rate(last: &mut HashMap<String, Sample>, snapshot: &mut Snapshot) -> bool {
    let mut now = HashMap::new();
    let mut complete = true;
    let mut one = |key: String, usage: &mut Usage| {
        let Some(cpu_ns) = usage.stats.cpu.usage_ns else { return };
        let sample = Sample::after(last.get(&key), usage.at, cpu_ns);
        usage.nano_cores = sample.nano_cores;
        complete &= sample.nano_cores.is_some();
        now.insert(key, sample);
    };
    one(MACHINE.into(), &mut snapshot.machine);
    one(ALL.into(), &mut snapshot.all);
    for p in &mut snapshot.pods {
        one(p.sandbox.clone(), &mut p.usage);
        p.containers.iter_mut().for_each(|c| one(c.id.clone(), &mut c.usage));
    }
    *last = now;
    complete
}

/// One sample of everything, without rates and disks.
async fn measure(node: &Node) -> Snapshot {
    let usage = |stats: Stats| Usage { at: node.clock.now(), stats, nano_cores: None };
    let mut pods = Vec::new();
    for sandbox in node.runtime.list().await.into_iter().filter(|s| s.alive) {
        let Ok(stats) = node.runtime.sandbox_stats(&sandbox.spec.id).await else { continue };
        let mut p = pod_usage(&sandbox, usage(stats));
        let statuses = statuses(node, &sandbox);
        for c in &sandbox.containers {
            let ContainerState::Running { started_at } = c.state else { continue };
            let Ok(stats) = node.runtime.stats(&c.id).await else { continue };
            let image = statuses.iter().find(|s| s.name == c.name).map(|s| s.image.clone()).unwrap_or_default();
            let (id, name) = (c.id.clone(), c.name.clone());
            let usage = usage(stats);
            p.containers.push(ContainerUsage { id, name, image, started: started_at, usage, root: None, logs: None });
        }
        pods.push(p);
    }
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let machine = usage(node.runtime.machine_stats().await);
    let all = usage(node.runtime.all_stats().await);
    let (network, disk) = (None, Disk::default());
    Snapshot { at: node.clock.now(), booted: booted(), machine, all, network, disk, pods }
}

fn pod_usage(sandbox: &Sandbox, usage: Usage) -> PodUsage {
    let spec = &sandbox.spec;
    PodUsage {
        namespace: spec.pod_namespace.clone(),
        name: spec.pod_name.clone(),
        uid: spec.pod_uid.clone(),
        cgroup: spec.cgroup_parent.trim_matches('/').to_owned(),
        sandbox: spec.id.clone(),
        started: sandbox.created_at,
        usage,
        network: spec.netns.as_ref().and_then(|_| Network::of_process(&sandbox.pid.to_string())),
        containers: Vec::new(),
        volumes: Vec::new(),
    }
}

fn statuses(node: &Node, sandbox: &Sandbox) -> Vec<ContainerStatus> {
    let object = node.client.informer(&pod::KIND).get(&sandbox.spec.pod_namespace, &sandbox.spec.pod_name);
    let Some(pod) = object.and_then(|o| o.typed::<Pod>().ok()) else { return Vec::new() };
    reported(&pod).cloned().collect()
}

/// When the machine began.
fn booted() -> Option<Timestamp> {
    let text = std::fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::network::{Direction, Interface};
    use super::*;
    use crate::containers::Device;
    use crate::containers::stats::{Cpu, Memory};

    /// A machine with one pod of one container.
    pub(in super::super) fn snapshot() -> Snapshot {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let limit = Some(1024);
        let memory = Memory {
            usage: Some(400),
            working_set: Some(300),
            rss: Some(200),
            swap: Some(0),
            page_faults: Some(9),
            major_page_faults: Some(1),
            oom_kills: Some(2),
            ..Memory::default()
        };
        let (quota_us, period_us) = (Some(50_000), Some(100_000));
        let cpu = Cpu { usage_ns: Some(9_000_000_000), quota_us, period_us, shares: Some(512), ..Cpu::default() };
        // A device that no machine has.
        let device = Device { major: 4095, minor: 999, read_bytes: 21, written_bytes: 22, reads: 23, writes: 24 };
        let stats = Stats { cpu, memory, processes: Some(2), devices: vec![device], ..Stats::default() };
        let usage = Usage { at: now, stats: stats.clone(), nano_cores: Some(250_000_000) };
        let limited = Usage { stats: Stats { memory: Memory { limit, ..memory }, ..stats }, ..usage.clone() };
        let rx = Direction { bytes: 7, packets: 8, errors: 9, dropped: 10 };
        let tx = Direction { bytes: 11, packets: 12, errors: 13, dropped: 14 };
        let interfaces = vec![Interface { name: "eth0".into(), rx, tx }];
        let network = Some(Network { interfaces, default: Some("eth0".into()) });
        let taken = |bytes| Some(Taken { bytes, inodes: 1 });
        let volume = |name: &str, bytes, in_memory| {
            let (space, taken) = (FsStats { capacity_bytes: 5000, ..FsStats::default() }, Taken { bytes, inodes: 1 });
            VolumeUsage { name: name.into(), space, taken, in_memory }
        };
        let container = ContainerUsage {
            id: "i".into(),
            name: "c".into(),
            image: "im\"age".into(),
            started: Timestamp::from_millisecond(2_000_500).unwrap(),
            usage: limited,
            root: taken(10),
            logs: taken(5),
        };
        let pod = PodUsage {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            cgroup: "kubepods/podu".into(),
            sandbox: "s".into(),
            started: now,
            usage: usage.clone(),
            network: network.clone(),
            containers: vec![container],
            volumes: vec![volume("scratch", 20, false), volume("memory", 1000, true)],
        };
        let space =
            FsStats { capacity_bytes: 1000, available_bytes: 300, free_bytes: 400, inodes: 100, inodes_free: 40 };
        let booted = Timestamp::from_second(1000).ok();
        let disk = Disk { node: Some(space), images: taken(50) };
        Snapshot { at: now, booted, machine: usage.clone(), all: usage, network, disk, pods: vec![pod] }
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + milliseconds).unwrap()
    }

    #[test]
    fn a_rate_is_what_was_used_between_two_samples() {
        let first = Sample::after(None, at(0), 5_000_000_000);
        assert_eq!(first.nano_cores, None);
        let second = Sample::after(Some(&first), at(2_000), 6_000_000_000);
        assert_eq!(second.nano_cores, Some(500_000_000), "half a core");
        let soon = Sample::after(Some(&second), at(2_100), 6_100_000_000);
        assert_eq!((soon.nano_cores, soon.at), (Some(500_000_000), at(2_000)), "too soon: the last one is said again");
        let quick = Sample::after(Some(&first), at(200), 5_200_000_000);
        assert_eq!(quick.nano_cores, Some(1_000_000_000), "the second sample of a first question");
        let late = Sample::after(Some(&second), at(600_000), 7_000_000_000);
        assert_eq!(late.nano_cores, None, "an average of minutes says nothing about now");
        let restarted = Sample::after(Some(&second), at(4_000), 1);
        assert_eq!(restarted.nano_cores, None, "another control group of that name");
    }
}
