//! Whether custom objects are what their schema says, in Kubernetes' words (`k8s.io/kube-openapi/pkg/validation/validate`).
//!
//! A changed object may keep what was wrong with it before: a part that is equal to what it was is not looked at
//! (`.../pkg/apiserver/validation/ratcheting.go`). Each comparison is counted: alternatives in alternatives would otherwise
//! cost the product of schema and object.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::base::budget::{Budget, Exceeded, shortened};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Error, Errors, Reason};
use crate::schema::structural::{ListOf, Pattern, Rules, Structural, Type, format_error, is_known_format};

/// What a text is shown as at most.
const SHOWN_BYTES_MAX: usize = 1024;
/// Bytes of a compiled pattern that are worth a step.
const STEP_BYTES: u64 = 16;
/// Alternatives that are named where none of them fits.
const NAMED_MAX: usize = 10_000;

struct Check {
    errors: Errors,
    budget: Budget,
    /// Steps that errors have taken, which are counted with the next value.
    owed: u64,
    /// The patterns that were looked at, by their place: each may have to be compiled.
    compiled: HashSet<*const Pattern>,
}

/// Errors of an object, `old` of which is what it was.
pub(super) fn object(of: &Structural, new: &Value, old: Option<&Value>) -> Errors {
    run(|check| check.value(None, of, new, old))
}

/// Errors of the status of an object.
pub(super) fn status(of: &Structural, new: &Value, old: &Value) -> Errors {
    let Some((of, new)) = of.property("status").zip(new.get("status")) else { return Errors::new() };
    run(|check| check.value(Some(&Path::root("status")), of, new, old.get("status")))
}

/// Errors of a default at a path of a definition.
pub fn check_default(path: &str, of: &Structural, default: &Value) -> Errors {
    run(|check| check.value(Some(&Path::root(path)), of, default, None))
}

fn run(check: impl FnOnce(&mut Check) -> Result<(), Exceeded>) -> Errors {
    let mut state = Check { errors: Errors::new(), budget: Budget::new(), owed: 0, compiled: HashSet::new() };
    if let Err(limit) = check(&mut state) {
        state.errors.push(field::invalid(name(None), "", limit.to_string()));
    }
    state.errors
}

/// A path as clients see it; Kubernetes has none for the object itself.
fn name(path: Option<&Path<'_>>) -> String {
    path.map_or_else(|| "<nil>".to_owned(), Path::to_string)
}

fn child<'a>(path: Option<&'a Path<'a>>, member: &'a str) -> Path<'a> {
    match path {
        Some(path) => path.field(member),
        None => Path::root(member),
    }
}

/// The JSON type of a value, as messages name it.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_of(value: &Value, of: &Structural) -> bool {
    if value.is_null() {
        return of.nullable || (of.of == Type::Any && !of.int_or_string);
    }
    if of.int_or_string {
        return matches!(type_name(value), "integer" | "string");
    }
    match of.of {
        Type::Any => true,
        Type::Number => value.is_number(),
        named => named.name() == type_name(value),
    }
}

// === impl Check ===

impl Check {
    fn push(&mut self, error: Error) {
        self.owed += (error.field.len() + error.detail.len()) as u64 / 64;
        self.errors.push(error);
    }

