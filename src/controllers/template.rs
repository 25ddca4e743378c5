//! Templates of pods compared, and named by what is in them.

use serde_json::Value;

/// The letters of hashes in names (`k8s.io/apimachinery/pkg/util/rand`).
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A hash in letters that make no words.
pub(super) fn name_letters(hash: u32) -> String {
    hash.to_string().bytes().map(|b| LETTERS[b as usize % LETTERS.len()] as char).collect()
}

/// A template without what defaulting may or may not leave: nulls and empty metadata.
pub(super) fn comparable(template: &Value) -> Value {
    let mut out = template.clone();
    drop_nulls(&mut out);
    if let Some(metadata) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|k, v| k != "creationTimestamp" && v.as_object().is_none_or(|m| !m.is_empty()));
    }
    out
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
