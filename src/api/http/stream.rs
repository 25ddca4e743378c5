//! Streams from and to containers: logs, exec and attach, over the channels of Kubernetes' websocket protocols.

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Response};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::verbs::Call;
use super::{Body, answer, forward};
use crate::api::node_access::{ExecOptions, LogOptions, NodeAccess, Session, Target};
use crate::api::status::{Result, Status};
use crate::base::json::{list, text};
use crate::base::{clock, task};
use crate::kinds::Subresource;
use crate::wire::websocket::{self, Size, Socket};

/// What we speak, best first. v5 adds the closing of a single stream.
const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Answers a request for a stream.
pub(super) async fn respond(call: Call, http: http::Request<Incoming>) -> Result<Response<Body>> {
    let pod = call.api.get(&call.request)?.value();
    match call.request.subresource {
        Some(Subresource::Log) => logs(&call, &pod).await,
        Some(Subresource::Exec | Subresource::Attach) => exec(call, &pod, http).await,
        Some(Subresource::Proxy) if call.request.kind.plural == "pods" && text(&pod, "status.podIP").is_empty() => {
            Err(Status::bad_request(format!("no host in pod {}", call.request.name)))
        }
        Some(Subresource::PortForward) => forward::respond(call, &pod, http).await,
        _ => Err(Status::new(501, "NotImplemented", "this stream is not served yet")),
    }
}

/// The container that a request means, which must be one of the pod's.
fn target(call: &Call, pod: &Value) -> Result<Target> {
    let groups = ["spec.containers", "spec.initContainers", "spec.ephemeralContainers"];
    let names: Vec<&str> = groups.iter().flat_map(|g| list(pod, g)).map(|c| text(c, "name")).collect();
    let (asked, name) = (call.query.get("container"), &call.request.name);
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str().unwrap_or("");
    let container = match asked {
        "" if names.len() == 1 => names[0],
        "" if names.contains(&default) => default,
        "" => {
            return Err(Status::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: {names:?}"
            )));
        }
        asked if names.contains(&asked) => asked,
        asked => return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
    };
    Ok(Target {
        namespace: call.request.namespace.clone(),
        pod: name.clone(),
        uid: text(pod, "metadata.uid").into(),
        container: container.into(),
    })
}

/// The node on which the pod is.
pub(super) fn node(call: &Call, pod: &Value) -> Result<std::sync::Arc<dyn NodeAccess>> {
    match text(pod, "spec.nodeName") {
        "" => Err(Status::bad_request(format!("pod {} does not have a host assigned", call.request.name))),
        node => call.api.nodes.get(node),
    }
}

