//! Columns that a definition adds to the table of its objects.

use jiff::Timestamp;
use serde_json::Value;

use super::jsonpath::JsonPath;
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
    pub(in crate::kinds) fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(found) = self.path.first(object) else { return Value::Null };
        match (self.kind.as_str(), found) {
            ("string", Value::Null) => "<nil>".into(),
            ("string", Value::String(_)) => found.clone(),
            ("string", other) => other.to_string().into(),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_of_the_type_of_their_column_or_nothing() {
        let cell = |of_type: &str, path: &str, object: Value| {
            let column = json!({"name": "C", "type": of_type, "jsonPath": path});
            CustomColumn::parse_all(&[column])[0].cell(&object, "2026-01-01T01:00:00Z".parse().unwrap())
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
}
