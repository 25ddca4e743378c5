//! PodSecurity: a namespace's labels say which pods it refuses, and of which it warns.

use async_trait::async_trait;
use serde_json::Value;

use super::{Operation, Plugin, Review};
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::text;
use crate::base::task;
use crate::kinds::core::podsecurity::{Level, Standard};
use crate::kinds::core::{namespace, pod};
use crate::kinds::{KindRef, Subresource};

/// How many existing pods are named when a namespace becomes stricter.
const NAMED: usize = 10;

pub(super) struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn handles(&self, review: &Review<'_>) -> bool {
        let kind = &review.request.kind;
        matches!(review.operation, Operation::Create | Operation::Update)
            && (*kind == namespace::KIND || *kind == pod::KIND || kind.pod_template().is_some())
    }

    async fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>> {
        let (api, request, old) = (review.api, review.request, review.old);
        task::in_place(request.heavy, || {
            enforce(api, request, object, old)?;
            Ok(warnings(api, request, object, old))
        })
    }
}

/// Refuses a pod that its namespace forbids.
fn enforce(api: &Api, request: &Request, value: &Value, old: Option<&Value>) -> Result<()> {
    let standard = standard(api, request, "enforce");
    if standard.level == Level::Privileged || !concerns(request, value, old) {
        return Ok(());
    }
    let violations = standard.violations(&value["metadata"], &value["spec"]);
    if violations.is_empty() {
        return Ok(());
    }
    let why = format!("violates PodSecurity \"{standard}\": {}", violations.join(", "));
    Err(Status::forbidden(&request.kind, text(value, "metadata.name"), why))
}

/// Warnings about a pod, the template of a workload, or the pods of a namespace that becomes stricter.
fn warnings(api: &Api, request: &Request, value: &Value, old: Option<&Value>) -> Vec<String> {
    if request.kind == namespace::KIND {
        return about_existing(api, value, old);
    }
    let standard = standard(api, request, "warn");
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let part = if concerns(request, value, old) {
        value
    } else {
        match template(&request.kind, value) {
            Some(new) if request.subresource.is_none() && old.and_then(|o| template(&request.kind, o)) != Some(new) => {
                new
            }
            _ => return Vec::new(),
        }
    };
    let violations = standard.violations(&part["metadata"], &part["spec"]);
    if violations.is_empty() {
        return Vec::new();
    }
    vec![format!("would violate PodSecurity \"{standard}\": {}", violations.join(", "))]
}

/// Whether it is a pod that is new or changed in what the standards look at.
fn concerns(request: &Request, value: &Value, old: Option<&Value>) -> bool {
    let parts = ["containers", "initContainers", "ephemeralContainers", "securityContext", "volumes"];
    request.kind == pod::KIND
        && matches!(request.subresource, None | Some(Subresource::EphemeralContainers))
        && old.is_none_or(|o| parts.iter().any(|p| o["spec"].get(*p) != value["spec"].get(*p)))
}

fn template<'v>(kind: &KindRef, value: &'v Value) -> Option<&'v Value> {
    value.pointer(kind.pod_template()?)
}

fn standard(api: &Api, request: &Request, mode: &str) -> Standard {
    let kind = &namespace::KIND;
    let namespace = api.cache.kind(kind).get(&kind.key("", &request.namespace));
    let none = Standard { level: Level::Privileged, minor: None };
    namespace.map_or(none, |n| Standard::of(|key| n.meta.labels.get(key).map(|v| &**v), mode))
}

fn about_existing(api: &Api, new: &Value, old: Option<&Value>) -> Vec<String> {
    let standard = Standard::of_namespace(new, "enforce");
    let Some(old) = old.map(|o| Standard::of_namespace(o, "enforce")).filter(|old| *old != standard) else {
        return Vec::new();
    };
    if standard.level <= old.level && standard.minor == old.minor {
        return Vec::new();
    }
    let name = text(new, "metadata.name");
    let pods = api.cache.kind(&pod::KIND).list(&format!("{}{name}/", pod::KIND.prefix()), "");
    let mut found = Vec::new();
    for pod in pods {
        let violations = standard.violations(&pod.value()["metadata"], &pod.value()["spec"]);
        if !violations.is_empty() {
            found.push(format!("{}: {}", pod.meta.name, violations.join(", ")));
        }
    }
    if found.is_empty() {
        return found;
    }
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    found.insert(
        0,
        format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{standard}\""),
    );
    if more > 0 {
        found.push(format!("(and {more} other pods)"));
    }
    found
}
