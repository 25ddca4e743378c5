//! Manifests: files with one or several objects, as YAML or JSON.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::schema;

/// An object to be sent, with where it came from for messages.
#[derive(Debug)]
pub(super) struct Manifest {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub value: Value,
}

/// The objects of all files; `-` is standard input, and a directory stands for its manifests in order of their names.
pub(super) fn read_all(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for path in paths {
        for file in files(path)? {
            let text = read(&file)?;
            all.extend(parse(&text).with_context(|| file.display().to_string())?);
        }
    }
    if all.is_empty() {
        bail!("there is no object in what -f names");
    }
    Ok(all)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("-f: {} cannot be read", path.display()))?;
    let is_manifest = |p: &PathBuf| p.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
    let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(is_manifest).collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path).with_context(|| format!("-f: {} cannot be read", path.display()));
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("-f -: standard input cannot be read")?;
    Ok(text)
}

fn parse(text: &str) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for (index, document) in documents(text).into_iter().enumerate() {
        let (value, repeated) =
            schema::parse_yaml(document.as_bytes()).with_context(|| format!("document {}", index + 1))?;
        if let Some(path) = repeated.first() {
            bail!("document {}: {path} is there twice", index + 1);
        }
        if !value.is_null() {
            take(value, &mut all).with_context(|| format!("document {}", index + 1))?;
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
fn take(value: Value, all: &mut Vec<Manifest>) -> Result<()> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let kind = text("/kind").filter(|k| !k.is_empty()).context("kind is missing")?;
    let api_version = text("/apiVersion").filter(|v| !v.is_empty()).context("apiVersion is missing")?;
    if kind.ends_with("List")
        && let Some(items) = value["items"].as_array()
    {
        return items.iter().try_for_each(|item| take(item.clone(), all));
    }
    let name = text("/metadata/name").filter(|n| !n.is_empty());
    let name = name.with_context(|| format!("metadata.name of the {kind} is missing"))?;
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
        let said = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(said("apiVersion: v1\nmetadata: {}\n").contains("document 1: kind is missing"));
        assert!(said("---\napiVersion: v1\nkind: A\n").contains("document 2: metadata.name of the A is missing"));
        assert!(said("a: [").contains("document 1"));
    }
}
