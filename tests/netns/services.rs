//! Services through real sockets.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use amphipod::net::nft::{Written, suite};
use amphipod::net::{DnsRedirect, Endpoint, HostPort, Protocol, ServicePort, ServiceTable};

use crate::lab::{FsStats, HOST, Lab, ask, ask_udp, machine, run, serve};

const VIP: &str = "10.43.0.80:80";

fn web(endpoints: &[IpAddr]) -> ServicePort {
    ServicePort {
        namespace: "default".into(),
        name: "web".into(),
        port: 80,
        cluster_ips: vec!["10.43.0.80".parse().unwrap()],
        node_port: Some(30080),
        endpoints: endpoints.iter().map(|a| Endpoint { address: *a, port: 8080, local: true }).collect(),
        ..ServicePort::default()
    }
}

fn apply(lab: &Lab, services: Vec<ServicePort>) -> Written {
    lab.dataplane.apply_now(&ServiceTable { services, ..ServiceTable::default() }).unwrap()
}

/// Who answers in so many tries.
fn spread(to: &str, times: usize) -> BTreeSet<String> {
    (0..times).map(|_| ask(to).unwrap().0).collect()
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn the_kernel_passes_the_suite() {
    machine(|lab| {
        lab.runtime.block_on(suite::run(&lab.dataplane));
        let listed = run("nft list table ip amphipod");
        assert!(listed.contains("chain revision"), "{listed}");
    });
}

#[test]
fn both_families_are_accepted_by_the_kernel() {
    machine(|lab| {
        let mut config = lab.config.clone();
        config.pod_cidrs.push("fd42::/64".parse().unwrap());
        config.service_cidrs.push("fd43::/112".parse().unwrap());
        let dataplane = amphipod::net::nft::NftDataplane::open(config).unwrap();
        let six =
            |last: u16| Endpoint { address: IpAddr::from([0xfd42, 0, 0, 0, 0, 0, 0, last]), port: 8080, local: true };
        for affinity in [None, Some(Duration::from_secs(30))] {
            let mut service = ServicePort { affinity, ..web(&["10.42.0.2".parse().unwrap()]) };
            service.cluster_ips.push("fd43::80".parse().unwrap());
            service.endpoints.extend([six(2), six(3)]);
            dataplane.apply_now(&ServiceTable { services: vec![service], ..ServiceTable::default() }).unwrap();
            // The tool of the distribution must be able to show what we wrote.
            run("nft list table ip amphipod");
            run("nft list table ip6 amphipod");
        }
        let listed = run("nft list table ip6 amphipod");
        assert!(listed.contains("fd43::80 . tcp . 80 : goto service/default/web/tcp/80"), "{listed}");
    });
}

#[test]
fn a_service_spreads_over_its_endpoints_and_keeps_source_addresses() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        let (_c, c_ip) = lab.serving_pod("c");
        apply(lab, vec![web(&[a_ip, b_ip, c_ip])]);

        assert_eq!(spread(VIP, 60), names(&["a", "b", "c"]), "from the host");
        let from_a = a.inside(|| (0..60).map(|_| ask(VIP).unwrap()).collect::<BTreeSet<_>>());
        let seen = |who: &str| from_a.iter().filter(|(w, _)| w == who).map(|(_, saw)| saw.clone()).collect::<Vec<_>>();
        assert_eq!(seen("b"), [a_ip.to_string()], "another pod on the same node sees the client's address");
        assert_eq!(seen("c"), [a_ip.to_string()]);
        assert_eq!(seen("a"), ["10.42.0.1"], "a pod reaches itself, masqueraded");
        assert_eq!(ask(VIP).unwrap().1, "10.42.0.1", "the host's address in the pod range");
    });
}

#[test]
fn node_ports_answer_everywhere() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        apply(lab, vec![web(&[a_ip, b_ip])]);
        let at_host = format!("{HOST}:30080");
        let from_outside =
            lab.outside.inside(|| (0..40).map(|_| ask(&format!("{HOST}:30080")).unwrap()).collect::<BTreeSet<_>>());
        let outside = crate::lab::OUTSIDE.to_string();
        assert_eq!(from_outside, [("a".into(), outside.clone()), ("b".into(), outside)].into(), "source is kept");
        assert_eq!(spread(&at_host, 40), names(&["a", "b"]), "from the host by its own address");
        assert_eq!(spread("127.0.0.1:30080", 40), names(&["a", "b"]), "by 127.0.0.1");
        assert_eq!(a.inside(move || spread(&at_host, 40)), names(&["a", "b"]), "from a pod, also back to itself");
    });
}

