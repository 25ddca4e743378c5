//! The overlay in the kernel: the tunnels' links, and the difference between what is there and what is planned.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use netlink_packet_route::link::InfoKind;

use super::plan::{self, Entries, Links, PeerNode, Step, Tunnel};
use super::wireguard::{self, Device, DevicePeers, PublicKey};
use super::{
    Backend, ENCRYPTED_BYTES, ENCRYPTED_BYTES_IPV6, HEADER_BYTES, HEADER_BYTES_IPV6, NETWORK_ID, Options, PORT,
    WIREGUARD_PORT, key, vxlan_name, wireguard_name,
};
use crate::net::netlink::Connection;
use crate::net::netlink::link::{Link, NewLink, Vxlan};
use crate::net::netlink::route::{NextHop, host_net};
use crate::net::nft::Guard;
use crate::net::nft::guard::NodeSets;
use crate::net::pod::group;
use crate::net::settings::configure_link;
use crate::net::{Config, Error};

/// What the kernel takes for a link whose own limit is not known.
const USUAL_MTU: u32 = 1500;

/// This node's end.
pub struct Overlay {
    config: Config,
    options: Options,
    tunnel: Option<u32>,
    wireguard: Option<Mutex<WireGuard>>,
    guard: Arc<Guard>,
    /// One change at a time.
    applying: Mutex<()>,
}

/// The encrypted tunnel's link, which is there before the node is known to the cluster, so that the node comes with its key.
pub struct WireGuard {
    index: u32,
    device: Device,
    directory: PathBuf,
    made: Timestamp,
    public: PublicKey,
    /// Endpoints that were set by this process.
    configured: BTreeMap<PublicKey, SocketAddr>,
}

/// A key that is not used yet.
#[derive(Debug)]
pub struct PendingKey {
    stored: key::Stored,
    /// What the node will be known by.
    pub public: PublicKey,
}

// === impl WireGuard ===

impl WireGuard {
    /// Makes the link where it is missing, with the key that is kept in `directory`, or a new one. Works in the network namespace
    /// of the calling thread.
    pub fn open(config: &Config, directory: &Path, now: Timestamp) -> Result<Self, Error> {
        let stored = match key::load(directory, now)? {
            Some(stored) => stored,
            None => {
                let stored = key::make(now)?;
                key::save(directory, &stored)?;
                stored
            }
        };
        let name = wireguard_name(config);
        let open = || -> io::Result<(u32, Device, PublicKey)> {
            let mut host = Connection::open()?;
            let fits = |l: &Link| l.kind == Some(InfoKind::Wireguard) && (config.mtu == 0 || l.mtu == config.mtu);
            if !host.link(&name)?.as_ref().is_some_and(fits) {
                remove(&mut host, &name)?;
                host.add_wireguard(&name, group(config), config.mtu)?;
            }
            let link = host.link(&name)?.ok_or(io::ErrorKind::NotFound)?;
            let mut device = Device::open(&name)?;
            device.set_key(&stored.key, WIREGUARD_PORT)?;
            let public = device.read()?.0.ok_or(io::ErrorKind::InvalidData)?;
            configure_link(&mut host, link.index, &name)?;
            // Fails where somebody else has the port.
            host.set_up(link.index)?;
            Ok((link.index, device, public))
        };
        match open() {
            Ok((index, device, public)) => {
                let (directory, configured) = (directory.to_owned(), BTreeMap::new());
                Ok(Self { index, device, directory, made: stored.made, public, configured })
            }
            Err(error) => {
                let _ = Connection::open().and_then(|mut host| remove(&mut host, &name));
                Err(Error::kernel(format!("cannot make the WireGuard link {name} on port {WIREGUARD_PORT}"))(error))
            }
        }
    }

    /// What the node is known by.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    fn apply(&mut self, wanted: &DevicePeers) -> io::Result<()> {
        let present = self.device.read()?.1;
        let changes = wireguard::changes(&present, wanted, &self.configured);
        if !changes.is_empty() {
            self.device.apply(&changes)?;
        }
        self.configured = wanted.iter().filter_map(|(key, device_peer)| Some((*key, device_peer.endpoint?))).collect();
        Ok(())
    }
}

