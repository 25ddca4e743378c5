//! What nodes and pods use, as `kubectl top` shows it, and a Deployment that follows it, on two nodes.

use std::process::Stdio;

use serde_json::{Value, json};

use crate::busybox;
use crate::machines::Machines;

/// Works while a file is there, and has next to nothing to do otherwise.
const SCRIPT: &str = "while true; do if [ -e /tmp/load ]; then i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                      else /bin/busybox sleep 1; fi; done";

fn apply(machines: &Machines, object: &Value) {
    let mut kubectl = machines.command(0, "kubectl").args(["apply", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut kubectl.stdin.take().unwrap(), object.to_string().as_bytes()).unwrap();
    assert!(kubectl.wait().unwrap().success(), "{object}");
}

fn deployment() -> Value {
    let one = |name: &str| {
        json!({"name": name, "image": busybox::IMAGE, "command": ["/bin/busybox", "sh", "-c", SCRIPT],
        "resources": {"requests": {"cpu": "20m", "memory": "4Mi"}, "limits": {"cpu": "200m"}}})
    };
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "simple-deployment"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "hello"}},
        "template": {"metadata": {"labels": {"app": "hello"}}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [one("simple-container"), one("other")],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "hello"}}}]}}}})
}

fn replicas(machines: &Machines) -> i64 {
    machines.json(&["get", "deployment", "simple-deployment"])["spec"]["replicas"].as_i64().unwrap()
}

#[test]
fn kubectl_top_shows_both_nodes_and_a_deployment_follows_its_load() {
    let machines = Machines::prepare("scale", 2);
    for machine in &machines.all {
        let directory = machine.path("data/agent/images");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("busybox.tar"), busybox::archive()).unwrap();
    }
    let machines = machines.joined_with(&[]);
    apply(&machines, &deployment());
    machines.kubectl(&["rollout", "status", "deployment/simple-deployment", "--timeout=90s"]);

    let nodes = machines.kubectl(&["top", "nodes", "--no-headers"]);
    for machine in &machines.all {
        let line = nodes.lines().find(|line| line.starts_with(&machine.name)).unwrap_or_else(|| panic!("{nodes}"));
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert!(cells.len() == 5 && cells[1].ends_with('m') && cells[3].ends_with("Mi"), "{nodes}");
    }
    let pods = machines.kubectl(&["top", "pods", "--containers", "--no-headers", "-l", "app=hello"]);
    let mut containers: Vec<&str> = pods.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    containers.sort_unstable();
    assert_eq!(containers, ["other", "other", "simple-container", "simple-container"], "{pods}");
    let table = machines.kubectl(&["get", "pods.metrics.k8s.io", "-l", "app=hello"]);
    assert!(table.starts_with("NAME") && table.lines().next().unwrap().contains("WINDOW"), "{table}");
    let service = machines.kubectl(&["get", "apiservice", "v1beta1.metrics.k8s.io", "--no-headers"]);
    assert!(service.contains("Local") && service.contains("True"), "{service}");
    let may = |verb: &str| {
        let user = "--as=system:serviceaccount:default:reader";
        let asked = machines.command(0, "kubectl").args(["auth", "can-i", verb, "pods.metrics.k8s.io", user]).output();
        String::from_utf8_lossy(&asked.unwrap().stdout).trim().to_owned()
    };
    assert_eq!(may("list"), "no");
    machines.kubectl(&["create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=default:reader"]);
    machines.until("whoever may see pods may see what they use", || may("list") == "yes");

    machines.kubectl(&["autoscale", "deployment", "simple-deployment", "--cpu-percent=70", "--min=2", "--max=5"]);
    let quick = r#"{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":5}}}}"#;
    machines.kubectl(&["patch", "hpa", "simple-deployment", "--type=merge", "-p", quick]);
    let shown = || machines.kubectl(&["get", "hpa", "simple-deployment", "--no-headers"]);
    machines.until("its use is known", || shown().contains("cpu: ") && !shown().contains("<unknown>"));
    assert_eq!(replicas(&machines), 2);
    let loaded = machines.pods("app=hello");
    for pod in &loaded {
        let name = pod["metadata"]["name"].as_str().unwrap();
        machines.kubectl(&["exec", name, "-c", "simple-container", "--", "/bin/busybox", "touch", "/tmp/load"]);
    }
    machines.until("load makes it five", || replicas(&machines) == 5);
    machines.kubectl(&["rollout", "status", "deployment/simple-deployment", "--timeout=90s"]);
    for pod in &loaded {
        let name = pod["metadata"]["name"].as_str().unwrap();
        machines.kubectl(&["exec", name, "-c", "simple-container", "--", "/bin/busybox", "rm", "/tmp/load"]);
    }
    machines.until("silence brings it back to two", || replicas(&machines) == 2);
    let told = machines.kubectl(&["describe", "hpa", "simple-deployment"]);
    for part in [
        "SuccessfulRescale",
        "New size: 5; reason: cpu resource utilization (percentage of request) above target",
        "New size: 2; reason: All metrics below target",
        "ScalingActive   True    ValidMetricFound",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let path = "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/simple-deployment";
    let first: Value = serde_json::from_str(&machines.kubectl(&["get", "--raw", path])).unwrap();
    assert_eq!(first["spec"]["targetCPUUtilizationPercentage"], 70);
    assert!(first["metadata"]["annotations"].get("autoscaling.alpha.kubernetes.io/behavior").is_some());
}
