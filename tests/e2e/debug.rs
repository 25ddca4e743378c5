//! `kubectl debug`: ephemeral containers in running pods, and pods that look into the node.

use std::io::Write;
use std::process::Stdio;

use crate::lab::Lab;
use crate::nginx::machine;

/// What a command in the pod's new container `name` says, with the name of the container it is to look into.
fn look(lab: &Lab, pod: &str, name: &str, target: &[&str], script: &str) -> String {
    let begin = ["debug", pod, "-q", "--image=nginx", "--profile=general", "-c", name];
    lab.kubectl(&[&begin[..], target, &["--", "sh", "-c", script]].concat());
    lab.until(&format!("{name} has ended"), || {
        let status = lab.json(&["get", "pod", pod])["status"]["ephemeralContainerStatuses"].clone();
        let all = status.as_array().cloned().unwrap_or_default();
        all.iter().any(|s| s["name"] == name && s["state"]["terminated"].is_object())
    });
    lab.kubectl(&["logs", pod, "-c", name])
}

#[test]
fn pods_and_nodes_are_looked_into() {
    let (_registry, mut lab) = machine("look");
    let pod = lab.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    let before = lab.json(&["get", "pod", &pod])["status"]["containerStatuses"].clone();

    // The same network; its own processes, or with a target that one's.
    let script = "cat /proc/1/comm /proc/self/comm; exit 3";
    assert_eq!(look(&lab, &pod, "own", &[], script), "sh\ncat\n");
    let target = ["--target=simple-container"];
    let first = look(&lab, &pod, "other", &target, script);
    assert!(first.ends_with("\ncat\n") && !first.starts_with("sh\n"), "{first}");
    assert!(look(&lab, &pod, "net", &[], "/bin/busybox wget -qO- http://127.0.0.1/").contains(" release one"));
    let absent =
        lab.command("kubectl").args(["debug", &pod, "-q", "--image=nginx", "--target=nobody"]).output().unwrap();
    assert!(String::from_utf8_lossy(&absent.stderr).contains("nobody"), "{absent:?}");

    // Typed into.
    let mut typed = lab.command("kubectl");
    typed.args(["debug", &pod, "-q", "-i", "--image=nginx", "-c", "typed", "--", "sh", "-c", "read a; echo got $a"]);
    let mut typed = typed.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    typed.stdin.take().unwrap().write_all(b"this\n").unwrap();
    let said = typed.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "got this\n", "{said:?}");

    // The pod is what it was, and so is all of it after the server has begun anew.
    lab.kill_server();
    lab.start_server();
    let after = lab.json(&["get", "pod", &pod])["status"].clone();
    assert_eq!(after["containerStatuses"], before);
    let ended = after["ephemeralContainerStatuses"].as_array().unwrap();
    let code = |name: &str| {
        let found = ended.iter().find(|s| s["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {ended:?}"))["state"]["terminated"]["exitCode"].clone()
    };
    assert_eq!((code("own"), code("other"), code("typed")), (3.into(), 3.into(), 0.into()));
    assert!(ended.iter().all(|s| s["restartCount"] == 0 && s["ready"] == false), "{ended:?}");

    let node = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"]);
    let looking = ["--", "sh", "-c", "cat /host/etc/os-release /proc/1/comm"];
    let begin = ["debug", &format!("node/{node}"), "-q", "--image=nginx", "--profile=sysadmin"];
    lab.kubectl(&[&begin[..], &looking[..]].concat());
    let selected = "app.kubernetes.io/managed-by=kubectl-debug";
    lab.until("the node was looked into", || {
        lab.kubectl(&["get", "pods", "-l", selected, "-o", "jsonpath={.items[*].status.phase}"]) == "Succeeded"
    });
    let said = lab.kubectl(&["logs", "-l", selected]);
    let here = |path: &str| std::fs::read_to_string(path).unwrap();
    assert_eq!(said, here("/etc/os-release") + &here("/proc/1/comm"));
}
