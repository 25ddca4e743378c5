//! The claims of a StatefulSet's pods: one of each template for each number, and who owns them.
//!
//! A claim is called after its template, the set and the number, so that a pod that comes back finds what it had. It is
//! made before its pod. Whether it goes with the set, or with a number that is not wanted any more, is written on it as an
//! owner, and the garbage collector does the rest.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::pod;
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{list, map_mut, text};
use crate::base::object::{Object, Owner};
use crate::controllers::{absent_is_fine, controller_reference};
use crate::kinds::apps::statefulset::KIND;
use crate::kinds::core::{self, persistentvolumeclaim};
use crate::reconcile::{Client, EventType, Patch, Recorder};

/// What claims are made with.
pub(super) struct Claims<'a> {
    pub(super) client: &'a Arc<dyn Client>,
    pub(super) recorder: &'a Recorder,
    pub(super) owner: &'a Object,
    /// The set, as its object says it.
    pub(super) set: &'a Value,
}

/// The name of a claim.
fn name(template: &str, set: &str, ordinal: i64) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// Whether a claim of this name would be one of the set's.
pub(super) fn is_of(set: &Object, claim: &str) -> bool {
    let value = set.value();
    list(&value, "spec.volumeClaimTemplates").iter().any(|template| {
        let rest = claim.strip_prefix(text(template, "metadata.name")).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|pod| pod::ordinal(&set.meta.name, pod).is_some())
    })
}

/// The volumes of a pod with this number: its claims, and of its template what no claim is called after.
pub(super) fn volumes(set: &Value, set_name: &str, ordinal: i64, of_template: &[Value]) -> Vec<Value> {
    let templates = list(set, "spec.volumeClaimTemplates");
    let mut all: Vec<Value> = Vec::new();
    for template in templates {
        let of = text(template, "metadata.name");
        all.push(json!({"name": of, "persistentVolumeClaim": {"claimName": name(of, set_name, ordinal)}}));
    }
    let is_claimed = |volume: &&Value| templates.iter().any(|t| text(t, "metadata.name") == text(volume, "name"));
    all.extend(of_template.iter().filter(|volume| !is_claimed(volume)).cloned());
    all
}

/// The claims of a number, as they are made.
fn made(set: &Value, set_name: &str, ordinal: i64) -> Vec<Value> {
    let selected = set["spec"]["selector"]["matchLabels"].as_object();
    let of = |template: &Value| {
        let mut claim = json!({"metadata": {}, "spec": template["spec"]});
        for key in ["labels", "annotations", "finalizers"] {
            if let Some(given) = template["metadata"].get(key) {
                claim["metadata"][key] = given.clone();
            }
        }
        claim["metadata"]["name"] = name(text(template, "metadata.name"), set_name, ordinal).into();
        let labels = selected.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone()));
        map_mut(&mut claim, "metadata.labels").extend(labels);
        claim
    };
    list(set, "spec.volumeClaimTemplates").iter().map(of).collect()
}

/// Who is to own a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nobody,
    Set,
    Pod,
}

/// By the set's policy, and whether the number is still wanted.
fn wanted(set: &Value, is_condemned: bool) -> Wanted {
    let is_deleted = |when: &str| text(set, &format!("spec.persistentVolumeClaimRetentionPolicy.{when}")) == "Delete";
    match (is_deleted("whenScaled") && is_condemned, is_deleted("whenDeleted")) {
        (true, _) => Wanted::Pod,
        (false, true) => Wanted::Set,
        (false, false) => Wanted::Nobody,
    }
}

