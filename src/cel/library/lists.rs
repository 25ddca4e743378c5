//! Lists, maps and sets.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::super::equal::{compare, contains, covers, equal, key_of};
use super::super::types::Order;
use super::super::value::{List, Map};
use super::maps::{entries, insert};
use super::{Failure, Meter, Outcome, Run, Value, texts};

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "size" => size,
        "@in" => is_in,
        "isSorted" => is_sorted,
        "max" => |meter, args| extreme(meter, args, "max", Ordering::Less),
        "min" => |meter, args| extreme(meter, args, "min", Ordering::Greater),
        "indexOf" => |meter, args| position(meter, args, false),
        "lastIndexOf" => |meter, args| position(meter, args, true),
        "slice" => slice,
        "flatten" => flatten,
        "lists.range" => range,
        "reverse" => reverse,
        "distinct" => distinct,
        "sort" => |meter, args| sorted(meter, args, 0),
        "@sortByAssociatedKeys" => |meter, args| sorted(meter, args, 1),
        "cel.@mapInsert" => map_insert,
        "sets.contains" => |meter, args| covers(list(&args[0])?, list(&args[1])?, meter).map(Value::Bool),
        "sets.intersects" => intersects,
        "sets.equivalent" => |meter, args| {
            let (a, b) = (list(&args[0])?, list(&args[1])?);
            Ok(Value::Bool(covers(a, b, meter)? && covers(b, a, meter)?))
        },
        _ => return None,
    })
}

pub(super) fn list<'v, 'a>(value: &'v Value<'a>) -> Result<&'v List<'a>, Failure> {
    match value {
        Value::List(list) => Ok(list),
        _ => Err(Failure::no_overload()),
    }
}

/// The items of a list, in a list of their own.
fn items<'a>(value: &Value<'a>, meter: &mut Meter) -> Result<Vec<Value<'a>>, Failure> {
    let list = list(value)?;
    meter.make_items(list.len())?;
    list.iter().collect()
}

fn size<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::String(text) => meter.work(text.len() / 64)?,
        Value::Bytes(_) | Value::List(_) | Value::Map(_) => {}
        _ => return Err(Failure::no_overload()),
    }
    Ok(Value::Int(i64::try_from(args[0].size()).unwrap_or(i64::MAX)))
}

fn is_in<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[1] {
        Value::List(list) => contains(list, &args[0], meter).map(Value::Bool),
        Value::Map(map) => match map.get(&args[0], meter) {
            Some(Err(error)) => Err(error),
            found => Ok(Value::Bool(found.is_some())),
        },
        _ => Err(Failure::no_overload()),
    }
}

fn is_sorted<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let mut before: Option<Value<'a>> = None;
    for item in list(&args[0])?.iter() {
        let item = item?;
        if let Some(before) = &before
            && compare(before, &item, meter)?.is_gt()
        {
            return Ok(Value::Bool(false));
        }
        before = Some(item);
    }
    Ok(Value::Bool(true))
}

fn extreme<'a>(meter: &mut Meter, args: &[Value<'a>], name: &str, less: Ordering) -> Outcome<'a> {
    let mut best: Option<Value<'a>> = None;
    for item in list(&args[0])?.iter() {
        let item = item?;
        let replaces = match &best {
            Some(best) => compare(best, &item, meter)? == less,
            None => true,
        };
        if replaces {
            best = Some(item);
        }
    }
    best.ok_or_else(|| Failure::error(format!("{name} called on empty list")))
}

/// Where something is in a list, or a text in a text.
fn position<'a>(meter: &mut Meter, args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let Value::List(list) = &args[0] else { return texts::position(meter, args, last) };
    let wanted = &args[1];
    for step in 0..list.len() {
        let at = if last { list.len() - 1 - step } else { step };
        if let Some(item) = list.get(at)
            && equal(&item?, wanted, meter)?
        {
            return Ok(Value::Int(i64::try_from(at).unwrap_or(i64::MAX)));
        }
    }
    Ok(Value::Int(-1))
}

fn slice<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (Value::List(list), Value::Int(start), Value::Int(end)) = (&args[0], &args[1], &args[2]) else {
        return Err(Failure::no_overload());
    };
    let wrong = |why: String| Err(Failure::error(format!("cannot slice({start}, {end}), {why}")));
    let (Ok(from), Ok(to)) = (usize::try_from(*start), usize::try_from(*end)) else {
        return wrong("negative indexes not supported".into());
    };
    if from > to {
        return wrong("start index must be less than or equal to end index".into());
    }
    if list.len() < to {
        return wrong(format!("list is length {}", list.len()));
    }
    meter.make_items(to - from)?;
    (from..to).filter_map(|at| list.get(at)).collect::<Result<_, _>>().map(Value::list)
}

