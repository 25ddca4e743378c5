//! `metav1.Condition`, the form of conditions in newer kinds.

use std::collections::HashSet;

use serde_json::Value;

use super::Path;
use crate::base::json::text;
use crate::kinds::field::{self, Errors};

const REASON_BYTES: usize = 1024;
const MESSAGE_BYTES: usize = 32 << 10;

/// A list of conditions: each type once, each with a status, a time and a reason in one word.
pub fn conditions(errors: &mut Errors, path: &Path<'_>, conditions: &[Value]) {
    let mut seen = HashSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let of_type = text(condition, "type");
        if !seen.insert(of_type) {
            errors.push(field::duplicate(&path.field("type"), of_type));
        }
        super::qualified(errors, &path.field("type"), of_type);
        let status = text(condition, "status");
        if !matches!(status, "True" | "False" | "Unknown") {
            errors.push(field::not_supported(&path.field("status"), status, &["False", "True", "Unknown"]));
        }
        super::non_negative(errors, &path.field("observedGeneration"), condition.get("observedGeneration"));
        if condition.get("lastTransitionTime").is_none_or(Value::is_null) {
            errors.push(field::required(&path.field("lastTransitionTime"), "must be set"));
        }
        let (reason, reason_path) = (text(condition, "reason"), path.field("reason"));
        if reason.is_empty() {
            errors.push(field::required(&reason_path, "must be set"));
        } else if reason.len() > REASON_BYTES {
            errors.push(field::too_long(&reason_path, REASON_BYTES));
        } else if !is_reason(reason) {
            let why = "a condition reason must start with alphabetic character, optionally followed by a string of \
                       alphanumeric characters or '_,:', and must end with an alphanumeric character or '_'";
            errors.push(field::invalid(&reason_path, reason, why));
        }
        if text(condition, "message").len() > MESSAGE_BYTES {
            errors.push(field::too_long(&path.field("message"), MESSAGE_BYTES));
        }
    }
}

/// `[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?`
fn is_reason(reason: &str) -> bool {
    reason.starts_with(|c: char| c.is_ascii_alphabetic())
        && reason.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && reason.bytes().all(|b| b.is_ascii_alphanumeric() || b"_,:".contains(&b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_condition_has_a_type_a_status_a_time_and_a_reason() {
        let fine =
            json!({"type": "a.b/C", "status": "True", "reason": "It_is", "lastTransitionTime": "t", "message": ""});
        let check = |list: &[Value]| {
            let mut errors = Errors::new();
            conditions(&mut errors, &Path::root("c"), list);
            errors.iter().map(|e| e.field.clone()).collect::<Vec<_>>()
        };
        assert!(check(std::slice::from_ref(&fine)).is_empty());
        assert_eq!(check(&[fine.clone(), fine.clone()]), ["c[1].type"]);
        let empty = check(&[json!({})]);
        assert_eq!(empty, ["c[0].type", "c[0].status", "c[0].lastTransitionTime", "c[0].reason"]);
        for reason in ["a b", "1a", "a:"] {
            let mut wrong = fine.clone();
            wrong["reason"] = reason.into();
            assert_eq!(check(&[wrong]), ["c[0].reason"], "{reason}");
        }
    }
}
