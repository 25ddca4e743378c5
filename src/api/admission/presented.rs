//! A request and its objects as whoever admits them sees them: `AdmissionRequest`, and the objects as of the kind that is asked
//! for.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::matching::operation;
use super::{Operation, Review};
use crate::api::subresource::scale;
use crate::api::{FieldValidation, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::json::{at, set, text};
use crate::kinds::{KindRef, Subresource};
use crate::schema::apply::managed;

/// What is asked for, but for the objects that it is about.
pub(super) fn request(review: &Review<'_>, kind: &KindRef, object: &Value) -> Value {
    let request = review.request;
    let asked_as = |kind: &KindRef| match request.subresource.and_then(|s| s.gvk(request.kind.kind())) {
        Some((group, version, kind)) => json!({"group": group, "version": version, "kind": kind}),
        None => json!({"group": kind.group(), "version": kind.version(), "kind": kind.kind()}),
    };
    let resource =
        |kind: &KindRef| json!({"group": kind.group(), "version": kind.version(), "resource": kind.plural()});
    let mut asked = json!({
        "kind": asked_as(kind),
        "resource": resource(kind),
        "requestKind": asked_as(&request.kind),
        "requestResource": resource(&request.kind),
        "operation": operation(review.operation),
        "userInfo": request.user.info(),
        "dryRun": is_dry_run(review),
        "options": options(review),
    });
    let name = if request.name.is_empty() { text(object, "metadata.name") } else { &request.name };
    // A Namespace is said to be in itself.
    let is_namespace = request.kind == crate::kinds::core::namespace::KIND;
    let namespace = if is_namespace { name } else { &request.namespace };
    let subresource = request.subresource.map_or("", Subresource::name);
    for (key, value) in
        [("name", name), ("namespace", namespace), ("subResource", subresource), ("requestSubResource", subresource)]
    {
        if !value.is_empty() {
            asked[key] = value.into();
        }
    }
    asked
}

pub(super) fn is_dry_run(review: &Review<'_>) -> bool {
    review.request.dry_run || review.deletion.is_some_and(|options| options.dry_run)
}

/// An object as it is seen: through its subresource, as one of the kind that was asked for.
pub(super) fn shown<'v>(review: &Review<'_>, kind: &KindRef, object: &'v Value) -> Cow<'v, Value> {
    let request = review.request;
    if !object.is_object() {
        return Cow::Owned(Value::Null);
    }
    match request.subresource {
        Some(Subresource::Scale) => Cow::Owned(scale::of_value(&request.kind, object)),
        Some(sub) if sub.gvk(request.kind.kind()).is_some() => Cow::Borrowed(object),
        _ if request.kind == *kind => Cow::Borrowed(object),
        // One that is not known yet is nothing, and is asked for before it counts.
        _ if kind.is_converted_by_webhook() => Cow::Owned(request.conversions.get(object, kind).unwrap_or_default()),
        _ => Cow::Owned(form::converted(&request.kind, kind, object.clone())),
    }
}

/// Has the objects of a review converted as which they are to be shown.
pub(super) async fn prepare(review: &Review<'_>, kind: &KindRef, object: &Value) -> Result<()> {
    if review.request.kind != *kind && kind.is_converted_by_webhook() {
        for object in [Some(object), review.old].into_iter().flatten() {
            shown(review, kind, object);
        }
        review.api.learn(review.request).await?;
    }
    Ok(())
}

/// Whether an object that is asked about can be changed: it is one that has a schema here.
pub(super) fn is_changeable(review: &Review<'_>, object: &Value) -> bool {
    let through = review.request.subresource;
    object.is_object() && (through == Some(Subresource::Scale) || through.is_none_or(|s| s.gvk("").is_none()))
}

/// Why what somebody has made of an object is none.
pub(super) enum Unfit {
    /// It is not such an object, and whose fault that is does the caller know.
    Broken(String),
    Status(Status),
}

/// What somebody has made of an object as it was shown, as the object itself again, with defaults.
pub(super) fn taken_back(
    review: &Review<'_>,
    kind: &KindRef,
    object: &Value,
    mut new: Value,
    validation: FieldValidation,
    budget: &mut Budget,
) -> Result<Value, Unfit> {
    let request = review.request;
    if request.subresource == Some(Subresource::Scale) {
        let mut workload = object.clone();
        scale::set_replicas(&request.kind, &mut workload, &new);
        return Ok(workload);
    }
    if (text(&new, "apiVersion"), text(&new, "kind")) != (&kind.api_version(), kind.kind()) {
        return Err(Unfit::Broken("the patch makes an object of another kind".to_owned()));
    }
    form::check(validation, &mut new, &kind.type_ref(), form::Duplicates::none(), budget)
        .map_err(|status| Unfit::Broken(status.message))?;
    let mut new = match kind.is_converted_by_webhook() {
        true => request.conversions.get(&new, &request.kind).map_err(|e| Unfit::Status(Status::internal(e)))?,
        false => form::converted(kind, &request.kind, new),
    };
    request.kind.try_default(&mut new).map_err(|limit| Unfit::Status(Status::exceeded(limit)))?;
    if text(&new, "metadata.namespace") != text(object, "metadata.namespace") {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Unfit::Status(Status::bad_request(why)));
    }
    // Whose fields they are is told by what is true of them, or as before.
    let is_valid = at(&new, "metadata.managedFields").is_none_or(managed::is_valid);
    if let Some(before) = at(object, "metadata.managedFields").filter(|_| !is_valid) {
        set(&mut new, "metadata.managedFields", before.clone());
    }
    Ok(new)
}

fn options(review: &Review<'_>) -> Value {
    let kind = match review.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => return Value::Null,
    };
    let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    if is_dry_run(review) {
        options["dryRun"] = json!(["All"]);
    }
    if let Some(deletion) = review.deletion {
        deletion.write_into(&mut options);
    }
    options
}
