//! Values of flags: each is read once, and what is refused says what would be accepted.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::base::labels::{dns_subdomain_error, label_key_error, label_value_error};

/// An address.
pub fn address(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| "expected an IP address, such as 192.0.2.1".to_owned())
}

/// An address at which one machine is reached.
pub fn own_address(text: &str) -> Result<IpAddr, String> {
    let address = address(text)?;
    let is_group = match address {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast(),
    };
    match is_group || address.is_unspecified() {
        true => Err("it is no address of one machine: expected one such as 192.0.2.1".into()),
        false => Ok(address),
    }
}

/// A range of addresses.
pub fn range(text: &str) -> Result<IpNet, String> {
    text.trim().parse().map_err(|_| "expected ADDRESS/LENGTH, such as 10.42.0.0/16".to_owned())
}

/// A name or an address for a certificate; nothing, as an empty variable says it.
pub fn certificate_name(text: &str) -> Result<String, String> {
    let name = text.trim().to_lowercase();
    let plain = name.strip_prefix("*.").unwrap_or(&name);
    match name.is_empty() || name.parse::<IpAddr>().is_ok() || dns_subdomain_error(plain).is_none() {
        true => Ok(name),
        false => {
            Err("expected an IP address or a DNS name, such as 192.0.2.1, api.example.com or *.example.com".into())
        }
    }
}

/// A domain of DNS names, without the dot at its end.
pub fn domain(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_lowercase();
    match dns_subdomain_error(&name) {
        Some(_) => Err("expected a DNS domain, such as cluster.local".into()),
        None => Ok(name),
    }
}

/// The begin of a file's name.
pub fn file_name(text: &str) -> Result<String, String> {
    let wrong = text.is_empty() || text.starts_with('.') || text.contains(|c: char| c == '/' || c.is_control());
    if wrong { Err("expected a file's name, without a directory".into()) } else { Ok(text.to_owned()) }
}

/// How many of something are kept.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number from 1 on".to_owned())
}

/// A label of a node that nodes may give themselves, as the kubelet's `--node-labels` has them.
pub fn node_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if let Some(why) = label_key_error(key) {
        return Err(format!("{key:?}: {why}"));
    }
    if !crate::api::admission::may_give_itself(key) {
        return Err(format!(
            "{key:?}: labels in the 'kubernetes.io' namespace must begin with an allowed prefix (kubelet.kubernetes.io, \
             node.kubernetes.io) or be one that every node may have, such as topology.kubernetes.io/zone; an administrator \
             gives others with kubectl label node"
        ));
    }
    match label_value_error(value) {
        Some(why) => Err(format!("{value:?}: {why}")),
        None => Ok((key.into(), value.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_value_of_a_flag_is_told_with_what_would_be() {
        assert_eq!(certificate_name("*.Example.com").unwrap(), "*.example.com");
        assert_eq!(certificate_name("fd00::1").unwrap(), "fd00::1");
        assert_eq!(certificate_name("").unwrap(), "", "an empty variable");
        for wrong in ["???", "a b", "a..b", "*", "*.*.a", "a/24", "https://a"] {
            let why = certificate_name(wrong).unwrap_err();
            assert!(why.starts_with("expected an IP address or a DNS name"), "{wrong}: {why}");
        }
        assert_eq!(domain("Cluster.Local.").unwrap(), "cluster.local");
        for wrong in ["", ".", "a b", "???"] {
            assert_eq!(domain(wrong).unwrap_err(), "expected a DNS domain, such as cluster.local", "{wrong}");
        }
        for wrong in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert!(own_address(wrong).unwrap_err().contains("no address of one machine"), "{wrong}");
        }
        assert!(own_address("a").unwrap_err().contains("such as 192.0.2.1"));
        assert!(range("10.0.0.0").unwrap_err().contains("such as 10.42.0.0/16"));
        for wrong in ["", ".", "..", "../x", "a/b", "a\nb"] {
            assert_eq!(file_name(wrong).unwrap_err(), "expected a file's name, without a directory", "{wrong}");
        }
        assert!(at_least_one("0").is_err() && at_least_one("5") == Ok(5));
        assert_eq!(node_label("disk=fast").unwrap(), ("disk".into(), "fast".into()));
        assert!(node_label("topology.kubernetes.io/zone=a").is_ok() && node_label("node.kubernetes.io/x").is_ok());
        for wrong in ["node-role.kubernetes.io/worker=", "a.k8s.io/b=c", "=x", "a b=c", "a=b c"] {
            assert!(node_label(wrong).is_err(), "{wrong}");
        }
    }
}
