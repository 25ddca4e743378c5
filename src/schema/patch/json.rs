//! JSON patch (RFC 6902) with the leniencies Kubernetes' library has.
//!
//! `replace`, `copy` and `test` of a missing object member see null instead of failing, negative list indices count
//! from the end, and a path without its leading slash loses its first step.

use serde_json::Value;

use super::{PatchError, kind_of};
use crate::base::budget::{Budget, STORED_BYTES_MAX, check_depth, size_of};

/// Most operations in one patch, as in Kubernetes.
const OPERATIONS_MAX: usize = 10_000;
/// How many items are moved in what counts as a step.
const ITEMS_A_STEP: usize = 16;

/// Applies the list of operations `patch`; null is no operation at all.
pub fn apply(target: &mut Value, patch: &Value, budget: &mut Budget) -> Result<(), PatchError> {
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
    let mut copied = 0;
    operations.iter().try_for_each(|operation| operation.run(target, budget, &mut copied))
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

    /// `copied` is how many bytes copies have added so far.
    fn run(&self, target: &mut Value, budget: &mut Budget, copied: &mut usize) -> Result<(), PatchError> {
        if !matches!(self.op, "add" | "remove" | "replace" | "move" | "test" | "copy") {
            return Err(unfit(format!("Unexpected kind: {}", if self.op.is_empty() { "unknown" } else { self.op })));
        }
        let path = self.path.ok_or_else(|| unfit(format!("{} operation failed to decode path", self.op)))?;
        budget.step(1)?;
        match self.op {
            "add" => self.insert(target, path, self.given(budget)?, budget),
            "remove" => self.remove(target, path, budget).map(drop),
            "replace" if path.is_empty() => match self.value {
                Some(Value::Object(_) | Value::Array(_)) => {
                    *target = self.given(budget)?;
                    Ok(())
                }
                _ => Err(unfit("replace operation value must be object or array".into())),
            },
            "replace" => {
                let value = self.given(budget)?;
                let (parent, key) = self.parent(target, path, budget)?;
                check_depth(path.matches('/').count(), size_of(&value).depth)?;
                match parent {
                    Value::Array(items) => {
                        let at = index(&key, items.len()).ok_or_else(|| self.missing(path))?;
                        items[at] = value;
                    }
                    Value::Object(map) => {
                        budget.member(map.len(), key.len())?;
                        map.insert(key, value);
                    }
                    _ => return Err(self.missing(path)),
                }
                Ok(())
            }
            "test" => {
                let found = if path.is_empty() { &*target } else { self.read_at(target, path, budget)? };
                let wanted = self.value.unwrap_or(&Value::Null);
                budget.step(size_of(wanted).nodes)?;
                if same(found, wanted) {
                    return Ok(());
                }
                Err(PatchError::FailedTest(format!("testing value {path} failed: test failed")))
            }
            _ => {
                let from = self.from.ok_or_else(|| unfit(format!("{} operation failed to decode from", self.op)))?;
                let moved = if self.op == "move" {
                    self.remove(target, from, budget)?
                } else {
                    let found = self.read_at(target, from, budget)?;
                    let size = size_of(found);
                    *copied += size.json;
                    if *copied > STORED_BYTES_MAX {
                        return Err(PatchError::TooLarge(format!(
                            "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding \
                             the limit {STORED_BYTES_MAX}"
                        )));
                    }
                    budget.copy(size)?;
                    found.clone()
                };
                self.insert(target, path, moved, budget)
            }
        }
    }

    /// A copy of the operation's value.
    fn given(&self, budget: &mut Budget) -> Result<Value, PatchError> {
        let Some(value) = self.value else { return Ok(Value::Null) };
        budget.copy(size_of(value))?;
        Ok(value.clone())
    }

    fn missing(&self, path: &str) -> PatchError {
        unfit(format!("{} operation does not apply: doc is missing path: {path:?}: missing value", self.op))
    }

    /// The container that holds the path's last step, and that step.
    fn parent<'v>(
        &self,
        target: &'v mut Value,
        path: &str,
        budget: &mut Budget,
    ) -> Result<(&'v mut Value, String), PatchError> {
        let mut steps = path.split('/').skip(1).peekable();
        let mut here = target;
        while let Some(step) = steps.next() {
            budget.step(1)?;
            let step = unescape(step);
            if steps.peek().is_none() {
                return Ok((here, step));
            }
            here = match here {
                Value::Object(map) => map.get_mut(&step),
                Value::Array(items) => index(&step, items.len()).map(|i| &mut items[i]),
                _ => None,
            }
            .ok_or_else(|| self.missing(path))?;
        }
        Err(self.missing(path))
    }

    /// What is there; null for a missing member of an object.
    fn read_at<'v>(&self, target: &'v mut Value, path: &str, budget: &mut Budget) -> Result<&'v Value, PatchError> {
        let (parent, key) = self.parent(target, path, budget)?;
        match parent {
            Value::Object(map) => Ok(map.get(&key).unwrap_or(&Value::Null)),
            Value::Array(items) => match index(&key, items.len()) {
                Some(at) => Ok(&items[at]),
                None => Err(self.missing(path)),
            },
            _ => Err(self.missing(path)),
        }
    }

    fn insert(&self, target: &mut Value, path: &str, value: Value, budget: &mut Budget) -> Result<(), PatchError> {
        let (parent, key) = self.parent(target, path, budget)?;
        // A value that comes from elsewhere in the object may be of any size.
        let size = size_of(&value);
        budget.step(size.nodes)?;
        check_depth(path.matches('/').count(), size.depth)?;
        match parent {
            Value::Object(map) => {
                budget.member(map.len(), key.len())?;
                map.insert(key, value);
            }
            Value::Array(items) if key == "-" => {
                budget.item()?;
                items.push(value);
            }
            Value::Array(items) => {
                let at = index(&key, items.len() + 1).ok_or_else(|| self.missing(path))?;
                budget.item()?;
                budget.step(((items.len() - at) / ITEMS_A_STEP) as u64)?;
                items.insert(at, value);
            }
            _ => return Err(self.missing(path)),
        }
        Ok(())
    }

    fn remove(&self, target: &mut Value, path: &str, budget: &mut Budget) -> Result<Value, PatchError> {
        let (parent, key) = self.parent(target, path, budget)?;
        match parent {
            Value::Object(map) => map.remove(&key),
            Value::Array(items) => match index(&key, items.len()) {
                Some(at) => {
                    budget.step(((items.len() - at) / ITEMS_A_STEP) as u64)?;
                    Some(items.remove(at))
                }
                None => None,
            },
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
        apply(&mut doc, &patch, &mut Budget::new()).map_err(|e| e.code())?;
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

    #[test]
    fn copies_that_double_end_at_the_limit() {
        let mut doc = json!({"data": {"a": "x".repeat(1000)}});
        let operations: Vec<Value> =
            (0..24).map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/c{i}")})).collect();
        let error = apply(&mut doc, &operations.into(), &mut Budget::new()).unwrap_err();
        assert_eq!((error.code(), error.reason()), (413, "RequestEntityTooLarge"));
        assert!(error.to_string().ends_with("exceeding the limit 3145728"), "{error}");
    }

    #[test]
    fn a_chain_of_copies_gets_no_deeper_than_a_body() {
        let mut operations = vec![json!({"op": "add", "path": "/d", "value": {"a": {}}})];
        let mut depth = 1;
        for _ in 0..14 {
            let path = format!("/d{}", "/a".repeat(depth));
            operations.push(json!({"op": "copy", "from": "/d", "path": path}));
            depth *= 2;
        }
        let error = apply(&mut json!({}), &operations.into(), &mut Budget::new()).unwrap_err();
        assert_eq!((error.code(), error.reason()), (422, "Invalid"));
        let moves = json!([
            {"op": "add", "path": "/d", "value": nested(100)}, {"op": "add", "path": "/e", "value": nested(100)},
            {"op": "move", "from": "/e", "path": format!("/d{}", "/a".repeat(90))},
        ]);
        assert_eq!(apply(&mut json!({}), &moves, &mut Budget::new()).unwrap_err().code(), 422);
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!({}), |inner, _| json!({"a": inner}))
    }

    #[test]
    fn operations_on_a_large_list_end_at_the_limit() {
        let doc = || json!({"l": vec![0; 300_000]});
        let many = |operation: Value| Value::from(vec![operation; 10_000]);
        for operation in [
            json!({"op": "add", "path": "/l/0", "value": 1}),
            json!({"op": "remove", "path": "/l/0"}),
            json!({"op": "move", "from": "/l", "path": "/l"}),
        ] {
            let error = apply(&mut doc(), &many(operation), &mut Budget::new()).unwrap_err();
            assert_eq!(error.code(), 413, "{error}");
        }
        let tests = vec![json!({"op": "test", "path": "", "value": doc()}); 20];
        assert_eq!(apply(&mut doc(), &tests.into(), &mut Budget::new()).unwrap_err().code(), 413);
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
