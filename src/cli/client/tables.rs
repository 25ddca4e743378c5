//! The server's tables as text.

use serde_json::Value;

/// Blanks between columns.
const GAP: usize = 3;

/// Several tables of one kind as one.
pub(super) fn joined(tables: Vec<Value>) -> Value {
    let mut tables = tables.into_iter();
    let mut first = tables.next().unwrap_or_default();
    for table in tables {
        if let (Some(rows), Some(more)) = (first["rows"].as_array_mut(), table["rows"].as_array()) {
            rows.extend(more.iter().cloned());
        }
    }
    first
}

/// A head line and a line per row; `wide` shows the less important columns too, and `prefix` comes before names.
pub(super) fn lines(table: &Value, wide: bool, with_namespace: bool, prefix: &str) -> Vec<String> {
    let columns = table["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let shown: Vec<usize> =
        (0..columns.len()).filter(|i| wide || columns[*i]["priority"].as_i64() == Some(0)).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let head = shown.iter().map(|i| columns[*i]["name"].as_str().unwrap_or_default().to_uppercase());
    rows.push(with_namespace.then(|| "NAMESPACE".to_owned()).into_iter().chain(head).collect());
    for row in table["rows"].as_array().into_iter().flatten() {
        let namespace = row["object"]["metadata"]["namespace"].as_str().unwrap_or_default();
        let is_name = |i: usize| columns[i]["format"] == "name";
        let cells = shown.iter().map(|i| {
            let cell = cell(&row["cells"][*i]);
            if is_name(*i) { format!("{prefix}{cell}") } else { cell }
        });
        rows.push(with_namespace.then(|| namespace.to_owned()).into_iter().chain(cells).collect());
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(text, width)| format!("{text:<0$}", width + GAP));
        padded.collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.lines().next().unwrap_or_default().to_owned(),
        Value::Null => "<none>".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_line_up() {
        let table = json!({
            "columnDefinitions": [{"name": "Name", "format": "name", "priority": 0}, {"name": "Restarts", "priority": 0}, {"name": "Node", "priority": 1}],
            "rows": [{"cells": ["a", 0, "n"], "object": {"metadata": {"namespace": "x"}}}, {"cells": ["long-name", 10, null]}],
        });
        assert_eq!(lines(&table, false, false, ""), ["NAME        RESTARTS", "a           0", "long-name   10"]);
        assert_eq!(lines(&table, true, true, "")[1], "x           a           0          n");
        assert_eq!(lines(&joined(vec![table.clone(), table.clone()]), false, false, "").len(), 5);
        assert_eq!(lines(&table, false, false, "pod/")[1], "pod/a           0");
    }
}
