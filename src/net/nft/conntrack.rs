//! Forgets tracked UDP and SCTP flows whose translation is out of date.
//!
//! TCP ends by itself when a backend goes; a UDP client that keeps sending keeps its flow alive, and the kernel goes on
//! translating it to the old backend for ever. So flows to removed backends go, and flows that bypassed a Service
//! because they began before it was there.
//!
//! Invariant: flows of Services that did not change are never touched.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::Nla;
use netlink_packet_netfilter::conntrack::{self, ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Tuple};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::table::{Protocol, ServiceTable};
use crate::net::netlink::Socket;

const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Where clients send to: `None` is any local address.
type Frontend = (Option<IpAddr>, Protocol, u16);
type Backend = (IpAddr, u16);

/// What must be forgotten.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StaleFlows {
    /// Flows to this frontend that were translated to this backend.
    left_backends: BTreeSet<(Frontend, Backend)>,
    /// Flows to this frontend that were not translated.
    untranslated: BTreeSet<Frontend>,
}

/// Compares two tables; without an old one (first apply after a start) every frontend counts as changed.
pub(super) fn stale_flows(old: Option<&ServiceTable>, new: &ServiceTable) -> StaleFlows {
    let (before, after) = (old.map(pairs).unwrap_or_default(), pairs(new));
    let frontends =
        |pairs: &BTreeSet<(Frontend, Backend)>| pairs.iter().map(|(frontend, _)| *frontend).collect::<BTreeSet<_>>();
    let untranslated = frontends(&after).difference(&frontends(&before)).copied().collect();
    StaleFlows { left_backends: before.difference(&after).copied().collect(), untranslated }
}

fn pairs(table: &ServiceTable) -> BTreeSet<(Frontend, Backend)> {
    let mut pairs = BTreeSet::new();
    for service in table.services.iter().filter(|s| s.protocol != Protocol::Tcp) {
        let addresses = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
        let mut frontends: Vec<Frontend> = addresses.map(|a| (Some(*a), service.protocol, service.port)).collect();
        frontends.extend(service.node_port.map(|port| (None, service.protocol, port)));
        for endpoint in &service.endpoints {
            pairs.extend(frontends.iter().map(|frontend| (*frontend, (endpoint.address, endpoint.port))));
        }
    }
    for port in table.host_ports.iter().filter(|p| p.protocol != Protocol::Tcp) {
        let address = (!port.host_ip.is_unspecified()).then_some(port.host_ip);
        pairs.insert(((address, port.protocol, port.host_port), (port.pod_address, port.pod_port)));
    }
    pairs
}

/// Deletes matching flows. Without anything to forget the kernel is not asked.
pub(super) fn delete_flows(socket: &mut Socket, stale: &StaleFlows) -> io::Result<()> {
    if stale.left_backends.is_empty() && stale.untranslated.is_empty() {
        return Ok(());
    }
    let mut found = Vec::new();
    socket.dump(all_flows(), |message| found.extend(Flow::decode(message).filter(|flow| flow.matches(stale))))?;
    found.into_iter().try_for_each(|flow| match socket.request(flow.deletion()) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    })
}

fn all_flows() -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), ConntrackMessage::Get(Vec::new()))
}

/// A tracked flow of a protocol whose flows do not end by themselves.
pub(super) struct Flow {
    family: NetfilterProtoFamily,
    protocol: Protocol,
    original_destination: Backend,
    reply_source: Backend,
    /// What names it to the kernel: one direction, its number, its zone.
    name: Vec<ConntrackAttribute>,
}

/// One direction of a flow.
struct Direction {
    source: Backend,
    destination: Backend,
    protocol: conntrack::Protocol,
}

// === impl Direction ===

