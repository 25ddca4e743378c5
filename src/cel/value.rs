//! Values of expressions: made by them, or views of JSON as its schema says it is.
//!
//! Values are cheap to copy: what is large is shared or borrowed.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value as Json;

use super::authorizer::{Decision, Query};
use super::expr::Literal;
use super::format::Format;
use super::meter::{Failure, Meter};
use super::semver::Semver;
use super::time::{self, Time};
use super::types::{Decl, DeclKind, ObjectType, Order, Type};
use super::url::Url;
use crate::base::quantity::Quantity;

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// In nanoseconds.
    Duration(i64),
    Timestamp(Time),
    List(List<'a>),
    Map(Map<'a>),
    Type(Type),
    Optional(Option<Arc<Value<'a>>>),
    Url(Arc<Url>),
    Quantity(Box<Quantity>),
    Ip(IpAddr),
    /// An address and the length of its prefix.
    Cidr(IpAddr, u8),
    Format(&'static Format),
    Semver(Arc<Semver>),
    Query(Arc<Query>),
    Decision(Arc<Decision>),
}

/// A text, borrowed or shared.
#[derive(Clone, Debug)]
pub enum Text<'a> {
    Data(&'a str),
    Made(Arc<str>),
}

#[derive(Clone, Debug)]
pub enum List<'a> {
    Made(Arc<Vec<Value<'a>>>),
    Data(&'a [Json], &'a Decl, &'a Order),
}

#[derive(Clone, Debug)]
pub enum Map<'a> {
    Made(Arc<BTreeMap<Key<'a>, Value<'a>>>),
    Data(&'a serde_json::Map<String, Json>, &'a Decl),
    Object(&'a serde_json::Map<String, Json>, &'a ObjectType),
    /// Fields that are made when they are asked for.
    Lazy(&'a dyn Fields),
    Message(Arc<Message<'a>>),
}

/// A message that an expression has made.
#[derive(Debug)]
pub struct Message<'a> {
    pub name: Arc<str>,
    pub fields: BTreeMap<Box<str>, Value<'a>>,
}

/// An object whose fields are made when they are asked for.
pub trait Fields: fmt::Debug + Sync {
    /// The field of this name; what making it cost is counted.
    fn field<'s>(&'s self, name: &str, meter: &mut Meter) -> Option<Result<Value<'s>, Failure>>;
}

/// A key of a map. Numbers are equal by what they are, not by their type.
#[derive(Clone, Debug)]
pub enum Key<'a> {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Text<'a>),
}

// === impl Text ===

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Data(text) => text,
            Self::Made(text) => text,
        }
    }
}

// === impl Key ===

impl<'a> Key<'a> {
    /// A value as a key, if it can be one.
    pub(super) fn of(value: &Value<'a>) -> Option<Self> {
        Some(match value {
            Value::Bool(b) => Self::Bool(*b),
            Value::Int(n) => Self::Int(*n),
            Value::Uint(n) => Self::Uint(*n),
            Value::Double(d) if d.fract() == 0.0 && *d >= -9.2e18 && *d <= 9.2e18 => Self::Int(*d as i64),
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }

    pub(super) fn value(&self) -> Value<'a> {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(n) => Value::Int(*n),
            Self::Uint(n) => Value::Uint(*n),
            Self::String(text) => Value::String(text.clone()),
        }
    }

