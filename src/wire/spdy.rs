//! SPDY/3.1 as far as Kubernetes' clients use it to carry many streams over one connection: frames in, frames out, no
//! sockets. `kubectl port-forward` speaks it, inside a websocket or on a connection that was upgraded to it.
//!
//! There is no flow control, because neither those clients nor Kubernetes' servers have it: what is not read is held back
//! by TCP. Headers that are sent are not compressed, only wrapped as zlib wants it; those that come are inflated through
//! the dictionary of the protocol. Invariants: nothing of a frame is looked at before all of it is there, but long data comes
//! in pieces of [`DATA_PIECE_BYTES`]; and no frame may be longer than [`FRAME_BYTES_MAX`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Longer frames end the connection.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Longer data comes in pieces of this size; longer frames of other types end the connection.
const DATA_PIECE_BYTES: usize = 64 << 10;
/// Inflated headers of one frame.
pub(super) const HEADER_BYTES_MAX: usize = 64 << 10;
const VERSION: u16 = 3;
const FIN: u8 = 1;
/// What deflate may refer to before anything was sent: the words with their lengths, then the tail.
const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,accept-ranges,age,a\
    llow,authorization,cache-control,connection,content-base,content-encoding,content-language,content-length,co\
    ntent-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,if-modifie\
    d-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenti\
    cate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,user-agent,va\
    ry,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,keep-alive,o\
    rigin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritat\
    ive Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found5\
    00 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct N\
    ov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,applic\
    ation/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf\
    -8charset=iso-8859-1,utf-,*,enq=0.";
/// The dictionary's checksum (Adler-32), by which a zlib stream names it.
const DICTIONARY: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// Length of a zlib stream's head with a dictionary's checksum.
const ZLIB_HEAD_BYTES: usize = 6;

const OPEN: u16 = 1;
const REPLY: u16 = 2;
const RESET: u16 = 3;
const PING: u16 = 6;
const GO_AWAY: u16 = 7;
const HEADERS: u16 = 8;

/// What the other side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A new stream; `last` if nothing more comes on it.
    Open { stream: u32, headers: Vec<(String, String)>, last: bool },
    /// Bytes on a stream.
    Data { stream: u32, bytes: Bytes, last: bool },
    /// A stream ends at once.
    Reset { stream: u32 },
    /// To be sent back as it is.
    Ping { id: u32 },
    /// No new streams will come.
    GoAway,
}

/// Why the connection cannot go on.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    #[error("version {0} of SPDY is not spoken")]
    Version(u16),
    #[error("a frame of type {0} is cut short")]
    Short(u16),
    #[error("headers cannot be read: {0}")]
    Headers(&'static str),
}

/// Frames out of bytes, as they come.
pub struct Decoder {
    buffer: BytesMut,
    /// What is left of long data.
    data: Option<LongData>,
    inflate: Inflate,
}

#[derive(Clone, Copy)]
struct LongData {
    stream: u32,
    left_bytes: usize,
    last: bool,
}

/// Headers into bytes.
#[derive(Debug, Default)]
pub struct Encoder {
    begun: bool,
}

// === impl Decoder ===

impl Default for Decoder {
    fn default() -> Self {
        let inflate = Inflate { begun: false, stream: Decompress::new(false) };
        Self { buffer: BytesMut::new(), data: None, inflate }
    }
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({} bytes wait)", self.buffer.len())
    }
}

impl Decoder {
    /// More bytes have come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What has come and is no frame yet.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next frame that matters here, if all of it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.data.is_some() {
            return Ok(self.piece());
        }
        while let Some((head, body)) = self.cut()? {
            if let Some(frame) = self.read(head, body)? {
                return Ok(Some(frame));
            }
        }
        Ok(self.piece())
    }

    /// The next piece of long data, if all of it is there.
    fn piece(&mut self) -> Option<Frame> {
        let LongData { stream, left_bytes, last } = self.data?;
        let length = left_bytes.min(DATA_PIECE_BYTES);
        if self.buffer.len() < length {
            return None;
        }
        let left_bytes = left_bytes - length;
        self.data = (left_bytes > 0).then_some(LongData { stream, left_bytes, last });
        let bytes = self.buffer.split_to(length).freeze();
        Some(Frame::Data { stream, bytes, last: last && left_bytes == 0 })
    }

    /// Takes one whole frame off the buffer.
    fn cut(&mut self) -> Result<Option<([u8; 8], Bytes)>, Error> {
        let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(None) };
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if length > FRAME_BYTES_MAX {
            return Err(Error::TooLong(length));
        }
        if length > DATA_PIECE_BYTES {
            let stream = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            if stream >> 31 != 0 {
                return Err(Error::TooLong(length));
            }
            self.data = Some(LongData { stream, left_bytes: length, last: head[4] & FIN != 0 });
            self.buffer.advance(8);
            return Ok(None);
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        Ok(Some((head, self.buffer.split_to(length).freeze())))
    }

    fn read(&mut self, head: [u8; 8], mut body: Bytes) -> Result<Option<Frame>, Error> {
        let last = head[4] & FIN != 0;
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if first >> 31 == 0 {
            return Ok(Some(Frame::Data { stream: first, bytes: body, last }));
        }
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let number = |body: &mut Bytes| body.try_get_u32().map(|n| n & 0x7fff_ffff).map_err(|_| Error::Short(kind));
        Ok(match kind {
            OPEN => {
                let stream = number(&mut body)?;
                // The stream it belongs to, its priority, a slot for certificates: nobody here uses them.
                number(&mut body)?;
                body.try_get_u16().map_err(|_| Error::Short(kind))?;
                Some(Frame::Open { stream, headers: self.inflate.headers(&body)?, last })
            }
            REPLY | HEADERS => {
                number(&mut body)?;
                // Not of interest, but later headers build on these.
                self.inflate.headers(&body)?;
                None
            }
            RESET => Some(Frame::Reset { stream: number(&mut body)? }),
            PING => Some(Frame::Ping { id: body.try_get_u32().map_err(|_| Error::Short(kind))? }),
            GO_AWAY => Some(Frame::GoAway),
            _ => None,
        })
    }
}

