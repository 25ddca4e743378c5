//! Ports of a pod as channels of a websocket: what every client library but kubectl does.
//!
//! The ports are named in the query, `?ports=80&ports=443` or `?ports=80,443`. The n-th has channel 2n for its data and 2n+1
//! for an error, and each of both begins with the port's number, two bytes, the lower first. A channel cannot be closed alone:
//! the websocket ends when all connections have ended, and a client that is done closes it.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::carried::{CarriedStream, PIECE_BYTES, PIECES, Piece};
use super::socket;
use crate::apimachinery::node_access::{NodeAccess, Target};
use crate::apimachinery::query::Query;
use crate::apimachinery::status::{Result, Status};
use crate::base::task;
use crate::wire::linger;
use crate::wire::websocket::{self, Framing};

/// What is spoken; a client that names nothing speaks the first.
pub(super) const PROTOCOLS: &[&str] = &["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""];
/// As many as base64's channels, which are letters from `0` on, can tell apart.
const PORTS_MAX: usize = 36;

/// The ports that the query names.
pub(super) fn ports(query: &Query) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for text in query.all("ports").iter().flat_map(|v| v.split(',')) {
        let port = text.parse::<u16>().ok().filter(|p| *p > 0);
        ports.push(port.ok_or_else(|| Status::bad_request(format!("ports: {text:?} is no port: 1 to 65535")))?);
    }
    match ports.len() {
        0 => Err(Status::bad_request("query parameter \"ports\" is required, such as ?ports=80")),
        1..=PORTS_MAX => Ok(ports),
        _ => Err(Status::bad_request(format!("ports: at most {PORTS_MAX} can be forwarded over one websocket"))),
    }
}

/// Carries the connections until all have ended, or the client has gone.
pub(super) async fn serve(
    stream: CarriedStream,
    framing: Framing,
    node: Arc<dyn NodeAccess>,
    target: Target,
    ports: Vec<u16>,
) {
    let carried = stream.carried().clone();
    let (out, mut input) = socket::split(websocket::over(stream).await);
    let (send, queue) = mpsc::channel(PIECES);
    let writing = task::spawn("port-forward output", socket::write(out, queue));
    let mut inputs = Vec::new();
    let mut connections = Vec::new();
    for (i, port) in (0u8..).zip(ports) {
        for channel in [2 * i, 2 * i + 1] {
            let _ = send.send(framing.message(channel, &port.to_le_bytes())).await;
        }
        let (give, pieces) = mpsc::channel(PIECES);
        inputs.push(Some(give));
        let line = Line { framing, channel: 2 * i, send: send.clone() };
        connections.push(line.carry(node.clone(), target.clone(), port, pieces));
    }
    let taking = async {
        while let Some(Ok(message)) = input.next().await {
            if message.is_close() {
                return;
            }
            let Some((channel, data)) = framing.read(message) else { continue };
            // Nobody says anything on a channel for errors.
            let Some(to) = inputs.get_mut(usize::from(channel / 2)).filter(|_| channel % 2 == 0) else { continue };
            if let Some(give) = to
                && !data.is_empty()
                && give.send(carried.queue(data)).await.is_err()
            {
                *to = None;
            }
        }
    };
    tokio::select! {
        _ = join_all(connections) => {
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = send.send(Message::Close(Some(normal))).await;
        }
        () = taking => {}
    }
    drop(send);
    let _ = writing.await;
    linger::until_closed(input).await;
}

/// One port's two channels.
struct Line {
    framing: Framing,
    channel: u8,
    send: mpsc::Sender<Message>,
}

// === impl Line ===

impl Line {
    async fn carry(self, node: Arc<dyn NodeAccess>, target: Target, port: u16, mut pieces: mpsc::Receiver<Piece>) {
        let stream = match node.connect(&target, port).await {
            Ok(stream) => stream,
            Err(status) => {
                let Target { pod, uid, .. } = &target;
                let why = format!("error forwarding port {port} to pod {pod}, uid {uid}: {}", status.message);
                let _ = self.send.send(self.framing.message(self.channel + 1, why.as_bytes())).await;
                return;
            }
        };
        let (mut read, mut write) = tokio::io::split(stream);
        let there = async {
            while let Some(piece) = pieces.recv().await {
                if write.write_all(&piece.bytes).await.is_err() || write.flush().await.is_err() {
                    break;
                }
            }
            // What comes after the other side has ended is dropped, not waited with.
            pieces.close();
            std::future::pending::<()>().await;
        };
        let back = async {
            let mut buffer = vec![0; PIECE_BYTES];
            while let Ok(n) = read.read(&mut buffer).await {
                if n == 0 || self.send.send(self.framing.message(self.channel, &buffer[..n])).await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_one_by_one_or_in_a_list() {
        let read = |query: &str| ports(&Query::parse(query)).map_err(|s| s.code);
        assert_eq!(read("ports=80&ports=443"), Ok(vec![80, 443]));
        assert_eq!(read("ports=80,443"), Ok(vec![80, 443]));
        for bad in ["", "ports=", "ports=0", "ports=65536", "ports=80,", "ports=http"] {
            assert_eq!(read(bad), Err(400), "{bad}");
        }
        let many = |n: usize| format!("ports={}", vec!["80"; n].join(","));
        assert_eq!(read(&many(PORTS_MAX)).map(|p| p.len()), Ok(PORTS_MAX));
        assert_eq!(read(&many(PORTS_MAX + 1)), Err(400));
        // The last letter is still one of ASCII.
        assert!(b'0' + 2 * PORTS_MAX as u8 <= 128);
    }
}
