//! What there is to know of a built-in kind, and a kind of either form as everything outside of its own file sees it.

mod behaviour;

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::custom::{CustomKind, RowLimits};
use super::{CUSTOM_VERBS, Column, Field, Generation, NameRule, Strategy, Subresource, VERBS, Volatile, table};
use crate::base::budget::Exceeded;
use crate::base::object::Object;
use crate::schema::{self, TypeRef};

/// A kind that is served: built in, or defined while the server runs. Cheap to clone; two are equal that have the same
/// group, version and plural name.
#[derive(Clone)]
pub struct KindRef(Source);

#[derive(Clone)]
enum Source {
    Builtin(&'static Kind),
    Custom(Arc<Defined>),
}

/// A kind that was defined at run time.
struct Defined {
    of: Arc<CustomKind>,
    /// Another version, in whose form objects are stored from now on.
    stored: Option<KindRef>,
    /// Every version of its definition, itself among them: objects may have been stored in the form of each.
    versions: Arc<[Arc<CustomKind>]>,
    /// Objects stay in the form of this version: [`KindRef::kept_in`].
    is_kept: bool,
}

impl std::ops::Deref for Defined {
    type Target = CustomKind;

    fn deref(&self) -> &CustomKind {
        &self.of
    }
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
        Self::versions(vec![kind]).remove(0)
    }

    /// All versions of a kind that was defined at run time; objects are stored in the form of the first one.
    pub fn versions(all: Vec<CustomKind>) -> Vec<Self> {
        let versions: Arc<[Arc<CustomKind>]> = all.into_iter().map(Arc::new).collect();
        let mut kinds: Vec<Self> = Vec::new();
        for of in versions.iter() {
            let (of, stored, versions) = (of.clone(), kinds.first().cloned(), versions.clone());
            kinds.push(Self(Source::Custom(Arc::new(Defined { of, stored, versions, is_kept: false }))));
        }
        kinds
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

    /// What a list of its objects is called.
    pub fn list_kind(&self) -> Cow<'_, str> {
        match &self.0 {
            Source::Builtin(kind) => format!("{}List", kind.kind).into(),
            Source::Custom(kind) => kind.list_kind.as_str().into(),
        }
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
            Source::Custom(_) => CUSTOM_VERBS,
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

    /// What its objects look like.
    pub fn type_ref(&self) -> TypeRef<'_> {
        match &self.0 {
            Source::Builtin(kind) => schema::type_of(kind.schema).expect("the schema has every built-in kind"),
            Source::Custom(kind) => kind.type_ref(),
        }
    }