    fn rank(&self) -> (u8, i128, &str) {
        match self {
            Self::Bool(b) => (0, i128::from(*b), ""),
            Self::Int(n) => (1, i128::from(*n), ""),
            Self::Uint(n) => (1, i128::from(*n), ""),
            Self::String(text) => (2, 0, text),
        }
    }
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Key<'_> {}

impl PartialOrd for Key<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

// === impl List ===

impl<'a> List<'a> {
    pub(super) fn made(items: Vec<Value<'a>>) -> Self {
        Self::Made(Arc::new(items))
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Made(items) => items.len(),
            Self::Data(items, ..) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Result<Value<'a>, Failure>> {
        match self {
            Self::Made(items) => items.get(index).cloned().map(Ok),
            Self::Data(items, of, _) => items.get(index).map(|item| view(item, of)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, Failure>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

// === impl Map ===

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Made(entries) => entries.len(),
            Self::Data(members, _) | Self::Object(members, _) => members.len(),
            Self::Message(message) => message.fields.len(),
            Self::Lazy(_) => 0,
        }
    }

    /// What is at a key.
    pub(super) fn get(&self, key: &Value<'a>, meter: &mut Meter) -> Option<Result<Value<'a>, Failure>> {
        let Some(key) = Key::of(key) else {
            return matches!(self, Self::Data(..) | Self::Object(..)).then(|| Err(Failure::no_overload()));
        };
        match (self, &key) {
            (Self::Made(entries), key) => entries.get(key).cloned().map(Ok),
            (_, Key::String(name)) => self.field(name, meter),
            _ => None,
        }
    }

    /// What is at a text.
    pub(super) fn field(&self, name: &str, meter: &mut Meter) -> Option<Result<Value<'a>, Failure>> {
        match self {
            Self::Made(entries) => entries.get(&Key::String(Text::Made(name.into()))).cloned().map(Ok),
            Self::Data(members, of) => members.get(name).map(|v| view(v, of)),
            Self::Object(members, object) => {
                let field = object.fields.get(name)?;
                members.get(&*field.name).filter(|v| !v.is_null()).map(|v| view(v, &field.decl))
            }
            Self::Lazy(fields) => fields.field(name, meter),
            Self::Message(message) => message.fields.get(name).cloned().map(Ok),
        }
    }

    /// Its keys.
    pub(super) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Made(entries) => entries.keys().map(Key::value).collect(),
            Self::Data(members, _) => members.keys().map(|k| Value::String(Text::Data(k))).collect(),
            Self::Object(members, object) => {
                let there = object.fields.iter().filter(|(_, f)| members.contains_key(&*f.name));
                there.map(|(name, _)| Value::String(Text::Data(name))).collect()
            }
            Self::Lazy(_) => Vec::new(),
            Self::Message(message) => message.fields.keys().map(|name| Value::text(&**name)).collect(),
        }
    }
}

// === impl Value ===

impl<'a> Value<'a> {
    /// A text that was made.
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Made(text.into()))
    }

    /// A value, or none.
    pub fn optional(value: Option<Self>) -> Self {
        Self::Optional(value.map(Arc::new))
    }

    /// JSON as a schema says it is; what is of another type is an error.
    pub fn of_json(json: &'a Json, of: &'a Decl) -> Result<Self, Failure> {
        view(json, of)
    }

    pub(super) fn literal(literal: &Literal) -> Self {
        match literal {
            Literal::Null => Self::Null,
            Literal::Bool(b) => Self::Bool(*b),
            Literal::Int(n) => Self::Int(*n),
            Literal::Uint(n) => Self::Uint(*n),
            Literal::Double(d) => Self::Double(*d),
            Literal::String(text) => Self::String(Text::Made(text.clone())),
            Literal::Bytes(bytes) => Self::Bytes(bytes.clone()),
        }
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::made(items))
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// Its type, types of members aside.
    pub(super) fn type_of(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(Map::Message(message)) => Type::message(&message.name),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Type(_) => Type::type_of(Type::Dyn),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Url(_) => Type::Named("kubernetes.URL"),
            Self::Quantity(_) => Type::Named("kubernetes.Quantity"),
            Self::Ip(_) => Type::Named("net.IP"),
            Self::Cidr(..) => Type::Named("net.CIDR"),
            Self::Format(_) => Type::Named("kubernetes.NamedFormat"),
            Self::Semver(_) => Type::Named("kubernetes.Semver"),
            Self::Query(query) => Type::Named(query.type_name()),
            Self::Decision(_) => Type::Named("kubernetes.authorization.Decision"),
        }
    }

    /// How large it is, as `size()` and costs have it; one where it has no size.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::String(text) => text.chars().count() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::List(list) => list.len() as u64,
            Self::Map(map) => map.len() as u64,
            Self::Ip(IpAddr::V4(_)) => 4,
            Self::Ip(IpAddr::V6(_)) => 16,
            Self::Cidr(_, bits) => u64::from(*bits).div_ceil(8),
            Self::Optional(Some(value)) => value.size(),
            _ => 1,
        }
    }

    /// Whether it is what there is where nothing was said.
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Null | Self::Optional(None) => true,
            Self::Bool(b) => !b,
            Self::Int(n) | Self::Duration(n) => *n == 0,
            Self::Uint(n) => *n == 0,
            Self::Double(d) => *d == 0.0,
            Self::String(text) => text.is_empty(),
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::List(list) => list.len() == 0,
            Self::Map(map) => map.len() == 0,
            Self::Timestamp(time) => *time == Time::MIN,
            _ => false,
        }
    }
}

