//! Network links over netlink: veth pairs, bridges, finding, setting up, deleting.
//!
//! Invariant: deleting something that is gone is success.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::message::{Attributes, ne32, text};
use super::{Answer, Buffer, NLM_F_CREATE, NLM_F_EXCL, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;
const DEVCONF_ACCEPT_REDIRECTS: u16 = 4;
const DEVCONF_SEND_REDIRECTS: u16 = 6;
const DEVCONF_RP_FILTER: u16 = 8;
const DEVCONF_ACCEPT_SOURCE_ROUTE: u16 = 9;
const DEVCONF_ARP_IGNORE: u16 = 19;
const DEVCONF_ROUTE_LOCALNET: u16 = 26;
const IFF_UP: u32 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `arp_ignore`: no question is answered.
const ARP_IGNORE_ALL: u32 = 8;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// One end of a veth pair.
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
    /// Link group, 0 for none.
    pub(crate) group: u32,
}

/// What a VXLAN link is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vxlan {
    pub(crate) id: u32,
    pub(crate) port: u16,
    pub(crate) local: IpAddr,
    pub(crate) mtu: u32,
}

/// A link as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) group: u32,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// `veth`, `bridge`, `vxlan`; empty for hardware.
    pub(crate) kind: String,
}

fn info(buffer: &mut Buffer, index: u32, flags: u32) {
    buffer.put(&[0; 4]);
    buffer.put(&index.to_ne_bytes());
    buffer.put(&flags.to_ne_bytes());
    buffer.put(&flags.to_ne_bytes());
}

fn describe(buffer: &mut Buffer, end: &VethEnd<'_>, mtu: u32) {
    buffer.attr_str(IFLA_IFNAME, end.name);
    buffer.attr(IFLA_ADDRESS, &end.mac);
    if mtu > 0 {
        buffer.attr_u32(IFLA_MTU, mtu);
    }
    if end.group > 0 {
        buffer.attr_u32(IFLA_GROUP, end.group);
    }
}

