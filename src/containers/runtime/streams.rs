//! The pipes of an exec or attach session, between the API's side and the shim.

use std::io;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;

use super::super::error::{Error, Result};
use super::super::session::{Session, SessionControl, TtyReader, resize_tty};
use super::super::wire::Reply;
use super::connection::Connection;
use crate::base::file::set_nonblocking;

/// Our ends of a session's pipes, and the ends that go to the shim.
#[derive(Default)]
pub(super) struct Streams {
    pub theirs: Vec<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

// === impl Streams ===

impl Streams {
    /// For a process that is about to be begun.
    pub(super) fn new(tty: bool, stdin: bool) -> io::Result<Self> {
        let mut streams = Self::default();
        if tty {
            return Ok(streams);
        }
        if stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            streams.stdin = Some(write);
            streams.theirs.push(read);
        } else {
            streams.theirs.push(std::fs::File::open("/dev/null")?.into());
        }
        streams.add_outputs(true)?;
        Ok(streams)
    }

    /// For one that runs.
    pub(super) fn for_attach(tty: bool) -> io::Result<Self> {
        let mut streams = Self::default();
        streams.add_outputs(!tty)?;
        Ok(streams)
    }

    fn add_outputs(&mut self, stderr: bool) -> io::Result<()> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        self.stdout = Some(read);
        self.theirs.push(write);
        if stderr {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            self.stderr = Some(read);
            self.theirs.push(write);
        }
        Ok(())
    }

    /// An exec that has started: with a tty its master came with the reply.
    pub(super) fn session(self, sandbox: String, mut connection: Connection, stdin: bool) -> io::Result<Session> {
        let master = connection.fds.pop();
        let (input, output): (Option<OwnedFd>, Box<dyn AsyncRead + Send + Unpin>) = match &master {
            Some(master) => {
                let reader = TtyReader(receiver(master.try_clone()?)?);
                (stdin.then(|| master.try_clone()).transpose()?, Box::new(reader))
            }
            None => (self.stdin, Box::new(self.stdout.map(receiver).transpose()?.ok_or(io::ErrorKind::BrokenPipe)?)),
        };
        Ok(Session {
            stdin: input.map(writer).transpose()?,
            stdout: output,
            stderr: self.stderr.map(reader).transpose()?,
            control: Box::new(ShimSession { sandbox, connection, master }),
        })
    }

    /// An attach that the shim has taken; what leads to the input came with the reply.
    pub(super) fn attached(
        self,
        sandbox: String,
        mut connection: Connection,
        tty: bool,
        stdin: bool,
    ) -> io::Result<Session> {
        let input = connection.fds.pop();
        let master = if tty { input.as_ref().map(OwnedFd::try_clone).transpose()? } else { None };
        Ok(Session {
            stdin: input.filter(|_| stdin).map(writer).transpose()?,
            stdout: reader(self.stdout.ok_or(io::ErrorKind::BrokenPipe)?)?,
            stderr: self.stderr.map(reader).transpose()?,
            control: Box::new(ShimSession { sandbox, connection, master }),
        })
    }
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    set_nonblocking(&fd)?;
    pipe::Receiver::from_owned_fd_unchecked(fd)
}

fn reader(fd: OwnedFd) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    Ok(Box::new(receiver(fd)?))
}

fn writer(fd: OwnedFd) -> io::Result<Box<dyn AsyncWrite + Send + Unpin>> {
    set_nonblocking(&fd)?;
    Ok(Box::new(pipe::Sender::from_owned_fd_unchecked(fd)?))
}

/// The connection on which the shim reports the end; closing it ends an exec.
struct ShimSession {
    sandbox: String,
    connection: Connection,
    master: Option<OwnedFd>,
}

#[async_trait]
impl SessionControl for ShimSession {
    fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.master {
            Some(master) => resize_tty(master, columns, rows),
            None => Ok(()),
        }
    }

    async fn wait(&mut self) -> Result<i32> {
        loop {
            match self.connection.receive().await {
                Ok(Reply::ExecExited { code }) => return Ok(code),
                Ok(_) => {}
                Err(source) => return Err(Error::Shim { sandbox: self.sandbox.clone(), source }),
            }
        }
    }
}
