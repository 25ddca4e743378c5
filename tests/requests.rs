//! Requests that mean harm, sent over TLS to an API in this process: what they may make, and what they may do.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test that cannot go on says where.

/// Servers behind this one.
#[path = "requests/aggregation.rs"]
mod aggregation;
/// What is sent.
#[path = "requests/bodies.rs"]
mod bodies;
/// Custom objects that a webhook converts.
#[path = "requests/conversion.rs"]
mod conversion;
/// Definitions of custom kinds.
#[path = "requests/definitions.rs"]
mod definitions;
/// A web server for whatever asks one.
#[path = "requests/https.rs"]
mod https;
/// A kind that comes and goes.
#[path = "requests/kinds.rs"]
mod kinds;
/// All kinds from creation to deletion.
#[path = "requests/lifecycle.rs"]
mod lifecycle;
/// What the process holds.
#[path = "requests/memory.rs"]
mod memory;
/// What nodes and pods use.
#[path = "requests/metrics.rs"]
mod metrics;
/// Admission policies in force.
#[path = "requests/policies.rs"]
mod policies;
/// Clients that ask and do not read.
#[path = "requests/readers.rs"]
mod readers;
/// Which route a path leads to, and what the layers around the routes do.
#[path = "requests/routes.rs"]
mod routes;
#[allow(dead_code)] // The replay of recorded cases uses more of it.
#[path = "fidelity/server.rs"]
mod server;
/// Webhooks that are asked.
#[path = "requests/webhooks.rs"]
mod webhooks;

use amphipod::base::budget::REQUEST_BYTES_MAX;
use bodies::{Body, MAPS, PODS, bodies};
use serde_json::{Value, json};
use server::{Asked, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn on_a_server<T>(run: impl AsyncFnOnce(Server) -> T) -> T {
    on_a_server_with(false, run)
}

fn on_a_server_with<T>(resource_metrics: bool, run: impl AsyncFnOnce(Server) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { run(Server::start_with(resource_metrics).await).await })
}

/// Sends a body and answers the status code and the Status.
async fn send(server: &mut Server, method: &str, path: &str, media: &str, body: Vec<u8>) -> (u16, Value) {
    as_user(server, "", method, path, media, body).await
}

async fn as_user(
    server: &mut Server,
    user: &str,
    method: &str,
    path: &str,
    media: &str,
    body: Vec<u8>,
) -> (u16, Value) {
    let mut headers = vec![("content-type".to_owned(), media.to_owned())];
    if !user.is_empty() {
        headers.push(("impersonate-user".into(), user.into()));
    }
    let asked = Asked { method, path, headers, body: Some(body) };
    let (status, _, answer) = server.ask(asked).await;
    (status, serde_json::from_slice(&answer).unwrap_or(Value::Null))
}

async fn create(server: &mut Server, path: &str, object: Value) -> (u16, Value) {
    send(server, "POST", path, "application/json", object.to_string().into_bytes()).await
}

/// The most memory that this process has had since [`forget_peak`].
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

#[test]
fn no_body_makes_more_than_a_request_may() {
    let _alone = memory::alone();
    on_a_server(async |mut server| {
        let big = json!({"metadata": {"name": "big"}, "data": {"a": "x".repeat(1000)}});
        assert_eq!(create(&mut server, MAPS, big).await.0, 201);
        for Body { what, method, path, media, text, codes } in bodies() {
            assert!(text.len() <= 3 << 20, "{} bytes are refused as they are", text.len());
            forget_peak();
            let before = peak_bytes();
            let begun = std::time::Instant::now();
            let (code, status) = send(&mut server, method, &path, media, text.into_bytes()).await;
            let made = peak_bytes().saturating_sub(before);
            println!("{what}: {code}, {} MiB, {} ms", made >> 20, begun.elapsed().as_millis());
            assert!(codes.contains(&code), "{what}: {code} {:.300}", status.to_string());
            assert!(made < REQUEST_BYTES_MAX, "{what}: {} MiB", made >> 20);
            let message = status["message"].as_str().unwrap_or("");
            assert!(message.len() < 70_000, "{what}: {} bytes of message", message.len());
            if code == 413 {
                assert!(status["reason"] == "RequestEntityTooLarge" && message.contains("limit"), "{status}");
            }
        }
    });
}

