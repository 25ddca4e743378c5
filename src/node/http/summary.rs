//! `/stats/summary`: a snapshot in the form of `k8s.io/kubelet/pkg/apis/stats/v1alpha1`. Pure; what is not known is left out.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::disk::Taken;
use super::network::{Interface, Network};
use super::usage::{ContainerUsage, PodUsage, Snapshot, Usage};
use crate::base::clock::seconds_text;
use crate::base::fs_stats::FsStats;

/// The whole answer; without `everything` only CPU and memory.
pub(super) fn of(snapshot: &Snapshot, node: &str, memory_capacity: u64, everything: bool) -> Value {
    let at = snapshot.at;
    let mut out = Object::default();
    out.put("nodeName", Some(node));
    let mut all = Object::default();
    all.put("name", Some("pods"));
    all.resources(&snapshot.all, Some(memory_capacity));
    out.put("systemContainers", Some(vec![all.0]));
    out.put("startTime", snapshot.booted.map(seconds_text));
    out.resources(&snapshot.machine, Some(memory_capacity));
    if everything {
        out.put("network", snapshot.network.as_ref().map(|n| network(n, at)));
        let node_space = snapshot.disk.node.as_ref();
        out.put("fs", node_space.map(|s| file_system(s, Some(whole(s)), at)));
        let images = node_space.map(|s| {
            json!({
                "imageFs": file_system(s, snapshot.disk.images, at), "containerFs": file_system(s, Some(whole(s)), at),
            })
        });
        out.put("runtime", images);
        out.put("rlimit", process_limit(at));
    }
    let space = snapshot.disk.node.filter(|_| everything);
    let pods: Vec<Value> = snapshot.pods.iter().map(|p| pod(p, space.as_ref(), at)).collect();
    json!({"node": out.0, "pods": pods})
}

fn pod(p: &PodUsage, space: Option<&FsStats>, at: Timestamp) -> Value {
    let mut out = Object::default();
    out.put("podRef", Some(json!({"name": p.name, "namespace": p.namespace, "uid": p.uid})));
    out.put("startTime", Some(seconds_text(p.started)));
    let containers: Vec<Value> = p.containers.iter().map(|c| container(c, space, at)).collect();
    out.put("containers", Some(containers));
    out.resources(&p.usage, None);
    let Some(space) = space else { return Value::Object(out.0) };
    out.put("network", p.network.as_ref().map(|n| network(n, at)));
    let volumes = p.volumes.iter().map(|v| {
        let mut volume = file_system(&v.space, Some(v.taken), at);
        volume["name"] = v.name.as_str().into();
        volume
    });
    out.put("volume", Some(volumes.collect::<Vec<_>>()).filter(|v| !v.is_empty()));
    let on_disk = p.volumes.iter().filter(|v| !v.in_memory).map(|v| Some(v.taken));
    let parts = p.containers.iter().flat_map(|c| [c.root, c.logs]).chain(on_disk);
    // Only a sum of which no part is missing is one.
    let sum = parts.collect::<Option<Vec<Taken>>>().map(|all| {
        all.iter().fold(Taken::default(), |a, b| Taken { bytes: a.bytes + b.bytes, inodes: a.inodes + b.inodes })
    });
    out.put("ephemeral-storage", sum.map(|taken| file_system(space, Some(taken), at)));
    out.put("process_stats", p.usage.stats.processes.map(|n| json!({"process_count": n})));
    Value::Object(out.0)
}

fn container(c: &ContainerUsage, space: Option<&FsStats>, at: Timestamp) -> Value {
    let mut out = Object::default();
    out.put("name", Some(c.name.as_str()));
    out.put("startTime", Some(seconds_text(c.started)));
    out.resources(&c.usage, None);
    if let Some(space) = space {
        out.put("rootfs", Some(file_system(space, c.root, at)));
        out.put("logs", Some(file_system(space, c.logs, at)));
    }
    Value::Object(out.0)
}

fn whole(space: &FsStats) -> Taken {
    Taken {
        bytes: space.capacity_bytes.saturating_sub(space.free_bytes),
        inodes: space.inodes.saturating_sub(space.inodes_free),
    }
}

fn file_system(space: &FsStats, taken: Option<Taken>, at: Timestamp) -> Value {
    let mut out = Object::default();
    out.put("time", Some(seconds_text(at)));
    out.put("availableBytes", Some(space.available_bytes));
    out.put("capacityBytes", Some(space.capacity_bytes));
    out.put("usedBytes", taken.map(|t| t.bytes));
    out.put("inodesFree", Some(space.inodes_free));
    out.put("inodes", Some(space.inodes));
    out.put("inodesUsed", taken.map(|t| t.inodes));
    Value::Object(out.0)
}

fn interface(i: &Interface) -> Map<String, Value> {
    let mut out = Object::default();
    out.put("name", Some(i.name.as_str()));
    for (key, number) in
        [("rxBytes", i.rx.bytes), ("rxErrors", i.rx.errors), ("txBytes", i.tx.bytes), ("txErrors", i.tx.errors)]
    {
        out.put(key, Some(number));
    }
    out.0
}

