//! `format()`, with the numbers of `%f` and `%e` as the American locale has them (`ext/formatting.go`).

use super::convert::text_of;
use super::{Failure, Meter, Outcome, Value};

const PRECISION: usize = 6;
/// Digits behind the point that Go's own formatting goes up to.
const PRECISION_MAX: usize = 1_000;

/// A piece of a format.
#[derive(Debug, PartialEq)]
pub(in super::super) enum Piece<'t> {
    Text(&'t str),
    /// How an argument is written: a letter, and the digits behind the point.
    Clause(char, Option<usize>),
}

/// The pieces of a format, which is given so many arguments.
pub(in super::super) fn pieces(format: &str, args: usize) -> Result<Vec<Piece<'_>>, String> {
    let mut out = Vec::new();
    let mut rest = format;
    let mut used = 0;
    while let Some(at) = rest.find('%') {
        out.push(Piece::Text(&rest[..at]));
        let behind = &rest[at + 1..];
        if let Some(more) = behind.strip_prefix('%') {
            out.push(Piece::Text("%"));
            rest = more;
            continue;
        }
        if behind.is_empty() {
            return Err("unexpected end of string".into());
        }
        if used >= args {
            return Err(format!("index {used} out of range"));
        }
        used += 1;
        let (clause, more) = clause(behind).map_err(|why| format!("could not parse formatting clause: {why}"))?;
        out.push(clause);
        rest = more;
    }
    out.push(Piece::Text(rest));
    Ok(out)
}

fn clause(text: &str) -> Result<(Piece<'_>, &str), String> {
    let (precision, rest) = match text.strip_prefix('.') {
        None => (None, text),
        Some(digits) => {
            let end = digits.find(|c: char| !c.is_ascii_digit());
            let end = end.ok_or("error while parsing precision: could not find end of precision specifier")?;
            let precision = digits[..end].parse().ok().filter(|p| *p <= PRECISION_MAX);
            let precision =
                precision.ok_or("error while parsing precision: error while converting precision to integer")?;
            (Some(precision), &digits[end..])
        }
    };
    match rest.chars().next() {
        Some(c @ ('s' | 'd' | 'f' | 'e' | 'b' | 'x' | 'X' | 'o')) => Ok((Piece::Clause(c, precision), &rest[1..])),
        Some(c) => Err(format!("unrecognized formatting clause \"{c}\"")),
        None => Err("unexpected end of string".into()),
    }
}

pub(super) fn format<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (Value::String(format), Value::List(list)) = (&args[0], &args[1]) else { return Err(Failure::no_overload()) };
    meter.make(format.len())?;
    let pieces = pieces(format, list.len()).map_err(Failure::error)?;
    let mut out = String::new();
    let mut used = 0;
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause(letter, precision) => {
                let value = list.get(used).ok_or_else(Failure::no_overload)??;
                used += 1;
                let precision = precision.unwrap_or(PRECISION);
                let written = written(letter, precision, &value, meter).map_err(|failure| match failure {
                    Failure::Error(why) => Failure::error(format!("error during formatting: {why}")),
                    Failure::Cancelled => Failure::Cancelled,
                })?;
                out.push_str(&written);
            }
        }
        meter.make(out.len() / 8)?;
    }
    Ok(Value::text(out))
}

/// What may be written by a letter, in the words of messages.
pub(in super::super) fn wrong(letter: char, given: &str) -> String {
    let what = match letter {
        's' => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and \
             timestamps"
        }
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        _ => "only integers, byte buffers, and strings can be formatted as hex",
    };
    format!("{what}, was given {given}")
}

fn written(letter: char, precision: usize, value: &Value<'_>, meter: &mut Meter) -> Result<String, Failure> {
    let signed = |n: i64, digits: String| if n < 0 { format!("-{digits}") } else { digits };
    Ok(match (letter, value) {
        ('s', value) => string(value, meter)?,
        ('d', Value::Int(n)) => n.to_string(),
        ('d', Value::Uint(n)) => n.to_string(),
        ('f' | 'e', Value::Double(d)) => number(letter, *d, precision),
        ('f' | 'e', Value::String(text)) => match &**text {
            "NaN" => number(letter, f64::NAN, precision),
            "Infinity" => number(letter, f64::INFINITY, precision),
            "-Infinity" => number(letter, f64::NEG_INFINITY, precision),
            _ => return Err(Failure::error(wrong(letter, "string"))),
        },
        ('b', Value::Int(n)) => signed(*n, format!("{:b}", n.unsigned_abs())),
        ('b', Value::Uint(n)) => format!("{n:b}"),
        ('b', Value::Bool(b)) => u8::from(*b).to_string(),
        ('o', Value::Int(n)) => signed(*n, format!("{:o}", n.unsigned_abs())),
        ('o', Value::Uint(n)) => format!("{n:o}"),
        ('x' | 'X', value) => {
            let digits = match value {
                Value::Int(n) => signed(*n, format!("{:x}", n.unsigned_abs())),
                Value::Uint(n) => format!("{n:x}"),
                Value::String(text) => digits(text.as_bytes(), meter)?,
                Value::Bytes(bytes) => digits(bytes, meter)?,
                other => return Err(Failure::error(wrong(letter, other.type_of().name()))),
            };
            if letter == 'X' { digits.to_uppercase() } else { digits }
        }
        (letter, other) => return Err(Failure::error(wrong(letter, other.type_of().name()))),
    })
}

