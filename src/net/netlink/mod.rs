//! Netlink: how links, addresses, routes, neighbours, WireGuard and netfilter of a network namespace are read and changed.
//!
//! What `NETLINK_ROUTE` carries goes through rtnetlink ([`Connection`]); generic netlink and netfilter, which rtnetlink does not
//! speak, through a blocking [`Socket`] with the message types of their crates. Both belong to the network namespace of the thread
//! that opened them, whichever thread uses them later, and work on any thread: neither needs a runtime (see `docs/decisions`).
//!
//! Invariant: a request returns only after the kernel has answered it, and after a bounded time.

use std::io;
use std::time::Duration;

use netlink_packet_core::ErrorMessage;

mod address;
mod connection;
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
pub(crate) mod generic;
pub(crate) mod link;
pub(crate) mod neighbour;
pub(crate) mod route;
mod socket;

pub(crate) use connection::Connection;
pub(crate) use link::Mac;
pub(crate) use socket::Socket;

/// The kernel answers within the system call that asks; who has no answer after this will not get one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A refusal of the kernel; an acknowledgement is none.
fn refusal(message: &ErrorMessage) -> Option<io::Error> {
    message.code.map(|code| io::Error::from_raw_os_error(code.get().wrapping_neg()))
}

/// For what is to be deleted.
fn gone_is_fine(result: io::Result<()>, gone: &[i32]) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error().is_some_and(|code| gone.contains(&code)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use super::*;

    #[test]
    fn any_error_code_is_an_error_and_no_panic() {
        let mut message = ErrorMessage::default();
        assert!(refusal(&message).is_none());
        for (code, expected) in [(-libc::ENODEV, libc::ENODEV), (i32::MIN, i32::MIN)] {
            message.code = NonZeroI32::new(code);
            assert_eq!(refusal(&message).unwrap().raw_os_error(), Some(expected));
        }
    }
}
