//! `metrics.k8s.io`, answered from the nodes' own numbers, unless an APIService gives it to another server.

use std::sync::Arc;

use http::{HeaderMap, Method, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::negotiate::{self, MediaType, Offer, Shape};
use super::route::{Resource as Place, Route, Target};
use super::table::Include;
use super::{Body, answer, table};
use crate::api::resource_metrics::{
    GROUP, NODES, PODS, Resource, Shown, VERSION, is_meant, list, listed, of_node, of_pod, whole,
};
use crate::api::{Api, resource_metrics};
use crate::apimachinery::status::{Details, Result, Status};
use crate::base::labels::{FieldSelector, FieldTerm, Selector};
use crate::base::object::Object;
use crate::kinds::core::{node, pod};

/// Whether a request is for the group.
pub(super) fn is_asked(route: &Route) -> bool {
    match &route.target {
        Target::Resource(resource) => resource.group == GROUP && resource.version == VERSION,
        Target::Path(path) => path.trim_end_matches('/') == format!("/apis/{GROUP}/{VERSION}"),
    }
}

/// Answers it.
pub(super) async fn respond(api: &Api, route: &Route, method: &Method, headers: &HeaderMap) -> Result<Response<Body>> {
    let Target::Resource(place) = &route.target else {
        if *method != Method::GET {
            return Err(Status::method_not_allowed());
        }
        negotiate::accept(headers, Offer::Plain)?;
        return Ok(answer::json(200, &listed()));
    };
    let resource =
        [NODES, PODS].into_iter().find(|r| r.plural == place.plural).filter(|_| place.subresource.is_empty());
    let resource = resource.ok_or_else(Status::no_such_path)?;
    if resource.namespaced == place.namespace.is_empty()
        && !(resource.namespaced && matches!(route.verb, "list" | "watch"))
    {
        return Err(Status::no_such_path());
    }
    if !matches!(route.verb, "get" | "list") || *method != Method::GET {
        return Err(Status::method_not_allowed());
    }
    let form = negotiate::accept(headers, Offer::Transformed)?;
    let include = Include::parse(route.query.get("includeObject"))?;
    let now = api.clock.now();
    if route.verb == "get" {
        let found = one(api, &resource, place, now).await?;
        return shaped(&resource, form, include, Found::One(found));
    }
    let objects = meant(api, &resource, place, route)?;
    shaped(&resource, form, include, Found::Many(shown(api, &resource, &objects, now).await))
}

/// What is answered.
enum Found {
    One(Shown),
    Many(Vec<Shown>),
}

fn shaped(resource: &Resource, form: MediaType, include: Include, found: Found) -> Result<Response<Body>> {
    let partial = |shown: &Shown| table::partial(&shown.value);
    let value = match (form.shape, found) {
        (Shape::Object, Found::One(one)) => whole(resource, &one),
        (Shape::Object, Found::Many(all)) => list(resource, all),
        (Shape::Table, Found::One(one)) => rows(resource, &[one], include),
        (Shape::Table, Found::Many(all)) => rows(resource, &all, include),
        (Shape::PartialMetadata, Found::One(one)) => partial(&one),
        (Shape::PartialMetadataList, Found::Many(all)) => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {},
            "items": all.iter().map(partial).collect::<Vec<_>>(),
        }),
        _ => return Err(Status::not_acceptable("one object is no list, and a list is not one object")),
    };
    Ok(answer::value(200, form, &value))
}

fn rows(resource: &Resource, all: &[Shown], include: Include) -> Value {
    let mut table = resource_metrics::table(resource, all, matches!(include, Include::Object));
    if matches!(include, Include::None) {
        for row in table["rows"].as_array_mut().into_iter().flatten() {
            row["object"] = Value::Null;
        }
    }
    table
}

async fn shown(api: &Api, resource: &Resource, objects: &[Arc<Object>], now: Timestamp) -> Vec<Shown> {
    match resource.namespaced {
        true => api.pod_usages(objects).await.iter().map(|(pod, usage)| of_pod(pod, usage, now)).collect(),
        false => api.node_usages(objects).await.iter().map(|(node, usage)| of_node(node, usage, now)).collect(),
    }
}

async fn one(api: &Api, resource: &Resource, place: &Place, now: Timestamp) -> Result<Shown> {
    let kind = if resource.namespaced { &pod::KIND } else { &node::KIND };
    let found = api.cache.kind(kind).get(&kind.key(&place.namespace, &place.name));
    let found = found.ok_or_else(|| missing(resource.plural, &place.name))?;
    let shown = shown(api, resource, &[found], now).await;
    let without = match resource.namespaced {
        true => format!("{}/{}", place.namespace, place.name),
        false => place.name.clone(),
    };
    shown.into_iter().next().ok_or_else(|| missing(resource.missing, &without))
}

fn missing(what: &str, name: &str) -> Status {
    let mut status = Status::new(404, "NotFound", format!("{what}.{GROUP} {name:?} not found"));
    status.details =
        Box::new(Details { name: name.into(), group: GROUP.into(), kind: what.into(), ..Details::default() });
    status
}

/// The objects of which something is asked.
fn meant(api: &Api, resource: &Resource, place: &Place, route: &Route) -> Result<Vec<Arc<Object>>> {
    let bad = |error: crate::base::labels::SelectorError| Status::bad_request(error.to_string());
    let labels = Selector::parse(route.query.get("labelSelector")).map_err(bad)?;
    let fields = FieldSelector::parse(route.query.get("fieldSelector")).map_err(bad)?;
    let is_known =
        |term: &&FieldTerm| term.field == "metadata.name" || resource.namespaced && term.field == "metadata.namespace";
    if let Some(other) = fields.0.iter().find(|term| !is_known(term)) {
        return Err(Status::bad_request(format!("field label not supported: {}", other.field)));
    }
    let (kind, prefix) = match resource.namespaced {
        true if !place.namespace.is_empty() => (&pod::KIND, format!("{}{}/", pod::KIND.prefix(), place.namespace)),
        true => (&pod::KIND, pod::KIND.prefix()),
        false => (&node::KIND, node::KIND.prefix()),
    };
    let mut objects = api.cache.kind(kind).list(&prefix, "");
    objects.retain(|object| is_meant(object, &labels, &fields.0));
    Ok(objects)
}
