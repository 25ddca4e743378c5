//! How objects of a built-in kind are made, changed and ended (`rest.RESTCreateStrategy` and its kin).

use serde_json::{Map, Value};

use super::Subresource;
use super::field::Errors;
use crate::base::json::{remove, set};

/// Functions of the kind's own file that the API calls on the way of each write.
pub struct Strategy {
    /// Fills in what was left out, as Kubernetes' `SetDefaults_*`.
    pub default: fn(&mut Value),
    /// Notes on a new object who makes it: `UserInfo` of `authentication.k8s.io`.
    pub requested_by: Option<fn(&mut Value, &Value)>,
    /// Last changes to a new object before validation; has seen defaults.
    pub prepare_create: fn(&mut Value),
    /// Last changes to a replaced object before validation, by what it was.
    pub prepare_update: fn(&mut Value, &Value),
    /// Last changes to an object whose status is replaced; `spec` is already the old one.
    pub prepare_status: fn(&mut Value, &Value),
    pub validate: fn(&Value) -> Errors,
    /// Called beside [`Strategy::validate`] for new objects.
    pub validate_create: fn(&Value) -> Errors,
    /// Called beside [`Strategy::validate`] on updates: what must not change.
    pub validate_update: fn(&Value, &Value) -> Errors,
    pub validate_status: fn(&Value, &Value) -> Errors,
    /// Warnings for the client, by the new object and what it was.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// How objects change through subresources of this kind alone.
    pub subresources: &'static [(Subresource, UpdateStrategy)],
    pub creation: Creation,
    /// Whether a new object keeps the status that the client gave it.
    pub creates_status: bool,
    /// Whether writes take addresses or ports of the cluster, one write at a time.
    pub allocates: bool,
    /// How many seconds an object may take to end, of the period that was asked for; `None` where all end at once.
    pub grace_seconds: Option<fn(Option<i64>, &Value) -> i64>,
    /// Whether something in the object itself, besides its metadata, holds it while it is being deleted.
    pub is_held: fn(&Value) -> bool,
    /// What holds an object once it is to be deleted, until somebody takes it off.
    pub deletion_finalizer: Option<&'static str>,
    /// Last changes to an object that is marked for deletion and waits.
    pub prepare_deletion: fn(&mut Value),
    pub volatile: Volatile,
}

/// How an object changes through a subresource that only its kind has.
pub struct UpdateStrategy {
    /// Puts back what cannot be changed this way.
    pub prepare: fn(&mut Value, &Value),
    /// Errors of the new object by what it was.
    pub validate: fn(&Value, &Value) -> Errors,
    /// Whether its fields get owners and a change counts in `metadata.generation`: not where the server itself makes the
    /// change from a request of another kind.
    pub tracked: bool,
}

/// What a creation leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// An object that is stored.
    Stored,
    /// An answer (reviews).
    Answered,
    /// A pod that is bound to a node.
    Binding,
}

/// Which objects are kept in memory and written lazily: no history of them remains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatile {
    Never,
    Always,
    InNamespace(&'static str),
}

// === impl Strategy ===

impl Strategy {
    /// What does nothing and allows everything, for struct update.
    pub const BASE: Self = Self {
        default: |_| {},
        requested_by: None,
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _| {},
        validate: |_| Errors::new(),
        validate_create: |_| Errors::new(),
        validate_update: |_, _| Errors::new(),
        validate_status: |_, _| Errors::new(),
        warnings: |_, _| Vec::new(),
        subresources: &[],
        creation: Creation::Stored,
        creates_status: false,
        allocates: false,
        grace_seconds: None,
        is_held: |_| false,
        deletion_finalizer: None,
        prepare_deletion: |_| {},
        volatile: Volatile::Never,
    };
}

/// Puts `key` of the new object back to what it was.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(value) => set(new, key, value.clone()),
        None => {
            remove(new, key);
        }
    }
}

/// Puts everything but the named top-level keys back to what it was.
pub fn keep_all_but(new: &mut Value, old: &Value, keys: &[&str]) {
    let Some(map) = new.as_object_mut() else { return };
    map.retain(|k, _| keys.contains(&k.as_str()));
    let kept = old.as_object().into_iter().flatten().filter(|(k, _)| !keys.contains(&k.as_str()));
    map.extend(kept.map(|(k, v)| (k.clone(), v.clone())).collect::<Map<_, _>>());
}
