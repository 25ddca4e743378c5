//! Trees that are deeper than any path or stack: they are measured and removed, by this server or by the next.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::stage::{apply, container, pod, start};

/// 30,000 levels in the current directory, made of pieces whose paths the kernel still takes.
const DEEP: &str = "piece=$(i=0; while [ $i -lt 1000 ]; do printf d/; i=$((i+1)); done); mkdir -p r0/$piece; n=1; \
    while [ $n -lt 30 ]; do mkdir -p r$n/$piece; mv r$((n-1)) r$n/$piece; n=$((n+1)); done; ";

/// So many directories take their time on a slow disk.
const PATIENCE: Duration = Duration::from_secs(300);

fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How many files and directories the node says a pod has, in its layer and in its volume.
fn measured(lab: &Lab, pod: &str) -> [u64; 2] {
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", lab.name);
    let summary: Value = serde_json::from_str(&lab.kubectl(&["get", "--raw", &path])).unwrap();
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    let found = pods.into_iter().find(|p| p["podRef"]["name"] == pod).unwrap_or_default();
    let inodes = |value: &Value| value["inodesUsed"].as_u64().unwrap_or(0);
    [inodes(&found["containers"][0]["rootfs"]), inodes(&found["volume"][0])]
}

#[test]
fn a_tree_of_thirty_thousand_levels_ends_neither_the_server_nor_its_next_start() {
    let mut lab = start("deep");
    let deep = |name: &str, directory: &str| {
        let script = format!("mkdir -p {directory}; cd {directory}; {DEEP} echo made; sleep 1000");
        let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/scratch"}]});
        pod(name, &[container("c", &script, mounts)], json!({"volumes": [{"name": "v", "emptyDir": {}}]}))
    };
    apply(&lab, &[deep("volume", "/scratch"), deep("layer", "/deep")]);
    let made = |name: &str| lab.command("kubectl").args(["logs", name]).output().unwrap().stdout == b"made\n";
    until("both trees are made", || made("volume") && made("layer"));
    // Every level is a directory. A count holds for a minute.
    until("the trees are measured", || measured(&lab, "layer")[0] > 30_000 && measured(&lab, "volume")[1] > 30_000);
    let uid = lab.pod("volume")["metadata"]["uid"].as_str().unwrap().to_owned();
    lab.kubectl(&["delete", "pod", "volume", "--wait=false"]);
    let volume = lab.path(&format!("data/pods/{uid}"));
    until("the volume is gone", || !volume.exists());
    lab.kubectl(&["get", "nodes"]);
    // What a killed server leaves, the next one takes away when it starts.
    lab.kubectl(&["delete", "pod", "layer", "--force", "--grace-period=0", "--wait=false"]);
    lab.kill_server();
    lab.start_server();
    let left = |part: &str| fs::read_dir(lab.path(part)).map_or(1, Iterator::count);
    until("nothing of them is left", || left("data/pods") + left("data/containers") + left("run/sandboxes") == 0);
    let log = fs::read_to_string(lab.path("log")).unwrap();
    assert!(!log.contains("overflow") && !log.contains("panicked"), "{log}");
    lab.stop_server();
}
