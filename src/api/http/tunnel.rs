//! Reaching the pods of agents through the tunnels that the agents keep open.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use http::header::{CONNECTION, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http2::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::{Body, answer};
use crate::api::Api;
use crate::apimachinery::node_access::{
    Destination, Duplex, ExecOptions, LogOptions, NodeAccess, NodeRequest, Session, Target, VolumeRequest, channel,
};
use crate::apimachinery::status::{Result, Status};
use crate::base::task;
use crate::wire::images::{BlobRequest, BlobResponse};
use crate::wire::tunnel::{self, PROTOCOL, Reader, Writer};

/// What may wait between a stream and the tunnel.
const PIPE_BYTES: usize = 64 << 10;
/// Pieces of a log that may wait for the client, and of an image.
const LOG_PIECES: usize = 2;
const PIECES: usize = 8;
const SIZES: usize = 4;
/// How long a node may take to say whether it has an image.
const IMAGE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a node may take to make or remove the directory of a volume before it is asked again.
const VOLUME_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest refusal that is read.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Lets an agent be reached from now on, as long as its connection lives.
pub fn accept(api: &Api, node: &str, mut request: Request<Body>) -> Result<Response<Body>> {
    if request.headers().get(UPGRADE).is_none_or(|u| u != PROTOCOL) {
        return Err(Status::bad_request(format!("expected an upgrade to {PROTOCOL}")));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (api, node) = (api.clone(), node.to_owned());
    task::spawn("tunnel of an agent", async move {
        let asking = match upgrade.await {
            Ok(upgraded) => tunnel::ask(upgraded).await,
            Err(error) => return tracing::debug!(%error, node, "a tunnel was not opened"),
        };
        match asking {
            Ok(asking) => {
                let access: Arc<dyn NodeAccess> = Arc::new(TunnelAccess { node: node.clone(), sender: asking.sender });
                api.nodes.register(&node, access.clone());
                tracing::info!(node, "the agent can be reached");
                let _ = asking.ended.await;
                api.nodes.forget(&node, &access);
                tracing::info!(node, "the agent can no longer be reached");
            }
            Err(error) => tracing::debug!(%error, node, "a tunnel was not opened"),
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, PROTOCOL)
        .body(answer::full(Bytes::new()));
    response.map_err(|e| Status::internal(e.to_string()))
}

struct TunnelAccess {
    node: String,
    sender: SendRequest<tunnel::Body>,
}

/// A stream through the tunnel; when it is dropped the node is told, whatever either side still wanted to say.
struct TunnelStream {
    stream: DuplexStream,
    _alive: oneshot::Sender<()>,
}

impl AsyncRead for TunnelStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl TunnelAccess ===

impl TunnelAccess {
    async fn call(&self, call: &NodeRequest) -> Result<(Writer, Reader)> {
        let away = |why: &dyn std::fmt::Display| {
            Status::unavailable(format!("node {:?} cannot be reached now: {why}", self.node))
        };
        let (writer, body) = Writer::new();
        let head = serde_json::to_vec(call).map_err(Status::internal)?;
        writer.send(channel::CALL, &head).await.map_err(|e| away(&e))?;
        let request = Request::post("http://node/").body(body).map_err(|e| Status::internal(e.to_string()))?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|e| away(&e))?;
        let response = sender.send_request(request).await.map_err(|e| away(&e))?;
        if response.status().is_success() {
            return Ok((writer, Reader::new(response.into_body())));
        }
        let code = response.status().as_u16();
        let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Err(Status::received(code, &text("reason"), text("message")))
    }

    /// A call that is a stream of bytes both ways.
    async fn stream(&self, call: &NodeRequest) -> Result<Box<dyn Duplex>> {
        let (writer, mut reader) = self.call(call).await?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let (from, mut to): (ReadHalf<_>, WriteHalf<_>) = tokio::io::split(theirs);
        let (alive, gone) = oneshot::channel::<()>();
        task::spawn("tunnel port input", writer.pump(channel::IN, from));
        task::spawn("tunnel port output", async move {
            let copying = async {
                while let Ok(Some((_, bytes))) = reader.next().await {
                    if tunnel::write_out(&mut to, &bytes).await.is_err() {
                        return;
                    }
                }
            };
            // With the reader goes the call, and with it the connection on the node.
            tokio::select! {
                biased;
                _ = gone => {}
                () = copying => {}
            }
        });
        Ok(Box::new(TunnelStream { stream: ours, _alive: alive }))
    }

    async fn session(&self, call: NodeRequest, options: &ExecOptions) -> Result<Session> {
        let (writer, reader) = self.call(&call).await?;
        let (stdin, from_client) = tokio::io::duplex(PIPE_BYTES);
        let (stdout, to_stdout) = tokio::io::duplex(PIPE_BYTES);
        let (stderr, to_stderr) = tokio::io::duplex(PIPE_BYTES);
        let (resize, mut sizes) = mpsc::channel::<(u16, u16)>(SIZES);
        let (exit, ended) = oneshot::channel();
        if options.stdin {
            task::spawn("tunnel input", writer.clone().pump(channel::IN, from_client));
        }
        task::spawn("tunnel sizes", async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let size = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                if writer.send(channel::RESIZE, &size).await.is_err() {
                    return;
                }
            }
        });
        task::spawn("tunnel output", spread(reader, to_stdout, to_stderr, exit));
        let stderr = (options.stderr && !options.tty).then_some(stderr);
        Ok(Session {
            stdin: options.stdin.then(|| Box::new(stdin) as Box<dyn AsyncWrite + Send + Unpin>),
            stdout: options.stdout.then(|| Box::new(stdout) as Box<dyn AsyncRead + Send + Unpin>),
            stderr: stderr.map(|s| Box::new(s) as Box<dyn AsyncRead + Send + Unpin>),
            resize,
            exit: async move { ended.await.unwrap_or_else(|_| Err("the connection to the node broke".into())) }.boxed(),
        })
    }
}

