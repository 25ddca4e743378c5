//! `/metrics/resource`, `/metrics/cadvisor` and the node's own `/metrics`: a snapshot in the Prometheus text format, under the
//! names and labels that the kubelet gives. Pure; what is not known is left out.

use std::collections::HashMap;
use std::fmt::Write;

use jiff::Timestamp;

use super::network::Network;
use super::usage::{PodUsage, Snapshot, Usage};
use crate::containers::Device;
use crate::node::probe_results::{Count, Probed};

const NANO: f64 = 1e9;

/// A text in the making: families in order, each with its head once.
#[derive(Default)]
struct Text(String);

/// The sort of a family.
#[derive(Clone, Copy)]
enum Sort {
    Counter,
    Gauge,
}

/// One sample: labels, value, and when it was taken.
type Sample<'a> = (Vec<(&'a str, &'a str)>, f64, Option<Timestamp>);

// === impl Text ===

impl Text {
    /// A family; without samples there is none.
    fn family<'a>(&mut self, name: &str, sort: Sort, help: &str, samples: impl IntoIterator<Item = Sample<'a>>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let sort = match sort {
            Sort::Counter => "counter",
            Sort::Gauge => "gauge",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {sort}");
        for (labels, value, at) in samples {
            self.0.push_str(name);
            for (i, (key, text)) in labels.iter().enumerate() {
                let _ = write!(self.0, "{}{key}=\"{}\"", if i == 0 { '{' } else { ',' }, escaped(text));
            }
            self.0.push_str(if labels.is_empty() { " " } else { "} " });
            let _ = write!(self.0, "{value}");
            if let Some(at) = at {
                let _ = write!(self.0, " {}", at.as_millisecond());
            }
            self.0.push('\n');
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(t: Timestamp) -> f64 {
    t.as_nanosecond() as f64 / NANO
}

fn cpu(usage: &Usage) -> Option<f64> {
    usage.stats.cpu.usage_ns.map(|ns| ns as f64 / NANO)
}

fn memory(usage: &Usage) -> Option<f64> {
    usage.stats.memory.working_set.map(|bytes| bytes as f64)
}

fn swap(usage: &Usage) -> Option<f64> {
    usage.stats.memory.swap.map(|bytes| bytes as f64)
}

/// `/metrics/resource`, which metrics-server reads.
pub(super) fn resource(s: &Snapshot) -> String {
    use Sort::{Counter, Gauge};
    type Read = fn(&Usage) -> Option<f64>;
    let mut out = Text::default();
    let containers = |read: Read| {
        s.pods.iter().flat_map(move |p| {
            p.containers.iter().filter_map(move |c| {
                let labels = vec![("container", &*c.name), ("namespace", &*p.namespace), ("pod", &*p.name)];
                Some((labels, read(&c.usage)?, Some(c.usage.at)))
            })
        })
    };
    let pods = |read: Read| {
        s.pods.iter().filter_map(move |p| {
            let labels = vec![("namespace", &*p.namespace), ("pod", &*p.name)];
            Some((labels, read(&p.usage)?, Some(p.usage.at)))
        })
    };
    let node = |read: Read| read(&s.machine).map(|value| (Vec::new(), value, Some(s.machine.at)));
    let cpu_help = |of: &str| format!("[STABLE] Cumulative cpu time consumed by the {of} in core-seconds");
    let memory_help = |of: &str| format!("[STABLE] Current working set of the {of} in bytes");
    let swap_help = |of: &str| {
        format!("[ALPHA] Current amount of the {of} swap usage in bytes. Reported only on non-windows systems")
    };
    out.family("container_cpu_usage_seconds_total", Counter, &cpu_help("container"), containers(cpu));
    out.family("container_memory_working_set_bytes", Gauge, &memory_help("container"), containers(memory));
    let started = s.pods.iter().flat_map(|p| {
        p.containers.iter().map(move |c| {
            let labels = vec![("container", &*c.name), ("namespace", &*p.namespace), ("pod", &*p.name)];
            (labels, seconds(c.started), None)
        })
    });
    let help = "[STABLE] Start time of the container since unix epoch in seconds";
    out.family("container_start_time_seconds", Gauge, help, started);
    out.family("container_swap_usage_bytes", Gauge, &swap_help("container"), containers(swap));
    out.family("node_cpu_usage_seconds_total", Counter, &cpu_help("node"), node(cpu));
    out.family("node_memory_working_set_bytes", Gauge, &memory_help("node"), node(memory));
    out.family("node_swap_usage_bytes", Gauge, &swap_help("node"), node(swap));
    out.family("pod_cpu_usage_seconds_total", Counter, &cpu_help("pod"), pods(cpu));
    out.family("pod_memory_working_set_bytes", Gauge, &memory_help("pod"), pods(memory));
    out.family("pod_swap_usage_bytes", Gauge, &swap_help("pod"), pods(swap));
    let failed = f64::from(u8::from(cpu(&s.machine).is_none() || memory(&s.machine).is_none()));
    let help = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    out.family("resource_scrape_error", Gauge, help, [(Vec::new(), failed, None)]);
    out.0
}

/// A control group as cAdvisor names it.
struct Group<'a> {
    labels: [String; 6],
    usage: &'a Usage,
    started: Option<Timestamp>,
}

const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

fn groups<'a>(s: &'a Snapshot, root: &str) -> Vec<Group<'a>> {
    let text = |all: [&str; 6]| all.map(str::to_owned);
    let mut all = vec![
        Group { labels: text(["", "/", "", "", "", ""]), usage: &s.machine, started: s.booted },
        Group { labels: text(["", &format!("/{root}"), "", "", "", ""]), usage: &s.all, started: None },
    ];
    for p in &s.pods {
        let id = format!("/{root}/{}", p.cgroup);
        let labels = text(["", &id, "", "", &p.namespace, &p.name]);
        all.push(Group { labels, usage: &p.usage, started: Some(p.started) });
        for c in &p.containers {
            let id = format!("{id}/{}", c.id);
            let labels = text([&c.name, &id, &c.image, &c.id, &p.namespace, &p.name]);
            all.push(Group { labels, usage: &c.usage, started: Some(c.started) });
        }
    }
    all
}

