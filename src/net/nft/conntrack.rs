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

use super::table::{Protocol, ServiceTable};
use crate::net::netlink::message::Attributes;
use crate::net::netlink::{Answer, Buffer, Socket};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;

/// Where clients send to: `None` is any local address.
type Front = (Option<IpAddr>, Protocol, u16);
type Target = (IpAddr, u16);

/// What must be forgotten.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Stale {
    /// Flows to this front that were translated to this backend.
    gone: BTreeSet<(Front, Target)>,
    /// Flows to this front that were not translated.
    begun: BTreeSet<Front>,
}

/// Compares two tables; without an old one (first apply after a start) every front counts as changed.
pub(super) fn stale(old: Option<&ServiceTable>, new: &ServiceTable) -> Stale {
    let (before, after) = (old.map(pairs).unwrap_or_default(), pairs(new));
    let fronts = |pairs: &BTreeSet<(Front, Target)>| pairs.iter().map(|(front, _)| *front).collect::<BTreeSet<_>>();
    let begun = fronts(&after).difference(&fronts(&before)).copied().collect();
    Stale { gone: before.difference(&after).copied().collect(), begun }
}

fn pairs(table: &ServiceTable) -> BTreeSet<(Front, Target)> {
    let mut pairs = BTreeSet::new();
    for service in table.services.iter().filter(|s| s.protocol != Protocol::Tcp) {
        let addresses = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
        let mut fronts: Vec<Front> = addresses.map(|a| (Some(*a), service.protocol, service.port)).collect();
        fronts.extend(service.node_port.map(|port| (None, service.protocol, port)));
        for endpoint in &service.endpoints {
            pairs.extend(fronts.iter().map(|front| (*front, (endpoint.address, endpoint.port))));
        }
    }
    for port in table.host_ports.iter().filter(|p| p.protocol != Protocol::Tcp) {
        let place = (!port.host_ip.is_unspecified()).then_some(port.host_ip);
        pairs.insert(((place, port.protocol, port.host_port), (port.pod_address, port.pod_port)));
    }
    pairs
}

/// Deletes matching flows. Without anything to forget the kernel is not asked.
pub(super) fn forget(socket: &mut Socket, stale: &Stale) -> io::Result<()> {
    if stale.gone.is_empty() && stale.begun.is_empty() {
        return Ok(());
    }
    for answer in socket.dump(GET, |b| b.put(&[0; 4]))? {
        let Some(flow) = Flow::decode(&answer) else { continue };
        if flow.matches(stale) {
            flow.delete(socket)?;
        }
    }
    Ok(())
}

pub(super) struct Flow<'a> {
    family: u8,
    protocol: Protocol,
    original_destination: Target,
    reply_source: Target,
    original: &'a [u8],
    id: Option<&'a [u8]>,
    zone: Option<&'a [u8]>,
}

/// One direction of a flow: source, destination, protocol number.
fn tuple(bytes: &[u8]) -> Option<(Target, Target, u8)> {
    let ip = Attributes(bytes).find(1)?;
    let ports = Attributes(bytes).find(2)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(bytes) = Attributes(ip).find(v4) {
            return Some(<[u8; 4]>::try_from(bytes).ok()?.into());
        }
        Some(<[u8; 16]>::try_from(Attributes(ip).find(v6)?).ok()?.into())
    };
    let port = |kind| Some(u16::from_be_bytes(Attributes(ports).find(kind)?.try_into().ok()?));
    let protocol = *Attributes(ports).find(1)?.first()?;
    Some(((address(1, 3)?, port(2)?), (address(2, 4)?, port(3)?), protocol))
}

impl<'a> Flow<'a> {
    pub(super) fn decode(answer: &'a Answer) -> Option<Self> {
        let attributes = || Attributes(answer.body.get(4..).unwrap_or_default());
        let original = attributes().find(CTA_TUPLE_ORIG)?;
        let (_, original_destination, number) = tuple(original)?;
        let (reply_source, ..) = tuple(attributes().find(CTA_TUPLE_REPLY)?)?;
        let protocol = [Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == number)?;
        let (id, zone) = (attributes().find(CTA_ID), attributes().find(CTA_ZONE));
        Some(Self { family: *answer.body.first()?, protocol, original_destination, reply_source, original, id, zone })
    }

    pub(super) fn matches(&self, stale: &Stale) -> bool {
        let (address, port) = self.original_destination;
        [Some(address), None].into_iter().any(|place| {
            let front = (place, self.protocol, port);
            if self.reply_source == self.original_destination {
                return stale.begun.contains(&front);
            }
            stale.gone.contains(&(front, self.reply_source))
        })
    }

    /// What names it, when it is to be deleted.
    pub(super) fn write(&self, b: &mut Buffer) {
        b.put(&[self.family, 0, 0, 0]);
        b.nest(CTA_TUPLE_ORIG, |b| b.put(self.original));
        if let Some(id) = self.id {
            b.attr(CTA_ID, id);
        }
        if let Some(zone) = self.zone {
            b.attr(CTA_ZONE, zone);
        }
    }

    fn delete(&self, socket: &mut Socket) -> io::Result<()> {
        let deleted = socket.request(DELETE, 0, |b| self.write(b));
        match deleted {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// Whether flows can be listed.
pub(crate) fn probe() -> io::Result<()> {
    Socket::netfilter()?.dump(GET, |b| b.put(&[0; 4])).map(|_| ())
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
        assert_eq!(stale(Some(&old), &old), Stale::default());
        let less = stale(Some(&old), &dns(&["10.42.0.3"]));
        assert_eq!(less.gone.len(), 2, "one front by address, one by port");
        assert!(less.gone.iter().all(|(_, (address, _))| address.to_string() == "10.42.0.2"));
        assert!(less.begun.is_empty());
        let first = stale(Some(&dns(&[])), &old);
        assert!(first.gone.is_empty());
        assert_eq!(first.begun.len(), 2);
        assert_eq!(stale(Some(&old), &dns(&[])).gone.len(), 4);
    }
}
