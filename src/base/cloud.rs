//! Where clouds tell machines their credentials, beside the link-local range (169.254.0.0/16).
//!
//! Such an address means another service to each machine, and is for the machine alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses at which nothing else is: Alibaba's, Amazon's, Google's, Oracle's, Scaleway's.
pub const METADATA: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];
/// Azure's, which is also its name server: the ports by which a machine's agent gets secrets and certificates.
pub const WIRE_SERVER: (Ipv4Addr, [u16; 2]) = (Ipv4Addr::new(168, 63, 129, 16), [80, 32526]);
