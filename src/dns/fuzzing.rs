//! DNS messages of clients and of upstream servers, as bytes, through everything that reads them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use hickory_proto::op::{Message, MessageType};

use super::cache::{Cache, Found, Key};
use super::forward::{UDP_PAYLOAD, fits};
use super::listen::{Server, Step, encode, foreign, respond};
use super::upstream::Upstreams;
use super::{EndpointRecord, Forwarder, Pointer, PortRecord, Records, ServiceRecord, Zone};
use crate::net::Protocol;

/// Every kind of Service in the namespace `default`.
struct Cluster;

impl Records for Cluster {
    fn namespace(&self, namespace: &str) -> bool {
        namespace == "default"
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceRecord>> {
        let port = |name: &str| PortRecord { name: name.into(), protocol: Protocol::Tcp, port: 443 };
        let endpoint = |last: u8| EndpointRecord {
            hostname: (last == 1).then(|| "first".into()),
            address: [10, 42, 0, last].into(),
            ports: vec![port("https"), port("")],
        };
        if namespace != "default" {
            return None;
        }
        Some(Arc::new(match name {
            "a" => ServiceRecord::Cluster { addresses: vec![[10, 43, 0, 1].into()], ports: vec![port("https")] },
            "h" => ServiceRecord::Headless { endpoints: (1..100).map(endpoint).collect() },
            "e" => ServiceRecord::External { name: "a.default.svc.cluster.local".into() },
            "x" => ServiceRecord::External { name: "x.default.svc.cluster.local".into() },
            "w" => ServiceRecord::External { name: "www.example.com".into() },
            _ => return None,
        }))
    }

    fn pointers(&self, address: IpAddr) -> Vec<Pointer> {
        let known = address == IpAddr::from([10, 43, 0, 1]);
        let pointer = Pointer { namespace: "default".into(), service: "a".into(), endpoint: None };
        known.then_some(pointer).into_iter().collect()
    }
}

/// A query over UDP and TCP: the answer can be read, carries the query's number and fits.
pub(crate) fn dns_query(data: &[u8]) {
    let zone = Zone::new("cluster.local", vec![[10, 43, 0, 10].into()]).expect("a domain");
    let server = Server::new(zone, Arc::new(Cluster), Forwarder::new(Upstreams::fixed(Vec::new())));
    for udp in [true, false] {
        let answer = match server.begin(data, udp) {
            None => continue,
            Some((_, Step::Done(answer))) => answer,
            Some((_, Step::Ask(query))) => {
                server.finish(&query, udp).now_or_never().expect("without upstream servers nobody waits")
            }
        };
        assert!(answer.len() <= if udp { usize::from(UDP_PAYLOAD) } else { usize::from(u16::MAX) });
        let read = Message::from_vec(&answer).expect("an answer can be read");
        assert_eq!(read.metadata.message_type, MessageType::Response);
        assert_eq!(Some(&answer[..2]), data.get(..2), "the number of the query");
    }
}

/// An answer of an upstream server: kept, handed out again and passed on, within what a client takes.
pub(crate) fn dns_answer(data: &[u8]) {
    let Ok(message) = Message::from_vec(data) else { return };
    let mut asked = Message::query();
    asked.metadata.id = message.metadata.id;
    let Some(question) = message.queries.first().cloned() else { return };
    asked.add_query(question.clone());
    if !fits(&asked, &message) {
        return;
    }
    let (key, found, mut cache, now) =
        (Key::new(&question, false), Found::of(message), Cache::default(), Instant::now());
    cache.put(key.clone(), &found, now);
    if let Some(kept) = cache.get(&key, now) {
        assert_eq!((kept.answers, kept.authorities), (found.answers.clone(), found.authorities.clone()));
    }
    for udp in [true, false] {
        let answer = encode(respond(&asked, foreign(found.clone())), &asked, udp);
        assert!(answer.len() <= if udp { 512 } else { usize::from(u16::MAX) });
        let read = Message::from_vec(&answer).expect("an answer can be read");
        assert_eq!((read.metadata.id, read.queries.len()), (asked.metadata.id, 1));
    }
}
