//! Network links over rtnetlink: veth pairs, bridges, tunnels, finding, setting up, deleting.
//!
//! Invariant: deleting something that is gone is success.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan, LinkWireguard};

use super::{Connection, gone_is_fine};

const IFLA_INET_CONF: u16 = 1;
const DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const DEVCONF_SEND_REDIRECTS: u16 = 6;
const DEVCONF_RP_FILTER: u16 = 8;
const DEVCONF_ACCEPT_SOURCE_ROUTE: u16 = 9;
const DEVCONF_ARP_IGNORE: u16 = 19;
const DEVCONF_ROUTE_LOCALNET: u16 = 26;

/// `arp_ignore`: no question is answered.
const ARP_IGNORE_ALL: u32 = 8;

/// For links on which nobody is asked for a hardware address and nobody answers.
const FIXED_NEIGHBOURS: [(u16, u32); 5] = [
    (DEVCONF_ACCEPT_REDIRECTS, 0),
    (DEVCONF_SEND_REDIRECTS, 0),
    (DEVCONF_ACCEPT_SOURCE_ROUTE, 0),
    (DEVCONF_ARP_IGNORE, ARP_IGNORE_ALL),
    (DEVCONF_ROUTE_LOCALNET, 1),
];

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A link to be made, or one end of a veth pair.
pub(crate) struct NewLink<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    /// Link group, 0 for none.
    pub(crate) group: u32,
    /// 0 leaves the kernel's default.
    pub(crate) mtu: u32,
}

/// What a VXLAN link is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vxlan {
    pub(crate) id: u32,
    pub(crate) port: u16,
    pub(crate) local: Option<IpAddr>,
}

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) group: u32,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// Nothing for hardware.
    pub(crate) kind: Option<InfoKind>,
    /// The address that a VXLAN link sends from.
    pub(crate) vxlan_local: Option<IpAddr>,
}

// === impl NewLink ===

impl NewLink<'_> {
    fn of_kind<T: Default>(&self, kind: Option<InfoKind>) -> LinkMessageBuilder<T> {
        let builder = kind.map_or_else(LinkMessageBuilder::default, LinkMessageBuilder::new_with_info_kind);
        let mut builder = builder.name(self.name).address(self.mac.to_vec());
        if self.mtu > 0 {
            builder = builder.mtu(self.mtu);
        }
        if self.group > 0 {
            builder = builder.link_group(self.group);
        }
        builder
    }
}

impl Connection {
    /// Makes a veth pair: `here` in the connection's namespace and up, `there` in `namespace` and down.
    pub(crate) fn add_veth(
        &mut self,
        here: &NewLink<'_>,
        there: &NewLink<'_>,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // It cannot be up before this end exists.
        let peer = there.of_kind::<LinkUnspec>(None).setns_by_fd(namespace.as_raw_fd()).build();
        let pair = here.of_kind::<LinkUnspec>(Some(InfoKind::Veth)).set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        self.add_link(pair.up().build())
    }

    /// Makes a link of a kind that needs no options, up.
    pub(crate) fn add_plain_link(&mut self, kind: InfoKind, link: &NewLink<'_>) -> io::Result<()> {
        self.add_link(link.of_kind::<LinkUnspec>(Some(kind)).up().build())
    }

    /// Makes a VXLAN link, up: no learning, so that only what is put into its tables is ever sent or believed.
    pub(crate) fn add_vxlan(&mut self, link: &NewLink<'_>, vxlan: &Vxlan) -> io::Result<()> {
        let builder = link.of_kind::<LinkVxlan>(Some(InfoKind::Vxlan));
        let builder = builder.id(vxlan.id).port(vxlan.port).learning(false);
        let builder = match vxlan.local {
            Some(IpAddr::V4(address)) => builder.local(address),
            Some(IpAddr::V6(address)) => builder.local6(address),
            None => builder,
        };
        self.add_link(builder.up().build())
    }

    /// Makes a WireGuard link, down and without a key. It has no hardware address.
    pub(crate) fn add_wireguard(&mut self, name: &str, group: u32, mtu: u32) -> io::Result<()> {
        let builder = LinkWireguard::new(name).link_group(group);
        self.add_link(if mtu > 0 { builder.mtu(mtu) } else { builder }.build())
    }

    fn add_link(&mut self, message: LinkMessage) -> io::Result<()> {
        let request = self.handle().link().add(message);
        self.wait(request.execute())
    }

    fn set_link(&mut self, message: LinkMessage) -> io::Result<()> {
        let request = self.handle().link().set(message);
        self.wait(request.execute())
    }

