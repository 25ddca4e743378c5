//! The node's own HTTP endpoints, as the kubelet has them: what it runs, what that uses, and its logs.
//!
//! The API reaches them in this process, or through the agent's tunnel, over a stream on which HTTP/1.1 is spoken
//! ([`serve`]), and decides itself whether somebody may ask (`nodes/proxy`). Everybody else asks at a [`port`] of the machine. Invariant:
//! nothing is measured while nobody asks, and what is not known is left out, never made up.

mod disk;
mod logs;
mod metrics;
mod network;
pub mod port;
mod summary;
mod usage;

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::io::DuplexStream;
use tokio_stream::wrappers::ReceiverStream;

use self::usage::{Samples, Snapshot, Want};
use super::access::Access;
use super::{Node, heartbeat};
use crate::api::http::negotiate::Form;
use crate::api::http::route::Query;
use crate::api::http::{Body, answer, stream};
use crate::api::node_access::{NodeAccess, Target};
use crate::api::status::Status;
use crate::base::{metrics as counters, task};
use crate::containers::ContainerState;
use crate::kinds::core::pod;

/// Where the machine's logs are.
const LOGS: &str = "/var/log";
/// What may wait in the stream to whoever asks.
const PIPE_BYTES: usize = 64 << 10;
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// What the endpoints remember between two questions; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Samples>);

/// A stream whose other end answers HTTP/1.1 requests.
pub fn serve(access: Access) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let service = service_fn(move |request: Request<Incoming>| {
        let access = access.clone();
        async move { Ok::<_, Infallible>(respond(&access, request).await) }
    });
    task::spawn("node endpoints", async move {
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a question to the node's endpoints broke off");
        }
    });
    ours
}

/// The path of a request, as it is told apart by.
fn path_of(request: &Request<Incoming>) -> String {
    percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned()
}

async fn respond(access: &Access, request: Request<Incoming>) -> Response<Body> {
    let path = path_of(&request);
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if !matches!(*request.method(), Method::GET | Method::HEAD) && !path.starts_with("/stats/summary") {
        return answer::text(405, "405: Method Not Allowed");
    }
    let node = &*access.node;
    let name = node.config.name.as_str();
    let memory = node.capacity.memory_bytes;
    let cgroup = node.config.cgroup_root.as_str();
    let gather = |rates, disks| access.memory.0.gather(node, Want { rates, disks });
    match path.trim_end_matches('/') {
        "/healthz" | "/healthz/ping" | "/healthz/log" | "/healthz/syncloop" => answer::text(200, "ok"),
        "/pods" => answer::value(200, Form::default(), &pods(node)),
        "/runningpods" => answer::value(200, Form::default(), &running(node).await),
        "/configz" => answer::value(200, Form::default(), &configuration(node)),
        "/stats/summary" => {
            let everything = !query.flag("only_cpu_and_memory");
            let snapshot = gather(true, everything).await;
            answer::value(200, Form::default(), &summary::of(&snapshot, name, memory, everything))
        }
        "/metrics" => {
            let snapshot: Snapshot = gather(false, false).await;
            prometheus(counters::text() + &metrics::own(&snapshot, name))
        }
        "/metrics/probes" => prometheus(metrics::probes(&node.probe_results.all())),
        "/metrics/resource" => prometheus(metrics::resource(&gather(false, false).await)),
        "/metrics/cadvisor" => {
            prometheus(metrics::cadvisor(&gather(false, true).await, cgroup, node.capacity.cpus, memory))
        }
        "/logs" if !path.ends_with('/') => logs::moved("/logs/"),
        _ if path.starts_with("/logs/") => {
            logs::respond(Path::new(LOGS), &path["/logs/".len()..], request.method(), request.headers()).await
        }
        _ => match path.strip_prefix("/containerLogs/") {
            Some(rest) => container_log(access, rest, &query).await,
            None => answer::text(404, "404 page not found\n"),
        },
    }
}

fn prometheus(text: String) -> Response<Body> {
    answer::typed(200, TEXT, answer::full(Bytes::from(text)))
}

/// The pods that are bound to this node.
fn pods(node: &Node) -> Value {
    let all = node.client.informer(&pod::KIND).list("");
    let mine = all.iter().filter(|o| {
        o.typed::<Pod>().is_ok_and(|p| p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&node.config.name))
    });
    let items: Vec<Value> = mine.map(|o| o.value()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The pods that run, as the runtime knows them.
async fn running(node: &Node) -> Value {
    let mut items = Vec::new();
    for sandbox in node.runtime.list().await.into_iter().filter(|s| s.alive) {
        let spec = &sandbox.spec;
        let containers = sandbox.containers.iter().filter(|c| matches!(c.state, ContainerState::Running { .. }));
        let containers: Vec<Value> = containers.map(|c| json!({"name": c.name, "resources": {}})).collect();
        let metadata = json!({"name": spec.pod_name, "namespace": spec.pod_namespace, "uid": spec.pod_uid});
        items.push(json!({"metadata": metadata, "spec": {"containers": containers}, "status": {}}));
    }
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// The settings that there are here, under the kubelet's names.
fn configuration(node: &Node) -> Value {
    let config = &node.config;
    let dns: Vec<String> = config.cluster_dns.iter().map(ToString::to_string).collect();
    json!({"kubeletconfig": {
        "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": config.cluster_domain, "clusterDNS": dns, "maxPods": heartbeat::PODS,
        "podLogsDir": config.log_dir, "cgroupRoot": format!("/{}", config.cgroup_root),
        "nodeStatusReportFrequency": format!("{}s", heartbeat::REPORT.as_secs()),
    }})
}

/// `{namespace}/{pod}/{container}`, with the options of `kubectl logs`.
async fn container_log(access: &Access, rest: &str, query: &Query) -> Response<Body> {
    let parts: Vec<&str> = rest.split('/').collect();
    let [namespace, name, container] = parts[..] else { return answer::text(404, "404 page not found\n") };
    if container.is_empty() {
        return answer::text(400, "{\"message\": \"Missing container name.\"}");
    }
    let Some(object) = access.node.client.informer(&pod::KIND).get(namespace, name) else {
        return answer::text(404, format!("{{\"message\": \"Pod \\\"{name}\\\" does not exist\"}}"));
    };
    let target = Target {
        namespace: namespace.into(),
        pod: name.into(),
        uid: object.meta.uid.to_string(),
        container: container.into(),
    };
    let failed = |status: Status| answer::text(status.code, status.message);
    let options = match stream::log_options(query, access.node.clock.now()) {
        Ok(options) => options,
        Err(status) => return failed(status),
    };
    match access.logs(&target, &options).await {
        Ok(pieces) => answer::typed(200, "text/plain", answer::streamed(ReceiverStream::new(pieces))),
        Err(status) => failed(status),
    }
}
