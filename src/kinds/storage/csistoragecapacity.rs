//! CSIStorageCapacity.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use crate::base::json::text;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy, table};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "CSIStorageCapacity",
    plural: "csistoragecapacities",
    singular: "csistoragecapacity",
    schema: "io.k8s.api.storage.v1.CSIStorageCapacity",
    unconditional_update: false,
    columns: COLUMNS,
    row,
    strategy: Strategy { validate, validate_update, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"storageClassName":"s"}"#,
    ..Kind::BASE
});

/// The columns of kinds for which Kubernetes has no printer.
const COLUMNS: &[Column] =
    &[table::NAME, Column { kind: "date", ..table::string("Created At", table::AGE_DESCRIPTION) }];

fn row(capacity: &Value, _now: Timestamp) -> Vec<Value> {
    vec![table::name(capacity), text(capacity, "metadata.creationTimestamp").into()]
}

fn validate(capacity: &Value) -> Errors {
    let mut errors = Errors::new();
    check::dns_subdomain(&mut errors, &Path::root("storageClassName"), text(capacity, "storageClassName"));
    for key in ["capacity", "maximumVolumeSize"] {
        let amount = text(capacity, key);
        if amount.parse::<Quantity>().is_ok_and(|q| q.is_negative()) {
            errors.push(field::invalid(key, amount, "must be greater than or equal to 0"));
        }
    }
    check::label_selector(&mut errors, &Path::root("nodeTopology"), capacity.get("nodeTopology"));
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for key in ["nodeTopology", "storageClassName"] {
        if new.get(key) != old.get(key) {
            errors.push(field::invalid(key, new.get(key).cloned().unwrap_or_default(), check::IMMUTABLE));
        }
    }
    errors
}
