//! What the kernel must hold so that the pods of all other nodes are reached. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Backend;
use crate::net::netlink::link::Mac;
use crate::net::netlink::route::{Route, Way, octets};

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    pub address: IpAddr,
    pub pod_cidrs: Vec<IpNet>,
}

/// Entries of one link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) routes: BTreeSet<Route>,
    pub(super) neighbours: BTreeSet<(IpAddr, Mac)>,
    pub(super) forwardings: BTreeSet<(Mac, IpAddr)>,
}

/// The hardware address of the end of the tunnel on the node with this pod range.
pub(super) fn mac(cidr: &IpNet) -> Mac {
    let bytes = octets(cidr.network());
    let last = &bytes[..bytes.len().min(4)];
    let mut mac = [0x0a, 0x58, 0, 0, 0, 0];
    match cidr {
        IpNet::V4(_) => mac[2..].copy_from_slice(last),
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
pub(super) fn end(cidr: &IpNet) -> IpAddr {
    cidr.network()
}

/// The entries for `peers` on the link with this number: the tunnel, or for plain routes the one to the segment.
pub(super) fn plan(backend: Backend, index: u32, own: &[IpNet], peers: &[Peer]) -> Entries {
    let mut entries = Entries::default();
    for peer in peers {
        let foreign = |cidr: &&IpNet| !own.iter().any(|o| o.contains(*cidr) || cidr.contains(o));
        for cidr in peer.pod_cidrs.iter().filter(foreign) {
            let destination = cidr.trunc();
            match backend {
                Backend::Vxlan => {
                    let (gateway, mac) = (end(cidr), mac(cidr));
                    entries.routes.insert(Route { destination, way: Way::Onlink { index, gateway } });
                    entries.neighbours.insert((gateway, mac));
                    entries.forwardings.insert((mac, peer.address));
                }
                Backend::HostGw if cidr.addr().is_ipv4() == peer.address.is_ipv4() => {
                    entries.routes.insert(Route { destination, way: Way::Gateway { index, gateway: peer.address } });
                }
                Backend::HostGw | Backend::None => {}
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn peers() -> Vec<Peer> {
        let peer = |address: &str, cidr: &str| Peer { address: address.parse().unwrap(), pod_cidrs: vec![net(cidr)] };
        vec![peer("192.0.2.2", "10.42.1.0/24"), peer("192.0.2.3", "10.42.2.0/24"), peer("192.0.2.1", "10.42.0.0/24")]
    }

    #[test]
    fn each_peer_has_a_route_a_neighbour_and_a_forwarding_entry_and_the_own_range_has_none() {
        let plan = plan(Backend::Vxlan, 7, &[net("10.42.0.0/24")], &peers());
        let gateway: IpAddr = "10.42.1.0".parse().unwrap();
        assert!(
            plan.routes.contains(&Route { destination: net("10.42.1.0/24"), way: Way::Onlink { index: 7, gateway } })
        );
        let mac = [0x0a, 0x58, 10, 42, 1, 0];
        assert!(plan.neighbours.contains(&(gateway, mac)));
        assert!(plan.forwardings.contains(&(mac, "192.0.2.2".parse().unwrap())));
        assert_eq!((plan.routes.len(), plan.neighbours.len(), plan.forwardings.len()), (2, 2, 2));
    }

    #[test]
    fn plain_routes_lead_to_the_nodes() {
        let plan = plan(Backend::HostGw, 3, &[net("10.42.0.0/24")], &peers());
        let gateway: IpAddr = "192.0.2.3".parse().unwrap();
        assert!(
            plan.routes.contains(&Route { destination: net("10.42.2.0/24"), way: Way::Gateway { index: 3, gateway } })
        );
        assert!(plan.neighbours.is_empty() && plan.forwardings.is_empty());
        assert_eq!(super::plan(Backend::None, 3, &[], &peers()), Entries::default());
    }

    #[test]
    fn hardware_addresses_of_a_cluster_differ() {
        let macs: BTreeSet<Mac> = (0..=255).map(|n| mac(&net(&format!("10.42.{n}.0/24")))).collect();
        assert_eq!(macs.len(), 256);
        assert_ne!(mac(&net("fd00:42:0:1::/64")), mac(&net("fd00:42:0:2::/64")));
    }
}
