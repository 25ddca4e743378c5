//! What the API itself sees to in an object's metadata.

use std::collections::HashSet;

use serde_json::Value;

use crate::api::Request;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, int, remove, set, text};
use crate::kinds::{Generation, KindRef, field};

/// An empty list that was given is noted as somebody's, but stored as none.
pub(super) fn settle(kind: &KindRef, value: &mut Value) {
    crate::schema::settle(value, &kind.type_ref());
}

/// An owner is named once; the warning tells of those that were dropped.
pub(super) fn dedupe_owners(value: &mut Value) -> Option<String> {
    let owners = crate::base::json::list_mut(value, "metadata.ownerReferences").filter(|owners| owners.len() > 1)?;
    let before = owners.len();
    let mut seen = HashSet::new();
    owners.retain(|o| seen.insert(o.to_string()));
    let uids: HashSet<&str> = owners.iter().map(|o| text(o, "uid")).collect();
    (before != owners.len() || uids.len() != owners.len()).then(|| {
        ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+".into()
    })
}

/// Metadata that a client may leave out but not change.
pub(super) fn keep_system_metadata(new: &mut Value, live: &Value) {
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

pub(super) fn bump_generation(kind: &KindRef, new: &mut Value, live: &Value) {
    if matches!(kind.generation(), Generation::None | Generation::Once) {
        return;
    }
    let rest = |v: &Value| {
        let mut rest = v.as_object().cloned().unwrap_or_default();
        rest.retain(|k, _| k != "metadata" && !(k == "status" && kind.has_status()));
        rest
    };
    let differs = |path: &str| at(new, path) != at(live, path);
    let changed = rest(new) != rest(live)
        || (kind.generation() == Generation::SpecAndAnnotations && differs("metadata.annotations"))
        || (kind.generation() == Generation::SpecAndLabels && differs("metadata.labels"));
    if changed {
        let generation = int(live, "metadata.generation").unwrap_or(0) + 1;
        set(new, "metadata.generation", generation);
    }
}

pub(super) fn check_name(request: &Request, value: &Value) -> Result<()> {
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
pub(super) fn check_identity(request: &Request, new: &Value, live: &Value, explicit: bool) -> Result<()> {
    let kind = &request.kind;
    if explicit {
        let name = text(new, "metadata.name");
        if name.is_empty() {
            return Err(Status::bad_request(
                "the name of the object (based on URL) was undeterminable: name must be provided",
            ));
        }
        check_name(request, new)?;
        let namespace = text(new, "metadata.namespace");
        if kind.namespaced() && !namespace.is_empty() && namespace != request.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        if text(new, "metadata.resourceVersion").is_empty() && !kind.unconditional_update() {
            let error = field::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            let mut status = Status::invalid(kind, &request.name, &[error]);
            status.details.kind = kind.plural().into();
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

/// A patch that names another object is a mistake; another uid is left to validation.
fn check_patched(request: &Request, new: &Value, live: &Value) -> Result<()> {
    let name = text(new, "metadata.name");
    if name.is_empty() {
        return Err(Status::bad_request("name must be provided"));
    }
    check_name(request, new)?;
    let namespace = text(new, "metadata.namespace");
    if request.kind.namespaced() && !namespace.is_empty() && namespace != text(live, "metadata.namespace") {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