/// The families that are read from a control group: name, sort, help and value.
type Family = (&'static str, Sort, &'static str, fn(&Usage) -> Option<f64>);

const CPU_AND_MEMORY: &[Family] = {
    use Sort::{Counter, Gauge};
    &[
        ("container_cpu_cfs_periods_total", Counter, "Number of elapsed enforcement period intervals.", |u| {
            u.stats.cpu.periods.filter(|n| *n > 0).map(|n| n as f64)
        }),
        ("container_cpu_cfs_throttled_periods_total", Counter, "Number of throttled period intervals.", |u| {
            u.stats.cpu.periods.filter(|n| *n > 0).and(u.stats.cpu.throttled_periods).map(|n| n as f64)
        }),
        (
            "container_cpu_cfs_throttled_seconds_total",
            Counter,
            "Total time duration the container has been throttled.",
            |u| u.stats.cpu.periods.filter(|n| *n > 0).and(u.stats.cpu.throttled_ns).map(|n| n as f64 / NANO),
        ),
        ("container_spec_cpu_period", Gauge, "CPU period of the container.", |u| {
            u.stats.cpu.quota_us.and(u.stats.cpu.period_us).map(|n| n as f64)
        }),
        ("container_spec_cpu_quota", Gauge, "CPU quota of the container.", |u| u.stats.cpu.quota_us.map(|n| n as f64)),
        ("container_spec_cpu_shares", Gauge, "CPU share of the container.", |u| u.stats.cpu.shares.map(|n| n as f64)),
        ("container_oom_events_total", Counter, "Count of out of memory events observed for the container", |u| {
            u.stats.memory.oom_kills.map(|n| n as f64)
        }),
        ("container_last_seen", Gauge, "Last time a container was seen by the exporter", |u| {
            Some(seconds(u.at).trunc())
        }),
        ("container_cpu_system_seconds_total", Counter, "Cumulative system cpu time consumed in seconds.", |u| {
            u.stats.cpu.system_ns.map(|n| n as f64 / NANO)
        }),
        ("container_cpu_user_seconds_total", Counter, "Cumulative user cpu time consumed in seconds.", |u| {
            u.stats.cpu.user_ns.map(|n| n as f64 / NANO)
        }),
        ("container_memory_cache", Gauge, "Number of bytes of page cache memory.", |u| {
            u.stats.memory.cache.map(|n| n as f64)
        }),
        ("container_memory_mapped_file", Gauge, "Size of memory mapped files in bytes.", |u| {
            u.stats.memory.mapped_file.map(|n| n as f64)
        }),
        ("container_memory_max_usage_bytes", Gauge, "Maximum memory usage recorded in bytes", |u| {
            u.stats.memory.usage_max.map(|n| n as f64)
        }),
        ("container_memory_rss", Gauge, "Size of RSS in bytes.", |u| u.stats.memory.rss.map(|n| n as f64)),
        ("container_memory_swap", Gauge, "Container swap usage in bytes.", swap),
        (
            "container_memory_usage_bytes",
            Gauge,
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |u| u.stats.memory.usage.map(|n| n as f64),
        ),
        ("container_memory_working_set_bytes", Gauge, "Current working set in bytes.", memory),
        ("container_processes", Gauge, "Number of processes running inside the container.", |u| {
            u.stats.processes.map(|n| n as f64)
        }),
        ("container_spec_memory_limit_bytes", Gauge, "Memory limit for the container.", |u| {
            u.stats.memory.usage.map(|_| u.stats.memory.limit.unwrap_or(0) as f64)
        }),
        ("container_threads", Gauge, "Number of threads running inside the container", |u| {
            u.stats.pids.map(|n| n as f64)
        }),
        (
            "container_threads_max",
            Gauge,
            "Maximum number of threads allowed inside the container, infinity if value is zero",
            |u| u.stats.pids.map(|_| u.stats.pids_limit.unwrap_or(0) as f64),
        ),
    ]
};

