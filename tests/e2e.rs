//! The main job, end to end: the real executable as server and node in a network namespace of its own, worked with by the
//! real kubectl. Needs root, `kubectl`, `curl`, `nft` and `dig` on the PATH (`scripts/test` installs them).

#![allow(clippy::unwrap_used)] // A test that cannot go on says where.

#[path = "e2e/lab.rs"]
mod lab;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lab::{HELLO, Lab};
use serde_json::Value;

#[test]
fn a_deployment_is_served_scaled_rolled_and_deleted() {
    let lab = Lab::start("roll");
    lab.kubectl(&["apply", "-f", HELLO]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let answered: BTreeSet<String> =
        (0..40).map(|_| lab.curl("http://127.0.0.1:30080/").lines().next().unwrap_or("").to_owned()).collect();
    assert_eq!(answered.len(), 3, "the Service spreads over all pods: {answered:?}");
    let address = lab.kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(lab.curl(&format!("http://{address}/")).starts_with("Hello from pod hello-"));
    let resolved = lab.inside(&["dig", "+short", "+time=2", "@10.43.0.10", "hello.default.svc.cluster.local"]);
    assert_eq!(resolved.trim(), address);

    lab.kubectl(&["scale", "deployment/hello", "--replicas=5"]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    lab.kubectl(&["set", "env", "deployment/hello", "COLOUR=blue"]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let history = lab.kubectl(&["rollout", "history", "deployment/hello"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    lab.kubectl(&["rollout", "undo", "deployment/hello"]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let env =
        lab.kubectl(&["get", "deployment", "hello", "-o", "jsonpath={.spec.template.spec.containers[0].env[*].name}"]);
    assert_eq!(env, "NODE_NAME");

    let pod = lab.kubectl(&["get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[0].metadata.name}"]);
    assert_eq!(lab.kubectl(&["logs", &pod]).trim(), "hello: listening on port 8080");
    assert!(lab.kubectl(&["exec", &pod, "--", "/amphipod", "version"]).starts_with("amphipod v1.37"));
    let before = lab.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"]);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(lab.pod_pid(&pod)), nix::sys::signal::Signal::SIGKILL).unwrap();
    lab.until("the killed container restarts", || {
        let status = lab.pod(&pod)["status"]["containerStatuses"][0].clone();
        status["restartCount"] == 1 && status["ready"] == true && status["containerID"] != before.as_str()
    });
    lab.kubectl(&["delete", "pod", &pod]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    lab.kubectl(&["delete", "-f", HELLO]);
    lab.until("all pods are gone", || lab.json(&["get", "pods"])["items"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn typed_clients_send_protobuf() {
    let lab = Lab::start("proto");
    lab.kubectl(&["create", "deployment", "web", "--image=amphipod.local/hello", "--port=8080", "--replicas=2"]);
    lab.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]);
    lab.kubectl(&["create", "configmap", "settings", "--from-literal=a=b"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let address = lab.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(lab.curl(&format!("http://{address}/")).starts_with("Hello from pod web-"));
    assert_eq!(lab.kubectl(&["get", "configmap", "settings", "-o", "jsonpath={.data.a}"]), "b");
}

#[test]
fn kill_9_of_the_server_loses_nothing_and_restarts_nothing() {
    let mut lab = Lab::start("kill");
    lab.kubectl(&["create", "deployment", "web", "--image=amphipod.local/hello", "--replicas=4"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let look = |lab: &Lab| -> Vec<(String, String, String)> {
        let all = lab.json(&["get", "pods", "-l", "app=web"]);
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let pods = all["items"].as_array().cloned().unwrap_or_default();
        pods.iter()
            .map(|p| {
                let c = &p["status"]["containerStatuses"][0];
                assert_eq!(c["restartCount"], 0);
                (text(&p["metadata"]["name"]), text(&c["containerID"]), text(&p["status"]["podIP"]))
            })
            .collect()
    };
    let before = look(&lab);
    let pids: Vec<i32> = before.iter().map(|(name, ..)| lab.pod_pid(name)).collect();
    let addresses: BTreeSet<&String> = before.iter().map(|(.., ip)| ip).collect();
    assert_eq!(addresses.len(), 4, "no address twice: {before:?}");
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let creating: Vec<_> = (0..8)
            .map(|n| lab.spawn(&["create", "configmap", &format!("c-{round}-{n}"), "--from-literal=a=b"]))
            .collect();
        std::thread::sleep(Duration::from_millis(60 * (round + 1)));
        lab.kill_server();
        for (n, mut child) in creating.into_iter().enumerate() {
            if child.wait().unwrap().success() {
                acknowledged.push(format!("c-{round}-{n}"));
            }
        }
        lab.start_server();
        assert_eq!(look(&lab), before, "same containers, same addresses");
    }
    for name in &acknowledged {
        lab.kubectl(&["get", "configmap", name]);
    }
    let again: Vec<i32> = before.iter().map(|(name, ..)| lab.pod_pid(name)).collect();
    assert_eq!(again, pids, "the same processes");
    assert!(lab.curl(&format!("http://{}:8080/", before[0].2)).starts_with("Hello from pod"));
}

#[test]
fn killall_leaves_nothing_outside_of_the_data_directory() {
    let mut lab = Lab::start("gone");
    lab.kubectl(&["apply", "-f", HELLO]);
    lab.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let ours = lab.marks();
    let running = lab::traces(&ours);
    for what in ["mount ", "cgroup ", "log ", "process "] {
        assert!(running.iter().any(|t| t.starts_with(what)), "{what} while pods run: {running:#?}");
    }
    assert_ne!(lab.network_traces(), "", "links and rules while pods run");
    lab.stop_server();
    assert!(lab::traces(&ours).iter().any(|t| t.starts_with("process ")), "containers go on");
    lab.killall();
    assert_eq!(lab.network_traces(), "", "no link, rule or route is left");
    assert_eq!(lab::traces(&ours), Vec::<String>::new());
    assert!(!lab.path("run").exists(), "the run directory is gone");
}

#[test]
fn a_pod_is_running_soon_after_it_is_created() {
    let lab = Lab::start("soon");
    let began = Instant::now();
    lab.kubectl(&["run", "one", "--image=amphipod.local/hello"]);
    lab.kubectl(&["wait", "pod/one", "--for=condition=Ready", "--timeout=30s"]);
    // A generous bound: what is promised is measured by scripts/bench, not here.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
