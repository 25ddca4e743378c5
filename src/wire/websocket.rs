//! Websockets: taking over an HTTP connection, on either side.

use base64::Engine;
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// The channels of Kubernetes' streaming protocols.
pub mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    /// Since v5: the channel that is named next is at its end.
    pub const CLOSE: u8 = 255;
}

/// What RFC 6455 appends to the key.
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The longest message, in however many frames it comes.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// A websocket over an upgraded connection.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// A terminal's size, as Kubernetes' streaming protocol writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Whether the client wants a websocket.
pub fn is_wanted(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && headers.contains_key(SEC_WEBSOCKET_KEY)
}

/// The first of our sub-protocols that the client offers.
pub fn protocol<'a>(headers: &HeaderMap, ours: &[&'a str]) -> Option<&'a str> {
    let all = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let offered: Vec<&str> = all.flat_map(|v| v.split(',')).map(str::trim).collect();
    ours.iter().copied().find(|p| offered.contains(p))
}

/// What a server answers to a client's key.
pub fn answer(key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC].concat());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// The answer that switches protocols, with `body` as its (empty) body.
pub fn accept<B>(headers: &HeaderMap, protocol: Option<&'static str>, body: B) -> Response<B> {
    let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    let answer = answer(key);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let out = response.headers_mut();
    out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(answer) = HeaderValue::from_str(&answer) {
        out.insert(SEC_WEBSOCKET_ACCEPT, answer);
    }
    if let Some(protocol) = protocol {
        out.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    response
}

/// The server's end of a websocket over a connection that was taken over.
pub async fn over(upgraded: Upgraded) -> Socket {
    socket(upgraded, Role::Server).await
}

/// The client's end.
pub async fn from_client(upgraded: Upgraded) -> Socket {
    socket(upgraded, Role::Client).await
}

async fn socket(upgraded: Upgraded, role: Role) -> Socket {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), role, Some(limits())).await
}

/// Of every websocket.
pub(super) fn limits() -> WebSocketConfig {
    let mut config = WebSocketConfig::default();
    config.max_message_size = Some(MESSAGE_BYTES_MAX);
    // The head of a frame alone makes room for all of it.
    config.max_frame_size = Some(MESSAGE_BYTES_MAX);
    config.read_buffer_size = 16 << 10;
    config.write_buffer_size = 16 << 10;
    config
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tokio_tungstenite::tungstenite::Error;
    use tokio_tungstenite::tungstenite::protocol::WebSocket;

    use super::*;

    #[test]
    fn a_frame_that_is_longer_than_any_message_is_refused_by_its_head() {
        let head = |length: u64| {
            let mut bytes = vec![0x82, 0xff];
            bytes.extend(length.to_be_bytes());
            bytes.extend([0; 4]);
            WebSocket::from_raw_socket(Cursor::new(bytes), Role::Server, Some(limits())).read()
        };
        assert!(matches!(head(MESSAGE_BYTES_MAX as u64 + 1), Err(Error::Capacity(_))), "before the rest has come");
        assert!(!matches!(head(MESSAGE_BYTES_MAX as u64), Err(Error::Capacity(_))), "it waits for the rest");
    }
}
