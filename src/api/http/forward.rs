//! `kubectl port-forward`: connections to ports of a pod, as pairs of SPDY streams inside a websocket, or, for older
//! clients, on a connection that was upgraded to SPDY. (As channels of a websocket: `forward_channels`.)
//!
//! A connection is two streams with one request id: first the one that carries an error, if there is one, then the data.
//! Invariant: the error stream ends when the connection has ended, because clients wait for that.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{SinkExt, StreamExt};
use http::Response;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::carried::{Carried, CarriedStream, PIECE_BYTES, PIECES, Piece};
use super::context::RequestContext;
use super::spdy_stream::{self, Transport};
use super::{Body, answer, forward_channels, stream_target};
use crate::apimachinery::node_access::{NodeAccess, Target};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::base::task;
use crate::wire::spdy::{self, Decoder, Encoder, Frame};
use crate::wire::websocket::{self, Framing};

/// SPDY inside a websocket (kubectl from 1.31 on).
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// SPDY on the connection itself.
const PROTOCOL: &str = "portforward.k8s.io";
/// Connections of one client at a time.
const CONNECTIONS_MAX: usize = 1_000;

/// Answers a request to forward ports.
pub(super) async fn respond(
    context: RequestContext,
    pod: &Value,
    mut http: http::Request<Body>,
) -> Result<Response<Body>> {
    let target = Target {
        namespace: context.request.namespace.clone(),
        pod: context.request.name.clone(),
        uid: text(pod, "metadata.uid").into(),
        container: String::new(),
    };
    let node = stream_target::node(&context, pod)?;
    let in_websocket = websocket::is_wanted(http.headers());
    let response = if in_websocket {
        let all = [&[TUNNEL], forward_channels::PROTOCOLS].concat();
        let protocol = websocket::agreed(http.headers(), &all).ok_or_else(|| stream_target::none_of(&all))?;
        if protocol != TUNNEL {
            return channels(&context, protocol, node, target, http);
        }
        websocket::accept(http.headers(), Some(protocol), answer::full(Bytes::new()))
    } else if spdy_stream::is_wanted(http.headers()) {
        spdy_stream::accept(PROTOCOL)
    } else {
        return Err(Status::bad_request("unable to upgrade: an upgrade to a websocket or to SPDY/3.1 is required"));
    };
    let carried = Carried::of(&http);
    let upgrade = hyper::upgrade::on(&mut http);
    task::spawn("port-forward", async move {
        match upgrade.await {
            Ok(upgraded) => serve(carried.stream(upgraded), in_websocket, node, target).await,
            Err(error) => tracing::debug!(%error, "the client went away before the stream began"),
        }
    });
    Ok(response)
}

/// Ports as channels of the websocket.
fn channels(
    context: &RequestContext,
    protocol: &'static str,
    node: Arc<dyn NodeAccess>,
    target: Target,
    mut http: http::Request<Body>,
) -> Result<Response<Body>> {
    let ports = forward_channels::ports(&context.query)?;
    let told = Some(protocol).filter(|p| !p.is_empty());
    let response = websocket::accept(http.headers(), told, answer::full(Bytes::new()));
    let carried = Carried::of(&http);
    let upgrade = hyper::upgrade::on(&mut http);
    task::spawn("port-forward", async move {
        match upgrade.await {
            Ok(upgraded) => {
                forward_channels::serve(carried.stream(upgraded), Framing::of(protocol), node, target, ports).await;
            }
            Err(error) => tracing::debug!(%error, "the client went away before the stream began"),
        }
    });
    Ok(response)
}

async fn serve(stream: CarriedStream, in_websocket: bool, node: Arc<dyn NodeAccess>, target: Target) {
    let carried = stream.carried().clone();
    let (out, queue) = mpsc::channel(PIECES);
    let (incoming, writing) =
        if in_websocket { over_websocket(stream, queue).await } else { spdy_stream::transport(stream, queue) };
    let (errors, open) = (HashMap::new(), HashMap::new());
    let mut client = Forwarding { node, target, carried, out, encoder: Encoder::default(), errors, open };
    if let Err(error) = client.run(incoming).await {
        tracing::debug!(%error, "port-forward");
    }
    // What has been said still gets out.
    drop(client);
    let _ = writing.await;
}

