//! Parts of instants and durations.

use super::super::time::Civil;
use super::{Failure, Meter, Outcome, Run, Value};

const SECOND_NANOS: i64 = 1_000_000_000;

pub(super) fn run(name: &str) -> Option<Run> {
    Some(match name {
        "getFullYear" => |_, args| part(args, |c| c.year),
        "getMonth" => |_, args| part(args, |c| c.month - 1),
        "getDayOfYear" => |_, args| part(args, |c| c.day_of_year),
        "getDayOfMonth" => |_, args| part(args, |c| c.day - 1),
        "getDate" => |_, args| part(args, |c| c.day),
        "getDayOfWeek" => |_, args| part(args, |c| c.day_of_week),
        "getHours" => |_, args| either(args, 3600 * SECOND_NANOS, |c| c.second_of_day / 3600),
        "getMinutes" => |_, args| either(args, 60 * SECOND_NANOS, |c| c.second_of_day / 60 % 60),
        "getSeconds" => |_, args| either(args, SECOND_NANOS, |c| c.second_of_day % 60),
        "getMilliseconds" => milliseconds,
        _ => return None,
    })
}

fn part<'a>(args: &[Value<'a>], of: fn(&Civil) -> i64) -> Outcome<'a> {
    let zone = match args.get(1) {
        None => "",
        Some(Value::String(zone)) => &**zone,
        Some(_) => return Err(Failure::no_overload()),
    };
    match &args[0] {
        Value::Timestamp(time) => Ok(Value::Int(of(&time.civil(zone).map_err(Failure::error)?))),
        _ => Err(Failure::no_overload()),
    }
}

/// A part of an instant, or a duration in whole units.
fn either<'a>(args: &[Value<'a>], unit_nanos: i64, of: fn(&Civil) -> i64) -> Outcome<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / unit_nanos)),
        _ => part(args, of),
    }
}

fn milliseconds<'a>(_: &mut Meter, args: &[Value<'a>]) -> Outcome<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / 1_000_000)),
        Value::Timestamp(time) => {
            part(args, |_| 0)?;
            Ok(Value::Int(i64::from(time.nanos() / 1_000_000)))
        }
        _ => Err(Failure::no_overload()),
    }
}