async fn logs(call: &Call, pod: &Value) -> Result<Response<Body>> {
    let target = target(call, pod)?;
    let number = |name: &str| -> Result<Option<u64>> {
        match call.query.int(name)? {
            Some(n) if n < 0 => Err(Status::bad_request(format!("{name} must be greater than or equal to 0, got {n}"))),
            n => Ok(n.map(|n| n as u64)),
        }
    };
    let since = match (call.query.get("sinceTime"), number("sinceSeconds")?) {
        ("", seconds) => seconds.map(|s| call.api.clock.now() - std::time::Duration::from_secs(s)),
        (time, None) => {
            let parsed = clock::parse_time(time);
            Some(parsed.ok_or_else(|| Status::bad_request(format!("sinceTime: {time:?} is not an RFC 3339 time")))?)
        }
        _ => return Err(Status::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified")),
    };
    let options = LogOptions {
        follow: call.query.flag("follow"),
        previous: call.query.flag("previous"),
        timestamps: call.query.flag("timestamps"),
        tail_lines: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        since,
        stream: call.query.get("stream").to_owned(),
    };
    if text(pod, "spec.nodeName").is_empty() {
        // Nothing runs yet, so there is nothing to tell and nobody to ask.
        return Ok(answer::empty(204));
    }
    let pieces = node(call, pod)?.logs(&target, &options).await?;
    Ok(answer::typed(200, "text/plain", answer::streamed(ReceiverStream::new(pieces))))
}

async fn exec(call: Call, pod: &Value, mut http: http::Request<Incoming>) -> Result<Response<Body>> {
    let target = target(&call, pod)?;
    let options = ExecOptions {
        command: call.query.all("command").to_vec(),
        stdin: call.query.flag("stdin"),
        stdout: call.query.flag("stdout"),
        stderr: call.query.flag("stderr"),
        tty: call.query.flag("tty"),
    };
    let is_exec = call.request.subresource == Some(Subresource::Exec);
    if is_exec && options.command.is_empty() {
        return Err(Status::bad_request("you must specify at least one command for the container"));
    }
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(Status::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    let protocol = chosen(http.headers())?;
    let node = node(&call, pod)?;
    let begun = if is_exec { node.exec(&target, &options).await } else { node.attach(&target, &options).await };
    let session = match begun {
        // A command that cannot be run is told of in the stream, as a runtime's errors are.
        Err(status) if status.reason == "InternalError" => Session::failed(status.message),
        begun => begun?,
    };
    let upgrade = hyper::upgrade::on(&mut http);
    let response = websocket::accept(http.headers(), Some(protocol), answer::full(Bytes::new()));
    task::spawn("exec stream", async move {
        match upgrade.await {
            Ok(upgraded) => carry(websocket::over(upgraded).await, session).await,
            Err(error) => tracing::debug!(%error, "the client went away before the stream began"),
        }
    });
    Ok(response)
}

fn chosen(headers: &HeaderMap) -> Result<&'static str> {
    if !websocket::is_wanted(headers) {
        return Err(Status::bad_request(
            "a websocket upgrade with the sub-protocol v5.channel.k8s.io or v4.channel.k8s.io is required",
        ));
    }
    websocket::protocol(headers, PROTOCOLS)
        .ok_or_else(|| Status::bad_request(format!("the client offers none of the sub-protocols {PROTOCOLS:?}")))
}

/// Moves bytes between the websocket and the session until the command has ended and its output is out.
async fn carry(socket: Socket, session: Session) {
    let (mut out, mut input) = socket.split();
    let (send, mut queue) = mpsc::channel::<Bytes>(16);
    let mut readers = Vec::new();
    for (channel, stream) in [(STDOUT, session.stdout), (STDERR, session.stderr)] {
        if let Some(stream) = stream {
            readers.push(task::spawn("exec output", pump(channel, stream, send.clone())));
        }
    }
    drop(send);
    let (mut stdin, resize, mut exit) = (session.stdin, session.resize, session.exit);
    let mut code = None;
    let mut output_open = true;
    while output_open || code.is_none() {
        tokio::select! {
            piece = queue.recv(), if output_open => match piece {
                Some(piece) => if out.send(Message::Binary(piece)).await.is_err() { break },
                None => output_open = false,
            },
            ended = &mut exit, if code.is_none() => code = Some(ended),
            message = input.next() => match message {
                Some(Ok(Message::Binary(bytes))) => take(&bytes, &mut stdin, &resize).await,
                Some(Ok(Message::Text(text))) => take(text.as_bytes(), &mut stdin, &resize).await,
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    for reader in readers {
        reader.abort();
    }
    if let Some(code) = code {
        finish(&mut out, code).await;
    }
}

async fn pump(channel: u8, mut stream: Box<dyn AsyncRead + Send + Unpin>, send: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; 32 << 10];
    buffer[0] = channel;
    while let Ok(n) = stream.read(&mut buffer[1..]).await {
        if n == 0 || send.send(Bytes::copy_from_slice(&buffer[..=n])).await.is_err() {
            return;
        }
    }
}

async fn take(
    message: &[u8],
    stdin: &mut Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>,
    resize: &mpsc::Sender<(u16, u16)>,
) {
    match message {
        [STDIN, data @ ..] => {
            if let Some(writer) = stdin
                && !data.is_empty()
                && (writer.write_all(data).await.is_err() || writer.flush().await.is_err())
            {
                *stdin = None;
            }
        }
        [CLOSE, STDIN] => {
            if let Some(mut writer) = stdin.take() {
                let _ = writer.shutdown().await;
            }
        }
        [RESIZE, data @ ..] => {
            if let Ok(size) = serde_json::from_slice::<Size>(data) {
                let _ = resize.try_send((size.width, size.height));
            }
        }
        _ => {}
    }
}

/// Tells how the command ended, as kubectl reads it from the error channel.
async fn finish(out: &mut SplitSink<Socket, Message>, code: Result<i32, String>) {
    let status = match code {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(why) => {
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": why, "code": 500})
        }
    };
    let mut frame = vec![ERROR];
    frame.extend(serde_json::to_vec(&status).unwrap_or_default());
    let _ = out.send(Message::Binary(frame.into())).await;
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = out.send(Message::Close(Some(normal))).await;
    let _ = out.close().await;
}
