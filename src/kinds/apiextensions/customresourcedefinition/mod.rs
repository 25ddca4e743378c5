//! CustomResourceDefinition: the names, versions and schemas of a kind that the server serves from then on.
//!
//! The kind's own file has what the object is; which kinds come of it is in [`kinds`], who accepts its names and serves
//! them in `api::definitions`, and a controller deletes what there is of a kind before its definition goes.

mod condition;
mod conversion;
mod expressions;
mod kinds;
mod lists;
mod rules;
mod schema;
mod validate;

pub use condition::{condition, is_true};
pub use kinds::{SERVED_CONDITIONS, kinds};

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::{Value, json};

use crate::base::json::{at, flag, list, list_mut, set, set_default, text};
use crate::kinds::{BUILTIN, Column, Generation, Kind, KindRef, Strategy, Subresource, table};

/// What holds a definition until nothing of its kind is left.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    has_status: true,
    generation: Generation::Spec,
    schema: "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
    columns: COLUMNS,
    row,
    unconditional_update: false,
    strategy: Strategy {
        default,
        prepare_create: |definition| {
            let stored: Vec<&str> = storage_version(definition).into_iter().collect();
            let stored = json!(stored);
            let status =
                json!({"acceptedNames": {"kind": "", "plural": ""}, "conditions": null, "storedVersions": stored});
            set(definition, "status", status);
        },
        prepare_update: |definition, _| note_storage_version(definition),
        validate: validate::definition,
        validate_create: validate::new,
        validate_update: validate::update,
        validate_status: validate::status,
        warnings: validate::warnings,
        deletion_finalizer: Some(CLEANUP),
        prepare_deletion: |definition| {
            let since = text(definition, "metadata.deletionTimestamp").to_owned();
            let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
            if condition(definition, "Terminating").is_none() {
                set_condition(definition, "Terminating", (true, "InstanceDeletionPending", message), &since);
            }
        },
        ..Strategy::BASE
    },
    sample: r#"{"metadata":{"name":"samples.example.com"},"spec":{"group":"example.com","scope":"Namespaced",
        "names":{"kind":"Sample","plural":"samples"},"versions":[{"name":"v1","served":true,"storage":true,
        "schema":{"openAPIV3Schema":{"type":"object"}}}]}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] =
    &[table::NAME, Column { kind: "date", ..table::string("Created At", table::AGE_DESCRIPTION) }];

fn row(definition: &Value, _: Timestamp) -> Vec<Value> {
    vec![table::name(definition), text(definition, "metadata.creationTimestamp").into()]
}

fn default(definition: &mut Value) {
    let kind = text(definition, "spec.names.kind").to_owned();
    if !kind.is_empty() {
        for (path, name) in
            [("spec.names.singular", kind.to_lowercase()), ("spec.names.listKind", format!("{kind}List"))]
        {
            if text(definition, path).is_empty() {
                set(definition, path, name);
            }
        }
    }
    if at(definition, "spec").is_some_and(Value::is_object) {
        set_default(definition, "spec.conversion", json!({"strategy": "None"}));
    }
    if at(definition, "spec.conversion.webhook.clientConfig.service").is_some_and(Value::is_object) {
        set_default(definition, "spec.conversion.webhook.clientConfig.service.port", 443);
    }
}

/// The name of the version in whose form objects are stored.
pub fn storage_version(definition: &Value) -> Option<&str> {
    let stored = list(definition, "spec.versions").iter().find(|v| flag(v, "storage"))?;
    Some(text(stored, "name"))
}

/// A version in which objects are stored from now on is noted: some of them are in its form.
fn note_storage_version(definition: &mut Value) {
    let Some(name) = storage_version(definition).map(str::to_owned) else { return };
    match list_mut(definition, "status.storedVersions") {
        Some(known) if known.iter().any(|v| *v == name.as_str()) => {}
        Some(known) => known.push(name.into()),
        None => set(definition, "status.storedVersions", json!([name])),
    }
}

/// Sets a condition: whether it holds, why and in which words. It keeps its time where it held before.
pub fn set_condition(definition: &mut Value, of_type: &str, (holds, reason, message): (bool, &str, &str), now: &str) {
    let status = if holds { "True" } else { "False" };
    let before = condition(definition, of_type).filter(|c| text(c, "status") == status);
    let since = before.map_or(now, |c| text(c, "lastTransitionTime")).to_owned();
    let new =
        json!({"type": of_type, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    if at(definition, "status.conditions").is_none_or(Value::is_null) {
        set(definition, "status.conditions", json!([]));
    }
    let Some(all) = list_mut(definition, "status.conditions") else { return };
    match all.iter_mut().find(|c| text(c, "type") == of_type) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_a_new_storage_version_is_noted() {
        let mut of = json!({"spec": {"names": {"kind": "Foo", "plural": "foos"}, "versions": [{"name": "v1", "storage": true}]}});
        default(&mut of);
        let names = json!({"kind": "Foo", "plural": "foos", "singular": "foo", "listKind": "FooList"});
        assert_eq!((&of["spec"]["names"], &of["spec"]["conversion"]), (&names, &json!({"strategy": "None"})));
        note_storage_version(&mut of);
        of["spec"]["versions"] = json!([{"name": "v1"}, {"name": "v2", "storage": true}]);
        note_storage_version(&mut of);
        note_storage_version(&mut of);
        assert_eq!(of["status"]["storedVersions"], json!(["v1", "v2"]));
    }

    #[test]
    fn a_condition_keeps_the_time_at_which_it_began() {
        let mut of = json!({"status": {"conditions": null}});
        set_condition(&mut of, "A", (true, "R", "m"), "t1");
        set_condition(&mut of, "A", (true, "S", "n"), "t2");
        assert_eq!(of["status"]["conditions"][0]["lastTransitionTime"], "t1");
        set_condition(&mut of, "A", (false, "S", "n"), "t3");
        assert_eq!(of["status"]["conditions"][0]["lastTransitionTime"], "t3");
        assert!(!is_true(&of, "A") && condition(&of, "B").is_none());
    }
}
