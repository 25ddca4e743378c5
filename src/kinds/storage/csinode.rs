//! CSINode.

use jiff::Timestamp;
use linkme::distributed_slice;
use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::base::json::{at, list, text};
use crate::base::labels::label_key_error;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, integer};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    namespaced: false,
    schema: "io.k8s.api.storage.v1.CSINode",
    delete_answers_object: true,
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy { default: drop_disabled, validate, validate_update, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"spec":{"drivers":[]}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, integer("Drivers", "How many drivers the node has."), table::AGE];
/// The longest id that a driver has for a node.
const NODE_ID_BYTES: usize = 256;

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    vec![table::name(node), list(node, "spec.drivers").len().into(), table::age(node, now)]
}

/// The health of storage is reported behind a feature gate that is off.
fn drop_disabled(node: &mut Value) {
    node.as_object_mut().map(|m| m.remove("status"));
}

fn validate(node: &Value) -> Errors {
    let mut errors = Errors::new();
    let base = Path::root("spec.drivers");
    let drivers = list(node, "spec.drivers");
    let mut seen = HashSet::new();
    for (i, driver) in drivers.iter().enumerate() {
        let (path, name) = (base.index(i), text(driver, "name"));
        super::driver_name(&mut errors, &path.field("name"), name);
        if !seen.insert(name) {
            errors.push(field::duplicate(&path.field("name"), name));
        }
        let id = text(driver, "nodeID");
        if check::given(&mut errors, &path.field("nodeID"), id) && id.len() > NODE_ID_BYTES {
            errors.push(field::invalid(&path.field("nodeID"), id, "must be 256 characters or less"));
        }
        let keys = list(driver, "topologyKeys");
        let mut known = HashSet::new();
        for key in keys {
            // Kubernetes names the driver and not the key.
            let text = key.as_str().unwrap_or("");
            if !known.insert(text) {
                errors.push(field::duplicate(&path, text));
            }
            errors.extend(label_key_error(text).map(|why| field::invalid(&path, text, why)));
        }
        let count = path.field("allocatable.count");
        check::non_negative(&mut errors, &count, at(driver, "allocatable.count"));
    }
    errors
}

/// A driver may come and go, but not become another one.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut before = HashMap::new();
    for driver in list(old, "spec.drivers") {
        before.entry(text(driver, "name")).or_insert(driver);
    }
    for driver in list(new, "spec.drivers") {
        let was = before.get(text(driver, "name"));
        let differs = |key: &str| was.is_some_and(|w| w.get(key) != driver.get(key));
        if differs("nodeID") || differs("topologyKeys") {
            errors.push(field::invalid("spec.drivers", driver.clone(), check::IMMUTABLE));
        }
    }
    errors
}
