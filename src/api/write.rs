//! THE write path: create, update, patch, and the commit that all of them share.
//!
//! The order is Kubernetes': the caller's object with defaults, then field ownership, then admission, then what the kind
//! prepares, then validation, then one commit with the loaded revision as precondition. A lost race loads again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;

use super::admission::{self, Operation};
use super::cache::Pending;
use super::identity::authorize::{Attributes, authorize};
use super::status::{Result, Status};
use super::{Api, Request, form};
use crate::base::budget::{self, Budget, STORED_BYTES_MAX};
use crate::base::json::{at, int, list, map_mut, remove, set, text};
use crate::base::object::{Draft, Object};
use crate::base::task;
use crate::kinds::field::{self, Errors};
use crate::kinds::{Generation, Kind, Subresource, meta};
use crate::schema::apply::{self, ApplyError, FieldSet, managed};
use crate::store::{self, Op, Txn};

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
    /// Creates an object of the request's kind from its decoded form (without defaults).
    pub async fn create(&self, request: &Request, mut value: Value) -> Result<Written> {
        let kind = request.kind;
        self.place(request, &mut value)?;
        admission::before_create(self, request, &value)?;
        let generated = text(&value, "metadata.name").is_empty();
        task::in_place(request.heavy, || {
            self.name(&mut value);
            (kind.default)(&mut value);
            for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "uid", "creationTimestamp"] {
                map_mut(&mut value, "metadata").remove(key);
            }
            self.track(request, None, &mut value);
            settle(kind, &mut value);
        });
        self.create_prepared(request, value, generated).await
    }

    /// The rest of a creation: `value` has defaults and managed fields. Only a name that was `generated` here can be tried
    /// again; what the client wrote beside `generateName` is what it asked for.
    async fn create_prepared(&self, request: &Request, mut value: Value, generated: bool) -> Result<Written> {
        let kind = request.kind;
        let repeated = dedupe_owners(&mut value);
        admission::wait(self, request, &value).await;
        let admitted = || admission::admit(self, request, Operation::Create, &mut value, None);
        task::in_place(request.heavy, admitted)?;
        let given = if generated { value.clone() } else { Value::Null };
        for _ in 0..ATTEMPTS {
            let _allocating = self.lock_allocation(kind).await;
            let (name, admitted) = task::in_place(request.heavy, || self.checked_new(request, &mut value))?;
            let warnings = repeated.clone().into_iter().chain(admitted).collect();
            match self.commit(&request.named(&name), value, None).await {
                Ok(object) => return Ok(Written { object, created: true, warnings }),
                Err(Failure::Conflict) if generated => {
                    value = given.clone();
                    remove(&mut value, "metadata.name");
                    self.name(&mut value);
                }
                Err(Failure::Conflict) => return Err(Status::already_exists(kind, &name)),
                Err(Failure::Status(status)) => return Err(status),
            }
        }
        Err(Status::already_exists(kind, text(&value, "metadata.name")))
    }

    /// Finishes a new object and checks it; answers its name and warnings.
    fn checked_new(&self, request: &Request, value: &mut Value) -> Result<(String, Vec<String>)> {
        let kind = request.kind;
        self.stamp(request, value);
        (kind.prepare_create)(value);
        super::allocate::on_create(self, kind, value)?;
        let errors: Errors = meta::validate(kind, value)
            .into_iter()
            .chain((kind.validate)(value))
            .chain((kind.validate_create)(value))
            .collect();
        let name = text(value, "metadata.name").to_owned();
        if !errors.is_empty() {
            return Err(Status::invalid(kind, &name, &errors));
        }
        admission::validate(self, request, Operation::Create, value, None)?;
        let admitted = admission::warnings(self, request, value, None);
        Ok((name, (kind.warnings)(value, None).into_iter().chain(admitted).collect()))
    }

    /// Changes the named object (or its subresource).
    pub async fn update(&self, request: &Request, mut change: Change<'_>) -> Result<Written> {
        let kind = request.kind;
        for _ in 0..ATTEMPTS {
            let Some(old) = self.cache.shelf(kind).get(&request.key()) else {
                return self.update_missing(request, change).await;
            };
            let heavy = request.heavy || old.body().len() > form::LONG_BYTES;
            let live = task::in_place(heavy, || form::served(kind, old.value()));
            let (mut new, explicit) = task::in_place(heavy, || match &mut change {
                Change::Replace(value) => Ok((value.clone(), true)),
                Change::Patch(patch) => patch(&live).map(|new| (new, false)),
                Change::Apply(apply) => apply(Some(&live)).map(|new| (new, false)),
            })?;
            // Version 0 means any, as none does.
            let given = text(&new, "metadata.resourceVersion").trim_start_matches('0').to_owned();
            check_identity(request, &new, &live, explicit)?;
            let pinned = !given.is_empty() && (explicit || given != old.revision.to_string());
            if pinned && given != old.revision.to_string() {
                return Err(Status::modified(kind, &request.name));
            }
            let applied = matches!(change, Change::Apply(_));
            let _allocating = self.lock_allocation(kind).await;
            let finish = || self.finish_update(request, &live, &mut new, applied);
            let warnings = task::in_place(heavy, finish)?;
            set(&mut new, "metadata.resourceVersion", old.revision.to_string());
            if new == live || managed::same_but_times(&new, &live) {
                return Ok(Written { object: old, created: false, warnings });
            }
            match self.commit(request, new, Some(&old)).await {
                Ok(object) => return Ok(Written { object, created: false, warnings }),
                Err(Failure::Conflict) if pinned => return Err(Status::modified(kind, &request.name)),
                Err(Failure::Conflict) => continue,
                Err(Failure::Status(status)) => return Err(status),
            }
        }
        Err(Status::modified(kind, &request.name))
    }

    async fn update_missing(&self, request: &Request, change: Change<'_>) -> Result<Written> {
        let kind = request.kind;
        match change {
            Change::Replace(value) if kind.create_on_update && request.subresource.is_none() => {
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
                admission::before_create(self, request, &value)?;
                (kind.default)(&mut value);
                settle(kind, &mut value);
                self.create_prepared(request, value, false).await
            }
            Change::Replace(_) | Change::Patch(_) | Change::Apply(_) => Err(request.not_found()),
        }
    }

    /// Who may change an object may not therefore make one.
    fn may_create(&self, request: &Request) -> Result<()> {
        if authorize(self, &request.user, &Attributes::of_request(request, "create")).allowed {
            return Ok(());
        }
        let why = format!("User {:?} cannot create resource {:?}", request.user.name, request.kind.plural);
        Err(Status::forbidden(request.kind, &request.name, why))
    }

    /// Everything between the caller's new form and the commit; `live` and `new` are in the served form.
    fn finish_update(&self, request: &Request, live: &Value, new: &mut Value, applied: bool) -> Result<Vec<String>> {
        let kind = request.kind;
        if let Some(m) = new.as_object_mut() {
            m.insert("apiVersion".into(), kind.api_version().into());
            m.insert("kind".into(), kind.kind.into());
        }
        let repeated = dedupe_owners(new);
        keep_system_metadata(new, live);
        (kind.default)(new);
        if !applied {
            self.track(request, Some(live), new);
        }
        settle(kind, new);
        admission::admit(self, request, Operation::Update, new, Some(live))?;
        let mut errors = Errors::new();
        match request.subresource {
            Some(Subresource::Status) => {
                keep_all_but(new, live, &["status", "metadata"]);
                (kind.prepare_status)(new, live);
                errors.extend((kind.validate_status)(new, live));
            }
            // Made by the server itself of a checked Binding.
            Some(Subresource::Binding) => {}
            Some(Subresource::Finalize) => {
                keep_all_but(new, live, &["spec", "metadata"]);
                errors.extend((kind.validate_finalize)(new, live));
            }
            Some(Subresource::Resize) => {
                keep_all_but_resources(new, live);
                errors.extend((kind.validate)(new));
                errors.extend((kind.validate_resize)(new, live));
            }
            Some(Subresource::EphemeralContainers) => {
                keep_all_but_ephemeral(new, live);
                errors.extend((kind.validate_ephemeral)(new, live));
            }
            _ => {
                if kind.has_status {
                    keep(new, live, "status");
                }
                (kind.prepare_update)(new, live);
                super::allocate::on_update(self, kind, new, live)?;
                errors.extend((kind.validate)(new));
                errors.extend((kind.validate_update)(new, live));
            }
        }
        if !matches!(request.subresource, Some(Subresource::Status | Subresource::Binding)) {
            bump_generation(kind, new, live);
        }
        let mut all = meta::validate_update(kind, new, live);
        all.append(&mut errors);
        if !all.is_empty() {
            return Err(Status::invalid(kind, &request.name, &all));
        }
        admission::validate(self, request, Operation::Update, new, Some(live))?;
        let admitted = admission::warnings(self, request, new, Some(live));
        Ok(repeated.into_iter().chain((kind.warnings)(new, Some(live))).chain(admitted).collect())
    }

    /// Namespace and name of a new object from the path and the body.
    fn place(&self, request: &Request, value: &mut Value) -> Result<()> {
        let kind = request.kind;
        if let Some(m) = value.as_object_mut() {
            m.insert("apiVersion".into(), kind.api_version().into());
            m.insert("kind".into(), kind.kind.into());
        }
        if kind.namespaced {
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
        let kind = request.kind;
        let metadata = map_mut(value, "metadata");
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            metadata.remove(key);
        }
        metadata.insert("uid".into(), self.clock.uuid().into());
        metadata.insert("creationTimestamp".into(), self.clock.now_text().into());
        if kind.generation != Generation::None {
            metadata.insert("generation".into(), 1.into());
        }
        if kind.has_status && kind.plural != "namespaces" && kind.plural != "nodes" {
            remove(value, "status");
        }
    }

    /// Field ownership after a create, update or patch.
    pub(super) fn track(&self, request: &Request, live: Option<&Value>, new: &mut Value) {
        if request.subresource == Some(Subresource::Binding) {
            return;
        }
        let Some(shape) = crate::schema::type_of(request.kind.schema) else { return };
        with_writer(self, request, |writer| managed::after_update(live, new, &shape, writer));
    }

    /// Writes an object in the served form; `old` is what was loaded (absent: it must be new).
    ///
    /// An object that is being deleted and that nothing holds any more is removed instead.
    async fn commit(
        &self,
        request: &Request,
        mut value: Value,
        old: Option<&Arc<Object>>,
    ) -> Result<Arc<Object>, Failure> {
        let kind = request.kind;
        form::stored(kind, &mut value);
        let stored = kind.stored();
        let written = || Draft::new(request.key(), &value, stored.field_values(&value));
        let draft = task::in_place(request.heavy, written);
        check_size(&value, draft.stored().len(), old)?;
        if request.dry_run {
            return Ok(Arc::new(draft.at(old.map_or(0, |o| o.revision))));
        }
        // Who watches is told of the last state that was stored, who asked of what they made of it.
        let released = old.filter(|_| is_released(&value));
        let pending = match released {
            Some(old) => {
                let last = old.value();
                Pending::new(Draft::new(request.key(), &last, stored.field_values(&last)))
            }
            None => Pending::new(draft.clone()),
        };
        let (key, bytes) = (request.key(), pending.draft.stored().clone());
        let expect = vec![(key.clone(), old.map_or(0, |o| o.revision))];
        let companion = Some(pending.clone() as store::Companion);
        let op = if released.is_some() {
            Op::Delete { key, value: bytes, companion }
        } else {
            Op::Put { key, value: bytes, companion, volatile: (kind.volatile)(&request.namespace) }
        };
        match self.store.commit(Txn { expect, ops: vec![op] }).await {
            Ok(_) if released.is_some() => Ok(Arc::new(draft.at(pending.object().revision))),
            Ok(_) => Ok(pending.object()),
            Err(store::Error::Conflict { .. }) => Err(Failure::Conflict),
            Err(error) => Err(Failure::Status(error.into())),
        }
    }

    /// Held while a kind whose objects take addresses or ports is written.
    async fn lock_allocation(&self, kind: &Kind) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if super::allocate::concerns(kind) { Some(self.allocation.lock().await) } else { None }
    }
}

