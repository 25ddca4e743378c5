//! Changes as one netlink batch for nf_tables.
//!
//! The kernel's wire form: a begin message, one message per object, an end message; all or nothing. Rules are lists of
//! expressions over 32-bit registers: keys are loaded from `KEY` on, values from `VALUE` on. Anonymous sets (endpoint
//! lists) are made right before the rule that uses them and vanish with it.
//!
//! Invariant: every batch ends with a rule that carries the ruleset's fingerprint, so whoever reads it back knows what
//! the kernel holds.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::buffer::{Buffer, Message, text, value, values};
use super::diff::{Change, Elements};
use super::ruleset::{CLIENTS_MAX, Family, Hook, Part, Rule, Ruleset, Set, SetKind, Statement, Target, Value};

const SUBSYSTEM: u16 = 10 << 8;
const GETRULE: u16 = SUBSYSTEM | 7;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const DELCHAIN: u16 = SUBSYSTEM | 5;
const NEWRULE: u16 = SUBSYSTEM | 6;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const DELSET: u16 = SUBSYSTEM | 11;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;

const SET_ANONYMOUS: u32 = 1;
const SET_CONSTANT: u32 = 2;
const SET_MAP: u32 = 8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
const SET_CONCAT: u32 = 0x80;
/// Type and size of verdicts as values.
const VERDICTS: (u32, u32) = (0xffff_ff00, 16);

const REG_VERDICT: u32 = 0;
/// First register of keys (`NFT_REG32_00`).
const KEY: u32 = 8;
/// First register of values (`NFT_REG32_08`).
const VALUE: u32 = 16;

/// nft's number and the size of an `integer`.
const INTEGER: (u32, u32) = (4, 4);
/// The kernel puts a number in place of `%d`.
const ANONYMOUS: &str = "__map%d";

const VERDICT_DROP: i32 = 0;
const VERDICT_RETURN: i32 = -5;
const VERDICT_GOTO: i32 = -4;
const VERDICT_JUMP: i32 = -3;

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two connections at once never race for one port.
const RANDOM_FULLY: u32 = 16;

/// Attributes of one message hold less than 64 KiB, so elements go in portions.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// The chain whose only rule carries the fingerprint.
const FINGERPRINT_CHAIN: &str = "revision";

/// A number that tells rulesets apart; equal for equal rulesets of one build of the program.
pub(super) fn fingerprint(ruleset: &Ruleset) -> u64 {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    ruleset.hash(&mut hasher);
    hasher.finish()
}

/// A batch under construction.
pub(super) struct Batch {
    buffer: Buffer,
    sequence: u32,
    set_id: u32,
    table: String,
    family: Family,
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

fn fixed(b: &mut Buffer, family: u8, resource: u16) {
    b.put(&[family, 0]);
    b.put(&resource.to_be_bytes());
}

impl Batch {
    pub(super) fn new(table: &str) -> Self {
        let mut buffer = Buffer::default();
        buffer.message(BATCH_BEGIN, NLM_F_REQUEST, 1, |b| fixed(b, 0, SUBSYSTEM >> 8));
        Self { buffer, sequence: 1, set_id: 0, table: table.to_owned(), family: Family::Ip }
    }

    /// Closes the batch: bytes and the sequence number that is acknowledged.
    pub(super) fn finish(mut self, family: Family) -> (Buffer, u32) {
        // The table is there by now, so this changes nothing; it is here to be acknowledged last.
        self.family = family;
        self.object(NEWTABLE, NLM_F_CREATE | NLM_F_ACK, |b, table| b.attr_str(1, table));
        self.close()
    }

    /// Closes a batch that leaves no table.
    pub(super) fn finish_empty(mut self) -> (Buffer, u32) {
        self.object(NEWTABLE, NLM_F_CREATE, |b, table| b.attr_str(1, table));
        self.object(DELTABLE, NLM_F_ACK, |b, table| b.attr_str(1, table));
        self.close()
    }

