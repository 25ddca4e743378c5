//! Structural schemas of custom kinds, as trees that pruning, defaulting and validation walk
//! (`k8s.io/apiextensions-apiserver/pkg/apiserver/schema`).
//!
//! A tree is made once of what a CustomResourceDefinition says and never changes. It is as deep as the definition's text, so
//! that recursion over it needs no limit of its own (`base::budget`).

pub(super) mod coerce;
mod default;
mod format;

pub use crate::base::pattern::{COMPILED_BYTES_MAX, Pattern, PatternError};
pub use format::{format_error, is_known_format};

use serde_json::Value;

use crate::base::json::{flag, list, map, text};

/// What one place of an object may be.
#[derive(Debug, Default)]
pub struct Structural {
    pub of: Type,
    pub nullable: bool,
    pub int_or_string: bool,
    /// Fields that are not listed stay.
    pub preserves_unknown: bool,
    /// An object of its own, with metadata.
    pub is_embedded: bool,
    pub default: Option<Value>,
    /// Sorted by name.
    pub properties: Box<[(Box<str>, Structural)]>,
    pub additional: Additional,
    pub items: Option<Box<Structural>>,
    pub list: ListOf,
    /// The object is compared and owned as a whole.
    pub is_atomic_map: bool,
    pub rules: Option<Box<Rules>>,
    /// Whether there is a default in it or below.
    has_defaults: bool,
}

/// The JSON type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Type {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// What other members than the listed ones an object has.
#[derive(Debug, Default)]
pub enum Additional {
    #[default]
    None,
    /// Of any form, but nothing of it is described.
    Any,
    Of(Box<Structural>),
}

/// How items of a list belong together.
#[derive(Debug, Default)]
pub enum ListOf {
    #[default]
    Atomic,
    Set,
    /// Told apart by these members.
    Map(Box<[Box<str>]>),
}

/// What a value must be like, beside its type.
#[derive(Debug, Default)]
pub struct Rules {
    pub format: Option<Box<str>>,
    pub maximum: Option<f64>,
    pub is_maximum_exclusive: bool,
    pub minimum: Option<f64>,
    pub is_minimum_exclusive: bool,
    pub length_max: Option<i64>,
    pub length_min: Option<i64>,
    pub pattern: Option<Pattern>,
    pub items_max: Option<i64>,
    pub items_min: Option<i64>,
    pub multiple_of: Option<f64>,
    pub properties_max: Option<i64>,
    pub properties_min: Option<i64>,
    pub required: Box<[Box<str>]>,
    pub one_of_values: Box<[Value]>,
    pub all_of: Box<[Structural]>,
    pub any_of: Box<[Structural]>,
    pub one_of: Box<[Structural]>,
    pub not: Option<Box<Structural>>,
}

// === impl Structural ===

impl Structural {
    /// The tree of a JSONSchemaProps; what is not supported in one is left out: definitions are validated before.
    pub fn parse(schema: &Value) -> Self {
        let properties: Vec<(Box<str>, Self)> = map(schema, "properties")
            .into_iter()
            .flatten()
            .map(|(name, of)| (name.as_str().into(), Self::parse(of)))
            .collect();
        let additional = match schema.get("additionalProperties") {
            Some(Value::Bool(true)) => Additional::Any,
            Some(of) if of.is_object() => Additional::Of(Box::new(Self::parse(of))),
            _ => Additional::None,
        };
        let items = schema.get("items").filter(|i| i.is_object()).map(|i| Box::new(Self::parse(i)));
        let default = schema.get("default").filter(|d| !d.is_null()).cloned();
        let below = properties.iter().any(|(_, p)| p.has_defaults)
            || items.as_ref().is_some_and(|i| i.has_defaults)
            || matches!(&additional, Additional::Of(of) if of.has_defaults);
        Self {
            of: Type::parse(text(schema, "type")),
            nullable: flag(schema, "nullable"),
            int_or_string: extension(schema, "x-kubernetes-int-or-string"),
            preserves_unknown: extension(schema, "x-kubernetes-preserve-unknown-fields"),
            is_embedded: extension(schema, "x-kubernetes-embedded-resource"),
            has_defaults: default.is_some() || below,
            default,
            properties: properties.into(),
            additional,
            items,
            list: ListOf::parse(schema),
            is_atomic_map: schema.get("x-kubernetes-map-type").is_some_and(|t| t == "atomic"),
            rules: Rules::parse(schema).map(Box::new),
        }
    }

    /// The listed member of this name.
    pub fn property(&self, name: &str) -> Option<&Self> {
        let found = self.properties.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        Some(&self.properties[found].1)
    }

    /// What a member of this name is: a listed one, or any other that there may be.
    pub fn member(&self, name: &str) -> Option<&Self> {
        self.property(name).or(match &self.additional {
            Additional::Of(of) => Some(of),
            Additional::None | Additional::Any => None,
        })
    }

    /// What a dotted path leads to through listed members.
    pub fn at(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |of, name| of.property(name))
    }
}

fn extension(schema: &Value, name: &str) -> bool {
    schema.get(name) == Some(&Value::Bool(true))
}

// === impl Type ===

impl Type {
    fn parse(text: &str) -> Self {
        match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => Self::Any,
        }
    }

    /// Its word in schemas.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

// === impl ListOf ===

impl ListOf {
    fn parse(schema: &Value) -> Self {
        match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => Self::Set,
            Some("map") => {
                let keys = list(schema, "x-kubernetes-list-map-keys").iter().filter_map(Value::as_str);
                Self::Map(keys.map(Box::from).collect())
            }
            _ => Self::Atomic,
        }
    }
}

// === impl Rules ===

impl Rules {
    fn parse(schema: &Value) -> Option<Self> {
        let int = |key: &str| schema.get(key).and_then(Value::as_i64);
        let number = |key: &str| schema.get(key).and_then(Value::as_f64);
        let word = |key: &str| schema.get(key).and_then(Value::as_str).filter(|t| !t.is_empty());
        let all = |key: &str| list(schema, key).iter().map(Structural::parse).collect();
        const KEYS: [&str; 17] = [
            "format",
            "maximum",
            "minimum",
            "maxLength",
            "minLength",
            "pattern",
            "maxItems",
            "minItems",
            "multipleOf",
            "maxProperties",
            "minProperties",
            "required",
            "enum",
            "allOf",
            "anyOf",
            "oneOf",
            "not",
        ];
        if !KEYS.iter().any(|key| schema.get(*key).is_some()) {
            return None;
        }
        Some(Self {
            format: word("format").map(Box::from),
            maximum: number("maximum"),
            is_maximum_exclusive: flag(schema, "exclusiveMaximum"),
            minimum: number("minimum"),
            is_minimum_exclusive: flag(schema, "exclusiveMinimum"),
            length_max: int("maxLength"),
            length_min: int("minLength"),
            pattern: word("pattern").map(Pattern::new),
            items_max: int("maxItems"),
            items_min: int("minItems"),
            multiple_of: number("multipleOf"),
            properties_max: int("maxProperties"),
            properties_min: int("minProperties"),
            required: list(schema, "required").iter().filter_map(Value::as_str).map(Box::from).collect(),
            one_of_values: list(schema, "enum").into(),
            all_of: all("allOf"),
            any_of: all("anyOf"),
            one_of: all("oneOf"),
            not: schema.get("not").filter(|n| n.is_object()).map(|n| Box::new(Structural::parse(n))),
        })
    }
}
