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
