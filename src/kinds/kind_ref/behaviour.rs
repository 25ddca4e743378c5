//! What a kind of either form does: the functions of its strategy.

use serde_json::Value;

use super::{KindRef, Source};
use crate::base::budget::Exceeded;
use crate::kinds::field::Errors;
use crate::kinds::{Creation, Generation, NameRule, Subresource, UpdateStrategy, meta};

/// How its objects are written.
impl KindRef {
    /// What `metadata.name` must look like.
    pub fn name_rule(&self) -> NameRule {
        self.of_builtin().map_or(NameRule::DnsSubdomain, |kind| kind.name_rule)
    }

    /// What its objects' metadata must be like.
    pub fn metadata_rules(&self) -> meta::Rules {
        meta::Rules {
            name: self.name_rule(),
            namespaced: self.namespaced(),
            names_finalizers: self.as_custom().is_none() && self.group() != "apiextensions.k8s.io",
        }
    }

    /// What bumps `metadata.generation`.
    pub fn generation(&self) -> Generation {
        self.of_builtin().map_or(Generation::Spec, |kind| kind.generation)
    }

    /// Whether `status` is written only through the status subresource.
    pub fn has_status(&self) -> bool {
        match &self.0 {
            Source::Builtin(kind) => kind.has_status,
            Source::Custom(kind) => kind.has_status(),
        }
    }

    /// What a change of the status cannot change, and so nobody owns by it.
    pub fn status_resets(&self) -> &'static [&'static str] {
        self.of_builtin().map_or(&["metadata", "spec"], |kind| kind.status_resets)
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

    /// Fills in what was left out; of a custom object as much as it may hold.
    pub fn default(&self, value: &mut Value) {
        let _ = self.try_default(value);
    }

    /// Fills in what was left out: a definition may ask for more than an object can hold.
    pub fn try_default(&self, value: &mut Value) -> Result<(), Exceeded> {
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.default)(value),
            Source::Custom(kind) => kind.default(value)?,
        }
        Ok(())
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
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.prepare_status)(new, old),
            Source::Custom(kind) => kind.prepare_status(new, old),
        }
    }

    /// Errors of an object in itself.
    pub fn validate(&self, value: &Value) -> Errors {
        self.strategy().map_or_else(Errors::new, |s| (s.validate)(value))
    }

    /// Errors of an object that only count when it is new.
    pub fn validate_create(&self, value: &Value) -> Errors {
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.validate_create)(value),
            Source::Custom(kind) => kind.validate_create(value),
        }
    }

    /// Errors of a change.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Errors {
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.validate_update)(new, old),
            Source::Custom(kind) => kind.validate_update(new, old),
        }
    }

    /// Errors of a change of the status.
    pub fn validate_status(&self, new: &Value, old: &Value) -> Errors {
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.validate_status)(new, old),
            Source::Custom(kind) => kind.validate_status(new, old),
        }
    }

    /// Warnings for the client, by the new object and what it was.
    pub fn warnings(&self, value: &Value, old: Option<&Value>) -> Vec<String> {
        match &self.0 {
            Source::Builtin(kind) => (kind.strategy.warnings)(value, old),
            Source::Custom(kind) => kind.warnings(value, old),
        }
    }

    /// How its objects change through a subresource of its own.
    pub fn update_strategy(&self, through: Subresource) -> Option<&'static UpdateStrategy> {
        self.strategy()?.subresources.iter().find(|(name, _)| *name == through).map(|(_, strategy)| strategy)
    }

    /// How many seconds an object may take to end, of the period that was asked for; `None` where all end at once.
    pub fn grace_seconds(&self, asked: Option<i64>, value: &Value) -> Option<i64> {
        self.strategy()?.grace_seconds.map(|seconds| seconds(asked, value))
    }

    /// Notes on a new object who makes it, as `UserInfo`, where the kind wants to know.
    pub fn note_requestor(&self, value: &mut Value, user: impl FnOnce() -> Value) {
        if let Some(note) = self.strategy().and_then(|s| s.requested_by) {
            note(value, &user());
        }
    }

    /// Whether something in the object, besides its metadata, holds it while it is being deleted.
    pub fn is_held(&self, value: &Value) -> bool {
        self.strategy().is_some_and(|s| (s.is_held)(value))
    }

    /// What holds an object once it is to be deleted, until somebody takes it off.
    pub fn deletion_finalizer(&self) -> Option<&'static str> {
        self.strategy()?.deletion_finalizer
    }

    /// Last changes to an object that is marked for deletion and waits.
    pub fn prepare_deletion(&self, value: &mut Value) {
        if let Some(strategy) = self.strategy() {
            (strategy.prepare_deletion)(value);
        }
    }
}
