//! Pods of different nodes reach each other: over VXLAN, or by plain routes where the nodes share a segment; on demand by
//! whichever of both fits each of them.
//!
//! Everything is derived from the Node objects: a node's pod range and address say how its pods are reached, and the hardware
//! address of its end of the tunnel follows from its range, so for VXLAN nodes need to tell each other nothing else; for
//! WireGuard each has a key in an annotation. All entries are fixed; nothing is flooded and nothing is learned. Invariant:
//! after an apply the kernel holds what [`plan::plan`] says for these links, and entries that did not change were not
//! touched, so restarts interrupt no connection.

mod kernel;
mod key;
mod plan;
mod port;
mod wireguard;

pub use kernel::{Overlay, PendingKey, WireGuard, mtu};
pub use plan::{PeerNode, Tunnel};
pub(crate) use port::PORTS;
pub use port::{PORT, WIREGUARD_PORT};
pub use wireguard::PublicKey;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Config;

/// The network id, flannel's.
const NETWORK_ID: u32 = 1;
/// What VXLAN puts around a frame: outer IP, UDP and VXLAN headers and the inner Ethernet header.
const HEADER_BYTES: u32 = 50;
const HEADER_BYTES_IPV6: u32 = 70;

/// The links by which frames of other nodes' pods come in.
pub(crate) fn names(config: &Config) -> [String; 2] {
    [vxlan_name(config), wireguard_name(config)]
}

fn vxlan_name(config: &Config) -> String {
    format!("{}.vx", config.bridge)
}

fn wireguard_name(config: &Config) -> String {
    format!("{}.wg", config.bridge)
}

/// What WireGuard puts around a packet: outer IP and UDP headers, its own header, padding and tag.
const ENCRYPTED_BYTES: u32 = 60;
const ENCRYPTED_BYTES_IPV6: u32 = 80;

/// How nodes reach each other's pods. A server that does not say is one from before there was a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// WireGuard if all nodes have it, else VXLAN.
    Auto,
    /// Encrypted packets in UDP, between nodes that know each other's keys.
    Wireguard,
    /// Frames in UDP; works wherever the nodes reach each other.
    #[default]
    Vxlan,
    /// Routes through the nodes' addresses; they must share a segment.
    HostGw,
    /// Somebody else sees to it.
    None,
}

impl Backend {
    /// Whether VXLAN may be needed.
    pub fn has_vxlan(self) -> bool {
        matches!(self, Self::Auto | Self::Vxlan)
    }

    /// Whether WireGuard may be used.
    pub fn has_wireguard(self) -> bool {
        matches!(self, Self::Auto | Self::Wireguard)
    }
}

/// This node's side.
#[derive(Clone, Debug)]
pub struct Options {
    pub backend: Backend,
    /// With VXLAN: nodes on the own segment are reached by plain routes nevertheless.
    pub direct_routing: bool,
    /// The address that the other nodes reach this one by.
    pub address: IpAddr,
}
