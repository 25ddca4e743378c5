//! kill -9 of the server while 50 clients write and pods run, twenty times: what was acknowledged is there, what ran runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use http::Method;
use serde_json::{Value, json};

use crate::client::{send, target};
use crate::lab::{Lab, Process, first_processes};

const ROUNDS: usize = 20;
const CLIENTS: usize = 50;
const PODS: usize = 20;
/// Pods that are made in the storm of a round and deleted in the storm of the next.
const CHURN: usize = 3;

/// What must stay as it is: container, address, restarts, start, process.
type Seen = BTreeMap<String, (String, String, u64, String, Process)>;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

/// The running pods with a label; every address must be one pod's alone.
fn look(all: &[Value], app: &str) -> Seen {
    let processes = first_processes();
    let of_app = all.iter().filter(|p| p["metadata"]["labels"]["app"] == app);
    let seen = of_app.map(|p| {
        let c = &p["status"]["containerStatuses"][0];
        let id = text(&c["containerID"]).replace("amphipod://", "");
        let process = processes.get(&id).unwrap_or_else(|| panic!("no process of {p}")).clone();
        let restarts = c["restartCount"].as_u64().unwrap();
        let since = text(&c["state"]["running"]["startedAt"]);
        (text(&p["metadata"]["name"]), (id, text(&p["status"]["podIP"]), restarts, since, process))
    });
    seen.collect()
}

fn pods(lab: &Lab) -> Vec<Value> {
    lab.json(&["get", "pods"])["items"].as_array().cloned().unwrap()
}

fn no_address_twice(all: &[Value]) {
    let addresses: Vec<String> = all.iter().map(|p| text(&p["status"]["podIP"])).filter(|ip| !ip.is_empty()).collect();
    let different: BTreeSet<&String> = addresses.iter().collect();
    assert_eq!(different.len(), addresses.len(), "an address twice: {addresses:?}");
}

/// Writes until the server is gone; answers what was acknowledged to be there, and what may be gone.
fn storm(lab: &Lab, round: usize, acknowledged: &Arc<AtomicUsize>) -> JoinHandle<(Vec<String>, Vec<String>)> {
    let (to, count) = (target(lab), acknowledged.clone());
    lab.thread(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let clients = (0..CLIENTS).map(|n| create(to.clone(), round, n, count.clone()));
            let (made, churned) = tokio::join!(futures::future::join_all(clients), churn(to.clone(), round));
            let (mut made, (pods, deleted)) = (made.concat(), churned);
            made.extend(pods);
            (made, deleted)
        })
    })
}

/// Returns when there were as many writes as there are clients.
fn all_write(count: &AtomicUsize) {
    let began = Instant::now();
    while count.load(Ordering::Relaxed) < CLIENTS {
        assert!(began.elapsed() < Duration::from_secs(20), "the clients get through");
        std::thread::sleep(Duration::from_millis(1));
    }
}

async fn create(to: Target, round: usize, client: usize, count: Arc<AtomicUsize>) -> Vec<String> {
    let (mut connection, mut made) = (Client::new(to), Vec::new());
    for n in 0.. {
        let name = format!("c-{round}-{client}-{n}");
        let body = json!({"metadata": {"name": &name}, "data": {"round": round.to_string()}});
        let path = "/api/v1/namespaces/default/configmaps";
        let Some(answer) = posted(&mut connection, path, &body).await else { break };
        assert_eq!(answer["metadata"]["name"], name.as_str(), "{answer}");
        made.push(name);
        count.fetch_add(1, Ordering::Relaxed);
    }
    made
}

/// What the server made of it; nothing if it went away, or says that it is about to.
async fn posted(connection: &mut Client, path: &str, body: &Value) -> Option<Value> {
    let (status, answer) = send(connection, Method::POST, path, Some(body)).await?;
    (status != 503).then(|| {
        assert_eq!(status, 201, "{answer}");
        answer
    })
}

/// Makes pods and deletes those of the round before.
async fn churn(to: Target, round: usize) -> (Vec<String>, Vec<String>) {
    let (mut connection, mut made, mut deleted) = (Client::new(to), Vec::new(), Vec::new());
    let path = "/api/v1/namespaces/default/pods";
    for n in 0..CHURN {
        let name = format!("churn-{round}-{n}");
        let spec = json!({"containers": [{"name": "main", "image": "amphipod.local/hello"}]});
        let body = json!({"metadata": {"name": &name, "labels": {"app": "churn"}}, "spec": spec});
        let Some(answer) = posted(&mut connection, path, &body).await else { break };
        assert_eq!(answer["metadata"]["name"], name.as_str(), "{answer}");
        made.push(name);
        let Some(before) = round.checked_sub(1) else { continue };
        let old = format!("churn-{before}-{n}");
        let grace = json!({"gracePeriodSeconds": 1});
        match send(&mut connection, Method::DELETE, &format!("{path}/{old}"), Some(&grace)).await {
            Some((200, _)) => deleted.push(old),
            // Asked for, and nobody said what became of it.
            None | Some((503, _)) => {
                deleted.push(old);
                break;
            }
            // The pod that was not acknowledged in the last round need not be there.
            Some((404, _)) => {}
            Some(other) => panic!("{old}: {other:?}"),
        }
    }
    (made, deleted)
}

