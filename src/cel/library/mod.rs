//! What functions do. Each gets its arguments with the target first, and says that it does not take them
//! ([`Failure::no_overload`]) where the checker could not know.

mod access;
mod arithmetic;
mod convert;
mod lists;
mod maps;
mod network;
mod numbers;
mod optionals;
mod signature;
pub(super) mod text_format;
mod texts;
mod times;

pub(super) use convert::shown;
pub(super) use maps::{entries, insert, list_index, map_of};
pub(super) use signature::Run;

use signature::Outcome;

use super::equal;
use super::meter::{Failure, Meter};
use super::value::Value;

/// Functions that convert: of a constant they are computed once.
pub(super) const CONVERSIONS: [&str; 10] =
    ["bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"];

/// The name of a function that does as its overload says where arguments do not show which it is.
pub(super) fn variant<'n>(name: &'n str, overload: &str) -> &'n str {
    match overload {
        "list_uint_sum_uint" => "sum/uint",
        "list_double_sum_double" => "sum/double",
        "list_duration_sum_duration" => "sum/duration",
        _ => name,
    }
}

/// What a function of this name does.
pub(super) fn run(name: &str) -> Option<Run> {
    let own: Run = match name {
        "_==_" => |meter, args| equal::equal(&args[0], &args[1], meter).map(Value::Bool),
        "_!=_" => |meter, args| equal::equal(&args[0], &args[1], meter).map(|b| Value::Bool(!b)),
        "_<_" => |meter, args| equal::compare(&args[0], &args[1], meter).map(|o| Value::Bool(o.is_lt())),
        "_<=_" => |meter, args| equal::compare(&args[0], &args[1], meter).map(|o| Value::Bool(o.is_le())),
        "_>_" => |meter, args| equal::compare(&args[0], &args[1], meter).map(|o| Value::Bool(o.is_gt())),
        "_>=_" => |meter, args| equal::compare(&args[0], &args[1], meter).map(|o| Value::Bool(o.is_ge())),
        _ => {
            return [
                arithmetic::run,
                convert::run,
                texts::run,
                lists::run,
                optionals::run,
                times::run,
                network::run,
                numbers::run,
                access::run,
            ]
            .iter()
            .find_map(|of| of(name));
        }
    };
    Some(own)
}
