//! Namespace.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use super::podsecurity;
use crate::base::json::{at, list, map_mut, remove, set, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{
    BUILTIN, Column, Field, Kind, KindRef, NameRule, Strategy, Subresource, UpdateStrategy, keep_all_but,
};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    subresources: &[Subresource::Finalize, Subresource::Status],
    has_status: true,
    name_rule: NameRule::DnsLabel,
    schema: "io.k8s.api.core.v1.Namespace",
    columns: COLUMNS,
    row,
    fields: &[Field { name: "status.phase", get: |n| text(n, "status.phase").into() }],
    strategy: Strategy {
        default,
        prepare_create,
        prepare_update,
        validate,
        validate_status,
        subresources: &[(
            Subresource::Finalize,
            UpdateStrategy {
                prepare: |new, old| keep_all_but(new, old, &["spec", "metadata"]),
                validate: validate_finalize,
                tracked: true,
            },
        )],
        creates_status: true,
        is_held: |namespace| !list(namespace, "spec.finalizers").is_empty(),
        prepare_deletion,
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"sample"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[table::NAME, string("Status", "The phase of its life."), table::AGE];
/// Holds a namespace until what is in it is gone.
const FINALIZER: &str = "kubernetes";

fn row(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![table::name(namespace), text(namespace, "status.phase").into(), table::age(namespace, now)]
}

fn default(namespace: &mut Value) {
    let name = text(namespace, "metadata.name").to_owned();
    if !name.is_empty() {
        map_mut(namespace, "metadata.labels").insert("kubernetes.io/metadata.name".into(), name.into());
    }
    if text(namespace, "status.phase").is_empty() {
        set(namespace, "status.phase", "Active");
    }
}

fn prepare_create(namespace: &mut Value) {
    set(namespace, "status", json!({"phase": "Active"}));
    let finalizers = map_mut(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == FINALIZER)
    {
        list.push(FINALIZER.into());
    }
}

/// Finalizers change only through their subresource.
fn prepare_update(new: &mut Value, old: &Value) {
    match at(old, "spec.finalizers") {
        Some(finalizers) => set(new, "spec.finalizers", finalizers.clone()),
        None => {
            map_mut(new, "spec").remove("finalizers");
        }
    }
}

/// An ending namespace says so; it has no period of grace.
fn prepare_deletion(namespace: &mut Value) {
    set(namespace, "status.phase", "Terminating");
    remove(namespace, "metadata.deletionGracePeriodSeconds");
}

fn finalizer_error(name: &str) -> Option<String> {
    if let Some(why) = crate::base::labels::label_key_error(name) {
        return Some(why);
    }
    (!name.contains('/') && name != FINALIZER)
        .then(|| "name is neither a standard finalizer name nor is it fully qualified".into())
}

fn validate(namespace: &Value) -> Errors {
    let names = list(namespace, "spec.finalizers").iter().filter_map(Value::as_str);
    let wrong = names.filter_map(|n| Some(field::invalid("spec.finalizers", n, finalizer_error(n)?)));
    wrong.chain(podsecurity::validate_labels(namespace)).collect()
}

fn validate_finalize(new: &Value, _old: &Value) -> Errors {
    let path = Path::root("spec.finalizers");
    let names = list(new, "spec.finalizers").iter().enumerate();
    names
        .filter_map(|(i, n)| {
            let name = n.as_str().unwrap_or("");
            Some(field::invalid(&path.index(i), name, finalizer_error(name)?))
        })
        .collect()
}

fn validate_status(new: &Value, _old: &Value) -> Errors {
    let phase = text(new, "status.phase");
    let ending = at(new, "metadata.deletionTimestamp").is_some_and(|t| !t.is_null());
    let (fine, why) = if ending {
        (phase == "Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
    } else {
        (phase == "Active", "may only be 'Active' if `deletionTimestamp` is empty")
    };
    if fine { Errors::new() } else { [field::invalid("status.Phase", phase, why)].into() }
}
