//! Why a value does not fit.

use serde_json::Value;

use crate::base::budget::Exceeded;

pub(super) enum What {
    /// JSON of this kind (with the number's text) where Go has that type.
    Type(String, &'static str),
    /// A scalar's own complaint.
    Text(String),
    /// It is too large.
    Limit(Exceeded),
}

/// JSON of the wrong kind for this Go type.
pub(super) fn wrong(value: &Value, go: &'static str) -> What {
    let kind = match value {
        Value::Number(n) => format!("number {n}"),
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    };
    // Go names the number only where its size or form is the trouble.
    let kind = if go.contains("int") { kind } else { kind.split(' ').next().unwrap_or("").to_owned() };
    What::Type(kind, go)
}
