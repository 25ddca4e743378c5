//! What cgroups say about use of CPU, memory and processes, on version 1 and version 2.
//!
//! Pure: both readers get a function from `(controller, file)` to the file's text, so what a kernel does not tell is absent
//! and never zero. The memory that counts as working set is all that is charged without the inactive file cache, as
//! everywhere in Kubernetes.

/// Use of resources at one instant; `None` is what this kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: Cpu,
    pub memory: Memory,
    /// What went to and came from block devices; empty where there are none, or where the kernel does not tell.
    pub devices: Vec<Device>,
    /// Processes, and threads of all of them.
    pub processes: Option<u64>,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
}

/// CPU time since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    pub usage_ns: Option<u64>,
    pub user_ns: Option<u64>,
    pub system_ns: Option<u64>,
    /// Periods of the CPU limit, how many of them were used up, and for how long nothing ran for that.
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled_ns: Option<u64>,
    /// The limit: microseconds of each period; `None` where there is none.
    pub quota_us: Option<u64>,
    pub period_us: Option<u64>,
    /// The share in version 1's measure, of which 1024 is usual.
    pub shares: Option<u64>,
}

/// One block device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Memory in bytes, and how often pages were missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All that is charged, caches included.
    pub usage: Option<u64>,
    /// Without inactive file cache: what eviction and `kubectl top` look at.
    pub working_set: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub swap: Option<u64>,
    pub usage_max: Option<u64>,
    /// `None` as well where there is no limit.
    pub limit: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// Processes that were ended because there was no memory left.
    pub oom_kills: Option<u64>,
}

/// Beyond this a version 1 limit is none.
const UNLIMITED: u64 = 1 << 62;

/// Reads the files of a version 1 cgroup, each from its controller.
pub(super) fn of_v1(read: impl Fn(&'static str, &'static str) -> Option<String>) -> Stats {
    let number = |controller, file| number(&read(controller, file)?);
    let throttling = read("cpu", "cpu.stat").unwrap_or_default();
    let table = read("memory", "memory.stat").unwrap_or_default();
    // Those that begin with `total_` speak of what is below as well, as the use does.
    let memory = |key| keyed(&table, key);
    let usage = number("memory", "memory.usage_in_bytes");
    Stats {
        cpu: Cpu {
            usage_ns: number("cpuacct", "cpuacct.usage"),
            user_ns: number("cpuacct", "cpuacct.usage_user"),
            system_ns: number("cpuacct", "cpuacct.usage_sys"),
            periods: keyed(&throttling, "nr_periods"),
            throttled_periods: keyed(&throttling, "nr_throttled"),
            throttled_ns: keyed(&throttling, "throttled_time"),
            // Without a limit it is -1.
            quota_us: number("cpu", "cpu.cfs_quota_us"),
            period_us: number("cpu", "cpu.cfs_period_us"),
            shares: number("cpu", "cpu.shares"),
        },
        memory: Memory {
            usage,
            working_set: working_set(usage, memory("total_inactive_file")),
            rss: memory("total_rss"),
            cache: memory("total_cache"),
            mapped_file: memory("total_mapped_file"),
            swap: memory("total_swap"),
            usage_max: number("memory", "memory.max_usage_in_bytes"),
            limit: number("memory", "memory.limit_in_bytes").filter(|limit| *limit < UNLIMITED),
            page_faults: memory("total_pgfault"),
            major_page_faults: memory("total_pgmajfault"),
            oom_kills: keyed(&read("memory", "memory.oom_control").unwrap_or_default(), "oom_kill"),
        },
        devices: devices_of_v1(
            &read("blkio", "blkio.throttle.io_service_bytes_recursive").unwrap_or_default(),
            &read("blkio", "blkio.throttle.io_serviced_recursive").unwrap_or_default(),
        ),
        processes: None,
        pids: number("pids", "pids.current"),
        pids_limit: number("pids", "pids.max"),
    }
}

