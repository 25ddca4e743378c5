//! Whether the rules of a schema (`x-kubernetes-validations`) can be evaluated, and at what cost at most
//! (`k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation/cel_validation.go`).
//!
//! A rule costs what it costs for one value, times the values that there can be at its place. Where lists and maps have no
//! bound, these are as many as fit into the largest request.

use std::sync::Arc;

use serde_json::Value;

use crate::base::json::{list, map, text};
use crate::cel::{Decl, REQUEST_BYTES_MAX, escape};
use crate::kinds::check::Path;
use crate::kinds::custom::{compile, declare, is_embedded};
use crate::kinds::field::{self, Errors};

/// What one expression may cost.
const EXPRESSION_COST_MAX: u64 = 10_000_000;
/// What all expressions of a schema may cost.
const SCHEMA_COST_MAX: u64 = 100_000_000;
/// Of the most expensive expressions so many are named.
const NAMED_MAX: usize = 4;

#[derive(Default)]
struct Total {
    cost: u64,
    /// The most expensive first.
    expensive: Vec<(String, u64)>,
}

/// Where in a schema something stands.
#[derive(Clone, Copy)]
struct Context<'c> {
    is_resource: bool,
    /// How many values there can be, if that is bounded.
    count: Option<u64>,
    /// The path of the list from which on nobody knows what was before.
    uncorrelated: Option<&'c str>,
}

