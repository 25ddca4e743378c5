//! Calls in the other direction: over a connection that an agent has opened, its server asks and the agent answers.
//!
//! The connection is upgraded out of HTTP/1.1, and then the roles of HTTP/2 are swapped on it, so every call is a stream with
//! its own flow control and its own end. A call is one head (JSON), then frames in both directions: a channel, a length and
//! bytes. Invariant: nothing is buffered beyond the bounds here; who does not read stops who writes.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::client::Error;
use crate::base::task;

/// Where a server takes them.
pub const PATH: &str = "/v1-amphipod/tunnel";
/// What the connection is upgraded to.
pub const PROTOCOL: &str = "amphipod-tunnel";
/// How often the other side is pinged, and how long it may take to answer.
const PING: Duration = Duration::from_secs(5);
/// Frames that may wait to be sent.
const WAITING: usize = 16;
/// The longest frame; a longer one that is no data, and no call or head, ends the call.
const FRAME_BYTES: usize = 4 << 20;
const SMALL_FRAME_BYTES: usize = 64 << 10;
/// What is read at once, and the pieces in which data comes out of longer frames.
const PIECE_BYTES: usize = 32 << 10;

/// The channels of a call's frames.
pub mod channel {
    /// The call itself, first of all.
    pub const CALL: u8 = 0;
    /// What goes to the container or port, and to whoever asked from its standard output or the port.
    pub const IN: u8 = 1;
    pub const OUT: u8 = 2;
    pub const ERR: u8 = 3;
    /// Terminal sizes: columns and rows, two bytes each.
    pub const RESIZE: u8 = 4;
    /// How it ended: `Result<i32, String>` as JSON.
    pub const EXIT: u8 = 5;
    /// What is known of a part of an image before its bytes: `Head` as JSON.
    pub const HEAD: u8 = 6;
}

/// What may be on its way in one call, and in all of them: a call whose end does not read must not stop the others.
const CALL_WINDOW: u32 = 256 << 10;
const CALLS: u32 = 1000;

/// A body that is written while it is sent.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The writing end of a stream of frames; cheap to clone. The stream ends with the last of them.
#[derive(Clone, Debug)]
pub struct Writer(mpsc::Sender<Bytes>);

/// The reading end.
#[derive(Debug)]
pub struct Reader {
    body: Incoming,
    frames: Frames,
}

/// Frames out of bytes, as they come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    rest: BytesMut,
    /// The channel of a long frame of data, and what of it has not come out.
    data: Option<(u8, usize)>,
    /// Whether the first frame has come, the only one that may be long.
    begun: bool,
}

// === impl Writer ===

impl Writer {
    /// A stream of frames, and the body that carries it.
    pub fn new() -> (Self, Body) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
        (Self(sender), http_body_util::StreamBody::new(frames).boxed_unsync())
    }

    /// Sends a frame when there is room; an error means that nobody reads any more.
    pub async fn send(&self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        for piece in pieces(bytes) {
            let mut frame = BytesMut::with_capacity(5 + piece.len());
            frame.put_u8(channel);
            frame.put_u32(piece.len() as u32);
            frame.put_slice(piece);
            self.0.send(frame.freeze()).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }

    /// Waits until nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// Sends everything that is read, and an empty frame at its end.
    pub async fn pump(self, channel: u8, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let n = from.read(&mut buffer).await?;
            self.send(channel, &buffer[..n]).await?;
            if n == 0 {
                return Ok(());
            }
        }
    }
}

/// A frame's worth at a time; an empty frame means something.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    empty.into_iter().chain(bytes.chunks(FRAME_BYTES))
}

// === impl Reader ===

impl Reader {
    /// Reads frames out of a body.
    pub fn new(body: Incoming) -> Self {
        Self { body, frames: Frames::default() }
    }

    /// The next frame, or the next piece of a long one; `None` at the end. Safe to drop and call again.
    pub async fn next(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        loop {
            if let Some(frame) = self.frames.next()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.frames.feed(&data);
                    }
                }
                Some(Err(error)) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
                None if self.frames.is_whole() => return Ok(None),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

// === impl Frames ===

impl Frames {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    fn is_whole(&self) -> bool {
        self.rest.is_empty() && self.data.is_none()
    }

