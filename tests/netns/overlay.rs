//! Pods of three nodes: two on one segment, the third there or behind a router, by tunnel and by plain routes.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphipod::net::nft::Guard;
use amphipod::net::overlay::{Backend, Options, Overlay, PeerNode, Tunnel, WireGuard};
use amphipod::net::{Config, destroy};

use tokio::io::AsyncReadExt;
use tokio::net::TcpSocket;

use super::frames;
use super::lab::{FsStats, give, run};

const PATIENCE: Duration = Duration::from_secs(3);
const PORT: u16 = 8080;
/// Where the third node is: on the segment, or behind the router.
const NEAR: &str = "192.0.2.3";
const FAR: &str = "198.51.100.3";

/// A node whose only pod is an address.
struct Node {
    space: FsStats,
    number: u8,
    address: IpAddr,
    config: Config,
    overlay: Arc<Overlay>,
    backend: Backend,
    _directory: tempfile::TempDir,
}

impl Node {
    fn new(number: u8, space: FsStats, address: &str) -> Self {
        Self::with(number, space, address, Backend::Vxlan)
    }

    fn with(number: u8, space: FsStats, address: &str, backend: Backend) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = Config {
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            mtu: if backend == Backend::Vxlan { 1450 } else { 1440 },
            tunnel: true,
            routed_peers: true,
            addresses: vec![address.parse().unwrap()],
            ..Config::new(directory.path(), vec![format!("10.42.{number}.0/24").parse().unwrap()])
        };
        let pod = Self::pod(number);
        let listener = space.inside(move || {
            run(&format!("ip addr add {pod}/32 dev lo"));
            TcpListener::bind((pod, PORT)).unwrap()
        });
        // Answers with the address that it saw.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let saw = stream.peer_addr().unwrap().ip().to_string();
                let _ = std::io::Write::write_all(&mut stream, saw.as_bytes());
            }
        });
        let address = address.parse().unwrap();
        let overlay = Self::open(&space, &config, address, backend);
        Self { space, number, address, config, overlay, backend, _directory: directory }
    }

    fn open(space: &FsStats, config: &Config, address: IpAddr, backend: Backend) -> Arc<Overlay> {
        let options = Options { backend, direct_routing: true, address };
        let config = config.clone();
        let open = move || {
            let guard = Arc::new(Guard::open(config.clone()).unwrap());
            let directory = config.run_dir.join("network");
            let open = || WireGuard::open(&config, &directory, jiff::Timestamp::now()).unwrap();
            let wireguard = backend.has_wireguard().then(open);
            Overlay::open(config, options, guard, wireguard).unwrap()
        };
        Arc::new(space.inside(open))
    }

    fn pod(number: u8) -> Ipv4Addr {
        [10, 42, number, 2].into()
    }

    fn peer(&self) -> PeerNode {
        let name = format!("node-{}", self.number);
        PeerNode {
            name,
            address: self.address,
            pod_cidrs: self.config.pod_cidrs.clone(),
            key: self.overlay.public_key(),
        }
    }

    /// The way to another node's pods, as `ip` says it.
    fn way(&self, to: &Node) -> String {
        let line = format!("ip -4 route show 10.42.{}.0/24", to.number);
        self.space.inside(move || run(&line)).trim().to_owned()
    }

    /// What the pod of `to` sees of this node's pod.
    fn ask(&self, to: &Node) -> String {
        let (own, other) = (Self::pod(self.number), Self::pod(to.number));
        self.space.inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let exchange = async {
                let socket = TcpSocket::new_v4().unwrap();
                socket.bind((own, 0).into()).unwrap();
                let mut stream = socket.connect((other, PORT).into()).await.unwrap();
                let mut saw = String::new();
                stream.read_to_string(&mut saw).await.unwrap();
                saw
            };
            runtime
                .block_on(async { tokio::time::timeout(PATIENCE, exchange).await })
                .unwrap_or_else(|_| panic!("no answer from {other} to {own}"))
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let config = self.config.clone();
        let left = self.space.inside(move || (destroy(&config), run("ip route show proto 165")));
        if !std::thread::panicking() {
            left.0.unwrap();
            assert_eq!(left.1.trim(), "", "plain routes go as well");
        }
    }
}

