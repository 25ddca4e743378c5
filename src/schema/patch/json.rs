//! JSON patch (RFC 6902) with the leniencies Kubernetes' library has.
//!
//! `replace`, `copy` and `test` of a missing object member see null instead of failing, negative list indices count
//! from the end, and a path without its leading slash loses its first step.

use serde_json::Value;

use super::{PatchError, kind_of};

/// Most operations in one patch, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;

/// Applies the list of operations `patch`; null is no operation at all.
pub fn apply(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let operations = match patch {
        Value::Null => return Ok(()),
        Value::Array(operations) => operations,
        other => return Err(malformed(format!("a JSON patch is a list of operations, not {}", kind_of(other)))),
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
            operations.len()
        )));
    }
    let operations = operations.iter().map(Operation::read).collect::<Result<Vec<_>, _>>()?;
    operations.iter().try_for_each(|operation| operation.run(target))
}

fn malformed(message: String) -> PatchError {
    PatchError::BadRequest(format!("error decoding patch: {message}"))
}

fn unfit(message: String) -> PatchError {
    PatchError::Unprocessable(message)
}

struct Operation<'a> {
    op: &'a str,
    path: Option<&'a str>,
    from: Option<&'a str>,
    value: Option<&'a Value>,
}

// === impl Operation ===

impl<'a> Operation<'a> {
    fn read(value: &'a Value) -> Result<Operation<'a>, PatchError> {
        let map = match value {
            Value::Object(map) => Some(map),
            Value::Null => None,
            other => return Err(malformed(format!("an operation is an object, not {}", kind_of(other)))),
        };
        let text = |name: &str| match map.and_then(|m| m.get(name)) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(malformed(format!("`{name}` is a string, not {}", kind_of(other)))),
        };
        let (op, path, from) = (text("op")?.unwrap_or(""), text("path")?, text("from")?);
        Ok(Operation { op, path, from, value: map.and_then(|m| m.get("value")) })
    }

    fn run(&self, target: &mut Value) -> Result<(), PatchError> {
        if !matches!(self.op, "add" | "remove" | "replace" | "move" | "test" | "copy") {
            return Err(unfit(format!("Unexpected kind: {}", if self.op.is_empty() { "unknown" } else { self.op })));
        }
        let path = self.path.ok_or_else(|| unfit(format!("{} operation failed to decode path", self.op)))?;
        let value = || self.value.cloned().unwrap_or(Value::Null);
        match self.op {
            "add" => self.insert(target, path, value()),
            "remove" => self.remove(target, path).map(drop),
            "replace" if path.is_empty() => match self.value {
                Some(new @ (Value::Object(_) | Value::Array(_))) => {
                    *target = new.clone();
                    Ok(())
                }
                _ => Err(unfit("replace operation value must be object or array".into())),
            },
            "replace" => {
                let (parent, key) = self.parent(target, path)?;
                match parent {
                    Value::Array(items) => {
                        let at = index(&key, items.len()).ok_or_else(|| self.missing(path))?;
                        items[at] = value();
                    }
                    Value::Object(map) => drop(map.insert(key, value())),
                    _ => return Err(self.missing(path)),
                }
                Ok(())
            }
            "test" => {
                let found = if path.is_empty() { target.clone() } else { self.read_at(target, path)? };
                if same(&found, self.value.unwrap_or(&Value::Null)) {
                    return Ok(());
                }
                Err(unfit(format!("testing value {path} failed: test failed")))
            }
            _ => {
                let from = self.from.ok_or_else(|| unfit(format!("{} operation failed to decode from", self.op)))?;
                let moved = if self.op == "move" { self.remove(target, from)? } else { self.read_at(target, from)? };
                self.insert(target, path, moved)
            }
        }
    }

    fn missing(&self, path: &str) -> PatchError {
        unfit(format!("{} operation does not apply: doc is missing path: {path:?}: missing value", self.op))
    }

    /// The container that holds the path's last step, and that step.
    fn parent<'v>(&self, target: &'v mut Value, path: &str) -> Result<(&'v mut Value, String), PatchError> {
        let mut steps: Vec<&str> = path.split('/').collect();
        if steps.len() < 2 {
            return Err(self.missing(path));
        }
        let last = steps.pop().map(unescape).unwrap_or_default();
        let mut here = target;
        for step in &steps[1..] {
            let step = unescape(step);
            here = match here {
                Value::Object(map) => map.get_mut(&step),
                Value::Array(items) => index(&step, items.len()).map(|i| &mut items[i]),
                _ => None,
            }
            .ok_or_else(|| self.missing(path))?;
        }
        Ok((here, last))
    }

    /// A copy of what is there; null for a missing member of an object.
    fn read_at(&self, target: &mut Value, path: &str) -> Result<Value, PatchError> {
        let (parent, key) = self.parent(target, path)?;
        match parent {
            Value::Object(map) => Ok(map.get(&key).cloned().unwrap_or(Value::Null)),
            Value::Array(items) => index(&key, items.len()).map(|i| items[i].clone()).ok_or_else(|| self.missing(path)),
            _ => Err(self.missing(path)),
        }
    }

    fn insert(&self, target: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
        let (parent, key) = self.parent(target, path)?;
        match parent {
            Value::Object(map) => drop(map.insert(key, value)),
            Value::Array(items) if key == "-" => items.push(value),
            Value::Array(items) => {
                let at = index(&key, items.len() + 1).ok_or_else(|| self.missing(path))?;
                items.insert(at, value);
            }
            _ => return Err(self.missing(path)),
        }
        Ok(())
    }

    fn remove(&self, target: &mut Value, path: &str) -> Result<Value, PatchError> {
        let (parent, key) = self.parent(target, path)?;
        match parent {
            Value::Object(map) => map.remove(&key),
            Value::Array(items) => index(&key, items.len()).map(|i| items.remove(i)),
            _ => None,
        }
        .ok_or_else(|| {
            unfit(format!("error in remove for path: '{path}': Unable to remove nonexistent key: {key}: missing value"))
        })
    }
}

