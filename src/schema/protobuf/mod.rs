//! Kubernetes' protobuf bodies, as typed Go clients send them: into the same dynamic objects that JSON becomes.
//!
//! The types are the bundle's; `numbers.txt` adds the field numbers, which are facts of the published `.proto` files: a line
//! a message, `field=number`, and `+number:Message` for a message whose fields stand directly in the JSON object.
//! Only decoding is needed: every client that sends protobuf also accepts JSON.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine;
use jiff::Timestamp;
use serde_json::{Map, Value};
use thiserror::Error;

use super::{Node, ParseError, Scalar, TypeRef, parse_json, type_of};
use crate::base::budget::{Budget, Exceeded, check_depth, size_of};
use crate::base::clock::{micro_text, seconds_text};

/// How every body begins.
const MAGIC: &[u8] = b"k8s\0";
/// Messages may be nested this deep.
const DEPTH: u32 = 64;

/// A body that cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ProtobufError {
    #[error("the body does not begin with the Kubernetes protobuf prefix")]
    Prefix,
    #[error("the body ends inside a field")]
    Truncated,
    #[error("field {number} of {message} is not of the expected wire type")]
    WireType { message: String, number: u64 },
    #[error("{0} has no protobuf form here")]
    NoType(String),
    #[error("messages are nested too deep")]
    Depth,
    #[error("invalid text or JSON inside the body: {0}")]
    Content(String),
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// What a body holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub api_version: String,
    pub kind: String,
    pub value: Value,
}

#[derive(Debug)]
enum Slot {
    Field(&'static str),
    Inline(&'static str),
}

type Numbers = HashMap<u64, Slot>;

/// A field on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

// === impl Wire ===

impl Wire<'_> {
    /// Whether it is what an absent field is.
    fn is_empty(&self) -> bool {
        match self {
            Self::Varint(number) | Self::Fixed(number) => *number == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

/// The definition that `api_version` and `kind` in the body stand for comes from `definition`, given both.
pub fn decode(
    body: &[u8],
    definition: impl Fn(&str, &str) -> Option<String>,
    budget: &mut Budget,
) -> Result<Decoded, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::Prefix)?;
    let (mut meta, mut raw): (&[u8], &[u8]) = (&[], &[]);
    each(envelope, |number, wire| {
        match (number, wire) {
            (1, Wire::Bytes(b)) => meta = b,
            (2, Wire::Bytes(b)) => raw = b,
            _ => {}
        }
        Ok(())
    })?;
    let (mut api_version, mut kind) = (String::new(), String::new());
    each(meta, |number, wire| {
        match (number, wire) {
            (1, Wire::Bytes(b)) => api_version = text(b)?,
            (2, Wire::Bytes(b)) => kind = text(b)?,
            _ => {}
        }
        Ok(())
    })?;
    let name =
        definition(&api_version, &kind).ok_or_else(|| ProtobufError::NoType(format!("{kind} in {api_version}")))?;
    let shape = type_of(&name).ok_or_else(|| ProtobufError::NoType(name.clone()))?;
    let mut out = Map::new();
    message(raw, &name, &shape, &mut out, 0, budget)?;
    let value = Value::Object(out);
    check_depth(0, size_of(&value).depth)?;
    Ok(Decoded { api_version, kind, value })
}

fn numbers(name: &str) -> Option<&'static Numbers> {
    static TABLE: OnceLock<HashMap<String, Numbers>> = OnceLock::new();
    TABLE.get_or_init(|| include_str!("numbers.txt").lines().map(line).collect()).get(name)
}

fn line(line: &'static str) -> (String, Numbers) {
    let mut words = line.split(' ');
    let name = long(words.next().unwrap_or(""));
    let slots = words.filter_map(|w| match w.strip_prefix('+') {
        Some(inline) => inline.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, Slot::Inline(m)))),
        None => w.split_once('=').and_then(|(f, n)| Some((n.parse().ok()?, Slot::Field(f)))),
    });
    (name, slots.collect())
}

fn long(name: &str) -> String {
    if name.starts_with('.') { format!("io.k8s.api{name}") } else { name.to_owned() }
}

