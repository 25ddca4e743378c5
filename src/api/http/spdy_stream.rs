//! Streams over SPDY/3.1 on the connection itself, as clients ask for them that do not use websockets: most programs made
//! with client-go, and kubectl before 1.31. Here: the connection, and exec and attach on it.
//!
//! Each of stdin, stdout, stderr, the terminal's size and the outcome has a stream, which the client opens. Invariant: the
//! outcome is the last thing that is said.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::carried::{Carried, CarriedStream, PIECE_BYTES, PIECES};
use super::outcome::outcome;
use super::{Body, answer};
use crate::apimachinery::node_access::{ExecOptions, Session};
use crate::base::task;
use crate::wire::linger;
use crate::wire::spdy::{self, Decoder, Encoder, Frame};
use crate::wire::websocket::Size;

const SPDY: &str = "SPDY/3.1";
const PROTOCOL_HEADER: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// What exec and attach speak here; the outcome as a Status came with it.
pub(super) const PROTOCOL: &str = "v4.channel.k8s.io";
/// How long a client may take to open its streams.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);
/// Frames that may come before all streams are open.
const EARLY_MAX: usize = 16;

/// What comes from a client, and the task that writes to it.
pub(super) type Transport = (BoxStream<'static, Bytes>, JoinHandle<Option<()>>);

/// Whether the client wants to go on with SPDY.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(SPDY.as_bytes()))
}

/// Whether the client offers a protocol for its streams.
pub(super) fn offers(headers: &HeaderMap, protocol: &str) -> bool {
    let all = headers.get_all(PROTOCOL_HEADER).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).any(|p| p.trim() == protocol)
}

/// The answer that switches protocols.
pub(super) fn accept(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(answer::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(protocol));
    response
}

/// The frames of a connection that was taken over: what comes, and the task that writes what is queued.
pub(super) fn transport(stream: CarriedStream, mut queue: mpsc::Receiver<Bytes>) -> Transport {
    let (read, mut write) = tokio::io::split(stream);
    let writing = task::spawn("SPDY output", async move {
        while let Some(bytes) = queue.recv().await {
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    let incoming = futures::stream::unfold(read, |mut read| async {
        let mut buffer = vec![0; PIECE_BYTES];
        match read.read(&mut buffer).await {
            Ok(n) if n > 0 => {
                buffer.truncate(n);
                Some((buffer.into(), read))
            }
            _ => None,
        }
    });
    (incoming.boxed(), writing)
}

/// A client of exec or attach.
struct Remote {
    incoming: BoxStream<'static, Bytes>,
    carried: Carried,
    decoder: Decoder,
    encoder: Encoder,
    out: mpsc::Sender<Bytes>,
    /// By what they carry.
    streams: HashMap<String, u32>,
}

/// Carries a session until the command has ended and its output is out, or the client is gone.
pub(super) async fn carry(stream: CarriedStream, options: &ExecOptions, session: Session) {
    let carried = stream.carried().clone();
    let (out, queue) = mpsc::channel(PIECES);
    let (incoming, writing) = transport(stream, queue);
    let (decoder, encoder, streams) = (Decoder::default(), Encoder::default(), HashMap::new());
    let mut remote = Remote { incoming, carried, decoder, encoder, out, streams };
    let opened = tokio::time::timeout(OPEN_PATIENCE, remote.wait_for(&wanted(options))).await;
    match opened {
        Ok(Some(early)) => remote.run(session, early).await,
        Ok(None) => tracing::debug!("the client went away before it had opened its streams"),
        Err(_) => tracing::debug!("the client did not open all of its streams"),
    }
    let Remote { incoming, carried, out, .. } = remote;
    drop(out);
    let _ = writing.await;
    linger::until_closed(incoming.inspect(|_| carried.settle(0))).await;
}

/// The streams that a client opens for what it asked.
fn wanted(options: &ExecOptions) -> Vec<&'static str> {
    let all = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr && !options.tty),
        ("resize", options.tty),
    ];
    all.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
}