impl std::fmt::Debug for WireGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WireGuard({})", self.public)
    }
}

/// The largest packets that pods may send so that they fit through the overlay; 0 leaves it to the kernel.
pub fn mtu(backend: Backend, address: IpAddr) -> Result<u32, Error> {
    let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
    let below = underlay(&mut host, address).map_err(Error::kernel("cannot list addresses"))?;
    let below = below.map_or(USUAL_MTU, |l| if l.name == "lo" { USUAL_MTU } else { l.mtu });
    Ok(match (backend, address) {
        (Backend::Auto | Backend::Wireguard, IpAddr::V4(_)) => below.saturating_sub(ENCRYPTED_BYTES),
        (Backend::Auto | Backend::Wireguard, IpAddr::V6(_)) => below.saturating_sub(ENCRYPTED_BYTES_IPV6),
        (Backend::Vxlan, IpAddr::V4(_)) => below.saturating_sub(HEADER_BYTES),
        (Backend::Vxlan, IpAddr::V6(_)) => below.saturating_sub(HEADER_BYTES_IPV6),
        (Backend::HostGw | Backend::None, _) => below,
    })
}

fn underlay(host: &mut Connection, address: IpAddr) -> io::Result<Option<Link>> {
    match host.link_of(address)? {
        Some(index) => host.link_at(index),
        None => Ok(None),
    }
}

// === impl Overlay ===

impl Overlay {
    /// Makes the link where it is missing or is another one than it should be. Works in the network namespace of the calling
    /// thread.
    pub fn open(
        config: Config,
        options: Options,
        guard: Arc<Guard>,
        wireguard: Option<WireGuard>,
    ) -> Result<Self, Error> {
        let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
        let failed = |name: &str| Error::kernel(format!("cannot make the overlay link {name}"));
        let name = vxlan_name(&config);
        let tunnel = match options.backend.has_vxlan() {
            true => match tunnel(&mut host, &config, &options) {
                Err(error) if wireguard.is_some() => {
                    tracing::warn!(%error, link = name, "VXLAN cannot be used; nodes without WireGuard are out of reach");
                    None
                }
                made => Some(made.map_err(|error| refused(&mut host, &name, error))?),
            },
            false => {
                remove(&mut host, &name).map_err(failed(&name))?;
                None
            }
        };
        match &wireguard {
            Some(wireguard) => {
                let ends = || config.pod_cidrs.iter().map(plan::tunnel_address).collect::<BTreeSet<_>>().into_iter();
                let added = ends().try_for_each(|end| host.add_address(wireguard.index, host_net(end)));
                added.map_err(failed(&wireguard_name(&config)))?;
            }
            None => remove(&mut host, &wireguard_name(&config)).map_err(failed(&wireguard_name(&config)))?,
        }
        let underlay = host.link_of(options.address).map_err(Error::kernel("cannot list addresses"))?;
        if underlay.is_none() && options.backend == Backend::HostGw {
            return Err(Error::Config(format!("no link has the node's address {}", options.address)));
        }
        Ok(Self { config, options, tunnel, wireguard: wireguard.map(Mutex::new), guard, applying: Mutex::default() })
    }

    fn wireguard(&self) -> Option<MutexGuard<'_, WireGuard>> {
        Some(self.wireguard.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this node is known by in the encrypted tunnel, if it can be in one.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.wireguard().map(|w| w.public)
    }

    /// How long the key is still good.
    pub fn key_lifetime_left(&self, now: Timestamp) -> Option<Duration> {
        key::lifetime_left(self.wireguard()?.made, now)
    }

    /// Makes another key. The kernel says what it will be known by, on a link that is there for this alone.
    pub fn make_pending_key(&self, now: Timestamp) -> Result<PendingKey, Error> {
        let stored = key::make(now)?;
        let name = format!("ampk{}", std::process::id());
        let known = || -> io::Result<PublicKey> {
            let mut host = Connection::open()?;
            remove(&mut host, &name)?;
            host.add_wireguard(&name, group(&self.config), 0)?;
            let public = Device::open(&name).and_then(|mut device| {
                device.set_key(&stored.key, 0)?;
                device.read()?.0.ok_or_else(|| io::ErrorKind::InvalidData.into())
            });
            remove(&mut host, &name)?;
            public
        };
        let public = known().map_err(Error::kernel("cannot make another WireGuard key"))?;
        Ok(PendingKey { stored, public })
    }

