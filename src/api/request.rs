//! Who asks for what, as every verb is given it.

use std::sync::Arc;

use super::conversion::Conversions;
use crate::apimachinery::status::Status;
use crate::apimachinery::user::User;
use crate::kinds::{KindRef, Subresource};

/// Who asks for what.
#[derive(Clone, Debug)]
pub struct Request {
    pub user: Arc<User>,
    pub kind: KindRef,
    /// Empty for cluster-scoped kinds and for all namespaces.
    pub namespace: String,
    /// Empty for collections.
    pub name: String,
    pub subresource: Option<Subresource>,
    /// Validate and answer, but change nothing.
    pub dry_run: bool,
    /// The field manager: given, or from the user agent.
    pub manager: String,
    pub validation: FieldValidation,
    /// What its body makes is so much that other tasks of the thread would wait for long.
    pub heavy: bool,
    /// Its objects as of other versions of their kind.
    pub conversions: Conversions,
}

/// What happens about unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

// === impl Request ===

impl Request {
    /// A request of a part of the server itself, with `manager` as its field manager.
    pub fn internal(manager: &str, kind: &KindRef, namespace: &str, name: &str) -> Self {
        Self {
            user: User::system(),
            kind: kind.clone(),
            namespace: namespace.into(),
            name: name.into(),
            subresource: None,
            dry_run: false,
            manager: manager.into(),
            validation: FieldValidation::Ignore,
            heavy: false,
            conversions: Conversions::default(),
        }
    }

    /// The same request for a subresource.
    pub fn on(mut self, subresource: Subresource) -> Self {
        self.subresource = Some(subresource);
        self
    }

    /// The same request for another name.
    pub fn named(&self, name: &str) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// The store key of the named object.
    pub fn key(&self) -> Arc<str> {
        self.kind.key(&self.namespace, &self.name)
    }

    /// The prefix of the store keys of the collection.
    pub fn prefix(&self) -> String {
        match self.namespace.as_str() {
            "" => self.kind.prefix(),
            namespace => format!("{}{namespace}/", self.kind.prefix()),
        }
    }

    pub(super) fn not_found(&self) -> Status {
        Status::not_found(&self.kind, &self.name)
    }
}
