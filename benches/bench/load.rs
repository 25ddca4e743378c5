//! What the API does under load: creates by many clients, a long list, a collection deleted.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::machine::Server;
use crate::table::{Table, all, median};
use crate::wire::{Access, request};

const CLIENTS: usize = 50;
const CREATES: usize = 20_000;
const PODS: usize = 5_000;

/// The rows about the API; `rounds` of each load.
pub async fn measure(server: &Server, access: &Access, rounds: usize, table: &mut Table) {
    let before = server.pss();
    let mut rates = Vec::new();
    for round in 0..rounds {
        let path = namespace(access, &format!("maps{round}"), "configmaps").await;
        rates.push(create(access, &path, CREATES, config_map).await);
        remove(access, &path).await;
    }
    let what = format!("ConfigMap creates, durable, {CLIENTS} clients over TLS, median of rounds of {CREATES}");
    table.row(&what, &format!("{:.0} /s ({})", median(&rates), all(&rates, 0)), "> 5,000 /s", rates.len());
    let (mut creates, mut lists, mut deletes, mut size) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut full = 0.0_f64;
    // A node that never comes: its pods stay what they are.
    access.call("POST", "/api/v1/nodes", r#"{"metadata":{"name":"nowhere"}}"#).await;
    for round in 0..rounds {
        let path = namespace(access, &format!("pods{round}"), "pods").await;
        creates.push(create(access, &path, PODS, pod).await);
        let mut connection = access.connect().await.unwrap();
        for _ in 0..10 {
            let began = Instant::now();
            size = connection.call("GET", "/api/v1/pods", "").await.len();
            lists.push(began.elapsed().as_secs_f64() * 1e3);
        }
        full = full.max(server.pss());
        let began = Instant::now();
        remove(access, &path).await;
        deletes.push(began.elapsed().as_secs_f64());
    }
    let what = format!("Pod creates, durable, {CLIENTS} clients over TLS, median of rounds of {PODS}");
    table.row(&what, &format!("{:.0} /s ({})", median(&creates), all(&creates, 0)), "-", creates.len());
    let what = format!("list of {PODS} pods as JSON ({:.1} MB), median", size as f64 / 1e6);
    table.row(&what, &format!("{:.1} ms", median(&lists)), "< 60 ms", lists.len());
    let what = format!("deletecollection of {PODS} pods, median");
    table.row(&what, &format!("{:.2} s ({})", median(&deletes), all(&deletes, 2)), "< 3 s", deletes.len());
    tokio::time::sleep(Duration::from_secs(20)).await;
    table.row("server before that load, PSS", &format!("{before:.1} MB"), "-", 1);
    table.row(&format!("server with {PODS} pods in its API, PSS, largest"), &format!("{full:.1} MB"), "-", rounds);
    table.row("server 20 s after that load, PSS", &format!("{:.1} MB", server.pss()), "-", 1);
}

async fn namespace(access: &Access, name: &str, plural: &str) -> String {
    access.call("POST", "/api/v1/namespaces", &format!(r#"{{"metadata":{{"name":"{name}"}}}}"#)).await;
    format!("/api/v1/namespaces/{name}/{plural}")
}

async fn remove(access: &Access, path: &str) {
    access.call("DELETE", path, r#"{"gracePeriodSeconds":0}"#).await;
}

/// `count` creates by all clients, each on a kept connection of its own; answers how many there were per second.
pub async fn create(access: &Access, path: &str, count: usize, body: fn(&mut String, usize)) -> f64 {
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        connections.push(access.connect().await.unwrap());
    }
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let tasks = connections.into_iter().map(|mut connection| {
        let (next, path) = (next.clone(), path.to_owned());
        tokio::task::spawn_local(async move {
            let mut text = String::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                text.clear();
                body(&mut text, number);
                let (status, answer) = connection.ask(&request("POST", &path, &text)).await.unwrap();
                assert_eq!(status, 201, "{}", String::from_utf8_lossy(&answer));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a client failed");
    }
    count as f64 / began.elapsed().as_secs_f64()
}

fn config_map(out: &mut String, number: usize) {
    let value = "x".repeat(100);
    write!(out, r#"{{"metadata":{{"name":"c{number}"}},"data":{{"key":"{value}"}}}}"#).unwrap();
}

fn pod(out: &mut String, number: usize) {
    write!(
        out,
        r#"{{"metadata":{{"name":"p{number}","labels":{{"app":"bench"}}}},"spec":{{"automountServiceAccountToken":false,
        "nodeName":"nowhere","terminationGracePeriodSeconds":0,"containers":[{{"name":"c","image":"example.com/image:1",
        "env":[{{"name":"A","value":"b"}}],"ports":[{{"containerPort":80}}],
        "resources":{{"requests":{{"cpu":"10m","memory":"16Mi"}}}}}}]}}}}"#
    )
    .unwrap();
}
