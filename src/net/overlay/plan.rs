//! What the kernel must hold so that the pods of all other nodes are reached. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Backend;
use super::wireguard::{DevicePeer, DevicePeers, PublicKey, endpoint};
use crate::net::netlink::link::Mac;
use crate::net::netlink::route::{NextHop, Route};

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerNode {
    pub name: String,
    pub address: IpAddr,
    pub pod_cidrs: Vec<IpNet>,
    /// What it is known by, if it can speak WireGuard.
    pub key: Option<PublicKey>,
}

/// The tunnel that is used, if any, and why it is not the better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tunnel {
    WireGuard,
    Vxlan { because: Option<String> },
    None,
}

/// What all nodes find for themselves from the same list, and therefore agree on. One node without WireGuard is enough to keep
/// all of them from it, or its pods would be out of reach.
pub(super) fn choose(backend: Backend, own_key: bool, peers: &[PeerNode]) -> Tunnel {
    match backend {
        Backend::HostGw | Backend::None => Tunnel::None,
        Backend::Wireguard => Tunnel::WireGuard,
        Backend::Vxlan => Tunnel::Vxlan { because: None },
        Backend::Auto => {
            let lacking: Vec<&str> = peers.iter().filter(|p| p.key.is_none()).map(|p| &*p.name).collect();
            match (own_key, lacking.as_slice()) {
                (true, []) => Tunnel::WireGuard,
                (false, _) => Tunnel::Vxlan { because: Some("this machine has no WireGuard".into()) },
                (true, _) => {
                    let shown = lacking[..lacking.len().min(5)].join(", ");
                    let count = lacking.len();
                    Tunnel::Vxlan { because: Some(format!("{count} of the other nodes have no WireGuard: {shown}")) }
                }
            }
        }
    }
}

/// The peers that the encrypted tunnel knows, whatever tunnel is used just now: so that one that others begin to use is there.
pub(super) fn device_peers(own: &[IpNet], peers: &[PeerNode]) -> DevicePeers {
    let mut device_peers = DevicePeers::new();
    for peer in peers {
        let Some(key) = peer.key else { continue };
        let ranges = peer.pod_cidrs.iter().filter(|c| is_foreign(own, c)).map(IpNet::trunc).collect();
        // Two nodes with one key are a mistake or a lie; the first one keeps it.
        device_peers.entry(key).or_insert(DevicePeer { endpoint: Some(endpoint(peer.address)), ranges });
    }
    device_peers
}

fn is_foreign(own: &[IpNet], cidr: &IpNet) -> bool {
    !own.iter().any(|o| o.contains(cidr) || cidr.contains(o))
}

/// The links that entries are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) tunnel: Option<u32>,
    /// The encrypted tunnel, while it is used.
    pub(super) wireguard: Option<u32>,
    /// The one with the node's own address.
    pub(super) underlay: Option<u32>,
}

/// Entries of both links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) routes: BTreeSet<Route>,
    pub(super) neighbours: BTreeSet<(IpAddr, Mac)>,
    pub(super) fdb: BTreeSet<(Mac, IpAddr)>,
}

/// The hardware address of the end of the tunnel on the node with this pod range.
pub(super) fn tunnel_mac(cidr: &IpNet) -> Mac {
    let mut mac = [0x0a, 0x58, 0, 0, 0, 0];
    match cidr {
        IpNet::V4(net) => mac[2..].copy_from_slice(&net.network().octets()),
        IpNet::V6(net) => {
            // The part that tells the nodes of a cluster apart.
            let parts = net.network().segments();
            mac[2..4].copy_from_slice(&parts[2].to_be_bytes());
            mac[4..].copy_from_slice(&parts[3].to_be_bytes());
        }
    }
    mac
}

/// The address of the end of the tunnel on the node with this pod range: the one that no pod can have.
pub(super) fn tunnel_address(cidr: &IpNet) -> IpAddr {
    cidr.network()
}

/// The entries for `peers`. Those for which `is_on_link` get plain routes through their addresses, the others the tunnel, each as
/// far as there is a link for it.
pub(super) fn plan(links: Links, own: &[IpNet], peers: &[PeerNode], is_on_link: impl Fn(IpAddr) -> bool) -> Entries {
    let mut entries = Entries::default();
    for peer in peers {
        let underlay = links.underlay.filter(|_| is_on_link(peer.address));
        for cidr in peer.pod_cidrs.iter().filter(|cidr| is_foreign(own, cidr)) {
            let destination = cidr.trunc();
            if let Some(index) = links.wireguard {
                if peer.key.is_some() {
                    let source = own.iter().find(|o| o.addr().is_ipv4() == cidr.addr().is_ipv4()).map(tunnel_address);
                    entries.routes.insert(Route { destination, next_hop: NextHop::Link { index, source } });
                }
                continue;
            }
            let same_family = cidr.addr().is_ipv4() == peer.address.is_ipv4();
            if let Some(index) = underlay.filter(|_| same_family) {
                entries
                    .routes
                    .insert(Route { destination, next_hop: NextHop::Gateway { index, gateway: peer.address } });
            } else if let Some(index) = links.tunnel {
                let (gateway, mac) = (tunnel_address(cidr), tunnel_mac(cidr));
                entries.routes.insert(Route { destination, next_hop: NextHop::Onlink { index, gateway } });
                entries.neighbours.insert((gateway, mac));
                entries.fdb.insert((mac, peer.address));
            }
        }
    }
    entries
}