    /// Uses a key that the other nodes have been told of. Handshakes are begun with all peers, so that sessions begin anew from both ends.
    pub fn activate_key(&self, pending: PendingKey) -> Result<(), Error> {
        let Some(mut wireguard) = self.wireguard() else { return Ok(()) };
        let saved = key::save(&wireguard.directory, &pending.stored);
        let switch = |w: &mut WireGuard| {
            w.device.set_key(&pending.stored.key, WIREGUARD_PORT)?;
            w.public = pending.public;
            w.made = pending.stored.made;
            let all: Vec<PublicKey> = w.configured.keys().copied().collect();
            w.device.initiate_handshakes(&all)
        };
        switch(&mut wireguard).map_err(Error::kernel("cannot use another WireGuard key"))?;
        // Then the next start begins with the old one, and tells so.
        saved
    }

    /// Makes the kernel hold what is needed for these nodes, and no more. Answers which tunnel is used.
    pub fn apply(&self, peers: &[PeerNode]) -> Result<Tunnel, Error> {
        let _applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = plan::choose(self.options.backend, self.wireguard.is_some(), peers);
        self.guard.apply(&self.node_sets(peers, &chosen))?;
        if self.options.backend == Backend::None {
            return Ok(chosen);
        }
        let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
        let underlay = host.link_of(self.options.address).map_err(Error::kernel("cannot list addresses"))?;
        let own = &self.config.pod_cidrs;
        let mut encrypted = None;
        if let Some(mut wireguard) = self.wireguard() {
            let applied = wireguard.apply(&plan::device_peers(own, peers));
            applied.map_err(Error::kernel("cannot change the peers of the WireGuard link"))?;
            encrypted = Some(wireguard.index);
        }
        let there = Links { tunnel: self.tunnel, wireguard: encrypted, underlay };
        let used = Links { wireguard: encrypted.filter(|_| chosen == Tunnel::WireGuard), ..there };
        let on_link = self.on_link(&mut host, used, peers).map_err(Error::kernel("cannot look routes up"))?;
        let wanted = plan::plan(used, own, peers, |address| on_link.contains(&address));
        let present = present(&mut host, there).map_err(Error::kernel("cannot list the overlay's entries"))?;
        let steps = plan::steps(&present, &wanted);
        let applied = steps.iter().try_for_each(|step| apply_step(&mut host, self.tunnel.unwrap_or(0), step));
        applied.map_err(Error::kernel("cannot change the overlay's entries"))?;
        Ok(chosen)
    }

    /// What the guard has to know of them.
    fn node_sets(&self, peers: &[PeerNode], chosen: &Tunnel) -> NodeSets {
        let others: BTreeSet<IpAddr> = peers.iter().map(|p| p.address).collect();
        let own = self.config.addresses.iter().chain([&self.options.address]);
        let nodes = others.iter().chain(own).copied().collect();
        NodeSets { nodes, senders: if matches!(chosen, Tunnel::Vxlan { .. }) { others } else { BTreeSet::new() } }
    }

    /// The addresses of those that get plain routes.
    fn on_link(&self, host: &mut Connection, links: Links, peers: &[PeerNode]) -> io::Result<BTreeSet<IpAddr>> {
        let all = peers.iter().map(|p| p.address);
        match (links.underlay, self.options.backend) {
            (Some(_), Backend::HostGw) => Ok(all.collect()),
            (Some(underlay), Backend::Auto | Backend::Vxlan) if self.options.direct_routing => {
                let mut on_link = BTreeSet::new();
                for address in all {
                    if host.is_on_link(address, underlay)? {
                        on_link.insert(address);
                    }
                }
                Ok(on_link)
            }
            _ => Ok(BTreeSet::new()),
        }
    }
}

