//! PriorityClass.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{flag, int, set_default, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer, string};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    namespaced: false,
    generation: Generation::Once,
    schema: "io.k8s.api.scheduling.v1.PriorityClass",
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |class| set_default(class, "preemptionPolicy", "PreemptLowerPriority"),
        validate,
        validate_update,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"value":1}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    integer("Value", "The priority of its pods."),
    Column { kind: "boolean", ..string("Global-Default", "Whether pods without a class have it.") },
    table::AGE,
    string("PreemptionPolicy", "Whether its pods may displace others."),
];
/// The highest priority that users may give.
const HIGHEST: i64 = 1_000_000_000;
/// Classes of the system, with their values.
const SYSTEM: &[(&str, i64)] = &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        table::name(class),
        int(class, "value").unwrap_or(0).into(),
        flag(class, "globalDefault").into(),
        table::age(class, now),
        text(class, "preemptionPolicy").into(),
    ]
}

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let (name, value) = (text(class, "metadata.name"), int(class, "value").unwrap_or(0));
    if name.starts_with("system-") {
        if !SYSTEM.contains(&(name, value)) || flag(class, "globalDefault") {
            let why = "priority class names with 'system-' prefix are reserved for system use only";
            errors.push(field::forbidden("metadata.name", why));
        }
    } else if value > HIGHEST {
        errors
            .push(field::forbidden("value", format!("maximum allowed value of a user defined priority is {HIGHEST}")));
    }
    let policy = text(class, "preemptionPolicy");
    let supported = ["Never", "PreemptLowerPriority"];
    check::required_one_of(&mut errors, &Path::root("preemptionPolicy"), policy, &supported);
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new["value"] != old["value"] {
        errors.push(field::forbidden("value", "may not be changed in an update."));
    }
    if new["preemptionPolicy"] != old["preemptionPolicy"] {
        errors.push(field::invalid("preemptionPolicy", text(new, "preemptionPolicy"), check::IMMUTABLE));
    }
    errors
}