enum Failure {
    Conflict,
    Status(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// Refuses what would be too large to be read again; what was so before may only become smaller.
fn check_size(value: &Value, bytes: usize, old: Option<&Arc<Object>>) -> Result<()> {
    let size = budget::size_of(value);
    let limits = budget::check_depth(0, size.depth).and_then(|()| Budget::new().copy(size));
    if bytes <= STORED_BYTES_MAX && limits.is_ok() {
        return Ok(());
    }
    if let Some(old) = old {
        let before = budget::size_of(&old.value());
        if bytes <= old.body().len() && size.bytes <= before.bytes && size.depth <= before.depth {
            return Ok(());
        }
    }
    limits.map_err(Status::exceeded)?;
    Err(Status::too_large(format!("the object has {bytes} bytes, limit is {STORED_BYTES_MAX}")))
}

/// Whether the object waits for its end and nothing holds it any more.
pub(super) fn is_released(value: &Value) -> bool {
    at(value, "metadata.deletionTimestamp").is_some()
        && int(value, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
        && list(value, "metadata.finalizers").is_empty()
        && list(value, "spec.finalizers").is_empty()
}

/// The fields whose ownership a request never takes because it cannot change them.
fn reset_fields(kind: &Kind, subresource: Option<Subresource>) -> &'static [&'static str] {
    match subresource {
        Some(Subresource::Status) => kind.status_resets,
        _ if kind.has_status => &["status"],
        _ => &[],
    }
}

fn check_name(request: &Request, value: &Value) -> Result<()> {
    let name = text(value, "metadata.name");
    if !name.is_empty() && name != request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            request.name
        )));
    }
    Ok(())
}

