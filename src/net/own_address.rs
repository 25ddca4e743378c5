//! Which of this machine's addresses is the node's, when nobody said.
//!
//! Invariant: never one of a link that this program made, so a restarted node finds what it found the first time.

use std::io;
use std::net::{IpAddr, UdpSocket};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::InfoKind;

use super::netlink::Connection;
use super::netlink::link::Link;

/// The address of the default route; without one (a network of its own) that of the first card; nothing without both.
pub fn own_address() -> Option<IpAddr> {
    by_default_route().or_else(|| by_card().ok().flatten())
}

/// Asks the kernel which source it would take to a far address. Nothing is sent.
pub fn by_default_route() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Whether the kernel takes what is sent to this address as its own. Only who has an address may listen there; that is asked, and
/// nobody listens. (With `ip_nonlocal_bind`, which machines that take over each other's addresses set, every one counts.)
pub fn is_local(address: IpAddr) -> bool {
    let group = match address {
        IpAddr::V4(a) => a.is_broadcast() || a.is_multicast(),
        IpAddr::V6(a) => a.is_multicast(),
    };
    match UdpSocket::bind((address, 0)) {
        Ok(_) => !group,
        // One of a link, of which it is not said which.
        Err(error) => error.kind() == io::ErrorKind::InvalidInput,
    }
}

fn by_card() -> io::Result<Option<IpAddr>> {
    let mut host = Connection::open()?;
    let (links, addresses) = (host.links()?, host.addresses(AddressFamily::Inet)?);
    Ok(choose(&links, &addresses))
}

/// Links that programs make hold addresses of networks inside of this machine; ours are in a group beside.
fn choose(links: &[Link], addresses: &[(u32, IpAddr)]) -> Option<IpAddr> {
    let is_made = |link: &Link| {
        use InfoKind::{Bridge, Dummy, IpVlan, Tun, Vxlan, Wireguard};
        matches!(link.kind, Some(Bridge | Dummy | IpVlan | Tun | Vxlan | Wireguard))
    };
    let mut cards: Vec<&Link> = links.iter().filter(|l| l.up && l.group == 0 && !is_made(l)).collect();
    cards.sort_by_key(|link| link.index);
    let outside = |address: &IpAddr| match address {
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local(),
        IpAddr::V6(_) => false,
    };
    let of = |link: &Link| addresses.iter().find(|(i, a)| *i == link.index && outside(a)).map(|(_, a)| *a);
    cards.into_iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_card_counts_and_nothing_that_was_made() {
        let link = |index, kind: Option<InfoKind>, group, up| Link {
            index,
            name: format!("l{index}"),
            group,
            up,
            mtu: 1500,
            kind,
            vxlan_local: None,
        };
        let links = [
            link(9, None, 0, true),
            link(4, None, 0, true),
            link(3, None, 0, false),
            link(2, Some(InfoKind::Bridge), 0, true),
            link(5, Some(InfoKind::Veth), 77, true),
            link(1, None, 0, true),
        ];
        let at = |index, text: &str| (index, text.parse::<IpAddr>().unwrap());
        let addresses = [
            at(1, "127.0.0.1"),
            at(2, "172.17.0.1"),
            at(3, "10.3.0.1"),
            at(5, "10.42.0.1"),
            at(9, "10.9.0.1"),
            at(4, "169.254.1.1"),
            at(4, "10.4.0.1"),
        ];
        assert_eq!(choose(&links, &addresses), Some("10.4.0.1".parse().unwrap()));
        assert_eq!(choose(&links, &addresses[..4]), None);
    }
}
