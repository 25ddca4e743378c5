//! A server and agents: pods, Services and DNS across machines, a cable that is pulled, a server that is away.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{BINARY, ip, run};
use crate::machines::{GRACE, Machines};

/// Pods that move soon from a lost node, a Service for them, and a Secret that they need.
const SPREAD: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: word}
stringData: {word: open-sesame}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 6
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
      - name: hello
        image: amphipod.local/hello
        env: [{name: WORD, valueFrom: {secretKeyRef: {name: word, key: word}}}]
        ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: spread}
spec: {type: NodePort, selector: {app: spread}, ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
"#;

fn deploy(machines: &Machines) {
    let path = machines.all[0].path("spread.yaml");
    std::fs::write(&path, SPREAD).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["rollout", "status", "deployment/spread", "--timeout=60s"]);
}

/// A text in an object, empty where there is none.
pub fn text<'a>(pod: &'a Value, pointer: &str) -> &'a str {
    pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn by_node(pods: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let mut nodes: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for pod in pods {
        nodes.entry(text(pod, "/spec/nodeName").to_owned()).or_default().push(pod.clone());
    }
    nodes
}

#[test]
fn pods_services_and_dns_work_across_machines_and_survive_a_pulled_cable() {
    three_machines(&Machines::start("lab", 3));
}

#[test]
fn pods_services_and_dns_work_over_slow_cables_that_lose_frames() {
    let machines = Machines::prepare_slow("slow", 3, Duration::from_millis(10), 1.0).joined();
    three_machines(&machines);
    let carried = machines.switch.as_ref().map_or(0, crate::cable::Switch::carried);
    assert!(carried > 2_000, "all went through the slow cables: {carried} frames");
}

fn three_machines(machines: &Machines) {
    deploy(machines);
    let pods = machines.pods("app=spread");
    let nodes = by_node(&pods);
    assert_eq!(nodes.len(), 3, "every node has pods: {:?}", nodes.keys());
    let service = machines.json(&["get", "service", "spread"]);
    let cluster_ip = text(&service, "/spec/clusterIP").to_owned();

    // From each node's pod to every pod, to the Service by its name, and to the API.
    for from in nodes.values().map(|p| &p[0]) {
        for to in &pods {
            let url = format!("http://{}:8080/", text(to, "/status/podIP"));
            let answer = machines.in_pod(from, &["curl", "-sS", "--max-time", "5", &url]).unwrap_or_default();
            assert!(
                answer.contains(text(to, "/metadata/name")),
                "{url} from {}: {answer}",
                text(from, "/spec/nodeName")
            );
        }
        let name = "spread.default.svc.cluster.local";
        let resolved = machines.in_pod(from, &["dig", "+short", "+time=2", "@10.43.0.10", name]).unwrap_or_default();
        assert_eq!(resolved.trim(), cluster_ip, "DNS on {}", text(from, "/spec/nodeName"));
        let api = machines.in_pod(from, &["curl", "-sSk", "--max-time", "5", "https://10.43.0.1/readyz"]);
        assert_eq!(api.as_deref(), Some("ok"));
    }
    // The Service on every node, from the node itself and from another machine, spreads over all nodes' pods.
    for n in 0..3 {
        let urls = [format!("http://{cluster_ip}/"), format!("http://{}:30081/", machines.all[(n + 1) % 3].address)];
        for url in &urls {
            let ask = || run(machines.command(n, "curl").args(["-sS", "--max-time", "5", url.as_str()])).stdout;
            let answers: BTreeSet<Vec<u8>> =
                (0..40).map(|_| ask().split(|b| *b == b'\n').next().unwrap_or_default().to_vec()).collect();
            assert!(answers.len() >= 4, "{url} on machine {n} reaches {} pods of 6", answers.len());
        }
    }
    traffic_stays_where_it_is_told_to(machines, &nodes, &cluster_ip);
    for pods in nodes.values() {
        let name = text(&pods[0], "/metadata/name");
        assert_eq!(machines.kubectl(&["logs", name]).trim(), "hello: listening on port 8080");
        assert!(machines.kubectl(&["exec", name, "--", "/amphipod", "version"]).starts_with("amphipod v1.37"));
        let mut forwarding = machines.command(0, "kubectl");
        forwarding.args(["port-forward", name, "18080:8080"]).stdin(Stdio::null()).stdout(Stdio::null());
        let mut forwarding = forwarding.stderr(Stdio::null()).spawn().unwrap();
        let ask = || machines.command(0, "curl").args(["-sS", "--max-time", "5", "http://127.0.0.1:18080/"]).output();
        let from = format!("Hello from pod {name}");
        machines.until("a port of the pod is forwarded", || {
            String::from_utf8_lossy(&ask().unwrap().stdout).starts_with(&from)
        });
        forwarding.kill().unwrap();
        forwarding.wait().unwrap();
    }
    an_agent_reads_only_what_its_pods_need(machines, &nodes);
    a_cable_is_pulled(machines, &nodes);
}