impl Direction {
    fn decode(tuple: &[Tuple]) -> Option<Self> {
        let (mut from, mut to, mut from_port, mut to_port, mut protocol) = (None, None, None, None, None);
        for part in tuple {
            match part {
                Tuple::Ip(addresses) => addresses.iter().for_each(|address| match address {
                    IPTuple::SourceAddress(address) => from = Some(*address),
                    IPTuple::DestinationAddress(address) => to = Some(*address),
                    _ => {}
                }),
                Tuple::Proto(ports) => ports.iter().for_each(|port| match port {
                    ProtoTuple::SourcePort(port) => from_port = Some(*port),
                    ProtoTuple::DestinationPort(port) => to_port = Some(*port),
                    ProtoTuple::Protocol(number) => protocol = Some(*number),
                    _ => {}
                }),
                _ => {}
            }
        }
        Some(Self { source: (from?, from_port?), destination: (to?, to_port?), protocol: protocol? })
    }
}

// === impl Flow ===

impl Flow {
    pub(super) fn decode(message: NetfilterMessage) -> Option<Self> {
        let family = message.header.family;
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else { return None };
        let (mut original, mut reply) = (None, None);
        for attribute in &attributes {
            match attribute {
                ConntrackAttribute::CtaTupleOrig(tuple) => original = Direction::decode(tuple),
                ConntrackAttribute::CtaTupleReply(tuple) => reply = Direction::decode(tuple),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        let protocol = match original.protocol {
            conntrack::Protocol::Udp => Protocol::Udp,
            conntrack::Protocol::Sctp => Protocol::Sctp,
            _ => return None,
        };
        let names = |attribute: &ConntrackAttribute| match attribute {
            ConntrackAttribute::CtaTupleOrig(_) => true,
            ConntrackAttribute::Other(other) => [CTA_ID, CTA_ZONE].contains(&other.kind()),
            _ => false,
        };
        let name = attributes.into_iter().filter(names).collect();
        Some(Self { family, protocol, original_destination: original.destination, reply_source: reply.source, name })
    }

    pub(super) fn matches(&self, stale: &StaleFlows) -> bool {
        let (address, port) = self.original_destination;
        [Some(address), None].into_iter().any(|address| {
            let frontend = (address, self.protocol, port);
            if self.reply_source == self.original_destination {
                return stale.untranslated.contains(&frontend);
            }
            stale.left_backends.contains(&(frontend, self.reply_source))
        })
    }

    pub(super) fn deletion(self) -> NetfilterMessage {
        NetfilterMessage::new(NetfilterHeader::new(self.family, 0, 0), ConntrackMessage::Delete(self.name))
    }
}

/// Whether flows can be listed.
pub(crate) fn probe() -> io::Result<()> {
    Socket::netfilter()?.dump(all_flows(), |_| {})
}

#[cfg(test)]
mod tests {
    use super::super::table::{Endpoint, ServicePort};
    use super::*;

    fn dns(endpoints: &[&str]) -> ServiceTable {
        let endpoint = |a: &&str| Endpoint { address: a.parse().unwrap(), port: 53, local: true };
        let service = ServicePort {
            protocol: Protocol::Udp,
            port: 53,
            cluster_ips: vec!["10.43.0.9".parse().unwrap()],
            node_port: Some(30053),
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..ServicePort::default()
        };
        ServiceTable { services: vec![service], ..ServiceTable::default() }
    }

    #[test]
    fn only_what_changed_is_forgotten() {
        let old = dns(&["10.42.0.2", "10.42.0.3"]);
        assert_eq!(stale_flows(Some(&old), &old), StaleFlows::default());
        let less = stale_flows(Some(&old), &dns(&["10.42.0.3"]));
        assert_eq!(less.left_backends.len(), 2, "one frontend by address, one by port");
        assert!(less.left_backends.iter().all(|(_, (address, _))| address.to_string() == "10.42.0.2"));
        assert!(less.untranslated.is_empty());
        let first = stale_flows(Some(&dns(&[])), &old);
        assert!(first.left_backends.is_empty());
        assert_eq!(first.untranslated.len(), 2);
        assert_eq!(stale_flows(Some(&old), &dns(&[])).left_backends.len(), 4);
    }
}