/// The place a step names in a list with `len` places.
fn index(step: &str, len: usize) -> Option<usize> {
    let number: i64 = step.parse().ok()?;
    let number = if number < 0 { number + i64::try_from(len).ok()? } else { number };
    usize::try_from(number).ok().filter(|i| *i < len)
}

fn unescape(step: &str) -> String {
    if step.contains('~') { step.replace("~1", "/").replace("~0", "~") } else { step.to_owned() }
}

/// Equality that does not tell 1 from 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn patched(mut doc: Value, patch: Value) -> Result<Value, u16> {
        apply(&mut doc, &patch).map_err(|e| e.code())?;
        Ok(doc)
    }

    #[test]
    fn operations_do_what_kubernetes_does() {
        let doc = || json!({"d": {"k": "v"}, "l": ["a", "b", "c"]});
        let cases = [
            (
                json!([{"op": "add", "path": "/d/n", "value": 1}]),
                Ok(json!({"d": {"k": "v", "n": 1}, "l": ["a", "b", "c"]})),
            ),
            (
                json!([{"op": "replace", "path": "/d/x", "value": 1}]),
                Ok(json!({"d": {"k": "v", "x": 1}, "l": ["a", "b", "c"]})),
            ),
            (json!([{"op": "remove", "path": "/d/x"}]), Err(422)),
            (
                json!([{"op": "move", "from": "/d/k", "path": "/d/m"}]),
                Ok(json!({"d": {"m": "v"}, "l": ["a", "b", "c"]})),
            ),
            (
                json!([{"op": "copy", "from": "/d/none", "path": "/d/m"}]),
                Ok(json!({"d": {"k": "v", "m": null}, "l": ["a", "b", "c"]})),
            ),
            (
                json!([{"op": "add", "path": "/l/1", "value": "x"}]),
                Ok(json!({"d": {"k": "v"}, "l": ["a", "x", "b", "c"]})),
            ),
            (
                json!([{"op": "add", "path": "/l/-1", "value": "x"}]),
                Ok(json!({"d": {"k": "v"}, "l": ["a", "b", "c", "x"]})),
            ),
            (
                json!([{"op": "add", "path": "/l/-", "value": "x"}]),
                Ok(json!({"d": {"k": "v"}, "l": ["a", "b", "c", "x"]})),
            ),
            (json!([{"op": "add", "path": "/l/9", "value": "x"}]), Err(422)),
            (json!([{"op": "remove", "path": "/l/-"}]), Err(422)),
            (json!([{"op": "remove", "path": "/l/-1"}]), Ok(json!({"d": {"k": "v"}, "l": ["a", "b"]}))),
            (json!([{"op": "test", "path": "/d/none", "value": null}]), Ok(doc())),
            (json!([{"op": "test", "path": "/d/k", "value": "w"}]), Err(422)),
            (json!([{"op": "replace", "path": "", "value": {"r": 1}}]), Ok(json!({"r": 1}))),
            (json!([{"op": "replace", "path": "", "value": 5}]), Err(422)),
            (json!([{"op": "remove", "path": ""}]), Err(422)),
            (json!([{"op": "frob", "path": "/d"}]), Err(422)),
            (json!([{}]), Err(422)),
            (json!([{"op": 5, "path": "/d"}]), Err(400)),
            (json!({"op": "add"}), Err(400)),
            (json!(["x"]), Err(400)),
            (json!(null), Ok(doc())),
            (
                json!([{"op": "add", "path": "skipped/k", "value": 1}]),
                Ok(json!({"d": {"k": "v"}, "k": 1, "l": ["a", "b", "c"]})),
            ),
            (json!([{"op": "add", "path": "/a/b", "value": 1}]), Err(422)),
            (
                json!([{"op": "replace", "path": "/d/k", "value": "a~1b"}, {"op": "add", "path": "/d/x~1y~0", "value": 0}]),
                Ok(json!({"d": {"k": "a~1b", "x/y~": 0}, "l": ["a", "b", "c"]})),
            ),
        ];
        for (patch, want) in cases {
            assert_eq!(patched(doc(), patch.clone()), want, "{patch}");
        }
    }

    proptest! {
        #[test]
        fn any_operation_ends_without_panic(op in 0usize..7, path in "(/(d|l|k|-|-1|0|3|~1|)){0,4}", from in "(/(d|l|k|0|2)){0,3}") {
            let names = ["add", "remove", "replace", "move", "copy", "test", ""];
            let patch = json!([{"op": names[op], "path": path, "from": from, "value": [1]}]);
            let _ = patched(json!({"d": {"k": "v"}, "l": ["a", {"k": 1}, "c"]}), patch);
        }

        #[test]
        fn add_then_remove_restores(key in "[a-z]{1,5}", value in any::<i64>()) {
            let doc = json!({"UPPER": 1});
            let patch = json!([{"op": "add", "path": format!("/{key}"), "value": value}, {"op": "remove", "path": format!("/{key}")}]);
            prop_assert_eq!(patched(doc.clone(), patch), Ok(doc));
        }
    }
}
