//! How far registries may send a node: not to what only the node itself reaches.
//!
//! Whoever names a registry says where the first request goes. Where a registry redirects to, and the token service that it
//! names, is its own word, and an image is named by whoever may make a pod: without limits any registry could have the node ask its
//! own loopback or the metadata service of its cloud. So such an address is for those who are at one of its kind themselves, and
//! for hosts that `registries.yaml` names. What counts is the address that is connected to, whatever the name was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::base::cloud::{METADATA, WIRE_SERVER};

/// Who reaches an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Programs on this machine.
    Loopback,
    /// Machines on the same link, and a cloud that answers each machine as if it were there.
    LinkLocal,
    /// No single machine.
    Group,
    Network,
}

// === impl Reach ===

impl Reach {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            // The kernel takes an unspecified address for its own.
            IpAddr::V4(a) if a.is_loopback() || a.octets()[0] == 0 => Self::Loopback,
            a if METADATA.contains(&a) || a == WIRE_SERVER.0 => Self::LinkLocal,
            IpAddr::V4(a) if a.is_link_local() => Self::LinkLocal,
            IpAddr::V4(a) if a.is_multicast() || a.is_broadcast() => Self::Group,
            IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) => Self::Loopback,
            IpAddr::V6(a) if a.is_unicast_link_local() => Self::LinkLocal,
            IpAddr::V6(a) if a.is_multicast() => Self::Group,
            IpAddr::V6(a) => within_v6(a).map_or(Self::Network, |inner| Self::of(inner.into())),
            IpAddr::V4(_) => Self::Network,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Group => "a multicast address",
            Self::Network => "an address",
        }
    }
}

/// The address of the old family that translators (`64:ff9b::/96`) and 6to4 (`2002::/16`) send on to.
fn within_v6(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let (high, low) = match (a, b, c, d, e, f) {
        (0x64, 0xff9b, 0, 0, 0, 0) => (g, h),
        (0x2002, ..) => (b, c),
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

/// Who says where a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum SentBy {
    /// A user or an administrator.
    Named,
    /// A server that was reached in this way.
    Server(Reach),
}

// === impl SentBy ===

impl SentBy {
    /// Why an address may not be asked.
    pub(super) fn refuses(self, address: IpAddr) -> Option<String> {
        let (Self::Server(own), to) = (self, Reach::of(address)) else { return None };
        let fits = to == Reach::Network || (to == own && to != Reach::Group);
        (!fits).then(|| format!("{address} is {} of this node, where no registry elsewhere may send it", to.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_near_may_send_near() {
        let all = [
            ("127.0.0.1", Reach::Loopback),
            ("127.9.9.9", Reach::Loopback),
            ("0.0.0.0", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("64:ff9b::7f00:1", Reach::Loopback),
            ("169.254.169.254", Reach::LinkLocal),
            ("::ffff:169.254.169.254", Reach::LinkLocal),
            ("64:ff9b::a9fe:a9fe", Reach::LinkLocal),
            ("2002:a9fe:a9fe::1", Reach::LinkLocal),
            ("fe80::1", Reach::LinkLocal),
            ("febf::1", Reach::LinkLocal),
            ("fd00:ec2::254", Reach::LinkLocal),
            ("fd20:ce::254", Reach::LinkLocal),
            ("fd00:c1::a9fe:a9fe", Reach::LinkLocal),
            ("100.100.100.200", Reach::LinkLocal),
            ("168.63.129.16", Reach::LinkLocal),
            ("100.100.100.201", Reach::Network),
            ("fd00:ec2::253", Reach::Network),
            ("224.0.0.1", Reach::Group),
            ("255.255.255.255", Reach::Group),
            ("ff02::1", Reach::Group),
            ("10.0.0.1", Reach::Network),
            ("203.0.113.1", Reach::Network),
            ("fd00::1", Reach::Network),
            ("64:ff9b::cb00:7101", Reach::Network),
        ];
        for (text, reach) in all {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Reach::of(address), reach, "{text}");
            assert!(SentBy::Named.refuses(address).is_none(), "{text}");
            for own in [Reach::Loopback, Reach::LinkLocal, Reach::Group, Reach::Network] {
                let fits = reach == Reach::Network || (reach == own && reach != Reach::Group);
                assert_eq!(SentBy::Server(own).refuses(address).is_none(), fits, "{own:?} to {text}");
            }
        }
    }
}