    fn value(
        &mut self,
        path: Option<&Path<'_>>,
        of: &Structural,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), Exceeded> {
        self.budget.step(1 + std::mem::take(&mut self.owed))?;
        if old == Some(new) || self.errors.is_full() {
            return Ok(());
        }
        if !is_of(new, of) {
            let wanted = if of.int_or_string { "integer,string" } else { of.of.name() };
            self.wrong_type(path, type_name(new), wanted);
            if of.of == Type::Integer && new.is_f64() {
                let why = "Checked value must be of type integer (default format)";
                self.push(field::invalid(name(None), "", why));
            }
        }
        if let Some(rules) = &of.rules {
            self.rules(path, of, rules, new, old)?;
        }
        match new {
            Value::Object(members) => self.members(path, of, members, old),
            Value::Array(items) => self.items(path, of, items, old),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn members(
        &mut self,
        path: Option<&Path<'_>>,
        of: &Structural,
        members: &Map<String, Value>,
        old: Option<&Value>,
    ) -> Result<(), Exceeded> {
        for (member, value) in members {
            let Some(of) = of.member(member) else { continue };
            self.value(Some(&child(path, member)), of, value, old.and_then(|o| o.get(member)))?;
        }
        Ok(())
    }

    fn items(
        &mut self,
        path: Option<&Path<'_>>,
        of: &Structural,
        items: &[Value],
        old: Option<&Value>,
    ) -> Result<(), Exceeded> {
        let Some(item_of) = &of.items else { return Ok(()) };
        let Some(here) = path else { return Ok(()) };
        let before = old.and_then(Value::as_array).filter(|_| matches!(of.list, ListOf::Map(_)));
        let before = match (&of.list, before) {
            (ListOf::Map(keys), Some(before)) => {
                self.budget.step(before.len() as u64)?;
                before.iter().map(|item| (key_of(item, keys), item)).collect()
            }
            _ => std::collections::HashMap::new(),
        };
        for (i, item) in items.iter().enumerate() {
            let old = match &of.list {
                ListOf::Map(keys) if !before.is_empty() => before.get(&key_of(item, keys)).copied(),
                _ => None,
            };
            self.value(Some(&here.index(i)), item_of, item, old)?;
        }
        Ok(())
    }

    fn rules(
        &mut self,
        path: Option<&Path<'_>>,
        of: &Structural,
        rules: &Rules,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), Exceeded> {
        self.junctors(path, rules, new, old)?;
        if !rules.one_of_values.is_empty() {
            self.budget.step(rules.one_of_values.len() as u64)?;
            if !rules.one_of_values.iter().any(|v| same(v, new)) && !(new.is_null() && of.nullable) {
                let shown: Vec<String> = rules.one_of_values.iter().take(NAMED_MAX).map(bare).collect();
                self.owed += shown.iter().map(|s| 1 + s.len() as u64 / 64).sum::<u64>();
                let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
                self.push(field::not_supported(name(path), new.clone(), &shown));
            }
        }
        match new {
            Value::String(text) => self.text(path, of, rules, text),
            Value::Number(number) => {
                self.number(path, of, rules, number.as_f64().unwrap_or(0.0), new);
                Ok(())
            }
            Value::Array(items) => {
                self.count(path, items.len(), (rules.items_min, rules.items_max), "items");
                Ok(())
            }
            Value::Object(members) => {
                self.count(path, members.len(), (rules.properties_min, rules.properties_max), "properties");
                for required in rules.required.iter().filter(|r| !members.contains_key(&***r)) {
                    self.push(field::required(child(path, required), ""));
                }
                self.budget.step(rules.required.len() as u64)
            }
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }

    /// What other schemas say of the same value.
    fn junctors(
        &mut self,
        path: Option<&Path<'_>>,
        rules: &Rules,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), Exceeded> {
        let shown = format_args!("{:?}", path.map_or_else(String::new, Path::to_string)).to_string();
        if !rules.any_of.is_empty() {
            let (fitting, first) = self.fitting(path, &rules.any_of, new, old)?;
            if fitting == 0 {
                self.general(format!("{shown} must validate at least one schema (anyOf)"));
                self.errors.extend(first);
            }
        }
        if !rules.one_of.is_empty() {
            let (fitting, first) = self.fitting(path, &rules.one_of, new, old)?;
            if fitting == 0 {
                self.general(format!("{shown} must validate one and only one schema (oneOf). Found none valid"));
                self.errors.extend(first);
            } else if fitting > 1 {
                let why = format!(
                    "{shown} must validate one and only one schema (oneOf). Found {fitting} valid alternatives"
                );
                self.general(why);
            }
        }
        if !rules.all_of.is_empty() {
            let before = self.errors.len();
            for of in &rules.all_of {
                self.value(path, of, new, old)?;
            }
            if self.errors.len() > before {
                let none = self.errors.len() - before >= rules.all_of.len() && rules.all_of.len() > 1;
                let tail = if none { ". None validated" } else { "" };
                self.general(format!("{shown} must validate all the schemas (allOf){tail}"));
            }
        }
        if let Some(not) = &rules.not {
            let (fitting, _) = self.fitting(path, std::slice::from_ref(&**not), new, old)?;
            if fitting > 0 {
                self.general(format!("{shown} must not validate the schema (not)"));
            }
        }
        Ok(())
    }

    /// How many of the schemas the value fits, and what the first of them says against it.
    fn fitting(
        &mut self,
        path: Option<&Path<'_>>,
        all: &[Structural],
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(usize, Errors), Exceeded> {
        let kept = std::mem::take(&mut self.errors);
        let (mut fitting, mut first) = (0, Errors::new());
        for of in all {
            self.value(path, of, new, old)?;
            let errors = std::mem::take(&mut self.errors);
            if errors.is_empty() {
                fitting += 1;
            } else if first.is_empty() {
                first = errors;
            }
        }
        self.errors = kept;
        Ok((fitting, first))
    }

    fn text(&mut self, path: Option<&Path<'_>>, of: &Structural, rules: &Rules, text: &str) -> Result<(), Exceeded> {
        self.budget.step(text.len() as u64 / 64)?;
        let length = || text.chars().count() as i64;
        if let Some(max) = rules.length_max
            && text.len() as i64 > max
            && length() > max
        {
            self.push(field::too_long(name(path), usize::try_from(max).unwrap_or(0)));
        }
        if let Some(min) = rules.length_min.filter(|min| length() < *min) {
            self.body(path, text.into(), &format!("should be at least {min} chars long"));
        }
        if let Some(pattern) = &rules.pattern {
            self.pattern(path, pattern, text)?;
        }
        if let Some(format) = &rules.format
            && is_known_format(format, if of.int_or_string { Type::Any } else { of.of })
            && !matches!(of.of, Type::Integer | Type::Number)
            && format_error(format, text)
        {
            let why = format!("must be of type {format}: {:?}", &*shortened(text, SHOWN_BYTES_MAX));
            let detail = format!("{} in body {why}", name(path));
            self.push(Error { reason: Reason::TypeInvalid, ..field::invalid(name(path), text, detail) });
        }
        Ok(())
    }

    fn pattern(&mut self, path: Option<&Path<'_>>, pattern: &Pattern, text: &str) -> Result<(), Exceeded> {
        // Steps as if of a pattern whose every part may be where the text is.
        self.budget.step((text.len() as u64 / 64 + 1) * (pattern.text().len() as u64 / 16 + 1))?;
        let (fits, compiled_bytes) = pattern.matches(text);
        if self.compiled.insert(pattern) {
            self.budget.step(compiled_bytes as u64 / STEP_BYTES)?;
        }
        if !fits {
            let shown = shortened(pattern.text(), SHOWN_BYTES_MAX);
            self.body(path, text.into(), &format!("should match '{shown}'"));
        }
        Ok(())
    }

    fn number(&mut self, path: Option<&Path<'_>>, of: &Structural, rules: &Rules, n: f64, value: &Value) {
        if let Some(max) = rules.maximum {
            let exclusive = rules.is_maximum_exclusive;
            if n > max || (exclusive && n == max) {
                let words = if exclusive { "less than" } else { "less than or equal to" };
                self.body(path, value.clone(), &format!("should be {words} {max}"));
            }
        }
        if let Some(min) = rules.minimum {
            let exclusive = rules.is_minimum_exclusive;
            if n < min || (exclusive && n == min) {
                let words = if exclusive { "greater than" } else { "greater than or equal to" };
                self.body(path, value.clone(), &format!("should be {words} {min}"));
            }
        }
        if let Some(factor) = rules.multiple_of.filter(|f| *f > 0.0)
            && (n / factor).fract() != 0.0
        {
            self.body(path, value.clone(), &format!("should be a multiple of {factor}"));
        }
        let is_small = value.as_i64().is_some_and(|n| i32::try_from(n).is_ok());
        if of.of == Type::Integer && rules.format.as_deref() == Some("int32") && !is_small && !value.is_f64() {
            self.general("Checked value must be of type integer with format int32".into());
        }
    }

    fn count(&mut self, path: Option<&Path<'_>>, count: usize, (min, max): (Option<i64>, Option<i64>), what: &str) {
        if let Some(max) = max.filter(|max| count as i64 > *max) {
            self.push(field::too_many(name(path), count, usize::try_from(max).unwrap_or(0)));
        }
        if let Some(min) = min.filter(|min| (count as i64) < *min) {
            self.body(path, (count as i64).into(), &format!("should have at least {min} {what}"));
        }
    }

    fn wrong_type(&mut self, path: Option<&Path<'_>>, actual: &str, wanted: &str) {
        let detail = format!("{} in body must be of type {wanted}: {actual:?}", name(path));
        self.push(Error { reason: Reason::TypeInvalid, ..field::invalid(name(path), actual, detail) });
    }

    fn body(&mut self, path: Option<&Path<'_>>, value: Value, why: &str) {
        let path = name(path);
        let detail = format!("{path} in body {why}");
        self.push(field::invalid(path, value, detail));
    }

    /// What Kubernetes says without a field.
    fn general(&mut self, why: String) {
        self.push(field::invalid(name(None), "", why));
    }
}

/// What tells an item of a list apart from others.
fn key_of(item: &Value, keys: &[Box<str>]) -> String {
    let parts: Vec<Option<&Value>> = keys.iter().map(|key| item.get(&**key)).collect();
    serde_json::to_string(&parts).unwrap_or_default()
}

/// Whether two values are the same, numbers by what they are worth.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        _ => a == b,
    }
}

fn bare(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(schema: Value, new: Value, old: Option<Value>) -> Vec<String> {
        let all = object(&Structural::parse(&schema), &new, old.as_ref());
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_is_said_as_kubernetes_says_it() {
        let of = |spec: Value| json!({"type": "object", "properties": {"spec": spec}});
        let said = |spec: Value, value: Value| errors(of(spec), json!({"spec": value}), None).join("\n");
        assert_eq!(
            said(json!({"type": "string"}), json!(5)),
            "spec: Invalid value: \"integer\": spec in body must be of type string: \"integer\""
        );
        assert_eq!(
            said(json!({"type": "string", "enum": ["a", "b"]}), json!("c")),
            "spec: Unsupported value: \"c\": supported values: \"a\", \"b\""
        );
        assert_eq!(
            said(json!({"type": "string", "pattern": "^a"}), json!("b")),
            "spec: Invalid value: \"b\": spec in body should match '^a'"
        );
        assert_eq!(
            said(json!({"type": "integer", "minimum": 1}), json!(0)),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1"
        );
        assert_eq!(
            said(json!({"type": "string", "maxLength": 3}), json!("abcd")),
            "spec: Too long: may not be more than 3 bytes"
        );
        assert_eq!(said(json!({"type": "string", "maxLength": 3}), json!("\u{e9}\u{e9}\u{e9}")), "");
        assert_eq!(said(json!({"type": "object", "required": ["x"]}), json!({})), "spec.x: Required value");
        assert_eq!(
            said(json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}), json!(["a", 1])),
            "spec: Too many: must have at most 1 items\n\
             spec[1]: Invalid value: \"integer\": spec[1] in body must be of type string: \"integer\""
        );
        assert_eq!(
            said(json!({"type": "string", "format": "ipv4"}), json!("x")),
            "spec: Invalid value: \"x\": spec in body must be of type ipv4: \"x\""
        );
        let found = said(json!({"type": "integer", "oneOf": [{"maximum": 5}, {"minimum": 3}]}), json!(4));
        assert!(found.ends_with("\"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives"));
        assert!(said(json!({"x-kubernetes-int-or-string": true}), json!("1")).is_empty());
        assert!(said(json!({"type": "string", "nullable": true}), Value::Null).is_empty());
    }

    #[test]
    fn what_was_wrong_before_may_stay_and_nothing_else() {
        let item =
            json!({"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer", "minimum": 5}}});
        let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item});
        let atomic = json!({"type": "array", "items": item});
        let schema =
            json!({"type": "object", "properties": {"l": list, "a": atomic, "n": {"type": "integer", "minimum": 5}}});
        let old = json!({"l": [{"k": "x", "n": 1}], "a": [{"n": 1}], "n": 1});
        let mut new = json!({"l": [{"k": "y", "n": 9}, {"k": "x", "n": 1}], "a": [{"n": 1}], "n": 1, "z": 1});
        assert!(errors(schema.clone(), new.clone(), Some(old.clone())).is_empty());
        new["n"] = json!(2);
        new["l"][1]["n"] = json!(3);
        new["a"] = json!([{"n": 1}, {"n": 7}]);
        let found = errors(schema, new, Some(old));
        let fields: Vec<&str> = found.iter().map(|e| e.split(':').next().unwrap()).collect();
        assert_eq!(fields, ["a[0].n", "l[1].n", "n"], "an atomic list is one value");
    }

    #[test]
    fn alternatives_in_alternatives_end_at_the_limit() {
        let mut deep = json!({"type": "string"});
        for _ in 0..12 {
            deep = json!({"anyOf": [deep.clone(), deep]});
        }
        let found = errors(
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [deep, {"type": "integer"}]}}}}),
            json!({"a": vec![1; 2000]}),
            None,
        );
        assert!(found.iter().any(|e| e.contains("steps")), "{found:?}");
    }
}