impl Socket {
    /// Makes a veth pair: `here` in the socket's namespace and up, `there` in `namespace` and down.
    pub(crate) fn add_veth(
        &mut self,
        here: &VethEnd<'_>,
        there: &VethEnd<'_>,
        namespace: BorrowedFd<'_>,
        mtu: u32,
    ) -> io::Result<()> {
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            info(b, 0, IFF_UP);
            describe(b, here, mtu);
            b.nest(IFLA_LINKINFO, |b| {
                b.attr_str(IFLA_INFO_KIND, "veth");
                b.nest(IFLA_INFO_DATA, |b| {
                    b.nest(VETH_INFO_PEER, |b| {
                        info(b, 0, 0); // it cannot be up before this end exists
                        describe(b, there, mtu);
                        b.attr(IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                    });
                });
            });
        })
    }

    /// Makes a link of a kind that needs no options but a hardware address, up.
    pub(crate) fn add_simple(&mut self, kind: &str, end: &VethEnd<'_>) -> io::Result<()> {
        self.add_kind(kind, end, |_| {})
    }

    /// Makes a VXLAN link, up: no learning, so that only what is put into its tables is ever sent or believed.
    pub(crate) fn add_vxlan(&mut self, end: &VethEnd<'_>, vxlan: &Vxlan) -> io::Result<()> {
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            info(b, 0, IFF_UP);
            describe(b, end, vxlan.mtu);
            b.nest(IFLA_LINKINFO, |b| {
                b.attr_str(IFLA_INFO_KIND, "vxlan");
                b.nest(IFLA_INFO_DATA, |b| {
                    b.attr_u32(IFLA_VXLAN_ID, vxlan.id);
                    b.attr(IFLA_VXLAN_PORT, &vxlan.port.to_be_bytes());
                    b.attr(IFLA_VXLAN_LEARNING, &[0]);
                    match vxlan.local {
                        IpAddr::V4(a) => b.attr(IFLA_VXLAN_LOCAL, &a.octets()),
                        IpAddr::V6(a) => b.attr(IFLA_VXLAN_LOCAL6, &a.octets()),
                    }
                });
            });
        })
    }

    /// Makes a WireGuard link, down and without a key. It has no hardware address.
    pub(crate) fn add_wireguard(&mut self, name: &str, group: u32, mtu: u32) -> io::Result<()> {
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            info(b, 0, 0);
            b.attr_str(IFLA_IFNAME, name);
            if mtu > 0 {
                b.attr_u32(IFLA_MTU, mtu);
            }
            b.attr_u32(IFLA_GROUP, group);
            b.nest(IFLA_LINKINFO, |b| b.attr_str(IFLA_INFO_KIND, "wireguard"));
        })
    }

    /// The address that a VXLAN link sends from.
    pub(crate) fn vxlan_local(&mut self, name: &str) -> io::Result<Option<IpAddr>> {
        let answer = self.get(RTM_GETLINK, |b| {
            info(b, 0, 0);
            b.attr_str(IFLA_IFNAME, name);
        })?;
        Ok(answer.as_ref().and_then(decode_vxlan_local))
    }

    /// The link with this number.
    pub(crate) fn link_at(&mut self, index: u32) -> io::Result<Option<Link>> {
        Ok(self.get(RTM_GETLINK, |b| info(b, index, 0))?.as_ref().and_then(decode))
    }

    /// Makes a link of `kind` with its own options.
    pub(crate) fn add_kind(&mut self, kind: &str, end: &VethEnd<'_>, data: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        self.request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |b| {
            info(b, 0, IFF_UP);
            describe(b, end, 0);
            b.nest(IFLA_LINKINFO, |b| {
                b.attr_str(IFLA_INFO_KIND, kind);
                b.nest(IFLA_INFO_DATA, data);
            });
        })
    }

    /// Sets the link up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_SETLINK, 0, |b| info(b, index, IFF_UP))
    }

    /// The host end of a pod link: traffic to 127.0.0.1's ports may be translated over it, the source check stays
    /// strict (a pod sends only from its own addresses), it gets no address of its own, and it is set up.
    pub(crate) fn set_pod_side(&mut self, index: u32) -> io::Result<()> {
        self.request(RTM_SETLINK, 0, |b| {
            info(b, index, 0);
            b.nest(IFLA_AF_SPEC, |b| {
                b.nest(AF_INET, |b| {
                    b.nest(IFLA_INET_CONF, |b| {
                        b.attr_u32(DEVCONF_ROUTE_LOCALNET, 1);
                        b.attr_u32(DEVCONF_RP_FILTER, 1);
                    });
                });
            });
        })?;
        // A kernel without IPv6 refuses this; there is then nothing to turn off either.
        let _ = self.request(RTM_SETLINK, 0, |b| {
            info(b, index, 0);
            b.nest(IFLA_AF_SPEC, |b| b.nest(AF_INET6, |b| b.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE])));
        });
        self.set_up(index)
    }

    /// A link on which all neighbours are fixed: no question for a hardware address is answered (nor who asks remembered), no
    /// redirect believed or sent. Answers to what 127.0.0.1 asked of a translated port may come in by it.
    pub(crate) fn set_without_neighbours(&mut self, index: u32) -> io::Result<()> {
        let settings = [
            (DEVCONF_ACCEPT_REDIRECTS, 0),
            (DEVCONF_SEND_REDIRECTS, 0),
            (DEVCONF_ACCEPT_SOURCE_ROUTE, 0),
            (DEVCONF_ARP_IGNORE, ARP_IGNORE_ALL),
            (DEVCONF_ROUTE_LOCALNET, 1),
        ];
        self.request(RTM_SETLINK, 0, |b| {
            info(b, index, 0);
            b.nest(IFLA_AF_SPEC, |b| {
                b.nest(AF_INET, |b| {
                    b.nest(IFLA_INET_CONF, |b| settings.iter().for_each(|(what, value)| b.attr_u32(*what, *value)));
                });
            });
        })
    }

    /// The link of this name.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let answer = self.get(RTM_GETLINK, |b| {
            info(b, 0, 0);
            b.attr_str(IFLA_IFNAME, name);
        });
        match answer {
            Ok(answer) => Ok(answer.as_ref().and_then(decode)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Every link of the namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        Ok(self.dump(RTM_GETLINK, |b| info(b, 0, 0))?.iter().filter_map(decode).collect())
    }

    /// Deletes a link with its routes and its other end.
    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        match self.request(RTM_DELLINK, 0, |b| info(b, index, 0)) {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}

pub(super) fn decode_vxlan_local(answer: &Answer) -> Option<IpAddr> {
    let about = Attributes(answer.body.get(16..)?).find(IFLA_LINKINFO)?;
    let data = Attributes(about).find(IFLA_INFO_DATA)?;
    let local = Attributes(data).find(IFLA_VXLAN_LOCAL).or_else(|| Attributes(data).find(IFLA_VXLAN_LOCAL6))?;
    super::route::address_of(local)
}

pub(super) fn decode(answer: &Answer) -> Option<Link> {
    let index = ne32(answer.body.get(4..)?)?;
    let flags = ne32(answer.body.get(8..)?)?;
    let attributes = || Attributes(answer.body.get(16..).unwrap_or_default());
    let kind = attributes().find(IFLA_LINKINFO).and_then(|nested| Attributes(nested).find(IFLA_INFO_KIND));
    Some(Link {
        index,
        name: text(attributes().find(IFLA_IFNAME)?)?.to_owned(),
        group: attributes().find(IFLA_GROUP).and_then(ne32).unwrap_or(0),
        up: flags & IFF_UP != 0,
        mtu: attributes().find(IFLA_MTU).and_then(ne32).unwrap_or(0),
        kind: kind.and_then(text).unwrap_or_default().to_owned(),
    })
}
