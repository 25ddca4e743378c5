//! Statements of rules as expressions over 32-bit registers: keys are loaded from `KEY` on, values from `VALUE` on.

use std::net::IpAddr;

use ipnet::IpNet;

use super::verdict::{REG_VERDICT, VERDICT_GOTO, VERDICT_RETURN, expression, verdict, verdict_data};
use super::{ANONYMOUS, Batch, VERDICTS, family_number, octets, size_of, target_bytes, type_of};
use crate::net::nft::buffer::Buffer;
use crate::net::nft::ruleset::{DataType, Family, Statement, Target};

/// First register of keys (`NFT_REG32_00`).
const KEY: u32 = 8;
/// First register of values (`NFT_REG32_08`).
const VALUE: u32 = 16;

const VERDICT_DROP: i32 = 0;
const VERDICT_JUMP: i32 = -3;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two connections at once never race for one port.
const RANDOM_FULLY: u32 = 16;

impl Batch {
    pub(super) fn statement(&mut self, b: &mut Buffer, statement: &Statement) {
        let family = self.family;
        match statement {
            Statement::NotFromLoopback => meta_is_not(b, 4, 1),
            Statement::NotToLoopback => meta_is_not(b, 5, 1),
            Statement::FromLink(name) => from_link(b, name),
            Statement::FromGroup { group, not } => from_group(b, *group, *not),
            Statement::NoReverseRoute => no_reverse_route(b),
            Statement::Source { net, not } => in_net(b, *net, true, *not),
            Statement::Destination { net, not } => in_net(b, *net, false, *not),
            Statement::SourceIsLocal => fib_local(b, 1),
            Statement::DestinationIsLocal => fib_local(b, 2),
            Statement::CtNew => ct_bit(b, 0, 8),
            Statement::CtKnown => ct_bit(b, 0, 2 | 4),
            Statement::CtDnat => ct_bit(b, 2, 32),
            Statement::Protocol(protocol) => protocol_is(b, protocol.number()),
            Statement::Icmp => protocol_is(b, icmp(family)),
            Statement::IcmpType(kind) => {
                protocol_is(b, icmp(family));
                payload(b, 2, 0, 1, KEY);
                compare(b, KEY, false, &[*kind]);
            }
            Statement::DestinationPort(protocol, port) => {
                protocol_is(b, protocol.number());
                payload(b, 2, 2, 2, KEY);
                compare(b, KEY, false, &port.to_be_bytes());
            }
            Statement::DestinationPorts(protocol, first, last) => {
                protocol_is(b, protocol.number());
                payload(b, 2, 2, 2, KEY);
                compare_as(b, KEY, NOT_LESS, &first.to_be_bytes());
                compare_as(b, KEY, NOT_MORE, &last.to_be_bytes());
            }
            Statement::SourceVmap(map) => address_lookup(b, family, true, map, Some(REG_VERDICT)),
            Statement::DestinationVmap(map) => address_lookup(b, family, false, map, Some(REG_VERDICT)),
            Statement::SourceAmong { set, not } => {
                load_address(b, family, true, KEY);
                among(b, set, *not);
            }
            Statement::DestinationIn(set) => address_lookup(b, family, false, set, None),
            Statement::ServiceVmap(map) => {
                let port = load_address(b, family, false, KEY);
                meta(b, 16, port);
                payload(b, 2, 2, 2, port + 1);
                lookup(b, Some(map), 0, KEY, Some(REG_VERDICT));
            }
            Statement::PortIn(set) => port_lookup(b, set, None),
            Statement::PortVmap(map) => port_lookup(b, map, Some(REG_VERDICT)),
            Statement::PairIn(set) => {
                let next = load_address(b, family, true, KEY);
                load_address(b, family, false, next);
                lookup(b, Some(set), 0, KEY, None);
            }
            Statement::Goto(chain) => verdict(b, VERDICT_GOTO, Some(chain)),
            Statement::Jump(chain) => verdict(b, VERDICT_JUMP, Some(chain)),
            Statement::Drop => verdict(b, VERDICT_DROP, None),
            Statement::Return => verdict(b, VERDICT_RETURN, None),
            Statement::RejectReset => reject(b, 1, 0),
            Statement::RejectUnreachable => reject(b, 0, if family == Family::Ip { 3 } else { 4 }),
            Statement::Masquerade => expression(b, "masq", |b| b.attr_be32(1, RANDOM_FULLY)),
            Statement::Snat(address) => snat(b, family, *address),
            Statement::Dnat(among) => {
                self.choose(b, among);
                nat(b, family);
            }
            Statement::SourceIn(set) => address_lookup(b, family, true, set, None),
            Statement::UpdateSet(set) => update_source(b, family, set),
            Statement::RandomChain(chains) => {
                let list: Vec<_> = (0u32..).zip(chains.iter().map(String::as_str)).collect();
                let id = self.anonymous_map(VERDICTS, &list, |b, chain| {
                    verdict_data(b, VERDICT_GOTO, Some(chain));
                });
                random_below(b, chains.len(), KEY);
                lookup(b, None, id, KEY, Some(REG_VERDICT));
            }
        }
    }

