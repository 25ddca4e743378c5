//! What several sources of volumes are made of: items by key, fields of the pod, templates of claims.

use serde_json::Value;

use crate::base::json::{at, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::claim;
use crate::kinds::field::{self, Errors};

/// `items` of a volume made of keys.
pub(super) fn keys(errors: &mut Errors, path: &Path<'_>, items: &[Value]) {
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        check::given(errors, &path.field("key"), text(item, "key"));
        let file = text(item, "path");
        if check::given(errors, &path.field("path"), file) {
            check::relative_path_strict(errors, &path.field("path"), file);
        }
        check::file_mode(errors, &path.field("mode"), item.get("mode"));
    }
}

/// `items` of a downward API volume; errors stand at the volume, without the index.
pub(super) fn downward(errors: &mut Errors, path: &Path<'_>, items: &[Value]) {
    for item in items {
        let file = text(item, "path");
        if check::given(errors, &path.field("path"), file) {
            check::relative_path_strict(errors, &path.field("path"), file);
        }
        match (item.get("fieldRef"), item.get("resourceFieldRef")) {
            (Some(reference), other) => {
                crate::kinds::core::podspec::field_ref::field_ref(
                    errors,
                    &path.field("fieldRef"),
                    reference,
                    crate::kinds::core::podspec::field_ref::VOLUME_FIELDS,
                );
                if other.is_some() {
                    let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                    errors.push(field::invalid(path, "resource", why));
                }
            }
            (None, Some(reference)) => {
                crate::kinds::core::podspec::field_ref::resource_field_ref(
                    errors,
                    &path.field("resourceFieldRef"),
                    reference,
                    true,
                );
            }
            (None, None) => errors.push(field::required(path, "one of fieldRef and resourceFieldRef is required")),
        }
        check::file_mode(errors, &path.field("mode"), item.get("mode"));
    }
}

/// The claim template of an ephemeral volume.
pub(super) fn claim_template(errors: &mut Errors, path: &Path<'_>, template: &Value) {
    let metadata = template.get("metadata").and_then(Value::as_object);
    let meta_path = path.field("metadata");
    for (key, value) in metadata.into_iter().flatten() {
        let empty = value.is_null() || value.as_str() == Some("");
        if !matches!(key.as_str(), "labels" | "annotations") && !empty {
            errors.push(field::forbidden(&meta_path.field(key), "may not be set"));
        }
    }
    check::labels(errors, &meta_path.field("labels"), at(template, "metadata.labels"));
    check::annotations(errors, &meta_path.field("annotations"), at(template, "metadata.annotations"));
    claim::validate_spec(errors, &path.field("spec"), template.get("spec").unwrap_or(&Value::Null), false);
}
