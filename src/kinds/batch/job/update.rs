//! What of a Job may change.

use serde_json::Value;

use super::template;
use crate::base::json::{at, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let field = |job: &Value, key: &str| job.get("spec").and_then(|s| s.get(key)).filter(|v| !v.is_null()).cloned();
    let (completions, was) = (field(new, "completions"), field(old, "completions"));
    if text(new, "spec.completionMode") != "Indexed" {
        check::immutable(&mut errors, &path.field("completions"), completions.as_ref(), was.as_ref());
    } else if completions != was && completions.is_some() && completions != field(new, "parallelism") {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(field::invalid(path.field("completions"), completions.unwrap_or_default(), why));
    }
    check::immutable(&mut errors, &path.field("selector"), at(new, "spec.selector"), at(old, "spec.selector"));
    template::validate(&mut errors, &path, new, old);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        check::immutable(&mut errors, &path.field(key), field(new, key).as_ref(), field(old, key).as_ref());
    }
    errors
}
