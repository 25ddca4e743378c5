//! Objects in custom objects (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta`).

use serde_json::Value;

use crate::base::json::{at, text};
use crate::base::labels::dns_1035_error;
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::kinds::meta;
use crate::schema::structural::Structural;

/// Errors of the embedded objects below an object.
pub(super) fn validate_below(errors: &mut Errors, of: &Structural, value: &Value) {
    for (name, of) in &of.properties {
        if let Some(member) = value.get(&**name).filter(|_| name.as_ref() != "metadata") {
            walk(&Path::root(name), of, member, errors);
        }
    }
}

fn walk(path: &Path<'_>, of: &Structural, value: &Value, errors: &mut Errors) {
    if of.is_embedded && value.is_object() {
        validate(path, value, errors);
    }
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match (of.property(name), of.member(name)) {
                    (Some(of), _) => walk(&path.field(name), of, member, errors),
                    (None, Some(of)) => walk(&path.key(name), of, member, errors),
                    (None, None) => {}
                }
            }
        }
        Value::Array(items) => {
            let Some(of) = &of.items else { return };
            for (i, item) in items.iter().enumerate() {
                walk(&path.index(i), of, item, errors);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn validate(path: &Path<'_>, value: &Value, errors: &mut Errors) {
    let version_path = path.field("apiVersion");
    match value.get("apiVersion") {
        None => errors.push(field::required(&version_path, "")),
        Some(version) => match version.as_str().unwrap_or("") {
            "" => errors.push(field::invalid(&version_path, version.clone(), "must not be empty")),
            text if text.matches('/').count() > 1 => {
                let why = format!("unexpected GroupVersion string: {text}");
                errors.push(field::invalid(&version_path, text, why));
            }
            _ => {}
        },
    }
    let kind_path = path.field("kind");
    match value.get("kind") {
        None => errors.push(field::required(&kind_path, "")),
        Some(kind) => match kind.as_str().unwrap_or("") {
            "" => errors.push(field::invalid(&kind_path, kind.clone(), "must not be empty")),
            text => {
                if let Some(why) = dns_1035_error(&text.to_lowercase()) {
                    let why = format!("may have mixed case, but should otherwise match: {why}");
                    errors.push(field::invalid(&kind_path, text, why));
                }
            }
        },
    }
    if value.get("metadata").is_some_and(Value::is_object) {
        errors.extend(metadata(&path.to_string(), value));
    }
}

/// Errors of the metadata at a path; any path segment is a name.
fn metadata(path: &str, value: &Value) -> Errors {
    let mut errors = meta::validate_embedded(value);
    let name = text(value, "metadata.name");
    if let Some(why) = meta::name_error(crate::kinds::NameRule::PathSegment, name, false).filter(|_| !name.is_empty()) {
        errors.push(field::invalid("metadata.name", name, why));
    }
    if let Some(namespace) = at(value, "metadata.namespace").and_then(Value::as_str).filter(|n| !n.is_empty())
        && let Some(why) = crate::base::labels::dns_label_error(namespace)
    {
        errors.push(field::invalid("metadata.namespace", namespace, why));
    }
    let within = |error: field::Error| field::Error { field: format!("{path}.{}", error.field), ..error };
    errors.into_iter().map(within).collect()
}