#[test]
fn loopback_ports_of_the_host_stay_closed_to_others() {
    machine(|lab| {
        let (a, _) = lab.serving_pod("a");
        apply(lab, Vec::new());
        let secret = std::net::TcpListener::bind("127.0.0.1:9999").unwrap();
        secret.set_nonblocking(true).unwrap();
        // A pod that routes 127.0.0.0/8 out of its link needs privileges, but must not get anywhere either.
        let error = a.inside(|| {
            run("sysctl -qw net.ipv4.conf.eth0.route_localnet=1");
            run("ip addr del 127.0.0.1/8 dev lo");
            run("ip route add 127.0.0.1/32 via 10.42.0.1 src 10.42.0.2");
            std::net::TcpStream::connect_timeout(&"127.0.0.1:9999".parse().unwrap(), Duration::from_millis(800))
        });
        assert!(error.is_err());
        assert!(secret.accept().is_err());
    });
}

#[test]
fn without_endpoints_a_service_refuses_at_once() {
    machine(|lab| {
        let (a, _) = lab.serving_pod("a");
        let udp = ServicePort { protocol: Protocol::Udp, ..web(&[]) };
        apply(lab, vec![web(&[]), udp]);
        let refused = |result: std::io::Result<(String, String)>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
        };
        refused(ask(VIP));
        refused(a.inside(|| ask(VIP)));
        refused(lab.outside.inside(|| ask(&format!("{HOST}:30080"))));
        refused(a.inside(|| ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), VIP)));
        refused(a.inside(|| ask("10.43.9.9:80")));
        refused(ask("10.43.9.9:80"));
        refused(ask("10.43.0.80:81"));
    });
}

#[test]
fn affinity_keeps_a_client_at_its_endpoint_while_that_exists() {
    machine(|lab| {
        let pods: Vec<(FsStats, IpAddr)> = ["a", "b", "c", "d"].iter().map(|id| lab.serving_pod(id)).collect();
        let all: Vec<IpAddr> = pods.iter().map(|(_, address)| *address).collect();
        let sticky = |endpoints: &[IpAddr], seconds| {
            let affinity = Some(Duration::from_secs(seconds));
            vec![ServicePort { affinity, ..web(endpoints) }]
        };
        apply(lab, sticky(&all, 600));
        let first = spread(VIP, 20);
        assert_eq!(first.len(), 1, "{first:?}");
        let chosen = ["a", "b", "c", "d"].iter().position(|n| first.contains(*n)).unwrap();
        assert_eq!(spread("127.0.0.1:30080", 5).len(), 1);

        // Another endpoint goes: the client stays.
        let other: Vec<IpAddr> =
            all.iter().enumerate().filter(|(i, _)| *i != (chosen + 1) % 4).map(|(_, a)| *a).collect();
        apply(lab, sticky(&other, 600));
        assert_eq!(spread(VIP, 10), first);
        // Its own goes: it moves once and stays there.
        let rest: Vec<IpAddr> = other.into_iter().filter(|a| *a != all[chosen]).collect();
        apply(lab, sticky(&rest, 600));
        let second = spread(VIP, 20);
        assert!(second.len() == 1 && second != first, "{second:?}");

        // A short timeout: used often enough it lasts, unused it is forgotten.
        apply(lab, sticky(&all, 1));
        let mut met = BTreeSet::new();
        for _ in 0..12 {
            met.extend(spread(VIP, 3));
            std::thread::sleep(Duration::from_millis(1200));
            if met.len() > 1 {
                return;
            }
        }
        panic!("never forgotten: {met:?}");
    });
}