    fn close(mut self) -> (Buffer, u32) {
        let last = self.sequence;
        self.buffer.message(BATCH_END, NLM_F_REQUEST, last + 1, |b| fixed(b, 0, SUBSYSTEM >> 8));
        (self.buffer, last)
    }

    /// Makes the table vanish whether it is there or not.
    pub(super) fn clear_table(&mut self, family: Family) {
        self.push(family, &Change::AddTable);
        self.push(family, &Change::DeleteTable);
    }

    /// Writes the fingerprint; `fresh` if the table was made in this batch.
    pub(super) fn write_fingerprint(&mut self, family: Family, fingerprint: u64, fresh: bool) {
        if fresh {
            self.push(family, &Change::AddChain(FINGERPRINT_CHAIN.into(), None));
        } else {
            self.push(family, &Change::Flush(FINGERPRINT_CHAIN.into()));
        }
        let text = format!("{fingerprint:016x}");
        self.object(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |b, table| {
            b.attr_str(1, table);
            b.attr_str(2, FINGERPRINT_CHAIN);
            b.nest(4, |b| verdict(b, VERDICT_RETURN, None));
            b.attr(7, &comment(&text));
        });
    }

    fn object(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Buffer, &str)) {
        self.sequence += 1;
        let (family, table) = (family_number(self.family), self.table.as_str());
        self.buffer.message(kind, flags | NLM_F_REQUEST, self.sequence, |b| {
            fixed(b, family, 0);
            body(b, table);
        });
    }

    /// Appends one change.
    pub(super) fn push(&mut self, family: Family, change: &Change) {
        self.family = family;
        match change {
            Change::AddTable => self.object(NEWTABLE, NLM_F_CREATE, |b, table| b.attr_str(1, table)),
            Change::DeleteTable => self.object(DELTABLE, 0, |b, table| b.attr_str(1, table)),
            Change::AddSet(name, set) => self.add_set(name, set),
            Change::DeleteSet(name) => self.named(DELSET, name, 2),
            Change::AddElements(name, set, elements) => self.elements(NEWSETELEM, NLM_F_CREATE, name, set, elements),
            Change::DeleteElements(name, set, elements) => self.elements(DELSETELEM, 0, name, set, elements),
            Change::AddChain(name, hook) => self.add_chain(name, *hook),
            Change::DeleteChain(name) => self.named(DELCHAIN, name, 3),
            Change::Flush(name) => self.named(DELRULE, name, 2),
            Change::AddRule(chain, rule) => self.add_rule(chain, rule),
        }
    }

    fn named(&mut self, kind: u16, name: &str, attribute: u16) {
        self.object(kind, 0, |b, table| {
            b.attr_str(1, table);
            b.attr_str(attribute, name);
        });
    }

    fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        self.object(NEWCHAIN, NLM_F_CREATE, |b, table| {
            b.attr_str(1, table);
            b.attr_str(3, name);
            if let Some(hook) = hook {
                let (kind, number, priority) = hook.parts();
                b.nest(4, |b| {
                    b.attr_be32(1, number);
                    b.attr(2, &priority.to_be_bytes());
                });
                b.attr_be32(5, 1); // policy accept
                b.attr_str(7, kind);
            }
        });
    }

    fn add_set(&mut self, name: &str, set: &Set) {
        let (family, id) = (self.family, self.next_set_id());
        let concat = if set.key.len() > 1 { SET_CONCAT } else { 0 };
        let (flags, value) = match &set.kind {
            SetKind::Set => (0, None),
            SetKind::Verdicts => (SET_MAP, Some(VERDICTS)),
            SetKind::Clients(_) => (SET_TIMEOUT | SET_EVAL, None),
        };
        self.object(NEWSET, NLM_F_CREATE, |b, table| {
            b.attr_str(1, table);
            b.attr_str(2, name);
            b.attr_be32(3, flags | concat);
            b.attr_be32(4, type_of(&set.key, family));
            b.attr_be32(5, size_of(&set.key, family));
            if let Some((kind, size)) = value {
                b.attr_be32(6, kind);
                b.attr_be32(7, size);
            }
            if let SetKind::Clients(timeout) = set.kind {
                b.nest(9, |b| b.attr_be32(1, CLIENTS_MAX));
                b.attr_be64(11, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
            } else {
                describe_concat(b, &set.key, family);
            }
            b.attr_be32(10, id);
        });
    }

    fn elements(&mut self, kind: u16, flags: u16, name: &str, set: &Set, elements: &Elements) {
        let list: Vec<_> = elements.iter().collect();
        for portion in list.chunks(ELEMENTS_PER_MESSAGE) {
            self.object(kind, flags, |b, table| {
                b.attr_str(1, table);
                b.attr_str(2, name);
                b.nest(3, |b| {
                    for (key, target) in portion {
                        b.nest(1, |b| {
                            b.nest(1, |b| b.attr(1, &key_bytes(key)));
                            if matches!(set.kind, SetKind::Verdicts) {
                                b.nest(2, |b| verdict_data(b, VERDICT_GOTO, Some(target)));
                            }
                        });
                    }
                });
            });
        }
    }

    fn next_set_id(&mut self) -> u32 {
        self.set_id += 1;
        self.set_id
    }

    /// An anonymous map from numbers in the machine's byte order; answers its id in this batch.
    fn anonymous_map<T: Copy>(
        &mut self,
        value: (u32, u32),
        elements: &[(u32, T)],
        write: impl Fn(&mut Buffer, T),
    ) -> u32 {
        let id = self.next_set_id();
        let count = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        self.object(NEWSET, NLM_F_CREATE, |b, table| {
            b.attr_str(1, table);
            b.attr_str(2, ANONYMOUS);
            b.attr_be32(3, SET_ANONYMOUS | SET_CONSTANT | SET_MAP);
            b.attr_be32(4, INTEGER.0);
            b.attr_be32(5, INTEGER.1);
            b.attr_be32(6, value.0);
            b.attr_be32(7, value.1);
            b.nest(9, |b| b.attr_be32(1, count));
            b.attr_be32(10, id);
            // The byte order, for `nft list` only.
            b.attr(13, &[0, 4, 1, 0, 0, 0]);
        });
        for portion in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self.object(NEWSETELEM, NLM_F_CREATE, |b, table| {
                b.attr_str(1, table);
                b.attr_str(2, ANONYMOUS);
                b.attr_be32(4, id);
                b.nest(3, |b| {
                    for (key, value) in portion {
                        b.nest(1, |b| {
                            b.nest(1, |b| b.attr(1, &key.to_ne_bytes()));
                            b.nest(2, |b| write(b, *value));
                        });
                    }
                });
            });
        }
        id
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let mut expressions = Buffer::default();
        for statement in rule {
            self.statement(&mut expressions, statement);
        }
        self.object(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |b, table| {
            b.attr_str(1, table);
            b.attr_str(2, chain);
            b.nest(4, |b| b.put(expressions.bytes()));
        });
    }

    fn statement(&mut self, b: &mut Buffer, statement: &Statement) {
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
            Statement::SourceAmong { set, not } => {
                load_address(b, family, true, KEY);
                among(b, set, *not);
            }
            Statement::DestinationIn(set) => {
                load_address(b, family, false, KEY);
                lookup(b, Some(set), 0, KEY, None);
            }
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
            Statement::SourceIn(set) => {
                load_address(b, family, true, KEY);
                lookup(b, Some(set), 0, KEY, None);
            }
            Statement::UpdateSet(set) => {
                load_address(b, family, true, KEY);
                expression(b, "dynset", |b| {
                    b.attr_str(1, set);
                    b.attr_be32(3, 1); // update
                    b.attr_be32(4, KEY);
                });
            }
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
        let endpoint = [Part::Address, Part::Port];
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

fn words_of(family: Family) -> u32 {
    if family == Family::Ip { 1 } else { 4 }
}

/// A comment as libnftnl stores it in user data.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("comments are short");
    [&[0, length], text.as_bytes(), &[0]].concat()
}

