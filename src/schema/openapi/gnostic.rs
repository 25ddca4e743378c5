//! OpenAPI version 2 as the protobuf message `openapi.v2.Document` (gnostic's `OpenAPIv2.proto`), which is the only form that
//! kubectl and client-go read.
//!
//! The numbers below are those of the published message, for the members that our documents have: a table a message, so that
//! whatever has been written as JSON, piece by piece, can be written in this form too. Invariant: a member that has no number
//! is one of `x-...`, which all messages keep as YAML in a list; any other is a mistake that the test finds.

use serde_json::{Map, Value};

/// What a member becomes.
enum Encoding {
    Text,
    Flag,
    Integer,
    Number,
    /// Any value, as YAML in a message; a list of them is as many fields.
    Any,
    /// The same for one value that may be a list.
    Value,
    /// A schema or whether there may be any.
    SchemaOrFlag,
    /// A string or a list of strings, each a field.
    Texts,
    /// The same in a message of its own, as field 1.
    TextsWithin,
    /// A message, inside messages of a single field each.
    Message(&'static [u32], &'static Message),
    /// A list of parameters: which message each is depends on where it is.
    Parameters,
    /// An object whose members are repeated messages of a name and a value, in a message with this number for them.
    Named(u32, &'static [u32], &'static Message),
}

/// A message: its members by name, and the number of the list that keeps `x-...`.
struct Message {
    members: &'static [(&'static str, u32, Encoding)],
    extensions: u32,
}

static SCHEMA: Message = Message {
    members: &[
        ("$ref", 1, Encoding::Text),
        ("format", 2, Encoding::Text),
        ("title", 3, Encoding::Text),
        ("description", 4, Encoding::Text),
        ("default", 5, Encoding::Value),
        ("multipleOf", 6, Encoding::Number),
        ("maximum", 7, Encoding::Number),
        ("exclusiveMaximum", 8, Encoding::Flag),
        ("minimum", 9, Encoding::Number),
        ("exclusiveMinimum", 10, Encoding::Flag),
        ("maxLength", 11, Encoding::Integer),
        ("minLength", 12, Encoding::Integer),
        ("pattern", 13, Encoding::Text),
        ("maxItems", 14, Encoding::Integer),
        ("minItems", 15, Encoding::Integer),
        ("uniqueItems", 16, Encoding::Flag),
        ("maxProperties", 17, Encoding::Integer),
        ("minProperties", 18, Encoding::Integer),
        ("required", 19, Encoding::Texts),
        ("enum", 20, Encoding::Any),
        ("additionalProperties", 21, Encoding::SchemaOrFlag),
        ("type", 22, Encoding::TextsWithin),
        ("items", 23, Encoding::Message(&[1], &SCHEMA)),
        ("properties", 25, Encoding::Named(1, &[], &SCHEMA)),
        ("externalDocs", 29, Encoding::Message(&[], &EXTERNAL_DOCS)),
        ("example", 30, Encoding::Value),
    ],
    extensions: 31,
};

static EXTERNAL_DOCS: Message =
    Message { members: &[("description", 1, Encoding::Text), ("url", 2, Encoding::Text)], extensions: 3 };

static PATH_ITEM: Message = Message {
    members: &[
        ("get", 2, Encoding::Message(&[], &OPERATION)),
        ("put", 3, Encoding::Message(&[], &OPERATION)),
        ("post", 4, Encoding::Message(&[], &OPERATION)),
        ("delete", 5, Encoding::Message(&[], &OPERATION)),
        ("options", 6, Encoding::Message(&[], &OPERATION)),
        ("head", 7, Encoding::Message(&[], &OPERATION)),
        ("patch", 8, Encoding::Message(&[], &OPERATION)),
        ("parameters", 9, Encoding::Parameters),
    ],
    extensions: 10,
};

