//! Probes for `amphipod check`: does this kernel do what the network needs, and if not, what helps.
//!
//! Invariant: a probe leaves nothing behind.

use std::io;

use netlink_packet_route::link::InfoKind;

use super::netlink::link::{NewLink, Vxlan};
use super::netlink::{Connection, Mac};
use super::{Config, nft};

const MAC: Mac = [0x0a, 0x58, 0, 0, 0, 2];
const UNUSED_PORT: u16 = 64_999;

/// What is missing and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{problem}; {remedy}")]
pub struct Missing {
    pub problem: String,
    pub remedy: &'static str,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn missing(problem: &str, remedy: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Missing {
    Missing { problem: problem.to_owned(), remedy, source: Box::new(source) }
}

/// nftables takes every construct our rules use.
pub fn nftables(config: &Config) -> Result<(), Missing> {
    nft::probe(config).map_err(|e| {
        let remedy = "load nf_tables, nft_chain_nat, nft_numgen, nft_fib_inet and nft_reject_inet (kernel 5.10 or newer), as root";
        missing("nftables is not usable", remedy, e)
    })
}

/// Connections are tracked and can be listed.
pub fn conntrack() -> Result<(), Missing> {
    nft::probe_conntrack()
        .map_err(|e| missing("conntrack is not usable", "load the kernel module nf_conntrack_netlink, as root", e))
}

/// Links of the kinds we need can be made.
pub fn links() -> Result<(), Missing> {
    for (kind, remedy) in [
        (InfoKind::Bridge, "load the kernel module bridge, as root"),
        (InfoKind::Veth, "load the kernel module veth, as root"),
    ] {
        let problem = format!("{kind} links cannot be made");
        let made = try_link(|host, name| host.add_plain_link(kind, &NewLink { name, mac: MAC, group: 0, mtu: 0 }));
        made.map_err(|e| missing(&problem, remedy, e))?;
    }
    Ok(())
}

/// Overlay links can be made.
pub fn vxlan() -> Result<(), Missing> {
    let vxlan = Vxlan { id: 0x00fe_dcba, port: UNUSED_PORT, local: None };
    try_link(|host, name| host.add_vxlan(&NewLink { name, mac: MAC, group: 0, mtu: 0 }, &vxlan))
        .map_err(|e| missing("vxlan links cannot be made", "load the kernel module vxlan, as root", e))
}

/// The encrypted overlay can be made.
pub fn wireguard() -> Result<(), Missing> {
    try_link(|host, name| host.add_wireguard(name, 0, 0)).map_err(|e| {
        missing("wireguard links cannot be made", "load the kernel module wireguard (kernel 5.6 or newer), as root", e)
    })
}

/// Makes a link, and removes it.
fn try_link(make: impl FnOnce(&mut Connection, &str) -> io::Result<()>) -> io::Result<()> {
    let name = format!("ampc{}", std::process::id());
    let mut host = Connection::open()?;
    make(&mut host, &name)?;
    match host.link(&name)? {
        Some(link) => host.delete_link(link.index),
        None => Ok(()),
    }
}
