//! Writing and reading netlink messages and attributes.
//!
//! Invariant: every message and attribute written is padded to four bytes and its length field is right; reading never
//! goes past the bytes given.

use super::NLMSG_HEADER;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Bytes of one or several messages under construction.
#[derive(Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends one message.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Buffer)) {
        let start = self.0.len();
        self.put(&[0; 4]);
        self.put(&kind.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&sequence.to_ne_bytes());
        self.put(&[0; 4]);
        body(self);
        let length = u32::try_from(self.0.len() - start).expect("a message is far below 4 GiB");
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    /// Raw bytes, for the fixed part of a message.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }

    pub(crate) fn attr(&mut self, kind: u16, value: &[u8]) {
        self.attr_with(kind, |b| b.put(value));
    }

    /// A text attribute with its closing zero.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) {
        self.attr_with(kind, |b| {
            b.put(value.as_bytes());
            b.put(&[0]);
        });
    }

    /// A number in the machine's byte order (routing).
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order (netfilter).
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn attr_be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) {
        self.attr_with(kind | NLA_F_NESTED, body);
    }

    fn attr_with(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) {
        let start = self.0.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.0.len() - start).expect("attributes are kept below 64 KiB by their writers");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }
}

/// The part of a message header that readers need.
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) sequence: u32,
}

/// Takes the first message off: header, body, rest.
pub(crate) fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    if length < NLMSG_HEADER || length > bytes.len() {
        return None;
    }
    let kind = u16::from_ne_bytes(bytes[4..6].try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes[8..12].try_into().ok()?);
    let next = length.next_multiple_of(4).min(bytes.len());
    Some((Header { kind, sequence }, &bytes[NLMSG_HEADER..length], &bytes[next..]))
}

/// Iterates over attributes: type without flags, value.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = u16::from_ne_bytes(self.0.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(self.0.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, value)| (k == kind).then_some(value))
    }
}

/// A number in the machine's byte order.
pub(crate) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// Text up to its closing zero.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|b| *b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buffer = Buffer::default();
        buffer.message(7, 1, 9, |b| {
            b.put(&[0; 4]);
            b.attr_str(1, "abc");
            b.nest(2, |b| b.attr_u32(3, 5));
        });
        buffer.message(8, 1, 10, |_| {});
        let (header, body, rest) = split(buffer.bytes()).unwrap();
        assert_eq!((header.kind, header.sequence), (7, 9));
        let mut attributes = Attributes(&body[4..]);
        assert_eq!(attributes.next().map(|(k, v)| (k, text(v))), Some((1, Some("abc"))));
        let (kind, nested) = attributes.next().unwrap();
        assert_eq!((kind, Attributes(nested).find(3).and_then(ne32)), (2, Some(5)));
        assert!(attributes.next().is_none());
        let (header, body, rest) = split(rest).unwrap();
        assert_eq!((header.kind, body.len(), rest.len()), (8, 0, 0));
    }

    #[test]
    fn cut_messages_are_not_read() {
        let mut buffer = Buffer::default();
        buffer.message(7, 1, 9, |b| b.attr_str(1, "abcdef"));
        for end in 0..buffer.bytes().len() {
            assert!(split(&buffer.bytes()[..end]).is_none());
        }
        assert!(Attributes(&[200, 0, 1, 0, 1]).next().is_none());
    }
}