/// The body must speak of the object that the path names.
fn check_identity(request: &Request, new: &Value, live: &Value, explicit: bool) -> Result<()> {
    let kind = request.kind;
    if explicit {
        let name = text(new, "metadata.name");
        if name.is_empty() {
            return Err(Status::bad_request(
                "the name of the object (based on URL) was undeterminable: name must be provided",
            ));
        }
        check_name(request, new)?;
        let namespace = text(new, "metadata.namespace");
        if kind.namespaced && !namespace.is_empty() && namespace != request.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if text(new, "metadata.resourceVersion").is_empty() && !kind.unconditional_update {
            let error = field::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            let mut status = Status::invalid(kind, &request.name, &[error]);
            status.details.kind = kind.plural.into();
            return Err(status);
        }
    } else {
        check_patched(request, new, live)?;
        return Ok(());
    }
    let (given, actual) = (text(new, "metadata.uid"), text(live, "metadata.uid"));
    if !given.is_empty() && given != actual {
        let why = format!("Precondition failed: UID in precondition: {given}, UID in object meta: {actual}");
        return Err(Status::conflict(kind, &request.name, why));
    }
    Ok(())
}

/// An empty list that was given is noted as somebody's, but stored as none.
fn settle(kind: &Kind, value: &mut Value) {
    if let Some(shape) = crate::schema::type_of(kind.schema) {
        crate::schema::settle(value, &shape);
    }
}

