//! What there is to know of a built-in kind, and a kind of either form as everything outside of its own file sees it.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::custom::CustomKind;
use super::field::Errors;
use super::{
    Column, Creation, Field, Generation, NameRule, Strategy, Subresource, UpdateStrategy, VERBS, Volatile, table,
};
use crate::schema::{self, Schema, TypeRef};

/// A kind that is served: built in, or defined while the server runs. Cheap to clone; two are equal that have the same
/// group, version and plural name.
#[derive(Clone)]
pub struct KindRef(Source);

#[derive(Clone)]
enum Source {
    Builtin(&'static Kind),
    Custom(Arc<CustomKind>),
}

/// A field of either form of kind.
macro_rules! of_either {
    ($kind:expr, $field:ident) => {
        match &$kind.0 {
            Source::Builtin(kind) => &kind.$field,
            Source::Custom(kind) => &kind.$field,
        }
    };
}

// === impl KindRef ===

/// What it is.
impl KindRef {
    /// A kind of this build.
    pub const fn builtin(kind: &'static Kind) -> Self {
        Self(Source::Builtin(kind))
    }

    /// A kind that was defined at run time.
    pub fn custom(kind: CustomKind) -> Self {
        Self(Source::Custom(Arc::new(kind)))
    }

    /// The API group; empty for the core group.
    pub fn group(&self) -> &str {
        of_either!(self, group)
    }

    /// Such as `v1`.
    pub fn version(&self) -> &str {
        of_either!(self, version)
    }

    /// Such as `Pod`.
    pub fn kind(&self) -> &str {
        of_either!(self, kind)
    }

    /// The resource's name in paths.
    pub fn plural(&self) -> &str {
        of_either!(self, plural)
    }

    /// What clients may write for one object.
    pub fn singular(&self) -> &str {
        of_either!(self, singular)
    }

    /// What clients may write for short.
    pub fn short_names(&self) -> Vec<&str> {
        match &self.0 {
            Source::Builtin(kind) => kind.short_names.to_vec(),
            Source::Custom(kind) => kind.short_names.iter().map(String::as_str).collect(),
        }
    }

    /// Groups of resources that it belongs to, such as `all`.
    pub fn categories(&self) -> Vec<&str> {
        match &self.0 {
            Source::Builtin(kind) => kind.categories.to_vec(),
            Source::Custom(kind) => kind.categories.iter().map(String::as_str).collect(),
        }
    }

    /// Whether its objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        *of_either!(self, namespaced)
    }

    /// Subset of [`VERBS`], as discovery shows it.
    pub fn verbs(&self) -> &[&'static str] {
        match &self.0 {
            Source::Builtin(kind) => kind.verbs,
            Source::Custom(_) => VERBS,
        }
    }

    /// Its subresources.
    pub fn subresources(&self) -> &[Subresource] {
        of_either!(self, subresources)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// The name of its definition.
    pub fn definition(&self) -> Cow<'_, str> {
        match &self.0 {
            Source::Builtin(kind) => kind.schema.into(),
            Source::Custom(kind) => kind.definition().into(),
        }
    }

    /// The schema of a custom kind, which the bundle does not have.
    pub fn own_schema(&self) -> Option<Arc<Schema>> {
        match &self.0 {
            Source::Builtin(_) => None,
            Source::Custom(kind) => Some(kind.schema.clone()),
        }
    }

    /// What its objects look like.
    pub fn type_ref(&self) -> TypeRef<'_> {
        match &self.0 {
            Source::Builtin(kind) => schema::type_of(kind.schema).expect("the schema has every built-in kind"),
            Source::Custom(kind) => kind.type_ref(),
        }
    }

    /// The columns of its table.
    pub fn columns(&self) -> &[Column<'_>] {
        match &self.0 {
            Source::Builtin(kind) => kind.columns,
            Source::Custom(_) => table::NAME_AGE,
        }
    }

    /// The cells of [`KindRef::columns`] for an object.
    pub fn row(&self, value: &Value, now: Timestamp) -> Vec<Value> {
        match &self.0 {
            Source::Builtin(kind) => (kind.row)(value, now),
            Source::Custom(_) => table::name_age(value, now),
        }
    }

    /// Why an object has run its course, as reason and message, for clients that dim its row.
    pub fn completed(&self, value: &Value) -> Option<(&'static str, &'static str)> {
        self.of_builtin().and_then(|kind| (kind.completed)(value))
    }

    /// Where its pod template is, if it has one.
    pub fn pod_template(&self) -> Option<&'static str> {
        self.of_builtin().and_then(|kind| kind.pod_template)
    }

    /// What a client is told with every request: the kind is on its way out.
    pub fn deprecation(&self) -> Option<&'static str> {
        self.of_builtin().and_then(|kind| kind.deprecation)
    }

    /// A minimal valid object, as JSON, for tests of all kinds.
    pub fn sample(&self) -> &'static str {
        self.of_builtin().map_or("{}", |kind| kind.sample)
    }

    fn of_builtin(&self) -> Option<&'static Kind> {
        match &self.0 {
            Source::Builtin(kind) => Some(kind),
            Source::Custom(_) => None,
        }
    }

    fn strategy(&self) -> Option<&'static Strategy> {
        self.of_builtin().map(|kind| &kind.strategy)
    }
}

