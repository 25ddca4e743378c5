//! New objects.

use serde_json::Value;

use super::commit::Failure;
use super::metadata::{check_name, dedupe_owners, settle};
use super::{ATTEMPTS, Written};
use crate::api::admission::Review;
use crate::api::identity::attributes::Attributes;
use crate::api::identity::authorize::authorize;
use crate::api::{Api, Request, allocate};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{map_mut, remove, set, text};
use crate::base::task;
use crate::kinds::field::Errors;
use crate::kinds::{Generation, meta};

impl Api {
    /// Creates an object of the request's kind from its decoded form (without defaults).
    pub async fn create(&self, request: &Request, mut value: Value) -> Result<Written> {
        let kind = &request.kind;
        self.place(request, &mut value)?;
        let generated = text(&value, "metadata.name").is_empty();
        task::in_place(request.heavy, || {
            self.name(&mut value);
            kind.try_default(&mut value).map_err(Status::exceeded)?;
            for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid", "creationTimestamp"] {
                map_mut(&mut value, "metadata").remove(key);
            }
            self.track(request, None, &mut value)?;
            settle(kind, &mut value);
            Ok::<_, Status>(())
        })?;
        self.create_prepared(request, value, generated).await
    }

    /// The rest of a creation: `value` has defaults and managed fields. Only a name that was `generated` here can be tried
    /// again; what the client wrote beside `generateName` is what it asked for.
    pub(super) async fn create_prepared(
        &self,
        request: &Request,
        mut value: Value,
        generated: bool,
    ) -> Result<Written> {
        let kind = &request.kind;
        self.definition_of(kind, text(&value, "metadata.name"))?;
        let repeated = dedupe_owners(&mut value);
        let review = Review::create(self, request);
        let mutated = review.mutate(&mut value).await?;
        let given = if generated || kind.allocates() { value.clone() } else { Value::Null };
        for _ in 0..ATTEMPTS {
            let allocating = self.lock_allocation(kind).await;
            let name = task::in_place(request.heavy, || self.finish_create(request, &mut value))?;
            let again = |value: &mut Value| allocate::on_create(self, kind, value);
            let Some((admitted, _allocating)) = self.validate(&review, &mut value, allocating, again).await? else {
                value = given.clone();
                continue;
            };
            let of_kind = kind.warnings(&value, None);
            let warnings = repeated.iter().chain(&mutated).cloned().chain(of_kind).chain(admitted).collect();
            match self.commit(&review, &request.named(&name), value, None).await {
                Ok(object) => return Ok(Written { object, created: true, warnings }),
                Err(Failure::Conflict) if generated => {
                    value = given.clone();
                    remove(&mut value, "metadata.name");
                    self.name(&mut value);
                }
                Err(Failure::Conflict | Failure::Charge) => return Err(Status::already_exists(kind, &name)),
                Err(Failure::Status(status)) => return Err(status),
            }
        }
        Err(Status::already_exists(kind, text(&value, "metadata.name")))
    }

    /// An object that the server itself makes together with another one.
    pub(super) fn made(&self, request: &Request, mut value: Value) -> Result<Value> {
        self.place(request, &mut value)?;
        request.kind.try_default(&mut value).map_err(Status::exceeded)?;
        self.track(request, None, &mut value)?;
        settle(&request.kind, &mut value);
        self.finish_create(request, &mut value)?;
        Ok(value)
    }

    /// Everything between admission and the commit but the plugins' last look; answers the object's name.
    fn finish_create(&self, request: &Request, value: &mut Value) -> Result<String> {
        let kind = &request.kind;
        self.stamp(request, value);
        kind.note_requestor(value, || request.user.info());
        kind.prepare_create(value);
        allocate::on_create(self, kind, value)?;
        let errors: Errors = meta::validate(&kind.metadata_rules(), value)
            .into_iter()
            .chain(kind.validate(value))
            .chain(kind.validate_create(value))
            .collect();
        let name = text(value, "metadata.name").to_owned();
        if !errors.is_empty() {
            return Err(Status::invalid(kind, &name, &errors));
        }
        Ok(name)
    }

    /// Namespace and name of a new object from the path and the body.
    pub(super) fn place(&self, request: &Request, value: &mut Value) -> Result<()> {
        let kind = &request.kind;
        if let Some(m) = value.as_object_mut() {
            m.insert("apiVersion".into(), kind.api_version().into());
            m.insert("kind".into(), kind.kind().into());
        }
        if kind.namespaced() {
            let given = text(value, "metadata.namespace");
            if !given.is_empty() && given != request.namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            set(value, "metadata.namespace", request.namespace.as_str());
        } else {
            remove(value, "metadata.namespace");
        }
        if !request.name.is_empty() {
            check_name(request, value)?;
            set(value, "metadata.name", request.name.as_str());
        }
        // Version 0 means none.
        if !matches!(text(value, "metadata.resourceVersion"), "" | "0") {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        Ok(())
    }

    fn name(&self, value: &mut Value) {
        let generate = text(value, "metadata.generateName").to_owned();
        if text(value, "metadata.name").is_empty() && !generate.is_empty() {
            // Kubernetes cuts the base so that the whole stays a DNS label.
            let base: String = generate.chars().take(58).collect();
            set(value, "metadata.name", format!("{base}{}", self.clock.name_suffix()));
        }
    }

    /// What only the server writes into a new object's metadata.
    fn stamp(&self, request: &Request, value: &mut Value) {
        let kind = &request.kind;
        let metadata = map_mut(value, "metadata");
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            metadata.remove(key);
        }
        metadata.insert("uid".into(), self.clock.uuid().into());
        metadata.insert("creationTimestamp".into(), self.clock.now_text().into());
        if kind.generation() != Generation::None {
            metadata.insert("generation".into(), 1.into());
        }
        if kind.has_status() && !kind.creates_status() {
            remove(value, "status");
        }
    }

    /// Who may change an object may not therefore make one.
    pub(super) fn may_create(&self, request: &Request) -> Result<()> {
        if authorize(self, &request.user, &Attributes::of_request(request, "create")).allowed {
            return Ok(());
        }
        let why = format!("User {:?} cannot create resource {:?}", request.user.name, request.kind.plural());
        Err(Status::forbidden(&request.kind, &request.name, why))
    }
}
