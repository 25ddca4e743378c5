//! Generic netlink: kernel parts that are found by name.

use std::io;

use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};

use super::Socket;

impl Socket {
    /// The number of the messages of a kernel part.
    pub(crate) fn family(&mut self, name: &str) -> io::Result<u16> {
        let nlas = vec![GenlCtrlAttrs::FamilyName(name.to_owned())];
        let question = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas };
        let answer = self.get(GenlMessage::from_payload(question))?.ok_or(io::ErrorKind::NotFound)?;
        let id = answer.payload.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        id.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
