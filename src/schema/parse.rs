//! JSON bodies to values, with Go's notion of duplicate fields.
//!
//! A repeated member is no error here, the last one wins (objects are joined), but its path is reported: whether that is a refusal, a
//! warning or nothing is the caller's field validation to decide.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A body that is not JSON or YAML.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// Parses JSON; the second part lists the paths of repeated members, such as `spec.replicas`.
pub fn parse_json(bytes: &[u8]) -> Result<(Value, Vec<String>), ParseError> {
    let mut duplicates = Vec::new();
    let lossy;
    // Go replaces broken UTF-8, serde_json refuses it.
    let bytes = match std::str::from_utf8(bytes) {
        Ok(_) => bytes,
        Err(_) => {
            lossy = String::from_utf8_lossy(bytes).into_owned();
            lossy.as_bytes()
        }
    };
    let mut parse = |bytes: &[u8]| {
        duplicates.clear();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let value = Seed { duplicates: &mut duplicates }.deserialize(&mut json);
        value.and_then(|v| json.end().map(|()| v)).map_err(|e| ParseError(e.to_string()))
    };
    let value = match parse(bytes) {
        Ok(value) => value,
        Err(error) => parse(&whole_surrogates(bytes).ok_or(error)?)?,
    };
    Ok((value, duplicates))
}

/// The text with every half of a surrogate pair replaced, as Go does; `None` where there is none.
fn whole_surrogates(bytes: &[u8]) -> Option<Vec<u8>> {
    let unit = |i: usize| {
        let digits = bytes.get(i..i + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (mut out, mut i, mut found) = (Vec::with_capacity(bytes.len()), 0, false);
    while i < bytes.len() {
        let length = match unit(i) {
            Some(0xd800..0xdc00) if unit(i + 6).is_some_and(|low| (0xdc00..0xe000).contains(&low)) => 12,
            Some(0xd800..0xe000) => {
                out.extend_from_slice(b"\\ufffd");
                (found, i) = (true, i + 6);
                continue;
            }
            _ if bytes[i] == b'\\' => 2,
            _ => 1,
        };
        let end = bytes.len().min(i + length);
        out.extend_from_slice(&bytes[i..end]);
        i = end;
    }
    found.then_some(out)
}

/// What a member is that stands twice: objects are one, with the members of both, of anything else the last one counts.
fn joined(first: Option<Value>, second: Value) -> Value {
    match (first, second) {
        (Some(Value::Object(mut first)), Value::Object(second)) => {
            for (key, value) in second {
                let value = joined(first.remove(&key), value);
                first.insert(key, value);
            }
            Value::Object(first)
        }
        (_, second) => second,
    }
}

/// Reads one value; duplicates found below are reported relative to it, and prefixed by whoever holds it.
struct Seed<'d> {
    duplicates: &'d mut Vec<String>,
}

// === impl Seed ===

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let before = self.duplicates.len();
            match access.next_element_seed(Seed { duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
            for path in &mut self.duplicates[before..] {
                let dot = if path.starts_with('[') { "" } else { "." };
                *path = format!("[{}]{dot}{path}", items.len() - 1);
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let before = self.duplicates.len();
            let value = access.next_value_seed(Seed { duplicates: self.duplicates })?;
            for path in &mut self.duplicates[before..] {
                let dot = if path.starts_with('[') { "" } else { "." };
                *path = format!("{key}{dot}{path}");
            }
            let first = map.remove(&key);
            if first.is_some() {
                self.duplicates.push(key.clone());
            }
            map.insert(key, joined(first, value));
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_repeated_members_by_path() {
        let (value, twice) = parse_json(br#"{"a":1,"a":2,"l":[{"x":{"y":1,"y":2}}],"m":{"k":1,"k":1}}"#).unwrap();
        assert_eq!(value, json!({"a": 2, "l": [{"x": {"y": 2}}], "m": {"k": 1}}));
        assert_eq!(twice, ["a", "l[0].x.y", "m.k"]);
    }

    #[test]
    fn refuses_what_is_not_one_json_value() {
        for text in ["", "{", "{}{}", "{\"a\":}", "[1,]", "1e400", "{\"a\":01}", "{\"a\":+1}", "NaN"] {
            assert!(parse_json(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse_json(b"\"\xff\"").unwrap().0, json!("\u{fffd}"));
    }

    #[test]
    fn repeated_objects_are_joined_and_half_surrogates_replaced() {
        let (value, twice) = parse_json(br#"{"d":{"a":1,"b":1},"d":{"b":2,"c":2},"l":[1],"l":[2]}"#).unwrap();
        assert_eq!((value, twice.len()), (json!({"d": {"a": 1, "b": 2, "c": 2}, "l": [2]}), 2));
        let text = br#"["\ud800","\udc00x","\ud83d\ude00","\\ud800"]"#;
        assert_eq!(parse_json(text).unwrap().0, json!(["\u{fffd}", "\u{fffd}x", "\u{1f600}", "\\ud800"]));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(want) = serde_json::from_slice::<Value>(&bytes) {
                prop_assert_eq!(parse_json(&bytes).unwrap().0, want);
            } else {
                let _ = parse_json(&bytes);
            }
        }
    }
}
