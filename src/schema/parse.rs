//! JSON bodies to values, with Go's notion of duplicate fields.
//!
//! A repeated member is no error here, the last one wins (objects are joined), but its path is reported: whether that is a refusal, a
//! warning or nothing is the caller's field validation to decide.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

use super::findings::Findings;
use crate::base::budget::{Budget, Exceeded, check_depth};

/// A body that cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// It is not JSON or YAML.
    #[error("{0}")]
    Syntax(String),
    /// It would be too large a value.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// Parses JSON; the second part lists the paths of repeated members, such as `spec.replicas`.
pub fn parse_json(bytes: &[u8], budget: &mut Budget) -> Result<(Value, Vec<String>), ParseError> {
    let lossy;
    // Go replaces broken UTF-8, serde_json refuses it.
    let bytes = match std::str::from_utf8(bytes) {
        Ok(_) => bytes,
        Err(_) => {
            lossy = String::from_utf8_lossy(bytes).into_owned();
            lossy.as_bytes()
        }
    };
    let before = budget.clone();
    match parse_text(bytes, budget) {
        Err(ParseError::Syntax(error)) => {
            let mended = whole_surrogates(bytes).ok_or(ParseError::Syntax(error))?;
            *budget = before;
            parse_text(&mended, budget)
        }
        parsed => parsed,
    }
}

fn parse_text(bytes: &[u8], budget: &mut Budget) -> Result<(Value, Vec<String>), ParseError> {
    let mut reading = Reading { duplicates: Findings::default(), budget, exceeded: None };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { reading: &mut reading, depth: 0 }.deserialize(&mut json);
    match (value.and_then(|v| json.end().map(|()| v)), reading.exceeded) {
        (_, Some(limit)) => Err(limit.into()),
        (Err(error), None) => Err(ParseError::Syntax(error.to_string())),
        (Ok(value), None) => Ok((value, reading.duplicates.into_paths())),
    }
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
fn joined(first: &mut Value, second: Value, budget: &mut Budget) -> Result<(), Exceeded> {
    match (first, second) {
        (Value::Object(first), Value::Object(second)) => {
            for (key, value) in second {
                budget.member(first.len(), 0)?;
                match first.entry(key) {
                    Entry::Vacant(place) => drop(place.insert(value)),
                    Entry::Occupied(mut place) => joined(place.get_mut(), value, budget)?,
                }
            }
        }
        (first, second) => *first = second,
    }
    Ok(())
}

/// What the reading of one body shares.
struct Reading<'b> {
    /// Found below a place, and prefixed by whoever holds it.
    duplicates: Findings,
    budget: &'b mut Budget,
    exceeded: Option<Exceeded>,
}

// === impl Reading ===

impl Reading<'_> {
    /// The limit, if the step went beyond it, in the form that ends the reading.
    fn within<E: serde::de::Error>(&mut self, step: Result<(), Exceeded>) -> Result<(), E> {
        step.map_err(|limit| {
            self.exceeded = Some(limit);
            E::custom(limit)
        })
    }
}

/// Reads one value, `depth` levels deep.
struct Seed<'r, 'b> {
    reading: &'r mut Reading<'b>,
    depth: usize,
}

