//! Trees that are deeper than any path or stack: they are measured and removed, by this server or by the next.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::stage::{apply, container, delete, pod, says, start};

/// 30,000 levels in the current directory, made of pieces whose paths the kernel still takes.
const DEEP: &str = "piece=$(i=0; while [ $i -lt 1000 ]; do printf d/; i=$((i+1)); done); mkdir -p r0/$piece; n=1; \
    while [ $n -lt 30 ]; do mkdir -p r$n/$piece; mv r$((n-1)) r$n/$piece; n=$((n+1)); done; ";

#[test]
fn a_tree_of_thirty_thousand_levels_ends_neither_the_server_nor_its_next_start() {
    let mut lab = start("deep");
    let deep = |name: &str| {
        let script = format!("cd /scratch; {DEEP} mkdir /deep; cd /deep; {DEEP} echo made; sleep 1000");
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/scratch"}]});
        pod(name, &[container("c", &script, mounts)], json!({"volumes": [{"name": "v", "emptyDir": {}}]}))
    };
    apply(&lab, &[deep("one"), deep("two")]);
    says(&lab, "one", "made");
    says(&lab, "two", "made");
    // Measured: every level is a directory in the layer and one in the volume.
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", lab.name);
    lab.until("both trees are measured", || {
        let summary: serde_json::Value = serde_json::from_str(&lab.kubectl(&["get", "--raw", &path])).unwrap();
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let ours = pods.iter().filter(|p| p["podRef"]["namespace"] == "default");
        ours.filter(|p| {
            let layer = p["containers"][0]["rootfs"]["inodesUsed"].as_u64().unwrap_or(0);
            let volume = p["volume"][0]["inodesUsed"].as_u64().unwrap_or(0);
            layer > 30_000 && volume > 30_000
        })
        .count()
            == 2
    });
    delete(&lab, "one");
    lab.kubectl(&["get", "nodes"]);
    // What a killed server leaves, the next one takes away when it starts.
    lab.kill_server();
    let runs = fs::read_dir(lab.path("run/sandboxes")).unwrap().count();
    assert_eq!(runs, 1, "the other pod still runs");
    lab.start_server();
    lab.kubectl(&["delete", "pod", "two", "--force", "--grace-period=0"]);
    lab.kill_server();
    lab.start_server();
    let empty = |part: &str| fs::read_dir(lab.path(part)).is_ok_and(|mut entries| entries.next().is_none());
    let parts = ["data/pods", "data/containers", "run/sandboxes"];
    // Removing so much takes its time on a slow disk.
    let began = Instant::now();
    while !parts.iter().all(|part| empty(part)) {
        assert!(began.elapsed() < Duration::from_secs(180), "left: {:?}", parts.map(empty));
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(!log.contains("overflow") && !log.contains("panicked"), "{log}");
    lab.stop_server();
}
