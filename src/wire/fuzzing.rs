//! Frames that clients and nodes send, as bytes, through the readers of this room.

use std::io::{self, Cursor, Read, Write};

use bytes::Bytes;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocket};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::spdy::{self, Decoder, Frame};
use super::tunnel;
use super::websocket::{self, MESSAGE_BYTES_MAX, Size, channel};

/// A connection on which all of the input has come, and on which what is answered is counted.
struct Connection<'d> {
    input: Cursor<&'d [u8]>,
    answered_bytes: usize,
}

// === impl Connection ===

impl Read for Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.answered_bytes += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// SPDY: the same frames however the bytes are cut, and ours are read back.
pub(crate) fn spdy_frames(data: &[u8]) {
    let whole = decoded(data, data.len().max(1));
    let pieces = decoded(data, 1 + data.len() / 7);
    assert_eq!(whole, pieces, "frames depend on how they are cut");
    let (frames, _) = whole;
    for frame in frames {
        let written = match &frame {
            Frame::Data { stream, bytes, last } => spdy::data(*stream, bytes, *last),
            Frame::Reset { stream } => spdy::reset(*stream),
            Frame::Ping { id } => spdy::pong(*id),
            Frame::Open { headers, .. } => {
                let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
                assert!(bytes <= 4 * spdy::HEADER_BYTES_MAX, "headers of {bytes} bytes");
                continue;
            }
            Frame::GoAway => continue,
        };
        assert_eq!(decoded(&written, written.len()).0, [frame]);
    }
}

fn decoded(data: &[u8], piece_bytes: usize) -> (Vec<Frame>, Option<spdy::Error>) {
    let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
    for piece in data.chunks(piece_bytes) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Websockets, at either end: messages within their limit, no more than what came, answers no longer than questions.
pub(crate) fn websocket_frames(data: &[u8]) {
    for role in [Role::Server, Role::Client] {
        let connection = Connection { input: Cursor::new(data), answered_bytes: 0 };
        let mut socket = WebSocket::from_raw_socket(connection, role, Some(websocket::limits()));
        let mut bytes = 0;
        loop {
            match socket.read() {
                Ok(message) => {
                    assert!(message.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", message.len());
                    match message {
                        Message::Binary(part) => {
                            bytes += part.len();
                            binary(&part);
                        }
                        Message::Text(part) => bytes += part.len(),
                        // The reason of a close may be ours.
                        _ => {}
                    }
                }
                // A read that would be an endless loop in the product's stream too: it ends at the first error.
                Err(Error::WriteBufferFull(_)) => {}
                Err(_) => break,
            }
        }
        assert!(bytes <= data.len(), "{bytes} bytes out of {}", data.len());
        // A pong for a ping, one close: each at most a mask longer, and a close with a reason of ours.
        let answered = socket.get_ref().answered_bytes;
        assert!(answered <= 3 * data.len() + 256, "{answered} bytes answered to {}", data.len());
    }
}

/// What a message of the streaming protocols is read as.
fn binary(message: &[u8]) {
    if let [channel::RESIZE, json @ ..] = message
        && let Ok(size) = serde_json::from_slice::<Size>(json)
    {
        let text = serde_json::to_vec(&size).expect("a size is written");
        assert_eq!(serde_json::from_slice::<Size>(&text).ok(), Some(size));
    }
    // A port-forward inside of a websocket.
    let _ = decoded(message, message.len().max(1));
}

/// Frames of the tunnel between server and agents: the same however the bytes are cut, and what is written again is what came.
pub(crate) fn tunnel_frames(data: &[u8]) {
    let frames = tunneled(data, data.len().max(1));
    assert_eq!(frames, tunneled(data, 1 + data.len() / 7), "frames depend on how they are cut");
    for (channel, bytes) in frames.0 {
        let mut written = vec![channel];
        written.extend((bytes.len() as u32).to_be_bytes());
        written.extend_from_slice(&bytes);
        assert_eq!(tunneled(&written, written.len()), (vec![(channel, bytes)], true));
    }
}

/// The frames, and whether nothing was wrong.
fn tunneled(data: &[u8], piece_bytes: usize) -> (Vec<(u8, Bytes)>, bool) {
    let (mut frames, mut found) = (tunnel::Frames::default(), Vec::new());
    for piece in data.chunks(piece_bytes) {
        frames.feed(piece);
        loop {
            match frames.next() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}
