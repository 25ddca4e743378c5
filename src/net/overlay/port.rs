//! The ports that tunnels use.

/// The port that Kubernetes' users open for VXLAN (flannel's, and the kernel's own default).
pub const PORT: u16 = 8472;

/// The port of WireGuard, the one that Cilium's users open for it. Not WireGuard's usual one, which may be in use on a machine.
pub const WIREGUARD_PORT: u16 = 51871;

/// Both.
pub(crate) const PORTS: [u16; 2] = [PORT, WIREGUARD_PORT];