static OPERATION: Message = Message {
    members: &[
        ("tags", 1, Encoding::Texts),
        ("summary", 2, Encoding::Text),
        ("description", 3, Encoding::Text),
        ("operationId", 5, Encoding::Text),
        ("produces", 6, Encoding::Texts),
        ("consumes", 7, Encoding::Texts),
        ("parameters", 8, Encoding::Parameters),
        ("responses", 9, Encoding::Named(1, &[1], &RESPONSE)),
        ("schemes", 10, Encoding::Texts),
        ("deprecated", 11, Encoding::Flag),
    ],
    extensions: 13,
};

static RESPONSE: Message = Message {
    members: &[("description", 1, Encoding::Text), ("schema", 2, Encoding::Message(&[1], &SCHEMA))],
    extensions: 5,
};

static BODY_PARAMETER: Message = Message {
    members: &[
        ("description", 1, Encoding::Text),
        ("name", 2, Encoding::Text),
        ("in", 3, Encoding::Text),
        ("required", 4, Encoding::Flag),
        ("schema", 5, Encoding::Message(&[], &SCHEMA)),
    ],
    extensions: 6,
};

static QUERY_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Encoding::Flag),
        ("in", 2, Encoding::Text),
        ("description", 3, Encoding::Text),
        ("name", 4, Encoding::Text),
        ("type", 6, Encoding::Text),
        ("format", 7, Encoding::Text),
        ("uniqueItems", 20, Encoding::Flag),
    ],
    extensions: 23,
};

/// As in a query, but it cannot be empty, so every number from `type` on is one less.
static PATH_PARAMETER: Message = Message {
    members: &[
        ("required", 1, Encoding::Flag),
        ("in", 2, Encoding::Text),
        ("description", 3, Encoding::Text),
        ("name", 4, Encoding::Text),
        ("type", 5, Encoding::Text),
        ("format", 6, Encoding::Text),
        ("uniqueItems", 19, Encoding::Flag),
    ],
    extensions: 22,
};

static INFO: Message =
    Message { members: &[("title", 1, Encoding::Text), ("version", 2, Encoding::Text)], extensions: 7 };

static API_KEY: Message = Message {
    members: &[
        ("type", 1, Encoding::Text),
        ("name", 2, Encoding::Text),
        ("in", 3, Encoding::Text),
        ("description", 4, Encoding::Text),
    ],
    extensions: 5,
};

// === impl Message ===

impl Message {
    /// Appends the fields of an object.
    fn write(&self, object: &Value, out: &mut Vec<u8>) {
        let Some(object) = object.as_object() else { return };
        for (name, number, form) in self.members {
            if let Some(value) = object.get(*name) {
                form.write(*number, value, out);
            }
        }
        let is_known = |name: &str| self.members.iter().any(|(n, ..)| *n == name);
        for (name, value) in object {
            debug_assert!(name.starts_with("x-") || is_known(name), "{name} has no number");
            if name.starts_with("x-") {
                // JSON is YAML; whoever reads it reads a line of YAML.
                let yaml = field(2, format!("{value}\n").as_bytes());
                put(self.extensions, &named(name, &yaml), out);
            }
        }
    }

    fn bytes(&self, object: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(object, &mut out);
        out
    }
}

// === impl Encoding ===

