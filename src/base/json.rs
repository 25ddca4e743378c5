//! Short ways through dynamic JSON: `at(&value, "spec.replicas")`.
//!
//! Paths are dotted and never index into lists; keys that hold dots are reached with [`get`].

use serde_json::{Map, Value};

use super::budget::counted;

/// The value at a dotted path, if every step of it is an object that has the key.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    counted(1);
    path.split('.').try_fold(value, |v, key| v.get(key))
}

/// The text at a dotted path, or `""`.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or("")
}

/// The integer at a dotted path.
pub fn int(value: &Value, path: &str) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// The boolean at a dotted path; absent is false.
pub fn flag(value: &Value, path: &str) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The list at a dotted path; absent is empty.
pub fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[])
}

/// The object at a dotted path.
pub fn map<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

/// The object at a dotted path, made (with its parents) where absent; what is not an object on the way is replaced.
pub fn map_mut<'a>(value: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    counted(1);
    let mut here = object(value);
    for key in path.split('.').filter(|k| !k.is_empty()) {
        here = object(here.entry(key).or_insert_with(|| Value::Object(Map::new())));
    }
    here
}

/// The value itself as an object; anything else is replaced by an empty one.
pub fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("made an object above")
}

/// The mutable list at a dotted path, if there is one.
pub fn list_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    path.split('.').try_fold(value, |v, key| v.get_mut(key))?.as_array_mut()
}

/// Sets `path` to `new` where it is absent or null.
pub fn set_default(value: &mut Value, path: &str, new: impl Into<Value>) {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let member = map_mut(value, parent).entry(key).or_insert(Value::Null);
    if member.is_null() {
        *member = new.into();
    }
}

/// Sets `path` to `new`.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    map_mut(value, parent).insert(key.to_owned(), new.into());
}

/// Removes `path` and answers what stood there.
pub fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
    let parent =
        if parent.is_empty() { Some(value) } else { parent.split('.').try_fold(value, |v, key| v.get_mut(key)) };
    parent?.as_object_mut()?.remove(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_reach_make_and_remove() {
        let mut v = json!({"a": {"b": 1}});
        set_default(&mut v, "a.b", 2);
        set_default(&mut v, "a.c.d", "x");
        assert_eq!(v, json!({"a": {"b": 1, "c": {"d": "x"}}}));
        assert_eq!(remove(&mut v, "a.c.d"), Some(json!("x")));
        assert_eq!(remove(&mut v, "z.c.d"), None);
        assert_eq!((int(&v, "a.b"), text(&v, "a.b"), flag(&v, "q")), (Some(1), "", false));
    }
}
