//! All rules of a custom kind, where they stand in its schema, and what they say of objects
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go`).
//!
//! A rule that is not about the change itself says nothing of what has not changed but a warning. What there was is known
//! through fields, maps and lists whose items have keys; items of other lists are new each time.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::declare::{declare, is_embedded};
use super::rule::{OBJECT_COST_MAX, Rule, Verdict, compile, exhausted};
use crate::base::json::{list, map, text};
use crate::cel::{Decl, Value as Cel, escape};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Error, Errors, Reason};

/// The rules of a place and of all below it.
#[derive(Debug)]
pub struct Rules {
    decl: Option<Arc<Decl>>,
    /// The members by which items of the list are known again.
    keys: Option<Box<[Box<str>]>>,
    /// The JSON type, as errors show what is too much to show.
    of_type: Box<str>,
    rules: Vec<Result<Rule, String>>,
    items: Option<Box<Rules>>,
    properties: HashMap<Box<str>, Rules>,
    additional: Option<Box<Rules>>,
    all_of: Vec<Rules>,
}

/// What there was at a place.
#[derive(Clone, Copy)]
enum Before<'v> {
    /// Nothing is known of it; it is part of something that is the same as before, or not.
    Unknown(bool),
    Known(Option<&'v Value>),
}

struct Judge<'e> {
    errors: &'e mut Errors,
    budget: u64,
    /// Whether only what was passed over is of interest.
    unchanged_only: bool,
}

// === impl Rules ===

impl Rules {
    /// The rules of a version's schema, if it has any.
    pub fn parse(schema: &Value) -> Option<Self> {
        Self::build(schema, schema, None, true)
    }

    /// `said` has the rules, `schema` the structure: they differ in alternatives.
    fn build(said: &Value, schema: &Value, decl: Option<Arc<Decl>>, is_resource: bool) -> Option<Self> {
        let own = list(said, "x-kubernetes-validations");
        let decl = match decl {
            None if !own.is_empty() => declare(schema, is_resource, "selfType"),
            known => known,
        };
        let rules = own.iter().filter_map(|rule| match &decl {
            Some(decl) => compile(rule, schema, decl).map(|c| c.rule),
            None => Some(Err("the schema cannot be seen by expressions".to_owned())),
        });
        let rules: Vec<_> = rules.collect();
        let below = |key: &str| {
            let (said, schema) = said.get(key).zip(schema.get(key)).filter(|(a, b)| a.is_object() && b.is_object())?;
            let element = decl.as_ref().and_then(|d| d.element()).cloned();
            Self::build(said, schema, element, is_embedded(schema)).map(Box::new)
        };
        let mut properties = HashMap::new();
        for (name, said) in map(said, "properties").into_iter().flatten() {
            let Some(schema) = map(schema, "properties").and_then(|p| p.get(name)) else { continue };
            let field = decl.as_ref().zip(escape(name)).map(|(decl, name)| decl.field(&name).cloned());
            // What expressions cannot see has no rules.
            if field == Some(None) {
                continue;
            }
            if let Some(rules) = Self::build(said, schema, field.flatten(), is_embedded(schema)) {
                properties.insert(name.as_str().into(), rules);
            }
        }
        let all_of = list(said, "allOf").iter();
        let all_of: Vec<_> = all_of.filter_map(|of| Self::build(of, schema, decl.clone(), is_resource)).collect();
        let (items, additional) = (below("items"), below("additionalProperties"));
        let is_empty =
            rules.is_empty() && items.is_none() && additional.is_none() && properties.is_empty() && all_of.is_empty();
        let of_type = text(schema, "type").into();
        let keys = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(Box::from);
        let keys = (text(schema, "x-kubernetes-list-type") == "map").then(|| keys.collect());
        (!is_empty).then_some(Self { decl, keys, of_type, rules, items, properties, additional, all_of })
    }

    /// Errors of an object, `old` of which is what it was.
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Errors {
        self.run(new, old, false)
    }

    /// What rules say against what has not changed, which is no error.
    pub fn validate_unchanged(&self, new: &Value, old: &Value) -> Errors {
        self.run(new, Some(old), true)
    }

    fn run(&self, new: &Value, old: Option<&Value>, unchanged_only: bool) -> Errors {
        let mut errors = Errors::new();
        let before = old.map_or(Before::Unknown(false), |old| Before::Known(Some(old)));
        let mut judge = Judge { errors: &mut errors, budget: OBJECT_COST_MAX, unchanged_only };
        // Stops early where nothing is left of the budget.
        let _ = judge.value(self, None, new, old, before);
        errors
    }
}

// === impl Before ===

impl<'v> Before<'v> {
    fn is_unchanged(self, new: &Value) -> bool {
        match self {
            Self::Unknown(unchanged) => unchanged,
            Self::Known(old) => old == Some(new),
        }
    }

    fn below(self, of: impl FnOnce(&'v Value) -> Option<&'v Value>) -> Self {
        match self {
            Self::Unknown(unchanged) => Self::Unknown(unchanged),
            Self::Known(old) => Self::Known(old.and_then(of)),
        }
    }
}

/// Nothing more is evaluated.
struct Stop;

// === impl Judge ===

impl Judge<'_> {
    fn value(
        &mut self,
        of: &Rules,
        path: Option<&Path<'_>>,
        new: &Value,
        old: Option<&Value>,
        before: Before<'_>,
    ) -> Result<(), Stop> {
        if new.is_null() || self.errors.is_full() {
            return Ok(());
        }
        if !of.rules.is_empty() {
            self.own(of, path, new, old, before)?;
        }
        for alternative in &of.all_of {
            // As those of alternatives themselves, their errors are told of what has not changed too.
            self.value(alternative, path, new, old, Before::Unknown(false))?;
        }
        match new {
            Value::Object(members) => {
                for (name, member) in members {
                    let (below, step) = match (&of.additional, of.properties.get(name.as_str())) {
                        (Some(additional), _) => (&**additional, true),
                        (None, Some(property)) => (property, false),
                        (None, None) => continue,
                    };
                    let here = match (path, step) {
                        (Some(path), true) => path.key(name),
                        (Some(path), false) => path.field(name),
                        (None, _) => Path::root(name),
                    };
                    let is_fixed = path.is_none() && matches!(name.as_str(), "apiVersion" | "kind");
                    let before =
                        if is_fixed { Before::Unknown(false) } else { before.below(|old| old.get(name.as_str())) };
                    self.value(below, Some(&here), member, old.and_then(|o| o.get(name.as_str())), before)?;
                }
                Ok(())
            }
            Value::Array(items) => self.items(of, path, new, items, old, before),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
        }
    }

    fn items(
        &mut self,
        of: &Rules,
        path: Option<&Path<'_>>,
        new: &Value,
        items: &[Value],
        old: Option<&Value>,
        before: Before<'_>,
    ) -> Result<(), Stop> {
        let (Some(below), Some(path)) = (&of.items, path) else { return Ok(()) };
        let keys = of.keys.as_ref();
        let key_of = |item: &Value| -> Option<String> {
            let parts: Vec<Option<&Value>> = keys?.iter().map(|key| item.get(&**key)).collect();
            serde_json::to_string(&parts).ok()
        };
        let mut known: HashMap<String, &Value> = HashMap::new();
        for item in old.and_then(Value::as_array).into_iter().flatten() {
            if let Some(key) = key_of(item) {
                known.insert(key, item);
            }
        }
        let unchanged = if keys.is_none() { before.is_unchanged(new) } else { false };
        for (i, item) in items.iter().enumerate() {
            let (old, before) = match (key_of(item), before) {
                (None, _) => (None, Before::Unknown(unchanged)),
                (Some(key), before) => {
                    let old = known.get(&key).copied();
                    (old, if let Before::Known(_) = before { Before::Known(old) } else { before })
                }
            };
            self.value(below, Some(&path.index(i)), item, old, before)?;
        }
        Ok(())
    }

    /// What the rules of a place say of the value there.
    fn own(
        &mut self,
        of: &Rules,
        path: Option<&Path<'_>>,
        new: &Value,
        old: Option<&Value>,
        before: Before<'_>,
    ) -> Result<(), Stop> {
        let field = path.map_or_else(|| "<nil>".to_owned(), Path::to_string);
        let Some(decl) = &of.decl else { return Ok(()) };
        let unchanged = before.is_unchanged(new);
        if self.unchanged_only && !unchanged {
            return Ok(());
        }
        let value = match Cel::of_json(new, decl) {
            Ok(value) => value,
            Err(error) => {
                self.errors.push(field::invalid(field, &*of.of_type, error.to_string()));
                return Ok(());
            }
        };
        // What there was and cannot be seen as the schema says now is not there.
        let old = old.filter(|o| !o.is_null()).and_then(|old| Cel::of_json(old, decl).ok());
        for rule in &of.rules {
            let rule = match rule {
                Ok(rule) => rule,
                Err(why) => {
                    self.errors.push(field::invalid(&*field, &*of.of_type, format!("rule compile error: {why}")));
                    continue;
                }
            };
            let passed_over = unchanged && !rule.uses_old;
            let is_silent = rule.uses_old && old.is_none() && !rule.has_optional_old;
            if is_silent || (self.unchanged_only && !passed_over) {
                continue;
            }
            let verdict = match self.budget {
                0 => exhausted(),
                _ => rule.judge(&value, old.as_ref(), &mut self.budget),
            };
            match verdict {
                Verdict::Holds => {}
                Verdict::Fails(Ok(_)) if passed_over && !self.unchanged_only => {}
                Verdict::Fails(Ok(message)) => self.errors.push(failed(of, rule, path, new, message)),
                Verdict::Fails(Err(why)) => {
                    self.errors.push(field::invalid(&*field, &*of.of_type, why));
                    return Err(Stop);
                }
                // Told as an error already.
                Verdict::Error(_) | Verdict::Exhausted(_) if self.unchanged_only => {}
                Verdict::Error(why) => self.errors.push(field::invalid(&*field, &*of.of_type, why)),
                Verdict::Exhausted(why) => {
                    self.errors.push(field::invalid(&*field, &*of.of_type, why));
                    return Err(Stop);
                }
            }
        }
        Ok(())
    }
}

/// The error of a rule that does not hold.
fn failed(of: &Rules, rule: &Rule, path: Option<&Path<'_>>, new: &Value, message: String) -> Error {
    let named = match (path, &rule.field_path) {
        (None, None) => "<nil>".to_owned(),
        (None, Some(below)) => below.clone(),
        (Some(path), None) => path.to_string(),
        (Some(path), Some(below)) if below.starts_with('[') => format!("{path}{below}"),
        (Some(path), Some(below)) => format!("{path}.{below}"),
    };
    let is_large = matches!(&*of.of_type, "object" | "array");
    let shown = |error: Error| if is_large { Error { reason: Reason::InvalidUnshown, ..error } } else { error };
    match rule.reason.as_deref() {
        Some("FieldValueForbidden") => field::forbidden(named, message),
        Some("FieldValueRequired") => field::required(named, message),
        Some("FieldValueDuplicate") => field::duplicate(named, new.clone()),
        _ => shown(field::invalid(named, if is_large { Value::Null } else { new.clone() }, message)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
        let rules = Rules::parse(schema).expect("it has rules");
        rules.validate(new, old).iter().map(ToString::to_string).collect()
    }

    fn of_spec(rules: Value, properties: Value) -> Value {
        json!({"type": "object", "properties": {
            "spec": {"type": "object", "x-kubernetes-validations": rules, "properties": properties}}})
    }

    #[test]
    fn rules_hold_or_are_told() {
        let integers = json!({"x": {"type": "integer"}, "y": {"type": "integer"}});
        let rules = json!([
            {"rule": "self.x + self.y > 0"},
            {"rule": "self.x < 10", "message": "x is too large", "reason": "FieldValueForbidden", "fieldPath": ".x"},
            {"rule": "self.y < 10", "messageExpression": "'y is ' + string(self.y)"},
            {"rule": "self.y != 20", "messageExpression": "'two\\nlines'", "message": "not twenty"},
        ]);
        let schema = of_spec(rules, integers);
        let of = |x: i64, y: i64| said(&schema, &json!({"spec": {"x": x, "y": y}}), None);
        assert!(of(1, 0).is_empty());
        assert_eq!(of(0, 0), ["spec: Invalid value: failed rule: self.x + self.y > 0"]);
        assert_eq!(of(12, 0), ["spec.x: Forbidden: x is too large"]);
        assert_eq!(of(1, 20), ["spec: Invalid value: y is 20", "spec: Invalid value: not twenty"]);
        let absent = said(&schema, &json!({"spec": {"x": 1}}), None);
        assert_eq!(absent[0], "spec: Invalid value: \"object\": no such key: y evaluating rule: self.x + self.y > 0");
        assert!(said(&schema, &json!({}), None).is_empty());
    }

    #[test]
    fn rules_of_changes_need_what_there_was() {
        let of_a =
            |rules: Value| of_spec(json!([]), json!({"a": {"type": "integer", "x-kubernetes-validations": rules}}));
        let change = of_a(json!([{"rule": "self >= oldSelf"}]));
        let with = |a: Option<i64>| json!({"spec": a.map_or(json!({}), |a| json!({"a": a}))});
        assert!(said(&change, &with(Some(1)), None).is_empty());
        assert!(said(&change, &with(Some(1)), Some(&with(None))).is_empty());
        assert!(said(&change, &with(Some(2)), Some(&with(Some(1)))).is_empty());
        let found = said(&change, &with(Some(0)), Some(&with(Some(1))));
        assert_eq!(found, ["spec.a: Invalid value: 0: failed rule: self >= oldSelf"]);
        let optional =
            of_a(json!([{"rule": "!oldSelf.hasValue() || self > oldSelf.value()", "optionalOldSelf": true}]));
        assert!(said(&optional, &with(Some(3)), None).is_empty());
        assert_eq!(said(&optional, &with(Some(3)), Some(&with(Some(3)))).len(), 1, "it is about the change");
    }

    #[test]
    fn items_are_known_again_by_their_keys() {
        let item = json!({"type": "object", "properties": {"k": {"type": "string"}, "n": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.n >= oldSelf.n"}]});
        let list = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": item});
        let schema = of_spec(json!([]), json!({"l": list}));
        let of = |items: Value| json!({"spec": {"l": items}});
        let old = of(json!([{"k": "a", "n": 1}, {"k": "b", "n": 5}]));
        assert!(
            said(&schema, &of(json!([{"k": "b", "n": 5}, {"k": "c", "n": 0}, {"k": "a", "n": 2}])), Some(&old))
                .is_empty()
        );
        let found = said(&schema, &of(json!([{"k": "b", "n": 4}])), Some(&old));
        assert_eq!(found, ["spec.l[0]: Invalid value: failed rule: self.n >= oldSelf.n"]);
    }

    #[test]
    fn what_has_not_changed_is_passed_over_with_a_warning() {
        let schema = of_spec(
            json!([]),
            json!({
                "a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]},
                "l": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self > 5"}]}},
            }),
        );
        let old = json!({"spec": {"a": 1, "l": [1], "b": 1}});
        let new = json!({"spec": {"a": 1, "l": [1], "b": 2}});
        assert!(said(&schema, &new, Some(&old)).is_empty());
        let rules = Rules::parse(&schema).unwrap();
        let warned: Vec<String> = rules.validate_unchanged(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(
            warned,
            ["spec.a: Invalid value: 1: failed rule: self > 5", "spec.l[0]: Invalid value: 1: failed rule: self > 5"]
        );
        let found = said(&schema, &json!({"spec": {"a": 2, "l": [1, 9]}}), Some(&old));
        assert_eq!(found.len(), 2, "a list without keys is one value: {found:?}");
    }

    #[test]
    fn the_root_sees_its_names_and_no_other_metadata() {
        let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "x-kubernetes-validations": [
            {"rule": "self.metadata.name.startsWith('o') && self.kind == 'Foo'"}]});
        let of =
            |name: &str| json!({"apiVersion": "g/v1", "kind": "Foo", "metadata": {"name": name, "labels": {"a": "b"}}});
        assert!(said(&schema, &of("ok"), None).is_empty());
        assert!(said(&schema, &of("no"), None)[0].starts_with("<nil>: Invalid value: failed rule: "));
        let labels = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.labels.a == ''"}]});
        assert!(said(&labels, &of("x"), None)[0].contains("undefined field 'labels'"));
    }

    #[test]
    fn maps_alternatives_and_kept_members_have_rules_too() {
        let schema = json!({"type": "object", "properties": {
            "m": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'no'"}]}},
            "n": {"type": "integer", "allOf": [{"x-kubernetes-validations": [{"rule": "self < 3"}]}]},
            "k": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "x-kubernetes-validations": [{"rule": "has(self.a)"}], "properties": {"a": {"type": "string", "nullable": true}}},
        }});
        let found = said(&schema, &json!({"m": {"x": "no", "y": "yes"}, "n": 5, "k": {"b": 1, "a": null}}), None);
        assert_eq!(
            found,
            [
                "k: Invalid value: failed rule: has(self.a)",
                "m[x]: Invalid value: \"no\": failed rule: self != 'no'",
                "n: Invalid value: 5: failed rule: self < 3",
            ]
        );
    }

    #[test]
    fn all_rules_of_an_object_have_one_budget() {
        let item = json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [
            {"rule": "self.all(x, self.all(y, x == y || x != y))"}]});
        let schema = of_spec(json!([]), json!({"l": {"type": "array", "items": item}}));
        let many = |count: usize, size: usize| json!({"spec": {"l": vec![vec!["a"; size]; count]}});
        assert!(said(&schema, &many(3, 50), None).is_empty());
        let one = said(&schema, &many(1, 2000), None);
        assert_eq!(one.len(), 1);
        assert!(one[0].contains("no further validation rules will be run due to call cost exceeds limit"), "{one:?}");
        let all = said(&schema, &many(40, 250), None);
        assert_eq!(all.len(), 1);
        assert!(all[0].contains("validation failed due to running out of cost budget"), "{all:?}");
    }

    #[test]
    fn paths_of_fields_lead_through_the_schema() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "properties": {"b.c": {"type": "string"}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "string"}}}}}});
        for (path, shown) in [
            (".a", Some("a")),
            (".a['b.c']", Some("a.b.c")),
            (".m.key.x", Some("m[key].x")),
            ("['m']['it\\'s']", Some("m[it's]")),
            (".z", None),
            ("a", None),
            (".a.", None),
            (".a['b.c'", None),
            (".a[0]", None),
            ("", None),
        ] {
            assert_eq!(super::super::field_path(path, &schema).as_deref(), shown, "{path}");
        }
    }
}
