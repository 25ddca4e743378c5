//! What Kubernetes 1.36.2 was seen to do, against our API: tables, discovery, bootstrap roles, and recorded requests with
//! their answers, sent over TLS to an API in this process (model store, controllers, no scheduler and no nodes, as in the
//! recording). The data under `tests/data/kubernetes` is what a real control plane answered.
//!
//! `AMPHIPOD_ONLY=text` plays only the recorded cases whose names contain the text.

#![allow(clippy::unwrap_used)] // A test that cannot go on says where.

#[path = "fidelity/compare.rs"]
mod compare;
#[path = "fidelity/replay.rs"]
mod replay;
#[allow(dead_code)] // The tests of requests use more of it.
#[path = "fidelity/server.rs"]
mod server;

use std::collections::BTreeMap;

use amphipod::kinds::{self, KindRef};
use serde_json::Value;
use server::Server;

const COLUMNS: &str = include_str!("data/kubernetes/table-columns.tsv");
const DISCOVERY: &str = include_str!("data/kubernetes/discovery.tsv");
const BOOTSTRAP: &[u8] = include_bytes!("data/kubernetes/bootstrap.json.zst");
const CUSTOM_CASES: &[u8] = include_bytes!("data/kubernetes/custom-cases.json.zst");
const CASES: &[u8] = include_bytes!("data/kubernetes/cases.json.zst");

fn json(compressed: &[u8]) -> Value {
    serde_json::from_slice(&zstd::decode_all(compressed).unwrap()).unwrap()
}

fn on_a_server<T>(run: impl AsyncFnOnce(Server) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { run(Server::start().await).await })
}

/// Rows of a table with a header, by their first two cells: group and version, and resource.
fn rows(table: &str) -> BTreeMap<(&str, &str), Vec<&str>> {
    let cells = table.lines().skip(1).map(|l| l.split('\t').collect::<Vec<_>>());
    cells.map(|c| ((c[0], c[1]), c[2..].to_vec())).collect()
}

fn listed<'t, T>(rows: &'t BTreeMap<(&str, &str), T>, kind: &KindRef) -> Option<&'t T> {
    let version = kind.api_version();
    rows.iter().find(|((v, plural), _)| *v == version && *plural == kind.plural()).map(|(_, cells)| cells)
}

#[test]
fn tables_have_the_columns_of_kubernetes() {
    let known = rows(COLUMNS);
    let mut compared = 0;
    for kind in kinds::registry::builtin().iter() {
        let Some(want) = listed(&known, kind) else { continue };
        let ours: Vec<String> =
            kind.columns().iter().map(|c| format!("{}:{}:{}:{}", c.name, c.kind, c.format, c.priority)).collect();
        assert_eq!(ours.join("|"), want[0], "{kind:?}");
        compared += 1;
    }
    let with_table = kinds::registry::builtin().iter().filter(|k| k.is_stored()).count();
    assert_eq!(compared, with_table, "every kind that is stored has a table in Kubernetes");
}

#[test]
fn discovery_tells_what_kubernetes_tells() {
    on_a_server(async |mut server| {
        let known = rows(DISCOVERY);
        for kind in kinds::registry::builtin().iter() {
            let want = listed(&known, kind).unwrap_or_else(|| panic!("{kind:?} is no kind of Kubernetes"));
            let version = kind.api_version();
            let path = if kind.group().is_empty() { "/api/v1".to_owned() } else { format!("/apis/{version}") };
            let list = server.get(&path).await;
            let all = list["resources"].as_array().unwrap();
            let entry = all.iter().find(|r| r["name"] == kind.plural()).unwrap();
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
            let mut ours = vec![text("singularName"), text("kind"), scope.to_owned()];
            ours.extend(["shortNames", "categories", "verbs"].map(|key| joined(&entry[key])));
            ours.push(subresources(kind, all));
            assert_eq!(ours, *want, "{kind:?}");
        }
    });
}

fn joined(list: &Value) -> String {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

/// `scale=autoscaling/v1/Scale:get,patch,update;status=...`
fn subresources(kind: &KindRef, all: &[Value]) -> String {
    let prefix = format!("{}/", kind.plural());
    let ours = all.iter().filter_map(|r| Some((r["name"].as_str()?.strip_prefix(&prefix)?, r)));
    let mut texts: Vec<String> = ours
        .map(|(name, r)| {
            let version = match (r["group"].as_str(), r["version"].as_str()) {
                (None | Some(""), None | Some("")) => String::new(),
                (Some(group), Some(version)) if !group.is_empty() => format!("{group}/{version}/"),
                (_, version) => format!("{}/", version.unwrap_or_default()),
            };
            format!("{name}={version}{}:{}", r["kind"].as_str().unwrap_or_default(), joined(&r["verbs"]))
        })
        .collect();
    texts.sort();
    texts.join(";")
}

#[test]
fn bootstrap_roles_are_those_of_kubernetes() {
    on_a_server(async |mut server| {
        for (plural, want) in json(BOOTSTRAP).as_object().unwrap() {
            let kind = kinds::registry::builtin().iter().find(|k| k.plural() == plural).unwrap();
            let want = by_name(want.as_array().unwrap());
            let path = format!("/apis/{}/{plural}", kind.api_version());
            // What aggregates is filled in by a controller.
            let mut ours = by_name(server.get(&path).await["items"].as_array().unwrap());
            for _ in 0..100 {
                if ours == want {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                ours = by_name(server.get(&path).await["items"].as_array().unwrap());
            }
            assert_eq!(ours.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
            for (name, want) in &want {
                assert_eq!(&ours[name], want, "{plural} {name}");
            }
        }
    });
}

/// Objects by namespace and name, without what differs from server to server.
fn by_name(list: &[Value]) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for object in list {
        let mut object = object.clone();
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
        let part = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let name = format!("{}/{}", part("namespace"), part("name"));
        found.insert(name, object);
    }
    found
}

#[test]
fn recorded_answers_come_again() {
    come_again(CASES, 500);
}

#[test]
fn recorded_answers_about_custom_kinds_come_again() {
    come_again(CUSTOM_CASES, 80);
}

fn come_again(cases: &[u8], least: usize) {
    let only = std::env::var("AMPHIPOD_ONLY").unwrap_or_default();
    let cases = json(cases);
    let cases: Vec<&Value> =
        cases.as_array().unwrap().iter().filter(|c| c["name"].as_str().unwrap().contains(&only)).collect();
    assert!(cases.len() > least || !only.is_empty(), "{} cases", cases.len());
    on_a_server(async |mut server| {
        let mut failures = Vec::new();
        for (serial, case) in cases.iter().enumerate() {
            let mut differences = replay::play(&mut server, case, &format!("fid-{serial}")).await;
            if !differences.is_empty() {
                // Times are whole seconds, and whether two writes fall into one decides the order of managed fields.
                differences = replay::play(&mut server, case, &format!("fid-{serial}-again")).await;
            }
            failures.extend(differences.into_iter().map(|d| format!("{}: {d}", case["name"])));
        }
        assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
    });
}