    /// Loads one of the targets into the value registers.
    fn choose(&mut self, b: &mut Buffer, among: &[Target]) {
        if let [(address, port)] = among {
            let words = words_of(self.family);
            immediate(b, VALUE, &octets(*address));
            immediate(b, VALUE + words, &port.to_be_bytes());
            return;
        }
        let endpoint = [DataType::Address, DataType::Port];
        let value = (type_of(&endpoint, self.family), size_of(&endpoint, self.family));
        let list: Vec<_> = (0u32..).zip(among.iter().copied()).collect();
        let id = self.anonymous_map(value, &list, |b, target| b.attr(1, &target_bytes(target)));
        random_below(b, among.len(), KEY);
        lookup(b, None, id, KEY, Some(VALUE));
    }
}

fn random_below(b: &mut Buffer, count: usize, register: u32) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    expression(b, "numgen", |b| {
        b.attr_be32(1, register);
        b.attr_be32(2, count);
        b.attr_be32(3, 1); // random
        b.attr_be32(4, 0);
    });
}

fn icmp(family: Family) -> u8 {
    if family == Family::Ip { 1 } else { 58 }
}

pub(super) fn words_of(family: Family) -> u32 {
    if family == Family::Ip { 1 } else { 4 }
}

fn payload(b: &mut Buffer, base: u32, offset: u32, length: u32, register: u32) {
    expression(b, "payload", |b| {
        b.attr_be32(1, register);
        b.attr_be32(2, base);
        b.attr_be32(3, offset);
        b.attr_be32(4, length);
    });
}

/// Loads an address of the packet; answers the next free register.
fn load_address(b: &mut Buffer, family: Family, source: bool, register: u32) -> u32 {
    let (offset, length) = match (family, source) {
        (Family::Ip, true) => (12, 4),
        (Family::Ip, false) => (16, 4),
        (Family::Ip6, true) => (8, 16),
        (Family::Ip6, false) => (24, 16),
    };
    payload(b, 1, offset, length, register);
    register + words_of(family)
}

fn meta(b: &mut Buffer, key: u32, register: u32) {
    expression(b, "meta", |b| {
        b.attr_be32(1, register);
        b.attr_be32(2, key);
    });
}

/// `NFT_CMP_LTE` and `NFT_CMP_GTE`.
const NOT_MORE: u32 = 3;
const NOT_LESS: u32 = 5;

fn compare(b: &mut Buffer, register: u32, not: bool, value: &[u8]) {
    compare_as(b, register, u32::from(not), value);
}

fn compare_as(b: &mut Buffer, register: u32, operator: u32, value: &[u8]) {
    expression(b, "cmp", |b| {
        b.attr_be32(1, register);
        b.attr_be32(2, operator);
        b.nest(3, |b| b.attr(1, value));
    });
}

fn meta_is_not(b: &mut Buffer, key: u32, value: u32) {
    meta(b, key, KEY);
    compare(b, KEY, true, &value.to_ne_bytes());
}

fn from_link(b: &mut Buffer, name: &str) {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    meta(b, 6, KEY);
    compare(b, KEY, false, &padded);
}

/// Adds the source to a set, or renews its time there.
fn update_source(b: &mut Buffer, family: Family, set: &str) {
    load_address(b, family, true, KEY);
    expression(b, "dynset", |b| {
        b.attr_str(1, set);
        b.attr_be32(3, 1); // update
        b.attr_be32(4, KEY);
    });
}

