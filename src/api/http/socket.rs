//! Writing to websockets, and such as only tell: logs and watches, message by message, for clients that open them with a GET (browsers can
//! do nothing else).

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};

use http::Response;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::{Body, answer};
use crate::base::task;
use crate::wire::{linger, websocket};

/// Answers with a websocket on which the messages come, until they end or the client closes it. What it sends is not read.
pub(super) fn tell<S>(mut http: http::Request<Body>, protocol: Option<&str>, messages: S) -> Response<Body>
where
    S: futures::Stream<Item = Message> + Send + 'static,
{
    let response = websocket::accept(http.headers(), protocol, answer::full(Bytes::new()));
    let upgrade = hyper::upgrade::on(&mut http);
    task::spawn("websocket", async move {
        match upgrade.await {
            Ok(upgraded) => run(websocket::over(upgraded).await, messages).await,
            Err(error) => tracing::debug!(%error, "the client went away before the websocket began"),
        }
    });
    response
}

async fn run(socket: websocket::Socket, messages: impl futures::Stream<Item = Message>) {
    let (mut out, mut input) = socket.split();
    let mut messages = std::pin::pin!(messages);
    let sending = async {
        while let Some(message) = messages.next().await {
            if out.send(message).await.is_err() {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = out.send(Message::Close(Some(normal))).await;
    };
    let closed = async { while input.next().await.is_some_and(|m| m.is_ok_and(|m| !m.is_close())) {} };
    tokio::select! {
        () = sending => {}
        () = closed => {}
    }
    linger::until_closed(input).await;
}

/// Sends what is queued, then the end.
pub(super) async fn write(mut out: SplitSink<websocket::Socket, Message>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if out.send(message).await.is_err() {
            return;
        }
    }
    let _ = out.close().await;
}
