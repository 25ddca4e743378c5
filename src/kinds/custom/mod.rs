//! Kinds that are defined while the server runs.
//!
//! Everything about their objects follows from the definition: what decoding keeps and what is left out is in the schema
//! (`schema::structural`), what they must be like in [`validate`], what is shown of them in [`column`].

mod column;
mod declare;
mod embedded;
pub mod jsonpath;
mod lists;
mod rule;
mod rules;
mod validate;

pub use column::{CustomColumn, RowLimits};
pub use declare::{declare, is_embedded};
pub use rule::{compile, field_path};
pub use rules::Rules;
pub use validate::check_default;

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::base::budget::{Budget, Exceeded};
use crate::base::json::{at, remove, set, text};
use crate::kinds::Subresource;
use crate::kinds::field::{self, Errors};
use crate::schema::structural::Structural;
use crate::schema::{Schema, TypeRef};

/// What there is to know of a custom kind: names, and a schema that drives everything else.
#[derive(Debug)]
pub struct CustomKind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Of these only [`Subresource::Status`] and [`Subresource::Scale`] can be.
    pub subresources: Vec<Subresource>,
    /// What its objects look like; has a type of the name [`CustomKind::definition`].
    pub schema: Arc<Schema>,
    /// What a table shows beside the name.
    pub columns: Vec<CustomColumn>,
    /// The fields that objects have values of beside them, each by its dotted path.
    pub fields: Arc<[Box<str>]>,
    /// How many of [`CustomKind::fields`], by index, may be selected in this version.
    pub selectable: Vec<usize>,
    pub scale: Option<ScalePaths>,
    /// What a client is told with every request: the version is on its way out.
    pub deprecation: Option<String>,
    /// Whether a webhook converts objects from one version to another.
    pub converted_by_webhook: bool,
    /// Of the definition that it came of; empty where there is none.
    pub definition_uid: String,
    /// The schema as the definition has it, for documents; JSON, compressed.
    pub openapi: Arc<[u8]>,
    /// Whether the schema has rules in CEL.
    pub has_rules: bool,
    /// Those rules, compiled when the first object is validated.
    pub rules: OnceLock<Option<Rules>>,
}

/// Where a Scale is in an object; paths are dotted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub label_selector: Option<String>,
}

// === impl CustomKind ===

impl CustomKind {
    /// A kind without anything that need not be, for struct update.
    pub fn bare(schema: Arc<Schema>) -> Self {
        Self {
            group: String::new(),
            version: String::new(),
            kind: String::new(),
            list_kind: String::new(),
            plural: String::new(),
            singular: String::new(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            subresources: Vec::new(),
            schema,
            columns: vec![CustomColumn::age()],
            fields: Arc::default(),
            selectable: Vec::new(),
            scale: None,
            deprecation: None,
            converted_by_webhook: false,
            definition_uid: String::new(),
            openapi: Arc::default(),
            has_rules: false,
            rules: OnceLock::new(),
        }
    }

    /// The name of its definition: the group backwards, the version and the kind.
    pub fn definition(&self) -> String {
        definition_name(&self.group, &self.version, &self.kind)
    }

    pub(super) fn type_ref(&self) -> TypeRef<'_> {
        self.schema.custom_type().expect("the schema was made for this kind")
    }

    fn tree(&self) -> &Structural {
        self.schema.structural().expect("the schema was made for a custom kind")
    }

    pub(super) fn has_status(&self) -> bool {
        self.subresources.contains(&Subresource::Status)
    }

    /// Fills in what was left out.
    pub(super) fn default(&self, value: &mut Value) -> Result<(), Exceeded> {
        self.tree().fill(value, &mut Budget::new())
    }

    /// Fills in what was left out of something that is stored, as far as `bytes` allow; how many it took.
    pub(super) fn default_within(&self, value: &mut Value, bytes: usize) -> Result<usize, Exceeded> {
        let mut budget = Budget::of_bytes(bytes);
        let before = budget.bytes();
        self.tree().fill(value, &mut budget)?;
        Ok(budget.bytes() - before)
    }

