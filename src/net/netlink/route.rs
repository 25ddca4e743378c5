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
const RTM_GETADDR: u16 = 22;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
/// What a look-up fails with where no route leads, or one that refuses.
const NO_WAY: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `rtnh_flags`: the gateway is not looked for among our own networks.
const RTNH_F_ONLINK: u32 = 4;
const NUD_PERMANENT: u16 = 0x80;
/// A look-up answers with the route that it found rather than with the destination.
const RTM_F_FIB_MATCH: u32 = 0x2000;
/// Entries of a link's own forwarding table rather than of a bridge's.
const NTF_SELF: u8 = 2;
const NUD_NOARP: u16 = 0x40;
const AF_BRIDGE: u8 = 7;
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
    /// Through a gateway that is believed to be on the link although no address of ours says so.
    Onlink { index: u32, gateway: IpAddr },
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

    /// Whether a network that is on this very link has the address, so that no gateway is between.
    pub(crate) fn is_on_link(&mut self, address: IpAddr, index: u32) -> io::Result<bool> {
        let bytes = octets(address);
        let length = if address.is_ipv4() { 32 } else { 128 };
        let answer = self.get(RTM_GETROUTE, |b| {
            b.put(&[family(address), length, 0, 0, 0, 0, 0, 0]);
            b.put(&RTM_F_FIB_MATCH.to_ne_bytes());
            b.attr(RTA_DST, &bytes);
        });
        match answer {
            Ok(answer) => Ok(answer.is_some_and(|a| leads_straight(&a, index))),
            // There is no way at all, or one that refuses.
            Err(e) if e.raw_os_error().is_some_and(|n| NO_WAY.contains(&n)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Fixes the hardware address of a neighbour, so that nobody has to ask or can lie about it.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |b| {
            neighbour(b, family(address), index, NUD_PERMANENT, 0);
            b.attr(NDA_DST, &octets(address));
            b.attr(NDA_LLADDR, &mac);
        })
    }

    /// Forgets a neighbour.
    pub(crate) fn delete_neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        gone_is_fine(self.request(RTM_DELNEIGH, 0, |b| {
            neighbour(b, family(address), index, 0, 0);
            b.attr(NDA_DST, &octets(address));
        }))
    }

    /// The fixed neighbours of a link.
    pub(crate) fn neighbours(&mut self, index: u32) -> io::Result<Vec<(IpAddr, Mac)>> {
        let mut found = Vec::new();
        for family in [2u8, 10] {
            let answers = self.dump(RTM_GETNEIGH, |b| neighbour(b, family, 0, 0, 0));
            match answers {
                Ok(answers) => found.extend(answers.iter().filter_map(|a| decode_neighbour(a, index))),
                Err(_) if family == 10 => {} // a kernel without IPv6
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// Frames to `mac` leave the tunnel link for the machine with `address`.
    pub(crate) fn add_forwarding(&mut self, index: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        self.request(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, |b| {
            neighbour(b, AF_BRIDGE, index, NUD_PERMANENT | NUD_NOARP, NTF_SELF);
            b.attr(NDA_LLADDR, &mac);
            b.attr(NDA_DST, &octets(address));
        })
    }

    /// Undoes [`Socket::add_forwarding`].
    pub(crate) fn delete_forwarding(&mut self, index: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        gone_is_fine(self.request(RTM_DELNEIGH, 0, |b| {
            neighbour(b, AF_BRIDGE, index, 0, NTF_SELF);
            b.attr(NDA_LLADDR, &mac);
            b.attr(NDA_DST, &octets(address));
        }))
    }

    /// The forwarding entries of a tunnel link.
    pub(crate) fn forwardings(&mut self, index: u32) -> io::Result<Vec<(Mac, IpAddr)>> {
        let answers = self.dump(RTM_GETNEIGH, |b| neighbour(b, AF_BRIDGE, 0, 0, 0))?;
        Ok(answers.iter().filter_map(|a| decode_neighbour(a, index)).map(|(address, mac)| (mac, address)).collect())
    }

    /// The link that has this address.
    pub(crate) fn link_of(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let all = self.addresses(family(address))?;
        Ok(all.into_iter().find(|(_, own)| *own == address).map(|(index, _)| index))
    }

    /// Every address of one family with its link, whatever its scope.
    pub(crate) fn addresses(&mut self, family: u8) -> io::Result<Vec<(u32, IpAddr)>> {
        let answers = self.dump(RTM_GETADDR, |b| b.put(&[family, 0, 0, 0, 0, 0, 0, 0]))?;
        Ok(answers.iter().filter_map(decode_address).collect())
    }
}

pub(super) fn decode_address(answer: &Answer) -> Option<(u32, IpAddr)> {
    let attributes = || Attributes(answer.body.get(8..).unwrap_or_default());
    let own = attributes().find(IFA_LOCAL).or_else(|| attributes().find(IFA_ADDRESS))?;
    Some((ne32(answer.body.get(4..)?)?, address_of(own)?))
}

fn neighbour(b: &mut Buffer, family: u8, index: u32, state: u16, flags: u8) {
    b.put(&[family, 0, 0, 0]);
    b.put(&index.to_ne_bytes());
    b.put(&state.to_ne_bytes());
    b.put(&[flags, 0]);
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(()),
        other => other,
    }
}

pub(super) fn decode_neighbour(answer: &Answer, index: u32) -> Option<(IpAddr, Mac)> {
    let fixed = answer.body.get(..12)?;
    let permanent = u16::from_ne_bytes([fixed[8], fixed[9]]) & NUD_PERMANENT != 0;
    if ne32(&fixed[4..]) != Some(index) || !permanent {
        return None;
    }
    let attributes = || Attributes(answer.body.get(12..).unwrap_or_default());
    let address = attributes().find(NDA_DST).and_then(address_of)?;
    Some((address, attributes().find(NDA_LLADDR)?.try_into().ok()?))
}

pub(super) fn write_route(b: &mut Buffer, route: &Route) {
    let address = route.destination.network();
    let (kind, scope) = match route.way {
        Way::Link { .. } if address.is_ipv4() => (1, SCOPE_LINK),
        Way::Link { .. } | Way::Gateway { .. } | Way::Onlink { .. } => (1, 0),
        Way::Unreachable => (7, 0),
    };
    b.put(&[family(address), route.destination.prefix_len(), 0, 0, TABLE_MAIN, PROTOCOL, scope, kind]);
    let flags = if matches!(route.way, Way::Onlink { .. }) { RTNH_F_ONLINK } else { 0 };
    b.put(&flags.to_ne_bytes());
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
        Way::Gateway { index, gateway } | Way::Onlink { index, gateway } => {
            b.attr_u32(RTA_OIF, index);
            b.attr(RTA_GATEWAY, &octets(gateway));
        }
        // Behind every other route, so that it only catches what nobody wants.
        Way::Unreachable => b.attr_u32(RTA_PRIORITY, 0x7fff_ffff),
    }
}

/// An address in network byte order.
pub(crate) fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// Whether a route that was found needs no gateway on this link; the default route says nothing about what is on a link.
pub(super) fn leads_straight(answer: &Answer, index: u32) -> bool {
    let Some(fixed) = answer.body.get(..12) else { return false };
    let attributes = || Attributes(answer.body.get(12..).unwrap_or_default());
    let (kind, length) = (fixed[7], fixed[1]);
    let direct = [RTA_GATEWAY, RTA_VIA].into_iter().all(|a| attributes().find(a).is_none());
    kind == RTN_UNICAST && length > 0 && direct && attributes().find(RTA_OIF).and_then(ne32) == Some(index)
}

pub(super) fn decode(answer: &Answer) -> Option<Route> {
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
        (_, Some(gateway)) if ne32(&fixed[8..]).unwrap_or(0) & RTNH_F_ONLINK != 0 => Way::Onlink { index, gateway },
        (_, Some(gateway)) => Way::Gateway { index, gateway },
        _ => Way::Link { index, source: attributes().find(RTA_PREFSRC).and_then(address_of) },
    };
    Some(Route { destination: IpNet::new(destination, fixed[1]).ok()?, way })
}
