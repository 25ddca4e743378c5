//! Lists whose items must differ (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype`).

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};
use crate::schema::structural::{ListOf, Structural};

/// Errors of every list in an object that is a set or a map.
pub(super) fn validate(of: &Structural, value: &Value) -> Errors {
    let mut errors = Errors::new();
    walk(None, of, value, &mut errors);
    errors
}

fn walk(path: Option<&Path<'_>>, of: &Structural, value: &Value, errors: &mut Errors) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let Some(of) = of.member(name) else { continue };
                let here = match path {
                    Some(path) => path.field(name),
                    None => Path::root(name),
                };
                walk(Some(&here), of, member, errors);
            }
        }
        Value::Array(items) => {
            let Some(path) = path else { return };
            match &of.list {
                ListOf::Set => repeated(path, items.iter().map(Value::to_string), errors, |i| items[i].clone()),
                ListOf::Map(keys) if items.iter().all(|i| i.is_object() || i.is_null()) => {
                    let key = |item: &Value| -> Map<String, Value> {
                        keys.iter().filter_map(|k| Some((k.to_string(), item.get(&**k)?.clone()))).collect()
                    };
                    let texts = items.iter().map(|item| Value::Object(key(item)).to_string());
                    repeated(path, texts, errors, |i| Value::Object(key(&items[i])));
                }
                ListOf::Map(_) | ListOf::Atomic => {}
            }
            if let Some(of) = &of.items {
                for (i, item) in items.iter().enumerate() {
                    walk(Some(&path.index(i)), of, item, errors);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// An error for each item that is there already.
fn repeated(path: &Path<'_>, texts: impl Iterator<Item = String>, errors: &mut Errors, shown: impl Fn(usize) -> Value) {
    let mut seen = HashSet::new();
    for (i, text) in texts.enumerate() {
        if !seen.insert(text) {
            errors.push(field::duplicate(path.index(i), shown(i)));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_twice_is_named_at_its_second_place() {
        let items = json!({"type": "object", "properties": {"k": {"type": "integer"}, "p": {"type": "string"}}});
        let schema = json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "p"], "items": items},
            "a": {"type": "array", "items": {"type": "string"}},
        }});
        let value = json!({"s": ["a", "b", "a", "b"], "a": ["x", "x"],
            "m": [{"k": 1, "p": "x"}, {"k": 1}, {"k": 1, "p": "x"}, {"k": 1}]});
        let found = validate(&Structural::parse(&schema), &value);
        let fields: Vec<&str> = found.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["m[2]", "m[3]", "s[2]", "s[3]"]);
    }
}