#[test]
fn host_ports() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let (b, b_ip) = lab.serving_pod("b");
        let port = |host_ip: &str, host_port, pod_address| HostPort {
            host_ip: host_ip.parse().unwrap(),
            host_port,
            protocol: Protocol::Tcp,
            pod_address,
            pod_port: 8080,
        };
        let host_ports = vec![port("0.0.0.0", 8000, a_ip), port(HOST, 8001, b_ip), port("127.0.0.1", 8002, b_ip)];
        lab.dataplane.apply_now(&ServiceTable { host_ports, ..ServiceTable::default() }).unwrap();
        let everyone = format!("{HOST}:8000");
        assert_eq!(ask(&everyone).unwrap().0, "a", "from the host itself");
        assert_eq!(ask("127.0.0.1:8000").unwrap().0, "a");
        let (for_a, for_b, for_out) = (everyone.clone(), everyone.clone(), everyone);
        assert_eq!(a.inside(move || ask(&for_a)).unwrap().0, "a", "from the pod itself");
        assert_eq!(b.inside(move || ask(&for_b)).unwrap(), ("a".into(), b_ip.to_string()));
        assert_eq!(lab.outside.inside(move || ask(&for_out)).unwrap(), ("a".into(), crate::lab::OUTSIDE.into()));
        assert_eq!(ask(&format!("{HOST}:8001")).unwrap().0, "b");
        assert!(ask("127.0.0.1:8001").is_err(), "only on the address it names");
        assert_eq!(ask("127.0.0.1:8002").unwrap().0, "b");
        assert!(lab.outside.inside(|| ask(&format!("{HOST}:8002"))).is_err());
    });
}

#[test]
fn local_policies() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let far = Endpoint { address: "10.42.7.7".parse().unwrap(), port: 8080, local: false };
        let mut local = web(&[a_ip]);
        local.endpoints.push(far);
        local.internal_local_only = true;
        local.external_local_only = true;
        apply(lab, vec![local.clone()]);
        assert_eq!(spread(VIP, 20), names(&["a"]), "only the endpoint on this node");
        assert_eq!(lab.outside.inside(|| spread(&format!("{HOST}:30080"), 20)), names(&["a"]));
        local.endpoints = vec![far];
        apply(lab, vec![local]);
        let error = a.inside(|| ask(VIP)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "dropped: {error}");
    });
}

#[test]
fn udp_flows_leave_a_backend_that_is_gone() {
    machine(|lab| {
        let (a, _) = lab.serving_pod("a");
        let (_b, b_ip) = lab.serving_pod("b");
        let (_c, c_ip) = lab.serving_pod("c");
        let udp = |address| ServicePort { protocol: Protocol::Udp, ..web(&[address]) };
        apply(lab, vec![udp(b_ip)]);
        let socket = a.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        assert_eq!(ask_udp(&socket, VIP).unwrap().0, "b");
        apply(lab, vec![udp(c_ip)]);
        assert_eq!(ask_udp(&socket, VIP).unwrap().0, "c", "the same socket, so the same flow");
    });
}

#[test]
fn cluster_dns_goes_to_this_nodes_listener() {
    machine(|lab| {
        let (a, a_ip) = lab.serving_pod("a");
        let host = FsStats::open(std::path::Path::new("/proc/thread-self/ns/net"));
        serve(&host, "dns", 1053);
        let dns = Some(DnsRedirect {
            cluster_ips: vec!["10.43.0.10".parse().unwrap()],
            listeners: vec!["10.42.0.1:1053".parse().unwrap()],
        });
        lab.dataplane.apply_now(&ServiceTable { dns, ..ServiceTable::default() }).unwrap();
        let vip = "10.43.0.10:53";
        assert_eq!(a.inside(move || ask(vip)).unwrap(), ("dns".into(), a_ip.to_string()));
        let udp = move || ask_udp(&UdpSocket::bind("0.0.0.0:0").unwrap(), vip);
        assert_eq!(a.inside(udp).unwrap().0, "dns");
        assert_eq!(udp().unwrap().0, "dns");
        assert_eq!(ask(vip).unwrap().0, "dns");
    });
}

#[test]
fn nothing_is_written_when_nothing_changed() {
    machine(|lab| {
        let address = |last: u8| IpAddr::from([10, 42, 0, last]);
        assert_eq!(apply(lab, vec![web(&[address(2)])]), Written::Whole);
        assert_eq!(apply(lab, vec![web(&[address(2)])]), Written::Nothing);
        assert!(matches!(apply(lab, vec![web(&[address(3)])]), Written::Changes(n) if n < 6));
        // A restarted process finds its rules.
        let again = amphipod::net::nft::NftDataplane::open(lab.config.clone()).unwrap();
        let table = ServiceTable { services: vec![web(&[address(3)])], ..ServiceTable::default() };
        assert_eq!(again.apply_now(&table).unwrap(), Written::Nothing);
        // Somebody flushes all rules of the machine.
        run("nft flush ruleset");
        assert_eq!(again.apply_now(&table).unwrap(), Written::Whole);
        assert!(run("nft list table ip amphipod").contains("10.43.0.80"));
    });
}