/// Errors of the rules of a schema that is right otherwise.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    let mut total = Total::default();
    let context = Context { is_resource: true, count: Some(1), uncorrelated: None };
    look(errors, &mut total, path, schema, None, context);
    if total.cost > SCHEMA_COST_MAX {
        let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
        for (path, _) in &total.expensive {
            errors.push(field::forbidden(path.as_str(), why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(field::forbidden(path, exceeded(what, total.cost, SCHEMA_COST_MAX)));
    }
}

fn look(
    errors: &mut Errors,
    total: &mut Total,
    path: &Path<'_>,
    schema: &Value,
    decl: Option<Arc<Decl>>,
    context: Context<'_>,
) {
    if errors.is_full() {
        return;
    }
    let decl = match decl {
        None if !list(schema, "x-kubernetes-validations").is_empty() => {
            declare(schema, context.is_resource, "selfType")
        }
        known => known,
    };
    own(errors, total, path, schema, decl.as_deref(), context);
    let limit = |key: &str| schema.get(key).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
    let has_additional = schema.get("additionalProperties").is_some();
    let factor = match text(schema, "type") {
        "object" if has_additional => limit("maxProperties"),
        "array" => limit("maxItems"),
        _ => Some(1),
    };
    let count = context.count.zip(factor).map(|(count, factor)| count.saturating_mul(factor));
    let element = || decl.as_ref().and_then(|d| d.element()).cloned();
    if let Some(of) = schema.get("additionalProperties").filter(|a| a.is_object()) {
        let context = Context { is_resource: is_embedded(of), count, ..context };
        look(errors, total, &path.field("additionalProperties"), of, element(), context);
    }
    let members = path.field("properties");
    for (name, of) in map(schema, "properties").into_iter().flatten() {
        let field = decl.as_ref().zip(escape(name)).and_then(|(decl, name)| decl.field(&name).cloned());
        let context = Context { is_resource: is_embedded(of), count, ..context };
        look(errors, total, &members.key(name), of, field, context);
    }
    if let Some(of) = schema.get("items").filter(|i| i.is_object()) {
        let here = path.to_string();
        let is_correlated = text(schema, "x-kubernetes-list-type") == "map";
        let uncorrelated = context.uncorrelated.or((!is_correlated).then_some(&here));
        let context = Context { is_resource: is_embedded(of), count, uncorrelated };
        look(errors, total, &path.field("items"), of, element(), context);
    }
}

/// Errors of the rules of one place.
fn own(
    errors: &mut Errors,
    total: &mut Total,
    path: &Path<'_>,
    schema: &Value,
    decl: Option<&Decl>,
    context: Context<'_>,
) {
    let all = path.field("x-kubernetes-validations");
    for (i, rule) in list(schema, "x-kubernetes-validations").iter().enumerate() {
        let here = all.index(i);
        let (rule_path, message_path) = (here.field("rule"), here.field("messageExpression"));
        let Some(decl) = decl else {
            let why = "internal error: failed to construct type information for x-kubernetes-validations rules: unable to \
                       convert structural schema to CEL declarations";
            errors.push(field::Error { reason: field::Reason::Internal, ..field::forbidden(&all, why) });
            return;
        };
        let Some(compiled) = compile(rule, schema, decl) else { continue };
        let count = context.count.unwrap_or(REQUEST_BYTES_MAX / (decl.bytes_min + 1));
        let cost = compiled.cost_max.saturating_mul(count);
        if cost > EXPRESSION_COST_MAX {
            errors.push(field::forbidden(&rule_path, exceeded("estimated rule cost", cost, EXPRESSION_COST_MAX)));
        }
        total.add(&rule_path, cost);
        if let Err(why) = &compiled.rule {
            errors.push(field::invalid(&rule_path, rule.clone(), why.as_str()));
        }
        if let Some(why) = &compiled.message_error {
            errors.push(field::invalid(&message_path, rule.clone(), why.as_str()));
        }
        if let Some(cost) = compiled.message_cost_max {
            if cost > EXPRESSION_COST_MAX {
                let what = "estimated messageExpression cost";
                errors.push(field::forbidden(&message_path, exceeded(what, cost, EXPRESSION_COST_MAX)));
            }
            total.add(&message_path, cost);
        }
        let uses_old = compiled.rule.as_ref().is_ok_and(|rule| rule.uses_old);
        if let Some(list) = context.uncorrelated.filter(|_| uses_old) {
            let why = format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
            errors.push(field::invalid(&rule_path, text(rule, "rule"), why));
        }
        if let Some(given) = rule.get("optionalOldSelf").filter(|o| !o.is_null() && !uses_old) {
            let why = "may not be set if oldSelf is not used in rule";
            errors.push(field::invalid(&here.field("optionalOldSelf"), given.clone(), why));
        }
    }
}

// === impl Total ===

impl Total {
    fn add(&mut self, path: &Path<'_>, cost: u64) {
        self.cost = self.cost.saturating_add(cost);
        if cost < SCHEMA_COST_MAX / 100 {
            return;
        }
        self.expensive.push((path.to_string(), cost));
        self.expensive.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        self.expensive.truncate(NAMED_MAX);
    }
}

fn exceeded(what: &str, cost: u64, most: u64) -> String {
    let factor = cost as f64 / most as f64;
    let shown = match factor {
        f if f > 100.0 => "more than 100x".to_owned(),
        f if f < 1.5 => format!("{f:.6}x"),
        f => format!("{f:.1}x"),
    };
    let hint = "try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings \
                are declared";
    format!("{what} exceeds budget by factor of {shown} ({hint})")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(schema: Value) -> Vec<String> {
        let mut errors = Errors::new();
        validate(&mut errors, &Path::root("s"), &schema);
        errors.iter().map(|e| format!("{}: {}", e.field, e.detail)).collect()
    }

    fn of(name: &str, schema: Value) -> Value {
        json!({"type": "object", "properties": {name: schema}})
    }

    fn with_rule(mut schema: Value, rule: Value) -> Value {
        schema["x-kubernetes-validations"] = json!([rule]);
        schema
    }

    #[test]
    fn rules_that_cannot_be_evaluated_are_refused() {
        let a = "s.properties[a].x-kubernetes-validations[0]";
        for (schema, rule, field, why) in [
            (
                json!({"type": "integer"}),
                json!({"rule": "self.z == 100"}),
                "rule",
                "type 'int' does not support field selection",
            ),
            (
                json!({"type": "object", "properties": {}}),
                json!({"rule": "self.z == 100"}),
                "rule",
                "undefined field 'z'",
            ),
            (
                json!({"type": "integer"}),
                json!({"rule": "self ="}),
                "rule",
                "compilation failed: ERROR: <input>:1:6: Syntax error",
            ),
            (json!({"type": "integer"}), json!({"rule": "self"}), "rule", "cel expression must evaluate to a bool"),
            (
                json!({"type": "integer"}),
                json!({"rule": "self > 1", "messageExpression": "1"}),
                "messageExpression",
                "messageExpression must evaluate to a string",
            ),
            (
                json!({"type": "integer"}),
                json!({"rule": "self > 1", "messageExpression": "self +"}),
                "messageExpression",
                "messageExpression compilation failed: ERROR",
            ),
            (
                json!({"type": "integer"}),
                json!({"rule": "self > 1", "optionalOldSelf": true}),
                "optionalOldSelf",
                "may not be set if oldSelf is not used in rule",
            ),
            (json!({"type": "string"}), json!({"rule": "self.find('(') == ''"}), "rule", "error parsing regexp"),
        ] {
            let found = said(of("a", with_rule(schema, rule.clone())));
            assert_eq!(found.len(), 1, "{rule}: {found:?}");
            assert!(found[0].starts_with(&format!("{a}.{field}: ")) && found[0].contains(why), "{found:?}");
        }
        assert!(said(of("a", with_rule(json!({"type": "integer"}), json!({"rule": "self > 1"})))).is_empty());
    }

    #[test]
    fn nobody_knows_the_items_of_a_list_without_keys_again() {
        let item = with_rule(json!({"type": "string", "maxLength": 5}), json!({"rule": "self == oldSelf"}));
        let list = json!({"type": "array", "maxItems": 5, "items": item});
        let found = said(of("l", list));
        let why = "oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]";
        assert_eq!(found, [format!("s.properties[l].items.x-kubernetes-validations[0].rule: {why}")]);
    }

    #[test]
    fn what_can_cost_too_much_is_refused() {
        let text = json!({"type": "string"});
        let matched = with_rule(text, json!({"rule": "self.matches('a*b*c*')"}));
        let list = |items: Value| json!({"type": "array", "items": items});
        let found = said(of("u", list(list(matched.clone()))));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(
            found[0].contains("rule: estimated rule cost exceeds budget by factor of more than 100x (try "),
            "{found:?}"
        );
        assert!(
            found[1].contains("contributed to estimated rule cost total") && found[2].starts_with("s: "),
            "{found:?}"
        );
        let bounded = json!({"type": "string", "maxLength": 100});
        let matched = with_rule(bounded, json!({"rule": "self.matches('a*b*c*')"}));
        let few = |items: Value| json!({"type": "array", "maxItems": 100, "items": items});
        assert!(said(of("u", few(few(matched)))).is_empty());
        // Each is cheap enough, and all together are not.
        let mut properties = serde_json::Map::new();
        for i in 0..20 {
            let string = json!({"type": "string", "maxLength": 1_000});
            let matched = with_rule(string, json!({"rule": "self.matches('abcdefghijklmnop')"}));
            properties.insert(format!("p{i:02}"), json!({"type": "array", "maxItems": 4_000, "items": matched}));
        }
        let found = said(json!({"type": "object", "properties": properties}));
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(
            found[0]
                .contains("contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema")
        );
        assert!(found[4].starts_with("s: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of "));
    }
}
