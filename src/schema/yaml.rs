//! YAML as Kubernetes reads it: YAML 1.1's words and numbers, turned into JSON.
//!
//! A plain `yes` or `n` is a boolean, `0777` is octal, keys of any scalar kind become text, `<<` merges, and only the
//! first document counts. Aliases may expand only so far, so a small body cannot become a large value.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use super::findings::Findings;
use super::parse::ParseError;
use crate::base::budget::{Budget, check_depth, shortened, size_of};

/// Most nodes that aliases may add.
const ALIASED_MAX: u64 = 100_000;
/// What is shown of a key.
const KEY_BYTES_MAX: usize = 256;

/// Parses the first document; an empty one is null. The second part says of each repeated member in which line its value
/// stands, in the words of the decoder that Kubernetes reads YAML with: `line 11: key "foo" already set in map`.
pub fn parse_yaml(bytes: &[u8], budget: &mut Budget) -> Result<(Value, Vec<String>), ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|_| bad("yaml: control characters are not allowed"))?;
    let mut builder = Builder {
        root: None,
        stack: Vec::new(),
        anchors: HashMap::new(),
        aliased: 0,
        duplicates: Findings::default(),
        budget,
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| ParseError::Syntax(format!("yaml: {e}")))?;
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        builder.event(event, span.start.line())?;
    }
    Ok((builder.root.unwrap_or(Value::Null), builder.duplicates.into_paths()))
}

fn bad(text: &str) -> ParseError {
    ParseError::Syntax(text.to_owned())
}

struct Builder<'b> {
    root: Option<Value>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, Value>,
    /// Values that aliases added.
    aliased: u64,
    duplicates: Findings,
    budget: &'b mut Budget,
}

/// A list or map that is being filled.
struct Frame {
    anchor: usize,
    /// Where it begins.
    line: usize,
    of: Filling,
}

enum Filling {
    Items(Vec<Value>),
    Members { map: Map<String, Value>, key: Option<Key>, merges: Vec<Value> },
}

enum Key {
    Name {
        name: String,
        /// It is a number or a boolean there.
        is_bare: bool,
    },
    Merge,
}

// === impl Builder ===

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), ParseError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                self.budget.text(text.len())?;
                if self.wants_key() {
                    return self.key(&text, plain);
                }
                let value = match tag.as_deref() {
                    Some(tag) => tagged(tag, &text, plain)?,
                    None if plain => resolve(&text)?,
                    None => Value::from(text.as_ref()),
                };
                self.finish(value, anchor, line)
            }
            Event::SequenceStart(anchor, _) => self.open(anchor, line, Filling::Items(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.open(anchor, line, Filling::Members { map: Map::new(), key: None, merges: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Err(bad("yaml: unexpected end")) };
                let value = match frame.of {
                    Filling::Items(items) => Value::Array(items),
                    Filling::Members { map, merges, .. } => Value::Object(merged(map, merges)),
                };
                self.finish(value, frame.anchor, frame.line)
            }
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor) else { return Err(bad("yaml: unknown anchor")) };
                let size = size_of(value);
                self.aliased += size.nodes;
                if self.aliased > ALIASED_MAX {
                    return Err(bad("yaml: document contains excessive aliasing"));
                }
                self.budget.copy(size)?;
                check_depth(self.stack.len(), size.depth)?;
                let value = value.clone();
                if self.wants_key() {
                    return match value {
                        Value::String(name) => self.key(&name, false),
                        other => self.key(&other.to_string(), true),
                    };
                }
                self.finish(value, 0, line)
            }
            _ => Ok(()),
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Frame { of: Filling::Members { key: None, .. }, .. }))
    }

    fn open(&mut self, anchor: usize, line: usize, of: Filling) -> Result<(), ParseError> {
        if self.wants_key() {
            return Err(bad("yaml: unsupported map key: only scalars can be keys"));
        }
        check_depth(self.stack.len(), 1)?;
        self.stack.push(Frame { anchor, line, of });
        Ok(())
    }

    fn key(&mut self, text: &str, plain: bool) -> Result<(), ParseError> {
        let name = match if plain { resolve(text)? } else { Value::from(text) } {
            Value::String(_) if plain && text == "<<" => Key::Merge,
            Value::String(name) => Key::Name { name, is_bare: false },
            Value::Null => return Err(bad("yaml: unsupported map key of type: null")),
            other => Key::Name { name: other.to_string(), is_bare: true },
        };
        if let Some(Frame { of: Filling::Members { key, .. }, .. }) = self.stack.last_mut() {
            *key = Some(name);
        }
        Ok(())
    }

    fn finish(&mut self, value: Value, anchor: usize, line: usize) -> Result<(), ParseError> {
        if anchor != 0 {
            self.budget.copy(size_of(&value))?;
            self.anchors.insert(anchor, value.clone());
        }
        match self.stack.last_mut() {
            None => self.root = Some(value),
            Some(Frame { of: Filling::Items(items), .. }) => {
                self.budget.item()?;
                items.push(value);
            }
            Some(Frame { of: Filling::Members { map, key, merges }, .. }) => match key.take() {
                Some(Key::Name { name, is_bare }) => {
                    self.budget.member(map.len(), name.len())?;
                    if map.contains_key(&name) {
                        self.duplicates.push_path(|| repeated(line, &name, is_bare));
                    }
                    map.insert(name, value);
                }
                Some(Key::Merge) => match value {
                    Value::Object(_) => merges.push(value),
                    Value::Array(items) if items.iter().all(Value::is_object) => merges.extend(items),
                    _ => return Err(bad("yaml: map merge requires map or sequence of maps as the value")),
                },
                None => return Err(bad("yaml: value without a key")),
            },
        }
        Ok(())
    }
}