impl Encoding {
    fn write(&self, number: u32, value: &Value, out: &mut Vec<u8>) {
        match self {
            Encoding::Text => put_unless_empty(number, value.as_str().unwrap_or(""), out),
            Encoding::Flag => {
                if value.as_bool() == Some(true) {
                    varint(u64::from(number) << 3, out);
                    out.push(1);
                }
            }
            Encoding::Integer => {
                varint(u64::from(number) << 3, out);
                varint(value.as_i64().unwrap_or(0) as u64, out);
            }
            Encoding::Number => {
                varint(u64::from(number) << 3 | 1, out);
                out.extend_from_slice(&value.as_f64().unwrap_or(0.0).to_le_bytes());
            }
            Encoding::Any => {
                value.as_array().into_iter().flatten().for_each(|value| put(number, &any(value), out));
            }
            Encoding::Value => put(number, &any(value), out),
            Encoding::SchemaOrFlag => match value {
                Value::Bool(allowed) => put(number, &[2 << 3, u8::from(*allowed)], out),
                schema => put(number, &field(1, &SCHEMA.bytes(schema)), out),
            },
            Encoding::Texts => texts(value).for_each(|text| put(number, text.as_bytes(), out)),
            Encoding::TextsWithin => {
                let mut inner = Vec::new();
                texts(value).for_each(|text| put(1, text.as_bytes(), &mut inner));
                put(number, &inner, out);
            }
            Encoding::Message(within, message) => put(number, &wrapped(within, message.bytes(value)), out),
            Encoding::Parameters => {
                for parameter in value.as_array().into_iter().flatten() {
                    put(number, &self::parameter(parameter), out);
                }
            }
            Encoding::Named(entries, within, message) => {
                let mut inner = Vec::new();
                for (name, value) in value.as_object().into_iter().flatten() {
                    put(*entries, &named(name, &wrapped(within, message.bytes(value))), &mut inner);
                }
                put(number, &inner, out);
            }
        }
    }
}

/// One member of `paths`.
pub(super) fn path(path: &str, item: &Value) -> Vec<u8> {
    field(2, &named(path, &PATH_ITEM.bytes(item)))
}

/// One member of `definitions`.
pub(super) fn definition(name: &str, schema: &Value) -> Vec<u8> {
    field(1, &named(name, &SCHEMA.bytes(schema)))
}

/// The whole document, around its paths and definitions.
pub(super) fn document(head: &Map<String, Value>, paths: &[u8], definitions: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(paths.len() + definitions.len() + (1 << 10));
    put_unless_empty(1, head["swagger"].as_str().unwrap_or(""), &mut out);
    put(2, &INFO.bytes(&head["info"]), &mut out);
    put(8, paths, &mut out);
    put(9, definitions, &mut out);
    for requirement in head["security"].as_array().into_iter().flatten() {
        let mut inner = Vec::new();
        for (name, scopes) in requirement.as_object().into_iter().flatten() {
            let mut list = Vec::new();
            texts(scopes).for_each(|scope| put(1, scope.as_bytes(), &mut list));
            put(1, &named(name, &list), &mut inner);
        }
        put(12, &inner, &mut out);
    }
    Encoding::Named(1, &[2], &API_KEY).write(13, &head["securityDefinitions"], &mut out);
    out
}

fn parameter(parameter: &Value) -> Vec<u8> {
    // parameter, then body_parameter, or non_body_parameter and in it which one.
    match parameter["in"].as_str() {
        Some("body") => wrapped(&[1, 1], BODY_PARAMETER.bytes(parameter)),
        Some("path") => wrapped(&[1, 2, 4], PATH_PARAMETER.bytes(parameter)),
        _ => wrapped(&[1, 2, 3], QUERY_PARAMETER.bytes(parameter)),
    }
}

/// Any value as text: JSON is YAML.
fn any(value: &Value) -> Vec<u8> {
    field(2, format!("{value}\n").as_bytes())
}

/// A name and a message.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + value.len() + 8);
    put(1, name.as_bytes(), &mut out);
    put(2, value, &mut out);
    out
}

/// A message inside messages, the outermost first.
fn wrapped(within: &[u32], message: Vec<u8>) -> Vec<u8> {
    within.iter().rev().fold(message, |inner, number| field(*number, &inner))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let (one, many) = (value.as_str(), value.as_array().into_iter().flatten().filter_map(Value::as_str));
    one.into_iter().chain(many)
}

fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    put(number, bytes, &mut out);
    out
}

fn put_unless_empty(number: u32, text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() {
        put(number, text.as_bytes(), out);
    }
}

fn put(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(number) << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}