#[test]
fn an_agent_whose_overlay_cannot_be_set_up_leaves_nothing_and_says_why() {
    let mut machines = Machines::prepare("none", 2);
    machines.start_server(&["--overlay", "vxlan"]);
    let token = machines.token();
    let name = machines.all[1].name.clone();
    ip(&format!("-n {name} link add others type vxlan id 1 dstport 8472 dev eth0"));
    ip(&format!("-n {name} link set others up"));
    let state = |what: &[&str]| {
        String::from_utf8(machines.all[1].command(what[0]).args(&what[1..]).output().unwrap().stdout).unwrap()
    };
    let seen = || {
        let links = state(&["ip", "-br", "link"]);
        let names: Vec<String> = links.lines().map(|l| l.split_whitespace().next().unwrap().to_owned()).collect();
        (names, state(&["ip", "route"]), state(&["nft", "list", "tables"]))
    };
    let before = seen();
    let log = std::fs::File::create(machines.all[1].path("refused")).unwrap();
    let server = format!("https://{}:6443", machines.all[0].address);
    let mut agent = machines.all[1].command(BINARY);
    agent.args(["agent", "--server", &server, "--node-ip", &machines.all[1].address, "--token", &token]);
    agent.args(machines.all[1].directories()).args(["--node-name", &name]);
    let mut agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let mut ended = None;
    machines.until("the agent ends", || {
        ended = agent.try_wait().unwrap();
        ended.is_some()
    });
    let said = std::fs::read_to_string(machines.all[1].path("refused")).unwrap();
    assert_eq!(ended.unwrap().code(), Some(1), "{said}");
    let told: Vec<&str> = said.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(told.len(), 1, "{said}");
    assert!(told[0].contains("the overlay cannot be set up") && told[0].contains("(others)"), "{said}");
    assert!(told[0].contains("UDP port 8472") && told[0].contains("--overlay"), "{said}");
    assert_eq!(seen(), before, "links, routes and tables");
    for part in ["node.json", "netns", "sandboxes"] {
        assert!(!machines.all[1].path("run").join(part).exists(), "{part}");
    }
    let unavailable = || {
        let node = machines.json(&["get", "node", &name]);
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        let tainted = taints.iter().any(|t| t["key"] == "node.kubernetes.io/network-unavailable");
        (conditions.into_iter().find(|c| c["type"] == "NetworkUnavailable").unwrap_or_default(), tainted)
    };
    machines.until("its Node keeps pods away", || unavailable().1);
    let (condition, _) = unavailable();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("NetworkFailed")));
    assert!(text(&condition, "/message").contains("UDP port 8472"), "{condition}");
    ip(&format!("-n {name} link del others"));
    machines.start_agent(1, &token);
    machines.until("it joins when the other tunnel is gone", || machines.is_ready(1));
    let machines = machines;
    machines.until("and its Node says so", || {
        let node = machines.json(&["get", "node", &name]);
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_up = conditions.iter().any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False");
        is_up && node["spec"].get("taints").is_none_or(|t| !t.to_string().contains("network-unavailable"))
    });
}

