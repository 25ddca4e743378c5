//! Probes for `amphipod check`: does this kernel do what the network needs, and if not, what helps.
//!
//! Invariant: a probe leaves nothing behind.

use std::io;

use super::netlink::Socket;
use super::netlink::link::VethEnd;
use super::{Config, nft};

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
    for (kind, remedy) in
        [("bridge", "load the kernel module bridge, as root"), ("veth", "load the kernel module veth, as root")]
    {
        try_link(kind, false).map_err(|e| missing(&format!("{kind} links cannot be made"), remedy, e))?;
    }
    Ok(())
}

/// Overlay links can be made.
pub fn vxlan() -> Result<(), Missing> {
    try_link("vxlan", true)
        .map_err(|e| missing("vxlan links cannot be made", "load the kernel module vxlan, as root", e))
}

/// The encrypted overlay can be made.
pub fn wireguard() -> Result<(), Missing> {
    let name = format!("ampc{}", std::process::id());
    let attempt = || {
        let mut socket = Socket::route()?;
        socket.add_wireguard(&name, 0, 0)?;
        match socket.link(&name)? {
            Some(link) => socket.delete_link(link.index),
            None => Ok(()),
        }
    };
    attempt().map_err(|e: io::Error| {
        missing("wireguard links cannot be made", "load the kernel module wireguard (kernel 5.6 or newer), as root", e)
    })
}

fn try_link(kind: &str, vxlan: bool) -> io::Result<()> {
    let name = format!("ampc{}", std::process::id());
    let mut socket = Socket::route()?;
    socket.add_kind(kind, &VethEnd { name: &name, mac: [0x0a, 0x58, 0, 0, 0, 2], group: 0 }, |b| {
        if vxlan {
            b.attr_u32(1, 0x00fe_dcba); // network id
            b.attr(15, &64_999u16.to_be_bytes()); // a port nobody uses
        }
    })?;
    match socket.link(&name)? {
        Some(link) => socket.delete_link(link.index),
        None => Ok(()),
    }
}
