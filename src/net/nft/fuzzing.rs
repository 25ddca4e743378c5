//! Answers of netfilter, as bytes, through every reader of this room.

use netlink_packet_core::NetlinkSerializable;
use netlink_packet_netfilter::NetfilterMessage;

use super::buffer::Message;
use super::conntrack::{Flow, stale_flows};
use super::encode;
use super::table::{Endpoint, Protocol, ServicePort, ServiceTable};
use crate::net::netlink::fuzzing::{answers, bare};

/// Rules, as they are listed to find the stamp of ours, and elements of sets.
pub(crate) fn rule_answer(data: &[u8]) {
    for answer in answers::<Message>(data).into_iter().chain(bare(data, 0)) {
        assert!(answer.body.len() <= data.len());
        let _ = encode::read_fingerprint(&answer, "amphipod");
        assert!(encode::read_addresses(&answer).len() * 4 <= data.len());
    }
}

/// Flows: one that was read is named to the kernel with what came of it, and no more.
pub(crate) fn flow_answer(data: &[u8]) {
    const NEW_FLOW: u16 = 1 << 8;
    let endpoint = Endpoint { address: [10, 42, 0, 2].into(), port: 53, local: true };
    let service = ServicePort {
        protocol: Protocol::Udp,
        port: 53,
        cluster_ips: vec![[10, 43, 0, 10].into()],
        endpoints: vec![endpoint],
        ..ServicePort::default()
    };
    let table = ServiceTable { services: vec![service], ..ServiceTable::default() };
    let gone = stale_flows(Some(&table), &ServiceTable::default());
    for answer in answers::<NetfilterMessage>(data).into_iter().chain(bare(data, NEW_FLOW)) {
        let Some(flow) = Flow::decode(answer) else { continue };
        let _ = flow.matches(&gone);
        let message = flow.deletion();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        // Everything that is there was there before; what was not padded is now.
        assert!(bytes.len() <= 2 * data.len(), "a flow grew");
    }
}