    /// Sets the link up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.set_link(LinkUnspec::new_with_index(index).up().build())
    }

    /// The host end of a pod link: its neighbours are fixed, the source check is strict (a pod sends only from its own
    /// addresses), it gets no address of its own, and it is set up.
    pub(crate) fn configure_pod_link(&mut self, index: u32) -> io::Result<()> {
        let switches = || ipv4([&FIXED_NEIGHBOURS[..], &[(DEVCONF_RP_FILTER, 1)]].concat());
        let no_address = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        self.set_link(settings(index, vec![switches(), no_address]))
            // A kernel without IPv6 refuses that; there is then nothing to turn off in it.
            .or_else(|_| self.set_link(settings(index, vec![switches()])))?;
        self.set_up(index)
    }

    /// A link on which all neighbours are fixed: no question for a hardware address is answered (nor who asks remembered), no
    /// redirect believed or sent. Answers to what 127.0.0.1 asked of a translated port may come in by it.
    pub(crate) fn set_fixed_neighbours(&mut self, index: u32) -> io::Result<()> {
        self.set_link(settings(index, vec![ipv4(FIXED_NEIGHBOURS.to_vec())]))
    }

    /// The link of this name.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let request = self.handle().link().get().match_name(name);
        self.one_link(request)
    }

    /// The link with this number.
    pub(crate) fn link_at(&mut self, index: u32) -> io::Result<Option<Link>> {
        let request = self.handle().link().get().match_index(index);
        self.one_link(request)
    }

    fn one_link(&mut self, request: rtnetlink::LinkGetRequest) -> io::Result<Option<Link>> {
        match self.first(without_counters(request).execute()) {
            Ok(answer) => Ok(answer.as_ref().and_then(decode)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = without_counters(self.handle().link().get());
        Ok(self.collect(request.execute())?.iter().filter_map(decode).collect())
    }

    /// Deletes a link with its routes and its other end.
    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let request = self.handle().link().del(index);
        gone_is_fine(self.wait(request.execute()), &[libc::ENODEV])
    }
}

/// Counters are most of what the kernel gathers and says of a link.
fn without_counters(request: rtnetlink::LinkGetRequest) -> rtnetlink::LinkGetRequest {
    request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
}

/// Settings of a link, by address family.
fn settings(index: u32, families: Vec<AfSpecUnspec>) -> LinkMessage {
    LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::AfSpecUnspec(families)).build()
}

/// Switches of IPv4. The crate's own request leaves out those that are to be 0, so it is made of attributes.
fn ipv4(switches: Vec<(u16, u32)>) -> AfSpecUnspec {
    let switches = switches.into_iter().map(|(switch, value)| DefaultNla::new(switch, value.to_ne_bytes().to_vec()));
    let switches: Vec<DefaultNla> = switches.collect();
    let mut bytes = vec![0; switches.as_slice().buffer_len()];
    switches.as_slice().emit(&mut bytes);
    AfSpecUnspec::Inet(vec![AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, bytes))])
}

pub(super) fn decode(message: &LinkMessage) -> Option<Link> {
    let mut name = None;
    let (mut group, mut mtu, mut kind, mut vxlan_local) = (0, 0, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(found) => name = Some(found.clone()),
            LinkAttribute::Group(found) => group = *found,
            LinkAttribute::Mtu(found) => mtu = *found,
            LinkAttribute::LinkInfo(about) => {
                for info in about {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found.clone()),
                        LinkInfo::Data(InfoData::Vxlan(options)) => vxlan_local = options.iter().find_map(local_of),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let up = message.header.flags.contains(LinkFlags::Up);
    Some(Link { index: message.header.index, name: name?, group, up, mtu, kind, vxlan_local })
}

fn local_of(option: &InfoVxlan) -> Option<IpAddr> {
    match option {
        InfoVxlan::Local(address) => Some((*address).into()),
        InfoVxlan::Local6(address) => Some((*address).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;
    use crate::net::netlink::socket::answers;

    #[test]
    fn switches_that_are_to_be_off_are_said_too() {
        let message = settings(7, vec![ipv4(FIXED_NEIGHBOURS.to_vec())]);
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let switches = "0800040000000000080006000000000008000900000000000800130008000000 08001a0001000000";
        let want = ["00000000", "07000000", "00000000", "00000000", "34001a00", "30000200", "2c000180", switches];
        assert_eq!(hex::encode(bytes), want.concat().replace(' ', ""));
    }

    #[test]
    fn links_are_read_as_a_kernel_lists_them() {
        // Linux 6.18: the loopback, a bridge, a veth pair and a VXLAN link.
        let listed = include_bytes!("../../../tests/fuzz/corpus/netlink_route/30");
        let links: Vec<Link> = answers(listed)
            .iter()
            .filter_map(
                |answer| if let RouteNetlinkMessage::NewLink(message) = answer { decode(message) } else { None },
            )
            .collect();
        let kind = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.kind.clone());
        assert_eq!(kind("lo"), Some(None));
        assert_eq!(kind("br7"), Some(Some(InfoKind::Bridge)));
        assert_eq!(kind("v7"), Some(Some(InfoKind::Veth)));
        let vxlan = links.iter().find(|link| link.kind == Some(InfoKind::Vxlan)).unwrap();
        assert_eq!((vxlan.name.as_str(), vxlan.up), ("vx7", true));
        assert_eq!(vxlan.vxlan_local, Some(Ipv4Addr::new(10, 42, 0, 1).into()));
    }
}