    /// Gives an object of another version of the kind this form: what this one does not describe goes.
    pub(super) fn prune(&self, value: &mut Value) {
        // It was within bounds before and only loses something.
        let _ = crate::schema::decode(value, &self.type_ref(), &mut Budget::new());
    }

    /// The values of [`CustomKind::fields`], and the version.
    pub(super) fn field_values(&self, value: &Value) -> Box<[Box<str>]> {
        let shown = |path: &str| match at(value, path) {
            Some(Value::String(text)) => text.as_str().into(),
            None | Some(Value::Null) => Box::from(""),
            Some(other) => other.to_string().into(),
        };
        self.fields.iter().map(|path| shown(path)).chain([self.version.as_str().into()]).collect()
    }

    /// Puts back everything but the status and who owns what of it.
    pub(super) fn prepare_status(&self, new: &mut Value, old: &Value) {
        let managed = at(new, "metadata.managedFields").cloned();
        if let Some(metadata) = old.get("metadata") {
            set(new, "metadata", metadata.clone());
        }
        match managed {
            Some(managed) => set(new, "metadata.managedFields", managed),
            None => drop(remove(new, "metadata.managedFields")),
        }
    }

    /// The rules of the schema, if it has any.
    fn rules(&self) -> Option<&Rules> {
        if !self.has_rules {
            return None;
        }
        let schema = || {
            let text = zstd::decode_all(&*self.openapi).ok()?;
            let schema: Value = serde_json::from_slice(&text).ok()?;
            Rules::parse(&schema)
        };
        self.rules.get_or_init(schema).as_ref()
    }

    /// What rules say of an object, unless it is wrong in a way that would make that hard to understand.
    fn apply_rules(&self, errors: &mut Errors, new: &Value, old: Option<&Value>) {
        let Some(rules) = self.rules() else { return };
        if errors.iter().any(|e| e.reason.hides_rules()) {
            let why = "some validation rules were not checked because the object was invalid; correct the existing \
                       errors to complete validation";
            errors.push(field::invalid("<nil>", Value::Null, why));
            return;
        }
        errors.append(&mut rules.validate(new, old));
    }

    /// Errors of a new object.
    pub(super) fn validate_create(&self, value: &Value) -> Errors {
        let tree = self.tree();
        let mut errors = validate::object(tree, value, None);
        self.validate_scale(value, true, &mut errors);
        embedded::validate_below(&mut errors, tree, value);
        errors.extend(lists::validate(tree, value));
        self.apply_rules(&mut errors, value, None);
        errors
    }

    /// Errors of a changed object; what was wrong before and did not change may stay.
    pub(super) fn validate_update(&self, new: &Value, old: &Value) -> Errors {
        let tree = self.tree();
        let mut errors = validate::object(tree, new, Some(old));
        self.validate_scale(new, true, &mut errors);
        embedded::validate_below(&mut errors, tree, new);
        if lists::validate(tree, old).is_empty() {
            errors.extend(lists::validate(tree, new));
        }
        self.apply_rules(&mut errors, new, Some(old));
        errors
    }

    /// Errors of a changed status.
    pub(super) fn validate_status(&self, new: &Value, old: &Value) -> Errors {
        let tree = self.tree();
        let mut errors = validate::status(tree, new, old);
        self.validate_scale(new, false, &mut errors);
        let repeated = lists::validate(tree, new);
        if !repeated.is_empty() && lists::validate(tree, old).is_empty() {
            errors.extend(repeated);
        }
        self.apply_rules(&mut errors, new, Some(old));
        errors
    }

