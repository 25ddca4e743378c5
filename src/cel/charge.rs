//! What calls cost when they are evaluated (`interpreter/runtimecost.go`, `k8s.io/apiserver/pkg/cel/library/cost.go`,
//! `ext/lists.go`, `ext/sets.go`).

use super::meter::{Failure, Meter};
use super::value::Value;

/// Of a text that is read once, for each letter.
pub(super) const TEXT_FACTOR: f64 = 0.1;
/// Of a pattern, for each letter.
pub(super) const PATTERN_FACTOR: f64 = 0.25;
const LIST_COST: u64 = 10;
/// Of a message that is made.
pub(super) const STRUCT_COST: u64 = 40;
/// Two may be asked in an expression.
pub(super) const DECISION_COST: u64 = 350_000;

/// How a call is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    One,
    Decision,
    Selector,
    /// Everything in the first argument is looked at.
    Traverse,
    /// The first argument is read.
    Read,
    ReadTwice,
    /// The result is written, from parts.
    Join,
    /// The first argument against a pattern.
    Pattern,
    /// The first argument against a text.
    Contains,
    ContainsIp,
    ContainsCidr,
    Validate,
    /// Is in a list, or in a map.
    In,
    /// The smaller one is read.
    Compare,
    /// Both are read, where they are texts.
    Add,
    /// The first argument is read, where it is a text or bytes and the result is of the other kind.
    Convert,
    Sets(u64),
    ListResult,
    Flatten,
    Squared,
    SquaredKeys,
    Ip,
}

// === impl Charge ===

impl Charge {
    /// Of a function.
    pub(super) fn of(function: &str) -> Self {
        match function {
            "check" => Self::Decision,
            "fieldSelector" | "labelSelector" => Self::Selector,
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => Self::Traverse,
            "url"
            | "lowerAscii"
            | "upperAscii"
            | "substring"
            | "trim"
            | "cidr"
            | "isIP"
            | "isCIDR"
            | "quantity"
            | "isQuantity"
            | "semver"
            | "isSemver"
            | "startsWith"
            | "endsWith"
            | "strings.quote"
            | "format"
            | "jsonpatch.escapeKey" => Self::Read,
            "ip" => Self::Ip,
            "replace" | "split" | "ip.isCanonical" => Self::ReadTwice,
            "join" => Self::Join,
            "find" | "findAll" | "matches" => Self::Pattern,
            "contains" => Self::Contains,
            "containsIP" => Self::ContainsIp,
            "containsCIDR" => Self::ContainsCidr,
            "validate" => Self::Validate,
            "@in" => Self::In,
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => Self::Compare,
            "_+_" => Self::Add,
            "string" | "bytes" => Self::Convert,
            "sets.contains" | "sets.intersects" => Self::Sets(1),
            "sets.equivalent" => Self::Sets(2),
            "slice" | "lists.range" | "reverse" => Self::ListResult,
            "flatten" => Self::Flatten,
            "distinct" | "sort" => Self::Squared,
            "@sortByAssociatedKeys" => Self::SquaredKeys,
            _ => Self::One,
        }
    }