/// An owner is named once; the warning tells of those that were dropped.
fn dedupe_owners(value: &mut Value) -> Option<String> {
    let owners = crate::base::json::list_mut(value, "metadata.ownerReferences").filter(|owners| owners.len() > 1)?;
    let before = owners.len();
    let mut seen = HashSet::new();
    owners.retain(|o| seen.insert(o.to_string()));
    let uids: HashSet<&str> = owners.iter().map(|o| text(o, "uid")).collect();
    (before != owners.len() || uids.len() != owners.len()).then(|| {
        ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+".into()
    })
}

/// A patch that names another object is a mistake; another uid is left to validation.
fn check_patched(request: &Request, new: &Value, live: &Value) -> Result<()> {
    let name = text(new, "metadata.name");
    if name.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    check_name(request, new)?;
    let namespace = text(new, "metadata.namespace");
    if request.kind.namespaced && !namespace.is_empty() && namespace != text(live, "metadata.namespace") {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Metadata that a client may leave out but not change.
fn keep_system_metadata(new: &mut Value, live: &Value) {
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ] {
        let path = format!("metadata.{key}");
        if at(new, &path).is_none_or(Value::is_null)
            && let Some(value) = at(live, &path)
        {
            set(new, &path, value.clone());
        }
    }
    if let Some(created) = at(live, "metadata.creationTimestamp") {
        set(new, "metadata.creationTimestamp", created.clone());
    }
    remove(new, "metadata.selfLink");
    match at(live, "metadata.generation") {
        Some(generation) => set(new, "metadata.generation", generation.clone()),
        None => {
            remove(new, "metadata.generation");
        }
    }
}

/// Puts `key` of the new object back to what it was.
fn keep(new: &mut Value, live: &Value, key: &str) {
    match live.get(key) {
        Some(value) => set(new, key, value.clone()),
        None => {
            remove(new, key);
        }
    }
}

/// Puts everything but the named top-level keys back to what it was.
fn keep_all_but(new: &mut Value, live: &Value, keys: &[&str]) {
    let Some(map) = new.as_object_mut() else { return };
    map.retain(|k, _| keys.contains(&k.as_str()));
    for (k, v) in live.as_object().into_iter().flatten() {
        if !keys.contains(&k.as_str()) {
            map.insert(k.clone(), v.clone());
        }
    }
}

/// Puts everything but the resources of containers back to what it was.
fn keep_all_but_resources(new: &mut Value, live: &Value) {
    let wanted = ["containers", "initContainers"].map(|g| list(new, &format!("spec.{g}")).to_vec());
    keep_all_but_ephemeral(new, live);
    match at(live, "spec.ephemeralContainers") {
        Some(containers) => set(new, "spec.ephemeralContainers", containers.clone()),
        None => {
            remove(new, "spec.ephemeralContainers");
        }
    }
    for (group, wanted) in ["containers", "initContainers"].into_iter().zip(wanted) {
        let mut by_name = HashMap::new();
        for container in &wanted {
            by_name.entry(text(container, "name")).or_insert(container);
        }
        for container in new["spec"].get_mut(group).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(from) = by_name.get(text(container, "name")) else { continue };
            for key in ["resources", "resizePolicy"] {
                if let Some(value) = from.get(key) {
                    map_mut(container, "").insert(key.into(), value.clone());
                }
            }
        }
    }
}

