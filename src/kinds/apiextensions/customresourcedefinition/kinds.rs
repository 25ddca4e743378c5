//! The kinds that come of a definition: one for each version that is served.

use std::sync::Arc;

use serde_json::Value;

use super::condition::is_true;
use super::schema;
use crate::base::json::{at, flag, list, text};
use crate::kinds::custom::{CustomColumn, CustomKind, ScalePaths, definition_name};
use crate::kinds::version::version_rank;
use crate::kinds::{KindRef, Subresource};
use crate::schema::{CustomNames, Schema, StructuralError};

/// One of these must hold for a definition's kinds to be served.
pub const SERVED_CONDITIONS: [&str; 2] = ["NamesAccepted", "Established"];

/// The kinds of a definition, the one that is stored first even where it is not served: `false` beside it then. None as
/// long as its names are not accepted: its plural name, which it is named after, is no other's.
///
/// Versions that are not served are not among them, but each kind knows them all: objects may be stored in their form.
pub fn kinds(definition: &Value) -> Result<Vec<(KindRef, bool)>, StructuralError> {
    let accepted = |key: &str| text(definition, &format!("status.acceptedNames.{key}"));
    let is_named = accepted("plural") == text(definition, "spec.names.plural") && !accepted("kind").is_empty();
    if !is_named || !SERVED_CONDITIONS.iter().any(|c| is_true(definition, c)) {
        return Ok(Vec::new());
    }
    let versions = list(definition, "spec.versions");
    let Some(stored) = versions.iter().find(|v| flag(v, "storage")) else { return Ok(Vec::new()) };
    let fields = selectable_paths(versions);
    let others = versions.iter().filter(|v| !flag(v, "storage"));
    let ordered: Vec<&Value> = [stored].into_iter().chain(others).collect();
    let described = ordered.iter().map(|version| kind(definition, version, &fields)).collect::<Result<_, _>>()?;
    let kinds = KindRef::versions(described).into_iter().zip(ordered.into_iter().map(|v| flag(v, "served")));
    Ok(kinds.enumerate().filter(|(i, (_, served))| *i == 0 || *served).map(|(_, kind)| kind).collect())
}

/// The fields that some version can select, each once.
fn selectable_paths(versions: &[Value]) -> Arc<[Box<str>]> {
    let mut all: Vec<Box<str>> = Vec::new();
    for path in versions.iter().flat_map(paths_of) {
        if !all.iter().any(|known| **known == *path) {
            all.push(path.into());
        }
    }
    all.into()
}

fn paths_of(version: &Value) -> impl Iterator<Item = &str> {
    list(version, "selectableFields").iter().map(|f| text(f, "jsonPath").trim_start_matches('.'))
}

fn kind(definition: &Value, version: &Value, fields: &Arc<[Box<str>]>) -> Result<CustomKind, StructuralError> {
    let (group, name) = (text(definition, "spec.group"), text(version, "name"));
    let names = at(definition, "status.acceptedNames").unwrap_or(&Value::Null);
    let kind = text(names, "kind");
    let none = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let openapi = at(version, "schema.openAPIV3Schema").unwrap_or(&none);
    let of_definition = definition_name(group, name, kind);
    let named = CustomNames { definition: &of_definition, group, version: name, kind };
    let made = Arc::new(Schema::custom(&named, openapi)?);
    let words = |key: &str| list(names, key).iter().filter_map(|w| w.as_str().map(str::to_owned)).collect();
    let scale = at(version, "subresources.scale").map(ScalePaths::parse);
    let has_status = at(version, "subresources.status").is_some_and(Value::is_object);
    let subresources = [(has_status, Subresource::Status), (scale.is_some(), Subresource::Scale)];
    let position = |path: &str| fields.iter().position(|known| **known == *path);
    let compressed = zstd::encode_all(openapi.to_string().as_bytes(), 3).unwrap_or_default();
    Ok(CustomKind {
        group: group.into(),
        version: name.into(),
        kind: kind.into(),
        list_kind: text(names, "listKind").into(),
        plural: text(names, "plural").into(),
        singular: text(names, "singular").into(),
        short_names: words("shortNames"),
        categories: words("categories"),
        namespaced: text(definition, "spec.scope") == "Namespaced",
        subresources: subresources.into_iter().filter(|(has, _)| *has).map(|(_, sub)| sub).collect(),
        columns: CustomColumn::parse_all(list(version, "additionalPrinterColumns")),
        fields: fields.clone(),
        selectable: paths_of(version).filter_map(position).collect(),
        scale,
        deprecation: deprecation(definition, version),
        converted_by_webhook: text(definition, "spec.conversion.strategy") == "Webhook",
        definition_uid: text(definition, "metadata.uid").into(),
        openapi: compressed.into(),
        has_rules: schema::has_rules(openapi),
        ..CustomKind::bare(made)
    })
}

/// What whoever uses a version is told that is on its way out.
fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    if !flag(version, "deprecated") {
        return None;
    }
    if let Some(given) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(given.to_owned());
    }
    let (group, kind) = (text(definition, "spec.group"), text(definition, "spec.names.kind"));
    let name = text(version, "name");
    let mut newer: Vec<&str> = list(definition, "spec.versions")
        .iter()
        .filter(|v| flag(v, "served") && !flag(v, "deprecated"))
        .map(|v| text(v, "name"))
        .filter(|n| version_rank(n) > version_rank(name))
        .collect();
    newer.sort_by_key(|n| version_rank(n));
    let hint = newer.last().map_or_else(String::new, |n| format!("; use {group}/{n} {kind}"));
    Some(format!("{group}/{name} {kind} is deprecated{hint}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(conversion: &str) -> Value {
        let version = |name: &str, served: bool, storage: bool| {
            json!({"name": name, "served": served, "storage": storage, "selectableFields": [{"jsonPath": ".spec.a"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}}}}}}})
        };
        json!({
            "spec": {"group": "example.com", "scope": "Namespaced", "conversion": {"strategy": conversion},
                "names": {"kind": "Foo", "plural": "foos"},
                "versions": [version("v1beta1", true, false), version("v1", true, true), version("v1alpha1", false, false)]},
            "status": {"acceptedNames": {"kind": "Foo", "plural": "foos", "singular": "foo", "listKind": "FooList"},
                "conditions": [{"type": "NamesAccepted", "status": "True"}]},
        })
    }

    #[test]
    fn each_served_version_is_a_kind_and_one_is_stored() {
        let all = kinds(&definition("None")).unwrap();
        let named: Vec<(&str, bool)> = all.iter().map(|(k, served)| (k.version(), *served)).collect();
        assert_eq!(named, [("v1", true), ("v1beta1", true)]);
        assert!(all[0].0.owns_storage() && !all[1].0.owns_storage() && all[1].0.stored() == &all[0].0);
        assert_eq!(all[1].0.field_index("spec.a"), Some(0));
        assert_eq!(&*all[0].0.field_values(&json!({"spec": {"a": "x"}}))[0], "x");
        let old = all[0].0.in_version("v1alpha1").unwrap();
        assert_eq!((old.version(), old.stored(), all[1].0.in_version("v2")), ("v1alpha1", &all[0].0, None));
        let asked = kinds(&definition("Webhook")).unwrap();
        assert!(asked.len() == 2 && asked.iter().all(|(kind, _)| kind.is_converted_by_webhook()));
        let mut unknown = definition("None");
        unknown["status"]["conditions"] = Value::Null;
        assert!(kinds(&unknown).unwrap().is_empty());
    }
}
