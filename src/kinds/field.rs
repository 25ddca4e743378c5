//! Validation errors with the path of the field, as in `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt::Write;

use serde_json::Value;

use crate::base::budget::shortened;

/// What is shown of a value that is wrong.
const SHOWN_BYTES_MAX: usize = 4096;
/// How long the list of what would be accepted may be.
const SUPPORTED_BYTES_MAX: usize = 16 << 10;

/// More errors are not kept: an object may have some for each of a hundred thousand labels, and nobody reads them.
const ERRORS_MAX: usize = 1000;

/// The errors of one validation, in the order found; the first thousand of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(Vec<Error>);

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub reason: Reason,
    /// `spec.containers[0].name`
    pub field: String,
    /// The offending value; `Null` where there is none to show.
    pub value: Value,
    /// What would be accepted.
    pub detail: String,
}

/// The kind of error, which clients see as the cause's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
    /// As `Invalid`, of a part that is not shown.
    InvalidUnshown,
}

// === impl Errors ===

impl Errors {
    /// None yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether more would not be kept: who looks further looks for nothing.
    pub fn is_full(&self) -> bool {
        self.0.len() >= ERRORS_MAX
    }

    /// One more.
    pub fn push(&mut self, error: Error) {
        if self.0.len() < ERRORS_MAX {
            self.0.push(error);
        }
    }

    /// Those of another validation, which are taken.
    pub fn append(&mut self, others: &mut Self) {
        self.extend(std::mem::take(others));
    }
}

impl std::ops::Deref for Errors {
    type Target = [Error];

    fn deref(&self) -> &[Error] {
        &self.0
    }
}

impl Extend<Error> for Errors {
    fn extend<I: IntoIterator<Item = Error>>(&mut self, errors: I) {
        let room = ERRORS_MAX - self.0.len();
        self.0.extend(errors.into_iter().take(room));
    }
}

impl FromIterator<Error> for Errors {
    fn from_iter<I: IntoIterator<Item = Error>>(errors: I) -> Self {
        let mut out = Self::new();
        out.extend(errors);
        out
    }
}

impl<const N: usize> From<[Error; N]> for Errors {
    fn from(errors: [Error; N]) -> Self {
        errors.into_iter().collect()
    }
}