/// Reads the files of a version 2 cgroup.
pub(super) fn of_v2(read: impl Fn(&'static str, &'static str) -> Option<String>) -> Stats {
    let number = |controller, file| number(&read(controller, file)?);
    let cpu = read("cpu", "cpu.stat").unwrap_or_default();
    let limit = read("cpu", "cpu.max");
    let limit = limit.as_deref().and_then(|limit| limit.trim().split_once(' '));
    let nanoseconds = |key| keyed(&cpu, key).map(|microseconds| microseconds * 1000);
    let table = read("memory", "memory.stat").unwrap_or_default();
    let memory = |key| keyed(&table, key);
    let usage = number("memory", "memory.current");
    Stats {
        cpu: Cpu {
            usage_ns: nanoseconds("usage_usec"),
            user_ns: nanoseconds("user_usec"),
            system_ns: nanoseconds("system_usec"),
            periods: keyed(&cpu, "nr_periods"),
            throttled_periods: keyed(&cpu, "nr_throttled"),
            throttled_ns: nanoseconds("throttled_usec"),
            quota_us: limit.and_then(|(quota, _)| quota.parse().ok()),
            period_us: limit.and_then(|(_, period)| period.parse().ok()),
            shares: number("cpu", "cpu.weight").map(shares),
        },
        memory: Memory {
            usage,
            working_set: working_set(usage, memory("inactive_file")),
            rss: memory("anon"),
            cache: memory("file"),
            mapped_file: memory("file_mapped"),
            swap: number("memory", "memory.swap.current"),
            usage_max: number("memory", "memory.peak"),
            limit: number("memory", "memory.max"),
            page_faults: memory("pgfault"),
            major_page_faults: memory("pgmajfault"),
            oom_kills: keyed(&read("memory", "memory.events").unwrap_or_default(), "oom_kill"),
        },
        devices: devices_of_v2(&read("io", "io.stat").unwrap_or_default()),
        processes: None,
        pids: number("pids", "pids.current"),
        pids_limit: number("pids", "pids.max"),
    }
}

/// Version 2's root has no files for its memory in use: `/proc/meminfo` has.
pub(super) fn complete_root(mut stats: Stats, meminfo: &str, inactive_file: Option<u64>) -> Stats {
    let bytes = |key: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    if stats.memory.usage.is_none()
        && let (Some(total), Some(free)) = (bytes("MemTotal"), bytes("MemFree"))
    {
        stats.memory.usage = Some(total.saturating_sub(free));
        stats.memory.working_set = working_set(stats.memory.usage, inactive_file.or_else(|| bytes("Inactive(file)")));
        stats.memory.rss = stats.memory.rss.or_else(|| bytes("AnonPages"));
    }
    stats
}

/// Version 2's weight in the measure of version 1, back from what runtimes make of it.
fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1) * 262_142 / 9_999
}

/// `254:0`, as both versions name devices.
fn device(name: &str) -> Option<Device> {
    let (major, minor) = name.split_once(':')?;
    Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Device::default() })
}

/// Lines of `254:0 Read 4096` in both tables.
fn devices_of_v1(bytes: &str, operations: &str) -> Vec<Device> {
    let mut devices: Vec<Device> = Vec::new();
    for (table, of_bytes) in [(bytes, true), (operations, false)] {
        for line in table.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(sort), Some(Ok(count))) = (words.next(), words.next(), words.next().map(str::parse))
            else {
                continue;
            };
            let Some(named) = device(name) else { continue };
            let known = devices.iter().position(|d| (d.major, d.minor) == (named.major, named.minor));
            let at = known.unwrap_or_else(|| {
                devices.push(named);
                devices.len() - 1
            });
            match (sort, of_bytes) {
                ("Read", true) => devices[at].read_bytes = count,
                ("Write", true) => devices[at].written_bytes = count,
                ("Read", false) => devices[at].reads = count,
                ("Write", false) => devices[at].writes = count,
                _ => {}
            }
        }
    }
    devices
}

/// Lines of `254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn devices_of_v2(table: &str) -> Vec<Device> {
    let line = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let count = |key: &str| rest.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
        let device = device(name)?;
        Some(Device {
            read_bytes: count("rbytes")?,
            written_bytes: count("wbytes")?,
            reads: count("rios")?,
            writes: count("wios")?,
            ..device
        })
    };
    table.lines().filter_map(line).collect()
}

fn working_set(usage: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    Some(usage?.saturating_sub(inactive_file?))
}

