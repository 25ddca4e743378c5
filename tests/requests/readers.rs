//! Clients that ask for much and read nothing: what the server keeps for them, and whether others are answered meanwhile.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use super::bodies::MAPS;
use super::memory::{alone, forget_peak, held_bytes, peak_bytes};
use super::server::{Asked, Server};
use super::{create, on_a_server};

/// What all answers on their way may take, with the connections that carry them, and what making one takes.
const GROWTH_BYTES_MAX: usize = 80 << 20;
/// Clients that read nothing.
const READERS: usize = 24;
/// Documents that nobody reads.
const DOCUMENTS: usize = 20;
/// So much is more than the sockets between client and server take.
const MAPS_BIG: usize = 64;
const BIG_BYTES: usize = 250_000;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// Text that nothing makes shorter.
fn noise(seed: usize, bytes: usize) -> String {
    let mut state = seed as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((state >> 33) % 26) as u8)
    };
    (0..bytes).map(|_| next()).collect()
}

/// Metadata, and with them lists of every form, of 16 MB.
async fn fill(server: &mut Server) {
    for i in 0..MAPS_BIG {
        let annotations = json!({"a": noise(i, BIG_BYTES)});
        let map = json!({"metadata": {"name": format!("big{i}"), "annotations": annotations}, "data": {"a": "b"}});
        assert_eq!(create(server, MAPS, map).await.0, 201);
    }
}

async fn ask(server: &Server, user: &str, path: &str, accept: &str) -> Response<Incoming> {
    let headers = vec![("accept".to_owned(), accept.to_owned()), ("impersonate-user".to_owned(), user.to_owned())];
    let headers = if user.is_empty() { headers[..1].to_vec() } else { headers };
    server.open(Asked { method: "GET", path, headers, body: None }).await
}

