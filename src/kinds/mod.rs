//! Every Kubernetes kind, one file each: pure data and small functions.
//!
//! A file registers its kind in [`BUILTIN`] at link time; [`registry::Registry`] holds these and the custom kinds of a
//! running server. Routes, discovery, OpenAPI, table output, short names, field selectors, store keys and watch caches
//! are derived from it, so a kind is one new file and one `mod` line of its group. See `docs/adding-a-kind.md`.

use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod check;
pub mod coordination;
pub mod core;
pub mod custom;
pub mod discovery;
pub mod events;
pub mod field;
mod kind_ref;
pub mod meta;
pub mod networking;
pub mod rbac;
pub mod registry;
pub mod scheduling;
pub mod storage;
mod strategy;
mod subresource;
pub mod table;

pub use kind_ref::KindRef;
pub use strategy::{Creation, Strategy, UpdateStrategy, Volatile, keep, keep_all_but};
pub use subresource::Subresource;

/// Collections in which nothing can be yet: group, version, plural and kind. kubectl lists the custom kinds before it checks the
/// fields of what it cannot patch, and takes "no such path" for a failure; that there are none is true.
pub const EMPTY: &[(&str, &str, &str, &str)] =
    &[("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")];

/// The kinds of this build, in no order: each file adds its own.
#[distributed_slice]
pub static BUILTIN: [KindRef];

/// What there is to know of a built-in kind.
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// Subset of [`VERBS`], as discovery shows it.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// The definition's name in the schema bundle.
    pub schema: &'static str,
    pub columns: &'static [Column<'static>],
    /// The cells of [`Kind::columns`] for an object.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// Why an object has run its course, as reason and message, for clients that dim its row.
    pub completed: fn(&Value) -> Option<(&'static str, &'static str)>,
    /// Selectable fields besides `metadata.name` and `metadata.namespace`.
    pub fields: &'static [Field],
    /// Whether `status` is written only through the status subresource.
    pub has_status: bool,
    /// What a change of the status cannot change, and so nobody owns by it.
    pub status_resets: &'static [&'static str],
    /// Where its pod template is, for what looks at the pods that will come of it.
    pub pod_template: Option<&'static str>,
    pub generation: Generation,
    pub strategy: Strategy,
    /// What a client is told with every request: the kind is on its way out.
    pub deprecation: Option<&'static str>,
    pub name_rule: NameRule,
    /// DELETE answers with the object instead of a Status.
    pub delete_answers_object: bool,
    /// PUT on a missing object creates it.
    pub create_on_update: bool,
    /// PUT without resourceVersion replaces whatever is there; else it is refused as 422.
    pub unconditional_update: bool,
    /// Another kind under whose keys objects are stored, and how they are converted.
    pub stored_as: Option<&'static Conversion>,
    /// A minimal valid object, as JSON.
    pub sample: &'static str,
}

/// Every verb of a normal resource, as discovery lists them.
pub const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

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

/// How a kind is converted from and to the one that is stored.
pub struct Conversion {
    pub stored: &'static KindRef,
    pub from_stored: fn(&mut Value),
    pub to_stored: fn(&mut Value),
}

// === impl Kind ===

impl Kind {
    /// The defaults of every field, for struct update.
    pub const BASE: Self = Self {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        namespaced: true,
        verbs: VERBS,
        subresources: &[],
        schema: "",
        columns: table::NAME_AGE,
        row: table::name_age,
        completed: |_| None,
        fields: &[],
        has_status: false,
        status_resets: &["spec"],
        pod_template: None,
        generation: Generation::None,
        strategy: Strategy::BASE,
        deprecation: None,
        name_rule: NameRule::DnsSubdomain,
        delete_answers_object: false,
        create_on_update: false,
        unconditional_update: true,
        stored_as: None,
        sample: "{}",
    };
}
