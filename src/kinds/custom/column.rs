//! Columns that a definition adds to the table of its objects.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use super::jsonpath::JsonPath;
use crate::base::budget::shortened;
use crate::base::json::text;
use crate::kinds::{Column, table};

/// A column whose cells are found by a path.
#[derive(Debug)]
pub struct CustomColumn {
    pub name: String,
    /// OpenAPI type: string, integer, number, boolean, date.
    pub kind: String,
    pub format: String,
    pub priority: i32,
    pub description: String,
    path: JsonPath,
}

/// What the cells of one row may still take together: paths may lead everywhere, and each column shows what it finds.
#[derive(Debug)]
pub struct RowLimits {
    looks: usize,
    bytes: usize,
}

impl Default for RowLimits {
    fn default() -> Self {
        Self { looks: 20_000, bytes: 1 << 20 }
    }
}

/// A writer that takes so many bytes and no more.
struct Begin(Vec<u8>, usize);

impl std::io::Write for Begin {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let taken = bytes.len().min(self.1 - self.0.len());
        self.0.extend_from_slice(&bytes[..taken]);
        // Nothing is taken of what is behind the end, which ends the writing.
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

// === impl CustomColumn ===

impl CustomColumn {
    /// What every kind shows that says nothing else.
    pub fn age() -> Self {
        let path = JsonPath::parse(".metadata.creationTimestamp").expect("a plain path");
        Self {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            priority: 0,
            description: table::AGE_DESCRIPTION.into(),
            path,
        }
    }

    /// The columns of a version; a path that cannot be read leaves the name alone.
    pub fn parse_all(columns: &[Value]) -> Vec<Self> {
        if columns.is_empty() {
            return vec![Self::age()];
        }
        columns.iter().map(Self::parse).collect::<Option<_>>().unwrap_or_default()
    }

    fn parse(column: &Value) -> Option<Self> {
        let path = text(column, "jsonPath");
        let described = text(column, "description");
        Some(Self {
            name: text(column, "name").to_owned(),
            kind: text(column, "type").to_owned(),
            format: text(column, "format").to_owned(),
            priority: column.get("priority").and_then(Value::as_i64).and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
            description: match described {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                described => described.to_owned(),
            },
            path: JsonPath::parse(path).ok()?,
        })
    }

    pub(in crate::kinds) fn column(&self) -> Column<'_> {
        Column {
            name: &self.name,
            kind: &self.kind,
            format: &self.format,
            priority: self.priority,
            description: &self.description,
        }
    }

    /// Its cell in the row of an object.
    pub(in crate::kinds) fn cell(&self, object: &Value, now: Timestamp, limits: &mut RowLimits) -> Value {
        let Some(found) = self.path.first(object, &mut limits.looks) else { return Value::Null };
        match (self.kind.as_str(), found) {
            ("string", Value::Null) => "<nil>".into(),
            ("string", Value::String(text)) => limits.text(shortened(text, limits.bytes)),
            ("string", other) => {
                let mut begin = Begin(Vec::new(), limits.bytes);
                let is_whole = serde_json::to_writer(&mut begin, other).is_ok();
                let text = String::from_utf8_lossy(&begin.0);
                limits.text(if is_whole { text } else { format!("{text}...").into() })
            }
            ("integer", Value::Number(n)) => {
                n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).map_or(Value::Null, Value::from)
            }
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
            ("date", Value::String(time)) => match crate::base::clock::parse_time(time) {
                Some(_) => table::since(time, now).into(),
                None => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

// === impl RowLimits ===

impl RowLimits {
    fn text(&mut self, text: Cow<'_, str>) -> Value {
        self.bytes = self.bytes.saturating_sub(text.len());
        Value::from(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_of_the_type_of_their_column_or_nothing() {
        let cell = |of_type: &str, path: &str, object: Value| {
            let column = json!({"name": "C", "type": of_type, "jsonPath": path});
            let (now, limits) = ("2026-01-01T01:00:00Z".parse().unwrap(), &mut RowLimits::default());
            CustomColumn::parse_all(&[column])[0].cell(&object, now, limits)
        };
        let object = json!({"s": "x", "n": 5, "f": 1.5, "b": true, "o": {"k": "v"}, "d": "2026-01-01T00:00:00Z"});
        assert_eq!(cell("string", ".s", object.clone()), "x");
        assert_eq!(cell("string", ".o", object.clone()), "{\"k\":\"v\"}");
        assert_eq!(cell("string", ".n", object.clone()), "5");
        assert_eq!(cell("integer", ".n", object.clone()), 5);
        assert_eq!(cell("integer", ".f", object.clone()), 1);
        assert_eq!(cell("integer", ".s", object.clone()), Value::Null);
        assert_eq!(cell("number", ".f", object.clone()), 1.5);
        assert_eq!(cell("boolean", ".b", object.clone()), true);
        assert_eq!(cell("date", ".d", object.clone()), "60m");
        assert_eq!(cell("date", ".s", object.clone()), "<invalid>");
        assert_eq!(cell("string", ".none.at.all", object), Value::Null);
        assert_eq!(CustomColumn::parse_all(&[])[0].name, "Age");
        assert!(CustomColumn::parse_all(&[json!({"name": "C", "type": "string", "jsonPath": ".a["})]).is_empty());
    }

    #[test]
    fn a_row_is_not_larger_for_every_column_that_shows_everything() {
        let object = json!({"a": "x".repeat(300_000), "l": vec![1; 300_000]});
        let columns: Vec<Value> = (0..100)
            .map(|i| json!({"name": "C", "type": "string", "jsonPath": if i % 2 == 0 { "." } else { ".a" }}))
            .collect();
        let mut limits = RowLimits::default();
        let now = Timestamp::UNIX_EPOCH;
        let row: Vec<Value> =
            CustomColumn::parse_all(&columns).iter().map(|c| c.cell(&object, now, &mut limits)).collect();
        let bytes: usize = row.iter().filter_map(Value::as_str).map(str::len).sum();
        assert!((1 << 20..(1 << 20) + 1000).contains(&bytes), "{bytes}");
        assert_eq!(row[0], serde_json::to_string(&object).unwrap());
    }
}
