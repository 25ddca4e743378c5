//! The scale subresource: `autoscaling/v1 Scale` over `spec.replicas`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::api::write::{Change, Written, apply_failure};
use crate::api::{Api, Request, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::Budget;
use crate::base::json::{at, int, set, text};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::{KindRef, Subresource, field};
use crate::schema::TypeRef;
use crate::schema::apply::{self, FieldSet, managed};

/// The definition of what goes through it.
pub const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

/// Where a Scale says how many there shall be; a workload of a built-in kind says it there too.
const REPLICAS: &str = "spec.replicas";

/// The Scale of a workload.
pub fn of(kind: &KindRef, object: &Object) -> Result<Value> {
    let value = form::served(kind, object);
    if let Some(paths) = kind.as_custom().and_then(|kind| kind.scale.as_ref())
        && at(&value, &paths.spec_replicas).is_none()
    {
        let why = format!("the spec replicas field \".{}\" does not exist", paths.spec_replicas);
        return Err(Status::internal(why).cause("", "", ""));
    }
    Ok(of_value(kind, &value))
}

/// Where a workload of this kind says how many it shall be.
fn replicas_path(kind: &KindRef) -> &str {
    kind.as_custom().and_then(|kind| kind.scale.as_ref()).map_or(REPLICAS, |paths| &paths.spec_replicas)
}

/// The same in another version, if there is one; those of built-in kinds have it all in one place.
fn replicas_path_in(kind: &KindRef, api_version: &str) -> Option<String> {
    if kind.as_custom().is_none() {
        return Some(replicas_path(kind).to_owned());
    }
    let version = api_version.rsplit('/').next().unwrap_or_default();
    Some(kind.in_version(version)?.as_custom()?.scale.as_ref()?.spec_replicas.clone())
}

/// As [`of`], of a workload in the served form.
pub fn of_value(kind: &KindRef, value: &Value) -> Value {
    let paths = kind.as_custom().and_then(|kind| kind.scale.as_ref());
    let counted = paths.map_or("status.replicas", |paths| &paths.status_replicas);
    let metadata: serde_json::Map<String, Value> = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|k| Some((k.to_owned(), at(value, &format!("metadata.{k}"))?.clone())))
        .collect();
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": {},
        "status": {"replicas": int(value, counted).unwrap_or(0)},
    });
    if let Some(replicas) = int(value, replicas_path(kind)).filter(|r| *r != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = match paths {
        Some(paths) => paths.label_selector.as_ref().map(|path| text(value, path).to_owned()),
        None => at(value, "spec.selector").and_then(selector_of).map(|s| s.to_string()),
    };
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// Has a workload have as many as a Scale says.
pub fn set_replicas(kind: &KindRef, workload: &mut Value, scale: &Value) {
    set(workload, replicas_path(kind), int(scale, REPLICAS).unwrap_or(0));
}

/// A selector in either form: of labels alone (ReplicationController), or with expressions.
fn selector_of(selector: &Value) -> Option<Selector> {
    let plain: Option<BTreeMap<String, String>> =
        selector.as_object()?.iter().map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    match plain {
        Some(labels) => Some(Selector::from_map(&labels)),
        None => Selector::from_object(selector).ok(),
    }
}

/// A Scale and whose fields it has, by its workload's managed fields.
fn tracked(kind: &KindRef, workload: &Value) -> Value {
    let mut scale = of_value(kind, workload);
    let owners =
        apply::scale::of_parent(at(workload, "metadata.managedFields"), |version| replicas_path_in(kind, version));
    if owners.as_array().is_some_and(|list| !list.is_empty()) {
        set(&mut scale, "metadata.managedFields", owners);
    }
    scale
}

impl Api {
    /// Changes the Scale of the named workload: `change` makes the new Scale of the live one. With `applied` its managed
    /// fields are right already.
    pub async fn rescale(
        &self,
        request: &Request,
        applied: bool,
        change: &mut (dyn FnMut(&Value) -> Result<Value> + Send),
    ) -> Result<Written> {
        let mut rescaled = |live: Option<&Value>| {
            let live = live.ok_or_else(|| request.not_found())?;
            let kind = &request.kind;
            let scale = tracked(kind, live);
            let mut new = change(&scale)?;
            check(request, &new, live)?;
            if !applied && let Some(shape) = crate::schema::type_of(SCHEMA) {
                self.with_scale_writer(request, |writer| apply::after_update(Some(&scale), &mut new, &shape, writer))
                    .map_err(Status::internal)?;
            }
            let owners = apply::scale::to_parent(
                at(live, "metadata.managedFields"),
                at(&new, "metadata.managedFields"),
                |version| replicas_path_in(kind, version),
                &request.kind.api_version(),
            );
            let mut workload = live.clone();
            set_replicas(kind, &mut workload, &new);
            set(&mut workload, "metadata.managedFields", owners);
            Ok(workload)
        };
        self.update(request, Change::Apply(&mut rescaled)).await
    }

    /// Server-side apply of a Scale.
    pub fn apply_scale(
        &self,
        request: &Request,
        live: &Value,
        config: &Value,
        shape: &TypeRef<'_>,
        force: bool,
    ) -> Result<Value> {
        let budget = &mut Budget::new();
        self.with_scale_writer(request, |writer| apply::apply(Some(live), config, shape, writer, force, budget))
            .map_err(apply_failure)
    }

    fn with_scale_writer<T>(&self, request: &Request, run: impl FnOnce(&managed::Writer<'_>) -> T) -> T {
        run(&managed::Writer {
            manager: &request.manager,
            api_version: "autoscaling/v1",
            subresource: Subresource::Scale.name(),
            now: &self.clock.now_text(),
            reset: &FieldSet::of_fields(["status"]),
            versions: None,
        })
    }
}

/// The new Scale must speak of the live workload and be a possible one.
fn check(request: &Request, new: &Value, live: &Value) -> Result<()> {
    let named = text(new, "metadata.name");
    if named != request.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            request.name
        )));
    }
    let given = text(new, "metadata.resourceVersion");
    if !given.is_empty() && given != text(live, "metadata.resourceVersion") {
        return Err(Status::modified(&request.kind, &request.name));
    }
    let (uid, actual) = (text(new, "metadata.uid"), text(live, "metadata.uid"));
    if !uid.is_empty() && uid != actual {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}");
        return Err(Status::conflict(&request.kind, &request.name, why));
    }
    let replicas = int(new, REPLICAS).unwrap_or(0);
    // What a custom kind's schema says of the field is said of its object.
    if replicas < 0 && request.kind.as_custom().is_none() {
        let error = field::invalid(REPLICAS, replicas, "must be greater than or equal to 0");
        let mut status = Status::invalid(&request.kind, named, &[error]);
        status.details.kind = "Scale".into();
        status.details.group = "autoscaling".into();
        return Err(status);
    }
    Ok(())
}