fn from_group(b: &mut Buffer, group: u32, not: bool) {
    meta(b, 21, KEY);
    compare(b, KEY, not, &group.to_ne_bytes());
}

fn no_reverse_route(b: &mut Buffer) {
    expression(b, "fib", |b| {
        b.attr_be32(1, KEY);
        b.attr_be32(2, 1); // the link of the route
        b.attr_be32(3, 1 | 8 | 32); // by source and incoming link: is there one?
    });
    compare(b, KEY, false, &[0]);
}

fn protocol_is(b: &mut Buffer, number: u8) {
    meta(b, 16, KEY);
    compare(b, KEY, false, &[number]);
}

/// Looks an address of the packet up.
fn address_lookup(b: &mut Buffer, family: Family, source: bool, set: &String, to: Option<u32>) {
    load_address(b, family, source, KEY);
    lookup(b, Some(set), 0, KEY, to);
}

/// Looks protocol and destination port up.
fn port_lookup(b: &mut Buffer, set: &String, to: Option<u32>) {
    meta(b, 16, KEY);
    payload(b, 2, 2, 2, KEY + 1);
    lookup(b, Some(set), 0, KEY, to);
}

fn mask(b: &mut Buffer, bits: &[u8]) {
    let length = u32::try_from(bits.len()).expect("at most 16");
    expression(b, "bitwise", |b| {
        b.attr_be32(1, KEY);
        b.attr_be32(2, KEY);
        b.attr_be32(3, length);
        b.nest(4, |b| b.attr(1, bits));
        b.nest(5, |b| b.attr(1, &vec![0; bits.len()]));
    });
}

fn in_net(b: &mut Buffer, net: IpNet, source: bool, not: bool) {
    load_address(b, Family::of(&net.addr()), source, KEY);
    mask(b, &octets(net.netmask()));
    compare(b, KEY, not, &octets(net.network()));
}

fn fib_local(b: &mut Buffer, flags: u32) {
    expression(b, "fib", |b| {
        b.attr_be32(1, KEY);
        b.attr_be32(2, 3); // address type
        b.attr_be32(3, flags);
    });
    compare(b, KEY, false, &2u32.to_ne_bytes()); // RTN_LOCAL
}

fn ct_bit(b: &mut Buffer, key: u32, bit: u32) {
    expression(b, "ct", |b| {
        b.attr_be32(1, KEY);
        b.attr_be32(2, key);
    });
    mask(b, &bit.to_ne_bytes());
    compare(b, KEY, true, &[0; 4]);
}

fn lookup(b: &mut Buffer, name: Option<&String>, id: u32, from: u32, to: Option<u32>) {
    expression(b, "lookup", |b| {
        match name {
            Some(name) => b.attr_str(1, name),
            None => {
                b.attr_str(1, ANONYMOUS);
                b.attr_be32(4, id);
            }
        }
        b.attr_be32(2, from);
        if let Some(to) = to {
            b.attr_be32(3, to);
        }
    });
}

/// Whether the key is in the set, or is not.
fn among(b: &mut Buffer, set: &str, not: bool) {
    expression(b, "lookup", |b| {
        b.attr_str(1, set);
        b.attr_be32(2, KEY);
        b.attr_be32(5, u32::from(not));
    });
}

fn immediate(b: &mut Buffer, register: u32, value: &[u8]) {
    expression(b, "immediate", |b| {
        b.attr_be32(1, register);
        b.nest(2, |b| b.attr(1, value));
    });
}

fn reject(b: &mut Buffer, kind: u32, code: u8) {
    expression(b, "reject", |b| {
        b.attr_be32(1, kind);
        b.attr(2, &[code]);
    });
}

fn snat(b: &mut Buffer, family: Family, address: IpAddr) {
    immediate(b, VALUE, &octets(address));
    expression(b, "nat", |b| {
        b.attr_be32(1, 0); // source
        b.attr_be32(2, u32::from(family_number(family)));
        b.attr_be32(3, VALUE);
        b.attr_be32(7, RANDOM_FULLY);
    });
}

fn nat(b: &mut Buffer, family: Family) {
    expression(b, "nat", |b| {
        b.attr_be32(1, 1); // destination
        b.attr_be32(2, u32::from(family_number(family)));
        b.attr_be32(3, VALUE);
        b.attr_be32(5, VALUE + words_of(family));
    });
}