async fn over_websocket(stream: CarriedStream, mut queue: mpsc::Receiver<Bytes>) -> Transport {
    let (mut sink, source) = websocket::over(stream).await.split();
    let writing = task::spawn("port-forward output", async move {
        while let Some(bytes) = queue.recv().await {
            if sink.send(Message::Binary(bytes)).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    let incoming = source.take_while(|m| std::future::ready(matches!(m, Ok(m) if !m.is_close())));
    let bytes = incoming.filter_map(|m| {
        std::future::ready(match m {
            Ok(Message::Binary(bytes)) => Some(bytes),
            _ => None,
        })
    });
    (bytes.boxed(), writing)
}

/// What one client forwards.
struct Forwarding {
    node: Arc<dyn NodeAccess>,
    target: Target,
    carried: Carried,
    out: mpsc::Sender<Bytes>,
    encoder: Encoder,
    /// Error streams whose data stream has not come yet, by request id.
    errors: HashMap<String, u32>,
    /// By data stream.
    open: HashMap<u32, Connection>,
}

struct Connection {
    error_stream: u32,
    /// `None` when the client has said all.
    input: Option<mpsc::Sender<Piece>>,
    carrying: JoinHandle<Option<()>>,
}

// === impl Forwarding ===

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.open.values().for_each(|c| c.carrying.abort());
    }
}

impl Forwarding {
    async fn run(&mut self, mut incoming: BoxStream<'static, Bytes>) -> Result<(), spdy::Error> {
        let mut decoder = Decoder::default();
        while let Some(bytes) = incoming.next().await {
            decoder.feed(&bytes);
            while let Some(frame) = decoder.next_frame()? {
                self.take(frame).await;
            }
            self.carried.settle(decoder.waiting_bytes());
        }
        Ok(())
    }

    async fn say(&self, bytes: Bytes) {
        // If nobody writes any more, nobody will be read from any more either.
        let _ = self.out.send(bytes).await;
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, last } => self.open(stream, &headers, last).await,
            Frame::Data { stream, bytes, last } => {
                let Some(connection) = self.open.get_mut(&stream) else { return };
                if let Some(input) = connection.input.as_ref().filter(|_| !bytes.is_empty()) {
                    let _ = input.send(self.carried.queue(bytes)).await;
                }
                if last {
                    connection.input = None;
                }
            }
            Frame::Reset { stream } => {
                let Some(connection) = self.open.remove(&stream) else { return };
                if !connection.carrying.is_finished() {
                    connection.carrying.abort();
                    self.say(spdy::data(connection.error_stream, b"", true)).await;
                }
            }
            Frame::Ping { id } => self.say(spdy::pong(id)).await,
            Frame::GoAway => {}
        }
    }

    async fn open(&mut self, stream: u32, headers: &[(String, String)], last: bool) {
        let header = |name: &str| {
            let found = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
            found.map_or("", |(_, value)| value.as_str())
        };
        let (id, port) = (header("requestid"), header("port").parse::<u16>().ok().filter(|p| *p > 0));
        let room = self.errors.len().max(self.open.len()) < CONNECTIONS_MAX;
        match (header("streamtype"), port) {
            ("error", Some(_)) if room => {
                self.errors.insert(id.to_owned(), stream);
                let reply = self.encoder.reply(stream);
                self.say(reply).await;
            }
            ("data", Some(port)) if room => {
                let Some(error_stream) = self.errors.remove(id) else {
                    return self.say(spdy::reset(stream)).await;
                };
                let reply = self.encoder.reply(stream);
                self.say(reply).await;
                let (input, pieces) = mpsc::channel(PIECES);
                let (node, target, out) = (self.node.clone(), self.target.clone(), self.out.clone());
                let carrying = task::spawn("forwarded connection", async move {
                    let failed = carry(&*node, &target, port, stream, pieces, &out).await.err();
                    if failed.is_some() {
                        let _ = out.send(spdy::data(stream, b"", true)).await;
                    }
                    let words = failed.map(|status| status.message).unwrap_or_default();
                    let _ = out.send(spdy::data(error_stream, words.as_bytes(), true)).await;
                });
                let input = Some(input).filter(|_| !last);
                self.open.insert(stream, Connection { error_stream, input, carrying });
            }
            _ => self.say(spdy::reset(stream)).await,
        }
    }
}

/// Moves bytes both ways until both sides have ended.
async fn carry(
    node: &dyn NodeAccess,
    target: &Target,
    port: u16,
    stream: u32,
    mut input: mpsc::Receiver<Piece>,
    out: &mpsc::Sender<Bytes>,
) -> Result<()> {
    let (mut read, mut write) = tokio::io::split(node.connect(target, port).await?);
    let there = async {
        while let Some(piece) = input.recv().await {
            if write.write_all(&piece.bytes).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    let back = async {
        let mut buffer = vec![0; PIECE_BYTES];
        while let Ok(n) = read.read(&mut buffer).await {
            if n == 0 || out.send(spdy::data(stream, &buffer[..n], false)).await.is_err() {
                break;
            }
        }
        // The client learns it now, whatever it still wants to say.
        let _ = out.send(spdy::data(stream, b"", true)).await;
    };
    tokio::join!(there, back);
    Ok(())
}
