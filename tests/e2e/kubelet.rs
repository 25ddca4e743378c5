//! The nodes' own port: who finds what there, on the server's node and on an agent's, from the segment and from a pod.

use std::process::Output;

use serde_json::Value;

use crate::cluster::text;
use crate::lab::run;
use crate::machines::Machines;

/// What scrapers usually have, and somebody who may do nothing.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: scrape}
rules: [{apiGroups: [""], resources: [nodes/metrics, nodes/stats], verbs: [get]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: scraper}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: scrape}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: scrape}
subjects: [{kind: ServiceAccount, name: scraper, namespace: default}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers: [{name: hello, image: amphipod.local/hello, resources: {limits: {cpu: 500m}}}]
"#;

/// Metrics that the rules and dashboards of kube-prometheus-stack read and that there is something of here: left out are those of
/// etcd, of Go, of volumes and of APIs that are served elsewhere, and recording rules.
const READ: [&str; 58] = [
    "apiserver_client_certificate_expiration_seconds_bucket",
    "apiserver_client_certificate_expiration_seconds_count",
    "apiserver_request_sli_duration_seconds_bucket",
    "apiserver_request_sli_duration_seconds_count",
    "apiserver_request_terminations_total",
    "apiserver_request_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_usage_seconds_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_memory_cache",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "coredns_cache_entries",
    "coredns_cache_hits_total",
    "coredns_cache_misses_total",
    "coredns_dns_request_duration_seconds_bucket",
    "coredns_dns_request_size_bytes_bucket",
    "coredns_dns_requests_total",
    "coredns_dns_response_size_bytes_bucket",
    "coredns_dns_responses_total",
    "kubelet_certificate_manager_client_ttl_seconds",
    "kubelet_certificate_manager_server_ttl_seconds",
    "kubelet_node_name",
    "kubelet_pod_start_duration_seconds_bucket",
    "kubelet_pod_start_duration_seconds_count",
    "kubelet_running_containers",
    "kubelet_running_pods",
    "kubelet_runtime_operations_duration_seconds_bucket",
    "kubelet_runtime_operations_errors_total",
    "kubelet_runtime_operations_total",
    "kubeproxy_sync_proxy_rules_duration_seconds_bucket",
    "kubeproxy_sync_proxy_rules_duration_seconds_count",
    "kubernetes_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "rest_client_request_duration_seconds_bucket",
    "rest_client_requests_total",
    "scheduler_pod_scheduling_sli_duration_seconds_bucket",
    "scheduler_pod_scheduling_sli_duration_seconds_count",
    "scheduler_scheduling_algorithm_duration_seconds_bucket",
    "scheduler_scheduling_algorithm_duration_seconds_count",
    "scheduler_scheduling_attempt_duration_seconds_bucket",
    "scheduler_scheduling_attempt_duration_seconds_count",
    "workqueue_adds_total",
    "workqueue_depth",
    "workqueue_queue_duration_seconds_bucket",
];

/// What curl says of a URL: status and body; 0 where there is no answer.
fn parsed(output: &Output) -> (u16, String) {
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
    (status.parse().unwrap_or(0), body.to_owned())
}

struct Stage {
    machines: Machines,
    authority: String,
}

impl Stage {
    /// One question from the first machine to a node; the certificate must be for the address and of the cluster's authority.
    fn ask(&self, of: usize, path: &str, token: Option<&str>) -> (u16, String) {
        let url = format!("https://{}:10250{path}", self.machines.all[of].address);
        let header = format!("Authorization: Bearer {}", token.unwrap_or_default());
        let mut command = self.machines.command(0, "curl");
        command.args(["-sS", "--max-time", "10", "--cacert", &self.authority, "-w", "\n%{http_code}", &url]);
        if token.is_some() {
            command.args(["-H", &header]);
        }
        parsed(&command.output().unwrap())
    }
}

#[test]
fn a_nodes_own_port_tells_its_metrics_to_whom_the_api_lets_ask() {
    let machines = Machines::start("kport", 2);
    let manifest = machines.all[0].path("rights.yaml");
    std::fs::write(&manifest, RIGHTS.replace("NODE", &machines.all[1].name)).unwrap();
    machines.kubectl(&["apply", "-f", manifest.to_str().unwrap()]);
    machines.kubectl(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"]);
    let authority = machines.all[0].path("ca.crt");
    let ca = machines.json(&["get", "configmap", "kube-root-ca.crt"]);
    std::fs::write(&authority, text(&ca, "/data/ca.crt")).unwrap();
    let token = |account: &str| machines.kubectl(&["create", "token", account]).trim().to_owned();
    let (scraper, nobody) = (token("scraper"), token("nobody"));
    let pod: Value = machines.json(&["get", "pod", "web"]);
    let authority = authority.to_str().unwrap().to_owned();
    let stage = Stage { machines, authority };

    for of in [0, 1] {
        let name = stage.machines.all[of].name.clone();
        let node = stage.machines.json(&["get", "node", &name]);
        assert_eq!(node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port"), Some(&10250.into()));
        for path in ["/metrics", "/metrics/cadvisor", "/pods", "/healthz", "/", "/nothing"] {
            assert_eq!(stage.ask(of, path, None), (401, "Unauthorized".into()), "{name} {path}: nobody in particular");
            assert_eq!(stage.ask(of, path, Some("a.b.c")).0, 401, "{name} {path}: nobody's token");
        }
        let (status, why) = stage.ask(of, "/metrics", Some(&nobody));
        let user = "system:serviceaccount:default:nobody";
        assert_eq!(why, format!("Forbidden (user={user}, verb=get, resource=nodes, subresource(s)=[metrics])\n"));
        assert_eq!(status, 403);
        for (path, part) in [
            ("/metrics", "kubelet_node_name"),
            ("/metrics/cadvisor", "container_memory_working_set_bytes"),
            ("/metrics/resource", "node_memory_working_set_bytes"),
            ("/stats/summary", &format!("\"nodeName\":\"{name}\"")),
        ] {
            let (status, body) = stage.ask(of, path, Some(&scraper));
            assert!(status == 200 && body.contains(part), "{name} {path}: {status} {body}");
        }
        let (status, why) = stage.ask(of, "/pods", Some(&scraper));
        assert!(status == 403 && why.ends_with("subresource(s)=[pods proxy])\n"), "{why}");
        // The path is told apart as it is answered.
        assert_eq!(stage.ask(of, "/%70ods", Some(&scraper)).0, 403);
        assert_eq!(stage.ask(of, "/metrics/../pods", Some(&scraper)).0, 403);
    }

    // From a pod, as metrics-server asks, and for the node's own pods.
    let url = format!("https://{}:10250/metrics/cadvisor", stage.machines.all[1].address);
    let header = format!("Authorization: Bearer {scraper}");
    let seen = stage.machines.in_pod(&pod, &["curl", "-sS", "--cacert", &stage.authority, "-H", &header, &url]);
    assert!(seen.is_some_and(|all| all.contains("pod=\"web\"")), "the pod's own figures");

    // What dashboards show: of a node with a limited pod that has asked the DNS for a name, and whose image is nowhere.
    stage.machines.in_pod(&pod, &["dig", "+short", "@10.43.0.10", "kubernetes.default.svc.cluster.local"]);
    stage.machines.in_pod(&pod, &["dig", "+short", "+time=1", "+tries=1", "@10.43.0.10", "example.com"]);
    stage.machines.kubectl(&["run", "nowhere", "--image=registry.invalid/none:1"]);
    let seen = || {
        let of_nodes = |path: &str| stage.ask(0, path, Some(&scraper)).1 + &stage.ask(1, path, Some(&scraper)).1;
        let paths = ["/metrics", "/metrics/cadvisor", "/metrics/resource"];
        let text = paths.map(of_nodes).concat() + &stage.machines.kubectl(&["get", "--raw", "/metrics"]);
        let names = text.lines().filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned);
        names.collect::<std::collections::BTreeSet<_>>()
    };
    stage
        .machines
        .until("an image that is nowhere is counted", || seen().contains("kubelet_runtime_operations_errors_total"));
    let seen = seen();
    let missing: Vec<&str> = READ.into_iter().filter(|name| !seen.contains(*name)).collect();
    assert!((READ.len() - missing.len()) * 100 >= READ.len() * 80, "missing: {missing:?}");

    // A right that is given counts within half a minute, one for each subresource.
    stage.machines.kubectl(&["create", "clusterrole", "pods", "--verb=get", "--resource=nodes/pods,nodes/log"]);
    stage.machines.kubectl(&[
        "create",
        "clusterrolebinding",
        "pods",
        "--clusterrole=pods",
        "--serviceaccount=default:scraper",
    ]);
    stage.machines.until("the new right counts", || stage.ask(1, "/pods", Some(&scraper)).0 == 200);
    assert!(stage.ask(1, "/pods", Some(&scraper)).1.contains("\"name\":\"web\""));

    // The port can be closed, and another one be chosen.
    let mut machines = stage.machines;
    machines.all[1].stop();
    machines.start_agent_with(1, "", &["--kubelet-port", "0"]);
    let port = |machines: &Machines| {
        let node = machines.json(&["get", "node", &machines.all[1].name]);
        node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64)
    };
    machines.until("the node says so", || port(&machines) == Some(0));
    let listens = run(machines.command(1, "ss").args(["-Hltn", "sport = :10250"]));
    assert_eq!(String::from_utf8_lossy(&listens.stdout).trim(), "");
}
