//! Writing to websockets, and such as only tell: logs and watches, message by message, for clients that open them with a GET (browsers can
//! do nothing else).

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};

use http::Response;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use super::carried::{Carried, CarriedStream};
use super::{Body, answer};
use crate::base::task;
use crate::wire::{linger, websocket};

/// The server's end of a websocket, which counts what it holds.
pub(super) type Socket = WebSocketStream<CarriedStream>;

/// Both halves of a websocket. What was read is taken with the message that it makes.
pub(super) fn split(
    socket: Socket,
) -> (SplitSink<Socket, Message>, impl futures::Stream<Item = tungstenite::Result<Message>> + Send + Unpin) {
    let carried = socket.get_ref().carried().clone();
    let (out, input) = socket.split();
    (out, input.inspect(move |_| carried.settle(0)))
}

/// Answers with a websocket on which the messages come, until they end or the client closes it. What it sends is not read.
pub(super) fn tell<S>(mut http: http::Request<Body>, protocol: Option<&str>, messages: S) -> Response<Body>
where
    S: futures::Stream<Item = Message> + Send + 'static,
{
    let response = websocket::accept(http.headers(), protocol, answer::full(Bytes::new()));
    let carried = Carried::of(&http);
    let upgrade = hyper::upgrade::on(&mut http);
    task::spawn("websocket", async move {
        match upgrade.await {
            Ok(upgraded) => run(websocket::over(carried.stream(upgraded)).await, messages).await,
            Err(error) => tracing::debug!(%error, "the client went away before the websocket began"),
        }
    });
    response
}

async fn run(socket: Socket, messages: impl futures::Stream<Item = Message>) {
    let (mut out, mut input) = split(socket);
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
pub(super) async fn write(mut out: SplitSink<Socket, Message>, mut queue: mpsc::Receiver<Message>) {
    while let Some(message) = queue.recv().await {
        if out.send(message).await.is_err() {
            return;
        }
    }
    let _ = out.close().await;
}
