//! ControllerRevision.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::{int, list, text};
use crate::kinds::check::{self, IMMUTABLE, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    columns: COLUMNS,
    row,
    strategy: Strategy { validate, validate_update, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"data":{"a":1},"revision":1}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Controller", "The workload it is a revision of."),
    string("Revision", "Its number."),
    table::AGE,
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = list(object, "metadata.ownerReferences").iter().find(|o| o["controller"] == true);
    let owner = owner.map_or("<none>".to_owned(), |o| {
        let group = text(o, "apiVersion").split_once('/').map_or("", |(g, _)| g);
        let kind = text(o, "kind").to_lowercase();
        let kind = if group.is_empty() { kind } else { format!("{kind}.{group}") };
        format!("{kind}/{}", text(o, "name"))
    });
    let revision = int(object, "revision").unwrap_or(0);
    vec![table::name(object), owner.into(), revision.into(), table::age(object, now)]
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    if !object.get("data").is_some_and(Value::is_object) {
        errors.push(field::required("data", "data is mandatory"));
    }
    check::non_negative(&mut errors, &Path::root("revision"), object.get("revision"));
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    if new.get("data") == old.get("data") {
        return Errors::new();
    }
    [field::invalid("data", new.get("data").cloned().unwrap_or_default(), IMMUTABLE)].into()
}