fn message(
    bytes: &[u8],
    name: &str,
    shape: &TypeRef<'_>,
    out: &mut Map<String, Value>,
    depth: u32,
    budget: &mut Budget,
) -> Result<(), ProtobufError> {
    if depth > DEPTH {
        return Err(ProtobufError::Depth);
    }
    let numbers = numbers(name).ok_or_else(|| ProtobufError::NoType(name.to_owned()))?;
    each(bytes, |number, wire| {
        match numbers.get(&number) {
            // Older clients write empty fields that are gone since, and mean nothing by it.
            None if wire.is_empty() => {}
            // A field of a newer version: kept under a name that decoding reports as unknown.
            None => {
                budget.member(out.len(), 32)?;
                out.insert(format!("protobuf field {number}"), Value::Null);
            }
            Some(Slot::Inline(inner)) => match wire {
                Wire::Bytes(b) => message(b, &long(inner), shape, out, depth + 1, budget)?,
                _ => return Err(ProtobufError::WireType { message: name.to_owned(), number }),
            },
            Some(Slot::Field(field)) => {
                let Some(of) = shape.child(field) else { return Ok(()) };
                place(field, &of, wire, out, depth, budget).map_err(|e| match e {
                    ProtobufError::WireType { .. } => ProtobufError::WireType { message: name.to_owned(), number },
                    other => other,
                })?;
            }
        }
        Ok(())
    })
}

/// Puts one occurrence of a field where it belongs: repeated fields come one by one.
fn place(
    field: &str,
    of: &TypeRef<'_>,
    wire: Wire<'_>,
    out: &mut Map<String, Value>,
    depth: u32,
    budget: &mut Budget,
) -> Result<(), ProtobufError> {
    match of.node() {
        Node::List { .. } => {
            let item = of.item().expect("a list has items");
            let list = out.entry(field).or_insert_with(|| Value::Array(Vec::new()));
            let Some(list) = list.as_array_mut() else { return Ok(()) };
            let packed = matches!(item.node(), Node::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Bool));
            match wire {
                Wire::Bytes(b) if packed => {
                    let mut rest = b;
                    while !rest.is_empty() {
                        let (n, after) = varint(rest)?;
                        budget.item()?;
                        list.push(value(&item, Wire::Varint(n), depth, budget)?);
                        rest = after;
                    }
                }
                wire => {
                    budget.item()?;
                    list.push(value(&item, wire, depth, budget)?);
                }
            }
        }
        Node::Map { .. } => {
            let Wire::Bytes(entry) = wire else { return Err(wrong()) };
            let child = of.child("").expect("a map has values");
            let (mut key, mut found) = (String::new(), None);
            each(entry, |number, wire| {
                match (number, wire) {
                    (1, Wire::Bytes(b)) => key = text(b)?,
                    (2, Wire::Bytes(b)) if matches!(child.node(), Node::List { .. }) => {
                        // A list as a map's value is a message whose field 1 repeats.
                        let mut holder = Map::new();
                        each(b, |n, w| {
                            if n == 1 { place("items", &child, w, &mut holder, depth + 1, budget) } else { Ok(()) }
                        })?;
                        found = holder.remove("items");
                    }
                    (2, wire) => found = Some(value(&child, wire, depth, budget)?),
                    _ => {}
                }
                Ok(())
            })?;
            let map = out.entry(field).or_insert_with(|| Value::Object(Map::new()));
            if let Some(map) = map.as_object_mut() {
                budget.member(map.len(), key.len())?;
                map.insert(key, found.unwrap_or_else(|| empty(&child)));
            }
        }
        _ => {
            budget.member(out.len(), field.len())?;
            out.insert(field.to_owned(), value(of, wire, depth, budget)?);
        }
    }
    Ok(())
}

/// What a map's value is when nothing is on the wire.
fn empty(of: &TypeRef<'_>) -> Value {
    match of.node() {
        Node::Scalar(Scalar::Int32 | Scalar::Int64) => 0.into(),
        Node::Scalar(Scalar::Bool) => false.into(),
        Node::Scalar(_) => "".into(),
        _ => Value::Object(Map::new()),
    }
}