    /// The columns of its table.
    pub fn columns(&self) -> Vec<Column<'_>> {
        match &self.0 {
            Source::Builtin(kind) => kind.columns.to_vec(),
            Source::Custom(kind) => {
                std::iter::once(table::NAME).chain(kind.columns.iter().map(|c| c.column())).collect()
            }
        }
    }

    /// The cells of [`KindRef::columns`] for an object.
    pub fn row(&self, value: &Value, now: Timestamp) -> Vec<Value> {
        match &self.0 {
            Source::Builtin(kind) => (kind.row)(value, now),
            Source::Custom(kind) => {
                let mut limits = RowLimits::default();
                let cells = kind.columns.iter().map(|c| c.cell(value, now, &mut limits));
                std::iter::once(table::name(value)).chain(cells).collect()
            }
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
    pub fn deprecation(&self) -> Option<&str> {
        match &self.0 {
            Source::Builtin(kind) => kind.deprecation,
            Source::Custom(kind) => kind.deprecation.as_deref(),
        }
    }

    /// A minimal valid object, as JSON, for tests of all kinds.
    pub fn sample(&self) -> &'static str {
        self.of_builtin().map_or("{}", |kind| kind.sample)
    }

    /// What there is to know of a kind that was defined at run time.
    pub fn as_custom(&self) -> Option<&CustomKind> {
        match &self.0 {
            Source::Builtin(_) => None,
            Source::Custom(kind) => Some(&kind.of),
        }
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
        match &self.0 {
            Source::Builtin(kind) => kind.stored_as.map_or(self, |conversion| conversion.stored),
            Source::Custom(kind) => kind.stored.as_ref().unwrap_or(self),
        }
    }

    /// Whether its own objects are stored, and not as those of another kind.
    pub fn owns_storage(&self) -> bool {
        self.is_stored() && self == self.stored()
    }

    /// Another version of a kind that was defined at run time, or the same, if its definition has it.
    pub fn in_version(&self, version: &str) -> Option<Self> {
        let Source::Custom(kind) = &self.0 else { return None };
        if kind.version == version {
            return Some(self.clone());
        }
        let stored = self.stored();
        if stored.version() == version {
            return Some(stored.clone());
        }
        let of = kind.versions.iter().find(|of| of.version == version)?.clone();
        let (stored, versions) = (Some(stored.clone()), kind.versions.clone());
        Some(Self(Source::Custom(Arc::new(Defined { of, stored, versions, is_kept: false }))))
    }

    /// A version of a kind that was defined at run time, in whose form objects are to stay: for changes that are the same in
    /// all versions. Nobody is asked to convert them.
    pub fn kept_in(&self, version: &str) -> Option<Self> {
        let Source::Custom(kind) = &self.0 else { return None };
        let of = kind.versions.iter().find(|of| of.version == version)?.clone();
        let versions = kind.versions.clone();
        Some(Self(Source::Custom(Arc::new(Defined { of, stored: None, versions, is_kept: true }))))
    }

    /// Whether it is one of [`KindRef::kept_in`].
    pub fn is_kept(&self) -> bool {
        matches!(&self.0, Source::Custom(kind) if kind.is_kept)
    }

    /// All versions that its definition has; one of a built-in kind.
    pub fn all_versions(&self) -> Vec<Self> {
        let Source::Custom(kind) = &self.0 else { return vec![self.clone()] };
        kind.versions.iter().filter_map(|of| self.in_version(&of.version)).collect()
    }

    /// Whether a webhook converts its objects from one version to another.
    pub fn is_converted_by_webhook(&self) -> bool {
        matches!(&self.0, Source::Custom(kind) if kind.converted_by_webhook && !kind.is_kept)
    }

    /// The version in whose form an object's text is. Objects of custom kinds keep the form in which they were written.
    pub fn version_of<'o>(&'o self, object: &'o Object) -> &'o str {
        match &self.0 {
            Source::Builtin(_) => self.stored().version(),
            Source::Custom(_) => object.fields.last().map_or(self.stored().version(), |version| version),
        }
    }

    /// Whether an object's text is in the form of this kind.
    pub fn has_form_of(&self, object: &Object) -> bool {
        match &self.0 {
            Source::Builtin(_) => self.owns_storage(),
            Source::Custom(kind) => self.version_of(object) == kind.version,
        }
    }

    /// Brings an object that was stored in another form into the form of this kind, unless a webhook does that.
    pub fn convert_from_stored(&self, value: &mut Value) {
        match &self.0 {
            Source::Builtin(kind) => kind.stored_as.into_iter().for_each(|conversion| (conversion.from_stored)(value)),
            Source::Custom(kind) => kind.prune(value),
        }
    }

    /// Gives a stored object the form that its definition describes today: what is no longer described goes, and defaults
    /// come that take no more than `bytes`; how many they took. An error leaves some of them.
    pub fn restore(&self, value: &mut Value, bytes: usize) -> Result<usize, Exceeded> {
        let Source::Custom(kind) = &self.0 else { return Ok(0) };
        kind.prune(value);
        if bytes == 0 { Ok(0) } else { kind.default_within(value, bytes) }
    }

    /// Brings an object of this kind into the form that is stored, unless a webhook does that.
    pub fn convert_to_stored(&self, value: &mut Value) {
        match &self.0 {
            Source::Builtin(kind) => kind.stored_as.into_iter().for_each(|conversion| (conversion.to_stored)(value)),
            Source::Custom(kind) => {
                kind.stored.as_ref().and_then(Self::as_custom).into_iter().for_each(|stored| stored.prune(value));
            }
        }
    }

    /// The prefix of its store keys: `/<group>/<plural>/`.
    pub fn prefix(&self) -> String {
        self.prefix_parts().concat()
    }

    /// Lets `read` see [`KindRef::prefix`], for which no memory is asked.
    pub fn with_prefix<T>(&self, read: impl FnOnce(&str) -> T) -> T {
        with_joined(&self.prefix_parts(), read)
    }

    fn prefix_parts(&self) -> [&str; 5] {
        let stored = self.stored();
        let group = if stored.group().is_empty() { "core" } else { stored.group() };
        ["/", group, "/", stored.plural(), "/"]
    }

    /// The store key of an object; `namespace` is ignored where the kind has none.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        let [slash, group, _, plural, _] = self.prefix_parts();
        if self.namespaced() {
            with_joined(&[slash, group, slash, plural, slash, namespace, slash, name], |key| Arc::from(key))
        } else {
            with_joined(&[slash, group, slash, plural, slash, name], |key| Arc::from(key))
        }
    }

    /// The values of the selectable fields of an object in the form of this kind; behind them, of a custom one, its version.
    pub fn field_values(&self, value: &Value) -> Box<[Box<str>]> {
        match &self.0 {
            Source::Builtin(kind) => kind.fields.iter().map(|f| (f.get)(value).into()).collect(),
            Source::Custom(kind) => kind.field_values(value),
        }
    }

    /// Which of [`KindRef::field_values`] a field selector means.
    pub fn field_index(&self, name: &str) -> Option<usize> {
        match &self.0 {
            Source::Builtin(kind) => kind.fields.iter().position(|f| f.name == name),
            Source::Custom(kind) => kind.selectable.iter().copied().find(|i| *kind.fields[*i] == *name),
        }
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

/// Lets `read` see the parts in one, on the stack where they are as short as keys are.
fn with_joined<T>(parts: &[&str], read: impl FnOnce(&str) -> T) -> T {
    let mut buffer = [0; 384];
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let Some(mut rest) = buffer.get_mut(..length) else { return read(&parts.concat()) };
    for part in parts {
        let (place, after) = rest.split_at_mut(part.len());
        place.copy_from_slice(part.as_bytes());
        rest = after;
    }
    read(std::str::from_utf8(&buffer[..length]).expect("texts together are text"))
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

#[cfg(test)]
mod tests {
    use crate::kinds::core::{namespace, pod};

    #[test]
    fn a_key_is_of_the_place_the_namespace_and_the_name_however_long_they_are() {
        assert_eq!(&*pod::KIND.key("web", "a"), "/core/pods/web/a");
        assert_eq!(&*namespace::KIND.key("web", "a"), "/core/namespaces/a");
        let long = "é".repeat(300);
        assert_eq!(&*pod::KIND.key(&long, "a"), format!("/core/pods/{long}/a"));
        assert_eq!(pod::KIND.with_prefix(str::to_owned), pod::KIND.prefix());
    }
}
