//! What calls can cost at most, and how large their results can be (`k8s.io/apiserver/pkg/cel/library/cost.go`,
//! cel-go's `checker/cost.go`, `ext/lists.go`, `ext/sets.go`).

use super::charge::{DECISION_COST, PATTERN_FACTOR, TEXT_FACTOR};
use super::expr::{Expr, Literal};
use super::range::Range;
use super::types::Type;

const LIST_COST: u64 = 10;
const STRUCT_COST: u64 = 40;
/// The longest pattern behind a named format, and the longest of its names.
const FORMAT_PATTERN_LENGTH_MAX: f64 = 128.0;
const FORMAT_LENGTH_MAX: u64 = 64;

/// A call, as far as its cost depends on it.
pub(super) struct Invocation<'c> {
    pub function: &'static str,
    pub overload: &'static str,
    pub target: Option<&'c Arg<'c>>,
    pub args: &'c [Arg<'c>],
    /// What computing the arguments costs.
    pub costs: &'c [Range],
}

/// An argument or a target.
pub(super) struct Arg<'c> {
    pub expr: &'c Expr,
    pub size: Option<Range>,
    pub of: Type,
    /// What its items are, and how large.
    pub item: Option<(Type, Range)>,
}

type Estimate = (Range, Option<Range>);

// === impl Arg ===

impl Arg<'_> {
    fn size(&self) -> Range {
        self.size.unwrap_or(Range::UNKNOWN)
    }

    /// A literal number, or this.
    fn number(&self, otherwise: u64) -> u64 {
        match self.expr.literal() {
            Some(Literal::Int(n)) => u64::try_from(*n).unwrap_or(0),
            _ => otherwise,
        }
    }
}

/// The cost of a call, that of its arguments included, and the size of its result.
pub(super) fn call(call: &Invocation<'_>) -> Estimate {
    let args = call.costs.iter().fold(Range::NONE, |sum, cost| sum.plus(*cost));
    if let Some((cost, size)) = extension(call).or_else(|| kubernetes(call)) {
        return (cost.plus(args), size);
    }
    match standard(call) {
        Some((cost, size, true)) => (cost, size),
        Some((cost, size, false)) => (cost.plus(args), size),
        None => (Range::fixed(1).plus(args), None),
    }
}

/// Lists and sets of cel-go.
fn extension(call: &Invocation<'_>) -> Option<Estimate> {
    let made = |factor: f64, size: Range| {
        let cost = size.scaled(factor).plus(Range::fixed(1 + LIST_COST));
        Some((cost, Some(size)))
    };
    let target = || call.target.map(Arg::size);
    let squared = |arg: &Arg<'_>, factor: f64| made(factor, arg.size().times(arg.size()));
    match call.overload {
        "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
            let factor = if call.overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
            let product = call.args[0].size().times(call.args[1].size());
            Some((product.scaled(factor).plus(Range::fixed(1)), None))
        }
        "list_slice" => {
            let (start, end) = (call.args[0].number(0), call.args[1].number(target()?.max));
            made(1.0, Range::fixed(end.wrapping_sub(start)))
        }
        "lists_range" => made(1.0, Range::fixed(call.args[0].number(u64::MAX))),
        "list_reverse" => made(1.0, target()?),
        "list_flatten" => made(1.0, target()?),
        "list_flatten_int" => made(call.args[0].number(u64::MAX) as f64, target()?),
        "list_distinct" => squared(call.target?, 2.0),
        id if id.ends_with("_sort") || id.ends_with("_sortByAssociatedKeys") => {
            let of = if id.ends_with("_sort") { call.target? } else { &call.args[0] };
            let is_text = id.starts_with("list_string") || id.starts_with("list_bytes");
            squared(of, if is_text { 2.0 + TEXT_FACTOR } else { 2.0 })
        }
        _ => None,
    }
}