fn digits(bytes: &[u8], meter: &mut Meter) -> Result<String, Failure> {
    meter.make(2 * bytes.len())?;
    Ok(hex::encode(bytes))
}

/// A number of the American locale.
fn number(letter: char, d: f64, precision: usize) -> String {
    if d.is_nan() {
        return "NaN".into();
    }
    let sign = if d.is_sign_negative() && d != 0.0 { "-" } else { "" };
    let d = d.abs();
    if d.is_infinite() {
        return format!("{sign}\u{221e}");
    }
    if letter == 'e' {
        let scientific = format!("{d:.precision$e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (minus, exponent) = exponent.strip_prefix('-').map_or(("", exponent), |e| ("\u{207b}", e));
        const RAISED: [char; 10] = [
            '\u{2070}', '\u{b9}', '\u{b2}', '\u{b3}', '\u{2074}', '\u{2075}', '\u{2076}', '\u{2077}', '\u{2078}',
            '\u{2079}',
        ];
        let raised = format!("{exponent:0>2}");
        let raised = raised.chars().filter_map(|c| c.to_digit(10)).map(|n| RAISED[n as usize]);
        return format!("{sign}{digits}\u{202f}\u{d7}\u{202f}10{minus}{}", raised.collect::<String>());
    }
    let fixed = format!("{d:.precision$}");
    let (whole, part) = fixed.split_once('.').map_or((fixed.as_str(), None), |(whole, part)| (whole, Some(part)));
    let mut out = String::from(sign);
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    if let Some(part) = part {
        out.push('.');
        out.push_str(part);
    }
    out
}

/// A value as `%s` writes it.
fn string(value: &Value<'_>, meter: &mut Meter) -> Result<String, Failure> {
    match value {
        Value::List(_) | Value::Map(_) | Value::Null => inner(value, meter),
        other => match text_of(other, meter)? {
            Some(Value::String(text)) if !matches!(other, Value::Ip(_) | Value::Cidr(..)) => {
                meter.make(text.len())?;
                Ok(text.to_string())
            }
            _ => Err(Failure::error(wrong('s', other.type_of().name()))),
        },
    }
}

/// A value in a list or a map.
fn inner(value: &Value<'_>, meter: &mut Meter) -> Result<String, Failure> {
    meter.work(1)?;
    let quoted = |text: &str| format!("{text:?}");
    Ok(match value {
        Value::Null => "null".into(),
        Value::Double(d) if d.is_nan() => quoted("NaN"),
        Value::Double(d) if d.is_infinite() => quoted(if *d > 0.0 { "+Inf" } else { "-Inf" }),
        Value::Double(d) => format!("{d:.PRECISION$}"),
        Value::String(_) => quoted(&string(value, meter)?),
        Value::Bytes(_) => format!("b{}", quoted(&string(value, meter)?)),
        Value::Timestamp(_) => format!("timestamp({})", quoted(&string(value, meter)?)),
        Value::Duration(_) => format!("duration({})", quoted(&string(value, meter)?)),
        Value::List(list) => {
            let mut parts = Vec::new();
            for item in list.iter() {
                parts.push(inner(&item?, meter)?);
            }
            let out = format!("[{}]", parts.join(", "));
            meter.make(out.len())?;
            out
        }
        Value::Map(map) => {
            let mut parts = Vec::new();
            for (key, value) in super::entries(map, meter)? {
                parts.push((inner(&key, meter)?, inner(&value, meter)?));
            }
            parts.sort();
            let parts: Vec<String> = parts.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            let out = format!("{{{}}}", parts.join(", "));
            meter.make(out.len())?;
            out
        }
        other => match string(other, meter) {
            Err(Failure::Error(_)) => {
                return Err(Failure::error(format!("no formatting function for {}", other.type_of().name())));
            }
            done => done?,
        },
    })
}
