//! Settings of every link that we make: nobody on it is a router for us, and nobody is asked for neighbours.
//!
//! Pods, tunnels and the node have fixed routes and neighbour entries. So router advertisements and redirects are never
//! believed, and questions for hardware addresses are not answered, which also keeps a pod from filling the machine's table of
//! neighbours. Only switches of our own links are touched.

use std::fs;
use std::io;

use super::netlink::Connection;

/// IPv6 switches that are off on our links.
const DISABLED: [&str; 3] = ["accept_ra", "accept_redirects", "autoconf"];

fn path(link: &str, switch: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/{switch}")
}

/// Configures a link of the network namespace of the calling thread, in which `host` must have been opened, too.
pub(crate) fn configure_link(host: &mut Connection, index: u32, name: &str) -> io::Result<()> {
    host.set_fixed_neighbours(index)?;
    ignore_routers(name)
}

/// The part that netlink cannot set: router advertisements and redirects of IPv6 are ignored.
pub(crate) fn ignore_routers(name: &str) -> io::Result<()> {
    for switch in DISABLED {
        let path = path(name, switch);
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == "0" => {}
            Ok(_) => turn_off(&path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {} // a kernel without IPv6
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether [`configure_link`] was called for the link.
pub(crate) fn is_configured(name: &str) -> bool {
    fs::read_to_string(path(name, DISABLED[0])).map_or(true, |now| now.trim() == "0")
}

/// Where /proc/sys cannot be written (a node in a container) the guard's rules alone stand against it.
fn turn_off(path: &str) {
    if let Err(error) = fs::write(path, "0") {
        tracing::warn!(path, %error, "this switch of a link cannot be turned off; packets are dropped by rule all the same");
    }
}
