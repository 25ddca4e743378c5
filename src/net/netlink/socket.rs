//! A blocking socket for what rtnetlink does not speak: requests with acknowledgement, dumps, and raw batches.
//!
//! Messages are of the crates' types, and nothing of them is logged: WireGuard's carry keys, which the connection of rtnetlink
//! would write down where traces are on or an answer is not understood.
//!
//! Invariant: a request returns only after the kernel answered all of its messages; the first error wins.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket as RawSocket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{PATIENCE, refusal};

/// The kernel's pieces of a dump are half as large at most.
pub(super) const DATAGRAM_BYTES_MAX: usize = 64 * 1024;

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

/// Reads what was received at once, as the answer to the request `sequence`. A message that is not understood is left out.
fn read<M: NetlinkDeserializable>(mut rest: &[u8], sequence: u32, each: &mut dyn FnMut(M)) -> Reading {
    while let Ok(next) = NetlinkBuffer::new_checked(rest) {
        let length = next.length() as usize;
        let message = NetlinkMessage::deserialize(&rest[..length]);
        rest = rest.get(length.next_multiple_of(NLMSG_ALIGNTO.into())..).unwrap_or_default();
        let Ok(NetlinkMessage { header, payload, .. }) = message else { continue };
        let is_ours = header.sequence_number == sequence;
        match payload {
            NetlinkPayload::Error(error) => match refusal(&error) {
                Some(error) => return Reading::Acknowledged(Err(error)),
                None if is_ours => return Reading::Acknowledged(Ok(())),
                None => {}
            },
            NetlinkPayload::Done(_) if is_ours => return Reading::Ended(Ok(())),
            NetlinkPayload::Overrun(_) => return Reading::Ended(Err(io::Error::other("netlink answer overran"))),
            NetlinkPayload::InnerMessage(answer) if is_ours => each(answer),
            _ => {}
        }
    }
    Reading::Goes
}

/// The answers in what was received for the request 1.
#[cfg(any(feature = "fuzzing", debug_assertions))]
pub(crate) fn answers<M: NetlinkDeserializable>(data: &[u8]) -> Vec<M> {
    let mut found = Vec::new();
    let _ = read(data, 1, &mut |answer| found.push(answer));
    found
}

/// A socket of the network namespace of the calling thread, that takes messages of the kernel alone.
pub(super) fn open(protocol: isize) -> io::Result<RawSocket> {
    let mut socket = RawSocket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // Answers then carry only the header of the failed message.
    socket.set_cap_ack(true)?;
    Ok(socket)
}

/// A netlink socket of one protocol.
pub(crate) struct Socket {
    inner: RawSocket,
    sequence: u32,
    receive: Vec<u8>,
}

// === impl Socket ===

impl Socket {
    /// For nftables and conntrack.
    pub(crate) fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    /// For kernel parts that have no protocol of their own.
    pub(crate) fn generic() -> io::Result<Self> {
        Self::open(protocols::NETLINK_GENERIC)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let inner = open(protocol)?;
        set_socket_timeout(&inner, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { inner, sequence: 0, receive: Vec::new() })
    }

    /// Lets one send carry `size_bytes` and its errors come back whole.
    fn widen(&self, size_bytes: usize) -> io::Result<()> {
        let size = size_bytes + 4096;
        setsockopt(&self.inner, sockopt::SndBufForce, &size)?;
        setsockopt(&self.inner, sockopt::RcvBufForce, &size.max(1 << 20))?;
        Ok(())
    }

    /// Sends one message and waits for its acknowledgement.
    pub(crate) fn request<M: NetlinkSerializable + NetlinkDeserializable>(&mut self, message: M) -> io::Result<()> {
        let sequence = self.send(message, NLM_F_ACK)?;
        self.collect(sequence, &mut |_: M| {})
    }

    /// Sends one message that is answered by one message.
    pub(crate) fn get<M: NetlinkSerializable + NetlinkDeserializable>(&mut self, message: M) -> io::Result<Option<M>> {
        let sequence = self.send(message, NLM_F_ACK)?;
        let mut found = None;
        self.collect(sequence, &mut |answer| found = Some(answer))?;
        Ok(found)
    }

    /// Sends one message that is answered by many, which are taken as they come.
    pub(crate) fn dump<M>(&mut self, message: M, mut each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let sequence = self.send(message, NLM_F_DUMP)?;
        self.collect(sequence, &mut each)
    }

    fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.inner.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    /// Sends a ready-made batch in one piece. Netfilter handles it inside the send and acknowledges only `last`, the
    /// sequence number of its last message; any error before that is the answer.
    pub(crate) fn batch<M: NetlinkDeserializable>(&mut self, bytes: &[u8], last: u32) -> io::Result<()> {
        self.widen(bytes.len())?;
        self.inner.send(bytes, 0)?;
        self.collect(last, &mut |_: M| {})
    }

    /// Reads until the acknowledgement of `sequence`, the end of its dump, or the first error.
    fn collect<M: NetlinkDeserializable>(&mut self, sequence: u32, each: &mut dyn FnMut(M)) -> io::Result<()> {
        loop {
            self.fill(0).map_err(|e| match e.kind() {
                io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
                _ => e,
            })?;
            match read(&self.receive, sequence, each) {
                Reading::Goes => {}
                Reading::Ended(result) => return result,
                Reading::Acknowledged(result) => {
                    // What is left are answers to a failed batch.
                    while self.fill(libc::MSG_DONTWAIT).is_ok() {}
                    return result;
                }
            }
        }
    }

    fn fill(&mut self, flags: i32) -> io::Result<()> {
        self.receive.clear();
        self.receive.reserve(DATAGRAM_BYTES_MAX);
        let mut target = &mut self.receive;
        self.inner.recv(&mut target, flags).map(|_| ())
    }
}
