//! `metrics.k8s.io` and autoscalers over HTTP: what nodes are asked, what is said of it, and who else may serve it.

use std::sync::Arc;

use amphipod::apimachinery::node_access::{
    Destination, Duplex, ExecOptions, LogOptions, NodeAccess, Session, Target, VolumeRequest,
};
use amphipod::apimachinery::status::{Result, Status};
use amphipod::base::task;
use amphipod::wire::images::{BlobRequest, BlobResponse};
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::server::{Asked, Server};
use super::{create, on_a_server_with, send};

const ROOT: &str = "/apis/metrics.k8s.io/v1beta1";
const STATUS: &str = "application/merge-patch+json";

/// A node that says more use each time: of its own pod, and of one that is not its own.
#[derive(Debug, Default)]
struct Node(Arc<std::sync::atomic::AtomicU64>);

fn said(count: u64) -> String {
    let at = 1_800_000_000_000 + count * 10_000;
    let one = |pod: &str| {
        format!(
            "container_cpu_usage_seconds_total{{container=\"c\",namespace=\"default\",pod=\"{pod}\"}} {} {at}\n\
             container_memory_working_set_bytes{{container=\"c\",namespace=\"default\",pod=\"{pod}\"}} 2097152 {at}\n\
             container_start_time_seconds{{container=\"c\",namespace=\"default\",pod=\"{pod}\"}} 1\n",
            count as f64 * 2.5
        )
    };
    format!(
        "{}{}node_cpu_usage_seconds_total {} {at}\nnode_memory_working_set_bytes 1048576 {at}\n",
        one("own"),
        one("other"),
        count * 5
    )
}

#[async_trait]
impl NodeAccess for Node {
    async fn logs(&self, _: &Target, _: &LogOptions) -> Result<mpsc::Receiver<Bytes>> {
        Err(Status::internal("no"))
    }

    async fn exec(&self, _: &Target, _: &ExecOptions) -> Result<Session> {
        Err(Status::internal("no"))
    }

    async fn attach(&self, _: &Target, _: &ExecOptions) -> Result<Session> {
        Err(Status::internal("no"))
    }

    async fn connect(&self, _: &Target, _: u16) -> Result<Box<dyn Duplex>> {
        Err(Status::internal("no"))
    }

    async fn dial(&self, to: &Destination) -> Result<Box<dyn Duplex>> {
        assert_eq!(*to, Destination::Endpoints);
        let count = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let (ours, mut theirs) = tokio::io::duplex(64 << 10);
        task::spawn("node", async move {
            let mut head = vec![0; 4096];
            let read = theirs.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /metrics/resource HTTP/1.1\r\n"));
            let body = said(count);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let _ = theirs.write_all(answer.as_bytes()).await;
        });
        Ok(Box::new(ours))
    }

    async fn image(&self, _: &BlobRequest) -> Result<BlobResponse> {
        Err(Status::internal("no"))
    }

    async fn volume(&self, _: &VolumeRequest) -> Result<String> {
        Err(Status::internal("no"))
    }
}

async fn get(server: &mut Server, path: &str) -> (u16, Value) {
    let (code, _, body) = server.ask(Asked { method: "GET", path, headers: Vec::new(), body: None }).await;
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn run_pod(server: &mut Server, name: &str, node: &str) {
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"nodeName": node,
        "containers": [{"name": "c", "image": "i"}]}});
    let (code, made) = create(server, pods, pod).await;
    assert_eq!(code, 201, "{made}");
}

