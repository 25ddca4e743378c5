//! Quantities, semantic versions and named formats.

use std::cmp::Ordering;
use std::sync::Arc;

use super::super::format::Format;
use super::super::semver::Semver;
use super::{Failure, Meter, Outcome, Run, Value};
use crate::base::quantity::Quantity;

pub(super) fn run(name: &str) -> Option<Run> {
    if let Some(format) = name.strip_prefix("format.").and_then(Format::named) {
        return Some(constant(format.key));
    }
    Some(match name {
        "quantity" => |meter, args| {
            let text = text(meter, args)?;
            let quantity: Quantity = text.parse().map_err(|e| Failure::error(format!("{e}")))?;
            Ok(Value::Quantity(Box::new(quantity)))
        },
        "isQuantity" => |meter, args| Ok(Value::Bool(text(meter, args)?.parse::<Quantity>().is_ok())),
        "sign" => |_, args| {
            let q = quantity(&args[0])?;
            Ok(Value::Int(if q.is_zero() { 0 } else { 1 - 2 * i64::from(q.is_negative()) }))
        },
        "isGreaterThan" => |_, args| Ok(Value::Bool(compare(args)?.is_gt())),
        "isLessThan" => |_, args| Ok(Value::Bool(compare(args)?.is_lt())),
        "compareTo" => |_, args| Ok(Value::Int(compare(args)? as i64)),
        "asApproximateFloat" => |_, args| Ok(Value::Double(quantity(&args[0])?.as_f64())),
        "asInteger" => |_, args| {
            let whole = whole(quantity(&args[0])?).map(Value::Int);
            whole.ok_or_else(|| Failure::error("cannot convert value to integer"))
        },
        "isInteger" => |_, args| Ok(Value::Bool(whole(quantity(&args[0])?).is_some())),
        "add" => |_, args| Ok(Value::Quantity(Box::new(*quantity(&args[0])? + amount(&args[1])?))),
        "sub" => |_, args| Ok(Value::Quantity(Box::new(*quantity(&args[0])? - amount(&args[1])?))),
        "semver" => |meter, args| semver(meter, args)?.map(Value::Semver).map_err(Failure::error),
        "isSemver" => |meter, args| Ok(Value::Bool(semver(meter, args)?.is_ok())),
        "major" => |_, args| number(args, 0),
        "minor" => |_, args| number(args, 1),
        "patch" => |_, args| number(args, 2),
        "format.named" => |meter, args| {
            let found = Format::named(text(meter, args)?);
            Ok(Value::Optional(found.map(|f| Arc::new(Value::Format(f)))))
        },
        "validate" => validate,
        _ => return None,
    })
}

/// The functions that give a format.
fn constant(key: &'static str) -> Run {
    macro_rules! of {
        ($($key:literal),*) => {
            match key {
                $($key => |_, _| format($key),)*
                _ => |_, _| Err(Failure::no_overload()),
            }
        };
    }
    of!(
        "dns1123Label",
        "dns1123Subdomain",
        "dns1035Label",
        "qualifiedName",
        "dns1123LabelPrefix",
        "dns1123SubdomainPrefix",
        "dns1035LabelPrefix",
        "labelValue",
        "uri",
        "uuid",
        "byte",
        "date",
        "datetime"
    )
}

fn format<'a>(key: &str) -> Outcome<'a> {
    Format::named(key).map(Value::Format).ok_or_else(Failure::no_overload)
}

fn text<'v>(meter: &mut Meter, args: &'v [Value<'_>]) -> Result<&'v str, Failure> {
    match args.first() {
        Some(Value::String(text)) => {
            meter.work(text.len() / 16)?;
            Ok(text)
        }
        _ => Err(Failure::no_overload()),
    }
}

fn quantity<'v>(value: &'v Value<'_>) -> Result<&'v Quantity, Failure> {
    match value {
        Value::Quantity(quantity) => Ok(quantity),
        _ => Err(Failure::no_overload()),
    }
}

fn amount(value: &Value<'_>) -> Result<Quantity, Failure> {
    match value {
        Value::Int(n) => Ok(Quantity::from_units(*n)),
        other => quantity(other).copied(),
    }
}

/// An amount that is a whole number.
fn whole(quantity: &Quantity) -> Option<i64> {
    let units = quantity.units();
    (Quantity::from_units(units) == *quantity).then_some(units)
}

fn compare(args: &[Value<'_>]) -> Result<Ordering, Failure> {
    match (&args[0], &args[1]) {
        (Value::Quantity(a), Value::Quantity(b)) => Ok(a.cmp(b)),
        (Value::Semver(a), Value::Semver(b)) => Ok(a.compare(b)),
        _ => Err(Failure::no_overload()),
    }
}

fn semver(meter: &mut Meter, args: &[Value<'_>]) -> Result<Result<Arc<Semver>, String>, Failure> {
    let text = text(meter, args)?;
    meter.make(2 * text.len())?;
    let version = match args.get(1) {
        Some(Value::Bool(true)) => Semver::parse_tolerant(text),
        None | Some(Value::Bool(false)) => Semver::parse(text),
        Some(_) => return Err(Failure::no_overload()),
    };
    Ok(version.map(Arc::new))
}

fn number<'a>(args: &[Value<'a>], at: usize) -> Outcome<'a> {
    match &args[0] {
        Value::Semver(version) => Ok(Value::Int(version.numbers[at] as i64)),
        _ => Err(Failure::no_overload()),
    }
}

fn validate<'a>(meter: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    let Value::Format(format) = &args[0] else { return Err(Failure::no_overload()) };
    let why = format.error(text(meter, &args[1..])?);
    Ok(Value::Optional(why.map(|why| Arc::new(Value::list(vec![Value::text(why)])))))
}
