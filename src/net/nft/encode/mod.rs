//! Changes as one netlink batch for nf_tables.
//!
//! The kernel's wire form: a begin message, one message per object, an end message; all or nothing. Anonymous sets (endpoint
//! lists) are made right before the rule that uses them and vanish with it.
//!
//! Invariant: every batch ends with a rule that carries the ruleset's fingerprint, so whoever reads it back knows what
//! the kernel holds.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::buffer::Buffer;
use super::diff::{Change, Elements};
use super::ruleset::{CLIENTS_MAX, DataType, Family, Hook, Rule, Ruleset, Set, SetKind, Target, Value};

mod answers;
mod expressions;
mod verdict;

pub(super) use answers::{elements_query, fingerprint_query, read_addresses, read_fingerprint};

use crate::net::nft::encode::verdict::{VERDICT_GOTO, VERDICT_RETURN, verdict, verdict_data};

const SUBSYSTEM: u16 = 10 << 8;
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

/// nft's number and the size of an `integer`.
const INTEGER: (u32, u32) = (4, 4);
/// The kernel puts a number in place of `%d`.
const ANONYMOUS: &str = "__map%d";

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
}

/// A comment as libnftnl stores it in user data.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("comments are short");
    [&[0, length], text.as_bytes(), &[0]].concat()
}

fn part_code(part: DataType, family: Family) -> (u32, u32) {
    match (part, family) {
        (DataType::Address, Family::Ip) => (7, 4),
        (DataType::Address, Family::Ip6) => (8, 16),
        (DataType::Protocol, _) => (12, 1),
        (DataType::Port, _) => (13, 2),
    }
}

/// nft's number for a (concatenated) type, only used by those who list the ruleset.
fn type_of(parts: &[DataType], family: Family) -> u32 {
    parts.iter().fold(0, |all, part| all << 6 | part_code(*part, family).0)
}

fn size_of(parts: &[DataType], family: Family) -> u32 {
    match parts {
        [one] => part_code(*one, family).1,
        many => many.iter().map(|part| part_code(*part, family).1.next_multiple_of(4)).sum(),
    }
}

fn describe_concat(b: &mut Buffer, key: &[DataType], family: Family) {
    if key.len() > 1 {
        b.nest(9, |b| describe_parts(b, key, family));
    }
}

fn describe_parts(b: &mut Buffer, key: &[DataType], family: Family) {
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
