//! Types of expressions, and what schemas say of values: their types, how many of something there may be, and how large they
//! are at least as JSON (`k8s.io/apiserver/pkg/cel/types.go`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Types in a type. A value can be of a type that is as large as twice to its length: what is larger is of any type.
const PARTS_MAX: u32 = 500;

/// What a value of an expression is.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    /// Anything; checked when it is evaluated.
    Dyn,
    /// Of an expression that is wrong.
    Error,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    Compound(Arc<Compound>),
    /// With fields that a schema names.
    Object(Arc<ObjectType>),
    /// Of a library, such as `kubernetes.URL`.
    Named(&'static str),
    /// Stands for a type that is not known yet.
    Param(u32),
}

/// A type with types in it.
#[derive(Debug, PartialEq)]
pub struct Compound {
    pub head: Head,
    pub params: Vec<Type>,
    parts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    List,
    Map,
    Optional,
    Type,
}

/// The message that says what is to become of an object; those in it are named by the way to them, as in `Object.spec`.
pub const OBJECT: &str = "Object";
/// The message that is one step of a JSON patch.
pub const JSON_PATCH: &str = "JSONPatch";

/// Whether a message of this name has all fields.
pub(super) fn has_any_field(name: &str) -> bool {
    name.strip_prefix(OBJECT).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The types of a library whose values are compared as such, not as messages.
pub(super) const OPAQUE: [&str; 2] = ["net.IP", "net.CIDR"];

// === impl Type ===

impl Type {
    /// A list of these.
    pub fn list(item: Self) -> Self {
        Self::compound(Head::List, vec![item])
    }

    /// A map from these to these.
    pub fn map(key: Self, value: Self) -> Self {
        Self::compound(Head::Map, vec![key, value])
    }

    /// One of these or none.
    pub fn optional(value: Self) -> Self {
        Self::compound(Head::Optional, vec![value])
    }

    /// A message of this name.
    pub fn message(name: &str) -> Self {
        Self::Object(Arc::new(ObjectType { name: name.into(), fields: BTreeMap::new() }))
    }

    pub(super) fn type_of(of: Self) -> Self {
        Self::compound(Head::Type, vec![of])
    }

    fn compound(head: Head, params: Vec<Self>) -> Self {
        let parts = params.iter().map(Self::parts).sum::<u32>() + 1;
        if parts > PARTS_MAX {
            return Self::Dyn;
        }
        Self::Compound(Arc::new(Compound { head, params, parts }))
    }

    fn parts(&self) -> u32 {
        match self {
            Self::Compound(c) => c.parts,
            _ => 1,
        }
    }

    /// What is in a list, a map or an optional value, if it is of this kind.
    pub(super) fn params(&self, head: Head) -> Option<&[Self]> {
        match self {
            Self::Compound(c) if c.head == head => Some(&c.params),
            _ => None,
        }
    }

    /// The type without the optional around it, and whether there was one.
    pub(super) fn unwrapped(&self) -> (&Self, bool) {
        self.params(Head::Optional).map_or((self, false), |p| (&p[0], true))
    }

    pub(super) fn is_dyn_or_error(&self) -> bool {
        matches!(self, Self::Dyn | Self::Error)
    }

    /// Whether its values all have one size.
    pub(super) fn is_scalar(&self) -> bool {
        match self {
            Self::Bool | Self::Double | Self::Duration | Self::Int | Self::Timestamp | Self::Uint => true,
            Self::Compound(c) => c.head == Head::Optional && c.params[0].is_scalar(),
            _ => false,
        }
    }

    /// Whether it may be null.
    pub(super) fn is_nullable(&self) -> bool {
        match self {
            Self::Null | Self::Object(_) | Self::Named(_) | Self::Duration | Self::Timestamp => true,
            Self::Compound(c) => c.head == Head::Optional,
            _ => false,
        }
    }

    /// Replaces what stands for other types, by what `of` says.
    pub(super) fn replaced(&self, of: &mut dyn FnMut(u32) -> Self) -> Self {
        match self {
            Self::Param(n) => of(*n),
            Self::Compound(c) if c.has_params() => {
                Self::compound(c.head, c.params.iter().map(|p| p.replaced(of)).collect())
            }
            other => other.clone(),
        }
    }

    /// Whether the other one says no less: it is of the same form where this one is not of any type.
    fn is_as_general(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn | Self::Param(_), _) => true,
            (_, Self::Dyn | Self::Param(_)) => false,
            (Self::Compound(a), Self::Compound(b)) => {
                a.head == b.head
                    && (a.head == Head::Type || a.params.iter().zip(&b.params).all(|(a, b)| a.is_as_general(b)))
            }
            (a, b) => a == b,
        }
    }

    /// Whether both are of the same form, types that are not known yet aside.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Param(_), _) | (_, Self::Param(_)) => true,
            (Self::Compound(a), Self::Compound(b)) => {
                a.head == b.head && a.params.iter().zip(&b.params).all(|(a, b)| a.is_equivalent(b))
            }
            (a, b) => a == b,
        }
    }

    /// The more general one of two that fit.
    pub(super) fn most_general(self, other: Self) -> Self {
        if self.is_as_general(&other) { self } else { other }
    }

    /// Its name as a value: `type([1]) == list`.
    pub fn name(&self) -> &str {
        match self {
            Self::Dyn => "dyn",
            Self::Error => "!error!",
            Self::Null => "null_type",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Duration => "google.protobuf.Duration",
            Self::Timestamp => "google.protobuf.Timestamp",
            Self::Compound(c) => c.head.name(),
            Self::Object(o) => &o.name,
            Self::Named(name) => name,
            Self::Param(_) => "",
        }
    }
}

