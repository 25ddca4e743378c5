//! What others on the machine can read of a node: nothing, whatever its directories were before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::lab::BINARY;
use crate::stage::{apply, container, pod, prepare, says};

const NOBODY: u32 = 65534;

/// Everything below a directory that a user without rights can read, write or enter.
fn open_to_nobody(directory: &Path) -> String {
    let mut find = Command::new("find");
    find.arg(directory).args([
        "-mindepth",
        "1",
        "(",
        "-readable",
        "-o",
        "-writable",
        "-o",
        "-executable",
        ")",
        "-print",
    ]);
    let found = find.uid(NOBODY).gid(NOBODY).output().unwrap();
    let refused = String::from_utf8_lossy(&found.stderr).contains("Permission denied");
    assert!(refused, "the search was not hindered: {found:?}");
    String::from_utf8_lossy(&found.stdout).into_owned()
}

#[test]
fn nobody_reads_anything_of_a_node_and_containers_of_other_users_read_their_volumes() {
    let mut lab = prepare("nobody");
    // As an earlier release, or the administrator, may have made them.
    fs::set_permissions(lab.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for part in ["data", "data/agent", "data/agent/images", "run", "run/pods"] {
        fs::create_dir_all(lab.path(part)).unwrap();
        fs::set_permissions(lab.path(part), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let old = lab.path("data/old");
    fs::write(&old, "readable").unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o644)).unwrap();
    lab.start_server();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "value"}});
    let script = "cat /secret/key /var/run/secrets/kubernetes.io/serviceaccount/namespace /etc/resolv.conf > /dev/null \
        && echo $KEY > /memory/f && echo $KEY > /disk/f && touch /tmp/f && ls / > /dev/null && ls . /opt/made /etc > /dev/null && cat /opt/made/file && echo && echo mask $(umask); \
        id -u; echo ready; sleep 1000";
    let mounts = json!([{"name": "secret", "mountPath": "/secret"}, {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/disk"}]);
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}}]);
    // The applets' links need root, so this one calls them by busybox itself.
    let mut main = container("c", script, json!({"volumeMounts": mounts, "env": env}));
    main["workingDir"] = json!("/also/made");
    main["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    let init = container("links", "true", json!({}));
    let volumes = json!([{"name": "secret", "secret": {"secretName": "s"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "disk", "emptyDir": {}}]);
    main["command"] =
        json!(["/bin/sh", "-c", format!("for a in cat ls touch id sleep; do alias $a=\"busybox $a\"; done\n{script}")]);
    apply(&lab, &[secret, pod("p", &[main], json!({"volumes": volumes, "initContainers": [init]}))]);
    says(&lab, "p", "ready");
    let said = lab.kubectl(&["logs", "p"]);
    assert_eq!(said, "made\nmask 0022\n1000\nready\n");
    assert_eq!(lab.kubectl(&["exec", "p", "--", "/bin/sh", "-c", "umask; cat /secret/key"]), "0022\nvalue");
    let root = lab.path("");
    let mode = |part: &str| fs::metadata(root.join(part)).unwrap().permissions().mode() & 0o7777;
    for part in ["data", "run"] {
        assert_eq!(mode(part), 0o700, "{part}");
        assert_eq!(open_to_nobody(&lab.path(part)), "", "{part}");
    }
    // Collectors of logs need not be root for the directories, and no log is everybody's.
    let uid = lab.pod("p")["metadata"]["uid"].as_str().unwrap().to_owned();
    let logs = Path::new("/var/log/pods").join(format!("default_p_{uid}/c"));
    let of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!([of(&logs), of(logs.parent().unwrap()), of(&logs.join("0.log"))], [0o755, 0o755, 0o640]);
    assert_eq!(mode("etc/kubeconfig.yaml"), 0o600);
    // Also after somebody has opened them: the next start, and killall.
    fs::set_permissions(lab.path("run"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(lab.path("data"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.kill_server();
    lab.start_server();
    assert_eq!([mode("data"), mode("run")], [0o700, 0o700]);
    lab.stop_server();
    fs::set_permissions(lab.path("data"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut killall = lab.command(BINARY);
    assert!(killall.arg("killall").args(lab.directories()).status().unwrap().success());
    assert_eq!(mode("data"), 0o700);
}
