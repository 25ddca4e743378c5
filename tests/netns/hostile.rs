//! A pod and a machine of the segment that put on the wire what they like, without a service proxy on the node. Each attack is
//! also made with the guard's rules taken away, where it must succeed: so it is the rules that stop it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use amphipod::net::overlay::{Backend, Options, Overlay, PeerNode};
use amphipod::net::pod::KernelPodNetwork;
use amphipod::net::{Config, PodAttachment, PodNetwork, ServiceTable};

use crate::frames::{self, HOST_END, Mac, send};
use crate::lab::{FsStats, HOST, Lab, OUTSIDE, machine, run};

const TAKEN: u16 = 7777;
const TUNNEL: u16 = 8472;
/// A node that is not there.
const PEER: &str = "192.0.2.2";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The hardware address of a link, once it carries: a little after both ends are up, the kernel says so, and drops until then.
fn mac_of(space: &FsStats, link: &str) -> Mac {
    let line = format!("ip -o link show {link}");
    let text = space.inside(move || {
        let began = std::time::Instant::now();
        loop {
            let text = run(&line);
            if text.contains("state UP") {
                return text;
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{text}");
        }
    });
    let text = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// The host ends of the pods' links, in the order in which they were made.
fn pod_links() -> Vec<String> {
    let all = run("ip -o link show type veth");
    let names = all.lines().filter_map(|l| l.split(": ").nth(1)?.split('@').next());
    names.filter(|n| n.starts_with("amp")).map(str::to_owned).collect()
}

/// What is sent to a port, as long as `last` was not among it. Order is kept, so nothing of what was sent before is missing.
struct Ear(UdpSocket);

impl Ear {
    fn new(space: &FsStats, address: &str, port: u16) -> Self {
        let address = ip(address);
        let socket = space.inside(move || UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Self(socket)
    }

    fn until(&self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let mut buffer = [0; 256];
        loop {
            let length = self.0.recv(&mut buffer).unwrap_or_else(|e| panic!("{last} never came: {e}; {heard:?}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text == last {
                return heard;
            }
            heard.push(text);
        }
    }
}

/// Takes the rules away, as somebody would who flushes all of them.
fn without_guard() {
    for family in ["ip", "ip6"] {
        run(&format!("nft delete table {family} amphipod-guard"));
    }
}

fn with_guard(lab: &Lab) {
    lab.network.guard().repair().unwrap();
}

fn host() -> FsStats {
    FsStats::here()
}

#[test]
fn a_pod_sends_from_no_address_but_its_own_even_where_the_kernels_own_check_is_off() {
    machine(|lab| {
        let (mine, other) = (lab.attach("a"), lab.attach("b"));
        // The larger of this and the link's own counts. What other programs on a machine set for all links, they set for ours.
        run("sysctl -qw net.ipv4.conf.all.rp_filter=0");
        run(&format!("sysctl -qw net.ipv4.conf.{}.rp_filter=0", pod_links()[0]));
        let space = FsStats::open(&mine.netns);
        let macs = (mac_of(&space, "eth0"), HOST_END);
        let ear = Ear::new(&host(), "0.0.0.0", TAKEN);
        let attack = || {
            let foreign = [other.addresses[0], ip("10.42.0.99"), ip("10.42.7.7"), ip("10.43.0.80"), ip(OUTSIDE)];
            let foreign = foreign.into_iter().chain([ip("198.51.100.9"), ip("127.0.0.1"), ip("0.0.0.0")]);
            let frame = |from: IpAddr| frames::udp(macs, (from, 9), (ip(HOST), TAKEN), from.to_string().as_bytes());
            let mut all: Vec<Vec<u8>> = foreign.map(frame).collect();
            all.push(frames::udp(macs, (mine.addresses[0], 9), (ip(HOST), TAKEN), b"own"));
            space.inside(move || send("eth0", &all));
            ear.until("own")
        };
        assert_eq!(attack(), [""; 0], "nothing but its own address");
        without_guard();
        let got = attack();
        assert!(got.contains(&OUTSIDE.to_owned()), "{got:?} the same frames get through without the rules");
        with_guard(lab);
        assert_eq!(attack(), [""; 0]);
    });
}

#[test]
fn the_same_in_the_other_family_and_pods_of_both_go_on() {
    machine(|lab| {
        let config = Config {
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap(), "fd42::/56".parse().unwrap()],
            ..lab.config.clone()
        };
        let network = KernelPodNetwork::open(config).unwrap();
        let attach = |id: &str| {
            let pod = PodAttachment { id: id.into(), namespace: "test".into(), name: id.into(), netns: None };
            lab.runtime.block_on(network.attach(pod)).unwrap()
        };
        let (mine, other) = (attach("a"), attach("b"));
        let (own, gateway) = (mine.addresses[1], ip("fd42::"));
        let space = FsStats::open(&mine.netns);
        let macs = (mac_of(&space, "eth0"), HOST_END);
        let ear = Ear::new(&host(), "::", TAKEN);
        let attack = move || {
            let foreign = [other.addresses[1], ip("fd42::99"), ip("2001:db8::9"), ip("fe80::9"), ip("fd42:0:0:7::1")];
            let frame = |from: IpAddr| frames::udp(macs, (from, 9), (gateway, TAKEN), from.to_string().as_bytes());
            let mut all: Vec<Vec<u8>> = foreign.into_iter().map(frame).collect();
            all.push(frames::udp(macs, (own, 9), (gateway, TAKEN), b"own"));
            space.inside(move || send("eth0", &all));
            ear.until("own")
        };
        assert_eq!(attack(), [""; 0]);
        without_guard();
        assert!(attack().contains(&"fd42::99".to_owned()), "the same frames get through without the rules");
        network.guard().repair().unwrap();
        // From pod to pod, with the kernel's own packets: nothing that IPv6 needs was forbidden.
        let (a, b) = (FsStats::open(&mine.netns), FsStats::open(&attach("b").netns));
        mac_of(&b, "eth0");
        let there = attach("b").addresses[1];
        let ear = Ear::new(&b, "::", TAKEN);
        a.inside(move || UdpSocket::bind("[::]:0").unwrap().send_to(b"hello", (there, TAKEN)).unwrap());
        assert_eq!(ear.until("hello"), [""; 0]);
    });
}

#[test]
fn a_router_advertisement_of_a_pod_does_not_configure_the_host() {
    machine(|lab| {
        let mine = lab.attach("a");
        let space = FsStats::open(&mine.netns);
        let mac = mac_of(&space, "eth0");
        let link = pod_links().remove(0);
        let switch = |name: &str| run(&format!("sysctl -n net.ipv6.conf.{link}.{name}")).trim().to_owned();
        for name in ["accept_ra", "autoconf", "accept_redirects"] {
            assert_eq!(switch(name), "0", "{name}");
        }
        assert_eq!(run("sysctl -n net.ipv6.conf.amphipod0.accept_ra").trim(), "0");
        let ear = Ear::new(&host(), "0.0.0.0", TAKEN);
        let own = mine.addresses[0];
        let attack = || {
            let (router, prefix): (Ipv6Addr, Ipv6Addr) =
                ("fe80::bad".parse().unwrap(), "2001:db8:bad::".parse().unwrap());
            let frames = vec![
                frames::router_advertisement(mac, router, prefix),
                frames::udp((mac, HOST_END), (own, 9), (ip(HOST), TAKEN), b"sent"),
            ];
            space.inside(move || send("eth0", &frames));
            ear.until("sent");
            run("ip -6 route show").contains("fe80::bad") || run("ip -6 addr show").contains("2001:db8:bad:")
        };
        assert!(!attack(), "by default");
        for name in ["accept_ra=2", "autoconf=1"] {
            run(&format!("sysctl -qw net.ipv6.conf.{link}.{name}"));
        }
        assert!(!attack(), "by rule alone");
        without_guard();
        assert!(attack(), "the same frame configures a host without rules and switches");
    });
}

#[test]
fn questions_for_hardware_addresses_do_not_fill_the_hosts_table() {
    machine(|lab| {
        let mine = lab.attach("a");
        let space = FsStats::open(&mine.netns);
        let mac = mac_of(&space, "eth0");
        let ear = Ear::new(&host(), "0.0.0.0", TAKEN);
        let question = |n: u8| frames::arp_question(mac, Ipv4Addr::new(10, 42, 0, n), Ipv4Addr::new(10, 42, 0, 1));
        let mut all: Vec<Vec<u8>> = (100..200).map(question).collect();
        all.push(frames::udp((mac, HOST_END), (mine.addresses[0], 9), (ip(HOST), TAKEN), b"sent"));
        space.inside(move || send("eth0", &all));
        ear.until("sent");
        let known = run("ip -4 neigh show");
        assert_eq!(known.lines().filter(|l| l.contains("dev amp")).count(), 1, "only the pod's own: {known}");
    });
}

/// A node with a tunnel, and its peer of that address.
fn overlay(lab: &Lab) -> Overlay {
    let options = Options { backend: Backend::Vxlan, direct_routing: false, address: ip(HOST) };
    Overlay::open(lab.config.clone(), options, lab.network.guard(), None).unwrap()
}

fn peer(address: &str) -> Vec<PeerNode> {
    let pod_cidrs = vec!["10.42.1.0/24".parse().unwrap()];
    vec![PeerNode { name: "peer".into(), address: ip(address), pod_cidrs, key: None }]
}

/// A frame for the host's end of the tunnel with this inner source.
fn injected(from: &str, to: IpAddr, text: &str) -> Vec<u8> {
    let end = [0x0a, 0x58, 10, 42, 0, 0];
    let inner = frames::udp(([2, 0, 0, 0, 0, 9], end), (ip(from), 9), (to, TAKEN), text.as_bytes());
    frames::vxlan(1, &inner)
}

#[test]
fn the_tunnel_takes_frames_of_nodes_alone_and_in_them_no_foreign_source() {
    machine(|lab| {
        let mine = lab.attach("a");
        let pod = mine.addresses[0];
        let overlay = overlay(lab);
        overlay.apply(&peer(PEER)).unwrap();
        let pod_space = FsStats::open(&mine.netns);
        mac_of(&pod_space, "eth0");
        let ear = Ear::new(&pod_space, "0.0.0.0", TAKEN);
        let gateway = HOST;
        let attack = || {
            let sources = ["10.42.1.9", "10.42.0.77", "10.43.0.80", "198.51.100.1", OUTSIDE, "10.42.0.1"];
            let frames: Vec<Vec<u8>> = sources.iter().map(|from| injected(from, pod, from)).collect();
            lab.outside.inside(move || {
                run(&format!("ip route replace 10.42.0.0/24 via {gateway}"));
                let socket = UdpSocket::bind((OUTSIDE, 0)).unwrap();
                frames.iter().for_each(|f| assert!(socket.send_to(f, (gateway, TUNNEL)).is_ok()));
                // Through the front door, as a machine with an address of its own.
                socket.send_to(b"sent", (pod, TAKEN)).unwrap();
            });
            ear.until("sent")
        };
        assert_eq!(attack(), [""; 0], "a stranger");
        overlay.apply(&peer(OUTSIDE)).unwrap();
        assert_eq!(attack(), ["10.42.1.9"], "a node, with a source of the cluster that is not this node's");
        overlay.apply(&peer(PEER)).unwrap();
        without_guard();
        assert!(attack().len() > 1, "a stranger, without the rules");
        // A restart forgets no node, and an apply brings everything back.
        overlay.apply(&peer(OUTSIDE)).unwrap();
        let again = KernelPodNetwork::open(lab.config.clone()).unwrap();
        assert_eq!(attack(), ["10.42.1.9"]);
        drop(again);
    });
}

#[test]
fn a_pod_reaches_no_tunnels_port_neither_its_nodes_nor_another_nodes() {
    machine(|lab| {
        lab.dataplane.apply_now(&ServiceTable::default()).unwrap();
        let (mine, other) = (lab.attach("a"), lab.attach("b"));
        let overlay = overlay(lab);
        // The outside plays a node, so that frames from its address would be taken.
        overlay.apply(&peer(OUTSIDE)).unwrap();
        let (space, victim) = (FsStats::open(&mine.netns), FsStats::open(&other.netns));
        mac_of(&space, "eth0");
        mac_of(&victim, "eth0");
        let (there, at_victim) = (Ear::new(&lab.outside, OUTSIDE, TUNNEL), Ear::new(&victim, "0.0.0.0", TAKEN));
        let (target, far) = (other.addresses[0], ip(OUTSIDE));
        let marks = Ear::new(&lab.outside, OUTSIDE, TAKEN);
        let attack = || {
            space.inside(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for own in [HOST, "10.42.0.1"] {
                    socket.send_to(&injected("10.42.1.9", target, "injected"), (own, TUNNEL)).unwrap();
                }
                socket.send_to(b"other node", (far, TUNNEL)).unwrap();
                // A node's other ports are open to pods, as everywhere in Kubernetes.
                socket.send_to(b"sent", (far, TAKEN)).unwrap();
                socket.send_to(b"sent", (target, TAKEN)).unwrap();
            });
            marks.until("sent");
            at_victim.until("sent")
        };
        assert_eq!(attack(), [""; 0]);
        without_guard();
        attack();
        there.until("other node"); // the first one that comes: the one before did not
        with_guard(lab);
        assert_eq!(attack(), [""; 0]);
        there.0.set_nonblocking(true).unwrap();
        assert!(there.0.recv(&mut [0; 64]).is_err(), "one came, that of the time without rules");
    });
}

#[test]
fn a_stranger_that_uses_the_clusters_own_addresses_is_dropped() {
    machine(|lab| {
        let mine = lab.attach("a");
        let pod = mine.addresses[0];
        let pod_space = FsStats::open(&mine.netns);
        mac_of(&pod_space, "eth0");
        let ear = Ear::new(&pod_space, "0.0.0.0", TAKEN);
        let macs = (mac_of(&lab.outside, "out0"), mac_of(&host(), "up0"));
        let attack = || {
            let sources = ["10.42.0.77", "10.42.1.9", "10.43.0.80"];
            let frame = |from: &str| frames::udp(macs, (ip(from), 9), (pod, TAKEN), from.as_bytes());
            let mut all: Vec<Vec<u8>> = sources.into_iter().map(frame).collect();
            all.push(frames::udp(macs, (ip(OUTSIDE), 9), (pod, TAKEN), b"own"));
            lab.outside.inside(move || send("out0", &all));
            ear.until("own")
        };
        assert_eq!(attack(), [""; 0]);
        without_guard();
        assert!(attack().contains(&"10.42.1.9".to_owned()), "the same frames get through without the rules");
    });
}

#[test]
fn the_dns_listener_is_for_pods_and_the_machine_alone() {
    machine(|lab| {
        let mine = lab.attach("a");
        let ear = Ear::new(&host(), "10.42.0.1", 1053);
        let ask = |text: &'static str| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(text.as_bytes(), "10.42.0.1:1053").unwrap();
        };
        let from_outside = move || {
            run(&format!("ip route replace 10.42.0.0/24 via {HOST}"));
            ask("stranger");
        };
        lab.outside.inside(from_outside);
        let pod = FsStats::open(&mine.netns);
        mac_of(&pod, "eth0");
        pod.inside(move || ask("pod"));
        assert_eq!(ear.until("pod"), [""; 0]);
        ask("machine");
        assert_eq!(ear.until("machine"), [""; 0]);
        without_guard();
        lab.outside.inside(from_outside);
        assert_eq!(ear.until("stranger"), [""; 0], "it would reach it without the rules");
    });
}

#[test]
fn the_hosts_loopback_is_out_of_reach_without_a_service_proxy() {
    machine(|lab| {
        let mine = lab.attach("a");
        let space = FsStats::open(&mine.netns);
        let macs = (mac_of(&space, "eth0"), HOST_END);
        let (secret, open) = (Ear::new(&host(), "127.0.0.1", TAKEN), Ear::new(&host(), HOST, TAKEN));
        let attack = || {
            let own = (mine.addresses[0], 9);
            let frames = vec![
                frames::udp(macs, own, (ip("127.0.0.1"), TAKEN), b"loopback"),
                frames::udp(macs, own, (ip(HOST), TAKEN), b"sent"),
            ];
            space.inside(move || send("eth0", &frames));
            open.until("sent");
        };
        attack();
        secret.0.set_nonblocking(true).unwrap();
        assert!(secret.0.recv(&mut [0; 64]).is_err());
        without_guard();
        attack();
        secret.0.set_nonblocking(false).unwrap();
        assert_eq!(secret.until("loopback"), [""; 0], "it would reach it without the rules");
    });
}
