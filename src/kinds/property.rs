//! Properties of kinds: verbs, columns, selectable fields, names, generations.

use serde_json::Value;

/// Every verb of a normal resource, as discovery lists them.
pub const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The verbs of a custom resource, in the order in which discovery lists them.
pub const CUSTOM_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// A column of the table form.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    pub name: &'a str,
    /// OpenAPI type: string, integer, boolean, date.
    pub kind: &'a str,
    /// OpenAPI format; `name` marks the object's name.
    pub format: &'a str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
    pub description: &'a str,
}

/// A field that field selectors may name.
pub struct Field {
    pub name: &'static str,
    pub get: fn(&Value) -> String,
}

/// What bumps `metadata.generation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    None,
    /// Nothing: it stays 1 (PriorityClass).
    Once,
    /// Anything outside of metadata, and of the status where that is a subresource.
    Spec,
    /// As `Spec`, and annotations too (Deployment).
    SpecAndAnnotations,
    /// As `Spec`, and labels too (EndpointSlice).
    SpecAndLabels,
}

/// What `metadata.name` must look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    DnsSubdomain,
    DnsLabel,
    /// A DNS label that begins with a letter.
    Dns1035,
    /// A path segment: no `/`, no `%`, not `.` or `..` (RBAC).
    PathSegment,
}