/// Where its objects are stored.
impl KindRef {
    /// Whether objects can be stored at all (reviews and bindings are only answered).
    pub fn is_stored(&self) -> bool {
        self.verbs().contains(&"get")
    }

    /// The kind whose keys and bytes are stored.
    pub fn stored(&self) -> &Self {
        self.of_builtin().and_then(|kind| kind.stored_as).map_or(self, |conversion| conversion.stored)
    }

    /// Whether its own objects are stored, and not as those of another kind.
    pub fn owns_storage(&self) -> bool {
        self.is_stored() && self == self.stored()
    }

    /// Brings a stored object into the form of this kind.
    pub fn convert_from_stored(&self, value: &mut Value) {
        if let Some(conversion) = self.of_builtin().and_then(|kind| kind.stored_as) {
            (conversion.from_stored)(value);
        }
    }

    /// Brings an object of this kind into the form that is stored.
    pub fn convert_to_stored(&self, value: &mut Value) {
        if let Some(conversion) = self.of_builtin().and_then(|kind| kind.stored_as) {
            (conversion.to_stored)(value);
        }
    }

    /// The prefix of its store keys: `/<group>/<plural>/`.
    pub fn prefix(&self) -> String {
        let stored = self.stored();
        let group = if stored.group().is_empty() { "core" } else { stored.group() };
        format!("/{group}/{}/", stored.plural())
    }

    /// The store key of an object; `namespace` is ignored where the kind has none.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        let prefix = self.prefix();
        if self.namespaced() { format!("{prefix}{namespace}/{name}") } else { format!("{prefix}{name}") }.into()
    }

    /// The values of the selectable fields of a stored object.
    pub fn field_values(&self, value: &Value) -> Box<[Box<str>]> {
        let fields = self.of_builtin().map_or(&[][..], |kind| kind.fields);
        fields.iter().map(|f| (f.get)(value).into()).collect()
    }

    /// Which of [`KindRef::field_values`] a field selector means.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        self.of_builtin()?.fields.iter().position(|f| f.name == name)
    }

    /// Which objects are kept in memory and written lazily.
    pub fn volatile(&self) -> Volatile {
        self.strategy().map_or(Volatile::Never, |s| s.volatile)
    }

    /// Whether the objects of a namespace are kept in memory and written lazily.
    pub fn is_volatile_in(&self, namespace: &str) -> bool {
        match self.volatile() {
            Volatile::Never => false,
            Volatile::Always => true,
            Volatile::InNamespace(name) => name == namespace,
        }
    }
}

/// How its objects are written.
impl KindRef {
    /// What `metadata.name` must look like.
    pub fn name_rule(&self) -> NameRule {
        self.of_builtin().map_or(NameRule::DnsSubdomain, |kind| kind.name_rule)
    }

    /// What bumps `metadata.generation`.
    pub fn generation(&self) -> Generation {
        self.of_builtin().map_or(Generation::Spec, |kind| kind.generation)
    }

    /// Whether `status` is written only through the status subresource.
    pub fn has_status(&self) -> bool {
        match &self.0 {
            Source::Builtin(kind) => kind.has_status,
            Source::Custom(kind) => kind.subresources.contains(&Subresource::Status),
        }
    }

