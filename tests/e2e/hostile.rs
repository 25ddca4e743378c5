//! Three machines, a pod on each, and a stranger on their segment: what both try, and that the cluster goes on meanwhile.
//!
//! Each attack is followed by something honest on the same way, so that what did not come by then has not come at all. That
//! the same attacks succeed without the rules is shown in tests/netns.

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::cluster::text;
use crate::frames::{self, HOST_END, Mac};
use crate::lab::{ip, run};
use crate::machines::Machines;

const TAKEN: u16 = 7777;
const TUNNEL: u16 = 8472;
const STRANGER: &str = "192.0.2.200";
/// An address that Services may have, and that nobody else has.
const ALLOWED: &str = "192.0.2.99";

/// A pod on each machine; on the first two one more that wants the API's port of its host.
fn pods(machines: &Machines) -> String {
    let pod = |name: &str, node: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: evil}}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: c, image: amphipod.local/hello, ports: [{ports}]}}\n"
        )
    };
    let mut all = String::new();
    for (n, machine) in (1..).zip(&machines.all) {
        all += &pod(&format!("pod-{n}"), &machine.name, "{containerPort: 8080}");
    }
    let (first, second) = (&machines.all[0], &machines.all[1]);
    all += &pod("taker-1", &first.name, "{containerPort: 8080, hostPort: 6443}");
    all +=
        &pod("taker-2", &second.name, &format!("{{containerPort: 8080, hostPort: 6443, hostIP: {}}}", first.address));
    for (name, address, port) in [("api", first.address.as_str(), 6443), ("allowed", ALLOWED, 80)] {
        all += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: evil}}\n  \
             externalIPs: [{address}]\n  ports: [{{port: {port}, targetPort: 8080}}]\n"
        );
    }
    all
}

/// Work on a thread inside of a network namespace.
fn within<T: Send + 'static>(namespace: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(namespace).unwrap();
    let inside = move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    std::thread::spawn(inside).join().unwrap()
}

struct Pod {
    address: IpAddr,
    namespace: PathBuf,
    mac: Mac,
}

impl Pod {
    fn of(machines: &Machines, name: &str) -> Self {
        let pod: Value = machines.json(&["get", "pod", name]);
        let pid = machines.processes(&pod)[0].pid;
        let shown = machines.in_pod(&pod, &["ip", "-o", "link", "show", "eth0"]).unwrap();
        let mac = shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let mac: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        Self {
            address: text(&pod, "/status/podIP").parse().unwrap(),
            namespace: format!("/proc/{pid}/ns/net").into(),
            mac: mac.try_into().unwrap(),
        }
    }

    fn send(&self, frames: Vec<Vec<u8>>) {
        within(&self.namespace, move || frames::send("eth0", &frames));
    }

    fn udp(&self, from: IpAddr, to: (IpAddr, u16), words: &str) -> Vec<u8> {
        frames::udp((self.mac, HOST_END), (from, 9), to, words.as_bytes())
    }
}

fn ear(namespace: &Path, address: IpAddr) -> UdpSocket {
    let socket = within(namespace, move || UdpSocket::bind((address, TAKEN)).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// What came before `last`.
fn heard(ear: &UdpSocket, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let length = ear.recv(&mut buffer).unwrap_or_else(|e| panic!("{last} never came: {e}; {all:?}"));
        let words = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if words == last {
            return all;
        }
        all.push(words);
    }
}

fn started() -> (Machines, PathBuf) {
    let mut machines = Machines::prepare("host", 3);
    machines.start_server(&["--allow-external-ips=192.0.2.0/24", "--block-metadata"]);
    let token = machines.token();
    (1..3).for_each(|n| machines.start_agent(n, &token));
    (0..3).for_each(|n| machines.until("all nodes are Ready", || machines.is_ready(n)));
    let switch = format!("{}-sw", machines.all[0].name.trim_end_matches("-1"));
    ip(&format!("-n {switch} link set lo up"));
    ip(&format!("-n {switch} addr add {STRANGER}/24 dev bridge"));
    let path = machines.all[0].path("pods.yaml");
    std::fs::write(&path, pods(&machines)).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]);
    (machines, format!("/run/netns/{switch}").into())
}