fn apply(nodes: &[Node]) {
    for node in nodes {
        let peers: Vec<PeerNode> = nodes.iter().filter(|n| n.number != node.number).map(Node::peer).collect();
        let overlay = node.overlay.clone();
        node.space.inside(move || overlay.apply(&peers).unwrap());
    }
}

/// Every pod reaches every other one, with its own address.
fn all_reach_all(nodes: &[Node]) {
    for from in nodes {
        for to in nodes.iter().filter(|n| n.number != from.number) {
            assert_eq!(from.ask(to), Node::pod(from.number).to_string(), "{} to {}", from.number, to.number);
        }
    }
}

/// A cable from a node to the switch.
fn plug(switch: &FsStats, node: &FsStats, port: &str, address: &str, gateway: &str) {
    let inside = |space: &FsStats, lines: Vec<String>| space.inside(move || lines.iter().for_each(|l| drop(run(l))));
    let name = port.to_owned();
    let raw = node.inside(FsStats::here);
    switch.inside(move || {
        // The same hardware address wherever it is plugged in.
        let number = name.trim_start_matches('p');
        run(&format!("ip link add {name} type veth peer name eth0 address 02:00:00:00:00:0{number}"));
        run(&format!("ip link set {name} up"));
        give("eth0", &raw);
    });
    let mut lines = vec![format!("ip addr add {address}/24 dev eth0"), "ip link set eth0 up".into()];
    if !gateway.is_empty() {
        lines.push(format!("ip route add default via {gateway}"));
    }
    inside(node, lines);
}

/// The third node gets a cable: to the bridge of the segment, or to the router beside it.
fn place(switch: &FsStats, node: &FsStats, near: bool) {
    let (address, gateway) = if near { (NEAR, "192.0.2.254") } else { (FAR, "198.51.100.254") };
    plug(switch, node, "p3", address, gateway);
    switch.inside(move || match near {
        true => drop(run("ip link set p3 master bridge")),
        false => drop(run("ip addr add 198.51.100.254/24 dev p3")),
    });
}

#[test]
fn nodes_on_the_segment_get_plain_routes_and_those_behind_a_router_the_tunnel() {
    // Switch and router are one machine: a bridge with an address, and a port beside it.
    let switch = FsStats::new();
    switch.inside(|| {
        run("ip link add bridge type bridge");
        run("ip addr add 192.0.2.254/24 dev bridge");
        run("ip link set bridge up");
        run("sysctl -qw net.ipv4.ip_forward=1");
    });
    let spaces = [FsStats::new(), FsStats::new(), FsStats::new()];
    for (space, port, address) in [(&spaces[0], "p1", "192.0.2.1"), (&spaces[1], "p2", "192.0.2.2")] {
        plug(&switch, space, port, address, "192.0.2.254");
        let port = port.to_owned();
        switch.inside(move || run(&format!("ip link set {port} master bridge")));
    }
    place(&switch, &spaces[2], false);
    let [a, b, c] = spaces;
    let mut nodes = [Node::new(1, a, "192.0.2.1"), Node::new(2, b, "192.0.2.2"), Node::new(3, c, FAR)];
    apply(&nodes);
    all_reach_all(&nodes);
    assert!(nodes[0].way(&nodes[1]).starts_with("10.42.2.0/24 via 192.0.2.2 dev eth0"), "{}", nodes[0].way(&nodes[1]));
    assert!(nodes[0].way(&nodes[2]).starts_with("10.42.3.0/24 via 10.42.3.0 dev amphipod0.vx"));
    assert!(nodes[2].way(&nodes[0]).starts_with("10.42.1.0/24 via 10.42.1.0 dev amphipod0.vx"));

    // From here on, the first node's entries for the second one must not be touched.
    let mut monitor = nodes[0].space.inside(|| {
        let spawned = Command::new("ip").args(["monitor", "route", "neigh"]).stdout(Stdio::piped()).spawn();
        spawned.unwrap()
    });
    for near in [true, false, true] {
        nodes[2].space.inside(|| run("ip link del eth0"));
        place(&switch, &nodes[2].space, near);
        nodes[2].address = if near { NEAR } else { FAR }.parse().unwrap();
        nodes[2].overlay = Node::open(&nodes[2].space, &nodes[2].config, nodes[2].address, Backend::Vxlan);
        apply(&nodes);
        all_reach_all(&nodes);
        let way = nodes[0].way(&nodes[2]);
        assert!(way.contains(if near { "via 192.0.2.3 dev eth0" } else { "dev amphipod0.vx" }), "{way}");
        let entries = nodes[0].space.inside(|| run("bridge fdb show dev amphipod0.vx"));
        assert_eq!(entries.contains(FAR), !near, "{entries}");
    }
    monitor.kill().unwrap();
    let mut said = String::new();
    monitor.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    monitor.wait().unwrap();
    assert!(said.contains("10.42.3.0/24") && !said.contains("10.42.2.0"), "{said}");
}

