//! Optional values.

use std::sync::Arc;

use super::{Failure, Meter, Outcome, Run, Value};

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "optional.of" => |_, args| Ok(Value::some(args[0].clone())),
        "optional.ofNonZeroValue" => |_, args| match args[0].is_zero() {
            true => Ok(Value::Optional(None)),
            false => Ok(Value::some(args[0].clone())),
        },
        "optional.none" => |_, _| Ok(Value::Optional(None)),
        "value" => value,
        "hasValue" => |_, args| match &args[0] {
            Value::Optional(value) => Ok(Value::Bool(value.is_some())),
            _ => Err(Failure::no_overload()),
        },
        "first" => |_, args| end(args, false),
        "last" => |_, args| end(args, true),
        "optional.unwrap" | "unwrapOpt" => unwrap,
        _ => return None,
    })
}

fn value<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Optional(Some(value)) => Ok((**value).clone()),
        Value::Optional(None) => Err(Failure::error("optional.none() dereference")),
        _ => Err(Failure::no_overload()),
    }
}

fn end<'a>(args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let Value::List(list) = &args[0] else { return Err(Failure::no_overload()) };
    let at = if last { list.len().wrapping_sub(1) } else { 0 };
    Ok(Value::Optional(list.get(at).transpose()?.map(Arc::new)))
}

fn unwrap<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::List(list) = &args[0] else { return Err(Failure::no_overload()) };
    meter.make_items(list.len())?;
    let mut out = Vec::with_capacity(list.len());
    for item in list.iter() {
        match item? {
            Value::Optional(value) => out.extend(value.map(|v| (*v).clone())),
            other => return Err(Failure::error(format!("value {} is not optional", super::shown(&other)))),
        }
    }
    Ok(Value::list(out))
}
