//! `+`, `-`, `*`, `/`, `%`, `!`, and sums.

use super::lists::{joined, list};
use super::{Failure, Meter, Outcome, Run, Value};

const INT_OVERFLOW: &str = "integer overflow";
const UINT_OVERFLOW: &str = "unsigned integer overflow";
const DURATION_OVERFLOW: &str = "duration overflow";
const TIMESTAMP_OVERFLOW: &str = "timestamp overflow";

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "_+_" => add,
        "_-_" => subtract,
        "_*_" => multiply,
        "_/_" => divide,
        "_%_" => modulo,
        "-_" => negate,
        "sum" => |meter, args| sum(meter, args, Value::Int(0)),
        // Of the sums whose type is known when there is nothing to add.
        "sum/uint" => |meter, args| sum(meter, args, Value::Uint(0)),
        "sum/double" => |meter, args| sum(meter, args, Value::Double(0.0)),
        "sum/duration" => |meter, args| sum(meter, args, Value::Duration(0)),
        "!_" => |_, args| match &args[0] {
            Value::Bool(b) => Ok(Value::Bool(!b)),
            _ => Err(Failure::no_overload()),
        },
        _ => return None,
    })
}

fn or<T>(value: Option<T>, error: &'static str) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::error(error))
}

fn add<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => or(a.checked_add(*b), INT_OVERFLOW).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => or(a.checked_add(*b), UINT_OVERFLOW).map(Value::Uint),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (Value::String(a), Value::String(b)) => {
            meter.make(a.len() + b.len())?;
            Ok(Value::text(format!("{}{}", &**a, &**b)))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            meter.make(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (Value::List(a), Value::List(b)) => joined(a, b, meter),
        (Value::Duration(a), Value::Duration(b)) => or(a.checked_add(*b), DURATION_OVERFLOW).map(Value::Duration),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t)) => {
            or(t.plus(*d), TIMESTAMP_OVERFLOW).map(Value::Timestamp)
        }
        _ => Err(Failure::no_overload()),
    }
}

fn subtract<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => or(a.checked_sub(*b), INT_OVERFLOW).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => or(a.checked_sub(*b), UINT_OVERFLOW).map(Value::Uint),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (Value::Duration(a), Value::Duration(b)) => or(a.checked_sub(*b), DURATION_OVERFLOW).map(Value::Duration),
        (Value::Timestamp(t), Value::Duration(d)) => {
            let later = d.checked_neg().and_then(|d| t.plus(d));
            or(later, TIMESTAMP_OVERFLOW).map(Value::Timestamp)
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => or(a.since(*b), DURATION_OVERFLOW).map(Value::Duration),
        _ => Err(Failure::no_overload()),
    }
}

fn multiply<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(a), Value::Int(b)) => or(a.checked_mul(*b), INT_OVERFLOW).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => or(a.checked_mul(*b), UINT_OVERFLOW).map(Value::Uint),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        _ => Err(Failure::no_overload()),
    }
}

fn divide<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(Failure::error("division by zero")),
        (Value::Int(a), Value::Int(b)) => or(a.checked_div(*b), INT_OVERFLOW).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a / b)),
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        _ => Err(Failure::no_overload()),
    }
}

fn modulo<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match (&args[0], &args[1]) {
        (Value::Int(_), Value::Int(0)) | (Value::Uint(_), Value::Uint(0)) => Err(Failure::error("modulus by zero")),
        (Value::Int(a), Value::Int(b)) => or(a.checked_rem(*b), INT_OVERFLOW).map(Value::Int),
        (Value::Uint(a), Value::Uint(b)) => Ok(Value::Uint(a % b)),
        _ => Err(Failure::no_overload()),
    }
}

fn negate<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Int(n) => or(n.checked_neg(), INT_OVERFLOW).map(Value::Int),
        Value::Double(d) => Ok(Value::Double(-d)),
        Value::Duration(d) => or(d.checked_neg(), DURATION_OVERFLOW).map(Value::Duration),
        _ => Err(Failure::no_overload()),
    }
}

/// Adds the items of a list.
fn sum<'a>(meter: &mut Meter, args: &[Value<'a>], zero: Value<'a>) -> Outcome<'a> {
    let mut all: Option<Value<'a>> = None;
    for item in list(&args[0])?.iter() {
        meter.work(1)?;
        let item = item?;
        all = Some(match all {
            Some(all) => add(meter, &[all, item])?,
            None => item,
        });
    }
    Ok(all.unwrap_or(zero))
}