// === impl Remote ===

impl Remote {
    /// The next frame; `None` when the client is gone or talks nonsense.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Ping { id })) => self.out.send(spdy::pong(id)).await.ok()?,
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => self.decoder.feed(&self.incoming.next().await?),
                Err(error) => {
                    tracing::debug!(%error, "exec");
                    return None;
                }
            }
        }
    }

    /// Accepts streams until all of them are there; answers what came on them meanwhile.
    async fn wait_for(&mut self, wanted: &[&str]) -> Option<Vec<Frame>> {
        let mut early = Vec::new();
        while !wanted.iter().all(|name| self.streams.contains_key(*name)) {
            match self.frame().await? {
                Frame::Open { stream, headers, last: _ } => {
                    let kind = headers.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("streamtype"));
                    let known = kind.map(|(_, kind)| kind).filter(|kind| wanted.contains(&kind.as_str()));
                    let said = match known {
                        Some(kind) => {
                            self.streams.insert(kind, stream);
                            self.encoder.reply(stream)
                        }
                        None => spdy::reset(stream),
                    };
                    self.out.send(said).await.ok()?;
                }
                frame if early.len() < EARLY_MAX => early.push(frame),
                _ => return None,
            }
        }
        Some(early)
    }

    async fn run(&mut self, session: Session, early: Vec<Frame>) {
        let Session { mut stdin, stdout, stderr, resize, mut exit } = session;
        let mut pumps = Vec::new();
        for (name, source) in [("stdout", stdout), ("stderr", stderr)] {
            if let (Some(source), Some(stream)) = (source, self.streams.get(name)) {
                pumps.push(task::spawn("exec output", pump(*stream, source, self.out.clone())));
            }
        }
        let mut pumped = futures::future::join_all(&mut pumps);
        let (mut code, mut output_open) = (None, true);
        let mut early = early.into_iter();
        while output_open || code.is_none() {
            let frame = async {
                match early.next() {
                    Some(frame) => Some(frame),
                    None => self.frame().await,
                }
            };
            let frame = tokio::select! {
                _ = &mut pumped, if output_open => {
                    output_open = false;
                    continue;
                }
                ended = &mut exit, if code.is_none() => {
                    code = Some(ended);
                    continue;
                }
                frame = frame => frame,
            };
            // What came before it is taken.
            self.carried.settle(self.decoder.waiting_bytes());
            match frame {
                Some(Frame::Data { stream, bytes, last }) if self.is(stream, "stdin") => {
                    if let Some(writer) = &mut stdin
                        && (writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err())
                    {
                        stdin = None;
                    }
                    if let (true, Some(mut writer)) = (last, stdin.take_if(|_| last)) {
                        let _ = writer.shutdown().await;
                    }
                }
                Some(Frame::Reset { stream }) if self.is(stream, "stdin") => stdin = None,
                Some(Frame::Data { stream, bytes, .. }) if self.is(stream, "resize") => {
                    let sizes = serde_json::Deserializer::from_slice(&bytes).into_iter::<Size>();
                    for size in sizes.flatten() {
                        let _ = resize.try_send((size.width, size.height));
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        drop(pumped);
        pumps.iter().for_each(JoinHandle::abort);
        if let (Some(code), Some(stream)) = (code, self.streams.get("error")) {
            let status = outcome(code).to_string();
            let _ = self.out.send(spdy::data(*stream, status.as_bytes(), true)).await;
        }
    }

    fn is(&self, stream: u32, kind: &str) -> bool {
        self.streams.get(kind) == Some(&stream)
    }
}

async fn pump(stream: u32, mut source: Box<dyn AsyncRead + Send + Unpin>, out: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(n) = source.read(&mut buffer).await {
        if n == 0 || out.send(spdy::data(stream, &buffer[..n], false)).await.is_err() {
            break;
        }
    }
    let _ = out.send(spdy::data(stream, b"", true)).await;
}
