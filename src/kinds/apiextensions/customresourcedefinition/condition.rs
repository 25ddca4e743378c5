//! Conditions of a definition.

use serde_json::Value;

use crate::base::json::{list, text};

/// The condition of this type.
pub fn condition<'d>(definition: &'d Value, of_type: &str) -> Option<&'d Value> {
    list(definition, "status.conditions").iter().find(|c| text(c, "type") == of_type)
}

/// Whether the condition of this type holds.
pub fn is_true(definition: &Value, of_type: &str) -> bool {
    condition(definition, of_type).is_some_and(|c| text(c, "status") == "True")
}
