//! Generic netlink: kernel parts that are found by name.

use std::io;

use super::message::Attributes;
use super::{Answer, Buffer, Socket};

const CONTROL: u16 = 16;
const GETFAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// The header of a command, which attributes follow.
pub(crate) fn command(b: &mut Buffer, command: u8, version: u8) {
    b.put(&[command, version, 0, 0]);
}

/// The attributes of an answer.
pub(crate) fn attributes(answer: &Answer) -> Attributes<'_> {
    Attributes(answer.body.get(4..).unwrap_or_default())
}

impl Socket {
    /// For kernel parts that have no protocol of their own.
    pub(crate) fn generic() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_GENERIC)
    }

    /// The number of the messages of a kernel part.
    pub(crate) fn family(&mut self, name: &str) -> io::Result<u16> {
        let answer = self.get(CONTROL, |b| {
            command(b, GETFAMILY, 1);
            b.attr_str(FAMILY_NAME, name);
        })?;
        let id = answer.as_ref().and_then(|a| attributes(a).find(FAMILY_ID)?.try_into().ok());
        id.map(u16::from_ne_bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
