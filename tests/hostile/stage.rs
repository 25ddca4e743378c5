//! A machine on which busybox runs without a registry, and what the tests do with pods there.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

pub use crate::busybox::IMAGE;
use crate::busybox::archive;
use crate::lab::Lab;
use crate::watch::Watched;

/// A machine with the image and without a server.
pub fn prepare(name: &str) -> Watched {
    let lab = Watched::prepare(name);
    let directory = lab.path("data/agent/images");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("busybox.tar"), archive()).unwrap();
    lab
}

/// The same with a server whose node is Ready.
pub fn start(name: &str) -> Watched {
    let mut lab = prepare(name);
    lab.start_server();
    lab
}

/// Applies objects.
pub fn apply(lab: &Lab, objects: &[Value]) {
    let list = objects.iter().map(Value::to_string).collect::<Vec<_>>().join("\n---\n");
    let mut kubectl = lab.command("kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut kubectl.stdin.take().unwrap(), list.as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{list}");
}

/// A container that runs a script, with what is merged into it.
pub fn container(name: &str, script: &str, more: Value) -> Value {
    let path =
        "for a in $(/bin/busybox --list); do [ -e /bin/$a ] || /bin/busybox ln -s busybox /bin/$a; done 2>/dev/null; ";
    let mut container = json!({"name": name, "image": IMAGE, "command": ["/bin/sh", "-c", format!("{path}{script}")]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    container
}

/// A pod of containers, with what is merged into its spec.
pub fn pod(name: &str, containers: &[Value], more: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "containers": containers, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}});
    pod["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pod
}

/// Waits until all containers of a pod have ended; answers the pod.
pub fn ended(lab: &Lab, name: &str) -> Value {
    lab.until(&format!("pod {name} has ended"), || {
        matches!(lab.pod(name)["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
    });
    lab.pod(name)
}

/// Waits until a pod runs.
pub fn running(lab: &Lab, name: &str) {
    lab.until(&format!("pod {name} runs"), || lab.pod(name)["status"]["phase"] == "Running");
}

/// Waits until a container's log has a line.
pub fn says(lab: &Lab, name: &str, line: &str) {
    lab.until(&format!("pod {name} says {line:?}"), || {
        let said = lab.command("kubectl").args(["logs", name, "--all-containers", "--ignore-errors"]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).lines().any(|l| l == line)
    });
}

/// The files and directories of a directory of the machine that must not change.
pub fn listing(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = fs::read_dir(directory)
        .unwrap()
        .flatten()
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap_or_default()))
        .collect();
    all.sort();
    all
}