/// `/metrics/cadvisor`; `root` is the control group of all pods.
pub(super) fn cadvisor(s: &Snapshot, root: &str, cores: u64, memory_bytes: u64) -> String {
    use Sort::{Counter, Gauge};
    let mut out = Text::default();
    let groups = groups(s, root);
    let labels = |g: &Group<'_>| -> Vec<(&str, String)> { LABELS.into_iter().zip(g.labels.clone()).collect() };
    let all: Vec<(Vec<(&str, String)>, &Group<'_>)> = groups.iter().map(|g| (labels(g), g)).collect();
    for (name, sort, help, read) in CPU_AND_MEMORY {
        let samples = all.iter().filter_map(|(l, g)| {
            let labels = l.iter().map(|(k, v)| (*k, v.as_str())).collect();
            Some((labels, read(g.usage)?, Some(g.usage.at)))
        });
        out.family(name, *sort, help, samples);
    }
    let total = all.iter().filter_map(|(l, g)| {
        let mut labels: Vec<(&str, &str)> = l.iter().map(|(k, v)| (*k, v.as_str())).collect();
        labels.insert(1, ("cpu", "total"));
        Some((labels, cpu(g.usage)?, Some(g.usage.at)))
    });
    out.family("container_cpu_usage_seconds_total", Counter, "Cumulative cpu time consumed in seconds.", total);
    let failures = all.iter().flat_map(|(l, g)| {
        let memory = &g.usage.stats.memory;
        let sorts = [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)];
        sorts.into_iter().filter_map(|(sort, count)| {
            let mut labels: Vec<(&str, &str)> = l.iter().map(|(k, v)| (*k, v.as_str())).collect();
            labels.insert(1, ("failure_type", sort));
            labels.push(("scope", "hierarchy"));
            Some((labels, count? as f64, Some(g.usage.at)))
        })
    });
    out.family("container_memory_failures_total", Counter, "Cumulative count of memory allocation failures.", failures);
    let started = all.iter().filter_map(|(l, g)| {
        let labels = l.iter().map(|(k, v)| (*k, v.as_str())).collect();
        Some((labels, seconds(g.started?), Some(g.usage.at)))
    });
    let help = "Start time of the container since unix epoch in seconds.";
    out.family("container_start_time_seconds", Gauge, help, started);
    disks(&mut out, s, root);
    devices(&mut out, &all);
    networks(&mut out, s, root);
    out.family("machine_cpu_cores", Gauge, "Number of logical CPU cores.", [(Vec::new(), cores as f64, None)]);
    let memory = (Vec::new(), memory_bytes as f64, None);
    out.family("machine_memory_bytes", Gauge, "Amount of memory installed on the machine.", [memory]);
    let failed = f64::from(u8::from(cpu(&s.machine).is_none()));
    let help = "1 if there was an error while getting container metrics, 0 otherwise";
    out.family("container_scrape_error", Gauge, help, [(Vec::new(), failed, None)]);
    out.0
}

