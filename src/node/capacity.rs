//! What a node has for pods.

use serde_json::{Value, json};

use crate::base::fs_stats::FsStats;

/// Pods that a node takes.
pub(super) const PODS: u64 = 110;

/// What the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

// === impl Capacity ===

impl Capacity {
    /// Reads it off the machine; `directory` is on the disk that pods use.
    pub fn read(directory: &std::path::Path) -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kb = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        let disk = FsStats::of(directory).unwrap_or_default().capacity_bytes;
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
            memory_bytes: kb.unwrap_or(0) * 1024,
            disk_bytes: disk,
        }
    }

    pub(super) fn to_json(self) -> Value {
        json!({
            "cpu": self.cpus.to_string(), "memory": format!("{}Ki", self.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", self.disk_bytes / 1024), "pods": PODS.to_string(),
            "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        })
    }
}
