//! Addresses, routes and neighbours over netlink, for both families.
//!
//! Every route made here carries the protocol number [`PROTOCOL`], by which it is found again when everything is
//! removed. Invariant: adding what is there and deleting what is gone is success.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::link::Mac;
use super::message::{Attributes, ne32};
use super::{Answer, Buffer, NLM_F_CREATE, NLM_F_REPLACE, Socket};

const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const TABLE_MAIN: u8 = 254;
const SCOPE_LINK: u8 = 253;

/// `RTPROT` of all our routes (not in iproute2's list).
pub(crate) const PROTOCOL: u8 = 0xa5;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Straight out of the link; the destination is on it.
    Link { index: u32, source: Option<IpAddr> },
    /// Through a gateway on the link.
    Gateway { index: u32, gateway: IpAddr },
    /// Refused with an ICMP error.
    Unreachable,
}

/// A route in the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) destination: IpNet,
    pub(crate) way: Way,
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

pub(crate) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

/// The network that holds only this address.
pub(crate) fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

impl Socket {
    /// Gives the link an address.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let bytes = octets(address.addr());
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, |b| {
            let flags = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
            b.put(&[family(address.addr()), address.prefix_len(), flags, 0]);
            b.put(&index.to_ne_bytes());
            b.attr(IFA_LOCAL, &bytes);
            b.attr(IFA_ADDRESS, &bytes);
        })
    }

    /// Adds or replaces a route.
    pub(crate) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, |b| write_route(b, route))
    }

    /// Deletes a route.
    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        match self.request(RTM_DELROUTE, 0, |b| write_route(b, route)) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// The routes of the main table that carry our protocol number.
    pub(crate) fn own_routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [2u8, 10] {
            let answers = self.dump(RTM_GETROUTE, |b| b.put(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
            match answers {
                Ok(answers) => routes.extend(answers.iter().filter_map(decode)),
                Err(_) if family == 10 => {} // a kernel without IPv6
                Err(e) => return Err(e),
            }
        }
        Ok(routes)
    }

    /// Fixes the hardware address of a neighbour, so that nobody has to ask or can lie about it.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |b| {
            b.put(&[family(address), 0, 0, 0]);
            b.put(&index.to_ne_bytes());
            b.put(&NUD_PERMANENT.to_ne_bytes());
            b.put(&[0, 0]);
            b.attr(NDA_DST, &octets(address));
            b.attr(NDA_LLADDR, &mac);
        })
    }
}

fn write_route(b: &mut Buffer, route: &Route) {
    let address = route.destination.network();
    let (kind, scope) = match route.way {
        Way::Link { .. } if address.is_ipv4() => (1, SCOPE_LINK),
        Way::Link { .. } | Way::Gateway { .. } => (1, 0),
        Way::Unreachable => (7, 0),
    };
    b.put(&[family(address), route.destination.prefix_len(), 0, 0, TABLE_MAIN, PROTOCOL, scope, kind]);
    b.put(&[0; 4]);
    if route.destination.prefix_len() > 0 {
        b.attr(RTA_DST, &octets(address));
    }
    match route.way {
        Way::Link { index, source } => {
            b.attr_u32(RTA_OIF, index);
            if let Some(source) = source {
                b.attr(RTA_PREFSRC, &octets(source));
            }
        }
        Way::Gateway { index, gateway } => {
            b.attr_u32(RTA_OIF, index);
            b.attr(RTA_GATEWAY, &octets(gateway));
        }
        // Behind every other route, so that it only catches what nobody wants.
        Way::Unreachable => b.attr_u32(RTA_PRIORITY, 0x7fff_ffff),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

fn decode(answer: &Answer) -> Option<Route> {
    let fixed = answer.body.get(..12)?;
    if fixed[4] != TABLE_MAIN || fixed[5] != PROTOCOL {
        return None;
    }
    let attributes = || Attributes(answer.body.get(12..).unwrap_or_default());
    let unspecified = if fixed[0] == 2 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let destination = attributes().find(RTA_DST).map_or(Some(unspecified), address_of)?;
    let index = attributes().find(RTA_OIF).and_then(ne32).unwrap_or(0);
    let way = match (fixed[7], attributes().find(RTA_GATEWAY).and_then(address_of)) {
        (7, _) => Way::Unreachable,
        (_, Some(gateway)) => Way::Gateway { index, gateway },
        _ => Way::Link { index, source: attributes().find(RTA_PREFSRC).and_then(address_of) },
    };
    Some(Route { destination: IpNet::new(destination, fixed[1]).ok()?, way })
}