/// What is said of a member that stands twice.
fn repeated(line: usize, key: &str, is_bare: bool) -> String {
    let key = shortened(key, KEY_BYTES_MAX);
    let key = if is_bare { key.into_owned() } else { format!("{key:?}") };
    format!("line {line}: key {key} already set in map")
}

/// Merged maps give what the map does not say itself; the first to say it counts.
fn merged(mut map: Map<String, Value>, merges: Vec<Value>) -> Map<String, Value> {
    for merge in merges {
        if let Value::Object(other) = merge {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
        }
    }
    map
}

fn tagged(tag: &Tag, text: &str, plain: bool) -> Result<Value, ParseError> {
    match (tag.is_yaml_core_schema(), tag.suffix.as_str()) {
        (true, "str" | "binary") => Ok(Value::from(text)),
        (true, "int" | "float" | "bool" | "null") => resolve(text),
        _ if plain => resolve(text),
        _ => Ok(Value::from(text)),
    }
}

/// What a plain scalar means.
fn resolve(text: &str) -> Result<Value, ParseError> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Err(ParseError::Syntax(format!("json: unsupported value: {text}"))),
        _ => match text.as_bytes()[0] {
            b'+' | b'-' | b'.' | b'0'..=b'9' => number(text).unwrap_or_else(|| Value::from(text)),
            _ => Value::from(text),
        },
    })
}

fn number(text: &str) -> Option<Value> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
        [b'0', b'o' | b'O', ..] => (&digits[2..], 8),
        [b'0', _, ..] if digits.bytes().all(|b| b.is_ascii_digit()) => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if !digits.starts_with(['+', '-'])
        && let Ok(value) = u64::from_str_radix(digits, radix)
    {
        return match (negative, i64::try_from(value)) {
            (false, _) => Some(Value::from(value)),
            (true, Ok(value)) => Some(Value::from(-value)),
            (true, Err(_)) => Number::from_f64(-(value as f64)).map(Value::Number),
        };
    }
    // Go writes whole floats without a fraction, so `1.0` is the integer 1.
    let value: f64 = plain.strip_prefix('+').unwrap_or(&plain).parse().ok().filter(|_| float_shape(&plain))?;
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}

