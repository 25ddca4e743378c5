//! Websockets: taking over an HTTP connection, on either side.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
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

/// A client's end of a websocket.
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

/// The sub-protocols that the client offers, in its order.
pub fn offered(headers: &HeaderMap) -> Vec<&str> {
    let all = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect()
}

/// What both sides speak: the first of the client's sub-protocols that is one of ours. A client that offers none speaks the
/// one without a name, if that is one of ours.
pub fn agreed<'a>(headers: &HeaderMap, ours: &[&'a str]) -> Option<&'a str> {
    let offered = offered(headers);
    let asked = if offered.is_empty() { &[""][..] } else { &offered[..] };
    asked.iter().find_map(|asked| ours.iter().copied().find(|p| p == asked))
}

/// How the channels of one websocket are told apart: by the first byte of each message, which is the channel's number, or by
/// the first letter of a text, its digit, before base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Binary,
    Base64,
}

// === impl Framing ===

impl Framing {
    /// What a sub-protocol's name says.
    pub fn of(protocol: &str) -> Self {
        if protocol.contains("base64") { Self::Base64 } else { Self::Binary }
    }

    /// A message on a channel.
    pub fn message(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Self::Binary => {
                let mut bytes = BytesMut::with_capacity(data.len() + 1);
                bytes.put_u8(channel);
                bytes.put_slice(data);
                Message::Binary(bytes.freeze())
            }
            Self::Base64 => {
                let mut text = String::with_capacity(data.len() / 3 * 4 + 5);
                text.push(char::from(b'0'.saturating_add(channel)));
                BASE64.encode_string(data, &mut text);
                Message::Text(text.into())
            }
        }
    }

    /// The channel and the data of a message; nothing where it has neither.
    pub fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            _ => return None,
        };
        let channel = *bytes.first()?;
        bytes.advance(1);
        match self {
            Self::Binary => Some((channel, bytes)),
            Self::Base64 => Some((channel.checked_sub(b'0')?, BASE64.decode(&bytes).ok()?.into())),
        }
    }
}

/// What a server answers to a client's key.
pub fn answer(key: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, MAGIC].concat());
    BASE64.encode(digest)
}

/// The answer that switches protocols, with `body` as its (empty) body.
pub fn accept<B>(headers: &HeaderMap, protocol: Option<&str>, body: B) -> Response<B> {
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
    if let Some(protocol) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
        out.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    response
}

/// The server's end of a websocket over a connection that was taken over.
pub async fn over<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(limits())).await
}

/// The client's end.
pub async fn from_client(upgraded: Upgraded) -> Socket {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(limits())).await
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
    fn the_clients_order_decides_and_none_is_a_protocol_too() {
        let headers = |protocols: &[&'static str]| {
            let mut all = HeaderMap::new();
            for p in protocols {
                all.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(p));
            }
            all
        };
        let ours = ["v5", "v4", ""];
        assert_eq!(agreed(&headers(&["x, v4", "v5"]), &ours), Some("v4"));
        assert_eq!(agreed(&headers(&[]), &ours), Some(""));
        assert_eq!(agreed(&headers(&[]), &ours[..2]), None);
        assert_eq!(agreed(&headers(&["x"]), &ours), None);
    }

    #[test]
    fn channels_are_bytes_or_digits_before_base64() {
        let (binary, base64) = (Framing::of("v4.channel.k8s.io"), Framing::of("v4.base64.channel.k8s.io"));
        assert_eq!(binary.message(1, b"hi"), Message::Binary(b"\x01hi".as_slice().into()));
        assert_eq!(base64.message(1, b"hi"), Message::Text("1aGk=".into()));
        for framing in [binary, base64] {
            assert_eq!(framing.read(framing.message(3, b"\0\xff")), Some((3, b"\0\xff".as_slice().into())));
            assert_eq!(framing.read(framing.message(0, b"")), Some((0, Bytes::new())));
            assert_eq!(framing.read(Message::Binary(Bytes::new())), None);
        }
        assert_eq!(base64.read(Message::Text("1%%".into())), None);
        assert_eq!(base64.read(Message::Text("!aGk=".into())), None, "below the digits");
    }

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
