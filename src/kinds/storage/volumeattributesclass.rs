//! VolumeAttributesClass.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{map, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "VolumeAttributesClass",
    plural: "volumeattributesclasses",
    singular: "volumeattributesclass",
    short_names: &["vac"],
    namespaced: false,
    schema: "io.k8s.api.storage.v1.VolumeAttributesClass",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    strategy: Strategy { validate, validate_update, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"driverName":"d.example.com","parameters":{"a":"b"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("DriverName", "The driver that knows the parameters."), table::AGE];

/// Marks the class of claims that name none.
const IS_DEFAULT: &str = "volumeattributesclass.alpha.kubernetes.io/is-default-class";

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    let name = match class["metadata"]["annotations"][IS_DEFAULT] == "true" {
        true => format!("{} (default)", text(class, "metadata.name")).into(),
        false => table::name(class),
    };
    vec![name, text(class, "driverName").into(), table::age(class, now)]
}

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    super::provisioner_name(&mut errors, &Path::root("driverName"), text(class, "driverName"));
    super::parameters(&mut errors, class);
    if map(class, "parameters").is_none_or(serde_json::Map::is_empty) {
        errors.push(field::required("parameters", "must contain at least one key/value pair"));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let changed = ["driverName", "parameters"].into_iter().filter(|key| new.get(key) != old.get(key));
    changed.map(|key| field::forbidden(key, format!("updates to {key} are forbidden."))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_class_has_a_driver_and_parameters_which_stay() {
        let class = json!({"driverName": "d.example.com", "parameters": {"a": "b"}});
        assert!(validate(&class).is_empty() && validate_update(&class, &class).is_empty());
        let errors = validate(&json!({"parameters": {}}));
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["driverName", "parameters"]);
        let other = json!({"driverName": "e.example.com", "parameters": {"a": "c"}});
        assert_eq!(validate_update(&other, &class).len(), 2);
    }
}
