//! Texts. Places in them are counted in code points.

use std::sync::Arc;

use super::super::value::Text;
use super::{Failure, Meter, Outcome, Run, Value, text_format};
use crate::base::pattern::{PatternError, compiled};
use regex::Regex;

/// What compiling a pattern takes, for each of its letters.
const PATTERN_STEPS: usize = 500;

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "contains" => |meter, args| both(meter, args, |a, b| a.contains(b)),
        "startsWith" => |meter, args| both(meter, args, |a, b| a.starts_with(b)),
        "endsWith" => |meter, args| both(meter, args, |a, b| a.ends_with(b)),
        "matches" => |meter, args| {
            let text = text(args, 0)?;
            let regex = pattern(meter, args)?;
            Ok(Value::Bool(regex.is_match(text)))
        },
        "find" => |meter, args| {
            let text = text(args, 0)?;
            let regex = pattern(meter, args)?;
            let found = regex.find(text).map_or("", |m| m.as_str());
            meter.make(found.len())?;
            Ok(Value::text(found))
        },
        "findAll" => find_all,
        "charAt" => char_at,
        "lowerAscii" => |meter, args| made(meter, args, str::to_ascii_lowercase),
        "jsonpatch.escapeKey" => |meter, args| made(meter, args, |key| key.replace('~', "~0").replace('/', "~1")),
        "upperAscii" => |meter, args| made(meter, args, str::to_ascii_uppercase),
        "trim" => |meter, args| made(meter, args, |text| text.trim().to_owned()),
        "replace" => replace,
        "split" => split,
        "substring" => substring,
        "join" => join,
        "strings.quote" => |meter, args| {
            let quoted = quote(text(args, 0)?);
            meter.make(quoted.len())?;
            Ok(Value::text(quoted))
        },
        "format" => text_format::format,
        _ => return None,
    })
}

fn text<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Text<'v>, Failure> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Failure::no_overload()),
    }
}

fn int(args: &[Value<'_>], at: usize) -> Result<i64, Failure> {
    match args.get(at) {
        Some(Value::Int(n)) => Ok(*n),
        _ => Err(Failure::no_overload()),
    }
}

fn both<'a>(meter: &mut Meter, args: &[Value<'a>], of: fn(&str, &str) -> bool) -> Outcome<'a> {
    let (a, b) = (text(args, 0)?, text(args, 1)?);
    meter.work((a.len() + b.len()) / 16)?;
    Ok(Value::Bool(of(a, b)))
}

fn made<'a>(meter: &mut Meter, args: &[Value<'a>], of: fn(&str) -> String) -> Outcome<'a> {
    let text = text(args, 0)?;
    meter.make(text.len())?;
    Ok(Value::text(of(text)))
}

/// The pattern of a call, after what running it takes was counted.
fn pattern(meter: &mut Meter, args: &[Value<'_>]) -> Result<Arc<Regex>, Failure> {
    let (text, pattern) = (text(args, 0)?, text(args, 1)?);
    meter.work(text.len() / 8 * (pattern.len() / 16 + 1))?;
    let (regex, is_new) = compiled(pattern).map_err(|error| match error {
        PatternError::Syntax(_) => Failure::error(error.to_string()),
        PatternError::Size => Failure::error(error.to_string()),
    })?;
    if is_new {
        meter.work(pattern.len().saturating_mul(PATTERN_STEPS))?;
    }
    Ok(regex)
}

fn find_all<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let limit = if args.len() > 2 { int(args, 2)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let text = text(args, 0)?;
    let regex = pattern(meter, args)?;
    let mut out = Vec::new();
    for found in regex.find_iter(text).take(limit) {
        meter.make(found.len())?;
        meter.make_items(1)?;
        out.push(Value::text(found.as_str()));
    }
    Ok(Value::list(out))
}

/// The byte at which a code point begins; the end for as many as there are.
fn place(text: &str, at: i64) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(at)
}

