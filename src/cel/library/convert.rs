//! Conversions between types, and values as messages show them.

use std::sync::Arc;

use super::super::time::{Time, duration, duration_text};
use super::super::types::Type;
use super::{Failure, Meter, Outcome, Run, Value};

const INT_OVERFLOW: &str = "integer overflow";
const UINT_OVERFLOW: &str = "unsigned integer overflow";

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "type" => |_, args| Ok(Value::Type(args[0].type_of())),
        "dyn" => |_, args| Ok(args[0].clone()),
        "bool" => to_bool,
        "bytes" => to_bytes,
        "double" => to_double,
        "duration" => to_duration,
        "int" => to_int,
        "string" => to_string,
        "timestamp" => to_timestamp,
        "uint" => to_uint,
        _ => return None,
    })
}

fn unconverted<'a>(value: &Value<'_>, to: &Type) -> Outcome<'a> {
    let (from, to) = (value.type_of(), to.name());
    Err(Failure::error(format!("type conversion error from '{}' to '{to}'", from.name())))
}

fn to_bool<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Bool(b) => Ok(Value::Bool(*b)),
        Value::String(text) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => unconverted(&args[0], &Type::Bool),
        },
        other => unconverted(other, &Type::Bool),
    }
}

fn to_bytes<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Bytes(bytes) => Ok(Value::Bytes(bytes.clone())),
        Value::String(text) => {
            meter.make(text.len())?;
            Ok(Value::Bytes(text.as_bytes().into()))
        }
        other => unconverted(other, &Type::Bytes),
    }
}

fn to_double<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Double(d) => Ok(Value::Double(*d)),
        Value::Int(n) => Ok(Value::Double(*n as f64)),
        Value::Uint(n) => Ok(Value::Double(*n as f64)),
        Value::String(text) => match text.parse::<f64>() {
            // Go knows no sign of what is no number.
            Ok(d) if !(d.is_nan() && text.starts_with(['+', '-'])) => Ok(Value::Double(d)),
            _ => unconverted(&args[0], &Type::Double),
        },
        other => unconverted(other, &Type::Double),
    }
}

fn to_duration<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Duration(d) | Value::Int(d) => Ok(Value::Duration(*d)),
        Value::String(text) => match duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => unconverted(&args[0], &Type::Duration),
        },
        other => unconverted(other, &Type::Duration),
    }
}

fn to_int<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Int(n) | Value::Duration(n) => Ok(Value::Int(*n)),
        Value::Uint(n) => i64::try_from(*n).map(Value::Int).map_err(|_| Failure::error(INT_OVERFLOW)),
        Value::Double(d) if *d > i64::MIN as f64 && *d < i64::MAX as f64 => Ok(Value::Int(*d as i64)),
        Value::Double(_) => Err(Failure::error(INT_OVERFLOW)),
        Value::Timestamp(time) => Ok(Value::Int(time.seconds())),
        Value::String(text) => match text.parse() {
            Ok(n) => Ok(Value::Int(n)),
            Err(_) => unconverted(&args[0], &Type::Int),
        },
        other => unconverted(other, &Type::Int),
    }
}

fn to_uint<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Uint(n) => Ok(Value::Uint(*n)),
        Value::Int(n) => u64::try_from(*n).map(Value::Uint).map_err(|_| Failure::error(UINT_OVERFLOW)),
        Value::Double(d) if *d >= 0.0 && *d < u64::MAX as f64 => Ok(Value::Uint(*d as u64)),
        Value::Double(_) => Err(Failure::error(UINT_OVERFLOW)),
        Value::String(text) if !text.starts_with('+') => match text.parse() {
            Ok(n) => Ok(Value::Uint(n)),
            Err(_) => unconverted(&args[0], &Type::Uint),
        },
        other => unconverted(other, &Type::Uint),
    }
}

fn to_string<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    text_of(&args[0], meter)?.map_or_else(|| unconverted(&args[0], &Type::String), Ok)
}

/// A value converted to a text, if it can be.
pub(super) fn text_of<'a>(value: &Value<'a>, meter: &mut Meter) -> Result<Option<Value<'a>>, Failure> {
    Ok(Some(match value {
        Value::String(text) => Value::String(text.clone()),
        Value::Bool(b) => Value::text(b.to_string()),
        Value::Int(n) => Value::text(n.to_string()),
        Value::Uint(n) => Value::text(n.to_string()),
        Value::Double(d) => Value::text(double_text(*d)),
        Value::Bytes(bytes) => {
            meter.make(bytes.len())?;
            let text = std::str::from_utf8(bytes);
            let why = "invalid UTF-8 in bytes, cannot convert to string";
            Value::text(Arc::<str>::from(text.map_err(|_| Failure::error(why))?))
        }
        Value::Duration(nanos) => Value::text(duration_text(*nanos)),
        Value::Timestamp(time) => Value::text(time.text()),
        Value::Type(of) => Value::text(of.name()),
        Value::Ip(ip) => Value::text(ip.to_string()),
        Value::Cidr(ip, bits) => Value::text(format!("{ip}/{bits}")),
        _ => return Ok(None),
    }))
}

fn to_timestamp<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let overflow = || Failure::error("timestamp overflow");
    match &args[0] {
        Value::Timestamp(time) => Ok(Value::Timestamp(*time)),
        Value::Int(seconds) => Time::from_seconds(*seconds).map(Value::Timestamp).ok_or_else(overflow),
        Value::String(text) => match Time::parse(text) {
            Some(time) => Ok(Value::Timestamp(time)),
            None if text.starts_with("0000-") && text.len() >= 20 => Err(overflow()),
            None => unconverted(&args[0], &Type::Timestamp),
        },
        other => unconverted(other, &Type::Timestamp),
    }
}

/// A number as Go's `%g` writes it.
pub(super) fn double_text(d: f64) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let scientific = format!("{d:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if d != 0.0 && !(-4..6).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    format!("{d}")
}

/// A value as messages show it.
pub(in super::super) fn shown(value: &Value<'_>) -> String {
    const SHOWN_LETTERS_MAX: usize = 200;
    match value {
        Value::String(text) => text.chars().take(SHOWN_LETTERS_MAX).collect(),
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Int(n) => n.to_string(),
        Value::Uint(n) => n.to_string(),
        Value::Double(d) => double_text(*d),
        other => other.type_of().name().to_owned(),
    }
}