async fn grant(server: &mut Server, user: &str, rule: Value) {
    let name = format!("{user}-may");
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    let base = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    assert_eq!(create(server, &format!("{base}/roles"), role).await.0, 201);
    let binding = json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
        "roleRef": {"kind": "Role", "name": name, "apiGroup": "rbac.authorization.k8s.io"}});
    assert_eq!(create(server, &format!("{base}/rolebindings"), binding).await.0, 201);
}

#[test]
fn naming_an_object_in_a_field_selector_does_not_grant_its_creation() {
    on_a_server(async |mut server| {
        let rule = json!({"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["mine"]});
        grant(&mut server, "alice", rule).await;
        let map = || json!({"metadata": {"name": "mine"}}).to_string().into_bytes();
        let selected = format!("{MAPS}?fieldSelector=metadata.name=mine");
        for path in [MAPS, &selected, &format!("{selected}&watch=true")] {
            let (code, status) = as_user(&mut server, "alice", "POST", path, "application/json", map()).await;
            assert_eq!(code, 403, "{path}: {status}");
            let expect = "configmaps is forbidden: User \"alice\" cannot create resource \"configmaps\" in API group \"\" in the namespace \"default\"";
            assert_eq!(status["message"], expect);
        }
        let (code, _) = as_user(&mut server, "alice", "DELETE", &selected, "application/json", Vec::new()).await;
        assert_eq!(code, 403, "a collection has no name");
        let (code, _) = as_user(&mut server, "alice", "GET", &selected, "application/json", Vec::new()).await;
        assert_eq!(code, 200, "to list one name is to read it");
        let (code, _) = as_user(&mut server, "alice", "GET", MAPS, "application/json", Vec::new()).await;
        assert_eq!(code, 403);
        let watched = "/api/v1/watch/namespaces/default/configmaps";
        let (code, _) = send(&mut server, "POST", watched, "application/json", map()).await;
        assert_eq!(code, 405, "what stands below /watch is only watched");
    });
}

#[test]
fn exec_attach_and_port_forward_by_websocket_need_create_too() {
    on_a_server(async |mut server| {
        let streams = ["pods/exec", "pods/attach", "pods/portforward", "pods/log", "pods/proxy"];
        let rule = |verbs: Value| json!({"verbs": verbs, "apiGroups": [""], "resources": streams});
        grant(&mut server, "reader", rule(json!(["get"]))).await;
        grant(&mut server, "operator", rule(json!(["get", "create"]))).await;
        for sub in ["exec", "attach", "portforward"] {
            let path = format!("{PODS}/p/{sub}?command=true&stdout=true&ports=80");
            let (code, status) = as_user(&mut server, "reader", "GET", &path, "application/json", Vec::new()).await;
            assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")), "{status}");
            let message = status["message"].as_str().unwrap();
            assert!(message.starts_with("pods \"p\" is forbidden: "), "{message}");
            assert!(message.contains(&format!("cannot create resource \"pods/{sub}\"")), "{message}");
            let (code, _) = as_user(&mut server, "operator", "GET", &path, "application/json", Vec::new()).await;
            assert_eq!(code, 404, "only the pod is missing");
        }
        for sub in ["log", "proxy/"] {
            let path = format!("{PODS}/p/{sub}");
            let (code, status) = as_user(&mut server, "reader", "GET", &path, "application/json", Vec::new()).await;
            assert_eq!(code, 404, "{sub} is read: {status}");
        }
    });
}

#[test]
fn the_mirror_annotation_grants_its_user_nothing() {
    on_a_server(async |mut server| {
        let account =
            json!({"metadata": {"name": "picky", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}}});
        let accounts = "/api/v1/namespaces/default/serviceaccounts";
        assert_eq!(create(&mut server, accounts, account).await.0, 201);
        let pod = |account: &str| {
            let containers = json!([{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "theirs"}}]}]);
            let mirror = json!({"kubernetes.io/config.mirror": "x"});
            json!({"metadata": {"name": "p", "annotations": mirror},
                "spec": {"nodeName": "n", "serviceAccountName": account, "containers": containers}})
        };
        let (code, status) = create(&mut server, PODS, pod("picky")).await;
        assert_eq!(code, 403, "{status}");
        assert!(status["message"].as_str().unwrap().contains("secret \"theirs\" is not allowed"), "{status}");
        let (code, status) = create(&mut server, PODS, pod("nobody")).await;
        assert_eq!(code, 403, "an account that does not exist: {status}");
        let (code, made) = create(&mut server, PODS, pod("")).await;
        assert_eq!((code, &made["spec"]["serviceAccountName"]), (201, &json!("default")));
        let gone = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": null}}}).to_string();
        let media = "application/merge-patch+json";
        let (code, _) = send(&mut server, "PATCH", &format!("{PODS}/p"), media, gone.into_bytes()).await;
        assert_eq!(code, 422, "it stays what it was made");
    });
}

