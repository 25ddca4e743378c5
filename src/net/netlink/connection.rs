//! rtnetlink on the thread that waits.
//!
//! rtnetlink comes in two halves: a `Handle` whose requests are futures, and a connection that moves messages between the handles
//! and the socket, usually as a task of a runtime. Here the thread that wants the answer moves them itself. The kernel answers a
//! request of `NETLINK_ROUTE` within the system call that sends it, so there is nothing to be woken for, and a thread that was
//! moved into a pod's network namespace needs neither a runtime of its own nor that of the program.
//!
//! Invariant: what the socket fails with is what the request fails with.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::BufMut;
use futures::{Stream, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, Socket, SocketAddr};
use rtnetlink::Handle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{PATIENCE, refusal};

/// For links, addresses, neighbours and routes.
pub(crate) struct Connection {
    transport: netlink_proto::Connection<RouteNetlinkMessage, ThreadSocket>,
    handle: Handle,
}

// === impl Connection ===

impl Connection {
    /// To the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let (transport, handle, _) = rtnetlink::new_connection_with_socket()?;
        Ok(Self { transport, handle })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Sends what the request of a handle says, and reads until it has its answer.
    pub(super) fn wait<T>(&mut self, request: impl Future<Output = Result<T, rtnetlink::Error>>) -> io::Result<T> {
        let mut request = pin!(request);
        let context = &mut Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(result) = request.as_mut().poll(context) {
                return result.map_err(error);
            }
            self.transport.poll_requests(context);
            self.transport.poll_send_messages(context);
            // Nothing is subscribed to, so there is nothing but answers to forward.
            self.transport.poll_read_messages(context);
            self.transport.forward_responses();
            if self.transport.should_shut_down() {
                return Err(self.transport.socket_mut().failure());
            }
            if let Poll::Ready(result) = request.as_mut().poll(context) {
                return result.map_err(error);
            }
            self.transport.socket_mut().wait()?;
        }
    }

    /// All answers to a request of a handle.
    pub(super) fn collect<T>(
        &mut self,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> io::Result<Vec<T>> {
        self.wait(answers.try_collect())
    }

    /// The answer to a request of a handle that has one at most.
    pub(super) fn first<T>(
        &mut self,
        answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
    ) -> io::Result<Option<T>> {
        self.collect(answers).map(|all| all.into_iter().next())
    }
}

/// Not with rtnetlink's own words: they are the whole message as Rust prints it, and would bring the code that prints every kind
/// of message into the executable.
fn error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            refusal(&message).unwrap_or_else(|| io::ErrorKind::InvalidData.into())
        }
        rtnetlink::Error::UnexpectedMessage(_) => {
            io::Error::other("the kernel's answer is another message than was asked for")
        }
        _ => io::Error::other("the netlink request could not be sent"),
    }
}

/// A netlink socket that wakes nobody.
struct ThreadSocket {
    socket: Socket,
    /// rtnetlink logs what a socket fails with, and tells the request only that it did.
    failed: Cell<Option<io::Error>>,
}

// === impl ThreadSocket ===

impl ThreadSocket {
    fn failure(&self) -> io::Error {
        self.failed.take().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
    }

    fn noted<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(result.inspect_err(|e| {
            self.failed.set(e.raw_os_error().map(io::Error::from_raw_os_error));
        }))
    }

    /// Until there is something to read.
    fn wait(&self) -> io::Result<()> {
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        loop {
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&patience)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsyncSocket for ThreadSocket {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn new(protocol: isize) -> io::Result<Self> {
        super::socket::open(protocol).map(|socket| Self { socket, failed: Cell::new(None) })
    }

    fn poll_send(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.noted(self.socket.send(bytes, 0))
    }

    fn poll_send_to(&self, context: &mut Context<'_>, bytes: &[u8], _: &SocketAddr) -> Poll<io::Result<usize>> {
        // It is connected to the kernel.
        self.poll_send(context, bytes)
    }

    fn poll_recv<B: BufMut>(&self, context: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        self.poll_recv_from(context, buffer).map_ok(|_| ())
    }

    fn poll_recv_from<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        match self.socket.recv_from(buffer, libc::MSG_DONTWAIT) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            received => self.noted(received.map(|(_, from)| from)),
        }
    }

    fn poll_recv_from_full(&self, context: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        let mut buffer = Vec::with_capacity(super::socket::DATAGRAM_BYTES_MAX);
        self.poll_recv_from(context, &mut buffer).map_ok(|from| (buffer, from))
    }
}
