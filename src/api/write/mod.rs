//! THE write path: create, update, patch, and the commit that all of them share.
//!
//! The order is Kubernetes': the caller's object with defaults, then field ownership, then admission, then what the kind
//! prepares, then validation, then one commit with the loaded revision as precondition. A lost race loads again.

mod commit;
mod create;
mod metadata;
mod update;

use std::sync::Arc;

use serde_json::Value;

use super::{Api, Request, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::object::Object;
use crate::kinds::{KindRef, Subresource};
use crate::schema::apply::{self, ApplyError, FieldSet, managed};

/// How often a change is computed anew when somebody else was faster.
const ATTEMPTS: usize = 16;

/// How a request wants to change an object.
pub enum Change<'a> {
    /// Replace it with this (PUT).
    Replace(Value),
    /// Compute the new from the live form.
    Patch(&'a mut (dyn FnMut(&Value) -> Result<Value> + Send)),
    /// Server-side apply: the function answers the merged object, managed fields included.
    Apply(&'a mut (dyn FnMut(Option<&Value>) -> Result<Value> + Send)),
}

/// What a write left.
#[derive(Clone, Debug)]
pub struct Written {
    pub object: Arc<Object>,
    /// It is new.
    pub created: bool,
    pub warnings: Vec<String>,
}

impl Api {
    /// Server-side apply of what our own code or a manifest on this machine says; conflicts are won.
    pub async fn apply_config(&self, request: &Request, mut config: Value) -> Result<Written> {
        let shape = request.kind.type_ref();
        form::check(super::FieldValidation::Strict, &mut config, &shape, form::Duplicates::none(), &mut Budget::new())?;
        let mut merge = |live: Option<&Value>| applied(self, request, live, &config, &shape, true, &mut Budget::new());
        self.update(request, Change::Apply(&mut merge)).await
    }
}

/// Server-side apply: the live object with `config` merged in and its ownership noted.
pub(super) fn applied(
    api: &Api,
    request: &Request,
    live: Option<&Value>,
    config: &Value,
    shape: &crate::schema::TypeRef<'_>,
    force: bool,
    budget: &mut Budget,
) -> Result<Value> {
    with_writer(api, request, |writer| apply::apply(live, config, shape, writer, force, budget)).map_err(apply_failure)
}

/// What the client is told of an apply that was refused.
pub(super) fn apply_failure(error: ApplyError) -> Status {
    match error {
        ApplyError::Conflicts(conflicts) => {
            let mut status = Status::new(409, "Conflict", error_text(&conflicts));
            for c in conflicts {
                status = status.cause("FieldManagerConflict", c.message, &c.field);
            }
            status
        }
        ApplyError::Limit(limit) => Status::exceeded(limit),
        ApplyError::Unconverted(unconverted) => Status::internal(unconverted),
        // Kubernetes answers 500 to a configuration that does not fit; it is the client's mistake and so a 400 here.
        other => Status::bad_request(other.to_string()),
    }
}

fn error_text(conflicts: &[apply::Conflict]) -> String {
    ApplyError::Conflicts(conflicts.to_vec()).to_string()
}

fn with_writer<T>(api: &Api, request: &Request, run: impl FnOnce(&managed::Writer<'_>) -> T) -> T {
    let kind = &request.kind;
    let reset = FieldSet::of_fields(reset_fields(kind, request.subresource).iter().copied());
    let versions = request.conversions.versions(kind);
    run(&managed::Writer {
        manager: &request.manager,
        api_version: &kind.api_version(),
        subresource: request.subresource.map_or("", Subresource::name),
        now: &api.clock.now_text(),
        reset: &reset,
        versions: versions.as_ref().map(|versions| versions as &dyn apply::Versions),
    })
}

/// The fields whose ownership a request never takes because it cannot change them.
fn reset_fields(kind: &KindRef, subresource: Option<Subresource>) -> &'static [&'static str] {
    match subresource {
        Some(Subresource::Status) => kind.status_resets(),
        _ if kind.has_status() => &["status"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::kinds::core::{configmap, namespace};

    #[tokio::test]
    async fn a_name_that_the_client_wrote_is_not_replaced_by_a_generated_one() {
        let api = in_memory::api();
        let make = |kind: &'static KindRef, namespace: &'static str, metadata: Value| {
            let api = &api;
            async move { api.create(&Request::internal("test", kind, namespace, ""), json!({"metadata": metadata})).await }
        };
        make(&namespace::KIND, "", json!({"name": "n"})).await.unwrap();
        let both = json!({"name": "a", "generateName": "b-"});
        assert_eq!(&*make(&configmap::KIND, "n", both.clone()).await.unwrap().object.meta.name, "a");
        let again = make(&configmap::KIND, "n", both).await.unwrap_err();
        assert_eq!((again.code, again.reason), (409, "AlreadyExists"));
        for _ in 0..2 {
            let made = make(&configmap::KIND, "n", json!({"generateName": "b-"})).await.unwrap();
            assert!(made.object.meta.name.starts_with("b-"));
        }
        assert_eq!(api.cache.kind(&configmap::KIND).len(), 3);
    }
}