#[test]
fn a_name_beyond_ascii_in_a_header_is_whom_the_request_is_for() {
    on_a_server(async |mut server| {
        let (code, _) = as_user(&mut server, "jürgen", "GET", MAPS, "application/json", Vec::new()).await;
        assert_eq!(code, 403, "he is asked about, not the administrator");
    });
}

/// Its client writes all of it before it reads.
#[test]
fn a_body_that_is_too_long_is_answered() {
    on_a_server(async |server| {
        for (told, long) in [(true, 16 << 20), (false, 4 << 20)] {
            let mut stream = server.channel().dial(b"http/1.1").await.unwrap();
            let length = if told { format!("Content-Length: {long}") } else { "Transfer-Encoding: chunked".to_owned() };
            let head = format!("POST {MAPS} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk =
                [if told { "" } else { "10000\r\n" }.as_bytes(), &[b' '; 1 << 16], if told { b"" } else { b"\r\n" }]
                    .concat();
            for _ in 0..long >> 16 {
                stream.write_all(&chunk).await.unwrap();
            }
            if !told {
                stream.write_all(b"0\r\n\r\n").await.unwrap();
            }
            stream.flush().await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 413");
        }
    });
}

#[test]
fn small_patches_of_a_large_object_take_turns() {
    let _alone = memory::alone();
    on_a_server(async |mut server| {
        let data: serde_json::Map<String, Value> = (0..20_000).map(|i| (format!("k{i}"), "v".into())).collect();
        let config =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": data}).to_string();
        for manager in ["a", "b", "c", "d"] {
            let path = format!("{MAPS}/b?fieldManager={manager}&force=true");
            let media = "application/apply-patch+yaml";
            let (code, status) = send(&mut server, "PATCH", &path, media, config.clone().into_bytes()).await;
            assert!(code < 300, "{code} {status:.300}");
        }
        forget_peak();
        let before = peak_bytes();
        let path = format!("{MAPS}/b");
        let patches = (0..20).map(|i| {
            let headers = vec![("content-type".to_owned(), "application/merge-patch+json".to_owned())];
            let body = Some(json!({"data": {format!("k{i}"): "w"}}).to_string().into_bytes());
            server.open(Asked { method: "PATCH", path: &path, headers, body })
        });
        let answers = futures::future::join_all(patches).await;
        let made = peak_bytes().saturating_sub(before);
        let done = answers.iter().filter(|answer| answer.status() == 200).count();
        println!("{} MiB, {done} of 20 done", made >> 20);
        assert!(answers.iter().all(|answer| [200, 429].contains(&answer.status().as_u16())) && done > 0);
        assert!(made < 2 * REQUEST_BYTES_MAX, "{} MiB", made >> 20);
    });
}
