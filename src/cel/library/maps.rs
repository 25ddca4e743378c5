//! Maps: made, extended, and taken apart.

use std::collections::BTreeMap;

use super::super::value::{Key, Map};
use super::convert::shown;
use super::{Failure, Meter, Outcome, Value};

type Entries<'a> = BTreeMap<Key<'a>, Value<'a>>;

/// The keys and values of a map.
pub(in super::super) fn entries<'a>(map: &Map<'a>, meter: &mut Meter) -> Result<Vec<(Value<'a>, Value<'a>)>, Failure> {
    meter.make_items(map.len().saturating_mul(2))?;
    let mut out = Vec::with_capacity(map.len());
    for key in map.keys() {
        if let Some(value) = map.get(&key, meter) {
            out.push((key, value?));
        }
    }
    Ok(out)
}

/// Adds to a map what it does not have.
pub(in super::super) fn insert<'a>(all: &mut Entries<'a>, key: &Value<'a>, value: Value<'a>) -> Result<(), Failure> {
    let Some(of) = Key::of(key).filter(|_| !matches!(key, Value::Double(_))) else {
        return Err(Failure::error(format!("unsupported key type: {}", key.type_of().name())));
    };
    match all.insert(of, value) {
        None => Ok(()),
        Some(_) => Err(Failure::error(format!("insert failed: key {} already exists", shown(key)))),
    }
}

/// A map of these.
pub(in super::super) fn map_of<'a>(pairs: impl Iterator<Item = (Value<'a>, Value<'a>)>) -> Outcome<'a> {
    let mut all = BTreeMap::new();
    for (key, value) in pairs {
        insert(&mut all, &key, value)?;
    }
    Ok(Value::Map(Map::Made(all.into())))
}

/// A value as a place in a list.
pub(in super::super) fn list_index(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        Value::Uint(n) => i64::try_from(*n).ok().or(Some(i64::MAX)),
        Value::Double(d) if d.fract() == 0.0 && d.abs() < 9e15 => Some(*d as i64),
        _ => None,
    }
}
