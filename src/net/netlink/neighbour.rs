//! Neighbours, and the forwarding entries of tunnel links, which the kernel has as neighbours of the family of bridges.
//!
//! Invariant: adding what is there and deleting what is gone is success.

use std::io;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::address::family;
use super::{Connection, Mac, gone_is_fine};

const GONE: [i32; 2] = [libc::ENOENT, libc::ESRCH];
/// The crate's states are one bit each; entries of forwarding tables have two.
const NUD_PERMANENT: u16 = 0x80;
const NUD_NOARP: u16 = 0x40;

impl Connection {
    /// Fixes the hardware address of a neighbour, so that nobody has to ask or can lie about it.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: IpAddr, mac: Mac) -> io::Result<()> {
        let request = self.handle().neighbours().add(index, address).link_layer_address(&mac).replace();
        self.wait(request.execute())
    }

    /// Forgets a neighbour.
    pub(crate) fn delete_neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let request = self.handle().neighbours().del(message);
        gone_is_fine(self.wait(request.execute()), &GONE)
    }

    /// The fixed neighbours of a link.
    pub(crate) fn neighbours(&mut self, index: u32) -> io::Result<Vec<(IpAddr, Mac)>> {
        let mut found = self.entries(AddressFamily::Inet, index)?;
        // A kernel without IPv6 has none.
        found.extend(self.entries(AddressFamily::Inet6, index).unwrap_or_default());
        Ok(found)
    }

    /// Frames to `mac` leave the tunnel link for the machine with `address`.
    pub(crate) fn add_fdb_entry(&mut self, index: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        let request = self.handle().neighbours().add_bridge(index, &mac).destination(address);
        // An entry of the link's own table rather than of a bridge's.
        let request =
            request.state(NeighbourState::Other(NUD_PERMANENT | NUD_NOARP)).flags(NeighbourFlags::Own).replace();
        self.wait(request.execute())
    }

    /// Undoes [`Connection::add_fdb_entry`].
    pub(crate) fn delete_fdb_entry(&mut self, index: u32, mac: Mac, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        let request = self.handle().neighbours().del(message);
        gone_is_fine(self.wait(request.execute()), &GONE)
    }

    /// The forwarding entries of a tunnel link.
    pub(crate) fn fdb_entries(&mut self, index: u32) -> io::Result<Vec<(Mac, IpAddr)>> {
        Ok(self.entries(AddressFamily::Bridge, index)?.into_iter().map(|(address, mac)| (mac, address)).collect())
    }

    fn entries(&mut self, family: AddressFamily, index: u32) -> io::Result<Vec<(IpAddr, Mac)>> {
        let request = self.handle().neighbours().get().set_address_family(family);
        Ok(self.collect(request.execute())?.iter().filter_map(|entry| decode(entry, index)).collect())
    }
}

pub(super) fn decode(message: &NeighbourMessage, index: u32) -> Option<(IpAddr, Mac)> {
    if message.header.ifindex != index || u16::from(message.header.state) & NUD_PERMANENT == 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::from(*found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::from(*found)),
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => address = address_of(bytes),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    Some((address?, mac?))
}

/// An address in network byte order.
fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;
    use crate::net::netlink::socket::answers;

    #[test]
    fn fixed_entries_of_a_link_are_read_as_a_kernel_lists_them() {
        let mac = [0x0a, 0x58, 0x0a, 0x2a, 1, 0];
        for (listed, address) in [
            (&include_bytes!("../../../tests/fuzz/corpus/netlink_route/32")[..], "192.0.2.9"),
            (&include_bytes!("../../../tests/fuzz/corpus/netlink_route/33")[..], "10.42.1.0"),
        ] {
            let entries: Vec<NeighbourMessage> = answers(listed)
                .into_iter()
                .filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewNeighbour(message) => Some(message),
                    _ => None,
                })
                .collect();
            let on = |index| entries.iter().filter_map(|entry| decode(entry, index)).collect::<Vec<_>>();
            let expected = (address.parse().unwrap(), mac);
            let links: Vec<u32> = (0..20).filter(|index| on(*index).contains(&expected)).collect();
            assert_eq!(links.len(), 1, "{address} is at {mac:?} on one link: {entries:?}");
        }
    }
}
