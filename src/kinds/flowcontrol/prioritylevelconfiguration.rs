//! PriorityLevelConfiguration: how many requests of a level run at once, and what becomes of the others.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::EXEMPT;
use crate::base::json::{at, int, map_mut, set, set_default, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "PriorityLevelConfiguration",
    plural: "prioritylevelconfigurations",
    singular: "prioritylevelconfiguration",
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default,
        prepare_create: |level| drop(map_mut(level, "").insert("status".into(), json!({}))),
        validate,
        validate_status: |new, _| super::conditions(new),
        warnings,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"type":"Limited","limited":{"limitResponse":{"type":"Reject"}}}}"#,
    ..Kind::BASE
});

/// How many requests of one flow wait at most, whatever is written: a hand of eight queues of fifty, as where nothing is said.
pub const FLOW_WAITING_MAX: i64 = 400;
/// How many requests of one level are more than anybody suggests.
const LEVEL_WAITING_MAX: i64 = 128 * 50;
const SHARES_DEFAULT: i64 = 30;
const QUEUES_DEFAULT: i64 = 64;
const HAND_DEFAULT: i64 = 8;
const QUEUE_LENGTH_DEFAULT: i64 = 50;
const QUEUES_MAX: i64 = 10_000_000;
/// The bits of a flow's hash, of which its hand is dealt in Kubernetes.
const HASH_BITS: i64 = 60;
const COLUMNS: &[Column] = &[
    table::NAME,
    string("Type", "Whether requests are limited."),
    string("NominalConcurrencyShares", "What part of all seats it has."),
    string("Queues", "Among how many queues requests are spread that wait."),
    string("HandSize", "Among how many of them those of a flow are spread."),
    string("QueueLengthLimit", "How many requests wait in a queue."),
    table::AGE,
];

/// The objects that every cluster has, as JSON.
pub const SUGGESTED: &str = include_str!("../../../manifests/bootstrap/prioritylevelconfigurations.json");

/// The objects that every cluster has.
pub fn suggested() -> Vec<Value> {
    super::suggested(SUGGESTED)
}

fn row(level: &Value, now: Timestamp) -> Vec<Value> {
    let number = |path: &str| int(level, path).map_or_else(|| Value::from("<none>"), Value::from);
    let queuing = |key: &str| number(&format!("spec.limited.limitResponse.queuing.{key}"));
    vec![
        table::name(level),
        text(level, "spec.type").into(),
        number("spec.limited.nominalConcurrencyShares"),
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        table::age(level, now),
    ]
}

fn given(level: &Value, path: &str) -> bool {
    at(level, path).is_some_and(Value::is_object)
}

fn default(level: &mut Value) {
    for (part, shares) in [("spec.limited", SHARES_DEFAULT), ("spec.exempt", 0)] {
        if given(level, part) {
            set_default(level, &format!("{part}.nominalConcurrencyShares"), shares);
            set_default(level, &format!("{part}.lendablePercent"), 0);
        }
    }
    let queuing = "spec.limited.limitResponse.queuing";
    if given(level, queuing) {
        let numbers =
            [("queues", QUEUES_DEFAULT), ("handSize", HAND_DEFAULT), ("queueLengthLimit", QUEUE_LENGTH_DEFAULT)];
        for (key, number) in numbers {
            let path = format!("{queuing}.{key}");
            if int(level, &path).unwrap_or(0) == 0 {
                set(level, &path, number);
            }
        }
    }
}

fn validate(level: &Value) -> Errors {
    let mut errors = Errors::new();
    let (spec, kind) = (Path::root("spec"), text(level, "spec.type"));
    if (text(level, "metadata.name") == EXEMPT) != (kind == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.push(field::invalid(spec.field("type"), kind, why));
    }
    let (limited, exempt) = (spec.field("limited"), spec.field("exempt"));
    match kind {
        "Exempt" => {
            if given(level, "spec.limited") {
                errors.push(field::forbidden(&limited, "must be nil if the type is not Limited"));
            }
            if given(level, "spec.exempt") {
                shares(&mut errors, &exempt, &level["spec"]["exempt"]);
            }
        }
        "Limited" => {
            if given(level, "spec.exempt") {
                errors.push(field::forbidden(&exempt, "must be nil if the type is not Exempt"));
            }
            match given(level, "spec.limited") {
                false => errors.push(field::required(&limited, "must not be empty when type is Limited")),
                true => validate_limited(&mut errors, &limited, &level["spec"]["limited"]),
            }
        }
        other => errors.push(field::not_supported(spec.field("type"), other, &["Exempt", "Limited"])),
    }
    super::fixed_spec(&mut errors, level, suggested);
    errors
}

fn shares(errors: &mut Errors, path: &Path<'_>, of: &Value) {
    if let Some(shares) = int(of, "nominalConcurrencyShares").filter(|n| *n < 0) {
        let path = path.field("nominalConcurrencyShares");
        errors.push(field::invalid(&path, shares, "must be a non-negative integer"));
    }
    if let Some(percent) = int(of, "lendablePercent").filter(|n| !(0..=100).contains(n)) {
        let path = path.field("lendablePercent");
        errors.push(field::invalid(&path, percent, "must be between 0 and 100, inclusive"));
    }
}