/// What is there of ours, on both links, so that it is found also after a change of the backend.
fn present(host: &mut Connection, links: Links) -> io::Result<Entries> {
    let ours = |next_hop: &NextHop| match next_hop {
        NextHop::Onlink { index, .. } | NextHop::Gateway { index, .. } => {
            [links.tunnel, links.underlay].contains(&Some(*index))
        }
        NextHop::Link { index, .. } => links.wireguard == Some(*index),
        NextHop::Unreachable => false,
    };
    let routes = host.own_routes()?.into_iter().filter(|r| ours(&r.next_hop)).collect();
    let Some(tunnel) = links.tunnel else { return Ok(Entries { routes, ..Entries::default() }) };
    let neighbours = host.neighbours(tunnel)?.into_iter().collect();
    Ok(Entries { routes, neighbours, fdb: host.fdb_entries(tunnel)?.into_iter().collect() })
}

fn apply_step(host: &mut Connection, tunnel: u32, step: &Step) -> io::Result<()> {
    match step {
        Step::AddFdbEntry(mac, address) => host.add_fdb_entry(tunnel, *mac, *address),
        Step::AddNeighbour(address, mac) => host.add_neighbour(tunnel, *address, *mac),
        Step::AddRoute(route) => host.add_route(route),
        Step::DeleteRoute(route) => host.delete_route(route),
        Step::DeleteNeighbour(address) => host.delete_neighbour(tunnel, *address),
        Step::DeleteFdbEntry(mac, address) => host.delete_fdb_entry(tunnel, *mac, *address),
    }
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Overlay({:?} on link {:?})", self.options.backend, self.tunnel)
    }
}

fn tunnel(host: &mut Connection, config: &Config, options: &Options) -> io::Result<u32> {
    let name = vxlan_name(config);
    let first = config.pod_cidrs.first().copied().ok_or(io::ErrorKind::InvalidInput)?;
    let vxlan = Vxlan { id: NETWORK_ID, port: PORT, local: Some(options.address) };
    let end = NewLink { name: &name, mac: plan::tunnel_mac(&first), group: group(config), mtu: config.mtu };
    // Kept over restarts, so that no connection is interrupted; another range or address needs another link.
    let fits = match host.link(&name)? {
        Some(link) => {
            link.kind == Some(InfoKind::Vxlan)
                && link.mtu == config.mtu
                && link.vxlan_local == Some(options.address)
                && host.has_address(link.index, plan::tunnel_address(&first))?
        }
        None => false,
    };
    if !fits {
        remove(host, &name)?;
        host.add_vxlan(&end, &vxlan)?;
    }
    let link = host.link(&name)?.ok_or(io::ErrorKind::NotFound)?;
    configure_link(host, link.index, &name)?;
    host.set_up(link.index)?;
    for cidr in config.pod_cidrs.iter().map(plan::tunnel_address).collect::<BTreeSet<_>>() {
        host.add_address(link.index, host_net(cidr))?;
    }
    Ok(link.index)
}

/// Why there can be no VXLAN link, with what helps.
fn refused(host: &mut Connection, name: &str, error: io::Error) -> Error {
    let others =
        host.links().unwrap_or_default().into_iter().filter(|l| l.kind == Some(InfoKind::Vxlan) && l.name != name);
    let others: Vec<String> = others.map(|l| l.name).collect();
    let why = match (error.kind(), others.as_slice()) {
        (io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse, [_, ..]) => format!(
            "cannot make the overlay link {name}: network {NETWORK_ID} or UDP port {PORT} is taken by another VXLAN link \
             ({}): remove that one, or choose another --overlay on the server",
            others.join(", ")
        ),
        (io::ErrorKind::AddrInUse, []) => {
            format!(
                "cannot make the overlay link {name}: UDP port {PORT} is taken: free it, or choose another --overlay"
            )
        }
        (io::ErrorKind::Unsupported, _) => format!(
            "cannot make the overlay link {name}: this kernel has no VXLAN (module vxlan): load it, or choose another \
             --overlay on the server"
        ),
        _ => format!("cannot make the overlay link {name}"),
    };
    Error::kernel(why)(error)
}

fn remove(host: &mut Connection, name: &str) -> io::Result<()> {
    match host.link(name)? {
        Some(link) => host.delete_link(link.index),
        None => Ok(()),
    }
}
