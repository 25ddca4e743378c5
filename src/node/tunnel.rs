//! Answers what the server asks through the tunnel that this agent keeps open, and keeps it open.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::io::AsyncWriteExt;

use crate::apimachinery::node_access::{Duplex, NodeAccess, NodeRequest, Session, channel};
use crate::apimachinery::status::{Result, Status};
use crate::base::error::chain;
use crate::base::task;
use crate::wire::channel::Channel;
use crate::wire::images::BlobResponse;
use crate::wire::tunnel::PATH as TUNNEL_PATH;
use crate::wire::tunnel::{self, Body, Reader, Writer};

/// Waits between attempts while the server is away.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Keeps a tunnel to the server open until aborted.
pub async fn run(channel: Arc<Channel>, access: Arc<dyn NodeAccess>) {
    let mut wait = RETRY_MIN;
    loop {
        let mut opened = false;
        let access = access.clone();
        let ended = tunnel::answer(&channel, TUNNEL_PATH, || opened = true, move |r| respond(access.clone(), r)).await;
        if let Err(error) = ended {
            tracing::debug!(error = chain(&error), "the tunnel to the server ended");
        }
        wait = if opened { RETRY_MIN } else { (wait * 2).min(RETRY_MAX) };
        tokio::time::sleep(wait).await;
    }
}

async fn respond(access: Arc<dyn NodeAccess>, request: Request<Incoming>) -> Response<Body> {
    answer(access, Reader::new(request.into_body())).await.unwrap_or_else(|status| refused(&status))
}

fn refused(status: &Status) -> Response<Body> {
    let bytes = serde_json::to_vec(&status.to_json()).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(bytes)).boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(status.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response
}

async fn answer(access: Arc<dyn NodeAccess>, mut reader: Reader) -> Result<Response<Body>> {
    let malformed = || Status::bad_request("the call is malformed");
    let Ok(Some((channel::CALL, head))) = reader.next().await else { return Err(malformed()) };
    let call: NodeRequest = serde_json::from_slice(&head).map_err(|_| malformed())?;
    let (writer, body) = Writer::new();
    match call {
        NodeRequest::Logs(target, options) => {
            let mut pieces = access.logs(&target, &options).await?;
            task::spawn("tunnel log", async move {
                loop {
                    tokio::select! {
                        biased;
                        // Whoever asked has gone.
                        _ = reader.next() => return,
                        piece = pieces.recv() => match piece {
                            Some(bytes) if writer.send(channel::OUT, &bytes).await.is_ok() => {}
                            _ => return,
                        },
                    }
                }
            });
        }
        NodeRequest::Exec(target, options) => carry(access.exec(&target, &options).await?, reader, writer),
        NodeRequest::Attach(target, options) => carry(access.attach(&target, &options).await?, reader, writer),
        NodeRequest::Image(ask) => give(access.image(&ask).await?, reader, writer),
        NodeRequest::Volume(ask) => {
            let path = access.volume(&ask).await?;
            task::spawn("tunnel volume", async move {
                let _ = writer.send(channel::HEAD, path.as_bytes()).await;
            });
        }
        NodeRequest::Dial(to) => join(access.dial(&to).await?, reader, writer),
        NodeRequest::Connect(target, port) => join(access.connect(&target, port).await?, reader, writer),
    }
    Ok(Response::new(body))
}

/// Connects a session with the two streams of its call.
fn carry(session: Session, mut reader: Reader, writer: Writer) {
    let Session { mut stdin, stdout, stderr, resize, exit } = session;
    let input = task::spawn("tunnel input", async move {
        while let Ok(Some((to, bytes))) = reader.next().await {
            match (to, &mut stdin) {
                (channel::IN, input) => {
                    let goes_on = match input {
                        Some(input) if !bytes.is_empty() => input.write_all(&bytes).await.is_ok(),
                        _ => false,
                    };
                    if !goes_on {
                        // A pipe is at its end when nobody holds it, and only then.
                        *input = None;
                    }
                }
                (channel::RESIZE, _) if bytes.len() == 4 => {
                    let size = (u16::from_be_bytes([bytes[0], bytes[1]]), u16::from_be_bytes([bytes[2], bytes[3]]));
                    let _ = resize.send(size).await;
                }
                _ => {}
            }
        }
        // The other side has gone, and with it everything that was to be read.
    });
    task::spawn("tunnel output", async move {
        let gone = writer.clone();
        let out = async {
            if let Some(stdout) = stdout {
                let _ = writer.clone().pump(channel::OUT, stdout).await;
            }
        };
        let err = async {
            if let Some(stderr) = stderr {
                let _ = writer.clone().pump(channel::ERR, stderr).await;
            }
        };
        let end = async { tokio::join!(exit, out, err).0 };
        tokio::select! {
            biased;
            // As when a client of this machine goes: the session goes with its streams.
            () = gone.closed() => {}
            end = end => {
                let _ = writer.send(channel::EXIT, &serde_json::to_vec(&end).unwrap_or_default()).await;
            }
        }
        input.abort();
    });
}

/// Sends a part of an image.
fn give(found: BlobResponse, mut reader: Reader, writer: Writer) {
    task::spawn("tunnel image", async move {
        let BlobResponse { head, mut pieces } = found;
        let head = serde_json::to_vec(&head).unwrap_or_default();
        let sending = async {
            writer.send(channel::HEAD, &head).await?;
            while let Some(piece) = pieces.recv().await {
                writer.send(channel::OUT, &piece).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        tokio::select! {
            biased;
            // Whoever asked has gone.
            _ = reader.next() => {}
            _ = sending => {}
        }
    });
}

fn join(stream: Box<dyn Duplex>, mut reader: Reader, writer: Writer) {
    let (from, mut to) = tokio::io::split(stream);
    task::spawn("tunnel port input", async move {
        while let Ok(Some((_, bytes))) = reader.next().await {
            if tunnel::write_out(&mut to, &bytes).await.is_err() {
                return;
            }
        }
        // The call's end says that nothing more comes, as its last frame does.
        let _ = to.shutdown().await;
    });
    task::spawn("tunnel port output", async move {
        let gone = writer.clone();
        tokio::select! {
            biased;
            // Nobody wants the rest.
            () = gone.closed() => {}
            _ = writer.pump(channel::OUT, from) => {}
        }
    });
}

#[cfg(test)]
mod tests;
