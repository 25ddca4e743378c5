//! The overlay in the kernel: the tunnel's link, and the difference between what is there and what is planned.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::plan::{self, Entries, Links, Peer, Step};
use super::{Backend, HEADER_BYTES, HEADER_BYTES_IPV6, NETWORK_ID, Options, PORT, vxlan_name};
use crate::net::netlink::Socket;
use crate::net::netlink::link::{Link, VethEnd, Vxlan};
use crate::net::netlink::route::{Way, family, host_net};
use crate::net::nft::Guard;
use crate::net::nft::guard::Segment;
use crate::net::pod::group;
use crate::net::settings::settle;
use crate::net::{Config, Error};

/// What the kernel takes for a link whose own limit is not known.
const USUAL_MTU: u32 = 1500;

/// This node's end.
pub struct Overlay {
    config: Config,
    options: Options,
    tunnel: Option<u32>,
    guard: Arc<Guard>,
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

// === impl Overlay ===

impl Overlay {
    /// Makes the link where it is missing or is another one than it should be. Works in the network namespace of the calling
    /// thread.
    pub fn open(config: Config, options: Options, guard: Arc<Guard>) -> Result<Self, Error> {
        let mut host = Socket::route().map_err(Error::kernel("cannot open a netlink socket"))?;
        let failed = || Error::kernel(format!("cannot make the overlay link {}", vxlan_name(&config)));
        let tunnel = match options.backend {
            Backend::Vxlan => Some(tunnel(&mut host, &config, &options).map_err(failed())?),
            Backend::HostGw | Backend::None => {
                remove_tunnel(&mut host, &config).map_err(failed())?;
                None
            }
        };
        let segment = host.link_of(options.address).map_err(Error::kernel("cannot list addresses"))?;
        if segment.is_none() && options.backend == Backend::HostGw {
            return Err(Error::Config(format!("no link has the node's address {}", options.address)));
        }
        Ok(Self { config, options, tunnel, guard, turn: Mutex::default() })
    }

    /// Makes the kernel hold what is needed for these nodes, and no more.
    pub fn apply(&self, peers: &[Peer]) -> Result<(), Error> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard.apply(&self.segment(peers))?;
        if self.options.backend == Backend::None {
            return Ok(());
        }
        let mut host = Socket::route().map_err(Error::kernel("cannot open a netlink socket"))?;
        let segment = host.link_of(self.options.address).map_err(Error::kernel("cannot list addresses"))?;
        let links = Links { tunnel: self.tunnel, segment };
        let near = self.near(&mut host, links, peers).map_err(Error::kernel("cannot look routes up"))?;
        let wanted = plan::plan(links, &self.config.pod_cidrs, peers, |address| near.contains(&address));
        let present = present(&mut host, links).map_err(Error::kernel("cannot list the overlay's entries"))?;
        let steps = plan::steps(&present, &wanted);
        let applied = steps.iter().try_for_each(|step| take(&mut host, self.tunnel.unwrap_or(0), step));
        applied.map_err(Error::kernel("cannot change the overlay's entries"))
    }

    /// What the guard has to know of them.
    fn segment(&self, peers: &[Peer]) -> Segment {
        let others: BTreeSet<IpAddr> = peers.iter().map(|p| p.address).collect();
        let own = self.config.addresses.iter().chain([&self.options.address]);
        let nodes = others.iter().chain(own).copied().collect();
        Segment { nodes, senders: if self.tunnel.is_some() { others } else { BTreeSet::new() } }
    }

    /// The addresses of those that get plain routes.
    fn near(&self, host: &mut Socket, links: Links, peers: &[Peer]) -> io::Result<BTreeSet<IpAddr>> {
        let all = peers.iter().map(|p| p.address);
        match (links.segment, self.options.backend) {
            (Some(_), Backend::HostGw) => Ok(all.collect()),
            (Some(segment), Backend::Vxlan) if self.options.direct_routing => {
                let mut near = BTreeSet::new();
                for address in all {
                    if host.is_on_link(address, segment)? {
                        near.insert(address);
                    }
                }
                Ok(near)
            }
            _ => Ok(BTreeSet::new()),
        }
    }
}

/// What is there of ours, on both links, so that it is found also after a change of the backend.
fn present(host: &mut Socket, links: Links) -> io::Result<Entries> {
    let ours = |way: &Way| match way {
        Way::Onlink { index, .. } | Way::Gateway { index, .. } => [links.tunnel, links.segment].contains(&Some(*index)),
        Way::Link { .. } | Way::Unreachable => false,
    };
    let routes = host.own_routes()?.into_iter().filter(|r| ours(&r.way)).collect();
    let Some(tunnel) = links.tunnel else { return Ok(Entries { routes, ..Entries::default() }) };
    let neighbours = host.neighbours(tunnel)?.into_iter().collect();
    Ok(Entries { routes, neighbours, forwardings: host.forwardings(tunnel)?.into_iter().collect() })
}

fn take(host: &mut Socket, tunnel: u32, step: &Step) -> io::Result<()> {
    match step {
        Step::AddForwarding(mac, address) => host.add_forwarding(tunnel, *mac, *address),
        Step::AddNeighbour(address, mac) => host.add_neighbour(tunnel, *address, *mac),
        Step::AddRoute(route) => host.add_route(route),
        Step::DeleteRoute(route) => host.delete_route(route),
        Step::DeleteNeighbour(address) => host.delete_neighbour(tunnel, *address),
        Step::DeleteForwarding(mac, address) => host.delete_forwarding(tunnel, *mac, *address),
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({:?} on link {:?})", self.options.backend, self.tunnel)
    }
}

fn tunnel(host: &mut Socket, config: &Config, options: &Options) -> io::Result<u32> {
    let name = vxlan_name(config);
    let first = config.pod_cidrs.first().copied().ok_or(io::ErrorKind::InvalidInput)?;
    let vxlan = Vxlan { id: NETWORK_ID, port: PORT, local: options.address, mtu: config.mtu };
    let end = VethEnd { name: &name, mac: plan::mac(&first), group: group(config) };
    // Kept over restarts, so that no connection is interrupted; another range or address needs another link.
    let fits = match host.link(&name)? {
        Some(link) => {
            link.kind == "vxlan"
                && link.mtu == config.mtu
                && has(host, link.index, plan::end(&first))?
                && host.vxlan_local(&name)? == Some(options.address)
        }
        None => false,
    };
    if !fits {
        remove_tunnel(host, config)?;
        host.add_vxlan(&end, &vxlan)?;
    }
    let link = host.link(&name)?.ok_or(io::ErrorKind::NotFound)?;
    settle(host, link.index, &name)?;
    host.set_up(link.index)?;
    for cidr in config.pod_cidrs.iter().map(plan::end).collect::<BTreeSet<_>>() {
        host.add_address(link.index, host_net(cidr))?;
    }
    Ok(link.index)
}

fn has(host: &mut Socket, index: u32, address: IpAddr) -> io::Result<bool> {
    Ok(host.addresses(family(address))?.contains(&(index, address)))
}

fn remove_tunnel(host: &mut Socket, config: &Config) -> io::Result<()> {
    match host.link(&vxlan_name(config))? {
        Some(link) => host.delete_link(link.index),
        None => Ok(()),
    }
}