/// Digits with at most one point and one exponent; not `1e`, not `infinity`.
fn float_shape(text: &str) -> bool {
    let body = text.trim_start_matches(['+', '-']);
    let (mantissa, exponent) = body.split_once(['e', 'E']).map_or((body, None), |(m, e)| (m, Some(e)));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits =
        exponent.is_none_or(|e| digits(e.trim_start_matches(['+', '-'])) && e.ends_with(|c: char| c.is_ascii_digit()));
    !(whole.is_empty() && fraction.is_empty()) && digits(whole) && digits(fraction) && exponent_fits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::base::budget::Exceeded;

    fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), ParseError> {
        parse_yaml(bytes, &mut Budget::new())
    }

    #[test]
    fn aliases_and_anchors_of_long_texts_make_little() {
        let text = format!("a: &x \"{}\"\nb: [{}]\n", "s".repeat(1_000_000), vec!["*x"; 1000].join(","));
        assert_eq!(parse(text.as_bytes()), Err(ParseError::Limit(Exceeded::Bytes)));
        let opened: String = (0..100).map(|i| format!("{{x: &b{i} ")).collect();
        let text = format!("&a0 {opened}\"{}\"{}", "s".repeat(1_000_000), "}".repeat(100));
        assert_eq!(parse(text.as_bytes()), Err(ParseError::Limit(Exceeded::Bytes)));
    }

    #[test]
    fn aliases_do_not_make_values_deeper() {
        let mut text = String::from("a0: &a0 [[[[[[[[[[]]]]]]]]]]\n");
        for i in 1..12 {
            text.push_str(&format!("a{i}: &a{i} [[[[[[[[[[*a{}]]]]]]]]]]\n", i - 1));
        }
        assert_eq!(parse(text.as_bytes()), Err(ParseError::Limit(Exceeded::Depth)));
    }

    fn value(text: &str) -> Value {
        parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}")).0
    }

    #[test]
    fn words_and_numbers_are_yaml_1_1() {
        let cases = [
            ("a: yes", json!({"a": true})),
            ("a: 'yes'", json!({"a": "yes"})),
            ("n: \"1\"", json!({"false": "1"})),
            ("5: x", json!({"5": "x"})),
            ("true: x", json!({"true": "x"})),
            ("a: 0777", json!({"a": 511})),
            ("a: 0o17", json!({"a": 15})),
            ("a: 0x1F", json!({"a": 31})),
            ("a: 1_000", json!({"a": 1000})),
            ("a: 089", json!({"a": 89})),
            ("a: 1.0", json!({"a": 1})),
            ("a: 1.5e1", json!({"a": 15})),
            ("a: .5", json!({"a": 0.5})),
            ("a: -3", json!({"a": -3})),
            ("a: 1e", json!({"a": "1e"})),
            ("a: 1.2.3", json!({"a": "1.2.3"})),
            ("a: 2024-01-01", json!({"a": "2024-01-01"})),
            ("a: 12:30", json!({"a": "12:30"})),
            ("a: ~", json!({"a": null})),
            ("a:", json!({"a": null})),
            ("a: !!str 5", json!({"a": "5"})),
            ("a: |\n  x\n  y\n", json!({"a": "x\ny\n"})),
            ("a: &q b\nc: *q", json!({"a": "b", "c": "b"})),
            ("x: &l {a: b, c: d}\nz:\n  <<: *l\n  c: e", json!({"x": {"a": "b", "c": "d"}, "z": {"a": "b", "c": "e"}})),
            ("---\na: b\n---\na: c\n", json!({"a": "b"})),
            ("%YAML 1.1\n---\na: b\n", json!({"a": "b"})),
            ("a: b\r\nc: d\r\n", json!({"a": "b", "c": "d"})),
            ("", Value::Null),
            ("# x\n", Value::Null),
            ("- a\n", json!(["a"])),
            ("{\"a\": [1, true, null, \"x\"]}", json!({"a": [1, true, null, "x"]})),
        ];
        for (text, want) in cases {
            assert_eq!(value(text), want, "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_not_yaml() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
            d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        for text in ["{a: b", "a: b: c", "a: b\n c: d\n", "a:\n\tb: c\n", "a: *x", "a: .inf", "{[a]: b}", bomb] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}: {:?}", parse(text.as_bytes()));
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err());
    }

    #[test]
    fn reports_the_lines_of_repeated_members() {
        let (value, twice) =
            parse(b"data:\n  a: b\n  a: c\nl:\n- x: 1\n  x: 2\n  5: y\n  5: y\ndata:\n  c: d\n").unwrap();
        assert_eq!(value, json!({"data": {"c": "d"}, "l": [{"x": 2, "5": true}]}));
        let want = [r#"line 3: key "a""#, r#"line 6: key "x""#, "line 8: key 5", r#"line 10: key "data""#];
        assert_eq!(twice, want.map(|w| format!("{w} already set in map")));
    }

    proptest! {
        #[test]
        fn json_is_yaml(keys in proptest::collection::btree_map("[a-z\"\\\\ é:#-]{1,6}", any::<i64>(), 0..6)) {
            let want = json!({"m": keys, "l": [keys, "x", null, true]});
            prop_assert_eq!(value(&want.to_string()), want);
        }

        #[test]
        fn any_text_ends_without_panic(text in "[-a-z0-9:{}\\[\\]&*!|>'\"#%\n\t ,?~<]{0,80}") {
            let _ = parse(text.as_bytes());
        }
    }
}
