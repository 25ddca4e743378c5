//! Messages and attributes of nf_tables as bytes: a whole batch goes out in one piece, and what comes back is looked into without
//! being taken apart.
//!
//! Invariant: every message and attribute written is padded to four bytes and its length field is right; reading never
//! goes past the bytes given.

use std::convert::Infallible;

use netlink_packet_core::{NLA_F_NESTED, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};

/// Bytes of one or several messages under construction.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends one message.
    pub(super) fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Buffer)) {
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
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn pad(&mut self) {
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }

    pub(super) fn attr(&mut self, kind: u16, value: &[u8]) {
        self.attr_with(kind, |b| b.put(value));
    }

    /// A text attribute with its closing zero.
    pub(super) fn attr_str(&mut self, kind: u16, value: &str) {
        self.attr_with(kind, |b| {
            b.put(value.as_bytes());
            b.put(&[0]);
        });
    }

    /// A number in network byte order (netfilter).
    pub(super) fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(super) fn attr_be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Buffer)) {
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

/// A message as it is: what follows the netlink header.
pub(super) struct Message {
    kind: u16,
    pub(super) body: Vec<u8>,
}

// === impl Message ===

impl Message {
    pub(super) fn new(kind: u16, body: impl FnOnce(&mut Buffer)) -> Self {
        let mut buffer = Buffer::default();
        body(&mut buffer);
        Self { kind, body: buffer.0 }
    }

    /// What follows netfilter's own header.
    pub(super) fn attributes(&self) -> &[u8] {
        self.body.get(4..).unwrap_or_default()
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}

/// The values of all attributes, up to the first that is not whole.
pub(super) fn values(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let whole = NlasIterator::new(attributes).map_while(Result::ok);
    whole.map(|attribute| (attribute.kind(), &attribute.into_inner()[4..attribute.length().into()]))
}

/// The value of the first attribute of this type.
pub(super) fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    values(attributes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Text up to its closing zero.
pub(super) fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.split(|b| *b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkBuffer;

    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut buffer = Buffer::default();
        buffer.message(7, 1, 9, |b| {
            b.put(&[0; 4]);
            b.attr_str(1, "abc");
            b.nest(2, |b| b.attr_be32(3, 5));
        });
        buffer.message(8, 1, 10, |_| {});
        let first = NetlinkBuffer::new_checked(buffer.bytes()).unwrap();
        assert_eq!((first.message_type(), first.sequence_number()), (7, 9));
        let attributes: Vec<_> = values(&first.payload()[4..]).collect();
        assert_eq!(attributes.len(), 2);
        assert_eq!((attributes[0].0, text(attributes[0].1)), (1, Some("abc")));
        assert_eq!((attributes[1].0, value(attributes[1].1, 3)), (2, Some(&[0, 0, 0, 5][..])));
        let second = NetlinkBuffer::new_checked(&buffer.bytes()[first.length() as usize..]).unwrap();
        assert_eq!((second.message_type(), second.payload().len()), (8, 0));
    }

    #[test]
    fn cut_attributes_are_not_read() {
        let mut buffer = Buffer::default();
        buffer.attr_str(1, "abcdef");
        for end in 0..11 {
            assert!(values(&buffer.bytes()[..end]).next().is_none());
        }
        assert_eq!(value(buffer.bytes(), 1), Some(&b"abcdef\0"[..]));
        assert!(values(&[200, 0, 1, 0, 1]).next().is_none());
    }
}
