//! APIServices of what this server serves itself: built-in versions at the start, those of custom kinds as these come and go
//! (`kube-aggregator/pkg/controllers/autoregister`).
//!
//! Invariant: one that somebody else has made, or has taken the label off, is left alone.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::{Value, json};

use super::priority::{self, Priority};
use crate::api::write::Change;
use crate::api::{Api, Request, resource_metrics};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::Result;
use crate::base::object::Object;
use crate::kinds::apiregistration::apiservice;

const LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Brought to what it is to be once, when the server starts.
const ON_START: &str = "onstart";
/// Kept as it is to be.
const ALWAYS: &str = "true";
const MANAGER: &str = "kube-apiserver";

/// What one is to be.
struct Wanted {
    spec: Value,
    label: &'static str,
}

/// Brings the APIServices of everything that is served to what they are to be: at the start of a server.
pub async fn register(api: &Api) -> Result<()> {
    settle(api, &wanted(api), &[ON_START, ALWAYS]).await
}

/// The same for those of custom kinds alone: whenever kinds or APIServices have changed.
pub(super) async fn follow(api: &Api) -> Result<()> {
    let mut wanted = wanted(api);
    wanted.retain(|_, one| one.label == ALWAYS);
    settle(api, &wanted, &[ALWAYS]).await
}

fn label(object: &Object) -> Option<&str> {
    object.meta.labels.get(LABEL).map(|label| &**label)
}

fn wanted(api: &Api) -> BTreeMap<String, Wanted> {
    let mut wanted = BTreeMap::new();
    for kind in api.kinds.snapshot().iter() {
        let (group, version) = (kind.group(), kind.version());
        let (priority, label) = match kind.as_custom() {
            Some(_) => (Some(priority::CUSTOM), ALWAYS),
            None => (priority::builtin(group, version).filter(|_| group != apiservice::GROUP), ON_START),
        };
        wanted.extend(priority.map(|priority| one(group, version, priority, label)));
    }
    let (group, version) = (resource_metrics::GROUP, resource_metrics::VERSION);
    // Whoever has given it to another server has decided.
    if api.options.resource_metrics && api.remote(group, version).is_none() {
        wanted.extend([one(group, version, priority::METRICS, ALWAYS)]);
    }
    wanted
}

fn one(group: &str, version: &str, priority: Priority, label: &'static str) -> (String, Wanted) {
    let mut spec =
        json!({"version": version, "groupPriorityMinimum": priority.group, "versionPriority": priority.version});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    (apiservice::name_of(group, version), Wanted { spec, label })
}

/// Whether this server does with an APIService as it likes.
fn is_ours(object: &Object, labels: &[&str]) -> bool {
    let is_metrics = *object.meta.name == apiservice::name_of(resource_metrics::GROUP, resource_metrics::VERSION);
    label(object).is_some_and(|label| labels.contains(&label))
        && !(is_metrics && apiservice::is_remote(&object.value()))
}

async fn settle(api: &Api, wanted: &BTreeMap<String, Wanted>, labels: &[&str]) -> Result<()> {
    let there = api.cache.kind(&apiservice::KIND).list("", "");
    let named = |name: &str| there.iter().find(|object| *object.meta.name == *name);
    let creations = wanted.iter().filter(|(name, _)| named(name).is_none()).map(|(name, one)| create(api, name, one));
    let changes = wanted.iter().filter_map(|(name, one)| {
        let object = named(name).filter(|object| is_ours(object, labels))?;
        (object.value()["spec"] != one.spec).then(|| change(api, name, one))
    });
    let gone = there.iter().filter(|object| is_ours(object, labels) && !wanted.contains_key(&*object.meta.name));
    let deletions = gone.map(|object| delete(api, object));
    // Together: one commit.
    let (created, changed, deleted) = tokio::join!(join_all(creations), join_all(changes), join_all(deletions));
    created.into_iter().chain(changed).chain(deleted).collect()
}

fn request(name: &str) -> Request {
    Request::internal(MANAGER, &apiservice::KIND, "", name)
}

async fn create(api: &Api, name: &str, wanted: &Wanted) -> Result<()> {
    let object = json!({"metadata": {"name": name, "labels": {LABEL: wanted.label}}, "spec": wanted.spec});
    match api.create(&request(name), object).await {
        Err(status) if status.code != 409 => Err(status),
        _ => Ok(()),
    }
}

async fn change(api: &Api, name: &str, wanted: &Wanted) -> Result<()> {
    let mut change = |live: &Value| {
        let mut new = live.clone();
        new["spec"] = wanted.spec.clone();
        Ok(new)
    };
    match api.update(&request(name), Change::Patch(&mut change)).await {
        Err(status) if status.code != 404 => Err(status),
        _ => Ok(()),
    }
}

async fn delete(api: &Api, object: &Object) -> Result<()> {
    let options = DeleteOptions { uid: Some(object.meta.uid.to_string()), ..DeleteOptions::default() };
    match api.delete(&request(&object.meta.name), &options).await {
        Err(status) if !matches!(status.code, 404 | 409) => Err(status),
        _ => Ok(()),
    }
}
