//! Pods that are made and deleted at random times on two nodes, while server and agent are killed again and again: at the
//! end both machines have what they had before. `scripts/leak` runs the same with thousands of pods.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use http::Method;
use serde_json::{Value, json};

use crate::client::{send, target_of};
use crate::lab::run;
use crate::machines::{Machine, Machines};

const PODS: &str = "/api/v1/namespaces/default/pods";
const CLIENTS: u64 = 6;
/// From its creation to its deletion a pod has at most so long: set-up, start and running are all met.
const LIFE_MILLIS_MAX: u64 = 250;
const PATIENCE: Duration = Duration::from_secs(120);

/// Numbers that are the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a number"))
}

/// One of several forms of a pod, on one of the nodes.
fn pod(name: &str, node: &str, form: u64) -> Value {
    let hello = |name: &str| json!({"name": name, "image": "amphipod.local/hello"});
    let mut spec = json!({"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [hello("main")]});
    match form {
        0 => spec["restartPolicy"] = "Never".into(),
        1 => {
            spec["volumes"] = json!([{"name": "e", "emptyDir": {"medium": "Memory"}}, {"name": "d", "emptyDir": {}}]);
            spec["containers"][0]["volumeMounts"] =
                json!([{"name": "e", "mountPath": "/e"}, {"name": "d", "mountPath": "/d"}]);
        }
        2 => spec["containers"] = json!([hello("main"), hello("second"), hello("third")]),
        3 => {
            let mut sidecar = hello("sidecar");
            sidecar["restartPolicy"] = "Always".into();
            spec["initContainers"] = json!([sidecar]);
        }
        _ => {}
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

/// Makes and deletes pods until there were enough; answers their uids.
async fn churn(to: Target, id: u64, nodes: Vec<String>, left: Arc<AtomicUsize>) -> Vec<String> {
    let (mut client, mut random) = (Client::new(to.clone()), Random(0x9E37_79B9 + id * 7919));
    let mut uids = Vec::new();
    for n in 0.. {
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return uids;
        }
        let name = format!("leak-{id}-{n}");
        let body = pod(&name, &nodes[random.below(nodes.len() as u64) as usize], random.below(6));
        match send(&mut client, Method::POST, PODS, Some(&body)).await {
            Some((201, made)) => uids.push(made["metadata"]["uid"].as_str().unwrap().to_owned()),
            // It went away, or is about to: this one does not count.
            None | Some((503, _)) => {
                left.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(200)).await;
                client = Client::new(to.clone());
                continue;
            }
            Some(other) => panic!("{name}: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(random.below(LIFE_MILLIS_MAX))).await;
        // What is not deleted now is at the end.
        let grace = json!({"gracePeriodSeconds": random.below(2)});
        let _ = send(&mut client, Method::DELETE, &format!("{PODS}/{name}"), Some(&grace)).await;
    }
    uids
}

fn walk(directory: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        each(&entry.path());
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            walk(&entry.path(), each);
        }
    }
}

/// Everything of a machine that a pod can leave behind.
fn everything(machine: &Machine) -> BTreeSet<String> {
    let own = machine.path("");
    let own = own.to_str().unwrap().trim_end_matches('/');
    let mut all = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|l| l.split(' ').nth(4));
    all.extend(points.filter(|p| p.starts_with(own)).map(|p| format!("mount {p}")));
    for part in ["run", "data/pods", "data/containers", "data/network"] {
        walk(&machine.path(part), &mut |path| {
            all.insert(format!("file {}", path.display()));
        });
    }
    let digest = <sha2::Sha256 as sha2::Digest>::digest(
        fs::canonicalize(machine.path("run")).unwrap().as_os_str().as_encoded_bytes(),
    );
    let mark = format!("amphipod-{}", &hex::encode(digest)[..8]);
    walk(Path::new("/sys/fs/cgroup"), &mut |path| {
        if path.is_dir() && path.to_string_lossy().contains(&mark) {
            all.insert(format!("cgroup {}", path.display()));
        }
    });
    let net = fs::metadata(format!("/run/netns/{}", machine.name)).unwrap().ino();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let there =
            fs::read_link(entry.path().join("ns/net")).is_ok_and(|n| n.to_str() == Some(&format!("net:[{net}]")));
        // The server's or agent's own number changes whenever it is killed.
        let is_ours = command.contains(own) && !there || command.contains(" shim ") && there || cgroups.contains(&mark);
        if is_ours && !command.contains("--node-name") {
            all.insert(format!("process {} {command}", entry.file_name().display()));
        }
    }
    for line in
        ["ip -o link", "ip -o -4 addr", "ip rule", "ip -4 route show table all", "ip -4 neigh show nud permanent"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let said = run(machine.command(words[0]).args(&words[1..])).stdout;
        // The numbers of links and what is known of neighbours come and go.
        let text = String::from_utf8_lossy(&said).into_owned();
        all.extend(text.lines().map(|l| format!("{line}: {}", l.split_once(": ").map_or(l, |(_, rest)| rest).trim())));
    }
    all
}

/// Log directories of these pods, which all nodes of this host have in one place.
fn logs(uids: &[String]) -> Vec<String> {
    let all = fs::read_dir("/var/log/pods").into_iter().flatten().flatten();
    let names = all.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.rsplit_once('_').is_some_and(|(_, uid)| uids.iter().any(|u| u == uid))).collect()
}