#[test]
fn a_pod_and_a_stranger_on_the_segment_get_nowhere() {
    let (machines, stranger) = started();
    let names = ["pod-1", "pod-2", "pod-3", "taker-2"];
    let pods: Vec<Pod> = names.iter().map(|name| Pod::of(&machines, name)).collect();
    the_tunnel_is_for_nodes(&machines, &stranger, &pods);
    foreign_sources_go_nowhere(&machines, &stranger, &pods);
    a_pod_does_not_configure_its_host(&machines, &pods[0]);
    nobody_takes_the_api(&machines);
    (0..3).for_each(|n| assert!(machines.is_ready(n), "node {n} is as it was"));
}

/// For the tunnel's end on the machine of `to`, as if from a pod of another machine.
fn injected(from: &Pod, to: &Pod) -> Vec<u8> {
    let IpAddr::V4(address) = to.address else { panic!("IPv4 pods") };
    let [a, b, c, _] = address.octets();
    let end = [0x0a, 0x58, a, b, c, 0];
    frames::vxlan(1, &frames::udp(([2, 0, 0, 0, 0, 9], end), (from.address, 9), (to.address, TAKEN), b"injected"))
}

fn the_tunnel_is_for_nodes(machines: &Machines, stranger: &Path, pods: &[Pod]) {
    let ear = ear(&pods[1].namespace, pods[1].address);
    let (frame, target) = (injected(&pods[2], &pods[1]), pods[1].address);
    for machine in &machines.all[1..2] {
        let (node, frame) = (machine.address.clone(), frame.clone());
        within(stranger, move || {
            ip(&format!("route replace {target}/32 via {node}"));
            let socket = UdpSocket::bind((STRANGER, 0)).unwrap();
            socket.send_to(&frame, (node.as_str(), TUNNEL)).unwrap();
            socket.send_to(b"stranger", (target, TAKEN)).unwrap();
        });
    }
    assert_eq!(heard(&ear, "stranger"), [""; 0], "of a stranger's frames");
    // A pod beside the target, and one on another machine, whose node would lend it a node's address.
    for from in [&pods[0], &pods[3]] {
        let nodes: Vec<String> = machines.all.iter().map(|m| m.address.clone()).collect();
        let frame = frame.clone();
        within(&from.namespace, move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            nodes.iter().for_each(|node| assert!(socket.send_to(&frame, (node.as_str(), TUNNEL)).is_ok()));
            socket.send_to(b"pod", (target, TAKEN)).unwrap();
        });
        assert_eq!(heard(&ear, "pod"), [""; 0], "of a pod's frames");
    }
    // The cluster DNS answers pods; the listener behind it nobody else.
    let resolve = ["dig", "+short", "+time=2", "+tries=1", "@10.43.0.10", "kubernetes.default.svc.cluster.local"];
    let pod = machines.json(&["get", "pod", "pod-2"]);
    assert_eq!(machines.in_pod(&pod, &resolve).unwrap_or_default().trim(), "10.43.0.1");
    let [a, b, c, _] = match target {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("IPv4 pods"),
    };
    let node = machines.all[1].address.clone();
    let asked = within(stranger, move || {
        let listener = format!("{a}.{b}.{c}.1");
        ip(&format!("route replace {listener}/32 via {node}"));
        let at = format!("@{listener}");
        let words = ["+time=1", "+tries=1", "-p", "1053", &at, "kubernetes.default.svc.cluster.local"];
        std::process::Command::new("dig").args(words).output().unwrap()
    });
    assert!(!asked.status.success(), "a stranger asks the listener: {}", String::from_utf8_lossy(&asked.stdout));
}

