//! The main job with the built-in image, which needs no registry.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::lab::{HELLO, Lab};

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

    lab.until("the old pods are gone", || lab.json(&["get", "pods"])["items"].as_array().is_some_and(|p| p.len() == 5));
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
fn a_pod_is_running_soon_after_it_is_created() {
    let lab = Lab::start("soon");
    let began = Instant::now();
    lab.kubectl(&["run", "one", "--image=amphipod.local/hello"]);
    lab.kubectl(&["wait", "pod/one", "--for=condition=Ready", "--timeout=30s"]);
    // A generous bound: what is promised is measured by scripts/bench, not here.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
