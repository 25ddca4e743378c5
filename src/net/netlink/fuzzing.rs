//! Answers of the kernel, as bytes, through every reader of this room.

use super::message::Buffer;
use super::{Answer, link, read, route};

/// What the bodies of a received piece are, for the request 1.
pub(crate) fn answers(data: &[u8]) -> Vec<Answer> {
    let mut found = Vec::new();
    let _ = read(data, 1, &mut found);
    let bytes: usize = found.iter().map(|answer| answer.body.len()).sum();
    assert!(bytes <= data.len(), "{bytes} bytes out of {}", data.len());
    found
}

/// Links, addresses, neighbours and routes; a route that was read is written so that it is read the same.
pub(crate) fn route_answer(data: &[u8]) {
    // Also the body alone, without a header that fits.
    let bare = Answer { body: data.to_vec() };
    for answer in answers(data).iter().chain([&bare]) {
        if let Some(link) = link::decode(answer) {
            assert!(link.name.len() + link.kind.len() <= answer.body.len());
        }
        let _ = link::decode_vxlan_local(answer);
        let _ = route::decode_address(answer);
        for index in [0, 1, 2] {
            let _ = route::decode_neighbour(answer, index);
            let _ = route::leads_straight(answer, index);
        }
        let Some(found) = route::decode(answer) else { continue };
        let mut buffer = Buffer::default();
        route::write_route(&mut buffer, &found);
        let again = route::decode(&Answer { body: buffer.bytes().to_vec() }).expect("what was written is read");
        assert_eq!(again.destination.network(), found.destination.network());
        assert_eq!(again.destination.prefix_len(), found.destination.prefix_len());
    }
}