/// What went to and came from block devices.
fn devices(out: &mut Text, all: &[(Vec<(&str, String)>, &Group<'_>)]) {
    type Read = fn(&Device) -> u64;
    let families: [(&str, &str, Read); 4] = [
        ("reads_bytes", "bytes read", |d| d.read_bytes),
        ("reads", "reads completed", |d| d.reads),
        ("writes_bytes", "bytes written", |d| d.written_bytes),
        ("writes", "writes completed", |d| d.writes),
    ];
    let every = || all.iter().flat_map(|(l, g)| g.usage.stats.devices.iter().map(move |d| (l, g, d)));
    let mut names: HashMap<(u32, u32), String> = HashMap::new();
    for (_, _, device) in every() {
        names.entry((device.major, device.minor)).or_insert_with(|| device_name(device));
    }
    for (name, what, read) in families {
        let samples = every().map(|(labels, group, device)| {
            let mut labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
            labels.insert(1, ("device", &names[&(device.major, device.minor)]));
            (labels, read(device) as f64, Some(group.usage.at))
        });
        let help = format!("Cumulative count of {what}");
        out.family(&format!("container_fs_{name}_total"), Sort::Counter, &help, samples);
    }
}

/// The path below `/dev`, as the kernel has it; the numbers where the device is gone.
fn device_name(device: &Device) -> String {
    let Device { major, minor, .. } = device;
    let said = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    match said.lines().find_map(|line| line.strip_prefix("DEVNAME=")) {
        Some(name) => format!("/dev/{name}"),
        None => format!("{major}:{minor}"),
    }
}

/// What containers have written over their images.
fn disks(out: &mut Text, s: &Snapshot, root: &str) {
    let containers = || s.pods.iter().flat_map(|p| p.containers.iter().map(move |c| (p, c)));
    let ids: Vec<String> = containers().map(|(p, c)| format!("/{root}/{}/{}", p.cgroup, c.id)).collect();
    let samples = containers().zip(&ids).filter_map(|((p, c), id)| {
        let labels = vec![
            ("container", &*c.name),
            ("id", id.as_str()),
            ("image", &*c.image),
            ("name", &*c.id),
            ("namespace", &*p.namespace),
            ("pod", &*p.name),
        ];
        Some((labels, c.root?.bytes as f64, Some(s.at)))
    });
    let help = "Number of bytes that are consumed by the container on this filesystem.";
    out.family("container_fs_usage_bytes", Sort::Gauge, help, samples);
}

fn networks(out: &mut Text, s: &Snapshot, root: &str) {
    let nobody = PodUsage { network: s.network.clone(), ..PodUsage::default() };
    let all: Vec<(String, &PodUsage, &Network)> = std::iter::once(&nobody)
        .chain(&s.pods)
        .filter_map(|p| {
            let id = if p.uid.is_empty() { "/".to_owned() } else { format!("/{root}/{}", p.cgroup) };
            Some((id, p, p.network.as_ref()?))
        })
        .collect();
    type Read = fn(&super::network::Interface) -> u64;
    let families: [(&str, &str, Read); 8] = [
        ("receive_bytes", "bytes received", |i| i.rx.bytes),
        ("receive_errors", "errors encountered while receiving", |i| i.rx.errors),
        ("receive_packets_dropped", "packets dropped while receiving", |i| i.rx.dropped),
        ("receive_packets", "packets received", |i| i.rx.packets),
        ("transmit_bytes", "bytes transmitted", |i| i.tx.bytes),
        ("transmit_errors", "errors encountered while transmitting", |i| i.tx.errors),
        ("transmit_packets_dropped", "packets dropped while transmitting", |i| i.tx.dropped),
        ("transmit_packets", "packets transmitted", |i| i.tx.packets),
    ];
    for (name, what, read) in families {
        let samples = all.iter().flat_map(|(id, p, network)| {
            network.interfaces.iter().map(move |i| {
                let labels = vec![
                    ("container", ""),
                    ("id", id.as_str()),
                    ("image", ""),
                    ("interface", &*i.name),
                    ("name", ""),
                    ("namespace", &*p.namespace),
                    ("pod", &*p.name),
                ];
                (labels, read(i) as f64, Some(s.at))
            })
        });
        let help = format!("Cumulative count of {what}");
        out.family(&format!("container_network_{name}_total"), Sort::Counter, &help, samples);
    }
}

/// How probes went.
pub(super) fn probes(all: &[(Probed, Count)]) -> String {
    let mut out = Text::default();
    let samples = all.iter().flat_map(|(p, count)| {
        let results = [("failed", count.failed), ("successful", count.successful)];
        results.into_iter().filter(|(_, n)| *n > 0).map(move |(result, n)| {
            let labels = vec![
                ("container", &*p.container),
                ("namespace", &*p.namespace),
                ("pod", &*p.pod),
                ("pod_uid", &*p.uid),
                ("probe_type", &*p.role),
                ("result", result),
            ];
            (labels, n as f64, None)
        })
    });
    let help = "[BETA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    out.family("prober_probe_total", Sort::Counter, help, samples);
    out.0
}

/// What the kubelet says of itself, as far as we are one.
pub(super) fn own(s: &Snapshot, node: &str) -> String {
    let mut out = Text::default();
    let pods = s.pods.len() as f64;
    let running: usize = s.pods.iter().map(|p| p.containers.len()).sum();
    out.family(
        "kubelet_node_name",
        Sort::Gauge,
        "[ALPHA] The node's name. The count is always 1.",
        [(vec![("node", node)], 1.0, None)],
    );
    let help = "[ALPHA] Number of containers currently running";
    let labels = vec![("container_state", "running")];
    out.family("kubelet_running_containers", Sort::Gauge, help, [(labels, running as f64, None)]);
    let help = "[ALPHA] Number of pods that have a running pod sandbox";
    out.family("kubelet_running_pods", Sort::Gauge, help, [(Vec::new(), pods, None)]);
    out.0
}

#[cfg(test)]
mod tests {
    use super::super::usage::tests::snapshot;
    use super::*;

    /// Every line parses, every family has its head before its samples and stands once.
    fn check(text: &str) -> Vec<&str> {
        let mut family = "";
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                family = head.split(' ').next().unwrap();
                assert!(!seen.contains(&family), "{family} twice");
                seen.push(family);
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(name, family, "{line}");
                let rest = line.rsplit_once('}').map_or_else(|| line.split_once(' ').unwrap().1, |(_, r)| r.trim());
                assert!(rest.split(' ').all(|n| n.parse::<f64>().is_ok()), "{line}");
            }
        }
        seen
    }

    #[test]
    fn resource_metrics_have_the_kubelets_names_and_labels() {
        let text = resource(&snapshot());
        assert_eq!(
            check(&text),
            [
                "container_cpu_usage_seconds_total",
                "container_memory_working_set_bytes",
                "container_start_time_seconds",
                "container_swap_usage_bytes",
                "node_cpu_usage_seconds_total",
                "node_memory_working_set_bytes",
                "node_swap_usage_bytes",
                "pod_cpu_usage_seconds_total",
                "pod_memory_working_set_bytes",
                "pod_swap_usage_bytes",
                "resource_scrape_error",
            ]
        );
        for line in [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"default\",pod=\"web\"} 9 1000000000",
            "pod_memory_working_set_bytes{namespace=\"default\",pod=\"web\"} 300 1000000000",
            "container_start_time_seconds{container=\"c\",namespace=\"default\",pod=\"web\"} 2000.5",
            "node_cpu_usage_seconds_total 9 1000000000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let empty = resource(&Snapshot::default());
        assert_eq!(check(&empty), ["resource_scrape_error"]);
        assert!(empty.contains("\nresource_scrape_error 1\n"));
    }

    #[test]
    fn cadvisors_metrics_have_its_names_and_labels() {
        let text = cadvisor(&snapshot(), "amphipod", 2, 1 << 30);
        let families = check(&text);
        for family in [
            "container_memory_rss",
            "container_network_receive_bytes_total",
            "container_fs_usage_bytes",
            "container_fs_reads_total",
            "container_spec_cpu_quota",
            "container_spec_cpu_period",
            "container_spec_cpu_shares",
            "container_last_seen",
            "container_oom_events_total",
        ] {
            assert!(families.contains(&family), "{family} in {families:?}");
        }
        let id = "/amphipod/kubepods/podu";
        for line in [
            format!(
                "container_cpu_usage_seconds_total{{container=\"c\",cpu=\"total\",id=\"{id}/i\",image=\"im\\\"age\",\
                 name=\"i\",namespace=\"default\",pod=\"web\"}} 9 1000000000"
            ),
            format!(
                "container_network_transmit_packets_total{{container=\"\",id=\"{id}\",image=\"\",interface=\"eth0\",\
                 name=\"\",namespace=\"default\",pod=\"web\"}} 12 1000000000"
            ),
            format!(
                "container_fs_writes_bytes_total{{container=\"c\",device=\"4095:999\",id=\"{id}/i\",image=\"im\\\"age\",\
                 name=\"i\",namespace=\"default\",pod=\"web\"}} 22 1000000000"
            ),
            "machine_cpu_cores 2".into(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.contains("container_memory_usage_bytes{container=\"\",id=\"/\","));
        let probed = Probed { pod: "p".into(), role: "Liveness".into(), ..Probed::default() };
        let probes = probes(&[(probed, Count { successful: 2, failed: 0 })]);
        let labels = r#"container="",namespace="",pod="p",pod_uid="",probe_type="Liveness",result="successful""#;
        assert_eq!(check(&probes), ["prober_probe_total"]);
        assert!(probes.ends_with(&format!("prober_probe_total{{{labels}}} 2\n")), "{probes}");
        assert!(own(&snapshot(), "n").contains("kubelet_running_pods 1\n"));
    }
}
