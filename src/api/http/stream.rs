//! Streams from and to containers: logs, exec and attach, over the channels of Kubernetes' websocket protocols (or over
//! SPDY, see `spdy_stream`).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Response};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::carried::{Carried, PIECE_BYTES, PIECES};
use super::context::RequestContext;
use super::flow_control::{BegunRoom, HeldBytes};
use super::outcome::outcome;
use super::stream_target::{node, none_of, target};
use super::{Body, answer, forward, socket, spdy_stream};
use crate::api::flowcontrol::Admission;
use crate::apimachinery::node_access::{ExecOptions, LogOptions, Session};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::base::task;
use crate::kinds::Subresource;
use crate::wire::linger;
use crate::wire::websocket::channel::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use crate::wire::websocket::{self, Framing, Size};

/// What we speak. v4 tells the outcome as a Status, those before it (and none) only a failure, as text; v5 adds the closing of
/// a single stream.
const PROTOCOLS: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];
/// What of a log is read ahead of its client, on the way from its node.
const LOG_BYTES: usize = 512 << 10;
/// How logs are told over a websocket: as they are, or each piece in base64.
const LOG_PROTOCOLS: &[&str] = &["binary.k8s.io", "base64.binary.k8s.io", ""];

/// Answers a request for a stream.
pub(super) async fn respond(context: RequestContext, http: http::Request<Body>) -> Result<Response<Body>> {
    let pod = context.api.get(&context.request)?.value();
    match context.request.subresource {
        Some(Subresource::Log) => logs(&context, &pod, http).await,
        Some(Subresource::Exec | Subresource::Attach) => exec(context, &pod, http).await,
        Some(Subresource::PortForward) => forward::respond(context, &pod, http).await,
        _ => Err(Status::new(501, "NotImplemented", "this stream is not served yet")),
    }
}

async fn logs(context: &RequestContext, pod: &Value, http: http::Request<Body>) -> Result<Response<Body>> {
    let target = target(context, pod)?;
    let options = LogOptions::of_query(&context.query, &context.request.name, context.api.clock.now())?;
    if text(pod, "spec.nodeName").is_empty() {
        // Nothing runs yet, so there is nothing to tell and nobody to ask.
        return Ok(answer::empty(204));
    }
    let over_socket = match websocket::is_wanted(http.headers()) {
        true => Some(websocket::agreed(http.headers(), LOG_PROTOCOLS).ok_or_else(|| none_of(LOG_PROTOCOLS))?),
        false => None,
    };
    let node = node(context, pod)?;
    // What is read ahead is there until the client takes something.
    let room = match http.extensions().get::<Arc<Admission>>() {
        Some(admission) => {
            let (sending, asker) = admission.sending();
            Some(BegunRoom(Arc::new(sending.wait_for_stream(asker, LOG_BYTES).await?)))
        }
        None => None,
    };
    let pieces = node.logs(&target, &options).await?;
    if let Some(protocol) = over_socket {
        let message = move |piece: Bytes| match Framing::of(protocol) {
            Framing::Binary => Message::Binary(piece),
            Framing::Base64 => Message::Text(STANDARD.encode(&piece).into()),
        };
        // An empty message tells the client at once that it is connected.
        let all = futures::stream::iter([Bytes::new()]).chain(ReceiverStream::new(pieces)).map(message);
        return Ok(socket::tell(http, Some(protocol).filter(|p| !p.is_empty()), all));
    }
    let mut response = answer::typed(200, "text/plain", answer::streamed(ReceiverStream::new(pieces)));
    response.extensions_mut().insert(HeldBytes(LOG_BYTES));
    if let Some(room) = room {
        response.extensions_mut().insert(room);
    }
    Ok(response)
}

async fn exec(context: RequestContext, pod: &Value, mut http: http::Request<Body>) -> Result<Response<Body>> {
    let target = target(&context, pod)?;
    let options = ExecOptions {
        command: context.query.all("command").to_vec(),
        stdin: context.query.flag("stdin"),
        stdout: context.query.flag("stdout"),
        stderr: context.query.flag("stderr"),
        tty: context.query.flag("tty"),
    };
    let is_exec = context.request.subresource == Some(Subresource::Exec);
    if is_exec && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    let over_spdy = spdy_stream::is_wanted(http.headers());
    let protocol = chosen(http.headers(), over_spdy)?;
    let node = node(&context, pod)?;
    let begun = if is_exec { node.exec(&target, &options).await } else { node.attach(&target, &options).await };
    let mut session = match begun {
        // A command that cannot be run is told of in the stream, as a runtime's errors are.
        Err(status) if status.reason == "InternalError" => Session::failed(status.message),
        begun => begun?,
    };
    if !is_exec {
        // As with the kubelet: how the container ended is said in the pod, and attaching to it went well.
        session.exit = session.exit.map(|end| end.map(|_| 0)).boxed();
    }
    let carried = Carried::of(&http);
    let upgrade = hyper::upgrade::on(&mut http);
    let response = match over_spdy {
        true => spdy_stream::accept(protocol),
        false => {
            let told = Some(protocol).filter(|p| !p.is_empty());
            websocket::accept(http.headers(), told, answer::full(Bytes::new()))
        }
    };
    task::spawn("exec stream", async move {
        match upgrade.await {
            Ok(upgraded) if over_spdy => spdy_stream::carry(carried.stream(upgraded), &options, session).await,
            Ok(upgraded) => {
                let socket = websocket::over(carried.stream(upgraded)).await;
                carry(socket, protocol, &options, session).await;
            }
            Err(error) => tracing::debug!(%error, "the client went away before the stream began"),
        }
    });
    Ok(response)
}