// === impl Seed ===

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
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

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        let step = self.reading.budget.text(value.len());
        self.reading.within(step)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (reading, depth) = (self.reading, self.depth + 1);
        reading.within(check_depth(depth, 0))?;
        let mut items = Vec::new();
        loop {
            let before = reading.duplicates.len();
            match access.next_element_seed(Seed { reading: &mut *reading, depth })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
            let step = reading.budget.item();
            reading.within(step)?;
            reading.duplicates.within_item(before, items.len() - 1);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let (reading, depth) = (self.reading, self.depth + 1);
        reading.within(check_depth(depth, 0))?;
        let mut map = Map::new();
        let start = reading.duplicates.len();
        while let Some(key) = access.next_key::<String>()? {
            let step = reading.budget.member(map.len(), key.len());
            reading.within(step)?;
            let before = reading.duplicates.len();
            let value = access.next_value_seed(Seed { reading: &mut *reading, depth })?;
            reading.duplicates.within(before, &key);
            match map.entry(key) {
                Entry::Vacant(place) => drop(place.insert(value)),
                Entry::Occupied(mut place) => {
                    reading.duplicates.push(start, place.key());
                    let step = joined(place.get_mut(), value, reading.budget);
                    reading.within(step)?;
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::base::budget::{BYTES_MAX, DEPTH_MAX};

    fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), ParseError> {
        parse_json(bytes, &mut Budget::new())
    }

    #[test]
    fn a_long_key_over_many_duplicates_makes_little() {
        let body = format!("{{\"{}\":{{{}}}}}", "k".repeat(100_000), vec!["\"a\":1"; 10_000].join(","));
        let (_, twice) = parse(body.as_bytes()).unwrap();
        assert_eq!(twice.len(), 1, "each is told of once");
        let body = format!("{{\"{}\":{{{}}}}}", "k".repeat(100_000), {
            let pairs: Vec<String> = (0..10_000).map(|i| format!("\"a{i}\":1,\"a{i}\":2")).collect();
            pairs.join(",")
        });
        let (_, twice) = parse(body.as_bytes()).unwrap();
        assert_eq!(twice.len(), 100);
        assert!(twice.iter().map(String::len).sum::<usize>() < 200_000, "keys in paths are cut");
    }

    #[test]
    fn what_would_become_a_large_value_is_refused_with_the_limit() {
        let body = format!("[{}]", vec!["{\"a\":0}"; 300_000].join(","));
        assert!(body.len() < 3 << 20, "it fits into a body");
        assert_eq!(parse(body.as_bytes()), Err(ParseError::Limit(Exceeded::Bytes)));
        let mut budget = Budget::new();
        let body = format!("[{}]", vec!["{\"a\":0}"; 1000].join(","));
        parse_json(body.as_bytes(), &mut budget).unwrap();
        assert!(budget.bytes() > 640_000 && budget.bytes() < BYTES_MAX);
        assert!(parse(format!("{}{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX)).as_bytes()).is_ok());
        let deep = "[".repeat(DEPTH_MAX + 1);
        assert_eq!(parse(deep.as_bytes()), Err(ParseError::Limit(Exceeded::Depth)));
        let text = format!("\"{}\"", "s".repeat(3 << 20));
        assert!(parse(text.as_bytes()).is_ok(), "a text takes what it is");
    }

    #[test]
    fn reports_repeated_members_by_path() {
        let (value, twice) = parse(br#"{"a":1,"a":2,"l":[{"x":{"y":1,"y":2}}],"m":{"k":1,"k":1}}"#).unwrap();
        assert_eq!(value, json!({"a": 2, "l": [{"x": {"y": 2}}], "m": {"k": 1}}));
        assert_eq!(twice, ["a", "l[0].x.y", "m.k"]);
    }

    #[test]
    fn refuses_what_is_not_one_json_value() {
        for text in ["", "{", "{}{}", "{\"a\":}", "[1,]", "1e400", "{\"a\":01}", "{\"a\":+1}", "NaN"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse(b"\"\xff\"").unwrap().0, json!("\u{fffd}"));
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        for text in ["123456789012345678901", "0.1", "2.2250738585072011e-308", "122.416294033786585", "1e23"] {
            let (value, _) = parse(text.as_bytes()).unwrap();
            assert_eq!(value.as_f64(), Some(text.parse().unwrap()), "{text}");
            assert_eq!(parse(value.to_string().as_bytes()).unwrap().0, value, "{text} is the same when it is written");
        }
    }

    #[test]
    fn repeated_objects_are_joined_and_half_surrogates_replaced() {
        let (value, twice) = parse(br#"{"d":{"a":1,"b":1},"d":{"b":2,"c":2},"l":[1],"l":[2]}"#).unwrap();
        assert_eq!((value, twice.len()), (json!({"d": {"a": 1, "b": 2, "c": 2}, "l": [2]}), 2));
        let text = br#"["\ud800","\udc00x","\ud83d\ude00","\\ud800"]"#;
        assert_eq!(parse(text).unwrap().0, json!(["\u{fffd}", "\u{fffd}x", "\u{1f600}", "\\ud800"]));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(want) = serde_json::from_slice::<Value>(&bytes) {
                prop_assert_eq!(parse(&bytes).unwrap().0, want);
            } else {
                let _ = parse(&bytes);
            }
        }
    }
}