fn foreign_sources_go_nowhere(machines: &Machines, stranger: &Path, pods: &[Pod]) {
    let ear = ear(&pods[1].namespace, pods[1].address);
    let to = (pods[1].address, TAKEN);
    let foreign: Vec<IpAddr> = [pods[2].address.to_string().as_str(), "10.43.0.1", "192.0.2.1", STRANGER, "10.42.77.7"]
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    for from in [&pods[0], &pods[3]] {
        let mut all: Vec<Vec<u8>> = foreign.iter().map(|a| from.udp(*a, to, "foreign")).collect();
        all.push(from.udp(from.address, to, "own"));
        from.send(all);
        assert_eq!(heard(&ear, "own"), [""; 0]);
    }
    // A stranger as a pod of the target's machine, and of another one.
    let node = machines.all[1].address.clone();
    let sources: Vec<String> =
        [0, 2, 3].iter().map(|n| pods[*n].address.to_string()).chain(["10.43.0.1".into()]).collect();
    within(stranger, move || {
        ip(&format!("route replace {}/32 via {node}", to.0));
        for source in sources {
            ip(&format!("addr add {source}/32 dev lo"));
            UdpSocket::bind((source.as_str(), 0)).unwrap().send_to(b"foreign", to).unwrap();
            ip(&format!("addr del {source}/32 dev lo"));
        }
        UdpSocket::bind((STRANGER, 0)).unwrap().send_to(b"own", to).unwrap();
    });
    assert_eq!(heard(&ear, "own"), [""; 0]);
}

fn a_pod_does_not_configure_its_host(machines: &Machines, pod: &Pod) {
    let host: PathBuf = format!("/run/netns/{}", machines.all[0].name).into();
    let node: IpAddr = machines.all[0].address.parse().unwrap();
    let (open, closed) = (ear(&host, node), ear(&host, "127.0.0.1".parse().unwrap()));
    let metadata: IpAddr = "169.254.169.254".parse().unwrap();
    let (router, prefix) = ("fe80::bad".parse().unwrap(), "2001:db8:bad::".parse().unwrap());
    within(&host, move || ip(&format!("addr add {metadata}/32 dev lo")));
    let at_metadata = ear(&host, metadata);
    pod.send(vec![
        frames::router_advertisement(pod.mac, router, prefix),
        pod.udp(pod.address, ("127.0.0.1".parse().unwrap(), TAKEN), "loopback"),
        pod.udp(pod.address, (metadata, TAKEN), "metadata"),
        pod.udp(pod.address, (node, TAKEN), "sent"),
    ]);
    assert_eq!(heard(&open, "sent"), [""; 0]);
    for ear in [&closed, &at_metadata] {
        ear.set_nonblocking(true).unwrap();
        assert!(ear.recv(&mut [0; 64]).is_err());
    }
    let configured = String::from_utf8(run(machines.command(0, "ip").args(["-6", "route", "show"])).stdout).unwrap();
    assert!(!configured.contains("bad"), "{configured}");
}

fn nobody_takes_the_api(machines: &Machines) {
    let server = format!("https://{}:6443/readyz", machines.all[0].address);
    let allowed = format!("http://{ALLOWED}/");
    let ask = ["curl", "-sSk", "--max-time", "5"];
    // That Services are there is shown by the one that may have its address.
    for n in 0..3 {
        machines.until("an allowed address answers", || {
            let output = machines.command(n, "curl").args(&ask[1..]).arg(&allowed).output().unwrap();
            String::from_utf8_lossy(&output.stdout).starts_with("Hello")
        });
        let answer = run(machines.command(n, "curl").args(&ask[1..]).arg(&server)).stdout;
        assert_eq!(String::from_utf8_lossy(&answer), "ok", "from machine {n}");
        let pod = machines.json(&["get", "pod", &format!("pod-{}", n + 1)]);
        let answer = machines.in_pod(&pod, &[&ask[..], &[server.as_str()]].concat());
        assert_eq!(answer.as_deref(), Some("ok"), "from a pod of machine {n}");
    }
    assert!(machines.all[0].log().contains("host port 6443/tcp"), "the server's node says what it left out");
    for address in ["10.43.0.1", "10.42.0.1", "198.51.100.1", "169.254.169.254"] {
        let patch = format!("{{\"spec\":{{\"externalIPs\":[\"{address}\"]}}}}");
        let refused =
            machines.command(0, "kubectl").args(["patch", "service", "allowed", "-p", &patch]).output().unwrap();
        assert!(!refused.status.success(), "{address}: {}", String::from_utf8_lossy(&refused.stdout));
    }
}
