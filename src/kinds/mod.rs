//! The registration of every Kubernetes kind, one file each: pure data and small functions.
//!
//! [`ALL`] is the one list. Routes, discovery, OpenAPI, table output, short names, field selectors, store keys and watch
//! caches are derived from it, so a kind is one new file and one line here. A custom resource builds the same struct at
//! run time. See `docs/adding-a-kind.md`.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

pub mod apps;
pub mod authentication;
pub mod authorization;
pub mod check;
pub mod coordination;
pub mod core;
pub mod discovery;
pub mod events;
pub mod field;
pub mod meta;
pub mod networking;
pub mod rbac;
pub mod scheduling;
pub mod storage;
pub mod table;

use field::Errors;

/// Collections in which nothing can be yet: group, version, plural and kind. kubectl lists the custom kinds before it checks the
/// fields of what it cannot patch, and takes "no such path" for a failure; that there are none is true.
pub const EMPTY: &[(&str, &str, &str, &str)] =
    &[("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")];

/// Every kind, in discovery order.
pub static ALL: &[&Kind] = &[
    &core::binding::KIND,
    &core::configmap::KIND,
    &core::endpoints::KIND,
    &core::event::KIND,
    &core::namespace::KIND,
    &core::node::KIND,
    &core::pod::KIND,
    &core::podtemplate::KIND,
    &core::secret::KIND,
    &core::serviceaccount::KIND,
    &core::service::KIND,
    &apps::controllerrevision::KIND,
    &apps::deployment::KIND,
    &apps::replicaset::KIND,
    &events::event::KIND,
    &authentication::selfsubjectreview::KIND,
    &authentication::tokenreview::KIND,
    &authorization::localsubjectaccessreview::KIND,
    &authorization::selfsubjectaccessreview::KIND,
    &authorization::selfsubjectrulesreview::KIND,
    &authorization::subjectaccessreview::KIND,
    &networking::ingressclass::KIND,
    &networking::ingress::KIND,
    &rbac::clusterrolebinding::KIND,
    &rbac::clusterrole::KIND,
    &rbac::rolebinding::KIND,
    &rbac::role::KIND,
    &storage::csidriver::KIND,
    &storage::csinode::KIND,
    &storage::csistoragecapacity::KIND,
    &storage::storageclass::KIND,
    &storage::volumeattachment::KIND,
    &scheduling::priorityclass::KIND,
    &coordination::lease::KIND,
    &discovery::endpointslice::KIND,
];

/// What the machine needs to know of a kind.
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
    pub columns: &'static [Column],
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
    pub generation: Generation,
    /// Fills in what was left out, as Kubernetes' `SetDefaults_*`.
    pub default: fn(&mut Value),
    /// Last changes to a new object before validation; has seen defaults.
    pub prepare_create: fn(&mut Value),
    /// Last changes to a replaced object before validation, by what it was.
    pub prepare_update: fn(&mut Value, &Value),
    /// Last changes to an object whose status is replaced; `spec` is already the old one.
    pub prepare_status: fn(&mut Value, &Value),
    pub validate: fn(&Value) -> Errors,
    /// Called beside [`Kind::validate`] for new objects.
    pub validate_create: fn(&Value) -> Errors,
    /// Called beside [`Kind::validate`] on updates: what must not change.
    pub validate_update: fn(&Value, &Value) -> Errors,
    pub validate_status: fn(&Value, &Value) -> Errors,
    /// Called for a change through the ephemeralcontainers subresource, in place of [`Kind::validate_update`].
    pub validate_ephemeral: fn(&Value, &Value) -> Errors,
    /// Called beside [`Kind::validate`] for a change through the resize subresource.
    pub validate_resize: fn(&Value, &Value) -> Errors,
    /// Called for a change through the finalize subresource.
    pub validate_finalize: fn(&Value, &Value) -> Errors,
    /// Warnings for the client, by the new object and what it was.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// What a client is told with every request: the kind is on its way out.
    pub deprecation: Option<&'static str>,
    pub name_rule: NameRule,
    /// DELETE answers with the object instead of a Status.
    pub delete_answers_object: bool,
    /// PUT on a missing object creates it.
    pub create_on_update: bool,
    /// PUT without resourceVersion replaces whatever is there; else it is refused as 422.
    pub unconditional_update: bool,
    /// Kept in memory and written lazily (store's volatile keys), by namespace.
    pub volatile: fn(&str) -> bool,
    /// Another kind under whose keys objects are stored, and how they are converted.
    pub stored_as: Option<&'static Conversion>,
    /// A minimal valid object, as JSON.
    pub sample: &'static str,
}

