//! What is asked of the kernel, and what is read out of its answers.

use std::net::IpAddr;

use super::{FINGERPRINT_CHAIN, SUBSYSTEM, family_number, fixed};
use crate::net::nft::buffer::{Message, text, value, values};
use crate::net::nft::ruleset::Family;

const GETRULE: u16 = SUBSYSTEM | 7;
const GETSETELEM: u16 = SUBSYSTEM | 13;

/// An address in network byte order.
fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The question for the rule that carries the fingerprint.
pub(in crate::net::nft) fn fingerprint_query(table: &str, family: Family) -> Message {
    Message::new(GETRULE, |b| {
        fixed(b, family_number(family), 0);
        b.attr_str(1, table);
        b.attr_str(2, FINGERPRINT_CHAIN);
    })
}

/// The fingerprint, if this is an answer to [`fingerprint_query`].
pub(in crate::net::nft) fn read_fingerprint(rule: &Message, table: &str) -> Option<u64> {
    let attributes = rule.attributes();
    let named = |kind| value(attributes, kind).and_then(text);
    if named(1) != Some(table) || named(2) != Some(FINGERPRINT_CHAIN) {
        return None;
    }
    let comment = std::str::from_utf8(value(attributes, 7)?.get(2..)?.strip_suffix(&[0])?).ok()?;
    u64::from_str_radix(comment, 16).ok()
}

/// The question for the elements of a set.
pub(in crate::net::nft) fn elements_query(table: &str, family: Family, set: &str) -> Message {
    Message::new(GETSETELEM, |b| {
        fixed(b, family_number(family), 0);
        b.attr_str(1, table);
        b.attr_str(2, set);
    })
}

/// The addresses in one answer to [`elements_query`].
pub(in crate::net::nft) fn read_addresses(elements: &Message) -> Vec<IpAddr> {
    let list = value(elements.attributes(), 3).unwrap_or_default();
    let key = |element| value(value(element, 1)?, 1).and_then(address_of);
    values(list).filter_map(|(_, element)| key(element)).collect()
}
