//! ConfigMap.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::map;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    columns: COLUMNS,
    row,
    strategy: Strategy { validate, validate_update, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"data":{"a":"b"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("Data", "How many entries it has."), table::AGE];
/// All keys and values together may be this long; also those of a Secret.
pub const BYTES: usize = 1 << 20;

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = |key: &str| map(object, key).map_or(0, serde_json::Map::len);
    vec![table::name(object), (entries("data") + entries("binaryData")).into(), table::age(object, now)]
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut total = 0;
    for part in ["data", "binaryData"] {
        let path = Path::root(part);
        for (key, value) in map(object, part).into_iter().flatten() {
            let length = value.as_str().map_or(0, str::len);
            total += if part == "data" { length } else { length / 4 * 3 };
            if let Some(why) = check::config_key_error(key) {
                errors.push(field::invalid(&path.key(key), key.as_str(), why));
            }
        }
    }
    for key in map(object, "binaryData").into_iter().flatten().map(|(k, _)| k) {
        if map(object, "data").is_some_and(|d| d.contains_key(key)) {
            let path = Path::root("data");
            errors.push(field::invalid(&path.key(key), key.as_str(), "duplicate of key present in binaryData"));
        }
    }
    if total > BYTES {
        errors.push(field::too_long("[]", BYTES));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    fixed(new, old, &["data", "binaryData"])
}

/// What an object that was made immutable keeps.
pub fn fixed(new: &Value, old: &Value, parts: &[&str]) -> Errors {
    let mut errors = Errors::new();
    if old["immutable"] != true {
        return errors;
    }
    if new["immutable"] != true {
        errors.push(field::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for part in parts {
        if new.get(*part) != old.get(*part) {
            errors.push(field::forbidden(*part, "field is immutable when `immutable` is set"));
        }
    }
    errors
}
