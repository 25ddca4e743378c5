//! Network policies through real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use amphipod::net::nft::policies::{Allowed, IsolatedPod, Peers, PolicyTable, Ports};
use amphipod::net::nft::{Policies, Written};
use amphipod::net::{Endpoint, Protocol, ServicePort, ServiceTable};

use crate::lab::{FsStats, HOST, Lab, ask_udp, machine, run, serve};

/// What is refused is not answered: it need not be waited for long.
const REFUSED: Duration = Duration::from_millis(300);

fn apply(lab: &Lab, rules: &Policies, pods: Vec<IsolatedPod>, sets: &[(&str, &[IpAddr])]) -> Written {
    let sets = sets.iter().map(|(name, all)| ((*name).to_owned(), all.iter().copied().collect::<BTreeSet<_>>()));
    let table = PolicyTable { pods, sets: sets.collect::<BTreeMap<_, _>>() };
    lab.runtime.block_on(rules.apply(&table)).unwrap()
}

fn pod(address: IpAddr, ingress: Option<&[Allowed]>, egress: Option<&[Allowed]>) -> IsolatedPod {
    let set = |rules: Option<&[Allowed]>| rules.map(|r| r.iter().cloned().collect());
    IsolatedPod { addresses: vec![address], ingress: set(ingress), egress: set(egress) }
}

fn reaches(from: &FsStats, to: &str) -> bool {
    let to = to.parse().unwrap();
    from.inside(move || TcpStream::connect_timeout(&to, REFUSED).is_ok())
}

fn tcp(first: u16, last: u16) -> Option<Ports> {
    Some(Ports { protocol: Protocol::Tcp, range: Some((first, last)) })
}

#[test]
fn a_closed_pod_is_reached_by_those_who_may_at_ports_that_they_may() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let (b, b_ip) = lab.serving_pod("b");
        let (c, c_ip) = lab.serving_pod("c");
        serve(&c, "c", 9000);
        let rules = Policies::open(lab.config.clone()).unwrap();
        assert_eq!(apply(lab, &rules, Vec::new(), &[]), Written::Nothing);
        let (web, other) = (format!("{c_ip}:8080"), format!("{c_ip}:9000"));
        assert!(reaches(&a, &web), "without policies everybody reaches everybody");

        apply(lab, &rules, vec![pod(c_ip, Some(&[]), None)], &[]);
        assert!(!reaches(&a, &web));
        assert!(reaches(&FsStats::here(), &web), "the node probes its pods");
        assert!(reaches(&c, &format!("{a_ip}:8080")), "the other direction is open");
        assert!(reaches(&a, &format!("{b_ip}:8080")), "others are not concerned");

        let only_a = Allowed { peers: Peers::Among("peers-x".into()), ports: tcp(8000, 8100) };
        apply(lab, &rules, vec![pod(c_ip, Some(&[only_a.clone()]), None)], &[("peers-x", &[a_ip])]);
        assert!(reaches(&a, &web) && !reaches(&a, &other) && !reaches(&b, &web));
        let listed = run("nft list table ip amphipod-policy");
        assert!(listed.contains("tcp dport 8000-8100") && listed.contains("ct state established,related"), "{listed}");

        // Members come and go without a new chain.
        let more = vec![pod(c_ip, Some(&[only_a.clone()]), None)];
        assert!(matches!(apply(lab, &rules, more.clone(), &[("peers-x", &[a_ip, b_ip])]), Written::Changes(_)));
        assert!(reaches(&b, &web));
        assert_eq!(apply(lab, &rules, more.clone(), &[("peers-x", &[a_ip, b_ip])]), Written::Nothing);
        run("nft delete table ip amphipod-policy");
        assert_eq!(apply(lab, &rules, more, &[("peers-x", &[a_ip])]), Written::Whole, "what others remove comes back");
        assert!(!reaches(&b, &web));

        let without_b = Peers::Range("10.42.0.0/24".parse().unwrap(), vec![b_ip.into()]);
        apply(lab, &rules, vec![pod(c_ip, Some(&[Allowed { peers: without_b, ports: None }]), None)], &[]);
        assert!(reaches(&a, &web) && reaches(&a, &other) && !reaches(&b, &web));

        apply(lab, &rules, Vec::new(), &[]);
        assert!(reaches(&b, &other));
        assert!(!run("nft list tables").contains("amphipod-policy"));
    });
}

#[test]
fn a_pod_that_may_not_speak_reaches_the_cluster_dns_and_what_is_allowed() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        let (_c, c_ip) = lab.serving_pod("c");
        let gateway = lab.config.gateways()[0];
        serve(&FsStats::here(), "dns", 1053);
        serve(&FsStats::here(), "node", 7000);
        serve(&lab.outside, "outside", 8080);
        let service = |endpoint: IpAddr, last: u8| ServicePort {
            namespace: "default".into(),
            name: format!("s{last}"),
            port: 80,
            cluster_ips: vec![[10, 43, 0, last].into()],
            endpoints: vec![Endpoint { address: endpoint, port: 8080, local: true }],
            ..ServicePort::default()
        };
        let services = vec![service(a_ip, 1), service(b_ip, 2), service(c_ip, 3)];
        lab.dataplane.apply_now(&ServiceTable { services, ..ServiceTable::default() }).unwrap();
        let rules = Policies::open(lab.config.clone()).unwrap();
        let only_b = Allowed { peers: Peers::Among("peers-b".into()), ports: tcp(8080, 8080) };
        apply(lab, &rules, vec![pod(a_ip, None, Some(&[only_b.clone()]))], &[("peers-b", &[b_ip])]);

        assert!(reaches(&a, &format!("{b_ip}:8080")) && reaches(&a, "10.43.0.2:80"), "also through a Service");
        assert!(!reaches(&a, &format!("{c_ip}:8080")) && !reaches(&a, "10.43.0.3:80"));
        assert!(reaches(&a, "10.43.0.1:80"), "itself");
        assert!(!reaches(&a, &format!("{HOST}:7000")), "a port of its node");
        assert!(!reaches(&a, "192.0.2.100:8080"), "the world");
        let resolver = format!("{gateway}:1053");
        assert!(reaches(&a, &resolver));
        let asked = a.inside(move || ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), &resolver).unwrap().0);
        assert_eq!(asked, "dns");
        assert!(reaches(&FsStats::here(), &format!("{a_ip}:8080")), "it may be spoken to");

        // Both ends must agree.
        let closed = vec![pod(a_ip, None, Some(&[only_b])), pod(b_ip, Some(&[]), None)];
        apply(lab, &rules, closed, &[("peers-b", &[b_ip])]);
        assert!(!reaches(&a, &format!("{b_ip}:8080")));
    });
}

#[test]
fn both_families_are_held() {
    machine(|lab| {
        let mut config = lab.config.clone();
        config.pod_cidrs.push("fd42::/64".parse().unwrap());
        let rules = Policies::open(config).unwrap();
        let six = Allowed { peers: Peers::Range("fd42::/64".parse().unwrap(), Vec::new()), ports: tcp(1, 2) };
        let own = IpAddr::from([0xfd42, 0, 0, 0, 0, 0, 0, 2]);
        apply(lab, &rules, vec![pod(own, Some(&[six]), Some(&[]))], &[("peers-x", &[own])]);
        let listed = run("nft list table ip6 amphipod-policy");
        assert!(listed.contains("ip6 saddr fd42::/64 tcp dport 1-2 return"), "{listed}");
        assert!(!run("nft list tables").contains("table ip amphipod-policy"));
    });
}
