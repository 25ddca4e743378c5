//! ControllerRevisions: the templates that a workload has had.
//!
//! The data of a revision is the patch that brings its template back, as Kubernetes writes it, because `kubectl rollout
//! undo` sends it as it is. A revision is found by its template, never by its number: a template that comes back gets its
//! old revision with a new number, so that pods of it need not be made anew.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::template::{comparable, name_letters};
use super::{Context, absent_is_fine, controller_reference, pods};
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::status::{Result, Status};
use crate::base::labels::Selector;
use crate::base::object::Object;
use crate::kinds::KindRef;
use crate::kinds::apps::controllerrevision;
use crate::reconcile::Patch;

/// The label by which pods name their revision.
pub(super) const HASH: &str = "controller-revision-hash";
/// Names that are tried for one revision.
const NAMES_TRIED: i64 = 32;
/// What is left of a workload's name in that of a revision.
const PREFIX_BYTES: usize = 223;

/// A template that a workload has or had.
#[derive(Clone, Debug)]
pub(super) struct Revision {
    pub(super) object: Arc<Object>,
    pub(super) number: i64,
    template: Value,
}

/// The revisions of one workload.
pub(super) struct History<'a> {
    pub(super) cx: &'a Context,
    pub(super) kind: &'static KindRef,
    pub(super) owner: &'a Object,
}

/// A revision that is to be made.
pub(super) struct Draft<'a> {
    pub(super) number: i64,
    pub(super) template: &'a Value,
    /// The label that gets the hash.
    pub(super) hash_label: &'a str,
    /// How often names were taken already.
    pub(super) collisions: i64,
}

// === impl Revision ===

impl Revision {
    pub(super) fn new(object: Arc<Object>) -> Self {
        let value = object.value();
        let mut template = value["data"]["spec"]["template"].clone();
        if let Some(map) = template.as_object_mut() {
            map.remove("$patch");
        }
        Self { number: value["revision"].as_i64().unwrap_or(0), template, object }
    }

    pub(super) fn name(&self) -> &str {
        &self.object.meta.name
    }

    /// The template as it was.
    pub(super) fn template(&self) -> &Value {
        &self.template
    }

    /// One of its labels, empty where it has none of this name.
    pub(super) fn label(&self, name: &str) -> &str {
        self.object.meta.labels.get(name).map_or("", |v| v)
    }

    pub(super) fn has_template(&self, template: &Value) -> bool {
        comparable(&self.template) == comparable(template)
    }
}

// === impl History ===

impl History<'_> {
    /// All revisions, the oldest first, after adopting and releasing.
    pub(super) async fn claim(&self, selector: &Selector) -> Result<Vec<Revision>> {
        let (client, meta) = (&self.cx.client, &self.owner.meta);
        if meta.deleted.is_none() && !selector.is_empty() {
            for object in self.cx.revisions.get(&pods::owner_key(&meta.uid)) {
                if !selector.matches(&object.meta.labels) {
                    pods::release(client, &controllerrevision::KIND, &object, &meta.uid).await?;
                }
            }
            for object in self.cx.revisions.get(&pods::free_key(&meta.namespace)) {
                if selector.matches(&object.meta.labels) && object.meta.deleted.is_none() {
                    let reference = controller_reference(self.kind, self.owner);
                    absent_is_fine(pods::adopt(client, &controllerrevision::KIND, &object, reference).await)?;
                }
            }
        }
        let all = self.cx.revisions.get(&pods::owner_key(&meta.uid)).into_iter();
        let mut mine: Vec<Revision> = all.map(Revision::new).collect();
        mine.sort_by(|a, b| {
            let key = |r: &Revision| (r.number, r.object.meta.created, r.object.meta.name.clone());
            key(a).cmp(&key(b))
        });
        Ok(mine)
    }

    /// Makes a revision; answers it and how often names were taken. One of this name and template is taken as it is.
    pub(super) async fn create(&self, draft: &Draft<'_>) -> Result<(Revision, i64)> {
        let mut collisions = draft.collisions;
        let data = data_of(draft.template);
        loop {
            let hash = hash(&data, collisions);
            let name = revision_name(&self.owner.meta.name, &hash);
            let value = self.value(draft, &data, &name, &hash);
            let namespace = &self.owner.meta.namespace;
            match self.cx.client.create(&controllerrevision::KIND, namespace, value).await {
                Ok(object) => return Ok((Revision::new(object), collisions)),
                Err(status) if status.reason == "AlreadyExists" => {
                    let there = self.cx.client.get(&controllerrevision::KIND, namespace, &name).await?;
                    let there = Revision::new(there);
                    if there.has_template(draft.template) {
                        return Ok((there, collisions));
                    }
                    collisions += 1;
                    if collisions - draft.collisions > NAMES_TRIED {
                        return Err(status);
                    }
                }
                Err(status) => return Err(status),
            }
        }
    }

    fn value(&self, draft: &Draft<'_>, data: &Value, name: &str, hash: &str) -> Value {
        let mut labels = draft.template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        labels.insert(draft.hash_label.to_owned(), hash.into());
        let mut metadata = Map::new();
        metadata.insert("name".into(), name.into());
        metadata.insert("labels".into(), labels.into());
        metadata.insert("ownerReferences".into(), json!([controller_reference(self.kind, self.owner)]));
        // The cause of a change, which `kubectl rollout history` shows, is an annotation of the workload.
        if let Some(annotations) = self.owner.value()["metadata"].get("annotations") {
            metadata.insert("annotations".into(), annotations.clone());
        }
        json!({"metadata": metadata, "data": data, "revision": draft.number})
    }

    /// Gives a revision that is current again the number of the newest.
    pub(super) async fn renumber(&self, revision: &Revision, number: i64) -> Result<Revision> {
        let patch = Patch::Merge(json!({"metadata": {"uid": &*revision.object.meta.uid}, "revision": number}));
        let (namespace, name) = (&self.owner.meta.namespace, revision.name());
        let object = self.cx.client.patch(&controllerrevision::KIND, namespace, name, None, patch).await?;
        Ok(Revision::new(object))
    }

    /// Labels a revision that somebody else made with its own name, as that of its pods.
    pub(super) async fn label(&self, revision: &Revision, key: &str) -> Result<Revision> {
        let metadata = json!({"uid": &*revision.object.meta.uid, "labels": {key: revision.name()}});
        let (namespace, patch) = (&self.owner.meta.namespace, Patch::Merge(json!({"metadata": metadata})));
        let client = &self.cx.client;
        let object = client.patch(&controllerrevision::KIND, namespace, revision.name(), None, patch).await?;
        Ok(Revision::new(object))
    }

    pub(super) async fn delete(&self, revision: &Revision) -> Result<()> {
        let meta = &revision.object.meta;
        let options = DeleteOptions { uid: Some(meta.uid.to_string()), ..DeleteOptions::default() };
        absent_is_fine(self.cx.client.delete(&controllerrevision::KIND, &meta.namespace, &meta.name, options).await)
    }

    /// Deletes the oldest of those that are not `is_live`, until no more than `limit` are left of `old`.
    pub(super) async fn truncate(
        &self,
        old: &[&Revision],
        limit: usize,
        is_live: impl Fn(&Revision) -> bool,
    ) -> Result<()> {
        for revision in surplus(old, limit, is_live) {
            self.delete(revision).await?;
        }
        Ok(())
    }
}