/// The one stream of compressed headers of a connection.
struct Inflate {
    begun: bool,
    stream: Decompress,
}

// === impl Inflate ===

impl Inflate {
    fn headers(&mut self, mut input: &[u8]) -> Result<Vec<(String, String)>, Error> {
        if !self.begun && !input.is_empty() {
            input = zlib_body(input).ok_or(Error::Headers("not compressed with the dictionary"))?;
            // As if the dictionary had been sent before, uncompressed: then everything later can refer to it.
            self.inflate(&stored(&dictionary()))?;
            self.begun = true;
        }
        pairs(&self.inflate(input)?)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(4096);
        loop {
            let before = self.stream.total_in();
            let status = self.stream.decompress_vec(input, &mut out, FlushDecompress::Sync);
            input = &input[(self.stream.total_in() - before) as usize..];
            match status {
                Err(_) => return Err(Error::Headers("they do not inflate")),
                Ok(Status::StreamEnd) => return Err(Error::Headers("they ended")),
                Ok(Status::Ok | Status::BufError) if out.len() < out.capacity() && input.is_empty() => return Ok(out),
                Ok(Status::BufError) if out.len() < out.capacity() => return Err(Error::Headers("they are cut short")),
                Ok(_) if out.len() >= HEADER_BYTES_MAX => return Err(Error::Headers("they are too long")),
                Ok(_) => out.reserve(4096),
            }
        }
    }
}

/// What follows the head of a zlib stream with our dictionary, of whatever level and window.
fn zlib_body(input: &[u8]) -> Option<&[u8]> {
    const DEFLATE: u8 = 8;
    const WITH_DICTIONARY: u8 = 0x20;
    let (head, body) = input.split_at_checked(ZLIB_HEAD_BYTES)?;
    let sound = head[0] & 0x0f == DEFLATE && u16::from_be_bytes([head[0], head[1]]).is_multiple_of(31);
    (sound && head[1] & WITH_DICTIONARY != 0 && head[2..] == DICTIONARY).then_some(body)
}

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split(',') {
        all.put_u32(word.len() as u32);
        all.extend_from_slice(word.as_bytes());
    }
    all.extend_from_slice(TAIL.as_bytes());
    all
}

/// A block of deflate that holds the bytes as they are.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("the dictionary and our headers are short");
    let mut out = Vec::with_capacity(bytes.len() + 5);
    out.put_u8(0);
    out.put_u16_le(length);
    out.put_u16_le(!length);
    out.extend_from_slice(bytes);
    out
}

fn pairs(mut block: &[u8]) -> Result<Vec<(String, String)>, Error> {
    fn text(block: &mut &[u8]) -> Result<String, Error> {
        let short = Error::Headers("a name or value is cut short");
        let Ok(length) = block.try_get_u32() else { return Err(short) };
        let Some((text, rest)) = block.split_at_checked(length as usize) else { return Err(short) };
        *block = rest;
        Ok(String::from_utf8_lossy(text).into_owned())
    }
    let count = block.try_get_u32().map_err(|_| Error::Headers("they are empty"))?;
    let mut all = Vec::new();
    for _ in 0..count {
        all.push((text(&mut block)?, text(&mut block)?));
    }
    Ok(all)
}

// === impl Encoder ===

impl Encoder {
    /// Accepts a stream, without headers.
    pub fn reply(&mut self, stream: u32) -> Bytes {
        let mut body = BytesMut::new();
        body.put_u32(stream);
        if !self.begun {
            // zlib without a dictionary, fastest.
            body.put_slice(&[0x78, 0x01]);
            self.begun = true;
        }
        body.put_slice(&stored(&0u32.to_be_bytes()));
        // Go's inflater hands out what it has when it sees an empty block, and otherwise asks for more than there is.
        body.put_slice(&stored(&[]));
        control(REPLY, &body)
    }
}