// === JSON as its schema says it is ===

/// The items of a list of which nothing is known.
static UNTYPED: Decl = Decl { kind: DeclKind::Untyped, nullable: true, elements_max: 0, bytes_min: 0 };
static ATOMIC: Order = Order::Atomic;

/// A value; what is of another type than the schema says is an error.
fn view<'a>(json: &'a Json, of: &'a Decl) -> Result<Value<'a>, Failure> {
    if json.is_null() && !matches!(of.kind, DeclKind::Untyped) {
        return match of.nullable {
            true => Ok(Value::Null),
            false => Err(Failure::error("invalid data, got null for schema with nullable=false")),
        };
    }
    let wrong = |expected: &str| Failure::error(format!("invalid data, expected {expected}, got {}", name(json)));
    match (&of.kind, json) {
        (DeclKind::Untyped, _) => Ok(untyped(json)),
        (DeclKind::IntOrString | DeclKind::String, Json::String(text)) => Ok(Value::String(Text::Data(text))),
        (DeclKind::IntOrString | DeclKind::Int, Json::Number(n)) if n.is_i64() => {
            Ok(Value::Int(n.as_i64().unwrap_or(0)))
        }
        (DeclKind::IntOrString, _) => {
            Err(Failure::error("invalid data, expected XIntOrString value to be either a string or integer"))
        }
        (DeclKind::Bool, Json::Bool(b)) => Ok(Value::Bool(*b)),
        (DeclKind::Double, Json::Number(n)) => Ok(Value::Double(n.as_f64().unwrap_or(0.0))),
        (DeclKind::Bytes, Json::String(text)) => bytes(text),
        (DeclKind::Duration, Json::String(text)) => {
            let nanos = time::schema_duration(text);
            nanos.map(Value::Duration).ok_or_else(|| Failure::error(format!("Invalid duration {text}")))
        }
        (DeclKind::Date, Json::String(text)) => {
            let found = Time::parse(&format!("{text}T00:00:00Z"));
            found.map(Value::Timestamp).ok_or_else(|| Failure::error(format!("Invalid date formatted string {text}")))
        }
        (DeclKind::DateTime, Json::String(text)) => Time::parse(text)
            .map(Value::Timestamp)
            .ok_or_else(|| Failure::error(format!("Invalid date-time formatted string {text}"))),
        (DeclKind::List(item, order), Json::Array(items)) => Ok(Value::List(List::Data(items, item, order))),
        (DeclKind::Map(value), Json::Object(members)) => Ok(Value::Map(Map::Data(members, value))),
        (DeclKind::Object(object), Json::Object(members)) => Ok(Value::Map(Map::Object(members, object))),
        (DeclKind::Bool, _) => Err(wrong("bool")),
        (DeclKind::Int, _) => Err(wrong("int")),
        (DeclKind::Double, _) => Err(wrong("float")),
        (DeclKind::List(..), _) => Err(wrong("an array for the provided schema with type=array")),
        (DeclKind::Map(_) | DeclKind::Object(_), _) => Err(wrong("a map for the provided schema with type=object")),
        (DeclKind::String | DeclKind::Bytes | DeclKind::Duration | DeclKind::Date | DeclKind::DateTime, _) => {
            Err(wrong("string"))
        }
    }
}

fn name(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(n) if n.is_f64() => "float64",
        Json::Number(_) => "int64",
        Json::String(_) => "string",
        Json::Array(_) => "list",
        Json::Object(_) => "map",
    }
}

fn untyped(json: &Json) -> Value<'_> {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(n) => n.as_i64().map_or_else(|| Value::Double(n.as_f64().unwrap_or(0.0)), Value::Int),
        Json::String(text) => Value::String(Text::Data(text)),
        Json::Array(items) => Value::List(List::Data(items, &UNTYPED, &ATOMIC)),
        Json::Object(members) => Value::Map(Map::Data(members, &UNTYPED)),
    }
}

fn bytes(text: &str) -> Result<Value<'static>, Failure> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    STANDARD
        .decode(text)
        .map(|b| Value::Bytes(b.into()))
        .map_err(|e| Failure::error(format!("Invalid byte formatted string {text}: {e}")))
}
