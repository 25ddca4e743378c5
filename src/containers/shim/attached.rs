//! Clients that are attached to a container: pipes into which its output goes beside the log.
//!
//! A client that reads slowly holds the output back, and with it the container, as a terminal would. Invariant: one that
//! does not read at all loses its connection, never the container its output.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::base::file::set_nonblocking;

/// What may wait for a client before no more output is read.
const BACKLOG_BYTES: usize = 64 << 10;
/// A container that ends says at once what its pipes hold; a client for which more than this waits is let go.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
/// A client that takes nothing for this long is let go.
const STALL: Duration = Duration::from_secs(30);

/// One client.
#[derive(Debug)]
pub(super) struct Attached {
    /// The connection on which it asked.
    pub connection: u64,
    pub stdout: Sink,
    /// None with a tty, or where it wants none.
    pub stderr: Option<Sink>,
}

/// A client's pipe and what did not fit into it yet.
#[derive(Debug)]
pub(super) struct Sink {
    pub pipe: OwnedFd,
    backlog: Vec<u8>,
    /// When it last took something, or had nothing to take.
    taken_at: Instant,
}

// === impl Attached ===

impl Attached {
    /// Output of one of the container's streams.
    pub(super) fn give(&mut self, stream: &str, bytes: &[u8]) {
        match (&mut self.stderr, stream) {
            (Some(stderr), "stderr") => stderr.push(bytes),
            _ => self.stdout.push(bytes),
        }
    }

    /// Hands over what waits, as far as it goes.
    pub(super) fn flush(&mut self) {
        self.stdout.push(&[]);
        if let Some(stderr) = &mut self.stderr {
            stderr.push(&[]);
        }
    }

    /// Its pipes.
    pub(super) fn sinks(&self) -> impl Iterator<Item = &Sink> {
        std::iter::once(&self.stdout).chain(&self.stderr)
    }

    /// Whether so much waits that no more must come.
    pub(super) fn is_full(&self) -> bool {
        self.sinks().any(|sink| sink.backlog.len() >= BACKLOG_BYTES)
    }

    /// Whether it does not read.
    pub(super) fn is_lost(&self, now: Instant) -> bool {
        self.sinks().any(|sink| sink.backlog.len() > BACKLOG_BYTES_MAX || sink.deadline().is_some_and(|at| now >= at))
    }
}

// === impl Sink ===

impl Sink {
    pub(super) fn new(pipe: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&pipe)?;
        Ok(Self { pipe, backlog: Vec::new(), taken_at: Instant::now() })
    }

    /// Whether something waits for the client.
    pub(super) fn waits(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// When the client is lost unless it reads.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waits().then(|| self.taken_at + STALL)
    }

    fn push(&mut self, bytes: &[u8]) {
        if !self.waits() {
            self.taken_at = Instant::now();
        }
        self.backlog.extend_from_slice(bytes);
        let mut sent = 0;
        while sent < self.backlog.len() {
            match nix::unistd::write(&self.pipe, &self.backlog[sent..]) {
                Ok(written) => {
                    sent += written;
                    self.taken_at = Instant::now();
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.backlog.drain(..sent);
                    return;
                }
                // Nobody reads it any more.
                Err(_) => break,
            }
        }
        self.backlog = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::OFlag;
    use nix::unistd::pipe2;

    use super::*;

    fn attached() -> (std::fs::File, Attached) {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (read.into(), Attached { connection: 1, stdout: Sink::new(write).unwrap(), stderr: None })
    }

    #[test]
    fn a_slow_client_fills_up_and_then_has_everything() {
        let (mut reader, mut client) = attached();
        let chunk: Vec<u8> = (0..16_384_u32).map(|n| n as u8).collect();
        let mut given = Vec::new();
        while !client.is_full() {
            client.give("stdout", &chunk);
            given.extend_from_slice(&chunk);
        }
        assert!(!client.is_lost(Instant::now()));
        let mut taken = Vec::new();
        while taken.len() < given.len() {
            let mut some = [0; 4096];
            let count = reader.read(&mut some).unwrap();
            taken.extend_from_slice(&some[..count]);
            client.flush();
        }
        assert!(taken == given && !client.stdout.waits() && client.stdout.deadline().is_none());
    }

    #[test]
    fn a_client_that_reads_nothing_or_lets_too_much_wait_is_lost() {
        let (_reader, mut client) = attached();
        client.give("stdout", &[0; 256 << 10]);
        let now = Instant::now();
        assert!(client.is_full() && !client.is_lost(now) && client.is_lost(now + STALL));
        client.give("stdout", &vec![0; BACKLOG_BYTES_MAX]);
        assert!(client.is_lost(now));
    }

    #[test]
    fn what_nobody_reads_does_not_wait() {
        let (reader, mut client) = attached();
        client.give("stdout", &[0; 256 << 10]);
        drop(reader);
        client.flush();
        assert!(!client.stdout.waits());
    }
}