/// Every verb of a normal resource, as discovery lists them.
pub const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A column of the table form.
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: string, integer, boolean, date.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the object's name.
    pub format: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
    pub description: &'static str,
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
    /// Anything outside of metadata and status.
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

/// A sub-path of an object with its own meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Finalize,
    Binding,
    Eviction,
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
    Token,
    EphemeralContainers,
    Resize,
}

/// How a kind is converted from and to the one that is stored.
pub struct Conversion {
    pub stored: &'static Kind,
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
        generation: Generation::None,
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _| {},
        validate: |_| Errors::default(),
        validate_create: |_| Errors::default(),
        validate_update: |_, _| Errors::default(),
        validate_status: |_, _| Errors::default(),
        validate_ephemeral: |_, _| Errors::default(),
        validate_resize: |_, _| Errors::default(),
        validate_finalize: |_, _| Errors::default(),
        warnings: |_, _| Vec::new(),
        deprecation: None,
        name_rule: NameRule::DnsSubdomain,
        delete_answers_object: false,
        create_on_update: false,
        unconditional_update: true,
        volatile: |_| false,
        stored_as: None,
        sample: "{}",
    };

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The kind whose keys and bytes are stored.
    pub fn stored(&self) -> &Self {
        self.stored_as.map_or(self, |c| c.stored)
    }

    /// The prefix of its store keys: `/<group>/<plural>/`.
    pub fn prefix(&self) -> String {
        let stored = self.stored();
        let group = if stored.group.is_empty() { "core" } else { stored.group };
        format!("/{group}/{}/", stored.plural)
    }

    /// The store key of an object; `namespace` is ignored where the kind has none.
    pub fn key(&self, namespace: &str, name: &str) -> Arc<str> {
        let prefix = self.prefix();
        if self.namespaced { format!("{prefix}{namespace}/{name}") } else { format!("{prefix}{name}") }.into()
    }

    /// The values of the selectable fields of a stored object, in the order of [`Kind::fields`].
    pub fn field_values(&self, value: &Value) -> Box<[Box<str>]> {
        self.fields.iter().map(|f| (f.get)(value).into()).collect()
    }

    /// Whether objects can be stored at all (reviews and bindings are only answered).
    pub fn is_stored(&self) -> bool {
        self.verbs.contains(&"get")
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kind({}/{})", self.api_version(), self.plural)
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

// === impl Subresource ===

impl Subresource {
    /// Its path segment.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
        }
    }

    /// Discovery's group, version and kind of what goes through it; `None` is the object's own.
    pub fn gvk(self, of: &Kind) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Self::Scale => Some(("autoscaling", "v1", "Scale")),
            Self::Eviction => Some(("policy", "v1", "Eviction")),
            Self::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            Self::Binding => Some(("", "v1", "Binding")),
            Self::Exec => Some(("", "v1", "PodExecOptions")),
            Self::Attach => Some(("", "v1", "PodAttachOptions")),
            Self::PortForward => Some(("", "v1", "PodPortForwardOptions")),
            Self::Proxy if of.plural == "pods" => Some(("", "v1", "PodProxyOptions")),
            Self::Proxy if of.plural == "services" => Some(("", "v1", "ServiceProxyOptions")),
            Self::Proxy => Some(("", "v1", "NodeProxyOptions")),
            Self::Status | Self::Finalize | Self::Log | Self::EphemeralContainers | Self::Resize => None,
        }
    }

    /// Its verbs, as discovery lists them.
    pub fn verbs(self) -> &'static [&'static str] {
        match self {
            Self::Status | Self::Scale | Self::EphemeralContainers | Self::Resize => &["get", "patch", "update"],
            Self::Finalize => &["update"],
            Self::Binding | Self::Eviction | Self::Token => &["create"],
            Self::Log => &["get"],
            Self::Exec | Self::Attach | Self::PortForward => &["create", "get"],
            Self::Proxy => &["create", "delete", "get", "patch", "update"],
        }
    }
}

/// The kind served under a group, version and plural name.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter().copied().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind of an `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ALL.iter().copied().find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// The kind under whose prefix a store key lies.
pub fn by_key(key: &str) -> Option<&'static Kind> {
    let mut parts = key.splitn(4, '/').skip(1);
    let (group, plural) = (parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    ALL.iter().copied().find(|k| k.plural == plural && k.group == group && k.stored_as.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_keys_lead_back() {
        for (i, a) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|b| a != b), "{a:?} is listed twice");
            assert_eq!(by_kind(&a.api_version(), a.kind), Some(*a));
            assert_eq!(by_key(&a.key("ns", "name")), Some(a.stored()));
            assert_eq!(
                (a.row)(&serde_json::json!({"metadata": {}}), Timestamp::UNIX_EPOCH).len(),
                a.columns.len(),
                "{a:?}"
            );
        }
    }
}