/// The owners that a claim is to have; `None`: it has them, or somebody else's it is.
fn owners(claim: &Object, set: &Object, pod: &Object, wanted: Wanted) -> Option<Vec<Value>> {
    let is_set = |o: &Owner| &*o.kind == "StatefulSet" && *o.name == *set.meta.name;
    let is_pod = |o: &Owner| &*o.kind == "Pod" && *o.name == *pod.meta.name;
    let others: Vec<&Owner> = claim.meta.owners.iter().filter(|o| !is_set(o) && !is_pod(o)).collect();
    if others.iter().any(|o| o.controller) {
        return None;
    }
    let own = claim.meta.owners.iter().filter(|o| is_set(o) || is_pod(o));
    let is_right = |o: &Owner| match wanted {
        Wanted::Nobody => false,
        Wanted::Set => is_set(o) && *o.uid == *set.meta.uid && o.controller,
        Wanted::Pod => is_pod(o) && *o.uid == *pod.meta.uid && o.controller,
    };
    let own: Vec<&Owner> = own.collect();
    let fits = own.len() == usize::from(wanted != Wanted::Nobody) && own.iter().all(|o| is_right(o));
    if fits {
        return None;
    }
    let kept = others.iter().map(|o| {
        let mut reference = json!({"apiVersion": &*o.api_version, "kind": &*o.kind, "name": &*o.name, "uid": &*o.uid});
        if o.block_owner_deletion {
            reference["blockOwnerDeletion"] = true.into();
        }
        reference
    });
    let new = match wanted {
        Wanted::Nobody => None,
        Wanted::Set => Some(controller_reference(&KIND, set)),
        Wanted::Pod => Some(controller_reference(&core::pod::KIND, pod)),
    };
    Some(kept.chain(new).collect())
}

// === impl Claims ===