    /// What a change of the status cannot change, and so nobody owns by it.
    pub fn status_resets(&self) -> &'static [&'static str] {
        self.of_builtin().map_or(&["spec"], |kind| kind.status_resets)
    }

    /// Whether DELETE answers with the object instead of a Status.
    pub fn delete_answers_object(&self) -> bool {
        self.of_builtin().is_some_and(|kind| kind.delete_answers_object)
    }

    /// Whether a deletion that does not say what becomes of dependents lets go of them.
    pub fn orphans_dependents(&self) -> bool {
        self.of_builtin().is_some_and(|kind| kind.orphans_dependents)
    }

    /// What a client is told that deletes one without saying what becomes of its dependents.
    pub fn deletion_warning(&self) -> Option<&'static str> {
        self.of_builtin().and_then(|kind| kind.deletion_warning)
    }

    /// Whether PUT on a missing object creates it.
    pub fn create_on_update(&self) -> bool {
        self.of_builtin().is_some_and(|kind| kind.create_on_update)
    }

    /// Whether PUT without resourceVersion replaces whatever is there; else it is refused as 422.
    pub fn unconditional_update(&self) -> bool {
        self.of_builtin().is_some_and(|kind| kind.unconditional_update)
    }

    /// What a creation leads to.
    pub fn creation(&self) -> Creation {
        self.strategy().map_or(Creation::Stored, |s| s.creation)
    }

    /// Whether a new object keeps the status that the client gave it.
    pub fn creates_status(&self) -> bool {
        self.strategy().is_some_and(|s| s.creates_status)
    }

    /// Whether writes take addresses or ports of the cluster, one write at a time.
    pub fn allocates(&self) -> bool {
        self.strategy().is_some_and(|s| s.allocates)
    }

    /// Fills in what was left out.
    pub fn default(&self, value: &mut Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.default)(value);
        }
    }

    /// Last changes to a new object before validation.
    pub fn prepare_create(&self, value: &mut Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.prepare_create)(value);
        }
    }

    /// Last changes to a replaced object before validation, by what it was.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.prepare_update)(new, old);
        }
    }

    /// Last changes to an object whose status is replaced.
    pub fn prepare_status(&self, new: &mut Value, old: &Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.prepare_status)(new, old);
        }
    }

    /// Errors of an object in itself.
    pub fn validate(&self, value: &Value) -> Errors {
        self.strategy().map_or_else(Errors::new, |s| (s.validate)(value))
    }

    /// Errors of an object that only count when it is new.
    pub fn validate_create(&self, value: &Value) -> Errors {
        self.strategy().map_or_else(Errors::new, |s| (s.validate_create)(value))
    }

    /// Errors of a change.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Errors {
        self.strategy().map_or_else(Errors::new, |s| (s.validate_update)(new, old))
    }

    /// Errors of a change of the status.
    pub fn validate_status(&self, new: &Value, old: &Value) -> Errors {
        self.strategy().map_or_else(Errors::new, |s| (s.validate_status)(new, old))
    }

    /// Warnings for the client, by the new object and what it was.
    pub fn warnings(&self, value: &Value, old: Option<&Value>) -> Vec<String> {
        self.strategy().map_or_else(Vec::new, |s| (s.warnings)(value, old))
    }

    /// How its objects change through a subresource of its own.
    pub fn update_strategy(&self, through: Subresource) -> Option<&'static UpdateStrategy> {
        self.strategy()?.subresources.iter().find(|(name, _)| *name == through).map(|(_, strategy)| strategy)
    }

    /// How many seconds an object may take to end, of the period that was asked for; `None` where all end at once.
    pub fn grace_seconds(&self, asked: Option<i64>, value: &Value) -> Option<i64> {
        self.strategy()?.grace_seconds.map(|seconds| seconds(asked, value))
    }

    /// Whether something in the object, besides its metadata, holds it while it is being deleted.
    pub fn is_held(&self, value: &Value) -> bool {
        self.strategy().is_some_and(|s| (s.is_held)(value))
    }

    /// Last changes to an object that is marked for deletion and waits.
    pub fn prepare_deletion(&self, value: &mut Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.prepare_deletion)(value);
        }
    }
}

impl std::fmt::Debug for KindRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.api_version(), self.plural())
    }
}

impl PartialEq for KindRef {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Builtin(a), Source::Builtin(b)) if std::ptr::eq(*a, *b) => true,
            _ => (self.plural(), self.group(), self.version()) == (other.plural(), other.group(), other.version()),
        }
    }
}

impl Eq for KindRef {}

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
    /// Who deletes one without saying what becomes of its dependents lets go of them.
    pub orphans_dependents: bool,
    /// What a client is told that deletes one without saying what becomes of its dependents.
    pub deletion_warning: Option<&'static str>,
    /// PUT on a missing object creates it.
    pub create_on_update: bool,
    /// PUT without resourceVersion replaces whatever is there; else it is refused as 422.
    pub unconditional_update: bool,
    /// Another kind under whose keys objects are stored, and how they are converted.
    pub stored_as: Option<&'static Conversion>,
    /// A minimal valid object, as JSON.
    pub sample: &'static str,
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
        orphans_dependents: false,
        deletion_warning: None,
        create_on_update: false,
        unconditional_update: true,
        stored_as: None,
        sample: "{}",
    };
}
