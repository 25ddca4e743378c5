//! An exec or attach session as its caller sees it, whatever is behind it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use super::error::Result;

/// What a session can do beside its streams.
#[async_trait]
pub trait SessionControl: Send + Sync {
    /// Changes the size of the tty; without one nothing happens.
    fn resize(&self, columns: u16, rows: u16) -> io::Result<()>;
    /// The exit code, once the process has ended.
    async fn wait(&mut self) -> Result<i32>;
}

/// Streams of a process and its control. Dropping all of it ends an exec's process; an attach leaves it running.
pub struct Session {
    /// Closing (dropping) it is the end of the process's input. `None` if it has none.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// With a tty this carries both.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub control: Box<dyn SessionControl>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("stdin", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

/// The readable side of a tty's master: when the last process is gone the kernel says EIO, which is the end.
pub(crate) struct TtyReader(pub pipe::Receiver);

impl AsyncRead for TtyReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.0).poll_read(cx, buffer) {
            Poll::Ready(Err(error)) if error.raw_os_error() == Some(libc::EIO) => Poll::Ready(Ok(())),
            other => other,
        }
    }
}

/// Sets the window size of a tty by its master.
pub(crate) fn resize_tty(master: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the ioctl reads the structure, the descriptor is open.
    match unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