fn part_code(part: Part, family: Family) -> (u32, u32) {
    match (part, family) {
        (Part::Address, Family::Ip) => (7, 4),
        (Part::Address, Family::Ip6) => (8, 16),
        (Part::Protocol, _) => (12, 1),
        (Part::Port, _) => (13, 2),
    }
}

/// nft's number for a (concatenated) type, only used by those who list the ruleset.
fn type_of(parts: &[Part], family: Family) -> u32 {
    parts.iter().fold(0, |all, part| all << 6 | part_code(*part, family).0)
}

fn size_of(parts: &[Part], family: Family) -> u32 {
    match parts {
        [one] => part_code(*one, family).1,
        many => many.iter().map(|part| part_code(*part, family).1.next_multiple_of(4)).sum(),
    }
}

fn describe_concat(b: &mut Buffer, key: &[Part], family: Family) {
    if key.len() > 1 {
        b.nest(9, |b| describe_parts(b, key, family));
    }
}

fn describe_parts(b: &mut Buffer, key: &[Part], family: Family) {
    b.nest(2, |b| {
        for part in key {
            b.nest(1, |b| b.attr_be32(1, part_code(*part, family).1));
        }
    });
}

fn pad(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn key_bytes(key: &[Value]) -> Vec<u8> {
    let part = |value: &Value| match value {
        Value::Address(address) => octets(*address),
        Value::Protocol(protocol) => vec![protocol.number()],
        Value::Port(port) => port.to_be_bytes().to_vec(),
    };
    match key {
        [one] => part(one),
        many => many.iter().flat_map(|value| pad(part(value))).collect(),
    }
}

fn target_bytes((address, port): Target) -> Vec<u8> {
    pad([octets(address), port.to_be_bytes().to_vec()].concat())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// An address in network byte order.
fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The question for the rule that carries the fingerprint.
pub(super) fn fingerprint_query(table: &str, family: Family) -> Message {
    Message::new(GETRULE, |b| {
        fixed(b, family_number(family), 0);
        b.attr_str(1, table);
        b.attr_str(2, FINGERPRINT_CHAIN);
    })
}

/// The fingerprint, if this is an answer to [`fingerprint_query`].
pub(super) fn read_fingerprint(rule: &Message, table: &str) -> Option<u64> {
    let attributes = rule.attributes();
    let named = |kind| value(attributes, kind).and_then(text);
    if named(1) != Some(table) || named(2) != Some(FINGERPRINT_CHAIN) {
        return None;
    }
    let comment = std::str::from_utf8(value(attributes, 7)?.get(2..)?.strip_suffix(&[0])?).ok()?;
    u64::from_str_radix(comment, 16).ok()
}

/// The question for the elements of a set.
pub(super) fn elements_query(table: &str, family: Family, set: &str) -> Message {
    Message::new(GETSETELEM, |b| {
        fixed(b, family_number(family), 0);
        b.attr_str(1, table);
        b.attr_str(2, set);
    })
}

/// The addresses in one answer to [`elements_query`].
pub(super) fn read_addresses(elements: &Message) -> Vec<IpAddr> {
    let list = value(elements.attributes(), 3).unwrap_or_default();
    let key = |element| value(value(element, 1)?, 1).and_then(address_of);
    values(list).filter_map(|(_, element)| key(element)).collect()
}

fn expression(b: &mut Buffer, name: &str, body: impl FnOnce(&mut Buffer)) {
    b.nest(1, |b| {
        b.attr_str(1, name);
        b.nest(2, body);
    });
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

fn compare(b: &mut Buffer, register: u32, not: bool, value: &[u8]) {
    expression(b, "cmp", |b| {
        b.attr_be32(1, register);
        b.attr_be32(2, u32::from(not));
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

fn verdict_data(b: &mut Buffer, code: i32, chain: Option<&str>) {
    b.nest(2, |b| {
        b.attr(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            b.attr_str(2, chain);
        }
    });
}

fn verdict(b: &mut Buffer, code: i32, chain: Option<&str>) {
    expression(b, "immediate", |b| {
        b.attr_be32(1, REG_VERDICT);
        b.nest(2, |b| verdict_data(b, code, chain));
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
