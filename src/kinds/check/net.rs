//! Rules on addresses and ranges of addresses.
//!
//! Kubernetes parses addresses of old fields leniently (leading zeros pass with a warning) and of new fields strictly;
//! both are here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Path;
use crate::kinds::field::{self, Errors};

/// What a valid address looks like, in Kubernetes' words.
pub const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// Parses an address strictly.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// Parses an address as Go did before 1.17: octets may have leading zeros.
pub fn parse_ip_sloppy(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse() {
        return Some(ip);
    }
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|_| if part.bytes().all(|b| b == b'0') { Ok(0) } else { part.parse() })
            .ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// A strict address, in the spelling the address prints as.
pub fn ip(errors: &mut Errors, path: &Path<'_>, value: &str) -> Option<IpAddr> {
    let parsed = parse_ip(value);
    if parsed.is_none() {
        errors.push(field::invalid(path, value, NOT_AN_IP));
    }
    parsed
}

/// Parses `address/length`; the address may have bits beyond the length.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = parse_ip_sloppy(address)?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length: u8 = length.parse().ok()?;
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

/// A range of addresses.
pub fn cidr(errors: &mut Errors, path: &Path<'_>, value: &str) -> Option<(IpAddr, u8)> {
    let parsed = parse_cidr(value);
    if parsed.is_none() {
        errors.push(field::invalid(path, value, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
    }
    parsed
}

/// Whether a range is spelled as Kubernetes recommends: canonical, and without bits beyond its length.
pub fn is_canonical_cidr(text: &str) -> bool {
    let Some((address, length)) = parse_cidr(text) else { return false };
    let network = match address {
        IpAddr::V4(a) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(a) & mask))
        }
        IpAddr::V6(a) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(a) & mask))
        }
    };
    format!("{network}/{length}") == text
}

/// The warning for an address that is not in canonical form, if it is none.
pub fn ip_warning(path: &Path<'_>, value: &str) -> Option<String> {
    match parse_ip_sloppy(value) {
        None => Some(format!(
            "{path}: IP address was accepted, but will be invalid in a future Kubernetes release: {NOT_AN_IP}"
        )),
        Some(ip) if parse_ip(value).is_none() => Some(format!(
            "{path}: non-standard IP address {value:?} will be considered invalid in a future Kubernetes release: use {:?}",
            ip.to_string()
        )),
        Some(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => Some(format!(
            "{path}: IPv4-mapped IPv6 address {value:?} will be considered invalid in a future Kubernetes release"
        )),
        Some(ip) if ip.to_string() != value => Some(format!(
            "{path}: IPv6 address {value:?} should be in RFC 5952 canonical format ({:?})",
            ip.to_string()
        )),
        Some(_) => None,
    }
}

/// The warning for a range that is not in canonical form, if it is none.
pub fn cidr_warning(path: &Path<'_>, value: &str) -> Option<String> {
    (!is_canonical_cidr(value)).then(|| {
        format!("{path}: non-standard CIDR value {value:?} will be considered invalid in a future Kubernetes release")
    })
}

/// An address that a Service may lead to: not this host's own, not a group.
pub fn reachable_ip(errors: &mut Errors, path: &Path<'_>, value: &str) {
    let Some(address) = parse_ip_sloppy(value) else {
        errors.push(field::invalid(path, value, NOT_AN_IP));
        return;
    };
    let mut refuse = |why: &str| errors.push(field::invalid(path, value, why));
    if address.is_unspecified() {
        refuse("may not be unspecified (0.0.0.0 or ::)");
    }
    if address.is_loopback() {
        refuse("may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, group) = match address {
        IpAddr::V4(a) => (a.is_link_local(), a.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(a) => (a.segments()[0] & 0xffc0 == 0xfe80, a.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        refuse("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if group {
        refuse("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_strictly_and_leniently() {
        assert_eq!(parse_ip("010.1.0.1"), None);
        assert_eq!(parse_ip_sloppy("010.1.00.1"), parse_ip("10.1.0.1"));
        assert_eq!(parse_ip_sloppy("1.2.3"), None);
        assert_eq!(parse_ip_sloppy("1.2.3.256"), None);
        assert!(is_canonical_cidr("10.0.0.0/8") && !is_canonical_cidr("10.0.0.1/8") && !is_canonical_cidr("x"));
        assert!(is_canonical_cidr("0.0.0.0/0") && is_canonical_cidr("fd00::/64"));
    }
}