fn network(network: &Network, at: Timestamp) -> Value {
    let mut out = network.main().map(interface).unwrap_or_default();
    out.insert("time".into(), seconds_text(at).into());
    out.insert("interfaces".into(), network.interfaces.iter().map(|i| Value::Object(interface(i))).collect());
    Value::Object(out)
}

/// How many processes there may be, and are.
fn process_limit(at: Timestamp) -> Option<Value> {
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u64>().ok();
    let most = read("pid_max")?.min(read("threads-max")?);
    Some(json!({"time": seconds_text(at), "maxpid": most, "curproc": rustix::system::sysinfo().procs}))
}

/// A JSON object to which only what is known is added.
#[derive(Default)]
struct Object(Map<String, Value>);

// === impl Object ===

impl Object {
    fn put(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(key.into(), value.into());
        }
    }

    /// `cpu` and `memory`; what is available is up to the limit, or up to `capacity` where that is the limit.
    fn resources(&mut self, usage: &Usage, capacity: Option<u64>) {
        let (cpu, memory) = (&usage.stats.cpu, &usage.stats.memory);
        let time = seconds_text(usage.at);
        if let Some(used) = cpu.usage_ns {
            let mut out = Self::default();
            out.put("time", Some(time.clone()));
            out.put("usageNanoCores", usage.nano_cores);
            out.put("usageCoreNanoSeconds", Some(used));
            self.put("cpu", Some(out.0));
        }
        if memory.usage.is_some() {
            let mut out = Self::default();
            out.put("time", Some(time));
            let limit = memory.limit.or(capacity).zip(memory.working_set);
            out.put("availableBytes", limit.map(|(limit, used)| limit.saturating_sub(used)));
            out.put("usageBytes", memory.usage);
            out.put("workingSetBytes", memory.working_set);
            out.put("rssBytes", memory.rss);
            out.put("pageFaults", memory.page_faults);
            out.put("majorPageFaults", memory.major_page_faults);
            self.put("memory", Some(out.0));
        }
        let swap = |bytes| json!({"time": seconds_text(usage.at), "swapUsageBytes": bytes});
        self.put("swap", memory.swap.map(swap));
    }
}

#[cfg(test)]
mod tests {
    use super::super::usage::tests::snapshot;
    use super::*;

    #[test]
    fn the_summary_has_the_kubelets_form() {
        let all = of(&snapshot(), "n", 1 << 30, true);
        let node = &all["node"];
        assert_eq!(node["nodeName"], "n");
        assert_eq!(node["startTime"], "1970-01-01T00:16:40Z");
        assert_eq!(
            node["cpu"],
            json!({"time": "1970-01-12T13:46:40Z", "usageNanoCores": 250_000_000,
            "usageCoreNanoSeconds": 9_000_000_000_u64})
        );
        assert_eq!(node["memory"]["availableBytes"], (1 << 30) - 300);
        assert_eq!(node["network"]["name"], "eth0");
        assert_eq!(node["network"]["interfaces"][0]["rxBytes"], 7);
        assert_eq!((&node["fs"]["capacityBytes"], &node["fs"]["usedBytes"]), (&json!(1000), &json!(600)));
        assert_eq!(node["runtime"]["imageFs"]["usedBytes"], 50);
        assert_eq!(node["systemContainers"][0]["name"], "pods");
        let pod = &all["pods"][0];
        assert_eq!(pod["podRef"], json!({"name": "web", "namespace": "default", "uid": "u"}));
        assert_eq!(pod["process_stats"]["process_count"], 2);
        assert_eq!(pod["ephemeral-storage"]["usedBytes"], 10 + 5 + 20);
        assert_eq!((&pod["volume"][0]["name"], &pod["volume"][0]["capacityBytes"]), (&json!("scratch"), &json!(5000)));
        assert_eq!(pod["volume"][1]["usedBytes"], 1000);
        let container = &pod["containers"][0];
        assert_eq!(
            container["memory"],
            json!({"time": "1970-01-12T13:46:40Z", "availableBytes": 1024 - 300,
            "usageBytes": 400, "workingSetBytes": 300, "rssBytes": 200, "pageFaults": 9, "majorPageFaults": 1})
        );
        assert_eq!((&container["rootfs"]["usedBytes"], &container["logs"]["usedBytes"]), (&json!(10), &json!(5)));

        let few = of(&snapshot(), "n", 1 << 30, false);
        assert_eq!(few["pods"][0]["cpu"], all["pods"][0]["cpu"]);
        for absent in
            [&few["node"]["fs"], &few["node"]["network"], &few["pods"][0]["network"], &few["pods"][0]["volume"]]
        {
            assert!(absent.is_null());
        }
        let mut unknown = snapshot();
        unknown.pods[0].containers[0].usage.stats = crate::containers::Stats::default();
        unknown.pods[0].containers[0].logs = None;
        let unknown = of(&unknown, "n", 1 << 30, true);
        assert!(unknown["pods"][0]["containers"][0].get("cpu").is_none(), "nothing is invented");
        assert!(unknown["pods"][0].get("ephemeral-storage").is_none());
    }
}
