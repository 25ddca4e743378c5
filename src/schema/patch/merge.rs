//! JSON merge patch (RFC 7386): objects merge, null deletes, everything else replaces.

use serde_json::{Map, Value};

use super::{PatchError, kind_of};
use crate::base::budget::{Budget, size_of};

/// Merges `patch`, which must be an object, into `target`.
pub fn apply(target: &mut Value, patch: &Value, budget: &mut Budget) -> Result<(), PatchError> {
    // All that it adds is copied from the patch, once and no deeper than it stands there.
    budget.copy(size_of(patch))?;
    let Value::Object(patch) = patch else {
        let got = kind_of(patch);
        return Err(PatchError::BadRequest(format!("error decoding patch: the patch must be an object, not {got}")));
    };
    merge(target, patch);
    Ok(())
}

fn merge(target: &mut Value, patch: &Map<String, Value>) {
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        match (value, map.get_mut(key)) {
            (Value::Null, _) => {
                map.remove(key);
            }
            (Value::Object(inner), Some(current @ Value::Object(_))) => merge(current, inner),
            (value, _) => {
                map.insert(key.clone(), pruned(value));
            }
        }
    }
}

/// A copy without null members of objects; nulls that are list items stay.
fn pruned(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, v)| !v.is_null());
            Value::Object(kept.map(|(k, v)| (k.clone(), pruned(v))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(pruned).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn follows_the_rfc() {
        let cases = [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1, null]}), json!({"a": [1, null]})),
            (json!({}), json!({"a": {"b": {"c": null}}}), json!({"a": {"b": {}}})),
            (json!({}), json!({"a": [{"b": null, "c": 1}]}), json!({"a": [{"c": 1}]})),
        ];
        for (mut target, patch, want) in cases {
            apply(&mut target, &patch, &mut Budget::new()).unwrap();
            assert_eq!(target, want, "{patch}");
        }
        assert_eq!(apply(&mut json!({}), &json!([]), &mut Budget::new()).unwrap_err().code(), 400);
    }

    proptest! {
        #[test]
        fn merging_twice_is_merging_once(a in any::<Vec<(u8, u8)>>(), b in any::<Vec<(u8, Option<u8>)>>()) {
            let object: Map<String, Value> = a.iter().map(|(k, v)| (k.to_string(), json!({"x": v}))).collect();
            let patch: Map<String, Value> = b.iter().map(|(k, v)| (k.to_string(), json!({"x": v, "y": v}))).collect();
            let (mut once, patch) = (Value::Object(object), Value::Object(patch));
            apply(&mut once, &patch, &mut Budget::new()).unwrap();
            let mut twice = once.clone();
            apply(&mut twice, &patch, &mut Budget::new()).unwrap();
            prop_assert_eq!(once, twice);
        }
    }
}
