//! What every link that we make is told: nobody on it is a router for us, and nobody is asked for neighbours.
//!
//! Pods, tunnels and the node have fixed routes and neighbour entries. So router advertisements and redirects are never
//! believed, and questions for hardware addresses are not answered, which also keeps a pod from filling the machine's table of
//! neighbours. Only switches of our own links are touched.

use std::fs;
use std::io;

use super::netlink::Connection;

/// IPv6 switches that are off on our links.
const OFF: [&str; 3] = ["accept_ra", "accept_redirects", "autoconf"];

fn path(link: &str, switch: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{link}/{switch}")
}

/// Tells it to a link of the network namespace of the calling thread, in which `host` must have been opened, too.
pub(crate) fn settle(host: &mut Connection, index: u32, name: &str) -> io::Result<()> {
    host.set_without_neighbours(index)?;
    believe_no_router(name)
}

/// The part of it that is not said over netlink.
pub(crate) fn believe_no_router(name: &str) -> io::Result<()> {
    for switch in OFF {
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

/// Whether [`settle`] has been here.
pub(crate) fn is_settled(name: &str) -> bool {
    fs::read_to_string(path(name, OFF[0])).map_or(true, |now| now.trim() == "0")
}

/// Where /proc/sys cannot be written (a node in a container) the guard's rules alone stand against it.
fn turn_off(path: &str) {
    if let Err(error) = fs::write(path, "0") {
        tracing::warn!(path, %error, "this switch of a link cannot be turned off; packets are dropped by rule all the same");
    }
}
