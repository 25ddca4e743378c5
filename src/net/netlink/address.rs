//! Addresses of links.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

use super::Connection;

/// The family that an address is of.
pub(super) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

impl Connection {
    /// Gives the link an address; fine if it has it.
    pub(crate) fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut request = self.handle().address().add(index, address.addr(), address.prefix_len()).replace();
        if address.addr().is_ipv6() {
            request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        self.wait(request.execute())
    }

    /// The link that has this address.
    pub(crate) fn link_of(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let all = self.addresses(family(address))?;
        Ok(all.into_iter().find(|(_, own)| *own == address).map(|(index, _)| index))
    }

    /// Whether the link has this address.
    pub(crate) fn has_address(&mut self, index: u32, address: IpAddr) -> io::Result<bool> {
        Ok(self.addresses(family(address))?.contains(&(index, address)))
    }

    /// Every address of one family with its link, whatever its scope.
    pub(crate) fn addresses(&mut self, family: AddressFamily) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut request = self.handle().address().get();
        request.message_mut().header.family = family;
        Ok(self.collect(request.execute())?.iter().filter_map(decode).collect())
    }
}

pub(super) fn decode(message: &AddressMessage) -> Option<(u32, IpAddr)> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|a| if let AddressAttribute::Local(own) = a { Some(*own) } else { None });
    // On a link with two ends this is the other one's.
    let address = || attributes().find_map(|a| if let AddressAttribute::Address(own) = a { Some(*own) } else { None });
    Some((message.header.index, local.or_else(address)?))
}
