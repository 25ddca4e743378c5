//! StorageClass.

use jiff::Timestamp;
use linkme::distributed_slice;
use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use crate::base::json::{flag, list, set_default, text};
use crate::base::object::Object;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Kind, KindRef, Strategy};

pub use super::IS_DEFAULT;

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    namespaced: false,
    schema: "io.k8s.api.storage.v1.StorageClass",
    delete_answers_object: true,
    columns: COLUMNS,
    row,
    strategy: Strategy {
        default: |class| {
            set_default(class, "reclaimPolicy", "Delete");
            set_default(class, "volumeBindingMode", "Immediate");
        },
        validate,
        validate_update,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"},"provisioner":"example.com/p"}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Provisioner", "Who makes its volumes."),
    string("ReclaimPolicy", "What becomes of a volume that nobody claims any more."),
    string("VolumeBindingMode", "When a claim gets its volume."),
    string("AllowVolumeExpansion", "Whether its volumes can grow."),
    table::AGE,
];

/// The class of claims that name none: the newest of those that are marked; of those made in one second, the first by name.
pub fn default_of(classes: Vec<Arc<Object>>) -> Option<Arc<Object>> {
    let is_default = |class: &Arc<Object>| {
        let annotations = &class.value()["metadata"]["annotations"];
        IS_DEFAULT.iter().any(|a| annotations[*a] == "true")
    };
    let marked = classes.into_iter().filter(is_default);
    marked.max_by_key(|class| (class.meta.created, std::cmp::Reverse(class.meta.name.clone())))
}

fn row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        super::class_name(class),
        text(class, "provisioner").into(),
        text(class, "reclaimPolicy").into(),
        text(class, "volumeBindingMode").into(),
        flag(class, "allowVolumeExpansion").into(),
        table::age(class, now),
    ]
}

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    super::provisioner_name(&mut errors, &Path::root("provisioner"), text(class, "provisioner"));
    super::parameters(&mut errors, class);
    let policy = text(class, "reclaimPolicy");
    check::required_one_of(&mut errors, &Path::root("reclaimPolicy"), policy, &["Delete", "Retain"]);
    let (mode, modes) = (text(class, "volumeBindingMode"), ["Immediate", "WaitForFirstConsumer"]);
    check::required_one_of(&mut errors, &Path::root("volumeBindingMode"), mode, &modes);
    let topologies = Path::root("allowedTopologies");
    for (i, term) in list(class, "allowedTopologies").iter().enumerate() {
        validate_topology(&mut errors, &topologies.index(i), term);
    }
    errors
}

fn validate_topology(errors: &mut Errors, path: &Path<'_>, term: &Value) {
    let base = path.field("matchLabelExpressions");
    let expressions = list(term, "matchLabelExpressions");
    let mut seen = HashSet::new();
    for (i, one) in expressions.iter().enumerate() {
        let path = base.index(i);
        let (key, values) = (text(one, "key"), list(one, "values"));
        check::qualified(errors, &path.field("key"), key);
        if !seen.insert(key) {
            errors.push(field::duplicate(&path.field("key"), key));
        }
        let values_path = path.field("values");
        if values.is_empty() {
            errors.push(field::required(&values_path, ""));
        }
        let mut known = HashSet::new();
        for (j, value) in values.iter().enumerate().filter(|(_, v)| !known.insert(v.as_str())) {
            errors.push(field::duplicate(&values_path.index(j), value.clone()));
        }
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for key in ["provisioner", "volumeBindingMode"] {
        if new.get(key) != old.get(key) {
            errors.push(field::invalid(key, text(new, key), check::IMMUTABLE));
        }
    }
    for key in ["parameters", "reclaimPolicy"] {
        if new.get(key) != old.get(key) {
            errors.push(field::forbidden(key, format!("updates to {key} are forbidden.")));
        }
    }
    errors
}