impl IntoIterator for Errors {
    type Item = Error;
    type IntoIter = std::vec::IntoIter<Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'e> IntoIterator for &'e Errors {
    type Item = &'e Error;
    type IntoIter = std::slice::Iter<'e, Error>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

// === impl Reason ===

impl Reason {
    /// The machine-readable form in `details.causes[].reason`.
    pub fn cause(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid | Self::InvalidUnshown => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    /// Whether rules in CEL are not evaluated where this is wrong: they might say what nobody understands.
    pub fn hides_rules(self) -> bool {
        matches!(self, Self::NotSupported | Self::Required | Self::TooLong | Self::TooMany | Self::TypeInvalid)
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid | Self::InvalidUnshown => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

// === impl Error ===

impl Error {
    /// What the cause's message says: everything but the field.
    pub fn message(&self) -> String {
        let words = self.reason.words();
        let shown = match (&self.reason, &self.value) {
            (
                Reason::Required
                | Reason::Forbidden
                | Reason::TooLong
                | Reason::TooMany
                | Reason::Internal
                | Reason::InvalidUnshown,
                _,
            ) => words.to_owned(),
            (_, Value::Null) => format!("{words}: null"),
            (_, value) => format!("{words}: {}", shortened(&value.to_string(), SHOWN_BYTES_MAX)),
        };
        if self.detail.is_empty() { shown } else { format!("{shown}: {}", self.detail) }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message())
    }
}

/// A field that must be given is not.
pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Error {
    Error { reason: Reason::Required, field: field.into(), value: Value::Null, detail: detail.into() }
}

/// The value of a field is wrong.
pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Error {
    Error { reason: Reason::Invalid, field: field.into(), value: kept(value.into()), detail: detail.into() }
}

/// Something is wrong with a field that is too much to show.
pub fn invalid_unshown(field: impl Into<String>, detail: impl Into<String>) -> Error {
    Error { reason: Reason::InvalidUnshown, field: field.into(), value: Value::Null, detail: detail.into() }
}

/// The value is none of the supported ones.
pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Error {
    let mut detail = "supported values: ".to_owned();
    for (i, one) in supported.iter().enumerate() {
        if detail.len() + one.len() > SUPPORTED_BYTES_MAX {
            detail.push_str(", ...");
            break;
        }
        let _ = write!(detail, "{}{one:?}", if i > 0 { ", " } else { "" });
    }
    Error { reason: Reason::NotSupported, field: field.into(), value: kept(value.into()), detail }
}

/// The field may not be set (so).
pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Error {
    Error { reason: Reason::Forbidden, field: field.into(), value: Value::Null, detail: detail.into() }
}

/// The value stands twice where it must be unique.
pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Error {
    Error { reason: Reason::Duplicate, field: field.into(), value: kept(value.into()), detail: String::new() }
}

/// What the value refers to does not exist.
pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Error {
    Error { reason: Reason::NotFound, field: field.into(), value: kept(value.into()), detail: String::new() }
}

/// As much of a value as is shown: a thousand errors may be of one large value.
fn kept(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() <= SHOWN_BYTES_MAX => Value::String(text),
        Value::String(_) | Value::Array(_) | Value::Object(_) => begin_of(&value, &mut SHOWN_BYTES_MAX.clone()),
        scalar => scalar,
    }
}

/// A value whose text begins as that of this one; `left` is how many bytes of it are still wanted.
fn begin_of(value: &Value, left: &mut usize) -> Value {
    match value {
        Value::String(text) => {
            let bytes = (0..=text.len().min(*left)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            // The next character too: what is cut ends beyond what is shown.
            let bytes = bytes + text[bytes..].chars().next().map_or(0, char::len_utf8);
            *left = left.saturating_sub(bytes);
            text[..bytes].into()
        }
        Value::Array(items) => {
            let mut begun = Vec::new();
            for item in items {
                if *left == 0 {
                    break;
                }
                *left -= 1;
                begun.push(begin_of(item, left));
            }
            begun.into()
        }
        Value::Object(members) => {
            let mut begun = serde_json::Map::new();
            for (name, member) in members {
                if *left == 0 {
                    break;
                }
                *left = left.saturating_sub(1 + name.len());
                begun.insert(name.clone(), begin_of(member, left));
            }
            begun.into()
        }
        scalar => {
            *left = left.saturating_sub(1);
            scalar.clone()
        }
    }
}

/// The text is longer than `max` bytes.
pub fn too_long(field: impl Into<String>, max: usize) -> Error {
    let detail = format!("may not be more than {max} bytes");
    Error { reason: Reason::TooLong, field: field.into(), value: Value::Null, detail }
}

/// The list is longer than `max`.
pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Error {
    let detail = format!("must have at most {max} items");
    Error { reason: Reason::TooMany, field: field.into(), value: actual.into(), detail }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_large_value_is_kept_as_far_as_it_is_shown() {
        let text = "\u{e4}\"b".repeat(100_000);
        let many = json!({"list": vec![text.clone(); 3], "n": (0..10_000).collect::<Vec<_>>(), "z": true});
        for value in [text.clone().into(), many.clone(), json!([many, 1]), json!({"a": 1}), json!("short"), json!(5)] {
            let whole = format!("Invalid value: {}: why", shortened(&value.to_string(), SHOWN_BYTES_MAX));
            let error = invalid("a", value, "why");
            assert_eq!(error.message(), whole);
            assert!(error.value.to_string().len() < 3 * SHOWN_BYTES_MAX);
        }
        let supported: Vec<&str> = vec![&text; 1000];
        assert!(not_supported("a", "b", &supported).detail.len() < 2 * SUPPORTED_BYTES_MAX);
        assert_eq!(not_supported("a", "b", &["x", "y"]).detail, "supported values: \"x\", \"y\"");
    }
}