fn chosen(headers: &HeaderMap, over_spdy: bool) -> Result<&'static str> {
    if over_spdy {
        let ours = Some(spdy_stream::PROTOCOL).filter(|p| spdy_stream::offers(headers, p));
        return ours.ok_or_else(|| Status::bad_request("the client does not offer the protocol v4.channel.k8s.io"));
    }
    if !websocket::is_wanted(headers) {
        return Err(Status::bad_request("unable to upgrade: an upgrade to a websocket or to SPDY/3.1 is required"));
    }
    websocket::agreed(headers, PROTOCOLS).ok_or_else(|| none_of(PROTOCOLS))
}

/// Moves bytes between the websocket and the session until the command has ended and its output is out.
///
/// Output has tasks of its own: a command that answers while it is fed would otherwise wait for us, and we for it.
async fn carry(socket: socket::Socket, protocol: &str, options: &ExecOptions, session: Session) {
    let (framing, (out, mut input)) = (Framing::of(protocol), socket::split(socket));
    let (send, queue) = mpsc::channel(PIECES);
    // An empty message tells the client at once that it is connected.
    let first = match options {
        o if o.stdout => STDOUT,
        o if o.stderr => STDERR,
        _ => ERROR,
    };
    let _ = send.send(framing.message(first, b"")).await;
    let writing = task::spawn("exec socket", socket::write(out, queue));
    let mut pumps = Vec::new();
    for (channel, stream) in [(STDOUT, session.stdout), (STDERR, session.stderr)] {
        if let Some(stream) = stream {
            pumps.push(task::spawn("exec output", pump(framing, channel, stream, send.clone())));
        }
    }
    let (mut stdin, resize, mut exit) = (session.stdin, session.resize, session.exit);
    let mut pumped = futures::future::join_all(&mut pumps);
    let (mut code, mut output_open) = (None, true);
    while output_open || code.is_none() {
        tokio::select! {
            _ = &mut pumped, if output_open => output_open = false,
            ended = &mut exit, if code.is_none() => code = Some(ended),
            message = input.next() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(message)) => if let Some((channel, data)) = framing.read(message) {
                    take(channel, &data, &mut stdin, &resize).await;
                },
            },
        }
    }
    drop(pumped);
    pumps.iter().for_each(JoinHandle::abort);
    if let Some(code) = code {
        let outcome = outcome(code);
        let (told, why) = (protocol.starts_with('v'), text(&outcome, "message"));
        let outcome = if told { outcome.to_string() } else { why.to_owned() };
        if !outcome.is_empty() {
            let _ = send.send(framing.message(ERROR, outcome.as_bytes())).await;
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = send.send(Message::Close(Some(normal))).await;
    }
    // An exec ends with its session, whatever the client does now.
    drop((send, stdin, resize, exit));
    let _ = writing.await;
    linger::until_closed(input).await;
}

async fn pump(
    framing: Framing,
    channel: u8,
    mut stream: Box<dyn AsyncRead + Send + Unpin>,
    send: mpsc::Sender<Message>,
) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(n) = stream.read(&mut buffer).await {
        if n == 0 || send.send(framing.message(channel, &buffer[..n])).await.is_err() {
            return;
        }
    }
}

async fn take(
    channel: u8,
    data: &[u8],
    stdin: &mut Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    resize: &mpsc::Sender<(u16, u16)>,
) {
    match (channel, data) {
        (STDIN, data) => {
            if let Some(writer) = stdin
                && !data.is_empty()
                && (writer.write_all(data).await.is_err() || writer.flush().await.is_err())
            {
                *stdin = None;
            }
        }
        (CLOSE, [STDIN]) => {
            if let Some(mut writer) = stdin.take() {
                let _ = writer.shutdown().await;
            }
        }
        (RESIZE, data) => {
            if let Ok(size) = serde_json::from_slice::<Size>(data) {
                let _ = resize.try_send((size.width, size.height));
            }
        }
        _ => {}
    }
}