/// Sends what comes from the node where it belongs. Output that nobody wants is dropped.
async fn spread(
    mut reader: Reader,
    mut stdout: DuplexStream,
    mut stderr: DuplexStream,
    mut exit: oneshot::Sender<Result<i32, String>>,
) {
    loop {
        let next = tokio::select! {
            biased;
            // Nobody waits for the end any more: the node is told by the end of this stream.
            () = exit.closed() => return,
            next = reader.next() => next,
        };
        let Ok(Some((to, bytes))) = next else { return };
        let _ = match to {
            channel::OUT => tunnel::write_out(&mut stdout, &bytes).await,
            channel::ERR => tunnel::write_out(&mut stderr, &bytes).await,
            channel::EXIT => {
                let end = serde_json::from_slice(&bytes).unwrap_or_else(|e| Err(format!("no exit code: {e}")));
                let _ = exit.send(end);
                return;
            }
            _ => Ok(()),
        };
    }
}

#[async_trait]
impl NodeAccess for TunnelAccess {
    async fn logs(&self, target: &Target, options: &LogOptions) -> Result<mpsc::Receiver<Bytes>> {
        let (writer, mut reader) = self.call(&NodeRequest::Logs(target.clone(), options.clone())).await?;
        let (send, queue) = mpsc::channel(LOG_PIECES);
        task::spawn("tunnel log", async move {
            // The call lives as long as its input does.
            let _open = writer;
            loop {
                tokio::select! {
                    biased;
                    () = send.closed() => return,
                    piece = reader.next() => match piece {
                        Ok(Some((channel::OUT, bytes))) if !bytes.is_empty() => {
                            if send.send(bytes).await.is_err() {
                                return;
                            }
                        }
                        _ => return,
                    },
                }
            }
        });
        Ok(queue)
    }

    async fn exec(&self, target: &Target, options: &ExecOptions) -> Result<Session> {
        self.session(NodeRequest::Exec(target.clone(), options.clone()), options).await
    }

    async fn attach(&self, target: &Target, options: &ExecOptions) -> Result<Session> {
        self.session(NodeRequest::Attach(target.clone(), options.clone()), options).await
    }

    async fn connect(&self, target: &Target, port: u16) -> Result<Box<dyn Duplex>> {
        self.stream(&NodeRequest::Connect(target.clone(), port)).await
    }

    async fn dial(&self, to: &Destination) -> Result<Box<dyn Duplex>> {
        self.stream(&NodeRequest::Dial(*to)).await
    }

    async fn volume(&self, ask: &VolumeRequest) -> Result<String> {
        let asked = async {
            let (_open, mut reader) = self.call(&NodeRequest::Volume(ask.clone())).await?;
            match reader.next().await {
                Ok(Some((channel::HEAD, path))) => {
                    String::from_utf8(path.to_vec()).map_err(|_| Status::internal("the path of the volume is no text"))
                }
                _ => Err(Status::unavailable(format!("node {:?} broke off", self.node))),
            }
        };
        let late = |_| Status::unavailable(format!("node {:?} does not answer", self.node));
        tokio::time::timeout(VOLUME_TIMEOUT, asked).await.map_err(late)?
    }

    async fn image(&self, ask: &BlobRequest) -> Result<BlobResponse> {
        let asked = async {
            let (writer, mut reader) = self.call(&NodeRequest::Image(ask.clone())).await?;
            match reader.next().await {
                Ok(Some((channel::HEAD, head))) => Ok((writer, reader, head)),
                _ => Err(Status::unavailable(format!("node {:?} broke off", self.node))),
            }
        };
        // One that does not answer keeps nobody from asking the others.
        let late = |_| Status::unavailable(format!("node {:?} does not answer", self.node));
        let (writer, mut reader, head) = tokio::time::timeout(IMAGE_TIMEOUT, asked).await.map_err(late)??;
        let head = serde_json::from_slice(&head).map_err(Status::internal)?;
        let (send, pieces) = mpsc::channel(PIECES);
        task::spawn("tunnel image", async move {
            // The call lives as long as its input does.
            let _open = writer;
            let sending = async {
                while let Ok(Some((channel::OUT, bytes))) = reader.next().await {
                    if send.send(bytes).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                // Whoever asked has gone: a node that has fallen silent is not waited for.
                () = send.closed() => {}
                () = sending => {}
            }
        });
        Ok(BlobResponse { head, pieces })
    }
}