/// What the kernel is told, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    AddFdbEntry(Mac, IpAddr),
    AddNeighbour(IpAddr, Mac),
    AddRoute(Route),
    DeleteRoute(Route),
    DeleteNeighbour(IpAddr),
    DeleteFdbEntry(Mac, IpAddr),
}

/// From what is there to what should be there. What has the same key is replaced in place and goes last where it is not, so a
/// node that gets another address, or another next hop, is reached all the time. Entries that are as they should be are not touched.
pub(super) fn steps(present: &Entries, wanted: &Entries) -> Vec<Step> {
    let mut steps = Vec::new();
    let add = |f: &(Mac, IpAddr)| Step::AddFdbEntry(f.0, f.1);
    steps.extend(wanted.fdb.difference(&present.fdb).map(add));
    steps.extend(wanted.neighbours.difference(&present.neighbours).map(|n| Step::AddNeighbour(n.0, n.1)));
    steps.extend(wanted.routes.difference(&present.routes).map(|r| Step::AddRoute(*r)));
    let replaced = |r: &&Route| wanted.routes.iter().any(|w| w.destination == r.destination);
    steps.extend(present.routes.difference(&wanted.routes).filter(|r| !replaced(r)).map(|r| Step::DeleteRoute(*r)));
    let replaced = |n: &&(IpAddr, Mac)| wanted.neighbours.iter().any(|w| w.0 == n.0);
    let gone = present.neighbours.difference(&wanted.neighbours).filter(|n| !replaced(n));
    steps.extend(gone.map(|n| Step::DeleteNeighbour(n.0)));
    let replaced = |f: &&(Mac, IpAddr)| wanted.fdb.iter().any(|w| w.0 == f.0);
    let gone = present.fdb.difference(&wanted.fdb).filter(|f| !replaced(f));
    steps.extend(gone.map(|f| Step::DeleteFdbEntry(f.0, f.1)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn peers() -> Vec<PeerNode> {
        let peer = |address: &str, cidr: &str| PeerNode {
            name: format!("node-{address}"),
            address: address.parse().unwrap(),
            pod_cidrs: vec![net(cidr)],
            key: None,
        };
        vec![peer("192.0.2.2", "10.42.1.0/24"), peer("192.0.2.3", "10.42.2.0/24"), peer("192.0.2.1", "10.42.0.0/24")]
    }

    const TUNNEL: Links = Links { tunnel: Some(7), wireguard: None, underlay: None };
    const BOTH: Links = Links { tunnel: Some(7), wireguard: None, underlay: Some(3) };

    #[test]
    fn each_peer_has_a_route_a_neighbour_and_a_forwarding_entry_and_the_own_range_has_none() {
        let plan = plan(TUNNEL, &[net("10.42.0.0/24")], &peers(), |_| true);
        let gateway: IpAddr = "10.42.1.0".parse().unwrap();
        assert!(
            plan.routes
                .contains(&Route { destination: net("10.42.1.0/24"), next_hop: NextHop::Onlink { index: 7, gateway } })
        );
        let mac = [0x0a, 0x58, 10, 42, 1, 0];
        assert!(plan.neighbours.contains(&(gateway, mac)));
        assert!(plan.fdb.contains(&(mac, "192.0.2.2".parse().unwrap())));
        assert_eq!((plan.routes.len(), plan.neighbours.len(), plan.fdb.len()), (2, 2, 2));
    }

    #[test]
    fn plain_routes_lead_to_the_nodes() {
        let links = Links { underlay: Some(3), ..Links::default() };
        let plan = plan(links, &[net("10.42.0.0/24")], &peers(), |_| true);
        let gateway: IpAddr = "192.0.2.3".parse().unwrap();
        assert!(
            plan.routes.contains(&Route {
                destination: net("10.42.2.0/24"),
                next_hop: NextHop::Gateway { index: 3, gateway }
            })
        );
        assert!(plan.neighbours.is_empty() && plan.fdb.is_empty());
        assert_eq!(super::plan(Links::default(), &[], &peers(), |_| true), Entries::default());
    }

    #[test]
    fn a_node_that_moves_changes_its_way_in_place_and_no_other_nodes() {
        let near = |address: IpAddr| address.to_string().starts_with("192.0.2.");
        let own = [net("10.42.0.0/24")];
        let mut all = peers();
        let before = plan(BOTH, &own, &all, near);
        assert_eq!((before.routes.len(), before.neighbours.len(), before.fdb.len()), (2, 0, 0));
        all[1].address = "198.51.100.3".parse().unwrap();
        let far = plan(BOTH, &own, &all, near);
        assert_eq!((far.routes.len(), far.neighbours.len(), far.fdb.len()), (2, 1, 1));
        let (mac, gateway): (Mac, IpAddr) = ([0x0a, 0x58, 10, 42, 2, 0], "10.42.2.0".parse().unwrap());
        let through = Route { destination: net("10.42.2.0/24"), next_hop: NextHop::Onlink { index: 7, gateway } };
        let plain = Route { next_hop: NextHop::Gateway { index: 3, gateway: "192.0.2.3".parse().unwrap() }, ..through };
        let there = [Step::AddFdbEntry(mac, all[1].address), Step::AddNeighbour(gateway, mac), Step::AddRoute(through)];
        assert_eq!(steps(&before, &far), there, "replaced, and only when the way is ready");
        let back = [Step::AddRoute(plain), Step::DeleteNeighbour(gateway), Step::DeleteFdbEntry(mac, all[1].address)];
        assert_eq!(steps(&far, &before), back);
        all[1].address = "198.51.100.4".parse().unwrap();
        let elsewhere = plan(BOTH, &own, &all, near);
        assert_eq!(steps(&far, &elsewhere), [Step::AddFdbEntry(mac, all[1].address)]);
        assert_eq!(steps(&before, &Entries::default()).len(), 2);
        assert!(steps(&far, &far).is_empty());
    }

    fn with_keys() -> Vec<PeerNode> {
        let key = |n: u8| base64_of(n).parse().ok();
        (1..).zip(peers()).map(|(n, peer)| PeerNode { key: key(n), ..peer }).collect()
    }

    fn base64_of(byte: u8) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode([byte; 32])
    }

    #[test]
    fn wireguard_is_used_when_all_nodes_have_it_and_all_find_the_same() {
        let all = with_keys();
        assert_eq!(choose(Backend::Auto, true, &all), Tunnel::WireGuard);
        assert_eq!(choose(Backend::Auto, true, &[]), Tunnel::WireGuard, "a cluster of one");
        let mut mixed = all.clone();
        mixed[1].key = None;
        let Tunnel::Vxlan { because: Some(why) } = choose(Backend::Auto, true, &mixed) else { panic!() };
        assert!(why.contains("1 of the other nodes") && why.contains("node-192.0.2.3"), "{why}");
        let Tunnel::Vxlan { because: Some(why) } = choose(Backend::Auto, false, &all) else { panic!() };
        assert!(why.contains("this machine"), "{why}");
        assert_eq!(choose(Backend::Wireguard, true, &mixed), Tunnel::WireGuard, "never less than was asked for");
        assert_eq!(choose(Backend::Vxlan, true, &all), Tunnel::Vxlan { because: None });
        assert_eq!(choose(Backend::HostGw, true, &all), Tunnel::None);
    }

    #[test]
    fn with_wireguard_peers_have_their_ranges_and_routes_and_those_without_a_key_nothing() {
        let mut all = with_keys();
        all[1].key = None;
        let own = [net("10.42.0.0/24")];
        let known = device_peers(&own, &all);
        let device_peer = &known[&all[0].key.unwrap()];
        assert_eq!(device_peer.endpoint, Some("192.0.2.2:51871".parse().unwrap()));
        assert_eq!(device_peer.ranges, [net("10.42.1.0/24")].into());
        assert_eq!(known.len(), 2);
        assert!(known[&all[2].key.unwrap()].ranges.is_empty(), "this node's own range is nobody else's");
        let links = Links { tunnel: Some(7), wireguard: Some(9), underlay: Some(3) };
        let entries = plan(links, &own, &all, |_| true);
        let source = Some("10.42.0.0".parse().unwrap());
        let next_hop = NextHop::Link { index: 9, source };
        assert_eq!(entries.routes, [Route { destination: net("10.42.1.0/24"), next_hop }].into());
        assert!(entries.neighbours.is_empty() && entries.fdb.is_empty());
        // From one tunnel to the other the route is replaced, never missing.
        let before = plan(TUNNEL, &own, &all, |_| false);
        let first = steps(&before, &entries);
        assert_eq!(first[0], Step::AddRoute(Route { destination: net("10.42.1.0/24"), next_hop }));
    }

    #[test]
    fn two_nodes_with_one_key_do_not_share_a_range() {
        let mut all = with_keys();
        all[1].key = all[0].key;
        let known = device_peers(&[], &all);
        assert_eq!(known[&all[0].key.unwrap()].ranges, [net("10.42.1.0/24")].into());
    }

    #[test]
    fn hardware_addresses_of_a_cluster_differ() {
        let macs: BTreeSet<Mac> = (0..=255).map(|n| tunnel_mac(&net(&format!("10.42.{n}.0/24")))).collect();
        assert_eq!(macs.len(), 256);
        assert_ne!(tunnel_mac(&net("fd00:42:0:1::/64")), tunnel_mac(&net("fd00:42:0:2::/64")));
    }
}
