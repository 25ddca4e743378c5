//! References to objects, and names that can stand in paths.

use serde_json::Value;

use crate::base::json::text;
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// A `CrossVersionObjectReference`.
pub(super) fn reference(errors: &mut Errors, path: &Path<'_>, reference: &Value) {
    for key in ["kind", "name"] {
        match text(reference, key) {
            "" => errors.push(field::required(path.field(key), "")),
            given => segment(errors, &path.field(key), given),
        }
    }
    let version = text(reference, "apiVersion");
    if version.matches('/').count() > 1 {
        errors.push(field::invalid(
            path.field("apiVersion"),
            version,
            format!("unexpected GroupVersion string: {version}"),
        ));
    }
}

/// A name that can stand in a path.
pub(super) fn segment(errors: &mut Errors, path: &Path<'_>, name: &str) {
    if matches!(name, "." | "..") {
        errors.push(field::invalid(path, name, format!("may not be '{name}'")));
    }
    for part in ["/", "%"].into_iter().filter(|part| name.contains(*part)) {
        errors.push(field::invalid(path, name, format!("may not contain '{part}'")));
    }
}
