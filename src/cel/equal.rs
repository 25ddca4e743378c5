//! Equality and order of values. Numbers are compared by what they are, whatever their types.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::meter::{Failure, Meter};
use super::types::Order;
use super::value::{List, Map, Value};

/// Whether two values are equal.
pub(super) fn equal<'a>(a: &Value<'a>, b: &Value<'a>, meter: &mut Meter) -> Result<bool, Failure> {
    meter.work(1)?;
    Ok(match (a, b) {
        (Value::Null, Value::Null) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::String(a), Value::String(b)) => {
            meter.work(a.len().min(b.len()) / 64)?;
            **a == **b
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.work(a.len().min(b.len()) / 64)?;
            a == b
        }
        (Value::Duration(a), Value::Duration(b)) => a == b,
        (Value::Timestamp(a), Value::Timestamp(b)) => a == b,
        (Value::List(a), Value::List(b)) => lists(a, b, meter)?,
        (Value::Map(a), Value::Map(b)) => message_name(a) == message_name(b) && maps(a, b, meter)?,
        (Value::Type(a), Value::Type(b)) => a.name() == b.name(),
        (Value::Optional(a), Value::Optional(b)) => match (a, b) {
            (Some(a), Some(b)) => equal(a, b, meter)?,
            (a, b) => a.is_none() && b.is_none(),
        },
        (Value::Url(a), Value::Url(b)) => a == b,
        (Value::Quantity(a), Value::Quantity(b)) => a == b,
        (Value::Ip(a), Value::Ip(b)) => a == b,
        (Value::Cidr(a, x), Value::Cidr(b, y)) => a == b && x == y,
        (Value::Format(a), Value::Format(b)) => std::ptr::eq(*a, *b),
        (Value::Semver(a), Value::Semver(b)) => a.compare(b).is_eq(),
        (Value::Ip(_) | Value::Cidr(..), _) => return Err(Failure::no_overload()),
        (a, b) => numbers(a, b).is_some_and(Ordering::is_eq),
    })
}

fn message_name<'v>(map: &'v Map<'_>) -> Option<&'v str> {
    match map {
        Map::Message(message) => Some(&message.name),
        _ => None,
    }
}

/// The order of two numbers, if they are and have one. A whole number is as near to a double as it can be written as one.
fn numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(n) => Some(i128::from(*n)),
        Value::Uint(n) => Some(i128::from(*n)),
        _ => None,
    };
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), b) => a.partial_cmp(&(whole(b)? as f64)),
        (a, Value::Double(b)) => (whole(a)? as f64).partial_cmp(b),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

/// The order of two values that have one.
pub(super) fn compare(a: &Value<'_>, b: &Value<'_>, meter: &mut Meter) -> Result<Ordering, Failure> {
    meter.work(1)?;
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a.cmp(b)),
        (Value::String(a), Value::String(b)) => {
            meter.work(a.len().min(b.len()) / 64)?;
            Ok((**a).cmp(&**b))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.work(a.len().min(b.len()) / 64)?;
            Ok(a.cmp(b))
        }
        (Value::Duration(a), Value::Duration(b)) => Ok(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Ok(a.cmp(b)),
        (Value::Double(d), _) | (_, Value::Double(d)) if d.is_nan() => {
            Err(Failure::error("NaN values cannot be ordered"))
        }
        (a, b) => numbers(a, b).ok_or_else(Failure::no_overload),
    }
}

fn lists<'a>(a: &List<'a>, b: &List<'a>, meter: &mut Meter) -> Result<bool, Failure> {
    if a.len() != b.len() {
        return Ok(false);
    }
    match a {
        List::Data(_, _, Order::Set) => Ok(covers(a, b, meter)? && covers(b, a, meter)?),
        List::Data(_, _, Order::Map(keys)) => by_key(a, b, keys, meter),
        List::Made(_) | List::Data(_, _, Order::Atomic) => {
            for (x, y) in a.iter().zip(b.iter()) {
                if !equal(&x?, &y?, meter)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// Whether a list has every item of another one.
pub(super) fn covers<'a>(a: &List<'a>, b: &List<'a>, meter: &mut Meter) -> Result<bool, Failure> {
    for item in b.iter() {
        if !contains(a, &item?, meter)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a list has an item.
pub(super) fn contains<'a>(list: &List<'a>, wanted: &Value<'a>, meter: &mut Meter) -> Result<bool, Failure> {
    let mut failed = None;
    for item in list.iter() {
        match item.and_then(|item| equal(&item, wanted, meter)) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(Failure::Cancelled) => return Err(Failure::Cancelled),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(false), Err)
}

/// The values by which items of a list are told apart, as a text.
pub(super) fn key_of(item: &Value<'_>, keys: &[Box<str>], meter: &mut Meter) -> Result<String, Failure> {
    let Value::Map(map) = item else { return Err(Failure::no_overload()) };
    let mut out = String::new();
    for key in keys {
        let name = super::escape::escape(key);
        let found = map.field(name.as_deref().unwrap_or(key), meter).transpose()?;
        meter.work(1)?;
        match found {
            Some(Value::String(text)) => {
                meter.make(text.len())?;
                out.push_str(&format!("{:?},", &*text));
            }
            Some(Value::Int(n)) => out.push_str(&format!("{n},")),
            Some(Value::Bool(b)) => out.push_str(&format!("{b},")),
            Some(Value::Double(d)) => out.push_str(&format!("{d},")),
            _ => out.push_str("-,"),
        }
    }
    Ok(out)
}

fn by_key<'a>(a: &List<'a>, b: &List<'a>, keys: &[Box<str>], meter: &mut Meter) -> Result<bool, Failure> {
    let mut items = BTreeMap::new();
    for item in a.iter() {
        let item = item?;
        items.insert(key_of(&item, keys, meter)?, item);
    }
    let mut seen = std::collections::BTreeSet::new();
    for item in b.iter() {
        let item = item?;
        let key = key_of(&item, keys, meter)?;
        match items.get(&key) {
            Some(other) if equal(other, &item, meter)? => seen.insert(key),
            _ => return Ok(false),
        };
    }
    Ok(seen.len() == items.len())
}

fn maps<'a>(a: &Map<'a>, b: &Map<'a>, meter: &mut Meter) -> Result<bool, Failure> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for key in a.keys() {
        meter.work(1)?;
        match (a.get(&key, meter).transpose()?, b.get(&key, meter).transpose()?) {
            (Some(x), Some(y)) if equal(&x, &y, meter)? => {}
            (None, None) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
