//! Figures for `docs/promises.md`; printed with `--nocapture`, never asserted: machines differ.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use amphipod::net::nft::Written;
use amphipod::net::{Endpoint, PodNetwork, ServicePort, ServiceTable};

use crate::lab::machine;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn attach_and_detach() {
    machine(|lab| {
        let time = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            start.elapsed()
        };
        let attach = (0..50).map(|i| time(&|| drop(lab.attach(&format!("p{i}"))))).collect();
        let again = (0..50).map(|i| time(&|| drop(lab.attach(&format!("p{i}"))))).collect();
        let detach =
            (0..50).map(|i| time(&|| lab.runtime.block_on(lab.network.detach(&format!("p{i}"))).unwrap())).collect();
        println!(
            "median of 50: attach {:?}, attach again {:?}, detach {:?}",
            median(attach),
            median(again),
            median(detach)
        );
    });
}

#[test]
fn a_thousand_services() {
    machine(|lab| {
        let address = |a: usize, b: usize, c: usize| IpAddr::from([10, a as u8, b as u8, c as u8]);
        let service = |i: usize| ServicePort {
            namespace: "default".into(),
            name: format!("service-{i}"),
            port: 80,
            cluster_ips: vec![address(43, 1 + i / 250, i % 250)],
            endpoints: (0..10)
                .map(|e| Endpoint { address: address(42, 1 + i / 25, i % 25 * 10 + e), port: 8080, local: false })
                .collect(),
            ..ServicePort::default()
        };
        let mut table = ServiceTable { services: (0..1000).map(service).collect(), ..ServiceTable::default() };
        let start = Instant::now();
        assert_eq!(lab.dataplane.apply_now(&table).unwrap(), Written::Whole);
        let whole = start.elapsed();
        let mut changes = Vec::new();
        for i in 0..20 {
            table.services[i * 40].endpoints.pop();
            let start = Instant::now();
            let written = lab.dataplane.apply_now(&table).unwrap();
            changes.push(start.elapsed());
            assert_eq!(written, Written::Changes(2));
        }
        let start = Instant::now();
        assert_eq!(lab.dataplane.apply_now(&table).unwrap(), Written::Nothing);
        let same = start.elapsed();
        println!(
            "1000 services x 10: whole {whole:?}, one changed {:?} (median of 20), no change {same:?}",
            median(changes)
        );
    });
}

fn resident_kb() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4
}

#[test]
fn dns() {
    machine(|_| {
        let world = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstream = world.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, peer)) = world.recv_from(&mut buffer) {
                // The question with one address appended; the additional section is cut off.
                let end = 12 + buffer[12..length].iter().position(|b| *b == 0).unwrap() + 5;
                let mut answer = buffer[..end].to_vec();
                answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 0, 0, 4, 192, 0, 2, 1]);
                world.send_to(&answer, peer).unwrap();
            }
        });
        let before = resident_kb();
        let (_stop, address) = crate::dns::serve("127.0.0.1:0", vec![upstream]);
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.connect(address).unwrap();
        let ask = |name: &str| {
            let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                query.push(label.len() as u8);
                query.extend(label.as_bytes());
            }
            query.extend([0, 0, 1, 0, 1]);
            let start = Instant::now();
            socket.send(&query).unwrap();
            let mut answer = [0; 1500];
            socket.recv(&mut answer).unwrap();
            assert_eq!((answer[3] & 15, answer[7]), (0, 1), "{name}");
            start.elapsed()
        };
        let zone = (0..1000).map(|_| ask("web.default.svc.cluster.local")).collect();
        let idle = resident_kb();
        let world = (0..2048).map(|i| ask(&format!("host-{i}.example.com"))).collect();
        let full = resident_kb();
        println!(
            "dns: zone {:?}, world {:?}; resident +{} kB serving, +{} kB with a full cache (2,048 names)",
            median(zone),
            median(world),
            idle.saturating_sub(before),
            full.saturating_sub(before)
        );
    });
}