/// Two machines and a stranger on one segment, and the switch, which must be held.
fn segment() -> [FsStats; 4] {
    let switch = FsStats::new();
    switch.inside(|| {
        run("ip link add bridge type bridge");
        run("ip link set bridge up");
    });
    let spaces = [FsStats::new(), FsStats::new(), FsStats::new()];
    for (n, space) in (1..).zip(&spaces) {
        plug(&switch, space, &format!("p{n}"), &format!("192.0.2.{n}"), "");
        switch.inside(move || run(&format!("ip link set p{n} master bridge")));
    }
    let [a, b, stranger] = spaces;
    [a, b, stranger, switch]
}

/// Which tunnel each node has found.
fn found(nodes: &[Node]) -> Vec<Tunnel> {
    let peers = |node: &Node| nodes.iter().filter(|n| n.number != node.number).map(Node::peer).collect::<Vec<_>>();
    let apply = |node: &Node| {
        let (overlay, peers) = (node.overlay.clone(), peers(node));
        node.space.inside(move || overlay.apply(&peers).unwrap())
    };
    nodes.iter().map(apply).collect()
}

/// How many megabytes per second one connection carries from pod to pod.
fn throughput(from: &Node, to: &Node) -> f64 {
    const LASTS: Duration = Duration::from_secs(3);
    let target = Node::pod(to.number);
    let listener = to.space.inside(move || TcpListener::bind((target, PORT + 1)).unwrap());
    let taking = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 17];
        let (began, mut bytes) = (Instant::now(), 0);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            bytes += n;
        }
        bytes as f64 / began.elapsed().as_secs_f64() / 1e6
    });
    from.space.inside(move || {
        let mut stream = TcpStream::connect((target, PORT + 1)).unwrap();
        let block = vec![7; 1 << 17];
        let began = Instant::now();
        while began.elapsed() < LASTS {
            std::io::Write::write_all(&mut stream, &block).unwrap();
        }
    });
    taking.join().unwrap()
}

