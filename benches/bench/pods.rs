//! What a node does: one pod from create to Ready, many at once, and what each of them costs in memory.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{PATIENCE, Server, is_ready};
use crate::table::{Table, all, median};
use crate::wire::{Access, request};

const PODS: &str = "/api/v1/namespaces/default/pods";
const MANY: usize = 50;

/// The rows about pods: `runs` of one alone, `rounds` of many at once.
pub async fn measure(server: &Server, access: &Access, runs: usize, rounds: usize, table: &mut Table) {
    let mut alone = Vec::new();
    for run in 0..runs {
        let names = vec![format!("one-{run}")];
        alone.push(create(access, &names).await.as_secs_f64() * 1e3);
        remove(access, &names).await;
    }
    let range = format!(
        "{:.0}-{:.0}",
        alone.iter().copied().fold(f64::MAX, f64::min),
        alone.iter().copied().fold(0.0, f64::max)
    );
    table.row("one pod, create to Ready, median", &format!("{:.0} ms ({range})", median(&alone)), "< 150 ms", runs);
    let (mut many, mut each) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (before, none) = server.pss_with_shims();
        assert_eq!(none, 0, "shims of pods that are gone");
        let names: Vec<String> = (0..MANY).map(|n| format!("many-{round}-{n}")).collect();
        many.push(create(access, &names).await.as_secs_f64());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let (after, shims) = server.pss_with_shims();
        assert_eq!(shims, MANY, "a shim for each pod");
        each.push((after - before) / MANY as f64);
        remove(access, &names).await;
    }
    table.row(
        &format!("{MANY} pods at once, create to all Ready, median"),
        &format!("{:.2} s ({})", median(&many), all(&many, 2)),
        "< 3 s",
        rounds,
    );
    table.row(
        "one more pod, PSS of its shim and of what the server keeps, median",
        &format!("{:.2} MB ({})", median(&each), all(&each, 2)),
        "< 2 MB",
        rounds,
    );
    tokio::time::sleep(Duration::from_secs(20)).await;
    table.row(
        &format!("server 20 s after {rounds} rounds of {MANY} pods, PSS"),
        &format!("{:.1} MB", server.pss()),
        "< 60 MB",
        1,
    );
}

/// Makes the pods; answers how long it took from the first request until the last of them was seen Ready.
async fn create(access: &Access, names: &[String]) -> Duration {
    let list = access.call("GET", &format!("{PODS}?limit=1"), "").await;
    let list: Value = serde_json::from_slice(&list).unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watch = access.connect().await.unwrap();
    let path = format!("{PODS}?watch=1&resourceVersion={version}");
    assert_eq!(watch.begin(&request("GET", &path, "")).await.unwrap(), 200);
    let mut connection = access.connect().await.unwrap();
    let began = Instant::now();
    let posting = async {
        for name in names {
            connection.call("POST", PODS, &pod(name)).await;
        }
    };
    let watching = async {
        let mut left: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut text = Vec::new();
        while !left.is_empty() {
            assert!(watch.part(&mut text).await.unwrap(), "the watch ended");
            while let Some(end) = text.iter().position(|b| *b == b'\n') {
                let event: Value = serde_json::from_slice(&text[..end]).unwrap();
                text.drain(..=end);
                if event["type"] != "DELETED" && is_ready(&event["object"]) {
                    left.remove(event["object"]["metadata"]["name"].as_str().unwrap_or(""));
                }
            }
        }
    };
    let both = async { tokio::join!(posting, watching) };
    tokio::time::timeout(PATIENCE, both).await.expect("pods never became Ready");
    began.elapsed()
}

/// Deletes the pods and waits until they are gone.
async fn remove(access: &Access, names: &[String]) {
    let mut connection = access.connect().await.unwrap();
    for name in names {
        connection.call("DELETE", &format!("{PODS}/{name}"), "").await;
    }
    loop {
        let list: Value = serde_json::from_slice(&connection.call("GET", PODS, "").await).unwrap();
        if list["items"].as_array().is_none_or(Vec::is_empty) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn pod(name: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}"}},"spec":{{"terminationGracePeriodSeconds":0,"containers":[{{"name":"c",
        "image":"amphipod.local/hello","imagePullPolicy":"IfNotPresent"}}]}}}}"#
    )
}