fn value(of: &TypeRef<'_>, wire: Wire<'_>, depth: u32, budget: &mut Budget) -> Result<Value, ProtobufError> {
    match (of.node(), wire) {
        (Node::Scalar(scalar), wire) => {
            if let Wire::Bytes(b) = &wire {
                // Bytes become base64.
                budget.text(b.len() + b.len() / 2)?;
            }
            self::scalar(*scalar, wire)
        }
        (Node::Struct { .. }, Wire::Bytes(b)) => {
            let name = of.as_struct().map(|s| s.name.to_string()).unwrap_or_default();
            let mut out = Map::new();
            message(b, &name, of, &mut out, depth + 1, budget)?;
            Ok(Value::Object(out))
        }
        // Embedded JSON: RawExtension, FieldsV1 and JSON are a message whose field 1 holds it.
        (Node::Any | Node::Raw | Node::SchemaOr(_), Wire::Bytes(b)) => {
            let mut json = Value::Null;
            each(b, |number, wire| {
                if let (1, Wire::Bytes(raw)) = (number, wire) {
                    json = parse_json(raw, budget).map(|(json, _)| json).map_err(|e| match e {
                        ParseError::Limit(limit) => ProtobufError::Limit(limit),
                        ParseError::Syntax(why) => ProtobufError::Content(why),
                    })?;
                }
                Ok(())
            })?;
            Ok(json)
        }
        _ => Err(wrong()),
    }
}

fn wrong() -> ProtobufError {
    ProtobufError::WireType { message: String::new(), number: 0 }
}

fn scalar(scalar: Scalar, wire: Wire<'_>) -> Result<Value, ProtobufError> {
    Ok(match (scalar, wire) {
        (Scalar::String, Wire::Bytes(b)) => text(b)?.into(),
        (Scalar::Bytes, Wire::Bytes(b)) => base64::engine::general_purpose::STANDARD.encode(b).into(),
        (Scalar::Bool, Wire::Varint(n)) => (n != 0).into(),
        (Scalar::Int32, Wire::Varint(n)) => (n as i32).into(),
        (Scalar::Int64, Wire::Varint(n)) => (n as i64).into(),
        (Scalar::Double, Wire::Fixed(n)) => f64::from_bits(n).into(),
        (Scalar::Quantity, Wire::Bytes(b)) => {
            let mut out = "0".to_owned();
            each(b, |number, wire| {
                if let (1, Wire::Bytes(t)) = (number, wire) {
                    out = text(t)?;
                }
                Ok(())
            })?;
            out.into()
        }
        (Scalar::Time | Scalar::MicroTime, Wire::Bytes(b)) => time(b, scalar == Scalar::MicroTime)?,
        (Scalar::Duration, Wire::Bytes(b)) => {
            let ns = ints(b)?.0;
            format!("{}ns", ns).into()
        }
        (Scalar::IntOrString, Wire::Bytes(b)) => int_or_string(b)?,
        _ => return Err(wrong()),
    })
}

/// The varints of fields 1 and 2.
fn ints(bytes: &[u8]) -> Result<(i64, i64), ProtobufError> {
    let mut out = (0, 0);
    each(bytes, |number, wire| {
        match (number, wire) {
            (1, Wire::Varint(n)) => out.0 = n as i64,
            (2, Wire::Varint(n)) => out.1 = n as i64,
            _ => {}
        }
        Ok(())
    })?;
    Ok(out)
}