fn no_pods(machines: &Machines) -> bool {
    let said = machines.command(0, "kubectl").args(["get", "pods", "-A", "-o", "name"]).output().unwrap();
    said.status.success() && said.stdout.is_empty()
}

fn wait(what: &str, machines: &Machines, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        if began.elapsed() > PATIENCE {
            let pods = machines.command(0, "kubectl").args(["get", "pods", "-A", "-o", "yaml"]).output().unwrap();
            let logs: Vec<_> = machines.all.iter().map(Machine::log).collect();
            panic!("never: {what}\n{}\n{}", String::from_utf8_lossy(&pods.stdout), logs.join("\n==\n"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn pods_that_come_and_go_while_nodes_are_killed_leave_nothing() {
    let (pods, kills) = (number("AMPHIPOD_LEAK_PODS", 90), number("AMPHIPOD_LEAK_KILLS", 3));
    let mut machines = Machines::start("leak", 2);
    let nodes: Vec<String> = machines.all.iter().map(|m| m.name.clone()).collect();
    // Whatever is made once for all pods is there before.
    for (n, node) in nodes.iter().enumerate() {
        let first = pod(&format!("first-{n}"), node, 1).to_string();
        let path = machines.all[0].path("first.json");
        fs::write(&path, first.replacen('{', r#"{"apiVersion": "v1", "kind": "Pod", "#, 1)).unwrap();
        machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
        machines.kubectl(&["wait", &format!("pod/first-{n}"), "--for=condition=Ready", "--timeout=60s"]);
        machines.kubectl(&["delete", "pod", &format!("first-{n}"), "--timeout=60s"]);
    }
    std::thread::sleep(Duration::from_secs(1));
    let before: Vec<_> = machines.all.iter().map(everything).collect();
    let cgroups = |all: &BTreeSet<String>| all.iter().filter(|t| t.starts_with("cgroup ")).count();
    assert!(before.iter().all(|all| cgroups(all) > 0), "they are seen: {before:#?}");

    let left = Arc::new(AtomicUsize::new(pods as usize));
    let (to, count, on) = (target_of(&machines.all[0].path("etc/kubeconfig.yaml")), left.clone(), nodes.clone());
    let namespace = fs::File::open(format!("/run/netns/{}", nodes[0])).unwrap();
    let storm = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let all = (0..CLIENTS).map(|id| churn(to.clone(), id, on.clone(), count.clone()));
        runtime.block_on(futures::future::join_all(all)).concat()
    });
    let (mut random, mut killed) = (Random(0x2545_F491), 0);
    for n in 1..=kills {
        // At another moment of the storm each time.
        let when = pods - pods * n / (kills + 1);
        while left.load(Ordering::Relaxed) as u64 > when && !storm.is_finished() {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(random.below(200)));
        let which = (n % 2) as usize;
        machines.all[which].kill();
        killed += 1;
        std::thread::sleep(Duration::from_millis(random.below(500)));
        match which {
            0 => machines.start_server(&[]),
            agent => machines.start_agent(agent, ""),
        }
    }
    let uids = storm.join().unwrap();
    machines.kubectl(&["delete", "pods", "--all", "--wait=false"]);
    wait("no pods are left in the API", &machines, || no_pods(&machines));
    let differs = |machines: &Machines| -> Vec<String> {
        let now: Vec<_> = machines.all.iter().map(everything).collect();
        let more =
            now.iter().zip(&before).flat_map(|(now, before)| now.difference(before).cloned().collect::<Vec<_>>());
        more.chain(logs(&uids)).collect()
    };
    let began = Instant::now();
    let mut rest = differs(&machines);
    while !rest.is_empty() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(500));
        rest = differs(&machines);
    }
    println!("{} pods on two nodes, {killed} times kill -9: {} things left", uids.len(), rest.len());
    let logs: Vec<_> = machines.all.iter().map(Machine::log).collect();
    let known = |node: &String| {
        let path = format!("/api/v1/nodes/{node}/proxy/pods");
        let said = machines.command(0, "kubectl").args(["get", "--raw", &path]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).into_owned()
    };
    let known: Vec<String> = nodes.iter().map(known).collect();
    assert!(rest.is_empty(), "left: {rest:#?}\nknown: {known:#?}\n{}", logs.join("\n==\n"));
    assert!(uids.len() as u64 > pods / 2, "{}", uids.len());
}

/// The comparison is worth something only if it sees what pods have.
#[test]
fn what_a_pod_has_is_seen_while_it_runs() {
    let machines = Machines::start("seen", 1);
    let before = everything(&machines.all[0]);
    let body =
        pod("one", &machines.all[0].name, 1).to_string().replacen('{', r#"{"apiVersion": "v1", "kind": "Pod", "#, 1);
    let path = machines.all[0].path("one.json");
    fs::write(&path, body).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["wait", "pod/one", "--for=condition=Ready", "--timeout=60s"]);
    let now = everything(&machines.all[0]);
    let more: Vec<&String> = now.difference(&before).collect();
    for what in ["mount ", "file ", "cgroup ", "process ", "ip -o link", "ip -4 route"] {
        assert!(more.iter().any(|t| t.starts_with(what)), "{what}: {more:#?}");
    }
    for part in ["data/containers/", "data/pods/", "run/pods/", "run/sandboxes/"] {
        assert!(more.iter().any(|t| t.starts_with("file ") && t.contains(part)), "{part}: {more:#?}");
    }
}
