//! The specification, sentence by sentence.

use std::sync::Arc;

use super::*;
use crate::net::Protocol;

/// A small cluster.
pub(crate) struct Cluster;

fn port(name: &str, protocol: Protocol, port: u16) -> PortRecord {
    PortRecord { name: name.into(), protocol, port }
}

fn endpoint(hostname: Option<&str>, address: &str) -> EndpointRecord {
    let ports = vec![port("https", Protocol::Tcp, 8443), port("", Protocol::Tcp, 9)];
    EndpointRecord { hostname: hostname.map(Into::into), address: address.parse().unwrap(), ports }
}

/// The answer to a query for a Service of so many endpoints, and the processor time that it took.
fn timed(endpoints: u32, kind: RecordType) -> (Answer, std::time::Duration) {
    struct Many(Arc<ServiceRecord>);
    impl Records for Many {
        fn namespace(&self, _: &str) -> bool {
            true
        }
        fn service(&self, _: &str, _: &str) -> Option<Arc<ServiceRecord>> {
            Some(Arc::clone(&self.0))
        }
        fn pointers(&self, _: IpAddr) -> Vec<Pointer> {
            Vec::new()
        }
    }
    let ports = vec![port("https", Protocol::Tcp, 8443)];
    let endpoint = |i: u32| EndpointRecord {
        hostname: None,
        address: Ipv4Addr::from(0x0a2a_0000 + i).into(),
        ports: ports.clone(),
    };
    let records = Many(Arc::new(ServiceRecord::Headless { endpoints: (0..endpoints).map(endpoint).collect() }));
    let query = Query::query(Name::from_ascii("many.default.svc.cluster.local.").unwrap(), kind);
    let clock = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let (zone, began) = (zone(), clock());
    let answer = answer(&zone, &query, &records).unwrap();
    (answer, clock() - began)
}

#[test]
fn eight_times_as_many_endpoints_take_no_square_of_the_time() {
    for kind in [RecordType::A, RecordType::SRV] {
        let least = |n| (0..3).map(|_| timed(n, kind).1).min().unwrap();
        let (few, many) = (least(500), least(4_000));
        assert!(many < 24 * few, "{kind}: {few:?} for 500 endpoints, {many:?} for 4000");
        assert_eq!(timed(4_000, kind).0.answers.len(), 4_000);
    }
}

impl Records for Cluster {
    fn namespace(&self, namespace: &str) -> bool {
        namespace == "default"
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>> {
        if namespace != "default" {
            return None;
        }
        Some(Arc::new(match name {
            "kubernetes" => ServiceRecord::Cluster {
                addresses: vec!["10.43.0.1".parse().unwrap()],
                ports: vec![port("https", Protocol::Tcp, 443), port("", Protocol::Tcp, 80)],
            },
            "dual" => ServiceRecord::Cluster {
                addresses: vec!["10.43.0.2".parse().unwrap(), "fd43::2".parse().unwrap()],
                ports: Vec::new(),
            },
            "pets" => ServiceRecord::Headless {
                endpoints: vec![
                    endpoint(Some("my-pet"), "10.42.0.5"),
                    endpoint(None, "10.42.0.6"),
                    endpoint(None, "fd42::6"),
                ],
            },
            "lonely" => ServiceRecord::Headless { endpoints: Vec::new() },
            "away" => ServiceRecord::External { name: "www.example.com".into() },
            "many" => ServiceRecord::Headless {
                endpoints: (0..200).map(|i| endpoint(None, &format!("10.42.9.{i}"))).collect(),
            },
            _ => return None,
        }))
    }

    fn pointers(&self, address: IpAddr) -> Vec<Pointer> {
        let pointer = |service: &str, endpoint: Option<&str>| Pointer {
            namespace: "default".into(),
            service: service.into(),
            endpoint: endpoint.map(Into::into),
        };
        match address.to_string().as_str() {
            "10.43.0.1" => vec![pointer("kubernetes", None)],
            "fd43::2" => vec![pointer("dual", None)],
            "10.42.0.5" => vec![pointer("pets", Some("my-pet"))],
            _ => Vec::new(),
        }
    }
}

pub(crate) fn zone() -> Zone {
    Zone::new("cluster.local", vec!["10.43.0.10".parse().unwrap()]).unwrap()
}

fn ask(name: &str, kind: RecordType) -> Option<Answer> {
    answer(&zone(), &Query::query(Name::from_ascii(name).unwrap(), kind), &Cluster)
}

/// Records as `owner ttl type value`.
fn text(records: &[Record]) -> Vec<String> {
    records.iter().map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data)).collect()
}

fn answers(name: &str, kind: RecordType) -> Vec<String> {
    let answer = ask(name, kind).unwrap();
    assert_eq!(answer.code, ResponseCode::NoError);
    text(&answer.answers)
}

const SOA: &str = "cluster.local. 5 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5";

#[track_caller]
fn assert_negative(name: &str, kind: RecordType, code: ResponseCode) {
    let answer = ask(name, kind).unwrap();
    assert_eq!((answer.code, answer.answers.len()), (code, 0), "{name}");
    assert_eq!(text(&answer.authorities), [SOA], "{name}");
}

#[test]
fn schema_version() {
    assert_eq!(answers("dns-version.cluster.local.", RecordType::TXT), ["dns-version.cluster.local. 5 TXT 1.1.0"]);
}