#[test]
#[ignore = "needs a kernel with WireGuard; tests/vm/run runs it in one"]
fn wireguard_connects_pods_of_nodes_that_all_have_it() {
    let [a, b, _, _switch] = segment();
    let mut nodes = [Node::with(1, a, "192.0.2.1", Backend::Auto), Node::with(2, b, "192.0.2.2", Backend::Auto)];
    assert_eq!(found(&nodes), [Tunnel::WireGuard, Tunnel::WireGuard]);
    all_reach_all(&nodes);
    assert!(nodes[0].way(&nodes[1]).starts_with("10.42.2.0/24 dev amphipod0.wg"), "{}", nodes[0].way(&nodes[1]));
    let encrypted = throughput(&nodes[0], &nodes[1]);

    // A restart keeps the key and interrupts nothing.
    let key = nodes[0].overlay.public_key();
    nodes[0].overlay = Node::open(&nodes[0].space, &nodes[0].config, nodes[0].address, Backend::Auto);
    assert_eq!(nodes[0].overlay.public_key(), key);
    all_reach_all(&nodes);

    // Another key: told, taken by the other node, used. A connection that was there goes on.
    let (target, taken) =
        (Node::pod(2), nodes[1].space.inside(|| TcpListener::bind((Node::pod(2), PORT + 2)).unwrap()));
    let mut open = nodes[0].space.inside(move || TcpStream::connect((target, PORT + 2)).unwrap());
    let (mut other, _) = taken.accept().unwrap();
    other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let overlay = nodes[0].overlay.clone();
    let pending = nodes[0].space.inside(move || overlay.make_pending_key(jiff::Timestamp::now()).unwrap());
    let told = PeerNode { key: Some(pending.public), ..nodes[0].peer() };
    let overlay = nodes[1].overlay.clone();
    nodes[1].space.inside(move || overlay.apply(&[told]).unwrap());
    let began = Instant::now();
    nodes[0].overlay.activate_key(pending).unwrap();
    std::io::Write::write_all(&mut open, b"on").unwrap();
    other.read_exact(&mut [0; 2]).unwrap();
    let gap = began.elapsed();
    assert_ne!(nodes[0].overlay.public_key(), key);
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    assert_eq!(found(&nodes), [Tunnel::WireGuard, Tunnel::WireGuard]);
    all_reach_all(&nodes);

    // One that has none keeps all of them from it, and they go on by the other tunnel.
    let keyless = PeerNode { key: None, ..nodes[1].peer() };
    let overlay = nodes[0].overlay.clone();
    let chosen = nodes[0].space.inside(move || overlay.apply(&[keyless]).unwrap());
    assert!(matches!(chosen, Tunnel::Vxlan { because: Some(why) } if why.contains("node-2")));
    for node in &mut nodes {
        node.overlay = Node::open(&node.space, &node.config, node.address, Backend::Vxlan);
    }
    // Through the tunnel, although they share a segment.
    for node in &mut nodes {
        let options = Options { backend: Backend::Vxlan, direct_routing: false, address: node.address };
        let config = node.config.clone();
        let open =
            move || Overlay::open(config.clone(), options, Arc::new(Guard::open(config).unwrap()), None).unwrap();
        node.overlay = Arc::new(node.space.inside(open));
    }
    assert!(found(&nodes).iter().all(|t| *t == Tunnel::Vxlan { because: None }));
    all_reach_all(&nodes);
    assert!(nodes[0].way(&nodes[1]).contains("dev amphipod0.vx"));
    let plain = throughput(&nodes[0], &nodes[1]);
    println!(
        "pod to pod: {encrypted:.1} MB/s through WireGuard, {plain:.1} MB/s through VXLAN; {gap:?} for another key"
    );
    assert_eq!(nodes[0].backend, Backend::Auto);
}

#[test]
#[ignore = "needs a kernel with WireGuard; tests/vm/run runs it in one"]
fn with_wireguard_nobody_sends_in_the_name_of_another() {
    let [a, b, stranger, _switch] = segment();
    let nodes = [Node::with(1, a, "192.0.2.1", Backend::Auto), Node::with(2, b, "192.0.2.2", Backend::Auto)];
    assert_eq!(found(&nodes), [Tunnel::WireGuard, Tunnel::WireGuard]);
    all_reach_all(&nodes);
    let pod = Node::pod(1);
    let ear = nodes[0].space.inside(move || UdpSocket::bind((pod, 7777)).unwrap());
    ear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // A stranger with a node's own address, and frames as the other tunnel would take them.
    stranger.inside(move || {
        run("ip addr add 192.0.2.2/32 dev lo");
        let inner = frames::udp(
            ([2; 6], [0x0a, 0x58, 10, 42, 1, 0]),
            ([10, 42, 2, 2].into(), 9),
            (pod.into(), 7777),
            b"injected",
        );
        let socket = UdpSocket::bind(("192.0.2.2", 0)).unwrap();
        for port in [8472, 51871] {
            socket.send_to(&frames::vxlan(1, &inner), ("192.0.2.1", port)).unwrap();
        }
        run("ip addr del 192.0.2.2/32 dev lo");
    });
    // A node that sends with sources that are not of its range.
    nodes[1].space.inside(move || {
        for (source, text) in
            [("10.42.9.9", "foreign"), ("10.42.1.9", "its own"), ("192.0.2.2", "no pod"), ("10.42.2.2", "true")]
        {
            let known = run("ip -o addr show").contains(&format!("{source}/"));
            if !known {
                run(&format!("ip addr add {source}/32 dev lo"));
            }
            UdpSocket::bind((source, 0)).unwrap().send_to(text.as_bytes(), (pod, 7777)).unwrap();
        }
    });
    let mut buffer = [0; 64];
    let length = ear.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"true", "nothing else, and that from a pod of the sender");
}