/// `externalTrafficPolicy` and `internalTrafficPolicy` Local: only pods of the node that is asked answer.
fn traffic_stays_where_it_is_told_to(machines: &Machines, nodes: &BTreeMap<String, Vec<Value>>, cluster_ip: &str) {
    let patch = |policy: &str| {
        let patch = format!(r#"{{"spec":{{"externalTrafficPolicy":"{policy}","internalTrafficPolicy":"{policy}"}}}}"#);
        machines.kubectl(&["patch", "service", "spread", "-p", &patch]);
    };
    let who = |answer: &str| answer.lines().next().unwrap_or_default().replace("Hello from pod ", "");
    let own = |n: usize| -> BTreeSet<String> {
        nodes[&machines.all[n].name].iter().map(|p| text(p, "/metadata/name").to_owned()).collect()
    };
    patch("Local");
    for n in 0..3 {
        let other = (n + 1) % 3;
        let outside = format!("http://{}:30081/", machines.all[other].address);
        let inside = format!("http://{cluster_ip}/");
        let from_outside = || -> BTreeSet<String> {
            let ask = || machines.command(n, "curl").args(["-sS", "--max-time", "5", &outside]).output().unwrap();
            (0..20).map(|_| who(&String::from_utf8_lossy(&ask().stdout))).collect()
        };
        let from_pod = || -> BTreeSet<String> {
            let ask =
                || machines.in_pod(&nodes[&machines.all[n].name][0], &["curl", "-sS", "--max-time", "5", &inside]);
            (0..20).map(|_| who(&ask().unwrap_or_default())).collect()
        };
        machines.until("only its own pods answer for a node", || from_outside() == own(other) && from_pod() == own(n));
    }
    patch("Cluster");
}

/// With its own certificate, against the API, as curl would.
fn an_agent_reads_only_what_its_pods_need(machines: &Machines, nodes: &BTreeMap<String, Vec<Value>>) {
    machines.kubectl(&["create", "secret", "generic", "other", "--from-literal=a=b"]);
    let tls = |part: &str| machines.all[1].path(&format!("data/agent/tls/{part}")).display().to_string();
    let ask = |method: &str, path: &str| {
        let url = format!("https://{}:6443{path}", machines.all[0].address);
        let (ca, cert, key) = (tls("ca.crt"), tls("node.crt"), tls("node.key"));
        let args = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, "--cert", &cert, "--key", &key];
        let output = run(machines.command(1, "curl").args(args).args(["-X", method, &url])).stdout;
        String::from_utf8(output).unwrap()
    };
    assert_eq!(ask("GET", "/api/v1/namespaces/default/secrets/word"), "200", "its own pods name it");
    assert_eq!(ask("GET", "/api/v1/namespaces/default/secrets/other"), "403", "no pod of its own names it");
    assert_eq!(ask("GET", "/api/v1/secrets"), "403");
    let foreign = text(&nodes[&machines.all[2].name][0], "/metadata/name");
    assert_eq!(ask("DELETE", &format!("/api/v1/namespaces/default/pods/{foreign}")), "403");
    assert_eq!(ask("DELETE", &format!("/api/v1/nodes/{}", machines.all[2].name)), "403");
}