/// Puts everything but the ephemeral containers back to what it was.
fn keep_all_but_ephemeral(new: &mut Value, live: &Value) {
    let containers = at(new, "spec.ephemeralContainers").cloned();
    let tracked = ["resourceVersion", "managedFields"].map(|k| (k, new["metadata"].get(k).cloned()));
    let kind = (new["apiVersion"].clone(), new["kind"].clone());
    *new = live.clone();
    (new["apiVersion"], new["kind"]) = kind;
    for (key, value) in tracked {
        if let Some(value) = value {
            map_mut(new, "metadata").insert(key.into(), value);
        }
    }
    match containers {
        Some(containers) => set(new, "spec.ephemeralContainers", containers),
        None => {
            remove(new, "spec.ephemeralContainers");
        }
    }
}

fn bump_generation(kind: &Kind, new: &mut Value, live: &Value) {
    if matches!(kind.generation, Generation::None | Generation::Once) {
        return;
    }
    let rest = |v: &Value| {
        let mut rest = v.as_object().cloned().unwrap_or_default();
        rest.retain(|k, _| !matches!(k.as_str(), "metadata" | "status"));
        rest
    };
    let differs = |path: &str| at(new, path) != at(live, path);
    let changed = rest(new) != rest(live)
        || (kind.generation == Generation::SpecAndAnnotations && differs("metadata.annotations"))
        || (kind.generation == Generation::SpecAndLabels && differs("metadata.labels"));
    if changed {
        let generation = int(live, "metadata.generation").unwrap_or(0) + 1;
        set(new, "metadata.generation", generation);
    }
}

impl Api {
    /// Server-side apply of what our own code or a manifest on this machine says; conflicts are won.
    pub async fn apply_config(&self, request: &Request, mut config: Value) -> Result<Written> {
        let kind = request.kind;
        let shape = crate::schema::type_of(kind.schema).ok_or_else(|| Status::internal("the kind has no schema"))?;
        form::check(super::FieldValidation::Strict, &mut config, kind.schema, Vec::new(), &mut Budget::new())?;
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
        // Kubernetes answers 500 to a configuration that does not fit; it is the client's mistake and so a 400 here.
        other => Status::bad_request(other.to_string()),
    }
}

fn error_text(conflicts: &[apply::Conflict]) -> String {
    ApplyError::Conflicts(conflicts.to_vec()).to_string()
}

fn with_writer<T>(api: &Api, request: &Request, run: impl FnOnce(&managed::Writer<'_>) -> T) -> T {
    let kind = request.kind;
    let reset = FieldSet::of_fields(reset_fields(kind, request.subresource).iter().copied());
    run(&managed::Writer {
        manager: &request.manager,
        api_version: &kind.api_version(),
        subresource: request.subresource.map_or("", Subresource::name),
        now: &api.clock.now_text(),
        reset: &reset,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::core::{configmap, namespace};
    use crate::reconcile::in_memory;

    #[tokio::test]
    async fn a_name_that_the_client_wrote_is_not_replaced_by_a_generated_one() {
        let api = in_memory::api();
        let make = |kind: &'static Kind, namespace: &'static str, metadata: Value| {
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
        assert_eq!(api.cache.shelf(&configmap::KIND).len(), 3);
    }
}