fn validate_limited(errors: &mut Errors, path: &Path<'_>, limited: &Value) {
    shares(errors, path, limited);
    if let Some(percent) = int(limited, "borrowingLimitPercent").filter(|n| *n < 0) {
        let path = path.field("borrowingLimitPercent");
        errors.push(field::invalid(&path, percent, "if specified, must be a non-negative integer"));
    }
    let (response, queuing) = (path.field("limitResponse"), given(limited, "limitResponse.queuing"));
    let queuing_path = response.field("queuing");
    match (text(limited, "limitResponse.type"), queuing) {
        ("Reject", true) => {
            let why = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(field::forbidden(&queuing_path, why));
        }
        ("Reject", false) => {}
        ("Queue", false) => {
            let why = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(field::required(&queuing_path, why));
        }
        ("Queue", true) => validate_queuing(errors, &queuing_path, &limited["limitResponse"]["queuing"]),
        (other, _) => errors.push(field::not_supported(response.field("type"), other, &["Queue", "Reject"])),
    }
}

fn validate_queuing(errors: &mut Errors, path: &Path<'_>, queuing: &Value) {
    let number = |key: &str| int(queuing, key).unwrap_or(0);
    let (length, queues, hand) = (number("queueLengthLimit"), number("queues"), number("handSize"));
    let mut refuse = |key: &str, value: i64, why: String| errors.push(field::invalid(path.field(key), value, why));
    if length <= 0 {
        refuse("queueLengthLimit", length, "must be positive".into());
    }
    if queues <= 0 {
        refuse("queues", queues, "must be positive".into());
    } else if queues > QUEUES_MAX {
        refuse("queues", queues, format!("must not be greater than {QUEUES_MAX}"));
    }
    let bits = entropy_bits(queues, hand);
    if hand <= 0 {
        refuse("handSize", hand, "must be positive".into());
    } else if hand > queues {
        refuse("handSize", hand, format!("should not be greater than queues ({queues})"));
    } else if bits > HASH_BITS {
        let why = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        refuse("handSize", hand, why);
    }
}

/// How many bits of a hash it takes to deal a hand of queues.
fn entropy_bits(queues: i64, hand: i64) -> i64 {
    if queues <= 0 || hand <= 0 {
        return 0;
    }
    ((queues as f64).log2() * hand as f64).ceil() as i64
}

/// What more is asked for than waits here.
fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let queuing = "spec.limited.limitResponse.queuing";
    if old.is_some_and(|old| at(old, queuing) == at(new, queuing)) {
        return Vec::new();
    }
    let number = |key: &str| int(new, &format!("{queuing}.{key}")).unwrap_or(0);
    let length = number("queueLengthLimit");
    let (of_flow, of_level) = (number("handSize").saturating_mul(length), number("queues").saturating_mul(length));
    let mut warnings = Vec::new();
    if of_flow > FLOW_WAITING_MAX {
        warnings.push(format!(
            "{queuing}: of a flow no more than {FLOW_WAITING_MAX} requests wait, and not {of_flow}, in this version"
        ));
    }
    if of_level > LEVEL_WAITING_MAX {
        warnings.push(format!(
            "{queuing}: levels share a bounded number of requests that wait, which is less than {of_level}, in this version"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_suggested_is_complete_valid_and_kept_to() {
        for level in suggested() {
            let mut defaulted = level.clone();
            default(&mut defaulted);
            assert_eq!(defaulted, level);
            assert!(validate(&level).is_empty(), "{level}");
            assert!(warnings(&level, None).is_empty(), "{level}");
        }
    }

    #[test]
    fn of_the_exempt_level_only_its_shares_may_change() {
        let mut exempt = suggested().into_iter().find(|l| text(l, "metadata.name") == EXEMPT).unwrap();
        exempt["spec"]["exempt"] = json!({"nominalConcurrencyShares": 10, "lendablePercent": 50});
        assert!(validate(&exempt).is_empty());
        exempt["spec"]["exempt"]["lendablePercent"] = json!(101);
        exempt["spec"]["type"] = json!("Limited");
        exempt["spec"]["limited"] = json!({"limitResponse": {"type": "Reject"}});
        let fields: Vec<_> = validate(&exempt).iter().map(|e| e.field.clone()).collect();
        assert_eq!(fields, ["spec.type", "spec.exempt", "spec"]);
    }

    #[test]
    fn a_hand_is_dealt_of_the_bits_that_there_are() {
        assert_eq!((entropy_bits(128, 6), entropy_bits(64, 8), entropy_bits(0, 1)), (42, 48, 0));
        let with = |queues: i64, hand: i64, length: i64| {
            json!({"metadata": {"name": "x"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue",
                "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}}}}})
        };
        assert_eq!(validate(&with(1024, 7, 50)).len(), 1);
        assert!(validate(&with(1024, 6, 50)).is_empty());
        assert_eq!(warnings(&with(1024, 6, 70), None).len(), 2);
        assert!(warnings(&with(1024, 6, 70), Some(&with(1024, 6, 70))).is_empty());
    }
}
