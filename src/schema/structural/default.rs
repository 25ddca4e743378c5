//! Defaults of custom objects, and the nulls that mean "not given"
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting`).

use serde_json::Value;

use super::{Additional, Structural};
use crate::base::budget::{Budget, Exceeded, size_of};

impl Structural {
    /// Fills in what was left out. A small text can ask for any number of copies of a large default: they are counted.
    pub fn fill(&self, value: &mut Value, budget: &mut Budget) -> Result<(), Exceeded> {
        if !self.has_defaults {
            return Ok(());
        }
        match value {
            Value::Object(members) => {
                for (name, of) in &self.properties {
                    let Some(default) = &of.default else { continue };
                    budget.step(1)?;
                    if members.get(&**name).is_none_or(|v| v.is_null() && !of.nullable) {
                        budget.member(members.len(), name.len())?;
                        budget.copy(size_of(default))?;
                        members.insert(name.to_string(), default.clone());
                    }
                }
                for (name, member) in members.iter_mut() {
                    budget.step(1)?;
                    if let Some(of) = self.property(name) {
                        of.fill(member, budget)?;
                    } else if let Additional::Of(of) = &self.additional {
                        of.replace_null(member, budget)?;
                        of.fill(member, budget)?;
                    }
                }
            }
            Value::Array(items) => {
                let Some(of) = &self.items else { return Ok(()) };
                for item in items {
                    budget.step(1)?;
                    of.replace_null(item, budget)?;
                    of.fill(item, budget)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok(())
    }

    fn replace_null(&self, value: &mut Value, budget: &mut Budget) -> Result<(), Exceeded> {
        if let Some(default) = self.default.as_ref().filter(|_| value.is_null() && !self.nullable) {
            budget.copy(size_of(default))?;
            *value = default.clone();
        }
        Ok(())
    }

    /// Removes members that are null where nothing may be and no default stands in.
    pub(in crate::schema) fn drop_nulls(&self, value: &mut Value, budget: &mut Budget) -> Result<(), Exceeded> {
        match value {
            Value::Object(members) => {
                budget.step(members.len() as u64)?;
                let is_dropped = |of: Option<&Self>, v: &Value| {
                    v.is_null() && of.is_some_and(|of| !of.nullable && of.default.is_none())
                };
                members.retain(|name, v| !is_dropped(self.member(name), v));
                for (name, member) in members.iter_mut() {
                    if let Some(of) = self.member(name) {
                        of.drop_nulls(member, budget)?;
                    }
                }
            }
            Value::Array(items) => {
                budget.step(items.len() as u64)?;
                if let Some(of) = &self.items {
                    items.iter_mut().try_for_each(|item| of.drop_nulls(item, budget))?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(schema: Value, mut value: Value) -> Value {
        let of = Structural::parse(&schema);
        of.drop_nulls(&mut value, &mut Budget::new()).unwrap();
        of.fill(&mut value, &mut Budget::new()).unwrap();
        value
    }

    #[test]
    fn what_was_left_out_is_filled_in_and_null_is_no_value() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"}, "n": {"type": "string", "nullable": true, "default": "x"},
            "b": {"type": "string"}, "o": {"type": "object", "default": {}, "properties": {"p": {"type": "string", "default": "q"}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer", "default": 1}}}},
            "m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer", "default": 2}}}},
        }});
        assert_eq!(filled(schema.clone(), json!({})), json!({"a": "x", "n": "x", "o": {"p": "q"}}));
        let given =
            json!({"a": null, "n": null, "b": null, "o": {"p": null}, "l": [{}, {"x": 5}], "m": {"k": {}, "z": null}});
        let expect = json!({"a": "x", "n": null, "o": {"p": "q"}, "l": [{"x": 1}, {"x": 5}], "m": {"k": {"x": 2}}});
        assert_eq!(filled(schema, given), expect);
    }

    #[test]
    fn a_small_text_makes_no_object_of_any_size() {
        let large = "x".repeat(1 << 16);
        let schema = json!({"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string", "default": large}}}});
        let mut many = Value::Array(vec![json!({}); 10_000]);
        let mut budget = Budget::new();
        assert_eq!(Structural::parse(&schema).fill(&mut many, &mut budget), Err(Exceeded::Bytes));
    }
}