#[test]
fn cluster_address() {
    let name = "kubernetes.default.svc.cluster.local.";
    assert_eq!(answers(name, RecordType::A), [format!("{name} 5 A 10.43.0.1")]);
    assert_negative(name, RecordType::AAAA, ResponseCode::NoError);
    assert_negative(name, RecordType::MX, ResponseCode::NoError);
    assert_eq!(
        answers("dual.default.svc.cluster.local.", RecordType::AAAA),
        ["dual.default.svc.cluster.local. 5 AAAA fd43::2"]
    );
}

#[test]
fn names_are_compared_without_case_and_echoed_as_asked() {
    let name = "KuberNetes.DEFAULT.svc.Cluster.LOCAL.";
    assert_eq!(answers(name, RecordType::A), [format!("{name} 5 A 10.43.0.1")]);
}

#[test]
fn ports_of_a_service() {
    let answer = ask("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV).unwrap();
    let srv = "_https._tcp.kubernetes.default.svc.cluster.local. 5 SRV 0 1 443 kubernetes.default.svc.cluster.local.";
    assert_eq!(text(&answer.answers), [srv]);
    assert_eq!(text(&answer.additionals), ["kubernetes.default.svc.cluster.local. 5 A 10.43.0.1"]);
    assert_negative("_https._udp.kubernetes.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain);
    assert_negative("_http._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain);
    assert_negative("__tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain);
    assert_negative("_tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NoError);
    assert_negative("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::A, ResponseCode::NoError);
}

#[test]
fn headless() {
    let name = "pets.default.svc.cluster.local.";
    assert_eq!(answers(name, RecordType::A), [format!("{name} 5 A 10.42.0.5"), format!("{name} 5 A 10.42.0.6")]);
    assert_eq!(answers(name, RecordType::AAAA), [format!("{name} 5 AAAA fd42::6")]);
    let pet = "my-pet.pets.default.svc.cluster.local.";
    assert_eq!(answers(pet, RecordType::A), [format!("{pet} 5 A 10.42.0.5")]);
    assert_negative(pet, RecordType::AAAA, ResponseCode::NoError);
    let numbered = "10-42-0-6.pets.default.svc.cluster.local.";
    assert_eq!(answers(numbered, RecordType::A), [format!("{numbered} 5 A 10.42.0.6")]);
    let port = ask("_https._tcp.pets.default.svc.cluster.local.", RecordType::SRV).unwrap();
    let targets: Vec<String> = port.answers.iter().map(|r| r.data.to_string()).collect();
    let expected = ["my-pet", "10-42-0-6", "fd42--6"].map(|h| format!("0 1 8443 {h}.pets.default.svc.cluster.local."));
    assert_eq!(targets, expected);
    assert_eq!(port.additionals.len(), 3);
    assert_negative("other.pets.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain);
    assert_negative("lonely.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain);
}

#[test]
fn pointers() {
    let name = "1.0.43.10.in-addr.arpa.";
    assert_eq!(answers(name, RecordType::PTR), [format!("{name} 5 PTR kubernetes.default.svc.cluster.local.")]);
    let name = "5.0.42.10.in-addr.arpa.";
    assert_eq!(answers(name, RecordType::PTR), [format!("{name} 5 PTR my-pet.pets.default.svc.cluster.local.")]);
    let six = format!("2.{}3.4.d.f.ip6.arpa.", "0.".repeat(27));
    assert_eq!(answers(&six, RecordType::PTR), [format!("{six} 5 PTR dual.default.svc.cluster.local.")]);
    assert!(ask("9.9.9.9.in-addr.arpa.", RecordType::PTR).is_none(), "the world may know it");
}

#[test]
fn external_names() {
    let name = "away.default.svc.cluster.local.";
    let answer = ask(name, RecordType::A).unwrap();
    assert_eq!(text(&answer.answers), [format!("{name} 5 CNAME www.example.com.")]);
    assert_eq!(answer.chase, Some(Name::from_ascii("www.example.com.").unwrap()));
    assert_eq!(ask(name, RecordType::CNAME).unwrap().chase, None);
}

#[test]
fn pods() {
    let name = "10-42-0-7.default.pod.cluster.local.";
    assert_eq!(answers(name, RecordType::A), [format!("{name} 5 A 10.42.0.7")]);
    assert_negative(name, RecordType::AAAA, ResponseCode::NoError);
    let six = "fd42--7.default.pod.cluster.local.";
    assert_eq!(answers(six, RecordType::AAAA), [format!("{six} 5 AAAA fd42::7")]);
    assert_negative("10-42-0-7.nowhere.pod.cluster.local.", RecordType::A, ResponseCode::NXDomain);
    assert_negative("web.default.pod.cluster.local.", RecordType::A, ResponseCode::NXDomain);
}

#[test]
fn names_in_between_exist_and_others_do_not() {
    for name in ["cluster.local.", "svc.cluster.local.", "pod.cluster.local.", "default.svc.cluster.local."] {
        assert_negative(name, RecordType::A, ResponseCode::NoError);
    }
    for name in
        ["x.cluster.local.", "nowhere.svc.cluster.local.", "x.default.svc.cluster.local.", "a.b.c.d.cluster.local."]
    {
        assert_negative(name, RecordType::A, ResponseCode::NXDomain);
    }
    assert_eq!(answers("cluster.local.", RecordType::SOA), [SOA]);
    assert_eq!(answers("cluster.local.", RecordType::NS), ["cluster.local. 5 NS ns.dns.cluster.local."]);
    assert_eq!(answers("ns.dns.cluster.local.", RecordType::A), ["ns.dns.cluster.local. 5 A 10.43.0.10"]);
    for name in ["example.com.", "local.", "notcluster.local.", "."] {
        assert!(ask(name, RecordType::A).is_none(), "{name}");
    }
}
