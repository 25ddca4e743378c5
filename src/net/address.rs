//! Tells when an address of this machine comes or goes, without looking again and again.

use std::io;

use rtnetlink::MulticastGroup;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

/// What is told of the addresses of both families.
const GROUPS: u32 = bit(MulticastGroup::Ipv4Ifaddr) | bit(MulticastGroup::Ipv6Ifaddr);

const fn bit(group: MulticastGroup) -> u32 {
    1 << (group as u32 - 1)
}

/// A watch on the addresses of the network namespace that it was made in.
#[derive(Debug)]
pub struct AddressWatch {
    /// Read like a pipe: bytes are there when something has changed.
    events: Receiver,
}

// === impl AddressWatch ===

impl AddressWatch {
    /// Watches from now on. Must be called inside a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?; // NETLINK_ROUTE is protocol 0
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self { events: Receiver::from_owned_fd_unchecked(socket)? })
    }

    /// Returns after changes since the last call. Safe to drop and call again.
    pub async fn changed(&mut self) {
        let mut buffer = [0u8; 8192];
        // An overrun is a change as well.
        let _ = self.events.read(&mut buffer).await;
        while self.events.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
    }
}