#[test]
fn what_is_used_is_asked_of_the_nodes_when_somebody_asks_and_of_their_own_pods_alone() {
    on_a_server_with(true, async |mut server| {
        let node = Arc::new(Node::default());
        let questions = node.0.clone();
        for name in ["n1", "n2"] {
            assert_eq!(create(&mut server, "/api/v1/nodes", json!({"metadata": {"name": name}})).await.0, 201);
        }
        server.api.nodes.register("n1", node);
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        while !server.get_if_there(account).await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        run_pod(&mut server, "own", "n1").await;
        run_pod(&mut server, "other", "n2").await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(questions.load(std::sync::atomic::Ordering::SeqCst), 0, "nobody asks");
        let (code, nodes) = get(&mut server, &format!("{ROOT}/nodes")).await;
        assert_eq!((code, &nodes["kind"]), (200, &json!("NodeMetricsList")));
        assert_eq!(nodes["items"].as_array().unwrap().len(), 1, "the other node does not answer: {nodes}");
        let one = &nodes["items"][0];
        assert_eq!((&one["metadata"]["name"], &one["window"]), (&json!("n1"), &json!("10s")));
        assert_eq!(one["usage"], json!({"cpu": "500m", "memory": "1Mi"}));
        let (_, pods) = get(&mut server, &format!("{ROOT}/pods")).await;
        assert_eq!(pods["items"].as_array().unwrap().len(), 1, "no node speaks for another's pod: {pods}");
        assert_eq!(pods["items"][0]["containers"], json!([{"name": "c", "usage": {"cpu": "250m", "memory": "2Mi"}}]));
        assert_eq!(pods["items"][0]["metadata"]["labels"], json!({"app": "own"}));
        assert_eq!(questions.load(std::sync::atomic::Ordering::SeqCst), 2, "an answer is said again for a while");
        let (code, pod) = get(&mut server, &format!("{ROOT}/namespaces/default/pods/own")).await;
        assert_eq!(
            (code, &pod["kind"], &pod["apiVersion"]),
            (200, &json!("PodMetrics"), &json!("metrics.k8s.io/v1beta1"))
        );
        for (path, message) in [
            ("namespaces/default/pods/none", "pods.metrics.k8s.io \"none\" not found"),
            ("namespaces/default/pods/other", "podmetrics.metrics.k8s.io \"default/other\" not found"),
            ("nodes/n2", "nodemetrics.metrics.k8s.io \"n2\" not found"),
        ] {
            let (code, status) = get(&mut server, &format!("{ROOT}/{path}")).await;
            assert_eq!((code, &status["message"]), (404, &json!(message)), "{path}");
        }
        for (query, count) in
            [("labelSelector=app%3Down", 1), ("labelSelector=app%3Dx", 0), ("fieldSelector=metadata.name%3Down", 1)]
        {
            let (_, found) = get(&mut server, &format!("{ROOT}/namespaces/default/pods?{query}")).await;
            assert_eq!(found["items"].as_array().unwrap().len(), count, "{query}");
        }
        assert_eq!(get(&mut server, &format!("{ROOT}/pods?fieldSelector=spec.nodeName%3Dn1")).await.0, 400);
        assert_eq!(send(&mut server, "POST", &format!("{ROOT}/nodes"), "application/json", Vec::new()).await.0, 405);
        assert_eq!(get(&mut server, &format!("{ROOT}/pods?watch=true")).await.0, 405);
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        let asked = Asked {
            method: "GET",
            path: &format!("{ROOT}/pods"),
            headers: vec![("accept".into(), table.into())],
            body: None,
        };
        let table: Value = serde_json::from_slice(&server.ask(asked).await.2).unwrap();
        assert_eq!(table["rows"][0]["cells"], json!(["own", "250m", "2Mi", "10s"]));
        let (_, resources) = get(&mut server, ROOT).await;
        assert_eq!(resources["resources"][1]["name"], "pods");

        // Given up to whoever registers for it, and taken back.
        let path = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.metrics.k8s.io";
        assert_eq!(server.get(path).await["spec"]["groupPriorityMinimum"], 100);
        let other = json!({"spec": {"service": {"namespace": "kube-system", "name": "metrics-server"}, "insecureSkipTLSVerify": true}});
        let (code, made) = send(&mut server, "PATCH", path, STATUS, other.to_string().into_bytes()).await;
        assert_eq!((code, &made["spec"]["service"]["port"]), (200, &json!(443)), "{made}");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(server.get(path).await["spec"]["service"]["name"], "metrics-server", "what others decide stays");
        assert_eq!(get(&mut server, &format!("{ROOT}/nodes")).await.0, 503);
        assert_eq!(send(&mut server, "DELETE", path, "application/json", Vec::new()).await.0, 200);
        for _ in 0..100 {
            if server.get_if_there(path).await {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(server.get(path).await["status"]["conditions"][0]["reason"], "Local");
        assert_eq!(get(&mut server, &format!("{ROOT}/nodes")).await.0, 200);
    });
}

#[test]
fn an_autoscaler_is_the_same_in_both_versions() {
    on_a_server_with(false, async |mut server| {
        let path = |version: &str| format!("/apis/autoscaling/{version}/namespaces/default/horizontalpodautoscalers");
        let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
        let first = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50,
            "scaleTargetRef": target}});
        let (code, made) = create(&mut server, &path("v1"), first).await;
        assert_eq!(
            (code, &made["spec"]["targetCPUUtilizationPercentage"], &made["spec"]["minReplicas"]),
            (201, &json!(50), &json!(1))
        );
        let second = server.get(&format!("{}/a", path("v2"))).await;
        assert_eq!(
            second["spec"]["metrics"][0]["resource"]["target"],
            json!({"type": "Utilization", "averageUtilization": 50})
        );
        assert_eq!(second["metadata"].get("annotations"), None);
        let patch = json!({"spec": {"behavior": {"scaleUp": {"selectPolicy": "Disabled"}}, "metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "10"}}}]}});
        let (code, patched) =
            send(&mut server, "PATCH", &format!("{}/a", path("v2")), STATUS, patch.to_string().into_bytes()).await;
        assert_eq!(
            (code, &patched["spec"]["behavior"]["scaleUp"]["policies"][0]["value"]),
            (200, &json!(4)),
            "{patched}"
        );
        let first = server.get(&format!("{}/a", path("v1"))).await;
        assert_eq!(first["spec"].get("targetCPUUtilizationPercentage"), None);
        let annotations = &first["metadata"]["annotations"];
        let kept: Value =
            serde_json::from_str(annotations["autoscaling.alpha.kubernetes.io/metrics"].as_str().unwrap()).unwrap();
        assert_eq!(kept, json!([{"type": "Pods", "pods": {"metricName": "rps", "targetAverageValue": "10"}}]));
        let (code, status) = create(
            &mut server,
            &path("v1"),
            json!({"metadata": {"name": "b"}, "spec": {"maxReplicas": 0,
            "scaleTargetRef": target}}),
        )
        .await;
        assert_eq!(code, 422, "{status}");
        assert!(
            status["message"].as_str().unwrap().contains("spec.maxReplicas: Invalid value: 0: must be greater than 0")
        );
        let body = first.to_string().into_bytes();
        let (code, again) = send(&mut server, "PUT", &format!("{}/a", path("v1")), "application/json", body).await;
        assert_eq!(code, 200, "{again}");
        assert_eq!(server.get(&format!("{}/a", path("v2"))).await["spec"], patched["spec"]);
    });
}