/// The data of a revision of this template.
fn data_of(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(map) = template.as_object_mut() {
        map.insert("$patch".into(), "replace".into());
    }
    json!({"spec": {"template": template}})
}

/// Kubernetes' hash of a revision: FNV-1 of its data, and of how often names were taken.
fn hash(data: &Value, collisions: i64) -> String {
    let text = data.to_string() + &collisions.to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, b| hash.wrapping_mul(0x0100_0193) ^ u32::from(b));
    name_letters(hash)
}

fn revision_name(owner: &str, hash: &str) -> String {
    format!("{}-{hash}", &owner[..owner.len().min(PREFIX_BYTES)])
}

fn surplus<'r>(old: &[&'r Revision], limit: usize, is_live: impl Fn(&Revision) -> bool) -> Vec<&'r Revision> {
    let mut left = old.len().saturating_sub(limit);
    let mut out = Vec::new();
    for revision in old.iter().copied().filter(|r| !is_live(r)) {
        if left == 0 {
            break;
        }
        out.push(revision);
        left -= 1;
    }
    out
}

/// The selector of a workload that has one with expressions.
pub(super) fn selector_of(object: &Object, selector: &impl serde::Serialize) -> Result<Selector> {
    let selector = serde_json::to_value(selector).unwrap_or_default();
    Selector::from_object(&selector).map_err(|e| Status::internal(format!("{}: {e}", object.key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(name: &str, template: &Value) -> Revision {
        let value = json!({"metadata": {"name": name}, "revision": 1, "data": data_of(template)});
        Revision::new(Arc::new(Object::new(name.into(), 1, &value, Box::default())))
    }

    #[test]
    fn a_revision_brings_its_template_back_by_a_patch_and_knows_it_again() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let data = data_of(&template);
        assert_eq!(data["spec"]["template"]["$patch"], "replace");
        let revision = revision("r", &template);
        assert_eq!(revision.template, template);
        let mut same = template.clone();
        same["metadata"]["creationTimestamp"] = Value::Null;
        assert!(revision.has_template(&same));
        same["spec"]["nodeName"] = "n".into();
        assert!(!revision.has_template(&same));
        assert_eq!(hash(&data, 0), hash(&data, 0));
        assert_ne!(hash(&data, 0), hash(&data, 1));
    }

    #[test]
    fn the_oldest_revisions_that_nobody_uses_go_first() {
        let all: Vec<Revision> = ["a", "b", "c", "d"].iter().map(|n| revision(n, &json!({}))).collect();
        let all: Vec<&Revision> = all.iter().collect();
        let names = |limit, live: &str| -> Vec<String> {
            surplus(&all, limit, |r| r.name() == live).iter().map(|r| r.name().to_owned()).collect()
        };
        assert_eq!(names(2, ""), ["a", "b"]);
        assert_eq!(names(2, "a"), ["b", "c"]);
        assert_eq!(names(4, ""), [""; 0]);
    }
}
