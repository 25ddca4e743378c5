//! Removes every trace of this room from the kernel and the run directory.
//!
//! Works from the configuration and what the kernel lists, not from memory, so it also cleans up after a kill.
//! Sysctls stay as they are: others may rely on forwarding by now.

use super::netlink::Connection;
use super::netlink::route::{NextHop, Route};
use super::pod::{group, netns};
use super::{Config, Error, nft};
use crate::base::tree;

/// Deletes links, namespace pins, routes, nftables tables and reservations; goes on after an error and gathers them.
/// Works in the network namespace of the calling thread.
pub fn destroy(config: &Config) -> Result<(), Error> {
    let mut errors = Vec::new();
    errors.extend(links_and_routes(config).err());
    errors.extend(pins(config).err());
    errors.extend(nft::remove_tables(config).err());
    for directory in [config.netns_dir(), config.addresses_dir()] {
        errors.extend(tree::remove(&directory).map_err(Error::file("cannot remove", &directory)).err());
    }
    Error::gather(errors)
}

fn links_and_routes(config: &Config) -> Result<(), Error> {
    let mut host = Connection::open().map_err(Error::kernel("cannot open a netlink socket"))?;
    let mut errors = Vec::new();
    let links = host.links().map_err(Error::kernel("cannot list links"))?;
    for link in links.into_iter().filter(|l| l.group == group(config)) {
        errors
            .extend(host.delete_link(link.index).map_err(Error::kernel(format!("cannot delete {}", link.name))).err());
    }
    // Routes through links of ours went with them; these have none, or one that is the machine's.
    let plain = |r: &Route| {
        matches!(r.next_hop, NextHop::Gateway { .. }) && config.cluster_cidrs.iter().any(|c| c.contains(&r.destination))
    };
    let found = host.own_routes().map_err(Error::kernel("cannot list routes"))?;
    for route in super::pod::node_routes(config).into_iter().chain(found.into_iter().filter(plain)) {
        let action = format!("cannot delete the route to {}", route.destination);
        errors.extend(host.delete_route(&route).map_err(Error::kernel(action)).err());
    }
    Error::gather(errors)
}

fn pins(config: &Config) -> Result<(), Error> {
    let mut errors = Vec::new();
    for id in super::pod::pinned_ids(&config.netns_dir())? {
        let path = config.netns_path(&id);
        errors.extend(netns::unpin(&path).map_err(Error::file("cannot remove the namespace", &path)).err());
    }
    Error::gather(errors)
}