fn flatten<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let depth = match args.get(1) {
        None => 1,
        Some(Value::Int(depth)) if *depth >= 0 => *depth,
        Some(Value::Int(_)) => return Err(Failure::error("level must be non-negative")),
        Some(_) => return Err(Failure::no_overload()),
    };
    let mut out = Vec::new();
    flatten_into(&mut out, list(&args[0])?, depth, meter)?;
    Ok(Value::list(out))
}

fn flatten_into<'a>(out: &mut Vec<Value<'a>>, list: &List<'a>, depth: i64, meter: &mut Meter) -> Result<(), Failure> {
    for item in list.iter() {
        meter.make_items(1)?;
        match item? {
            Value::List(inner) if depth > 0 => flatten_into(out, &inner, depth - 1, meter)?,
            other => out.push(other),
        }
    }
    Ok(())
}

fn range<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::Int(count) = &args[0] else { return Err(Failure::no_overload()) };
    let count = (*count).max(0);
    meter.make_items(usize::try_from(count).unwrap_or(usize::MAX))?;
    Ok(Value::list((0..count).map(Value::Int).collect()))
}

fn reverse<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let mut all = items(&args[0], meter)?;
    all.reverse();
    Ok(Value::list(all))
}

fn distinct<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let mut out: Vec<Value<'a>> = Vec::new();
    for item in items(&args[0], meter)? {
        let mut seen = false;
        for other in &out {
            seen = seen || equal(other, &item, meter)?;
        }
        if !seen {
            out.push(item);
        }
    }
    Ok(Value::list(out))
}

/// Sorts a list by keys: itself, or another list.
fn sorted<'a>(meter: &mut Meter, args: &[Value<'a>], keys: usize) -> Outcome<'a> {
    let values = items(&args[0], meter)?;
    let keys = items(args.get(keys).ok_or_else(Failure::no_overload)?, meter)?;
    if keys.len() != values.len() {
        let why = "@sortByAssociatedKeys() expected a list of the same size as the associated keys list";
        let (a, b) = (values.len(), keys.len());
        return Err(Failure::error(format!("{why}, but got {a} and {b} elements respectively")));
    }
    let types: Vec<_> = keys.iter().map(Value::type_of).collect();
    if types.windows(2).any(|pair| pair[0].name() != pair[1].name()) {
        return Err(Failure::error("list elements must have the same type"));
    }
    let mut pairs: Vec<(Value<'a>, Value<'a>)> = keys.into_iter().zip(values).collect();
    let mut failed = None;
    pairs.sort_by(|(a, _), (b, _)| {
        compare(a, b, meter).unwrap_or_else(|error| {
            failed = Some(error);
            Ordering::Equal
        })
    });
    match failed {
        Some(Failure::Cancelled) => Err(Failure::Cancelled),
        Some(_) => Err(Failure::error("list elements must be comparable")),
        None => Ok(Value::list(pairs.into_iter().map(|(_, value)| value).collect())),
    }
}

fn intersects<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (a, b) = (list(&args[0])?, list(&args[1])?);
    for item in a.iter() {
        if contains(b, &item?, meter)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn map_insert<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::Map(map) = &args[0] else { return Err(Failure::no_overload()) };
    let mut all = BTreeMap::new();
    let added = match (&args[1], args.get(2)) {
        (key, Some(value)) => vec![(key.clone(), value.clone())],
        (Value::Map(other), None) => entries(other, meter)?,
        _ => return Err(Failure::no_overload()),
    };
    for (key, value) in entries(map, meter)?.into_iter().chain(added) {
        insert(&mut all, &key, value)?;
    }
    Ok(Value::Map(Map::Made(all.into())))
}

/// Two lists one after the other; what is a set or has keys stays so.
pub(super) fn joined<'a>(a: &List<'a>, b: &List<'a>, meter: &mut Meter) -> Outcome<'a> {
    meter.make_items(a.len() + b.len())?;
    let mut out: Vec<Value<'a>> = a.iter().collect::<Result<_, _>>()?;
    match a {
        List::Data(_, _, Order::Set) => {
            for item in b.iter() {
                let item = item?;
                if !contains(a, &item, meter)? {
                    out.push(item);
                }
            }
        }
        List::Data(_, _, Order::Map(keys)) => {
            let mut places = BTreeMap::new();
            for (at, item) in out.iter().enumerate() {
                places.insert(key_of(item, keys, meter)?, at);
            }
            for item in b.iter() {
                let item = item?;
                match places.get(&key_of(&item, keys, meter)?) {
                    Some(at) => out[*at] = item,
                    None => out.push(item),
                }
            }
        }
        List::Made(_) | List::Data(_, _, Order::Atomic) => {
            for item in b.iter() {
                out.push(item?);
            }
        }
    }
    Ok(Value::list(out))
}