    pub(super) fn next(&mut self) -> io::Result<Option<(u8, Bytes)>> {
        if let Some((channel, left)) = self.data {
            let length = left.min(PIECE_BYTES);
            if self.rest.len() < length {
                return Ok(None);
            }
            self.data = (left > length).then_some((channel, left - length));
            return Ok(Some((channel, self.rest.split_to(length).freeze())));
        }
        let Some([channel, length @ ..]) = self.rest.first_chunk::<5>().copied() else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize;
        let is_data = matches!(channel, channel::IN | channel::OUT | channel::ERR);
        // A call, or the head of an image.
        let is_first = !self.begun && matches!(channel, channel::CALL | channel::HEAD);
        if length > if is_data || is_first { FRAME_BYTES } else { SMALL_FRAME_BYTES } {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
        }
        if is_data && length > PIECE_BYTES {
            self.rest.advance(5);
            (self.data, self.begun) = (Some((channel, length)), true);
            return self.next();
        }
        if self.rest.len() < 5 + length {
            return Ok(None);
        }
        self.begun = true;
        self.rest.advance(5);
        Ok(Some((channel, self.rest.split_to(length).freeze())))
    }
}

/// Writes frames of one channel into `to` until its end, which shuts it down.
pub async fn write_out(to: &mut (impl AsyncWrite + Unpin), bytes: &Bytes) -> io::Result<()> {
    if bytes.is_empty() { to.shutdown().await } else { to.write_all(bytes).await }
}

/// The asking side, on a connection that the other side has opened.
pub async fn ask(stream: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static) -> Result<Asking, Error> {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING).keep_alive_while_idle(true);
    builder.initial_stream_window_size(CALL_WINDOW).initial_connection_window_size(CALL_WINDOW * CALLS);
    let broken = |source| Error::Broken { address: "the agent".into(), source };
    let (sender, connection) = builder.handshake(stream).await.map_err(broken)?;
    let (over, ended) = tokio::sync::oneshot::channel();
    task::spawn("tunnel", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a tunnel ended");
        }
        let _ = over.send(());
    });
    Ok(Asking { sender, ended })
}

/// A tunnel in which calls can be made.
pub struct Asking {
    /// Makes calls; cheap to clone.
    pub sender: SendRequest<Body>,
    /// Told when the connection has ended.
    pub ended: tokio::sync::oneshot::Receiver<()>,
}

/// The answering side: opens the tunnel over a new connection and answers until it ends.
pub async fn answer<F, R>(
    channel: &super::channel::Channel,
    path: &str,
    mut established: impl FnMut() + Send,
    respond: F,
) -> Result<(), Error>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let stream = channel.dial(b"http/1.1").await?;
    let address = channel.address();
    let broken = |source| Error::Broken { address: address.clone(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    task::spawn("tunnel connection", async move { drop(connection.with_upgrades().await) });
    let request = Request::get(path)
        .header(http::header::HOST, &address)
        .header(http::header::CONNECTION, "Upgrade")
        .header(http::header::UPGRADE, PROTOCOL)
        .body(http_body_util::Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        return Err(Error::Handshake);
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    established();
    let service = service_fn(move |request| {
        let respond = respond.clone();
        async move { Ok::<_, Infallible>(respond(request).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING).max_concurrent_streams(CALLS);
    builder.initial_stream_window_size(CALL_WINDOW).initial_connection_window_size(CALL_WINDOW * CALLS);
    builder.serve_connection(upgraded, service).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_from_any_pieces() {
        let mut whole = BytesMut::new();
        for (channel, bytes) in [(1u8, &b"abc"[..]), (0, b""), (2, b"x")] {
            whole.put_u8(channel);
            whole.put_u32(bytes.len() as u32);
            whole.put_slice(bytes);
        }
        let mut frames = Frames::default();
        let mut seen = Vec::new();
        for byte in whole {
            frames.feed(&[byte]);
            while let Some(frame) = frames.next().unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, [(1, Bytes::from("abc")), (0, Bytes::new()), (2, Bytes::from("x"))]);
        assert!(frames.is_whole());
    }

    #[test]
    fn long_data_comes_in_pieces_and_nothing_else_is_long_but_the_first() {
        let head = |channel: u8, length: usize| {
            let mut frames = Frames::default();
            frames.feed(&[&[channel][..], &(length as u32).to_be_bytes()].concat());
            frames
        };
        let mut long = head(channel::OUT, FRAME_BYTES);
        long.feed(&vec![7; PIECE_BYTES + 1]);
        assert_eq!(long.next().unwrap().unwrap(), (channel::OUT, Bytes::from(vec![7; PIECE_BYTES])));
        assert!(long.next().unwrap().is_none() && long.rest.len() == 1, "nothing is kept for the whole of it");
        let mut last = head(channel::IN, PIECE_BYTES + 1);
        last.feed(&[1; PIECE_BYTES + 1]);
        assert_eq!(last.next().unwrap().unwrap().1.len(), PIECE_BYTES);
        assert_eq!(last.next().unwrap().unwrap().1.len(), 1);
        assert!(last.next().unwrap().is_none() && last.is_whole());
        for (channel, length, is_taken) in [
            (channel::OUT, FRAME_BYTES + 1, false),
            (channel::CALL, FRAME_BYTES, true),
            (channel::HEAD, FRAME_BYTES, true),
            (channel::EXIT, SMALL_FRAME_BYTES, true),
            (channel::EXIT, SMALL_FRAME_BYTES + 1, false),
            (channel::RESIZE, SMALL_FRAME_BYTES + 1, false),
        ] {
            assert_eq!(head(channel, length).next().is_ok(), is_taken, "{channel} {length}");
        }
        let mut late = head(channel::OUT, 0);
        assert!(late.next().unwrap().is_some());
        late.feed(&[channel::HEAD, 0, 2, 0, 0]);
        assert!(late.next().is_err(), "a head is the first frame");
    }
}
