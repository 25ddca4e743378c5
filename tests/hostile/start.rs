//! Whatever is found on a disk: the node starts, the pods that run go on, and new ones start.

use std::fs;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use crate::stage::{apply, container, pod, running, start};

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

#[test]
fn what_is_damaged_on_a_disk_keeps_no_node_from_starting() {
    let mut lab = start("damage");
    let runs = |name: &str| pod(name, &[container("c", "echo here; sleep 1000", json!({}))], json!({}));
    apply(&lab, &[runs("before")]);
    running(&lab, "before");
    let id = lab.pod("before")["status"]["containerStatuses"][0]["containerID"].clone();
    lab.kill_server();

    // Sandboxes that are none.
    let sandboxes = lab.path("run/sandboxes");
    for (name, bytes) in [
        ("empty", ""),
        ("nonsense", "{\"spec\":"),
        ("others", "{\"spec\":{\"id\":\"x\"},\"created_at\":\"2026-01-01T00:00:00Z\"}"),
    ] {
        fs::create_dir(sandboxes.join(name)).unwrap();
        fs::write(sandboxes.join(name).join("sandbox.json"), bytes).unwrap();
    }
    fs::create_dir(sandboxes.join("pipe")).unwrap();
    fifo(&sandboxes.join("pipe/sandbox.json"));
    fs::create_dir(sandboxes.join("huge")).unwrap();
    fs::File::create(sandboxes.join("huge/sandbox.json")).unwrap().set_len(1 << 40).unwrap();
    fs::write(sandboxes.join("a-file"), "").unwrap();
    // The image store.
    fs::write(lab.path("data/images/index.json"), "{\"images\":[").unwrap();
    fs::remove_dir_all(lab.path("data/images/partial")).unwrap();
    fs::write(lab.path("data/images/partial"), "no directory").unwrap();
    fifo(&lab.path("data/images/pulls.lock"));
    fifo(&lab.path("data/agent/images/pipe.tar"));
    fs::write(lab.path("data/agent/images/nonsense.tar"), "no archive").unwrap();
    // Containers and pods that are none.
    fs::create_dir_all(lab.path("data/containers/odd")).unwrap();
    fifo(&lab.path("data/containers/odd/image"));
    fs::write(lab.path("data/containers/a-file"), "").unwrap();
    fs::create_dir_all(lab.path("data/pods")).unwrap();
    fs::write(lab.path("data/pods/a-file"), "").unwrap();
    fs::create_dir_all(lab.path("run/pods/gone/volumes/x")).unwrap();
    fifo(&lab.path("run/node.json"));
    fs::create_dir(lab.path("run/addresses/10.42.0.200")).unwrap();
    fifo(&lab.path("run/addresses/10.42.0.201"));
    lab.start_server();

    let status = lab.pod("before")["status"]["containerStatuses"][0].clone();
    assert_eq!(status["containerID"], id, "it was taken over");
    let exec = ["exec", "before", "--", "/bin/busybox", "ls", "/bin/busybox"];
    assert_eq!(lab.kubectl(&exec).trim(), "/bin/busybox", "its layers are there");
    apply(&lab, &[runs("after")]);
    running(&lab, "after");
    lab.until("what is no sandbox is gone", || fs::read_dir(&sandboxes).unwrap().count() == 2);
    let log = fs::read_to_string(lab.path("log")).unwrap();
    for told in ["what is left of a sandbox cannot be used", "the image index cannot be used", "was set aside"] {
        assert!(log.contains(told), "{told}\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}
