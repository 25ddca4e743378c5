//! The overlay in the kernel: the link, and the difference between what it holds and what is planned.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::plan::{self, Entries, Peer};
use super::{Backend, HEADER_BYTES, HEADER_BYTES_IPV6, NETWORK_ID, Options, PORT};
use crate::net::netlink::Socket;
use crate::net::netlink::link::{Link, VethEnd, Vxlan};
use crate::net::netlink::route::{Way, host_net};
use crate::net::pod::group;
use crate::net::{Config, Error};

/// What the kernel takes for a link whose own limit is not known.
const USUAL_MTU: u32 = 1500;

/// This node's end.
pub struct Overlay {
    config: Config,
    options: Options,
    /// The tunnel, or the link to the segment.
    index: u32,
    /// One change at a time.
    turn: Mutex<()>,
}

/// The largest packets that pods may send so that they fit through the overlay; 0 leaves it to the kernel.
pub fn mtu(backend: Backend, address: IpAddr) -> Result<u32, Error> {
    let mut host = Socket::route().map_err(Error::kernel("cannot open a netlink socket"))?;
    let below = underlay(&mut host, address).map_err(Error::kernel("cannot list addresses"))?;
    let below = below.map_or(USUAL_MTU, |l| if l.name == "lo" { USUAL_MTU } else { l.mtu });
    Ok(match (backend, address) {
        (Backend::Vxlan, IpAddr::V4(_)) => below.saturating_sub(HEADER_BYTES),
        (Backend::Vxlan, IpAddr::V6(_)) => below.saturating_sub(HEADER_BYTES_IPV6),
        (Backend::HostGw | Backend::None, _) => below,
    })
}

fn underlay(host: &mut Socket, address: IpAddr) -> io::Result<Option<Link>> {
    match host.link_of(address)? {
        Some(index) => host.link_at(index),
        None => Ok(None),
    }
}

/// Name of the tunnel link.
fn name(config: &Config) -> String {
    format!("{}.vx", config.bridge)
}

// === impl Overlay ===

impl Overlay {
    /// Makes the link where it is missing or is another one than it should be. Works in the network namespace of the calling
    /// thread.
    pub fn open(config: Config, options: Options) -> Result<Self, Error> {
        let mut host = Socket::route().map_err(Error::kernel("cannot open a netlink socket"))?;
        let index = match options.backend {
            Backend::Vxlan => tunnel(&mut host, &config, &options),
            Backend::HostGw | Backend::None => {
                remove_tunnel(&mut host, &config).and_then(|()| Ok(host.link_of(options.address)?.unwrap_or(0)))
            }
        };
        let index = index.map_err(Error::kernel(format!("cannot make the overlay link {}", name(&config))))?;
        if index == 0 && options.backend == Backend::HostGw {
            return Err(Error::Config(format!("no link has the node's address {}", options.address)));
        }
        Ok(Self { config, options, index, turn: Mutex::default() })
    }

    /// Makes the kernel hold what is needed for these nodes, and no more.
    pub fn apply(&self, peers: &[Peer]) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.backend == Backend::None {
            return Ok(());
        }
        let mut host = Socket::route().map_err(Error::kernel("cannot open a netlink socket"))?;
        let wanted = plan::plan(self.options.backend, self.index, &self.config.pod_cidrs, peers);
        let present = self.present(&mut host).map_err(Error::kernel("cannot list the overlay's entries"))?;
        self.change(&mut host, &present, &wanted).map_err(Error::kernel("cannot change the overlay's entries"))
    }

    fn present(&self, host: &mut Socket) -> io::Result<Entries> {
        let ours = |way: &Way| match way {
            Way::Onlink { index, .. } | Way::Gateway { index, .. } => *index == self.index,
            Way::Link { .. } | Way::Unreachable => false,
        };
        let routes = host.own_routes()?.into_iter().filter(|r| ours(&r.way)).collect();
        if self.options.backend != Backend::Vxlan {
            return Ok(Entries { routes, ..Entries::default() });
        }
        let neighbours = host.neighbours(self.index)?.into_iter().collect();
        Ok(Entries { routes, neighbours, forwardings: host.forwardings(self.index)?.into_iter().collect() })
    }

    /// What is no longer wanted goes first: a node may have taken over another one's range.
    fn change(&self, host: &mut Socket, present: &Entries, wanted: &Entries) -> io::Result<()> {
        for route in present.routes.difference(&wanted.routes) {
            host.delete_route(route)?;
        }
        for (address, _) in present.neighbours.difference(&wanted.neighbours) {
            host.delete_neighbour(self.index, *address)?;
        }
        for (mac, address) in present.forwardings.difference(&wanted.forwardings) {
            host.delete_forwarding(self.index, *mac, *address)?;
        }
        for (mac, address) in wanted.forwardings.difference(&present.forwardings) {
            host.add_forwarding(self.index, *mac, *address)?;
        }
        for (address, mac) in wanted.neighbours.difference(&present.neighbours) {
            host.add_neighbour(self.index, *address, *mac)?;
        }
        for route in wanted.routes.difference(&present.routes) {
            host.add_route(route)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({:?} on link {})", self.options.backend, self.index)
    }
}

fn tunnel(host: &mut Socket, config: &Config, options: &Options) -> io::Result<u32> {
    let name = name(config);
    let first = config.pod_cidrs.first().copied().ok_or(io::ErrorKind::InvalidInput)?;
    let vxlan = Vxlan { id: NETWORK_ID, port: PORT, local: options.address, mtu: config.mtu };
    let end = VethEnd { name: &name, mac: plan::mac(&first), group: group(config) };
    // Kept over restarts, so that no connection is interrupted; another range or address needs another link.
    let fits = match host.link(&name)? {
        Some(link) => {
            link.kind == "vxlan"
                && link.mtu == config.mtu
                && host.link_of(plan::end(&first))? == Some(link.index)
                && host.vxlan_local(&name)? == Some(options.address)
        }
        None => false,
    };
    if !fits {
        remove_tunnel(host, config)?;
        host.add_vxlan(&end, &vxlan)?;
    }
    let link = host.link(&name)?.ok_or(io::ErrorKind::NotFound)?;
    host.set_up(link.index)?;
    for cidr in config.pod_cidrs.iter().map(plan::end).collect::<BTreeSet<_>>() {
        host.add_address(link.index, host_net(cidr))?;
    }
    Ok(link.index)
}

fn remove_tunnel(host: &mut Socket, config: &Config) -> io::Result<()> {
    match host.link(&name(config))? {
        Some(link) => host.delete_link(link.index),
        None => Ok(()),
    }
}