fn out_of_range<'a>(at: i64) -> Outcome<'a> {
    Err(Failure::error(format!("index out of range: {at}")))
}

fn char_at<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (text, at) = (text(args, 0)?, int(args, 1)?);
    meter.work(text.len() / 16)?;
    match place(text, at) {
        Some(from) => Ok(Value::text(text[from..].chars().take(1).collect::<String>())),
        None => out_of_range(at),
    }
}

fn substring<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (text, start) = (text(args, 0)?, int(args, 1)?);
    meter.make(text.len())?;
    let end = if args.len() > 2 { Some(int(args, 2)?) } else { None };
    if let Some(end) = end.filter(|end| start > *end) {
        return Err(Failure::error(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let Some(from) = place(text, start) else { return out_of_range(start) };
    let to = match end {
        None => text.len(),
        Some(end) => match place(text, end) {
            Some(to) => to,
            None => return out_of_range(end),
        },
    };
    Ok(Value::text(&text[from..to]))
}

/// Where a text is in another one.
pub(super) fn position<'a>(meter: &mut Meter, args: &[Value<'a>], last: bool) -> Outcome<'a> {
    let (text, part) = (text(args, 0)?, text(args, 1)?);
    meter.work((text.len() + part.len()) / 16)?;
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    let given = if args.len() > 2 { Some(int(args, 2)?) } else { None };
    if let Some(at) = given.filter(|at| *at < 0) {
        return out_of_range(at);
    }
    if part.is_empty() {
        return Ok(Value::Int(given.unwrap_or(if last { length } else { 0 }).min(length)));
    }
    if given.is_some_and(|at| at >= length) {
        return Ok(Value::Int(-1));
    }
    let found = if last {
        // What is found begins at the place or before it.
        let end = given.and_then(|at| place(text, at)).map_or(text.len(), |at| (at + part.len()).min(text.len()));
        let end = (0..=end).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text[..end].rfind(&**part)
    } else {
        let from = given.and_then(|at| place(text, at)).unwrap_or(0);
        text[from..].find(&**part).map(|at| at + from)
    };
    let count = |at: usize| i64::try_from(text[..at].chars().count()).unwrap_or(i64::MAX);
    Ok(Value::Int(found.map_or(-1, count)))
}

fn replace<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (text, old, new) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
    let limit = if args.len() > 3 { int(args, 3)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    meter.work(text.len() / 16)?;
    let count = text.matches(&**old).take(limit).count();
    meter.make(text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::text(text.replacen(&**old, new, limit)))
}

fn split<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let (text, separator) = (text(args, 0)?, text(args, 1)?);
    let limit = if args.len() > 2 { int(args, 2)? } else { -1 };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if limit == 0 {
        return Ok(Value::list(Vec::new()));
    }
    let mut parts: Vec<&str> = Vec::new();
    let mut rest: &str = text;
    while parts.len() + 1 < limit {
        let next = match separator.is_empty() {
            true => rest.chars().next().map(|c| (c.len_utf8(), c.len_utf8())).filter(|(end, _)| *end < rest.len()),
            false => rest.find(&**separator).map(|at| (at, at + separator.len())),
        };
        let Some((end, behind)) = next else { break };
        meter.make_items(1)?;
        parts.push(&rest[..end]);
        rest = &rest[behind..];
    }
    if !(separator.is_empty() && rest.is_empty()) {
        parts.push(rest);
    }
    meter.make(text.len())?;
    meter.make_items(parts.len())?;
    Ok(Value::list(parts.into_iter().map(Value::text).collect()))
}

fn join<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::List(list) = &args[0] else { return Err(Failure::no_overload()) };
    let separator = match args.get(1) {
        None => "",
        Some(Value::String(separator)) => separator,
        Some(_) => return Err(Failure::no_overload()),
    };
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = item?;
        let Value::String(part) = &item else {
            return Err(Failure::error(format!("join: invalid input: {}", super::shown(&item))));
        };
        meter.make(part.len() + separator.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(part);
    }
    Ok(Value::text(out))
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
