//! What can be said of rules (`x-kubernetes-validations`) without evaluating them.

use serde_json::Value;

use crate::base::json::{list, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

const REASONS: [&str; 4] = ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];

/// Errors of the rules of a schema.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    let all = path.field("x-kubernetes-validations");
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let here = all.index(i);
        let given = |key: &str| text(rule, key);
        let breaks = |text: &str| text.trim().contains(['\n', '\r']);
        let (rule_text, message) = (given("rule"), given("message"));
        if rule_text.trim().is_empty() {
            errors.push(field::required(&here.field("rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            errors.push(field::invalid(&here.field("message"), message, "must be non-empty if specified"));
        } else if breaks(message) {
            errors.push(field::invalid(&here.field("message"), message, "must not contain line breaks"));
        } else if breaks(rule_text) && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            errors.push(field::required(&here.field("message"), why));
        }
        if !given("messageExpression").is_empty() && given("messageExpression").trim().is_empty() {
            let why = "messageExpression must be non-empty if specified";
            errors.push(field::required(&here.field("messageExpression"), why));
        }
        if let Some(reason) = rule.get("reason").and_then(Value::as_str).filter(|r| !REASONS.contains(r)) {
            errors.push(field::not_supported(&here.field("reason"), reason, &REASONS));
        }
        let field_path = given("fieldPath");
        if !field_path.is_empty() {
            let is_wrong = crate::kinds::custom::field_path(field_path, schema).is_none();
            if field_path.trim().is_empty() {
                errors.push(field::invalid(&here.field("fieldPath"), field_path, "must be non-empty if specified"));
            }
            if breaks(field_path) {
                errors.push(field::invalid(&here.field("fieldPath"), field_path, "must not contain line breaks"));
            }
            if is_wrong {
                errors.push(field::invalid(&here.field("fieldPath"), field_path, "must be a valid path"));
            }
        }
    }
}