/// Kubernetes' own libraries, and what it says of cel-go's texts.
fn kubernetes(call: &Invocation<'_>) -> Option<Estimate> {
    let one = Some((Range::fixed(1), None));
    let first = || call.args.first().map(Arg::size);
    match call.function {
        "check" => Some((Range::fixed(DECISION_COST), None)),
        "serviceAccount"
        | "path"
        | "group"
        | "resource"
        | "subresource"
        | "namespace"
        | "name"
        | "allowed"
        | "reason"
        | "error"
        | "errored"
        | "masked"
        | "prefixLength"
        | "family"
        | "isUnspecified"
        | "isLoopback"
        | "isLinkLocalMulticast"
        | "isLinkLocalUnicast"
        | "isGlobalUnicast"
        | "format.named"
        | "sign"
        | "asInteger"
        | "isInteger"
        | "asApproximateFloat"
        | "isGreaterThan"
        | "isLessThan"
        | "compareTo"
        | "add"
        | "sub"
        | "major"
        | "minor"
        | "patch"
        | "getScheme"
        | "getHostname"
        | "getHost"
        | "getPort"
        | "getEscapedPath"
        | "getQuery" => one,
        "fieldSelector" | "labelSelector" => {
            let length = first()?;
            let requirements = length.scaled(0.5).scaled((LIST_COST + STRUCT_COST) as f64);
            Some((Range::fixed(LIST_COST).plus(length.scaled(TEXT_FACTOR)).plus(requirements), None))
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => list_scan(call.target?),
        "_==_" => same_library_type(call),
        _ => read_texts(call),
    }
}

/// What Kubernetes says of functions that read texts.
fn read_texts(call: &Invocation<'_>) -> Option<Estimate> {
    let first = || call.args.first().map(Arg::size);
    let target = || call.target.map(Arg::size);
    let read = |size: Range, result: Option<Range>| Some((size.scaled(TEXT_FACTOR), result));
    match call.function {
        "url" => read(first()?, Some(first()?)),
        "lowerAscii" | "upperAscii" | "substring" | "trim" => read(target()?, Some(target()?)),
        "replace" if call.args.len() >= 2 => Some(replace(target()?, call.args[0].size(), call.args[1].size())),
        "split" => {
            let size = target()?;
            let parts = call.args.get(1).map_or(size.max, |limit| limit.number(size.max));
            Some((size.scaled(2.0 * TEXT_FACTOR), Some(Range::new(0, parts))))
        }
        "join" => Some(join(call.target?, call.args.first())),
        "find" | "findAll" => {
            let size = target()?;
            let text = size.plus(Range::fixed(1)).scaled(TEXT_FACTOR);
            Some((text.times(first()?.scaled(PATTERN_FACTOR)), Some(Range::new(0, size.max))))
        }
        "ip" if call.overload == "cidr_ip" => Some((Range::fixed(1), None)),
        "ip" | "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => read(first()?, None),
        "ip.isCanonical" => Some((first()?.scaled(2.0 * TEXT_FACTOR), None)),
        "containsIP" | "containsCIDR" => {
            let own = Range::new(4, 16);
            let mut cost = own.plus(own).scaled(TEXT_FACTOR);
            if call.function == "containsCIDR" {
                cost = cost.plus(own.scaled(TEXT_FACTOR)).plus(Range::fixed(1));
            }
            if call.overload.ends_with("_string") {
                cost = cost.plus(first()?.scaled(TEXT_FACTOR));
            }
            Some((cost, None))
        }
        "validate" => {
            let pattern = FORMAT_PATTERN_LENGTH_MAX * PATTERN_FACTOR;
            Some((first()?.scaled(TEXT_FACTOR).scaled(pattern), None))
        }
        _ => None,
    }
}

fn same_library_type(call: &Invocation<'_>) -> Option<Estimate> {
    let (Type::Named(a), Type::Named(b)) = (&call.args[0].of, &call.args[1].of) else { return None };
    if a != b {
        return None;
    }
    let cost = match *a {
        "kubernetes.NamedFormat" => Range::new(1, FORMAT_LENGTH_MAX).scaled(TEXT_FACTOR),
        _ => Range::fixed(1),
    };
    Some((cost, None))
}

/// Each item of a list is compared once; or a text is read.
fn list_scan(target: &Arg<'_>) -> Option<Estimate> {
    let Some((of, size)) = &target.item else {
        return Some((target.size().scaled(TEXT_FACTOR), None));
    };
    let mut each = Range::fixed(1);
    if matches!(of, Type::String | Type::Bytes) {
        each = each.plus(size.scaled(TEXT_FACTOR));
    }
    Some((target.size().times(each), None))
}

fn replace(size: Range, old: Range, new: Range) -> Estimate {
    let (mut count, mut kept) = (Range::NONE, Range::NONE);
    let quotient = |size: u64, by: u64| (size as f64 / by as f64).ceil() as u64;
    if old.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if new.max <= old.min {
        kept.max = size.max;
    } else {
        count.max = quotient(size.max, old.min);
    }
    if old.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if old.max <= new.min {
        kept.min = size.min;
    } else {
        count.min = quotient(size.min, old.max);
    }
    (size.scaled(2.0 * TEXT_FACTOR), Some(count.times(new).plus(kept)))
}

fn join(list: &Arg<'_>, separator: Option<&Arg<'_>>) -> Estimate {
    let count = list.size();
    let mut size = list.item.as_ref().map_or(Range::NONE, |(_, item)| count.times(*item));
    if let Some(separator) = separator {
        let between = Range::new(count.min.saturating_sub(1), count.max.saturating_sub(1));
        size = size.plus(separator.size().times(between));
    }
    (size.scaled(TEXT_FACTOR), Some(size))
}

/// cel-go's own functions; `true` where the cost of the arguments is in it.
fn standard(call: &Invocation<'_>) -> Option<(Range, Option<Range>, bool)> {
    let size = |at: usize| call.args.get(at).map_or(Range::UNKNOWN, Arg::size);
    let read = |size: Range| size.scaled(TEXT_FACTOR);
    Some(match call.overload {
        "string_format" => (read(call.target?.size()), None, false),
        "string_to_bytes" => (read(size(0)), Some(Range::new(size(0).min, size(0).max.wrapping_mul(4))), false),
        "bytes_to_string" => (read(size(0)), Some(Range::new(size(0).min / 4, size(0).max)), false),
        "strings_quote" => {
            let result = Range::new(size(0).min.wrapping_add(2), size(0).max.wrapping_mul(2).wrapping_add(2));
            (read(size(0)), Some(result), false)
        }
        "starts_with_string" | "ends_with_string" => (read(size(0)), None, false),
        "in_list" => (size(1), None, false),
        "matches_string" => {
            let text = read(call.target?.size().plus(Range::fixed(1)));
            (text.times(size(0).scaled(PATTERN_FACTOR)), None, false)
        }
        "contains_string" => (read(call.target?.size()).times(read(size(0))), None, false),
        "logical_or" | "logical_and" => {
            let (left, right) = (call.costs[0], call.costs[1]);
            (Range::new(left.min, left.plus(right).max), None, true)
        }
        "conditional" => {
            let cost = call.costs[0].plus(call.costs[1].or(call.costs[2]));
            (cost, Some(size(1).or(size(2))), true)
        }
        "add_list" => (Range::fixed(1), Some(size(0).plus(size(1))), false),
        "add_string" | "add_bytes" => {
            let sum = size(0).plus(size(1));
            (read(sum), Some(sum), false)
        }
        "equals" | "not_equals" => compared(size(0), size(1)),
        id if id.ends_with("_string") || id.ends_with("_bytes") => {
            let is_relation = ["less_", "greater_"].iter().any(|word| id.starts_with(word));
            if !is_relation {
                return None;
            }
            compared(size(0), size(1))
        }
        _ => return None,
    })
}

fn compared(a: Range, b: Range) -> (Range, Option<Range>, bool) {
    let max = a.max.min(b.max);
    (Range::new(u64::from(max > 0), max).scaled(TEXT_FACTOR), None, false)
}
