//! Routes, for both families.
//!
//! Every route made here carries the protocol number [`PROTOCOL`], by which it is found again when everything is
//! removed. Invariant: adding what is there and deleting what is gone is success.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::address::family;
use super::{Connection, gone_is_fine};

/// What a look-up fails with where no route leads, or one that refuses.
const NO_ROUTE: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];

/// `RTPROT` of all our routes (not in iproute2's list).
pub(crate) const PROTOCOL: u8 = 0xa5;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum NextHop {
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
    pub(crate) next_hop: NextHop,
}

/// The network that holds only this address.
pub(crate) fn host_net(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

impl Connection {
    /// Adds or replaces a route.
    pub(crate) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let request = self.handle().route().add(encode(route)).replace();
        self.wait(request.execute())
    }

    /// Deletes a route.
    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        let request = self.handle().route().del(encode(route));
        gone_is_fine(self.wait(request.execute()), &[libc::ESRCH])
    }

    /// The routes of the main table that carry our protocol number.
    pub(crate) fn own_routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = self.routes(AddressFamily::Inet)?;
        // A kernel without IPv6 has none.
        routes.extend(self.routes(AddressFamily::Inet6).unwrap_or_default());
        Ok(routes)
    }

    fn routes(&mut self, family: AddressFamily) -> io::Result<Vec<Route>> {
        let mut all = RouteMessage::default();
        all.header.address_family = family;
        let request = self.handle().route().get(all);
        Ok(self.collect(request.execute())?.iter().filter_map(decode).collect())
    }

    /// Whether a network that is on this very link has the address, so that no gateway is between.
    pub(crate) fn is_on_link(&mut self, address: IpAddr, index: u32) -> io::Result<bool> {
        let mut question = RouteMessage::default();
        question.header.address_family = family(address);
        question.header.destination_prefix_length = host_net(address).prefix_len();
        // Answered with the route that was found rather than with the destination.
        question.header.flags = RouteFlags::FibMatch;
        question.attributes.push(RouteAttribute::Destination(address.into()));
        let request = self.handle().route().get(question);
        match self.first(request.execute()) {
            Ok(answer) => Ok(answer.is_some_and(|found| is_direct(&found, index))),
            // There is no way at all, or one that refuses.
            Err(e) if e.raw_os_error().is_some_and(|n| NO_ROUTE.contains(&n)) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

pub(super) fn encode(route: &Route) -> RouteMessage {
    let address = route.destination.network();
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(address);
    header.destination_prefix_length = route.destination.prefix_len();
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = PROTOCOL.into();
    header.kind = if route.next_hop == NextHop::Unreachable { RouteType::Unreachable } else { RouteType::Unicast };
    if matches!(route.next_hop, NextHop::Link { .. }) && address.is_ipv4() {
        header.scope = RouteScope::Link;
    }
    if matches!(route.next_hop, NextHop::Onlink { .. }) {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    if route.destination.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(address.into()));
    }
    match route.next_hop {
        NextHop::Link { index, source } => {
            attributes.push(RouteAttribute::Oif(index));
            attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        }
        NextHop::Gateway { index, gateway } | NextHop::Onlink { index, gateway } => {
            attributes.push(RouteAttribute::Oif(index));
            attributes.push(RouteAttribute::Gateway(gateway.into()));
        }
        // Behind every other route, so that it only catches what nobody wants.
        NextHop::Unreachable => attributes.push(RouteAttribute::Priority(0x7fff_ffff)),
    }
    message
}

/// Whether a route that was found needs no gateway on this link; the default route says nothing about what is on a link.
pub(super) fn is_direct(message: &RouteMessage, index: u32) -> bool {
    let header = &message.header;
    let indirect = |a: &RouteAttribute| matches!(a, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    header.kind == RouteType::Unicast
        && header.destination_prefix_length > 0
        && message.attributes.contains(&RouteAttribute::Oif(index))
        && !message.attributes.iter().any(indirect)
}

pub(super) fn decode(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let (mut destination, mut index, mut gateway, mut source) = (unspecified, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = address_of(address)?,
            RouteAttribute::Oif(found) => index = *found,
            RouteAttribute::Gateway(address) => gateway = address_of(address),
            RouteAttribute::PrefSource(address) => source = address_of(address),
            _ => {}
        }
    }
    let next_hop = match (header.kind, gateway) {
        (RouteType::Unreachable, _) => NextHop::Unreachable,
        (_, Some(gateway)) if header.flags.contains(RouteFlags::Onlink) => NextHop::Onlink { index, gateway },
        (_, Some(gateway)) => NextHop::Gateway { index, gateway },
        _ => NextHop::Link { index, source },
    };
    Some(Route { destination: IpNet::new(destination, header.destination_prefix_length).ok()?, next_hop })
}

fn address_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;
    use crate::net::netlink::socket::answers;

    fn listed(bytes: &[u8]) -> Vec<Route> {
        let answers = answers(bytes);
        let routes = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => decode(message),
            _ => None,
        });
        routes.collect()
    }

    #[test]
    fn our_routes_are_found_among_those_that_a_kernel_lists() {
        let found = listed(include_bytes!("../../../tests/fuzz/corpus/netlink_route/34"));
        let of = |net: &str| found.iter().find(|r| r.destination == net.parse().unwrap()).map(|r| r.next_hop);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(of("10.42.0.0/24"), Some(NextHop::Unreachable));
        let Some(NextHop::Link { source: Some(source), .. }) = of("10.42.0.5/32") else { panic!("{found:?}") };
        assert_eq!(source, address("10.42.0.1"));
        let Some(NextHop::Onlink { gateway, .. }) = of("10.42.1.0/24") else { panic!("{found:?}") };
        assert_eq!(gateway, address("10.42.1.0"));
        let found = listed(include_bytes!("../../../tests/fuzz/corpus/netlink_route/35"));
        assert_eq!(found.len(), 2, "{found:?}");
    }

    #[test]
    fn what_is_written_is_read_back() {
        let link = |source: Option<&str>| NextHop::Link { index: 4, source: source.map(|s| s.parse().unwrap()) };
        let gateway = |text: &str| text.parse::<IpAddr>().unwrap();
        for (net, next_hop) in [
            ("10.42.0.5/32", link(None)),
            ("10.42.0.5/32", link(Some("10.42.0.1"))),
            ("0.0.0.0/0", NextHop::Gateway { index: 4, gateway: gateway("10.42.0.1") }),
            ("::/0", NextHop::Gateway { index: 4, gateway: gateway("fd42::1") }),
            ("10.42.1.0/24", NextHop::Onlink { index: 4, gateway: gateway("10.42.1.0") }),
            ("fd42::/64", NextHop::Unreachable),
        ] {
            let route = Route { destination: net.parse().unwrap(), next_hop };
            assert_eq!(decode(&encode(&route)), Some(route), "{net}");
        }
    }
}
