//! The shape of objects as plain values: types, fields and the marks that decoding, patches and server-side apply need.
//!
//! A [`Schema`] is built once, from the bundle for Kubernetes' own types or from a custom resource's definition, and is
//! never changed: everything that walks it holds a [`TypeRef`], two words that can be copied freely.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use super::structural::Structural;

/// Text that lives in the executable for built-in types and on the heap for custom ones.
pub type Name = Cow<'static, str>;

/// A set of types that refer to one another.
#[derive(Debug, Default)]
pub struct Schema {
    pub(super) structs: Vec<Struct>,
    pub(super) fields: Vec<Field>,
    pub(super) nodes: Vec<Node>,
    pub(super) by_name: HashMap<Name, u32>,
    /// The struct of a custom kind's objects, and what its definition says of them.
    pub(super) custom: Option<(u32, Arc<Structural>)>,
}

/// One named type with named fields.
#[derive(Debug)]
pub struct Struct {
    /// The definition's full name, such as `io.k8s.api.core.v1.Pod`.
    pub name: Name,
    /// Its fields are `fields[first..first + count]`, sorted by name.
    pub(super) first: u32,
    pub(super) count: u32,
    /// Whether server-side apply treats the whole value as one leaf.
    pub atomic: bool,
    /// Whether fields that are not listed are kept (custom resources only).
    pub preserve_unknown: bool,
    /// Group, version and kind, for the types that are served as objects.
    pub gvk: Option<(Name, Name, Name)>,
}

/// One field of a [`Struct`].
#[derive(Debug)]
pub struct Field {
    pub name: Name,
    pub(super) node: u32,
    pub emit: Emit,
    pub required: bool,
    pub patch: PatchStrategy,
    /// The member that tells items of a merged list apart in a strategic merge patch.
    pub merge_key: Option<Name>,
}

/// When the field is written though nothing was given for it, as Go's encoder does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// A pointer: written whenever it was given, also when zero.
    Set,
    /// Skipped when empty or zero.
    NonEmpty,
    /// Always written, as its zero value when unset.
    Always,
    /// Always written, as null when unset.
    Null,
    /// A struct that is skipped when nothing in it is set.
    NonZero,
}

/// How a strategic merge patch treats the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    /// Replaced whole although it is an object.
    pub replace: bool,
}

/// What a value may be.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    Scalar(Scalar),
    Struct {
        id: u32,
        atomic: bool,
    },
    Map {
        value: u32,
        atomic: bool,
    },
    /// `marked` tells a list that is declared atomic from one that is so by default.
    List {
        item: u32,
        kind: ListKind,
        marked: bool,
    },
    /// Any JSON value, kept as it is.
    Any,
    /// An embedded object of any kind, kept as it is.
    Raw,
    /// A JSON schema, a list of them, or a plain value.
    SchemaOr(u32),
}

/// The scalar kinds, as far as Go tells them apart in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Quantity,
    Time,
    MicroTime,
    Duration,
    IntOrString,
}

/// How items of a list belong together when it is merged.
#[derive(Debug, Clone, PartialEq)]
pub enum ListKind {
    Atomic,
    Set,
    Map(Vec<ListKey>),
}

/// A member that is part of an item's key, with the value that stands in when it is missing.
#[derive(Debug, Clone, PartialEq)]
pub struct ListKey {
    pub name: Name,
    pub default: Option<serde_json::Value>,
}

/// A place in a [`Schema`].
#[derive(Debug, Clone, Copy)]
pub struct TypeRef<'a> {
    pub(super) schema: &'a Schema,
    pub(super) node: u32,
}

// === impl Schema ===

impl Schema {
    /// The type of this definition name.
    pub fn type_of(&self, name: &str) -> Option<TypeRef<'_>> {
        let id = *self.by_name.get(name)?;
        Some(self.at(self.struct_nodes(id)))
    }

    /// The type of a custom kind's objects.
    pub fn custom_type(&self) -> Option<TypeRef<'_>> {
        self.custom.as_ref().map(|(id, _)| self.at(self.struct_nodes(*id)))
    }

    /// What a custom kind's definition says of its objects.
    pub fn structural(&self) -> Option<&Arc<Structural>> {
        self.custom.as_ref().map(|(_, tree)| tree)
    }

    pub(super) fn at(&self, node: u32) -> TypeRef<'_> {
        TypeRef { schema: self, node }
    }

    pub(super) fn fields_of(&self, id: u32) -> &[Field] {
        let s = &self.structs[id as usize];
        &self.fields[s.first as usize..(s.first + s.count) as usize]
    }

    pub(super) fn field_of(&self, id: u32, name: &str) -> Option<&Field> {
        let fields = self.fields_of(id);
        let i = fields.binary_search_by(|f| f.name.as_ref().cmp(name)).ok()?;
        Some(&fields[i])
    }

    /// The first `structs.len()` nodes are the structs themselves, in order.
    fn struct_nodes(&self, id: u32) -> u32 {
        id
    }
}

// === impl Node ===

impl Node {
    /// Whether the value itself decides how it is merged.
    pub fn is_untyped(&self) -> bool {
        matches!(self, Node::Any | Node::Raw | Node::SchemaOr(_))
    }
}

// === impl TypeRef ===

impl<'a> TypeRef<'a> {
    /// What this place may hold.
    pub fn node(&self) -> &'a Node {
        &self.schema.nodes[self.node as usize]
    }

    /// The struct behind this place, if it is one.
    pub fn as_struct(&self) -> Option<&'a Struct> {
        match self.node() {
            Node::Struct { id, .. } => Some(&self.schema.structs[*id as usize]),
            _ => None,
        }
    }

    /// The fields of a struct, sorted by name; empty for anything else.
    pub fn fields(&self) -> &'a [Field] {
        match self.node() {
            Node::Struct { id, .. } => self.schema.fields_of(*id),
            _ => &[],
        }
    }

    /// The named field of a struct.
    pub fn field(&self, name: &str) -> Option<&'a Field> {
        match self.node() {
            Node::Struct { id, .. } => self.schema.field_of(*id, name),
            _ => None,
        }
    }

    /// The type of a field that came from this schema.
    pub fn of(&self, field: &Field) -> TypeRef<'a> {
        self.schema.at(field.node)
    }

    /// The type of a struct's field or a map's value under this name.
    pub fn child(&self, name: &str) -> Option<TypeRef<'a>> {
        match self.node() {
            Node::Struct { id, .. } => self.schema.field_of(*id, name).map(|f| self.schema.at(f.node)),
            Node::Map { value, .. } => Some(self.schema.at(*value)),
            _ => None,
        }
    }

    /// The type of a list's items.
    pub fn item(&self) -> Option<TypeRef<'a>> {
        match self.node() {
            Node::List { item, .. } => Some(self.schema.at(*item)),
            _ => None,
        }
    }
}
