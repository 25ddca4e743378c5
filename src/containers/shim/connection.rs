//! A connection from the agent to the shim.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::super::wire::{self, Reply};

/// A connection whose peer does not read its replies is dropped beyond this.
const REPLY_BACKLOG_MAX: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Connection {
    pub socket: OwnedFd,
    pub input: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    pub output: Vec<u8>,
    pub watches: bool,
    /// Killed when the connection goes away, with what it has begun.
    pub exec: Option<i32>,
    /// In this container.
    pub exec_in: Option<String>,
    pub close_after_output: bool,
}

// === impl Connection ===

impl Connection {
    /// Queues a reply, and sends what goes at once.
    pub(super) fn reply(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let frame = wire::encode(reply);
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut sent = 0;
        if self.output.is_empty() {
            // Descriptors go only with an empty backlog: replies that carry them are the first on their connection.
            sent = wire::send(self.socket.as_raw_fd(), &frame, &raw).unwrap_or(0);
        }
        self.output.extend_from_slice(&frame[sent..]);
        if self.output.len() > REPLY_BACKLOG_MAX {
            self.output.clear();
            self.close_after_output = true;
        }
    }

    /// Sends what is queued, as far as it goes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match wire::send(self.socket.as_raw_fd(), &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output = Vec::new();
        Ok(())
    }
}
