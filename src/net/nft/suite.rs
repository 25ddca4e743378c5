//! What every [`Dataplane`] must take, run over the fake in unit tests and over the kernel in `tests/netns`.
//!
//! Invariant: whatever was applied before, a valid table is accepted, also twice, and the empty one ends it.

use std::time::Duration;

use super::table::{DnsRedirect, Endpoint, HostPort, Protocol, ServicePort, ServiceTable};
use crate::net::Dataplane;

/// Tables that between them use everything the data plane knows, for IPv4.
pub fn tables() -> Vec<ServiceTable> {
    let ip = |text: &str| text.parse().expect("an address");
    let endpoint = |last: u8, local| Endpoint { address: ip(&format!("10.42.0.{last}")), port: 8080, local };
    let plain = ServicePort {
        namespace: "default".into(),
        name: "web".into(),
        port: 80,
        cluster_ips: vec![ip("10.43.0.80")],
        endpoints: vec![endpoint(2, true), endpoint(3, true), endpoint(200, false)],
        ..ServicePort::default()
    };
    let sticky = ServicePort { affinity: Some(Duration::from_secs(60)), node_port: Some(30080), ..plain.clone() };
    let slower = ServicePort { affinity: Some(Duration::from_secs(90)), ..sticky.clone() };
    let local = ServicePort { internal_local_only: true, external_local_only: true, ..sticky.clone() };
    let nowhere = ServicePort {
        external_local_only: true,
        load_balancer_ips: vec![ip("192.0.2.1")],
        endpoints: vec![endpoint(200, false)],
        ..plain.clone()
    };
    let empty = ServicePort { endpoints: Vec::new(), node_port: Some(30080), ..plain.clone() };
    let udp = ServicePort {
        protocol: Protocol::Udp,
        name: "udp".into(),
        external_ips: vec![ip("192.0.2.9")],
        ..plain.clone()
    };
    let sctp = ServicePort { protocol: Protocol::Sctp, name: "sctp".into(), ..plain.clone() };
    let host_port = |host: &str, protocol| HostPort {
        host_ip: ip(host),
        host_port: 9090,
        protocol,
        pod_address: ip("10.42.0.2"),
        pod_port: 80,
    };
    let dns = DnsRedirect { cluster_ips: vec![ip("10.43.0.10")], listeners: vec![(ip("10.42.0.1"), 1053).into()] };
    let only = |services: Vec<ServicePort>| ServiceTable { services, ..ServiceTable::default() };
    vec![
        only(vec![plain.clone()]),
        only(vec![sticky]),
        only(vec![slower]),
        only(vec![local]),
        only(vec![nowhere]),
        only(vec![empty]),
        ServiceTable {
            services: vec![plain, udp, sctp],
            host_ports: vec![host_port("0.0.0.0", Protocol::Tcp), host_port("127.0.0.1", Protocol::Udp)],
            dns: Some(dns),
            ranges: vec![
                "10.196.0.0/24".parse().expect("written here"),
                "fd00:196::/112".parse().expect("written here"),
            ],
        },
        ServiceTable::default(),
    ]
}

/// Panics if a table is refused. Goes from every table to every other one.
pub async fn run(dataplane: &dyn Dataplane) {
    let tables = tables();
    for from in &tables {
        for to in &tables {
            for table in [from, to, to] {
                dataplane.apply(table).await.unwrap_or_else(|e| panic!("{e:?} on {table:?}"));
            }
        }
    }
    dataplane.apply(&ServiceTable::default()).await.expect("the empty table");
}