#[test]
fn kill_9_of_the_server_loses_nothing_and_restarts_nothing() {
    let mut lab = Lab::start("kill");
    lab.kubectl(&["create", "deployment", "web", "--image=amphipod.local/hello", &format!("--replicas={PODS}")]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let all = pods(&lab);
    let before = look(&all, "web");
    assert_eq!(before.len(), PODS);
    no_address_twice(&all);
    let (mut there, mut stays) = (BTreeSet::new(), Seen::new());
    for round in 0..ROUNDS {
        let count = Arc::new(AtomicUsize::new(0));
        let writing = storm(&lab, round, &count);
        all_write(&count);
        // At another moment of the batch, and of the churn, in each round.
        std::thread::sleep(Duration::from_millis((round as u64 * 37) % 230));
        lab.kill_server();
        let (made, deleted) = writing.join().unwrap();
        there.extend(made);
        for name in &deleted {
            there.remove(name);
            stays.remove(name);
        }
        lab.start_server();
        let all = pods(&lab);
        assert_eq!(look(&all, "web"), before, "round {round}: same containers, processes, addresses");
        no_address_twice(&all);
        let now = look_at_churn(&lab);
        for (name, was) in &stays {
            assert_eq!(now.get(name).or(Some(was)), Some(was), "round {round}: {name}");
        }
        stays = now;
    }
    let maps = lab.json(&["get", "configmaps"]);
    let mut found: BTreeSet<String> =
        maps["items"].as_array().unwrap().iter().map(|m| text(&m["metadata"]["name"])).collect();
    found.extend(pods(&lab).iter().map(|p| text(&p["metadata"]["name"])));
    let lost: Vec<&String> = there.difference(&found).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged objects are lost: {lost:?}", lost.len(), there.len());
    assert!(there.len() > ROUNDS * CLIENTS, "{}", there.len());
    let (_, address, ..) = before.values().next().unwrap();
    assert!(lab.curl(&format!("http://{address}:8080/")).starts_with("Hello from pod"));
}

/// The pods of the storms once all of them run, none of them ever restarted.
fn look_at_churn(lab: &Lab) -> Seen {
    let mut all = Vec::new();
    lab.until("the pods of the storm run, the deleted ones are gone", || {
        all = pods(lab);
        no_address_twice(&all);
        all.iter().all(|p| p["metadata"]["deletionTimestamp"].is_null() && p["status"]["phase"] == "Running")
    });
    let seen = look(&all, "churn");
    for (name, (_, _, restarts, ..)) in &seen {
        assert_eq!(*restarts, 0, "{name}");
    }
    seen
}

/// Whole files replace one another at the same path, as an upgrade in place does it.
fn install(lab: &Lab, another_build: bool) {
    let new = lab.path("amphipod.new");
    std::fs::copy(crate::lab::BINARY, &new).unwrap();
    if another_build {
        // The same code in a file with another digest: what is behind the program's own end is not read.
        let mut file = std::fs::File::options().append(true).open(&new).unwrap();
        std::io::Write::write_all(&mut file, b"another build").unwrap();
    }
    std::fs::rename(new, &lab.binary).unwrap();
}

#[test]
fn upgrades_and_downgrades_under_load_lose_nothing_and_restart_nothing() {
    let mut lab = Lab::prepare("swap");
    lab.binary = lab.path("amphipod");
    install(&lab, false);
    lab.start_server();
    lab.kubectl(&["create", "deployment", "web", "--image=amphipod.local/hello", "--replicas=5"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let before = look(&pods(&lab), "web");
    let mut there = BTreeSet::new();
    for round in 0..4 {
        let count = Arc::new(AtomicUsize::new(0));
        let writing = storm(&lab, round, &count);
        all_write(&count);
        install(&lab, round % 2 == 0);
        lab.stop_server();
        let (made, deleted) = writing.join().unwrap();
        there.extend(made);
        for name in &deleted {
            there.remove(name);
        }
        lab.start_server();
        assert_eq!(look(&pods(&lab), "web"), before, "nothing that ran was restarted or moved");
    }
    let names = |kind: &str| -> BTreeSet<String> {
        let list = lab.json(&["get", kind]);
        list["items"].as_array().unwrap().iter().map(|o| text(&o["metadata"]["name"])).collect()
    };
    let found: BTreeSet<String> = names("configmaps").union(&names("pods")).cloned().collect();
    let lost: Vec<_> = there.difference(&found).collect();
    assert!(lost.is_empty(), "acknowledged and gone: {lost:?}");
    assert!(there.len() > 4 * CLIENTS);
}