/// The only number of a file; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind a key, one a line.
pub(super) fn keyed(table: &str, key: &str) -> Option<u64> {
    table.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file<'a>(all: &'a [(&str, &str)]) -> impl Fn(&'static str, &'static str) -> Option<String> + 'a {
        |_, name| all.iter().find(|(file, _)| *file == name).map(|(_, text)| (*text).to_owned())
    }

    #[test]
    fn version_1_is_read() {
        let stats = of_v1(file(&[
            ("cpuacct.usage", "1500000000\n"),
            ("cpuacct.usage_user", "1000000000\n"),
            ("cpuacct.usage_sys", "500000000\n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 7000\nnr_bursts 0\nburst_time 0\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.shares", "512\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "254:0 Read 8192\n254:0 Write 4096\n254:0 Sync 4096\n254:0 Total 12288\n7:3 Write 512\nTotal 12800\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "254:0 Read 2\n254:0 Write 1\n254:0 Total 3\nTotal 3\n"),
            ("memory.usage_in_bytes", "15772430336\n"),
            ("memory.max_usage_in_bytes", "15972430336\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.stat",
                "cache 11603968\nrss 8212480\ninactive_file 32768\ntotal_cache 13439983616\ntotal_rss 2323845120\n\
                 total_mapped_file 543682560\ntotal_swap 0\ntotal_pgfault 634915831\ntotal_pgmajfault 216867\n\
                 total_inactive_file 8875646976\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
        ]));
        let cpu = Cpu {
            usage_ns: Some(1_500_000_000),
            user_ns: Some(1_000_000_000),
            system_ns: Some(500_000_000),
            periods: Some(10),
            throttled_periods: Some(3),
            throttled_ns: Some(7000),
            quota_us: None,
            period_us: Some(100_000),
            shares: Some(512),
        };
        assert_eq!(stats.cpu, cpu);
        let device = Device { major: 254, minor: 0, read_bytes: 8192, written_bytes: 4096, reads: 2, writes: 1 };
        assert_eq!(stats.devices, [device, Device { major: 7, minor: 3, written_bytes: 512, ..Device::default() }]);
        let memory = Memory {
            usage: Some(15_772_430_336),
            working_set: Some(15_772_430_336 - 8_875_646_976),
            rss: Some(2_323_845_120),
            cache: Some(13_439_983_616),
            mapped_file: Some(543_682_560),
            swap: Some(0),
            usage_max: Some(15_972_430_336),
            limit: None,
            page_faults: Some(634_915_831),
            major_page_faults: Some(216_867),
            oom_kills: Some(4),
        };
        assert_eq!(stats.memory, memory);
        assert_eq!((stats.pids, stats.pids_limit), (Some(3), None));
        assert_eq!(of_v1(|_, _| None), Stats::default(), "what is not told is not zero");
    }

    #[test]
    fn version_2_is_read() {
        let stats = of_v2(file(&[
            (
                "cpu.stat",
                "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 3\n\
                 throttled_usec 7\n",
            ),
            ("cpu.max", "50000 100000\n"),
            ("cpu.weight", "39\n"),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("io.stat", "254:0 rbytes=8192 wbytes=4096 rios=2 wios=1 dbytes=0 dios=0\n7:0 \n"),
            ("memory.current", "104857600\n"),
            ("memory.peak", "204857600\n"),
            ("memory.max", "209715200\n"),
            ("memory.swap.current", "4096\n"),
            (
                "memory.stat",
                "anon 52428800\nfile 41943040\nkernel 10485760\nfile_mapped 1048576\ninactive_anon 0\n\
                 inactive_file 20971520\npgfault 77\npgmajfault 2\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "100\n"),
        ]));
        assert_eq!((stats.cpu.usage_ns, stats.cpu.throttled_ns), (Some(1_500_000_000), Some(7000)));
        assert_eq!(
            (stats.cpu.quota_us, stats.cpu.period_us, stats.cpu.shares),
            (Some(50_000), Some(100_000), Some(998))
        );
        let device = Device { major: 254, minor: 0, read_bytes: 8192, written_bytes: 4096, reads: 2, writes: 1 };
        assert_eq!(stats.devices, [device]);
        let memory = Memory {
            usage: Some(104_857_600),
            working_set: Some(104_857_600 - 20_971_520),
            rss: Some(52_428_800),
            cache: Some(41_943_040),
            mapped_file: Some(1_048_576),
            swap: Some(4096),
            usage_max: Some(204_857_600),
            limit: Some(209_715_200),
            page_faults: Some(77),
            major_page_faults: Some(2),
            oom_kills: Some(1),
        };
        assert_eq!(stats.memory, memory);
        assert_eq!((stats.pids, stats.pids_limit), (Some(3), Some(100)));
        assert_eq!(of_v2(|_, _| None), Stats::default());
    }

    #[test]
    fn the_root_of_version_2_is_completed_from_meminfo() {
        let meminfo =
            "MemTotal:       1000 kB\nMemFree:         400 kB\nInactive(file):  100 kB\nAnonPages:       50 kB\n";
        let root = of_v2(file(&[("cpu.stat", "usage_usec 5\n"), ("memory.stat", "anon 1024\ninactive_file 2048\n")]));
        let stats = complete_root(root, meminfo, Some(2048));
        assert_eq!(stats.memory.usage, Some(600 * 1024));
        assert_eq!(stats.memory.working_set, Some(598 * 1024));
        assert_eq!(stats.memory.rss, Some(1024), "the cgroup knows better");
        let known = Stats { memory: Memory { usage: Some(1), ..Memory::default() }, ..Stats::default() };
        assert_eq!(complete_root(known.clone(), meminfo, None), known);
    }
}
