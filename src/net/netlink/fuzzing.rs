//! Answers of the kernel, as bytes, through every reader of this room.

use netlink_packet_core::NetlinkDeserializable;
use netlink_packet_core::{NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;

pub(crate) use super::socket::answers;
use super::{address, link, neighbour, route};

/// Messages of one type without a header that fits.
pub(crate) fn bare<M: NetlinkDeserializable>(data: &[u8], kind: u16) -> Option<M> {
    let mut header = NetlinkHeader::default();
    header.message_type = kind;
    M::deserialize(&header, data).ok()
}

/// Links, addresses, neighbours and routes; a route that was read is written so that it is read the same.
pub(crate) fn route_answer(data: &[u8]) {
    const NEW: [u16; 4] = [16, 20, 24, 28];
    let bare = NEW.iter().filter_map(|kind| bare(data, *kind));
    for answer in answers(data).into_iter().chain(bare) {
        match answer {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = link::decode(&message) {
                    assert!(link.name.len() <= data.len());
                }
            }
            RouteNetlinkMessage::NewAddress(message) => drop(address::decode(&message)),
            RouteNetlinkMessage::NewNeighbour(message) => {
                let index = message.header.ifindex;
                assert_eq!(neighbour::decode(&message, index.wrapping_add(1)), None, "it is on another link");
                let _ = neighbour::decode(&message, index);
            }
            RouteNetlinkMessage::NewRoute(message) => {
                let _ = [0, 1, 2].map(|index| route::is_direct(&message, index));
                let Some(found) = route::decode(&message) else { continue };
                let written = RouteNetlinkMessage::NewRoute(route::encode(&found));
                let mut bytes = vec![0; written.buffer_len()];
                written.serialize(&mut bytes);
                let Some(RouteNetlinkMessage::NewRoute(again)) = self::bare(&bytes, written.message_type()) else {
                    panic!("what was written is not read: {found:?}");
                };
                let again = route::decode(&again).expect("what was written is ours");
                assert_eq!(again.destination.trunc(), found.destination.trunc());
            }
            _ => {}
        }
    }
}