fn time(bytes: &[u8], micro: bool) -> Result<Value, ProtobufError> {
    let (seconds, nanos) = ints(bytes)?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|e| ProtobufError::Content(e.to_string()))?;
    let t = Timestamp::new(seconds, nanos).map_err(|e| ProtobufError::Content(e.to_string()))?;
    Ok(if micro { micro_text(t) } else { seconds_text(t) }.into())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut kind, mut number_value, mut string_value) = (0, 0, String::new());
    each(bytes, |number, wire| {
        match (number, wire) {
            (1, Wire::Varint(n)) => kind = n,
            (2, Wire::Varint(n)) => number_value = n as i32,
            (3, Wire::Bytes(b)) => string_value = text(b)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(if kind == 0 { number_value.into() } else { string_value.into() })
}

fn text(bytes: &[u8]) -> Result<String, ProtobufError> {
    String::from_utf8(bytes.to_vec()).map_err(|e| ProtobufError::Content(e.to_string()))
}

/// Calls `take` for each field of a message.
fn each<'a>(
    mut bytes: &'a [u8],
    mut take: impl FnMut(u64, Wire<'a>) -> Result<(), ProtobufError>,
) -> Result<(), ProtobufError> {
    while !bytes.is_empty() {
        let (tag, rest) = varint(bytes)?;
        let (wire, rest) = match tag & 7 {
            0 => {
                let (n, rest) = varint(rest)?;
                (Wire::Varint(n), rest)
            }
            1 => {
                let (n, rest) = rest.split_at_checked(8).ok_or(ProtobufError::Truncated)?;
                (Wire::Fixed(u64::from_le_bytes(n.try_into().expect("8 bytes"))), rest)
            }
            2 => {
                let (len, rest) = varint(rest)?;
                let len = usize::try_from(len).map_err(|_| ProtobufError::Truncated)?;
                let (b, rest) = rest.split_at_checked(len).ok_or(ProtobufError::Truncated)?;
                (Wire::Bytes(b), rest)
            }
            5 => {
                let (n, rest) = rest.split_at_checked(4).ok_or(ProtobufError::Truncated)?;
                (Wire::Fixed(u64::from(u32::from_le_bytes(n.try_into().expect("4 bytes")))), rest)
            }
            _ => return Err(ProtobufError::WireType { message: String::new(), number: tag >> 3 }),
        };
        take(tag >> 3, wire)?;
        bytes = rest;
    }
    Ok(())
}

fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), ProtobufError> {
    let mut out = 0u64;
    for (i, b) in bytes.iter().enumerate().take(10) {
        out |= u64::from(b & 0x7f).checked_shl(7 * i as u32).unwrap_or(0);
        if b & 0x80 == 0 {
            return Ok((out, &bytes[i + 1..]));
        }
    }
    Err(ProtobufError::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat()
    }

    fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn what_older_clients_leave_empty_is_no_unknown_field() {
        let named = |cluster: &[u8]| {
            let raw = field(1, &[field(1, b"n"), field(15, cluster)].concat());
            let of = |_: &str, _: &str| Some("io.k8s.api.core.v1.Namespace".into());
            decode(&body("v1", "Namespace", &raw), of, &mut Budget::new()).unwrap().value
        };
        assert_eq!(named(b""), json!({"metadata": {"name": "n"}}));
        assert_eq!(named(b"c"), json!({"metadata": {"name": "n", "protobuf field 15": null}}));
    }

    #[test]
    fn maps_quantities_ports_and_inlined_messages_become_json() {
        let labels = field(11, &[field(1, b"app"), field(2, b"x")].concat());
        let metadata = field(1, &[field(1, b"n"), labels].concat());
        let limit = field(1, &[field(1, b"cpu"), field(2, &field(1, b"1"))].concat());
        let probe = field(10, &[field(1, &field(3, &field(1, &[0x08, 0, 0x10, 80]))), vec![0x18, 3]].concat());
        let container = field(2, &[field(1, b"c"), field(8, &limit), probe].concat());
        let raw = [metadata, field(2, &container)].concat();
        let decoded =
            decode(&body("v1", "Pod", &raw), |_, _| Some("io.k8s.api.core.v1.Pod".into()), &mut Budget::new()).unwrap();
        assert_eq!(
            decoded.value,
            json!({"metadata": {"name": "n", "labels": {"app": "x"}}, "spec": {"containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"tcpSocket": {"port": 80}, "timeoutSeconds": 3}}
            ]}})
        );
    }

    #[test]
    fn broken_bodies_are_errors_and_never_panic() {
        let good = body("v1", "Pod", &field(1, &field(1, b"n")));
        for end in 0..good.len() {
            let _ = decode(&good[..end], |_, _| Some("io.k8s.api.core.v1.Pod".into()), &mut Budget::new());
        }
        let mut seed = 7u64;
        for _ in 0..2000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                let at = 4 + (seed >> 33) as usize % (bytes.len() - 4);
                bytes[at] = (seed >> 20) as u8;
            }
            let _ = decode(&bytes, |_, _| Some("io.k8s.api.core.v1.Pod".into()), &mut Budget::new());
        }
    }

    #[test]
    fn many_small_messages_are_refused_with_the_limit() {
        // 700,000 empty containers.
        let containers = [0x12u8, 0].repeat(700_000);
        let length = containers.len();
        let mut raw = vec![0x12];
        let mut rest = length;
        while rest >= 0x80 {
            raw.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        raw.push(rest as u8);
        raw.extend(containers);
        let meta = [field(1, b"v1"), field(2, b"Pod")].concat();
        let mut body = [MAGIC.to_vec(), field(1, &meta), vec![0x12]].concat();
        let mut rest = raw.len();
        while rest >= 0x80 {
            body.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        body.push(rest as u8);
        body.extend(raw);
        let decoded = decode(&body, |_, _| Some("io.k8s.api.core.v1.Pod".into()), &mut Budget::new());
        assert_eq!(decoded, Err(ProtobufError::Limit(Exceeded::Bytes)));
    }
}