/// As cel-go's messages have it.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::Param(n) => write!(f, "_var{n}"),
            Self::Compound(c) => {
                f.write_str(c.head.name())?;
                for (i, param) in c.params.iter().enumerate() {
                    write!(f, "{}{param}", if i == 0 { "(" } else { ", " })?;
                }
                f.write_str(")")
            }
            other => f.write_str(other.name()),
        }
    }
}

impl Compound {
    fn has_params(&self) -> bool {
        self.params.iter().any(|p| match p {
            Type::Param(_) => true,
            Type::Compound(c) => c.has_params(),
            _ => false,
        })
    }
}

impl Head {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Map => "map",
            Self::Optional => "optional_type",
            Self::Type => "type",
        }
    }
}

/// The largest body of a request: what no schema bounds is bounded by it.
pub const REQUEST_BYTES_MAX: u64 = 3 << 20;

/// What a schema says of a place.
#[derive(Debug, PartialEq)]
pub struct Decl {
    pub kind: DeclKind,
    pub nullable: bool,
    /// Code points of a text, items of a list, entries of a map.
    pub elements_max: u64,
    /// The smallest that it can be as JSON.
    pub bytes_min: u64,
}

#[derive(Debug, PartialEq)]
pub enum DeclKind {
    /// An integer or a text.
    IntOrString,
    Bool,
    Int,
    Double,
    String,
    Bytes,
    Duration,
    Date,
    DateTime,
    List(Arc<Decl>, Order),
    Map(Arc<Decl>),
    Object(Arc<ObjectType>),
    /// Any JSON, as it is.
    Untyped,
}

/// How items of lists are compared.
#[derive(Debug, PartialEq)]
pub enum Order {
    /// One after the other.
    Atomic,
    Set,
    /// By the values of these members.
    Map(Box<[Box<str>]>),
}

/// An object whose fields are known.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub name: Box<str>,
    /// By their names in expressions.
    pub fields: BTreeMap<Box<str>, Field>,
}

#[derive(Clone, Debug)]
pub struct Field {
    /// The name in JSON.
    pub name: Box<str>,
    pub decl: Arc<Decl>,
}

/// Types are told apart by their names.
impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Decl {
    /// Of which only the kind is known.
    pub fn new(kind: DeclKind, elements_max: u64, bytes_min: u64) -> Self {
        Self { kind, nullable: false, elements_max, bytes_min }
    }

    /// What is known of values of a type: of its objects nothing.
    pub fn of_type(of: &Type) -> Self {
        let (kind, bytes_min) = match of {
            Type::Bool => (DeclKind::Bool, 4),
            Type::Int => (DeclKind::Int, 1),
            Type::Double => (DeclKind::Double, 1),
            Type::String => (DeclKind::String, 2),
            Type::Bytes => (DeclKind::Bytes, 2),
            Type::Duration => (DeclKind::Duration, 3),
            Type::Timestamp => (DeclKind::DateTime, 21),
            Type::Compound(c) if c.head == Head::List => {
                (DeclKind::List(Arc::new(Self::of_type(&c.params[0])), Order::Atomic), 2)
            }
            Type::Compound(c) if c.head == Head::Map && c.params[0] == Type::String => {
                (DeclKind::Map(Arc::new(Self::of_type(&c.params[1]))), 2)
            }
            _ => (DeclKind::Untyped, 1),
        };
        Self::new(kind, REQUEST_BYTES_MAX, bytes_min)
    }

    /// The type of its values in expressions.
    pub fn type_of(&self) -> Type {
        match &self.kind {
            DeclKind::IntOrString | DeclKind::Untyped => Type::Dyn,
            DeclKind::Bool => Type::Bool,
            DeclKind::Int => Type::Int,
            DeclKind::Double => Type::Double,
            DeclKind::String => Type::String,
            DeclKind::Bytes => Type::Bytes,
            DeclKind::Duration => Type::Duration,
            DeclKind::Date | DeclKind::DateTime => Type::Timestamp,
            DeclKind::List(item, _) => Type::list(item.type_of()),
            DeclKind::Map(value) => Type::map(Type::String, value.type_of()),
            DeclKind::Object(object) => Type::Object(object.clone()),
        }
    }

    /// What a list or a map has.
    pub fn element(&self) -> Option<&Arc<Self>> {
        match &self.kind {
            DeclKind::List(of, _) | DeclKind::Map(of) => Some(of),
            _ => None,
        }
    }

    /// The field of this name in expressions.
    pub fn field(&self, name: &str) -> Option<&Arc<Self>> {
        match &self.kind {
            DeclKind::Object(object) => object.fields.get(name).map(|f| &f.decl),
            _ => None,
        }
    }
}
