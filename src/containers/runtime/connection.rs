//! One connection to a shim: messages and descriptors over a unix socket.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::super::shim::SOCKET_FILE;
use super::super::wire::{self, Reply, Request};

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Descriptors that came with replies, in order.
    pub fds: Vec<OwnedFd>,
}

impl Connection {
    /// Connects to the shim of a sandbox directory; fails at once when none listens.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        // A socket's address is short; through the directory's descriptor any path length will do.
        let directory = fs::File::open(directory)?;
        let stream = StdStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd()))?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, input: Vec::new(), fds: Vec::new() })
    }

    pub(super) async fn send(&mut self, request: &Request, fds: &[OwnedFd]) -> io::Result<()> {
        let frame = wire::encode(request);
        let mut given = wire::raw(fds);
        let mut sent = 0;
        while sent < frame.len() {
            let (socket, rest) = (self.stream.as_raw_fd(), &frame[sent..]);
            sent += self.stream.async_io(Interest::WRITABLE, || wire::send(socket, rest, &given)).await?;
            given.clear();
        }
        Ok(())
    }

    pub(super) async fn receive(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = wire::decode(&mut self.input)? {
                return Ok(reply);
            }
            let socket = self.stream.as_raw_fd();
            let (input, fds) = (&mut self.input, &mut self.fds);
            let count = self.stream.async_io(Interest::READABLE, || wire::receive(socket, input, fds)).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
