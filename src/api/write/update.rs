//! Changes of objects, whole or through a subresource.

use serde_json::Value;

use super::commit::Failure;
use super::metadata::{bump_generation, check_identity, check_name, dedupe_owners, keep_system_metadata, settle};
use super::{ATTEMPTS, Change, Written, with_writer};
use crate::api::admission::Review;
use crate::api::{Api, Request, allocate, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{remove, set, text};
use crate::base::object::Object;
use crate::base::task;
use crate::kinds::field::Errors;
use crate::kinds::{Subresource, keep, keep_all_but, meta};
use crate::schema::apply::{self, managed};

/// What is to become of an object, before anybody else has seen it.
struct Prepared {
    new: Value,
    /// It must be made of exactly the revision that was loaded.
    pinned: bool,
    /// What the client is warned of.
    repeated: Option<String>,
}

impl Api {
    /// Changes the named object (or its subresource).
    pub async fn update(&self, request: &Request, mut change: Change<'_>) -> Result<Written> {
        let kind = &request.kind;
        for _ in 0..ATTEMPTS {
            let Some(old) = self.cache.kind(kind).get(&request.key()) else {
                return self.update_missing(request, change).await;
            };
            let heavy = request.heavy || old.body().len() > form::LONG_BYTES;
            let shown = self.presented(kind, &old).await?;
            let live = task::in_place(heavy, || form::served(kind, &shown));
            let prepared = loop {
                match task::in_place(heavy, || self.prepare_update(request, &mut change, &old, &live)) {
                    Err(_) if self.learn(request).await? => {}
                    done => break done?,
                }
            };
            let Prepared { mut new, pinned, repeated } = prepared;
            let review = Review::update(self, request, &live);
            let mutated = review.mutate(&mut new).await?;
            let allocating = self.lock_allocation(kind).await;
            task::in_place(heavy, || self.finish_update(request, &live, &mut new))?;
            let again = |new: &mut Value| allocate::on_update(self, kind, new, &live);
            let validated = self.validate(&review, &mut new, allocating, again).await?;
            let Some((admitted, _allocating)) = validated else { continue };
            let of_kind = kind.warnings(&new, Some(&live));
            let warnings = repeated.into_iter().chain(mutated).chain(of_kind).chain(admitted).collect();
            set(&mut new, "metadata.resourceVersion", old.revision.to_string());
            // Who writes what is there already brings it into the form that is stored today.
            let is_of_today = kind.as_custom().is_none() || kind.stored().has_form_of(&old);
            if is_of_today && (new == live || managed::same_but_times(&new, &live)) {
                return Ok(Written { object: old, created: false, warnings });
            }
            match self.commit(&review, request, new, Some(&old)).await {
                Ok(object) => return Ok(Written { object, created: false, warnings }),
                Err(Failure::Conflict) if pinned => return Err(Status::modified(kind, &request.name)),
                Err(Failure::Conflict | Failure::Charge) => {}
                Err(Failure::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(kind, &request.name))
    }

    /// The caller's new form, made of the live one and ready for admission.
    fn prepare_update(
        &self,
        request: &Request,
        change: &mut Change<'_>,
        old: &Object,
        live: &Value,
    ) -> Result<Prepared> {
        let (mut new, explicit) = match change {
            Change::Replace(value) => (value.clone(), true),
            Change::Patch(patch) => (patch(live)?, false),
            Change::Apply(apply) => (apply(Some(live))?, false),
        };
        // Version 0 means any, as none does.
        let given = text(&new, "metadata.resourceVersion").trim_start_matches('0').to_owned();
        check_identity(request, &new, live, explicit)?;
        let pinned = !given.is_empty() && (explicit || given != old.revision.to_string());
        if pinned && given != old.revision.to_string() {
            return Err(Status::modified(&request.kind, &request.name));
        }
        let applied = matches!(change, Change::Apply(_));
        let repeated = self.begin_update(request, live, &mut new, applied)?;
        Ok(Prepared { new, pinned, repeated })
    }

    async fn update_missing(&self, request: &Request, change: Change<'_>) -> Result<Written> {
        let kind = &request.kind;
        match change {
            Change::Replace(value) if kind.create_on_update() && request.subresource.is_none() => {
                check_name(request, &value)?;
                if !text(&value, "metadata.uid").is_empty() {
                    let why = "Precondition failed: UID in precondition: , UID in object meta: ";
                    return Err(Status::conflict(kind, &request.name, why));
                }
                self.may_create(request)?;
                let mut value = value;
                remove(&mut value, "metadata.resourceVersion");
                self.create(request, value).await
            }
            Change::Apply(apply) if request.subresource.is_none() => {
                self.may_create(request)?;
                let mut value = apply(None)?;
                if text(&value, "metadata.name").is_empty() {
                    return Err(Status::bad_request("metadata.name is required in a configuration that creates"));
                }
                remove(&mut value, "metadata.resourceVersion");
                if !text(&value, "metadata.uid").is_empty() {
                    return Err(Status::conflict(
                        kind,
                        &request.name,
                        "uid mismatch: the provided object specified uid, and no existing object was found",
                    ));
                }
                self.place(request, &mut value)?;
                kind.try_default(&mut value).map_err(Status::exceeded)?;
                settle(kind, &mut value);
                self.create_prepared(request, value, false).await
            }
            Change::Replace(_) | Change::Patch(_) | Change::Apply(_) => Err(request.not_found()),
        }
    }

    /// Everything between the caller's new form and admission; answers what the client is warned of. `live` and `new` are in
    /// the served form; with `applied` the managed fields of `new` are right already.
    fn begin_update(&self, request: &Request, live: &Value, new: &mut Value, applied: bool) -> Result<Option<String>> {
        let kind = &request.kind;
        if let Some(m) = new.as_object_mut() {
            m.insert("apiVersion".into(), kind.api_version().into());
            m.insert("kind".into(), kind.kind().into());
        }
        let repeated = dedupe_owners(new);
        keep_system_metadata(new, live);
        kind.try_default(new).map_err(Status::exceeded)?;
        if !applied {
            self.track(request, Some(live), new)?;
        }
        settle(kind, new);
        Ok(repeated)
    }

    /// Everything between admission and the commit but the plugins' last look.
    fn finish_update(&self, request: &Request, live: &Value, new: &mut Value) -> Result<()> {
        let kind = &request.kind;
        let strategy = request.subresource.and_then(|through| kind.update_strategy(through));
        let errors = match (request.subresource, strategy) {
            (Some(Subresource::Status), _) => {
                keep_all_but(new, live, &["status", "metadata"]);
                kind.prepare_status(new, live);
                kind.validate_status(new, live)
            }
            (_, Some(strategy)) => {
                (strategy.prepare)(new, live);
                (strategy.validate)(new, live)
            }
            _ => {
                if kind.has_status() {
                    keep(new, live, "status");
                }
                kind.prepare_update(new, live);
                allocate::on_update(self, kind, new, live)?;
                kind.validate(new).into_iter().chain(kind.validate_update(new, live)).collect()
            }
        };
        if request.subresource != Some(Subresource::Status) && strategy.is_none_or(|s| s.tracked) {
            bump_generation(kind, new, live);
        }
        let all: Errors = meta::validate_update(&kind.metadata_rules(), new, live).into_iter().chain(errors).collect();
        if all.is_empty() { Ok(()) } else { Err(Status::invalid(kind, &request.name, &all)) }
    }

    /// Field ownership after a create, update or patch.
    pub(in crate::api) fn track(&self, request: &Request, live: Option<&Value>, new: &mut Value) -> Result<()> {
        let kind = &request.kind;
        if request.subresource.and_then(|through| kind.update_strategy(through)).is_some_and(|s| !s.tracked) {
            return Ok(());
        }
        with_writer(self, request, |writer| apply::after_update(live, new, &kind.type_ref(), writer))
            .map_err(Status::internal)
    }
}