async fn reads(server: &mut Server, user: &str) {
    let rule = json!({"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["configmaps"]});
    super::grant(server, user, rule).await;
}

/// Opens answers that nobody reads; what they take at most, and keep.
async fn taken_by(server: &Server, path: &str, accept: &str) -> (usize, usize, Vec<Response<Incoming>>) {
    forget_peak();
    let before = held_bytes();
    let mut open = Vec::new();
    for _ in 0..READERS {
        let answer = ask(server, "slow", path, accept).await;
        assert!(matches!(answer.status().as_u16(), 200 | 429), "{}", answer.status());
        open.push(answer);
    }
    (peak_bytes().saturating_sub(before), held_bytes().saturating_sub(before), open)
}

#[test]
fn whoever_does_not_read_lists_keeps_no_more_than_a_figure_of_memory() {
    let _alone = alone();
    on_a_server(async |mut server| {
        fill(&mut server).await;
        reads(&mut server, "slow").await;
        reads(&mut server, "other").await;
        let table = format!("{MAPS}?includeObject=Object");
        for (what, path, accept) in [
            ("a list", MAPS, "application/json"),
            ("a table", &table, TABLE),
            ("YAML", MAPS, "application/yaml"),
            ("a table as YAML", &table, &TABLE.replace("json", "yaml")),
            ("metadata", MAPS, METADATA),
        ] {
            let (taken, kept, open) = taken_by(&server, path, accept).await;
            println!("{what}: {} MiB for {READERS} readers, {} MiB of them for long", taken >> 20, kept >> 20);
            assert!(taken < GROWTH_BYTES_MAX, "{what}: {} MiB", taken >> 20);
            let other = tokio::time::timeout(Duration::from_secs(60), ask(&server, "other", path, accept)).await;
            let other = other.unwrap();
            assert_eq!(other.status(), 200, "{what}: who reads is answered");
            let read = other.into_body().collect().await.unwrap().to_bytes();
            assert!(read.len() > MAPS_BIG * BIG_BYTES, "{what}: {} bytes", read.len());
            drop(open);
        }
    });
}

#[test]
fn a_list_of_the_past_is_read_a_little_at_a_time() {
    let _alone = alone();
    on_a_server(async |mut server| {
        fill(&mut server).await;
        let first = ask(&server, "", &format!("{MAPS}?limit=1"), "application/json").await;
        let first: Value = serde_json::from_slice(&first.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let then = first["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        // What is newer makes that the past.
        let later = json!({"metadata": {"name": "later"}});
        assert_eq!(create(&mut server, MAPS, later).await.0, 201);
        let past = format!("{MAPS}?resourceVersion={then}&resourceVersionMatch=Exact");
        forget_peak();
        let before = held_bytes();
        let none = ask(&server, "", &format!("{past}&labelSelector=a%3Db"), "application/json").await;
        assert_eq!(none.status(), 200);
        let none: Value = serde_json::from_slice(&none.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((none["items"].as_array().unwrap().len(), &none["metadata"]["resourceVersion"]), (0, &then.into()));
        let taken = peak_bytes().saturating_sub(before);
        assert!(
            taken < MAPS_BIG * BIG_BYTES / 2,
            "{} KiB for none of {} KiB",
            taken >> 10,
            (MAPS_BIG * BIG_BYTES) >> 10
        );
        let all = ask(&server, "", &past, "application/json").await;
        let all: Value = serde_json::from_slice(&all.into_body().collect().await.unwrap().to_bytes()).unwrap();
        let names: Vec<_> =
            all["items"].as_array().unwrap().iter().filter_map(|m| m["metadata"]["name"].as_str()).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("big")).count(), MAPS_BIG);
        assert!(!names.contains(&"later"), "it is as it was");
    });
}

#[test]
fn whoever_does_not_read_documents_keeps_no_more_than_a_figure_of_memory() {
    let _alone = alone();
    on_a_server(async |mut server| {
        let map = json!({"metadata": {"name": "one"}, "data": {"a": noise(0, 1_000_000)}});
        assert_eq!(create(&mut server, MAPS, map).await.0, 201);
        reads(&mut server, "slow").await;
        let one = format!("{MAPS}/one");
        let protobuf = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        for (what, path, accept) in [
            ("OpenAPI 2", "/openapi/v2", "application/json"),
            ("OpenAPI 2 as a message", "/openapi/v2", protobuf),
            ("an object", &one, "application/json"),
            ("an object as YAML", &one, "application/yaml"),
        ] {
            // The first makes what is kept.
            let first = ask(&server, "", path, accept).await;
            assert_eq!(first.status(), 200, "{what}");
            let bytes = first.into_body().collect().await.unwrap().to_bytes().len();
            forget_peak();
            let before = held_bytes();
            let (answered, open) = unread_streams(&server, path, accept, DOCUMENTS).await;
            let (taken, kept) = (peak_bytes().saturating_sub(before), held_bytes().saturating_sub(before));
            println!("{what}, {} KiB: {answered} answers, {} MiB, {} for long", bytes >> 10, taken >> 20, kept >> 20);
            assert_eq!(answered, DOCUMENTS, "{what}");
            // YAML is there whole, and counted as that.
            let whole = if accept.contains("yaml") { answered * bytes * 3 } else { answered * bytes / 2 };
            assert!(taken < whole, "{what}: {} KiB", taken >> 10);
            drop(open);
        }
    });
}

/// Requests on one connection of HTTP/2 whose client lets nothing come: how many were answered, and what is open.
async fn unread_streams(server: &Server, path: &str, accept: &str, streams: usize) -> (usize, Box<dyn std::any::Any>) {
    let tls = server.channel().dial(b"h2").await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    let (sender, connection) = builder.handshake::<_, Empty<Bytes>>(TokioIo::new(tls)).await.unwrap();
    #[allow(clippy::disallowed_methods)]
    tokio::spawn(connection);
    let asked = (0..streams).map(|_| {
        let mut sender = sender.clone();
        let uri = format!("https://localhost{path}");
        let request = Request::get(uri).header("impersonate-user", "slow").header("accept", accept);
        async move {
            sender.ready().await.unwrap();
            sender.send_request(request.body(Empty::new()).unwrap()).await.unwrap()
        }
    });
    let open = futures::future::join_all(asked).await;
    assert!(open.iter().all(|answer| matches!(answer.status().as_u16(), 200 | 429)));
    (open.iter().filter(|answer| answer.status() == 200).count(), Box::new((sender, open)))
}

#[test]
fn small_answers_that_nobody_lets_come_are_bounded_too() {
    let _alone = alone();
    on_a_server(async |mut server| {
        let map = json!({"metadata": {"name": "small"}, "data": {"a": noise(0, 60_000)}});
        assert_eq!(create(&mut server, MAPS, map).await.0, 201);
        reads(&mut server, "slow").await;
        let path = format!("{MAPS}/small");
        forget_peak();
        let before = held_bytes();
        let mut open = Vec::new();
        let mut answered = 0;
        for _ in 0..10 {
            let (count, kept) = unread_streams(&server, &path, "*/*", 200).await;
            answered += count;
            open.push(kept);
        }
        let taken = peak_bytes().saturating_sub(before);
        println!("{answered} small answers: {} MiB", taken >> 20);
        assert!(answered > 100, "{answered}");
        assert!(taken < GROWTH_BYTES_MAX, "{} MiB", taken >> 20);
        let found: Value = server.get(&format!("{MAPS}/small")).await;
        assert_eq!(found["metadata"]["name"], "small");
    });
}
