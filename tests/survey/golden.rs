//! Everything that runs in a pod, under both standards of Pod Security, against what was written down of it.

use std::fs;

use serde_json::json;

use crate::image::{IMAGE, server};
use crate::machine::{Lab, slowness};

/// By the version of the machine's control groups; that of version 2 is compared by the emulated machine (tests/vm).
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/survey/golden.txt");
const GOLDEN_V2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/survey/golden-v2.txt");
/// Set to write the file anew.
const WRITE: &str = "AMPHIPOD_WRITE_GOLDEN";

/// What a container must say of itself in a namespace of the level.
fn context(level: &str) -> serde_json::Value {
    match level {
        "restricted" => json!({
            "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 1000,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        }),
        _ => json!({}),
    }
}

fn container(level: &str, name: &str, script: &str) -> serde_json::Value {
    json!({
        "name": name, "image": IMAGE, "command": ["sh", "-c", script], "securityContext": context(level),
        "volumeMounts": [{"name": "survey", "mountPath": "/survey"}],
    })
}

/// The findings of every kind of process in a pod of the level.
fn look(lab: &Lab, level: &str) -> String {
    lab.kubectl(&["create", "namespace", level]);
    lab.kubectl(&["label", "namespace", level, &format!("pod-security.kubernetes.io/enforce={level}")]);
    let mut main = container(level, "main", "set -- main; . /bin/survey; exec sleep 1000");
    main["startupProbe"] = json!({"exec": {"command": ["survey", "probe"]}, "periodSeconds": 1, "timeoutSeconds": 30});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": level},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "initContainers": [container(level, "init", "exec survey init")],
            "containers": [main], "volumes": [{"name": "survey", "emptyDir": {}}],
        },
    });
    let file = lab.path(&format!("{level}.json"));
    fs::write(&file, pod.to_string()).unwrap();
    lab.until("the default account is there", || {
        let get = ["get", "serviceaccount", "default", "-n", level];
        lab.command("kubectl").args(get).output().unwrap().status.success()
    });
    lab.kubectl(&["apply", "-f", file.to_str().unwrap()]);
    lab.kubectl(&["wait", "-n", level, "pod/p", "--for=condition=Ready", &format!("--timeout={}s", 60 * slowness())]);
    lab.kubectl(&["exec", "-n", level, "p", "--", "survey", "exec"]);
    let patch = json!({"spec": {"ephemeralContainers": [container(level, "ephemeral", "exec survey ephemeral")]}});
    lab.kubectl(&["patch", "-n", level, "pod", "p", "--subresource=ephemeralcontainers", "-p", &patch.to_string()]);
    let mut out = String::new();
    for name in ["init", "main", "probe", "exec", "ephemeral"] {
        let read = ["exec", "-n", level, "p", "--", "cat", &format!("/survey/{name}")];
        lab.until(&format!("{name} has written"), || {
            lab.command("kubectl").args(read).output().unwrap().status.success()
        });
        out.push_str(&format!("== {level} {name}\n{}\n", lab.kubectl(&read)));
    }
    out
}

#[test]
fn what_processes_find_is_what_was_written_down() {
    let lab = server("surv");
    let found = look(&lab, "restricted") + &look(&lab, "baseline");
    let is_v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let golden = if is_v2 { GOLDEN_V2 } else { GOLDEN };
    if std::env::var_os(WRITE).is_some() {
        fs::write(golden, &found).unwrap();
    }
    let wanted = fs::read_to_string(golden).unwrap();
    for (wanted, found) in wanted.split("== ").zip(found.split("== ")) {
        assert_eq!(wanted, found, "{WRITE}=1 writes the file anew");
    }
    assert_eq!(wanted.len(), found.len());
}