impl Claims<'_> {
    /// Makes what is missing of the claims of a number.
    pub(super) async fn make(&self, ordinal: i64) -> Result<()> {
        let (owner, kind) = (self.owner, &persistentvolumeclaim::KIND);
        let namespace = &owner.meta.namespace;
        let pod = pod::name(&owner.meta.name, ordinal);
        for claim in made(self.set, &owner.meta.name, ordinal) {
            let name = text(&claim, "metadata.name").to_owned();
            match self.client.informer(kind).get(namespace, &name) {
                Some(there) if there.meta.deleted.is_none() => continue,
                Some(_) => return Err(Status::conflict(kind, &name, format!("pvc {name} is being deleted"))),
                None => {}
            }
            let made = self.client.create(kind, namespace, claim).await;
            let set = &owner.meta.name;
            let (event_type, reason, message) = match &made {
                Ok(_) => {
                    let told = format!("create Claim {name} Pod {pod} in StatefulSet {set} success");
                    (EventType::Normal, "SuccessfulCreate", told)
                }
                Err(status) if status.reason == "AlreadyExists" => continue,
                Err(status) => {
                    let told = format!("create Claim {name} for Pod {pod} in StatefulSet {set} failed error: {status}");
                    (EventType::Warning, "FailedCreate", told)
                }
            };
            self.recorder.event(&KIND, owner, event_type, reason, &message);
            made?;
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the set's policy says.
    pub(super) async fn own(&self, ordinal: i64, pod: &Object, is_condemned: bool) -> Result<()> {
        let kind = &persistentvolumeclaim::KIND;
        let (namespace, wanted) = (&self.owner.meta.namespace, wanted(self.set, is_condemned));
        for template in list(self.set, "spec.volumeClaimTemplates") {
            let name = name(text(template, "metadata.name"), &self.owner.meta.name, ordinal);
            let Some(claim) = self.client.informer(kind).get(namespace, &name) else { continue };
            let Some(owners) = owners(&claim, self.owner, pod, wanted) else { continue };
            let metadata: Map<String, Value> = [
                ("uid".to_owned(), Value::from(&*claim.meta.uid)),
                ("resourceVersion".to_owned(), claim.revision.to_string().into()),
                ("ownerReferences".to_owned(), owners.into()),
            ]
            .into_iter()
            .collect();
            let patch = Patch::Merge(json!({"metadata": metadata}));
            absent_is_fine(self.client.patch(kind, namespace, &name, None, patch).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, owners: Value) -> Object {
        let metadata = json!({"name": name, "uid": format!("{kind}-{name}"), "ownerReferences": owners});
        Object::new(name.into(), 1, &json!({"metadata": metadata}), Box::default())
    }

    fn set(policy: (&str, &str)) -> Value {
        let template = json!({"metadata": {"name": "data", "labels": {"x": "1", "a": "mine"}}, "spec": {"accessModes": ["ReadWriteOnce"]}});
        json!({"metadata": {"name": "w"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "volumeClaimTemplates": [template],
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": policy.0, "whenScaled": policy.1},
        }})
    }

    #[test]
    fn a_pod_has_its_claims_before_the_volumes_of_its_template() {
        let of_template = [json!({"name": "data", "emptyDir": {}}), json!({"name": "tmp", "emptyDir": {}})];
        let all = volumes(&set(("Retain", "Retain")), "w", 2, &of_template);
        let claim = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data-w-2"}});
        assert_eq!(all, [claim, of_template[1].clone()]);
        let claims = made(&set(("Retain", "Retain")), "w", 2);
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0]["metadata"], json!({"name": "data-w-2", "labels": {"x": "1", "a": "b"}}));
        let with_templates = Object::new("w".into(), 1, &set(("Retain", "Retain")), Box::default());
        for (name, is_its) in [("data-w-2", true), ("data-w-02", false), ("other-w-2", false), ("data-v-2", false)] {
            assert_eq!(is_of(&with_templates, name), is_its, "{name}");
        }
    }

    #[test]
    fn a_claim_belongs_to_whom_the_policy_says() {
        for (policy, condemned, want) in [
            (("Retain", "Retain"), false, Wanted::Nobody),
            (("Retain", "Retain"), true, Wanted::Nobody),
            (("Delete", "Retain"), false, Wanted::Set),
            (("Delete", "Retain"), true, Wanted::Set),
            (("Retain", "Delete"), false, Wanted::Nobody),
            (("Retain", "Delete"), true, Wanted::Pod),
            (("Delete", "Delete"), false, Wanted::Set),
            (("Delete", "Delete"), true, Wanted::Pod),
        ] {
            assert_eq!(wanted(&set(policy), condemned), want, "{policy:?} {condemned}");
        }
    }

    #[test]
    fn owners_are_written_where_they_differ_and_never_over_those_of_others() {
        let (w, pod) = (object("StatefulSet", "w", json!([])), object("Pod", "w-0", json!([])));
        let owner = |kind: &str, name: &str, uid: &str, controller: bool| json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": controller});
        let kinds = |owners: Option<Vec<Value>>| -> Option<Vec<String>> {
            Some(owners?.iter().map(|o| text(o, "kind").to_owned()).collect())
        };
        let of = |has: Value, wanted| kinds(owners(&object("PersistentVolumeClaim", "c", has), &w, &pod, wanted));
        let its = owner("StatefulSet", "w", "StatefulSet-w", true);
        assert_eq!(of(json!([]), Wanted::Nobody), None);
        assert_eq!(of(json!([its]), Wanted::Set), None);
        assert_eq!(of(json!([]), Wanted::Set), Some(vec!["StatefulSet".to_owned()]));
        assert_eq!(of(json!([its]), Wanted::Pod), Some(vec!["Pod".to_owned()]));
        assert_eq!(of(json!([its]), Wanted::Nobody), Some(vec![]));
        // One of an earlier set of the name is none.
        assert_eq!(
            of(json!([owner("StatefulSet", "w", "old", true)]), Wanted::Set),
            Some(vec!["StatefulSet".to_owned()])
        );
        let others = json!([owner("Backup", "b", "u", false), its]);
        assert_eq!(of(others, Wanted::Nobody), Some(vec!["Backup".to_owned()]));
        assert_eq!(of(json!([owner("Backup", "b", "u", true)]), Wanted::Set), None);
    }
}
