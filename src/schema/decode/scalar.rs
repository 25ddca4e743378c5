//! Scalars: what each accepts in JSON and how it is written again.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::fault::{What, wrong};
use crate::base::quantity;
use crate::schema::types::Scalar;

/// Checks one scalar and gives it its canonical form.
pub(super) fn decode(scalar: Scalar, value: &mut Value) -> Result<(), What> {
    match scalar {
        Scalar::String => match value {
            Value::String(_) => Ok(()),
            other => Err(wrong(other, "string")),
        },
        Scalar::Bool => match value {
            Value::Bool(_) => Ok(()),
            other => Err(wrong(other, "bool")),
        },
        Scalar::Int32 => integer(value, i64::from(i32::MIN), i64::from(i32::MAX), "int32"),
        Scalar::Int64 => integer(value, i64::MIN, i64::MAX, "int64"),
        Scalar::Double => double(value),
        Scalar::Bytes => bytes(value),
        Scalar::Quantity => quantity(value),
        Scalar::Time => time(value, false),
        Scalar::MicroTime => time(value, true),
        Scalar::Duration => match value {
            Value::String(_) => Ok(()),
            other => Err(wrong(other, "string")),
        },
        Scalar::IntOrString => match value {
            Value::String(_) => Ok(()),
            other => integer(other, i64::from(i32::MIN), i64::from(i32::MAX), "int32"),
        },
    }
}

fn integer(value: &mut Value, min: i64, max: i64, go: &'static str) -> Result<(), What> {
    match value {
        Value::Number(n) => match n.as_i64() {
            Some(i) if (min..=max).contains(&i) => Ok(()),
            // The one spelling of an integer that serde_json reads as a float: -0.
            None if n.as_f64().is_some_and(|f| f == 0.0 && f.is_sign_negative()) => {
                *value = Value::from(0);
                Ok(())
            }
            _ => Err(wrong(value, go)),
        },
        other => {
            let What::Type(kind, go) = wrong(other, go) else { return Ok(()) };
            Err(What::Type(kind, go))
        }
    }
}

/// Whole floats are written without a fraction.
fn double(value: &mut Value) -> Result<(), What> {
    let Value::Number(n) = &*value else { return Err(wrong(value, "float64")) };
    if let Some(f) = n.as_f64()
        && n.is_f64()
        && f.fract() == 0.0
        && f.abs() < 1e15
    {
        *value = Value::from(f as i64);
    }
    Ok(())
}

fn bytes(value: &mut Value) -> Result<(), What> {
    match value {
        Value::String(text) => {
            if text.contains(['\r', '\n']) {
                text.retain(|c| c != '\r' && c != '\n');
            }
            match BASE64.decode(text.as_bytes()) {
                Ok(_) => Ok(()),
                Err(e) => Err(What::Text(format!("illegal base64 data at input byte {}", position(&e, text.len())))),
            }
        }
        Value::Array(items) => {
            let byte = |v: &Value| v.as_u64().and_then(|n| u8::try_from(n).ok());
            match items.iter().map(byte).collect::<Option<Vec<u8>>>() {
                Some(plain) => {
                    *value = Value::String(BASE64.encode(plain));
                    Ok(())
                }
                None => Err(What::Type("array".into(), "uint8")),
            }
        }
        other => Err(wrong(other, "[]uint8")),
    }
}

fn position(error: &base64::DecodeError, len: usize) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        _ => len,
    }
}

fn quantity(value: &mut Value) -> Result<(), What> {
    let number;
    let text = match &*value {
        Value::String(text) => text.as_str(),
        Value::Number(n) => {
            number = n.to_string();
            &number
        }
        // Go hands the raw JSON to the parser, which finds no number in it.
        _ => return Err(What::Text(quantity::ParseError.to_string())),
    };
    let is_string = value.is_string();
    match quantity::canonical(text) {
        Ok(Some(canonical)) => *value = Value::String(canonical),
        Ok(None) if !is_string => *value = Value::String(text.to_owned()),
        Ok(None) => {}
        Err(e) => return Err(What::Text(e.to_string())),
    }
    Ok(())
}

const RFC3339: &str = "2006-01-02T15:04:05Z07:00";
const RFC3339_MICRO: &str = "2006-01-02T15:04:05.000000Z07:00";

fn time(value: &mut Value, micro: bool) -> Result<(), What> {
    let Value::String(text) = &*value else { return Err(wrong(value, "string")) };
    if is_canonical(text.as_bytes(), micro) {
        return Ok(());
    }
    let layout = if micro { RFC3339_MICRO } else { RFC3339 };
    let refused = || What::Text(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as {layout:?}"));
    let (date, rest) = text.split_at_checked(19).ok_or_else(refused)?;
    let shape = |s: &str, pattern: &str| {
        s.len() == pattern.len()
            && s.bytes().zip(pattern.bytes()).all(|(b, p)| if p == b'0' { b.is_ascii_digit() } else { b == p })
    };
    let digits = match rest.strip_prefix(['.', ',']) {
        Some(rest) => rest.bytes().take_while(u8::is_ascii_digit).count(),
        None => 0,
    };
    let zone = if digits > 0 { &rest[digits + 1..] } else { rest };
    let sane = shape(date, "0000-00-00T00:00:00")
        && (zone == "Z" || shape(zone, "+00:00") || shape(zone, "-00:00"))
        && (!micro || (digits == 6 && rest.starts_with('.')));
    if !sane {
        return Err(refused());
    }
    let fraction = if digits > 0 { format!(".{}", &rest[1..=digits.min(9)]) } else { String::new() };
    let time: jiff::Timestamp = format!("{date}{fraction}{zone}").parse().map_err(|_| refused())?;
    if time.as_second() == -62_135_596_800 {
        *value = Value::Null; // Go's zero time
        return Ok(());
    }
    let format = if micro { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    *value = Value::String(time.strftime(format).to_string());
    Ok(())
}

/// Whether the text is already written as it will be; the common case, checked without parsing.
fn is_canonical(text: &[u8], micro: bool) -> bool {
    let pattern: &[u8] = if micro { b"0000-00-00T00:00:00.000000Z" } else { b"0000-00-00T00:00:00Z" };
    let two = |at: usize| (text[at] - b'0') * 10 + (text[at + 1] - b'0');
    text.len() == pattern.len()
        && text.iter().zip(pattern).all(|(b, p)| if *p == b'0' { b.is_ascii_digit() } else { b == p })
        && (1..=12).contains(&two(5))
        && (1..=28).contains(&two(8))
        && two(11) < 24
        && two(14) < 60
        && two(17) < 60
        && &text[..4] != b"0001"
}
