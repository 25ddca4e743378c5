//! Manifests: texts with one or several objects, as YAML or JSON.

use serde_json::Value;

use crate::base::budget::Budget;

/// An object as a manifest has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub value: Value,
}

/// What is wrong with a text.
#[derive(Debug, thiserror::Error)]
#[error("document {document}: {why}")]
pub struct Error {
    /// Counted from 1.
    pub document: usize,
    pub why: String,
}

/// The objects of a text, in their order.
pub fn parse(text: &str) -> Result<Vec<Manifest>, Error> {
    let mut all = Vec::new();
    for (index, document) in documents(text).into_iter().enumerate() {
        let wrong = |why: String| Error { document: index + 1, why };
        let (value, repeated) =
            super::parse_yaml(document.as_bytes(), &mut Budget::new()).map_err(|e| wrong(e.to_string()))?;
        if let Some(path) = repeated.first() {
            return Err(wrong(format!("{path} is there twice")));
        }
        if !value.is_null() {
            take(value, &mut all).map_err(wrong)?;
        }
    }
    Ok(all)
}

/// Splits at lines that begin with `---`.
fn documents(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("---") {
            Some(rest) if rest.is_empty() || rest.starts_with([' ', '\t', '#']) => all.push(format!("{rest}\n")),
            _ => {
                let last = all.last_mut().expect("never empty");
                last.push_str(line);
                last.push('\n');
            }
        }
    }
    all
}

/// One object, or those of a list.
fn take(value: Value, all: &mut Vec<Manifest>) -> Result<(), String> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").filter(|k| !k.is_empty()).ok_or("kind is missing")?;
    let api_version = text("/apiVersion").filter(|v| !v.is_empty()).ok_or("apiVersion is missing")?;
    if kind.ends_with("List")
        && let Some(items) = value["items"].as_array()
    {
        return items.iter().try_for_each(|item| take(item.clone(), all));
    }
    let name = text("/metadata/name").filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| format!("metadata.name of the {kind} is missing"))?;
    let namespace = text("/metadata/namespace").filter(|n| !n.is_empty());
    all.push(Manifest { api_version, kind, namespace, name, value });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        parse(text).unwrap().iter().map(|m| format!("{}/{}", m.kind, m.name)).collect()
    }

    #[test]
    fn several_documents_lists_and_json() {
        let text = "# first\napiVersion: v1\nkind: A\nmetadata: {name: a}\n--- # second\nkind: B\napiVersion: v1\n\
                    metadata:\n  name: b\n  annotations:\n    text: |\n      ---\n      x\n---\n---\n";
        assert_eq!(names(text), ["A/a", "B/b"]);
        let list = r#"{"kind": "List", "apiVersion": "v1", "items": [{"kind": "C", "apiVersion": "v1", "metadata": {"name": "c"}}]}"#;
        assert_eq!(names(list), ["C/c"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |text: &str| parse(text).unwrap_err().to_string();
        assert!(said("apiVersion: v1\nmetadata: {}\n").contains("document 1: kind is missing"));
        assert!(said("---\napiVersion: v1\nkind: A\n").contains("document 2: metadata.name of the A is missing"));
        assert!(said("a: [").contains("document 1"));
    }
}
