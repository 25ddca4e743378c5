//! A blocking netlink client: requests with acknowledgement, dumps, and raw batches.
//!
//! One small client serves routing, nftables and conntrack, so that no asynchronous netlink stack is linked in. A
//! socket belongs to the network namespace of the thread that opened it, whichever thread uses it later.
//!
//! Invariant: a request returns only after the kernel answered all of its messages; the first error wins.

use std::io;

use netlink_sys::{Socket as RawSocket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) mod fuzzing;
pub(crate) mod generic;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod route;

pub(crate) use message::Buffer;

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLMSG_HEADER: usize = 16;

/// One message of an answer: what follows the netlink header.
pub(crate) struct Answer {
    pub(crate) body: Vec<u8>,
}

/// How far the answers to a request have been read.
#[derive(Debug)]
enum Reading {
    /// More will come.
    Goes,
    /// The dump is over, or has failed.
    Ended(io::Result<()>),
    /// Acknowledged, or refused; what else was received belongs to the same batch.
    Acknowledged(io::Result<()>),
}

/// Reads what was received at once, as the answer to the request `sequence`.
fn read(mut rest: &[u8], sequence: u32, answers: &mut Vec<Answer>) -> Reading {
    while let Some((header, body, next)) = message::split(rest) {
        rest = next;
        match header.kind {
            NLMSG_ERROR => {
                let code = i32::from_ne_bytes(body.get(..4).and_then(|b| b.try_into().ok()).unwrap_or_default());
                if code != 0 {
                    return Reading::Acknowledged(Err(io::Error::from_raw_os_error(code.wrapping_neg())));
                }
                if header.sequence == sequence {
                    return Reading::Acknowledged(Ok(()));
                }
            }
            NLMSG_DONE if header.sequence == sequence => return Reading::Ended(Ok(())),
            NLMSG_OVERRUN => return Reading::Ended(Err(io::Error::other("netlink answer overran"))),
            _ if header.sequence == sequence => answers.push(Answer { body: body.to_vec() }),
            _ => {}
        }
    }
    Reading::Goes
}

/// A netlink socket of one protocol.
pub(crate) struct Socket {
    inner: RawSocket,
    sequence: u32,
    receive: Vec<u8>,
}

impl Socket {
    /// For links, addresses, neighbours and routes.
    pub(crate) fn route() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// For nftables and conntrack.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut inner = RawSocket::new(protocol)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        // Answers then carry only the header of the failed message.
        inner.set_cap_ack(true)?;
        Ok(Self { inner, sequence: 0, receive: Vec::new() })
    }

    /// Lets one send carry `size_bytes` and its errors come back whole.
    fn widen(&self, size_bytes: usize) -> io::Result<()> {
        use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
        // SAFETY: `inner` owns the descriptor and lives as long as the borrow, which ends with this function.
        let fd = unsafe { BorrowedFd::borrow_raw(self.inner.as_raw_fd()) };
        let size = size_bytes + 4096;
        setsockopt(&fd.as_fd(), sockopt::SndBufForce, &size)?;
        setsockopt(&fd.as_fd(), sockopt::RcvBufForce, &size.max(1 << 20))?;
        Ok(())
    }

    /// Sends one message and waits for its acknowledgement.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        let sequence = self.send(kind, flags | NLM_F_ACK, body)?;
        self.collect(sequence).map(|_| ())
    }

    /// Sends one message that is answered by one message.
    pub(crate) fn get(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) -> io::Result<Option<Answer>> {
        let sequence = self.send(kind, NLM_F_ACK, body)?;
        Ok(self.collect(sequence)?.pop())
    }

    /// Sends one message that is answered by many.
    pub(crate) fn dump(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) -> io::Result<Vec<Answer>> {
        let sequence = self.send(kind, NLM_F_DUMP, body)?;
        self.collect(sequence)
    }

    fn send(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer)) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Buffer::default();
        buffer.message(kind, flags | NLM_F_REQUEST, self.sequence, body);
        self.inner.send(buffer.bytes(), 0)?;
        Ok(self.sequence)
    }

    /// Sends a ready-made batch in one piece. Netfilter handles it inside the send and acknowledges only `last`, the
    /// sequence number of its last message; any error before that is the answer.
    pub(crate) fn batch(&mut self, bytes: &[u8], last: u32) -> io::Result<()> {
        self.widen(bytes.len())?;
        self.inner.send(bytes, 0)?;
        self.collect(last).map(|_| ())
    }

    /// Reads until the acknowledgement of `sequence`, the end of its dump, or the first error.
    fn collect(&mut self, sequence: u32) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        loop {
            self.fill()?;
            match read(&self.receive, sequence, &mut answers) {
                Reading::Goes => {}
                Reading::Ended(result) => return result.map(|()| answers),
                Reading::Acknowledged(result) => {
                    self.drain();
                    return result.map(|()| answers);
                }
            }
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        self.receive.clear();
        self.receive.reserve(64 * 1024);
        let mut target = &mut self.receive;
        self.inner.recv(&mut target, 0).map(|_| ())
    }

    /// Throws away what is left of the answers to a failed batch.
    fn drain(&mut self) {
        loop {
            self.receive.clear();
            self.receive.reserve(64 * 1024);
            let mut target = &mut self.receive;
            if self.inner.recv(&mut target, libc::MSG_DONTWAIT).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_code_is_an_error_and_no_panic() {
        for (code, expected) in [(-libc::ENODEV, libc::ENODEV), (i32::MIN, i32::MIN)] {
            let mut buffer = Buffer::default();
            buffer.message(NLMSG_ERROR, 0, 1, |b| b.put(&code.to_ne_bytes()));
            let Reading::Acknowledged(Err(error)) = read(buffer.bytes(), 1, &mut Vec::new()) else { panic!("{code}") };
            assert_eq!(error.raw_os_error(), Some(expected));
        }
    }
}
