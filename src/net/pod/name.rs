//! Names and numbers of what the pod network makes, from the configuration alone.

use sha2::{Digest, Sha256};

use crate::net::Config;

pub(super) fn digest(parts: &[&str]) -> String {
    hex::encode(Sha256::digest(parts.join("\0").as_bytes()))
}

/// Name of the host end of a pod's link.
pub(crate) fn host_link(config: &Config, id: &str) -> String {
    format!("amp{}", &digest(&[&config.bridge, id])[..12])
}

/// Link group of everything this configuration makes.
pub(crate) fn group(config: &Config) -> u32 {
    u32::from_str_radix(&digest(&[&config.bridge])[..7], 16).expect("seven hexadecimal digits") | 0x1000_0000
}