/// Bytes on a stream; `last` ends our half of it.
pub fn data(stream: u32, bytes: &[u8], last: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + bytes.len());
    out.put_u32(stream);
    out.put_u32(u32::from(if last { FIN } else { 0 }) << 24 | bytes.len() as u32);
    out.put_slice(bytes);
    out.freeze()
}

/// Refuses or ends a stream at once, as cancelled.
pub fn reset(stream: u32) -> Bytes {
    const CANCEL: u32 = 5;
    let mut body = BytesMut::new();
    body.put_u32(stream);
    body.put_u32(CANCEL);
    control(RESET, &body)
}

/// Answers a ping.
pub fn pong(id: u32) -> Bytes {
    control(PING, &id.to_be_bytes())
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + body.len());
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(body.len() as u32);
    out.put_slice(body);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frame with which a client opens a stream.
    fn opened(stream: u32, compressed: &[u8], last: bool) -> Vec<u8> {
        let mut body = BytesMut::new();
        body.put_u32(stream);
        body.put_u32(0);
        body.put_u16(0);
        body.put_slice(compressed);
        let mut frame = control(OPEN, &body).to_vec();
        frame[4] = if last { FIN } else { 0 };
        frame
    }

    /// `streamtype: error`, `port: 8080`, `requestid: 0`, deflated by zlib with the dictionary and a sync flush.
    const ERROR_STREAM: &str =
        "78bbe3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff";
    /// `streamtype: data` and the rest the same, in the same zlib stream.
    const DATA_STREAM: &str = "c2aa19540e2512d60b000000ffff";

    fn headers(kind: &str) -> Vec<(String, String)> {
        [("streamtype", kind), ("port", "8080"), ("requestid", "0")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        // Adler-32, which the head of a zlib stream carries.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16 | a).to_be_bytes(), DICTIONARY);
    }

    #[test]
    fn long_data_comes_in_pieces_of_which_the_last_one_ends_it() {
        let long = vec![7; 2 * DATA_PIECE_BYTES + 5];
        let mut decoder = Decoder::default();
        decoder.feed(&data(3, &long, true));
        decoder.feed(&pong(1));
        let piece = |length, last| Some(Frame::Data { stream: 3, bytes: vec![7; length].into(), last });
        for expected in [piece(DATA_PIECE_BYTES, false), piece(DATA_PIECE_BYTES, false), piece(5, true)] {
            assert_eq!(decoder.next_frame().unwrap(), expected);
        }
        assert_eq!(decoder.next_frame().unwrap(), Some(Frame::Ping { id: 1 }));
        assert_eq!(decoder.waiting_bytes(), 0);
        let mut decoder = Decoder::default();
        decoder.feed(&opened(1, &vec![0; DATA_PIECE_BYTES], false)[..8]);
        assert!(matches!(decoder.next_frame(), Err(Error::TooLong(_))), "headers are not that long");
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let mut bytes = opened(1, &hex::decode(ERROR_STREAM).unwrap(), true);
        bytes.extend(opened(3, &hex::decode(DATA_STREAM).unwrap(), false));
        bytes.extend(data(3, b"GET /", false));
        bytes.extend(pong(7));
        bytes.extend(reset(3));
        let expected = [
            Frame::Open { stream: 1, headers: headers("error"), last: true },
            Frame::Open { stream: 3, headers: headers("data"), last: false },
            Frame::Data { stream: 3, bytes: Bytes::from_static(b"GET /"), last: false },
            Frame::Ping { id: 7 },
            Frame::Reset { stream: 3 },
        ];
        for size in [1, 3, 7, 1000] {
            let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(size) {
                decoder.feed(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, expected, "pieces of {size}");
        }
    }

    #[test]
    fn our_headers_are_a_zlib_stream() {
        let mut encoder = Encoder::default();
        let (first, second) = (encoder.reply(1), encoder.reply(3));
        let mut inflate = Decompress::new(true);
        let mut out = Vec::with_capacity(100);
        inflate.decompress_vec(&[&first[12..], &second[12..]].concat(), &mut out, FlushDecompress::Sync).unwrap();
        assert_eq!(out, [0; 8], "twice no headers");
    }

    #[test]
    fn what_is_no_spdy_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.feed(bytes);
            decoder.next_frame().unwrap_err()
        };
        assert_eq!(refused(b"\x00\x00\x00\x01\x00\xff\xff\xff"), Error::TooLong(0xff_ffff));
        assert_eq!(refused(b"\x80\x02\x00\x01\x00\x00\x00\x00"), Error::Version(2));
        assert_eq!(refused(b"\x80\x03\x00\x03\x00\x00\x00\x00"), Error::Short(RESET));
        assert!(matches!(refused(&opened(1, b"\x78\x9c\x00", false)), Error::Headers(_)));
        let mut bad = [&[0x78, 0xf9], &DICTIONARY[..]].concat();
        bad.extend([0xff; 9]);
        assert!(matches!(refused(&opened(1, &bad, false)), Error::Headers(_)));
    }
}