    /// What the scale subresource reads must be there in a form that it can read.
    fn validate_scale(&self, value: &Value, spec: bool, errors: &mut Errors) {
        let Some(paths) = &self.scale else { return };
        let mut replicas = |path: &str| {
            let shown = format!(".{path}");
            match at(value, path) {
                None => {}
                Some(found) => match found.as_i64() {
                    None => errors.push(field::invalid(shown, found.clone(), "is of the wrong type, expected int64")),
                    Some(n) if n < 0 => errors.push(field::invalid(shown, n, "should be a non-negative integer")),
                    Some(n) if n > i64::from(i32::MAX) => {
                        let why = format!("should be less than or equal to {}", i32::MAX);
                        errors.push(field::invalid(shown, n, why));
                    }
                    Some(_) => {}
                },
            }
        };
        if spec {
            replicas(&paths.spec_replicas);
        }
        replicas(&paths.status_replicas);
        if let Some(path) = &paths.label_selector
            && let Some(found) = at(value, path).filter(|v| !v.is_string())
        {
            let why = "is of the wrong type, expected string";
            errors.push(field::invalid(format!(".{path}"), found.clone(), why));
        }
    }

    /// Finalizers that may be taken for somebody else's, and what rules say against what has not changed.
    pub(super) fn warnings(&self, value: &Value, old: Option<&Value>) -> Vec<String> {
        let names = |v: &Value| -> Vec<String> {
            let all = crate::base::json::list(v, "metadata.finalizers");
            all.iter().filter_map(|f| f.as_str().map(str::to_owned)).collect()
        };
        let before = old.map(names).unwrap_or_default();
        let mut added: Vec<String> = names(value).into_iter().filter(|f| !before.contains(f)).collect();
        added.sort();
        let is_plain = |name: &String| {
            !name.contains('/') && !matches!(name.as_str(), "orphan" | "foregroundDeletion" | "kubernetes")
        };
        let warning = |name: &String| {
            let path = if name.contains('.') { " including a path (/)" } else { "" };
            format!(
                "metadata.finalizers: {name:?}: prefer a domain-qualified finalizer name{path} to avoid accidental \
                 conflicts with other finalizer writers"
            )
        };
        let mut all: Vec<String> = added.iter().filter(|name| is_plain(name)).map(warning).collect();
        if let Some((rules, old)) = self.rules().zip(old) {
            all.extend(rules.validate_unchanged(value, old).iter().map(ToString::to_string));
        }
        all
    }
}

// === impl ScalePaths ===

impl ScalePaths {
    /// What a definition says of the scale subresource.
    pub fn parse(scale: &Value) -> Self {
        let path = |key: &str| text(scale, key).trim_start_matches('.').to_owned();
        Self {
            spec_replicas: path("specReplicasPath"),
            status_replicas: path("statusReplicasPath"),
            label_selector: Some(path("labelSelectorPath")).filter(|p| !p.is_empty()),
        }
    }
}

/// As Kubernetes names the definitions of custom kinds: `com.example.v1.Widget`. A group may be called so that one of
/// Kubernetes' own would have the name, which that one keeps.
pub fn definition_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<&str> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    let name = parts.join(".");
    if crate::schema::type_of(&name).is_some() { format!("{name}_v2") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_group_is_called_so_that_its_kinds_are_kubernetes_own() {
        assert_eq!(definition_name("example.com", "v1", "Widget"), "com.example.v1.Widget");
        assert_eq!(definition_name("core.api.k8s.io", "v1", "Pod"), "io.k8s.api.core.v1.Pod_v2");
        let name = definition_name("meta.apis.pkg.apimachinery.k8s.io", "v1", "ObjectMeta");
        let names = crate::schema::CustomNames { definition: &name, group: "x.y", version: "v1", kind: "ObjectMeta" };
        let openapi = serde_json::json!({"type": "object", "properties": {"mine": {"type": "string"}}});
        let schema = Schema::custom(&names, &openapi).unwrap();
        assert!(schema.custom_type().unwrap().child("mine").is_some());
    }
}
