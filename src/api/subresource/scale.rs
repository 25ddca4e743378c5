//! The scale subresource: `autoscaling/v1 Scale` over `spec.replicas`.

use serde_json::{Value, json};

use crate::api::status::{Result, Status};
use crate::api::write::{Change, Written};
use crate::api::{Api, Request, form};
use crate::base::json::{at, int, set, text};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::{Kind, field};

/// The definition of what goes through it.
pub const SCHEMA: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The Scale of a workload.
pub fn of(kind: &Kind, object: &Object) -> Value {
    of_value(&form::served(kind, object.value()))
}

fn of_value(value: &Value) -> Value {
    let metadata: serde_json::Map<String, Value> = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|k| Some((k.to_owned(), at(value, &format!("metadata.{k}"))?.clone())))
        .collect();
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": {},
        "status": {"replicas": int(value, "status.replicas").unwrap_or(0)},
    });
    if let Some(replicas) = int(value, "spec.replicas").filter(|r| *r != 0) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = at(value, "spec.selector").and_then(|s| Selector::from_object(s).ok());
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        scale["status"]["selector"] = selector.to_string().into();
    }
    scale
}

impl Api {
    /// Changes the Scale of the named workload: `change` makes the new Scale of the live one.
    pub async fn rescale(
        &self,
        request: &Request,
        change: &mut (dyn FnMut(&Value) -> Result<Value> + Send),
    ) -> Result<Written> {
        let mut patch = |live: &Value| {
            let scale = of_value(live);
            let new = change(&scale)?;
            let named = text(&new, "metadata.name");
            if named != request.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({named}) does not match the name on the URL ({})",
                    request.name
                )));
            }
            let given = text(&new, "metadata.resourceVersion");
            if !given.is_empty() && given != text(live, "metadata.resourceVersion") {
                return Err(Status::modified(request.kind, &request.name));
            }
            let (uid, actual) = (text(&new, "metadata.uid"), text(live, "metadata.uid"));
            if !uid.is_empty() && uid != actual {
                let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}");
                return Err(Status::conflict(request.kind, &request.name, why));
            }
            let replicas = int(&new, "spec.replicas").unwrap_or(0);
            if replicas < 0 {
                let error = field::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                let mut status = Status::invalid(request.kind, text(&new, "metadata.name"), &[error]);
                status.details.kind = "Scale".into();
                status.details.group = "autoscaling".into();
                return Err(status);
            }
            let mut object = live.clone();
            set(&mut object, "spec.replicas", replicas);
            Ok(object)
        };
        self.update(request, Change::Patch(&mut patch)).await
    }
}