fn a_cable_is_pulled(machines: &Machines, nodes: &BTreeMap<String, Vec<Value>>) {
    let lost = &nodes[&machines.all[2].name];
    let moved: Vec<_> = lost.iter().flat_map(|p| machines.processes(p)).collect();
    assert_eq!(moved.len(), lost.len());
    let began = Instant::now();
    machines.cable(2, false);
    machines.until("the node counts as lost", || !machines.is_ready(2));
    assert!(began.elapsed() < Duration::from_secs(GRACE + 8), "lost after {:?}", began.elapsed());
    machines.until("its pods are replaced elsewhere", || {
        let pods = machines.pods("app=spread");
        let ready = |p: &Value| {
            p["status"]["conditions"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        };
        pods.len() == 6 && pods.iter().all(|p| ready(p) && text(p, "/spec/nodeName") != machines.all[2].name)
    });
    // Cut off as it is, the node keeps its pods.
    let there = |p: &crate::lab::Process| crate::lab::first_processes().values().any(|q| q == p);
    assert!(moved.iter().all(there), "pods on the lost node go on");
    machines.cable(2, true);
    machines.until("the node is back", || machines.is_ready(2));
    machines.until("what was moved is stopped there", || !moved.iter().any(there));
    machines.until("six pods are left, each once", || {
        let all = machines.json(&["get", "pods", "-l", "app=spread"])["items"].as_array().cloned().unwrap_or_default();
        let addresses: BTreeSet<&str> = all.iter().map(|p| text(p, "/status/podIP")).collect();
        all.len() == 6 && addresses.len() == 6
    });
    machines.kubectl(&["delete", "pod", "-l", "app=spread", "--wait=false"]);
    machines.kubectl(&["rollout", "status", "deployment/spread", "--timeout=60s"]);
    machines
        .until("the node is used again", || by_node(&machines.pods("app=spread")).contains_key(&machines.all[2].name));
}

#[test]
fn while_the_server_is_away_services_go_on_and_containers_restart() {
    let mut machines = Machines::start("away", 3);
    deploy(&machines);
    // Only pods of agents answer: the server's own would go on as well, but prove less.
    machines.kubectl(&["cordon", &machines.all[0].name]);
    machines.kubectl(&["delete", "pod", "-l", "app=spread"]);
    machines.kubectl(&["rollout", "status", "deployment/spread", "--timeout=60s"]);
    let pods = machines.pods("app=spread");
    let nodes = by_node(&pods);
    assert_eq!(nodes.len(), 2);
    let cluster_ip = text(&machines.json(&["get", "service", "spread"]), "/spec/clusterIP").to_owned();
    let client = nodes[&machines.all[1].name][0].clone();
    let victim = nodes[&machines.all[2].name][0].clone();

    machines.all[0].stop();
    let (done, asked, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let pid = machines.processes(&client)[0].pid;
    // Not the pod that is about to be killed.
    let direct = format!("http://{}:8080/", text(&nodes[&machines.all[2].name][1], "/status/podIP"));
    let counting = {
        let (done, asked, failed) = (done.clone(), asked.clone(), failed.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let net = format!("--net=/proc/{pid}/ns/net");
                let answer = std::process::Command::new("nsenter")
                    .args([&net, "curl", "-sS", "--max-time", "3", "-o", "/dev/null", &direct])
                    .status();
                asked.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(u32::from(!answer.unwrap().success()), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        })
    };
    let before = machines.processes(&victim);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(before[0].pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let url = format!("http://{}:8080/", text(&victim, "/status/podIP"));
    machines.until("the killed container restarts on its agent", || {
        machines.in_pod(&client, &["curl", "-sS", "--max-time", "2", &url]).is_some_and(|a| a.contains("Hello"))
    });
    let name = "spread.default.svc.cluster.local";
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        let resolved = machines.in_pod(&client, &["dig", "+short", "+time=2", "@10.43.0.10", name]).unwrap_or_default();
        assert_eq!(resolved.trim(), cluster_ip, "DNS answers while the server is away");
        let answer = machines.in_pod(&client, &["curl", "-sS", "--max-time", "3", &format!("http://{cluster_ip}/")]);
        assert!(answer.is_some_and(|a| a.contains("Hello")), "the Service answers while the server is away");
        std::thread::sleep(Duration::from_secs(1));
    }
    done.store(true, Ordering::Relaxed);
    counting.join().unwrap();
    assert!(asked.load(Ordering::Relaxed) > 100);
    assert_eq!(failed.load(Ordering::Relaxed), 0, "of {} requests", asked.load(Ordering::Relaxed));

    machines.start_server(&[]);
    for n in 0..3 {
        machines.until("all nodes are Ready again", || machines.is_ready(n));
    }
    machines.until("the server learns of the restart", || {
        let pod = machines.json(&["get", "pod", text(&victim, "/metadata/name")]);
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && pod["status"]["containerStatuses"][0]["ready"] == true
    });
    let again: BTreeSet<String> =
        machines.pods("app=spread").iter().map(|p| text(p, "/metadata/uid").to_owned()).collect();
    let first: BTreeSet<String> = pods.iter().map(|p| text(p, "/metadata/uid").to_owned()).collect();
    assert_eq!(again, first, "no pod was moved");
}

/// What `amphipod token` prints on the server.
fn tokens(machines: &Machines, args: &[&str]) -> String {
    let directories = machines.all[0].directories();
    let output = run(machines.command(0, BINARY).arg("token").args(args).args(&directories)).stdout;
    String::from_utf8(output).unwrap().trim().to_owned()
}

/// What an agent says that ends at once: nobody waits for a token to become right.
fn refused(machines: &Machines, n: usize, name: &str, token: &str) -> String {
    let machine = &machines.all[n];
    let server = format!("https://{}:6443", machines.all[0].address);
    let args = ["agent", "--server", &server, "--token", token, "--node-name", name, "--node-ip", &machine.address];
    let output = machines.command(n, "timeout").arg("20").arg(BINARY).args(args).args(machine.directories()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn machines_that_may_not_join_are_told_why() {
    let mut machines = Machines::prepare("join", 3);
    machines.start_server(&[]);
    let token = machines.token();
    let (hash, secret) = token.split_once("::server:").unwrap();
    let wrong = refused(&machines, 1, "one", &format!("{hash}::server:wrong"));
    assert!(wrong.contains("the token is wrong"), "{wrong}");
    let elsewhere = refused(&machines, 1, "one", &format!("K10{}::server:{secret}", "ab".repeat(32)));
    assert!(elsewhere.contains("nothing secret was sent"), "{elsewhere}");
    let short_lived = tokens(&machines, &["create", "--ttl", "1s", "--description", "soon over"]);
    std::thread::sleep(Duration::from_millis(1500));
    let expired = refused(&machines, 1, "one", &short_lived);
    assert!(expired.contains("the token expired at"), "{expired}");
    let server_log = machines.all[0].log();
    assert!(server_log.contains("a join was refused") && server_log.contains("the token expired at"), "{server_log}");

    // A token for one machine lets one in, and a second machine cannot take its name.
    let once = tokens(&machines, &["create", "--one-time"]);
    machines.start_agent(1, &once);
    machines.until("the first machine is Ready", || machines.is_ready(1));
    let shown = run(std::process::Command::new("ps").args(["-eo", "args"])).stdout;
    assert!(!String::from_utf8_lossy(&shown).contains(&once), "everybody can see the command lines of all processes");
    let used = refused(&machines, 2, "two", &once);
    assert!(used.contains("used up"), "{used}");
    let name = machines.all[1].name.clone();
    let taken = refused(&machines, 2, &name, &token);
    assert!(taken.contains("another machine with the node name") && taken.contains("kubectl delete node"), "{taken}");
    assert!(machines.is_ready(1), "the first one is not disturbed");

    // The old token holds for its window after a rotation, and then no longer.
    let rotated = tokens(&machines, &["rotate", "--window", "0"]);
    let old = refused(&machines, 2, "two", &token);
    assert!(old.contains("the token is wrong"), "{old}");
    machines.start_agent(2, &rotated);
    machines.until("the second machine is Ready", || machines.is_ready(2));
    // Once joined, the token of another cluster is noticed before anything is sent.
    machines.all[2].stop();
    let other =
        refused(&machines, 2, &machines.all[2].name.clone(), &format!("K10{}::server:{secret}", "cd".repeat(32)));
    assert!(other.contains("another cluster"), "{other}");
    // And none is needed to come back.
    machines.start_agent(2, "");
    machines.until("the second machine is Ready again", || machines.is_ready(2));
    let listed = tokens(&machines, &["list"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("<expired>") && listed.contains("<used>"), "{listed}");
}

#[test]
fn a_server_is_restored_on_another_machine_and_its_agents_find_it() {
    let mut machines = Machines::start("snap", 2);
    deploy(&machines);
    let saved = {
        let directories = machines.all[0].directories();
        let args = ["snapshot", "save", "--name", "test"];
        let output = run(machines.command(0, BINARY).args(args).args(directories)).stdout;
        String::from_utf8(output).unwrap().trim().to_owned()
    };
    machines.kubectl(&["create", "configmap", "too-late", "--from-literal=a=b"]);
    let before = by_node(&machines.pods("app=spread"));
    let on_agent = before[&machines.all[1].name].clone();
    let processes: Vec<_> = on_agent.iter().flat_map(|p| machines.processes(p)).collect();
    machines.all[0].stop();

    // Another data directory, and another address on the same cable.
    let (old, new) = (machines.all[0].path("data"), machines.all[0].path("data2"));
    std::fs::rename(&old, machines.all[0].path("data-before")).unwrap();
    let saved = saved.replace("/data/", "/data-before/");
    let flags =
        [format!("--data-dir={}", new.display()), format!("--run-dir={}", machines.all[0].path("run2").display())];
    run(machines.command(0, BINARY).args(["snapshot", "restore", &saved]).args(&flags));
    std::fs::rename(&new, &old).unwrap();
    ip(&format!("-n {} addr del 192.0.2.1/24 dev eth0", machines.all[0].name));
    ip(&format!("-n {} addr add 192.0.2.77/24 dev eth0", machines.all[0].name));
    ip(&format!("-n {} route replace default via 192.0.2.254", machines.all[0].name));
    machines.all[0].address = "192.0.2.77".into();
    machines.start_server(&[]);
    machines.all[1].stop();
    machines.start_agent(1, "");
    for n in 0..2 {
        machines.until("both are Ready again", || machines.is_ready(n));
    }
    let found = machines.command(0, "kubectl").args(["get", "configmap", "too-late"]).output().unwrap();
    assert!(!found.status.success(), "it was made after the snapshot");
    machines.kubectl(&["get", "secret", "word"]);
    let there = |p: &crate::lab::Process| crate::lab::first_processes().values().any(|q| q == p);
    assert!(processes.iter().all(there), "no container of the agent was restarted");
    let name = text(&on_agent[0], "/metadata/name");
    machines.until("its logs are reached", || {
        let output = machines.command(0, "kubectl").args(["logs", name]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("listening")
    });
}

#[test]
fn machines_that_get_another_address_are_found_again() {
    let mut machines = Machines::prepare("move", 2);
    machines.start_server(&[]);
    let token = machines.token();
    let server = format!("https://{}:6443", machines.all[0].address);
    // Without an address of its own choice, the agent has that of its default route.
    machines.all[1].spawn(&["agent", "--server", &server, "--token", &token]);
    machines.until("the agent is Ready", || machines.is_ready(1));
    machines.kubectl(&["cordon", &machines.all[0].name]);
    deploy(&machines);
    let pods = machines.pods("app=spread");
    let processes: Vec<_> = pods.iter().flat_map(|p| machines.processes(p)).collect();
    assert_eq!(processes.len(), 6);
    let name = machines.all[1].name.clone();
    ip(&format!("-n {name} addr del 192.0.2.2/24 dev eth0"));
    ip(&format!("-n {name} addr add 192.0.2.66/24 dev eth0"));
    ip(&format!("-n {name} route add default via 192.0.2.254"));
    machines.until("the node has the new address", || {
        let node = machines.json(&["get", "node", &name]);
        node["status"]["addresses"].as_array().is_some_and(|a| a.iter().any(|a| a["address"] == "192.0.2.66"))
    });
    let url = format!("http://{}:8080/", text(&pods[0], "/status/podIP"));
    machines.until("its pods are reached over the overlay again", || {
        let answer = machines.command(0, "curl").args(["-sS", "--max-time", "2", &url]).output().unwrap();
        String::from_utf8_lossy(&answer.stdout).starts_with("Hello from pod")
    });
    machines.until("it is Ready and reached", || {
        let logs = machines.command(0, "kubectl").args(["logs", text(&pods[0], "/metadata/name")]).output().unwrap();
        machines.is_ready(1) && logs.status.success()
    });
    let there = |p: &crate::lab::Process| crate::lab::first_processes().values().any(|q| q == p);
    assert!(processes.iter().all(there), "no container was restarted");
}
