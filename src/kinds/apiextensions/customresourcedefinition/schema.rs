//! What the schema of a version must be like: structural, and of what OpenAPI has only what Kubernetes supports
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema/validation.go` and `.../pkg/apis/apiextensions/validation`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{expressions, lists, rules};
use crate::base::budget::size_of;
use crate::base::json::{flag, list, map, text};
use crate::kinds::check::Path;
use crate::kinds::custom::check_default;
use crate::kinds::field::{self, Errors};
use crate::schema::structural::{Additional, COMPILED_BYTES_MAX, Pattern, PatternError, Structural};
use crate::schema::{CustomNames, Schema};

/// What all patterns of a schema may take when compiled.
const PATTERNS_BYTES_MAX: usize = 16 << 20;
/// What it is worth to find that a text is no pattern.
const PATTERN_BYTES_WRONG: usize = 64 << 10;
/// What all defaults of a schema take as JSON: each may be filled in for any object that there is.
const DEFAULTS_BYTES_MAX: usize = 256 << 10;
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];
const UNSUPPORTED: [&str; 7] =
    ["id", "$schema", "$ref", "patternProperties", "dependencies", "additionalItems", "definitions"];
/// What may stand at the root where the status is looked at alone.
const AT_ROOT: [&str; 22] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// Where in an object a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// Calls `visit` for a schema and every one in it.
pub(super) fn each(schema: &Value, visit: &mut impl FnMut(&Value)) {
    visit(schema);
    for key in ["items", "not", "additionalProperties"] {
        schema.get(key).filter(|s| s.is_object()).into_iter().for_each(|s| each(s, visit));
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        list(schema, key).iter().for_each(|s| each(s, visit));
    }
    map(schema, "properties").into_iter().flatten().for_each(|(_, s)| each(s, visit));
}

/// Whether a schema, or one in it, has rules.
pub(super) fn has_rules(schema: &Value) -> bool {
    let mut found = false;
    each(schema, &mut |of| found |= !list(of, "x-kubernetes-validations").is_empty());
    found
}

/// Errors of the schema of a version, or of all, which stands in `openAPIV3Schema` below `path`.
pub(super) fn validate(errors: &mut Errors, path: &str, schema: &Value, has_status: bool) {
    let parent = Path::root(path);
    let root = parent.field("openAPIV3Schema");
    let before = errors.len();
    if has_status {
        at_root(errors, &root, schema);
    }
    if flag(schema, "nullable") {
        errors.push(field::forbidden(&root.field("nullable"), "nullable cannot be true at the root"));
    }
    let mut is_supported = true;
    each(schema, &mut |s| is_supported &= !UNSUPPORTED.iter().any(|key| s.get(*key).is_some_and(|v| *v != json!(""))));
    if is_supported {
        let mut found = Found::default();
        invariants(&mut found, &root, schema, Level::Root);
        let mut structural = found.errors;
        complete(&mut structural, &root, schema, schema);
        if structural.is_empty() {
            let tree = Structural::parse(schema);
            defaults(&mut structural, &root, &tree, false, true);
            defaults_size(&mut structural, &root, &tree);
        }
        errors.append(&mut structural);
    }
    supported(errors, &root, schema, &Context { is_root: true, ..Context::default() });
    if errors.len() == before && is_supported && has_rules(schema) {
        expressions::validate(errors, &root, schema);
    }
    if errors.len() == before && !is_supported {
        errors.push(field::invalid(&root, "", "the schema has members that are not supported"));
    }
    // What is accepted can be served.
    let names = CustomNames { definition: "object", group: "", version: "", kind: "" };
    if errors.len() == before
        && let Err(error) = Schema::custom(&names, schema)
    {
        errors.push(field::invalid(&root.field(&error.field), "", error.message));
    }
}

/// Errors of a schema, and its patterns as they were found: each is compiled once.
#[derive(Default)]
struct Found<'s> {
    errors: Errors,
    patterns: HashMap<&'s str, Option<String>>,
    pattern_bytes: usize,
}

// === impl Found ===

impl<'s> Found<'s> {
    fn push(&mut self, error: field::Error) {
        self.errors.push(error);
    }

    fn is_full(&self) -> bool {
        self.errors.is_full()
    }

    /// Why a text is no pattern, or one too many.
    fn pattern_error(&mut self, pattern: &'s str) -> Option<String> {
        if let Some(known) = self.patterns.get(pattern) {
            return known.clone();
        }
        if self.pattern_bytes > PATTERNS_BYTES_MAX {
            let why = format!("the patterns of the schema take more than {PATTERNS_BYTES_MAX} bytes when compiled");
            return Some(why);
        }
        let why = match Pattern::check(pattern) {
            Ok(bytes) => {
                self.pattern_bytes += bytes;
                None
            }
            Err(why) => {
                self.pattern_bytes += match why {
                    PatternError::Syntax(_) => PATTERN_BYTES_WRONG,
                    PatternError::Size => COMPILED_BYTES_MAX,
                };
                Some(format!("must be a valid regular expression, but isn't: {why}"))
            }
        };
        self.patterns.insert(pattern, why.clone());
        why
    }
}

fn at_root(errors: &mut Errors, path: &Path<'_>, schema: &Value) {
    for (key, value) in schema.as_object().into_iter().flatten() {
        if key == "type" && value != "object" {
            let why =
                "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.push(field::invalid(&path.field("type"), value.clone(), why));
            return;
        }
        if !AT_ROOT.contains(&key.as_str()) {
            let why = format!(
                "only {AT_ROOT:?} fields are allowed at the root of the schema if the status subresource is enabled"
            );
            errors.push(field::invalid(path, schema.clone(), why));
            return;
        }
    }
}

fn is_set(schema: &Value, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

/// What makes a schema structural.
fn invariants<'s>(errors: &mut Found<'s>, path: &Path<'_>, schema: &'s Value, level: Level) {
    if errors.is_full() {
        return;
    }
    let of_type = text(schema, "type");
    let (embedded, preserves) =
        (is_set(schema, "x-kubernetes-embedded-resource"), is_set(schema, "x-kubernetes-preserve-unknown-fields"));
    let (int_or_string, properties) = (is_set(schema, "x-kubernetes-int-or-string"), map(schema, "properties"));
    match schema.get("items").filter(|i| i.is_object()) {
        Some(items) => invariants(errors, &path.field("items"), items, Level::Item),
        None if of_type == "array" => errors.push(field::required(&path.field("items"), "must be specified")),
        None => {}
    }
    let members = path.field("properties");
    for (name, of) in properties.into_iter().flatten() {
        invariants(errors, &members.key(name), of, Level::Field);
    }
    if let Some(additional) = schema.get("additionalProperties") {
        let here = path.field("additionalProperties");
        if level == Level::Root {
            errors.push(field::forbidden(&here, "must not be used at the root"));
        }
        if embedded {
            errors.push(field::forbidden(&here, "must not be used if x-kubernetes-embedded-resource is set"));
        }
        if additional.is_object() {
            invariants(errors, &here, additional, Level::Field);
        }
    }
    if int_or_string && preserves {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(field::invalid(&path.field("x-kubernetes-preserve-unknown-fields"), true, why));
    }
    if int_or_string && embedded {
        let why = "must be false if x-kubernetes-int-or-string is true";
        errors.push(field::invalid(&path.field("x-kubernetes-embedded-resource"), true, why));
    }
    values(errors, path, schema, IntOrString::of(schema), level);
    let type_path = path.field("type");
    if embedded && of_type != "object" {
        let why = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(match of_type {
            "" => field::required(&type_path, why),
            of_type => field::invalid(&type_path, of_type, why),
        });
    } else if of_type.is_empty() && !int_or_string && !preserves {
        errors.push(field::required(
            &type_path,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if level == Level::Root && !of_type.is_empty() && of_type != "object" {
        errors.push(field::invalid(&type_path, of_type, "must be object at the root"));
    }
    described(errors, path, schema, level, embedded);
    if embedded && !preserves && properties.is_none_or(Map::is_empty) {
        let why = "must not be empty if x-kubernetes-embedded-resource is true without \
                   x-kubernetes-preserve-unknown-fields";
        errors.push(field::required(&members, why));
    }
}

/// What is said of the members that every object has.
fn described<'s>(errors: &mut Found<'s>, path: &Path<'_>, schema: &'s Value, level: Level, embedded: bool) {
    let Some(properties) = map(schema, "properties") else { return };
    let members = path.field("properties");
    let is_object = level == Level::Root || embedded;
    for name in ["kind", "apiVersion"] {
        if let Some(of) = properties.get(name).filter(|of| is_object && text(of, "type") != "string") {
            let member = members.key(name);
            errors.push(field::invalid(&member.field("type"), text(of, "type"), "must be string"));
        }
    }
    let Some(metadata) = properties.get("metadata").filter(|_| is_object) else { return };
    let here = members.key("metadata");
    if text(metadata, "type") != "object" {
        errors.push(field::invalid(&here.field("type"), text(metadata, "type"), "must be object"));
    }
    if level == Level::Root {
        let names = |of: &Value| of.as_object().is_some_and(|m| m.keys().all(|k| k == "name" || k == "generateName"));
        let mut others = metadata.as_object().into_iter().flatten();
        let restricts = others.any(|(key, value)| match key.as_str() {
            "type" | "default" => false,
            "properties" => !names(value),
            _ => true,
        });
        if restricts {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            errors.push(field::forbidden(&here, why));
        }
    }
}

/// Where the types that make int-or-string may stand among alternatives.
#[derive(Clone, Copy)]
struct IntOrString {
    any_of: bool,
    first_all_of: bool,
}

// === impl IntOrString ===

impl IntOrString {
    const NOWHERE: Self = Self { any_of: false, first_all_of: false };

    fn of(schema: &Value) -> Self {
        let pattern = json!([{"type": "integer"}, {"type": "string"}]);
        Self {
            any_of: schema.get("anyOf") == Some(&pattern),
            first_all_of: list(schema, "allOf").first().is_some_and(|s| s.get("anyOf") == Some(&pattern)),
        }
    }
}

/// What is said of the value itself.
fn values<'s>(errors: &mut Found<'s>, path: &Path<'_>, schema: &'s Value, types: IntOrString, level: Level) {
    for key in ["anyOf", "allOf", "oneOf"] {
        if key == "anyOf" && types.any_of {
            continue;
        }
        let all = path.field(key);
        for (i, of) in list(schema, key).iter().enumerate() {
            let types = IntOrString { any_of: key == "allOf" && i == 0 && types.first_all_of, ..IntOrString::NOWHERE };
            nested(errors, &all.index(i), of, types, level);
        }
    }
    if let Some(not) = schema.get("not").filter(|n| n.is_object()) {
        nested(errors, &path.field("not"), not, IntOrString::NOWHERE, level);
    }
    let pattern = text(schema, "pattern");
    if let Some(why) = errors.pattern_error(pattern) {
        errors.push(field::invalid(&path.field("pattern"), pattern, why));
    }
}

/// A schema among alternatives says something of the value and nothing of its structure.
fn nested<'s>(errors: &mut Found<'s>, path: &Path<'_>, schema: &'s Value, types: IntOrString, level: Level) {
    if errors.is_full() {
        return;
    }
    values(errors, path, schema, types, level);
    if let Some(items) = schema.get("items").filter(|i| i.is_object()) {
        nested(errors, &path.field("items"), items, IntOrString::NOWHERE, level);
    }
    let members = path.field("properties");
    for (name, of) in map(schema, "properties").into_iter().flatten() {
        nested(errors, &members.key(name), of, IntOrString::NOWHERE, Level::Field);
    }
    let mut forbid = |key: &str, why: &str| errors.push(field::forbidden(&path.field(key), why));
    for (key, why) in [
        ("type", "must be empty to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
    ] {
        if !text(schema, key).is_empty() {
            forbid(key, why);
        }
    }
    let is_given = |key: &str| schema.get(key).is_some_and(|v| !v.is_null() && *v != Value::Bool(false));
    for key in ["additionalProperties", "default", "x-kubernetes-list-type", "x-kubernetes-map-type"] {
        if is_given(key) {
            forbid(key, "must be undefined to be structural");
        }
    }
    for key in [
        "nullable",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-int-or-string",
    ] {
        if is_given(key) {
            forbid(key, "must be false to be structural");
        }
    }
    for key in ["x-kubernetes-list-map-keys", "x-kubernetes-validations"] {
        if !list(schema, key).is_empty() {
            forbid(key, "must be empty to be structural");
        }
    }
    if map(schema, "properties").is_some_and(|p| p.contains_key("metadata")) {
        errors.push(field::forbidden(&members.key("metadata"), "must not be specified in a nested context"));
    }
}

/// What alternatives speak of must be in the structure: `value` is a schema at a place that `of` describes.
fn complete(errors: &mut Errors, path: &Path<'_>, of: &Value, value: &Value) {
    for key in ["anyOf", "allOf", "oneOf"] {
        for alternative in list(value, key) {
            within(errors, path, of, alternative);
        }
    }
    if let Some(not) = value.get("not").filter(|n| n.is_object()) {
        within(errors, path, of, not);
    }
    if std::ptr::eq(of, value) {
        if let Some(items) = of.get("items").filter(|i| i.is_object()) {
            complete(errors, &path.field("items"), items, items);
        }
        let members = path.field("properties");
        for (name, member) in map(of, "properties").into_iter().flatten() {
            complete(errors, &members.key(name), member, member);
        }
        if let Some(additional) = of.get("additionalProperties").filter(|a| a.is_object()) {
            complete(errors, &path.field("additionalProperties"), additional, additional);
        }
    }
}

fn within(errors: &mut Errors, path: &Path<'_>, of: &Value, value: &Value) {
    if errors.is_full() {
        return;
    }
    complete(errors, path, of, value);
    let why = "because it is defined in a schema among alternatives";
    if let Some(items) = value.get("items").filter(|i| i.is_object()) {
        match of.get("items").filter(|i| i.is_object()) {
            Some(of) => within(errors, &path.field("items"), of, items),
            None => errors.push(field::required(&path.field("items"), why)),
        }
    }
    let members = path.field("properties");
    for (name, member) in map(value, "properties").into_iter().flatten() {
        match map(of, "properties").and_then(|p| p.get(name)) {
            Some(of) => within(errors, &members.key(name), of, member),
            None => errors.push(field::required(&members.key(name), why)),
        }
    }
}

/// Defaults must be what the schema allows and nothing more.
fn defaults(errors: &mut Errors, path: &Path<'_>, of: &Structural, in_meta: bool, is_root: bool) {
    if let Some(default) = of.default.as_ref().filter(|_| !in_meta) {
        let here = path.field("default");
        if of.pruned(default) != *default {
            errors.push(field::invalid(&here, default.clone(), "must not have unknown fields"));
        }
        errors.extend(check_default(&here.to_string(), of, default));
    }
    if let Some(items) = &of.items {
        defaults(errors, &path.field("items"), items, in_meta, false);
    }
    let members = path.field("properties");
    for (name, member) in &of.properties {
        let is_meta = (is_root || of.is_embedded) && matches!(&**name, "apiVersion" | "kind" | "metadata");
        defaults(errors, &members.key(name), member, in_meta || is_meta, false);
    }
}

fn defaults_size(errors: &mut Errors, path: &Path<'_>, of: &Structural) {
    fn sum(of: &Structural) -> usize {
        let own = of.default.as_ref().map_or(0, |default| size_of(default).json);
        let additional = match &of.additional {
            Additional::Of(of) => sum(of),
            Additional::None | Additional::Any => 0,
        };
        own + additional + of.items.as_deref().map_or(0, sum) + of.properties.iter().map(|(_, p)| sum(p)).sum::<usize>()
    }
    let bytes = sum(of);
    if bytes > DEFAULTS_BYTES_MAX {
        let why = format!("the defaults of the schema have {bytes} bytes, limit is {DEFAULTS_BYTES_MAX}");
        errors.push(field::invalid_unshown(path, why));
    }
}

#[derive(Clone, Copy, Default)]
struct Context {
    is_root: bool,
    in_meta: bool,
    /// Why there may be no defaults.
    no_defaults: Option<&'static str>,
}

/// What of OpenAPI is supported.
fn supported(errors: &mut Errors, path: &Path<'_>, schema: &Value, context: &Context) {
    if errors.is_full() {
        return;
    }
    let of_type = text(schema, "type");
    if !of_type.is_empty() && !TYPES.contains(&of_type) {
        errors.push(field::not_supported(&path.field("type"), of_type, &TYPES));
    }
    let mut forbid = |key: &str, why: &str| errors.push(field::forbidden(&path.field(key), why));
    if let Some(why) = context.no_defaults
        && schema.get("default").is_some_and(|d| !d.is_null())
    {
        forbid("default", why);
    }
    for key in UNSUPPORTED {
        if key != "$schema" && schema.get(key).is_some_and(|v| *v != json!("")) {
            forbid(key, &format!("{key} is not supported"));
        }
    }
    if of_type == "null" {
        forbid("type", "type cannot be set to null, use nullable as an alternative");
    }
    if schema.get("items").is_some_and(Value::is_array) {
        forbid("items", "items must be a schema object and not an array");
    }
    if context.in_meta && is_set(schema, "x-kubernetes-embedded-resource") {
        forbid("x-kubernetes-embedded-resource", "must not be used inside of resource meta");
    }
    if flag(schema, "uniqueItems") {
        forbid("uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic");
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        let here = path.field("x-kubernetes-preserve-unknown-fields");
        errors.push(field::invalid(&here, false, "must be true or undefined"));
    }
    below(errors, path, schema, context);
    lists::map_type(errors, path, schema);
    lists::list_type(errors, path, schema);
    rules::validate(errors, path, schema);
}

fn below(errors: &mut Errors, path: &Path<'_>, schema: &Value, context: &Context) {
    let inner = Context { is_root: false, ..*context };
    if let Some(additional) = schema.get("additionalProperties") {
        let here = path.field("additionalProperties");
        let has_properties = map(schema, "properties").is_some_and(|p| !p.is_empty());
        if has_properties && *additional != Value::Bool(true) {
            let why = "additionalProperties and properties are mutual exclusive";
            errors.push(field::forbidden(&here, why));
        }
        let why = "must not be set inside additionalProperties applying to object metadata";
        let context = Context { no_defaults: inner.no_defaults.or(context.in_meta.then_some(why)), ..inner };
        if additional.is_object() {
            supported(errors, &here, additional, &context);
        }
    }
    let members = path.field("properties");
    let is_object = context.is_root || is_set(schema, "x-kubernetes-embedded-resource");
    for (name, of) in map(schema, "properties").into_iter().flatten() {
        let why = match name.as_str() {
            "metadata" => Some("must not be set in top-level metadata"),
            "kind" => Some("must not be set in top-level kind"),
            "apiVersion" => Some("must not be set in top-level apiVersion"),
            _ => None,
        };
        let in_meta = inner.in_meta || (is_object && why.is_some());
        let no_defaults = inner.no_defaults.or(why.filter(|_| context.is_root));
        supported(errors, &members.key(name), of, &Context { in_meta, no_defaults, ..inner });
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        let all = path.field(key);
        for (i, of) in list(schema, key).iter().enumerate() {
            supported(errors, &all.index(i), of, &inner);
        }
    }
    for key in ["not", "items"] {
        if let Some(of) = schema.get(key).filter(|of| of.is_object()) {
            supported(errors, &path.field(key), of, &inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: Value) -> Vec<String> {
        let mut errors = Errors::new();
        validate(&mut errors, "spec.validation", &json!({"type": "object", "properties": {"spec": spec}}), false);
        errors.iter().map(|e| e.to_string()).collect()
    }

    #[test]
    fn all_that_is_accepted_can_be_served() {
        let text = json!({"type": "string"});
        assert_eq!(errors(json!({"type": "object", "properties": {"a": text}, "additionalProperties": true})), [""; 0]);
        let mut deep = text;
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        assert_eq!(errors(deep), [""; 0]);
    }

    #[test]
    fn patterns_take_so_much_together_and_each_text_is_compiled_once() {
        let of = |patterns: Vec<String>| {
            let fields = patterns.into_iter().enumerate();
            let fields: Map<String, Value> =
                fields.map(|(i, p)| (format!("f{i:05}"), json!({"type": "string", "pattern": p}))).collect();
            let found = errors(json!({"type": "object", "properties": fields}));
            found.iter().filter(|e| e.contains("when compiled")).count()
        };
        assert_eq!(of(vec!["^([a-z0-9]{1,63}\\.)+$".to_owned(); 20_000]), 0);
        assert_eq!(of((0..900).map(|i| format!("^v{i}$")).collect()), 0);
        assert!(of((0..200).map(|i| format!("^\\pL{{400}}{i}$")).collect()) > 0, "each takes long to compile");
        assert!(of((0..2000).map(|i| format!("^v{i}(")).collect()) > 0, "what is wrong takes time too");
    }

    #[test]
    fn what_multiplies_with_objects_is_bounded() {
        let names: Vec<String> = (0..100).map(|i| format!("k{i}")).collect();
        let fields: Map<String, Value> =
            names.iter().map(|name| (name.clone(), json!({"type": "string", "default": "x"}))).collect();
        let list = |keys: &[String]| {
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys,
                "items": {"type": "object", "properties": fields}})
        };
        assert_eq!(errors(list(&names[..32])), [""; 0]);
        assert!(errors(list(&names))[0].contains("must have at most 32 items"));
        let large = |bytes: usize| json!({"type": "object", "default": {"a": "x".repeat(bytes)}, "properties": {"a": {"type": "string"}}});
        assert_eq!(errors(large(100_000)), [""; 0]);
        assert!(errors(large(300_000))[0].contains("the defaults of the schema"), "{:?}", errors(large(300_000)));
    }
}
