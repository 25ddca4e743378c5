//! Answers of netfilter, as bytes, through every reader of this room.

use super::conntrack::{Flow, stale};
use super::decode_stamp;
use super::table::{Endpoint, Protocol, ServicePort, ServiceTable};
use crate::net::netlink::fuzzing::answers;
use crate::net::netlink::{Answer, Buffer};

/// Rules, as they are listed to find the stamp of ours.
pub(crate) fn rule_answer(data: &[u8]) {
    let bare = Answer { body: data.to_vec() };
    for answer in answers(data).iter().chain([&bare]) {
        let _ = decode_stamp(answer, "amphipod");
    }
}

/// Flows: one that was read is named to the kernel with what came of it, and no more.
pub(crate) fn flow_answer(data: &[u8]) {
    let endpoint = Endpoint { address: [10, 42, 0, 2].into(), port: 53, local: true };
    let service = ServicePort {
        protocol: Protocol::Udp,
        port: 53,
        cluster_ips: vec![[10, 43, 0, 10].into()],
        endpoints: vec![endpoint],
        ..ServicePort::default()
    };
    let table = ServiceTable { services: vec![service], ..ServiceTable::default() };
    let gone = stale(Some(&table), &ServiceTable::default());
    let bare = Answer { body: data.to_vec() };
    for answer in answers(data).iter().chain([&bare]) {
        let Some(flow) = Flow::decode(answer) else { continue };
        let mut buffer = Buffer::default();
        flow.write(&mut buffer);
        // Without the reply's direction it is no whole flow, but everything that is there was there before.
        assert!(buffer.bytes().len() <= answer.body.len() + 16, "a flow grew");
        let _ = flow.matches(&gone);
    }
}