    /// The cost of one call.
    pub(super) fn cost(
        self,
        overload: &str,
        args: &[Value<'_>],
        result: &Value<'_>,
        meter: &mut Meter,
    ) -> Result<u64, Failure> {
        let mut size = |value: Option<&Value<'_>>| -> Result<u64, Failure> {
            if let Some(Value::String(text)) = value {
                meter.work(text.len() / 64)?;
            }
            Ok(value.map_or(1, Value::size))
        };
        let (first, second) = (args.first(), args.get(1));
        Ok(match self {
            Self::One => 1,
            Self::Decision => DECISION_COST,
            Self::Selector => {
                let length = size(second)?;
                let requirements = scaled(length, 0.5);
                LIST_COST + scaled(length, TEXT_FACTOR) + requirements * (LIST_COST + STRUCT_COST)
            }
            Self::Traverse => first.map_or(Ok(0), |value| traversal(value, meter))?,
            Self::Read => scaled(size(first)?, TEXT_FACTOR),
            Self::Ip if matches!(first, Some(Value::String(_))) => scaled(size(first)?, TEXT_FACTOR),
            Self::Ip => 1,
            Self::ReadTwice => scaled(size(first)?, 2.0 * TEXT_FACTOR),
            Self::Join => scaled(size(Some(result))?, 2.0 * TEXT_FACTOR),
            Self::Pattern => scaled(size(first)?.saturating_add(1), TEXT_FACTOR)
                .saturating_mul(scaled(size(second)?, PATTERN_FACTOR)),
            Self::Contains => scaled(size(first)?, TEXT_FACTOR).saturating_mul(scaled(size(second)?, TEXT_FACTOR)),
            Self::ContainsIp | Self::ContainsCidr => {
                let (own, other) = (size(first)?, size(second)?);
                let mut cost = scaled(2 * own, TEXT_FACTOR);
                if self == Self::ContainsCidr {
                    cost += scaled(own, TEXT_FACTOR) + 1;
                }
                if overload.ends_with("_string") {
                    cost += scaled(other, TEXT_FACTOR);
                }
                cost
            }
            Self::Validate => {
                let pattern = if let Some(Value::Format(format)) = first { format.pattern_length } else { 0 };
                scaled(size(second)?.saturating_add(1), TEXT_FACTOR).saturating_mul(scaled(pattern, PATTERN_FACTOR))
            }
            Self::In if matches!(second, Some(Value::List(_))) => size(second)?,
            Self::In => 1,
            Self::Compare => scaled(size(first)?.min(size(second)?), TEXT_FACTOR),
            Self::Add if matches!(result, Value::String(_) | Value::Bytes(_)) => {
                scaled(size(Some(result))?, TEXT_FACTOR)
            }
            Self::Add => 1,
            Self::Convert => match (first, result) {
                (Some(Value::Bytes(_)), Value::String(_)) | (Some(Value::String(_)), Value::Bytes(_)) => {
                    scaled(size(first)?, TEXT_FACTOR)
                }
                _ => 1,
            },
            Self::Sets(factor) => 1 + size(first)?.saturating_mul(size(second)?).saturating_mul(factor),
            Self::ListResult => size(Some(result))? + 1 + LIST_COST,
            Self::Flatten => {
                let depth = if let Some(Value::Int(depth)) = second { u64::try_from(*depth).unwrap_or(0) } else { 1 };
                size(first)?.saturating_mul(depth).saturating_add(1 + LIST_COST)
            }
            Self::Squared => squared(first),
            Self::SquaredKeys => squared(second),
        })
    }
}

/// A size times a factor, rounded up.
pub(super) fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// Of comparing every item of a list with every other one.
fn squared(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else { return 1 };
    let is_text = matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
    let factor = if is_text { 2.0 + TEXT_FACTOR } else { 2.0 };
    let count = list.len() as f64;
    (count * count * factor) as u64 + 1 + LIST_COST
}

/// The cost of looking at everything in a value.
fn traversal(value: &Value<'_>, meter: &mut Meter) -> Result<u64, Failure> {
    meter.work(1)?;
    Ok(match value {
        Value::String(text) => (text.len() as f64 * TEXT_FACTOR) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TEXT_FACTOR) as u64,
        Value::List(list) => {
            let mut all = 0_u64;
            for item in list.iter() {
                all = all.saturating_add(traversal(&item?, meter)?);
            }
            all
        }
        Value::Map(map) => {
            let mut all = 0_u64;
            for key in map.keys() {
                all = all.saturating_add(traversal(&key, meter)?);
                if let Some(member) = map.get(&key, meter) {
                    all = all.saturating_add(traversal(&member?, meter)?);
                }
            }
            all
        }
        _ => 1,
    })
}
