//! What may change in a pod after it is made: images, the deadline, gates, tolerations; little else.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::base::json::{at, list, map_mut, remove, set, text};
use crate::kinds::check::{IMMUTABLE, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

/// Errors in the change of a pod.
pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    annotations(&mut errors, new, old);
    let mut same_count = true;
    for group in ["containers", "initContainers"] {
        if list(new_spec, group).len() != list(old_spec, group).len() {
            errors.push(field::forbidden(&path.field(group), "pod updates may not add or remove containers"));
            same_count = false;
        }
    }
    deadline(&mut errors, &path, new_spec, old_spec);
    tolerations(&mut errors, &path, new_spec, old_spec);
    gates(&mut errors, &path, new_spec, old_spec);
    if same_count {
        rest(&mut errors, &path, new_spec, old_spec);
    }
    errors
}

/// Settings of a pod that live in annotations and cannot change.
fn annotations(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::root("metadata.annotations");
    let of = |pod: &Value| at(pod, "metadata.annotations").and_then(Value::as_object).cloned().unwrap_or_default();
    let (new, old) = (of(new), of(old));
    let fixed = |key: &str| {
        key == "kubernetes.io/config.mirror" || key.starts_with("container.apparmor.security.beta.kubernetes.io/")
    };
    for key in new.keys().chain(old.keys()).filter(|k| fixed(k) && new.get(*k) != old.get(*k)) {
        errors.push(field::forbidden(&path.key(key), "may not be added, removed or changed"));
    }
}

fn deadline(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let path = path.field("activeDeadlineSeconds");
    let of = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    match (of(new), of(old)) {
        (Some(n), Some(o)) if n > o => {
            errors.push(field::invalid(&path, n, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => {
            errors.push(field::invalid(&path, Value::Null, "must not update from a positive integer to nil value"))
        }
        _ => {}
    }
}

fn tolerations(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let (new, old) = (list(new, "tolerations"), list(old, "tolerations"));
    if new == old {
        return;
    }
    // Only the time of one may be shortened or lengthened.
    let bare = |t: &Value| {
        let mut t = t.clone();
        remove(&mut t, "tolerationSeconds");
        t.to_string()
    };
    let known: HashSet<String> = new.iter().map(bare).collect();
    let kept = old.iter().all(|o| known.contains(&bare(o)));
    if !kept {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(field::forbidden(&path.field("tolerations"), why));
    }
}

fn gates(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let path = path.field("schedulingGates");
    let was: HashSet<&str> = list(old, "schedulingGates").iter().map(|g| text(g, "name")).collect();
    for (i, gate) in list(new, "schedulingGates").iter().enumerate() {
        if !was.contains(text(gate, "name")) {
            let why = format!("only deletion is allowed, but found new scheduling gate {:?}", text(gate, "name"));
            errors.push(field::forbidden(&path.index(i).field("name"), why));
        }
    }
}

/// Everything else must be as it was.
fn rest(errors: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let mut masked = new.clone();
    for group in ["containers", "initContainers"] {
        let was = list(old, group);
        for (container, was) in masked[group].as_array_mut().into_iter().flatten().zip(was) {
            if let (Some(c), Some(image)) = (container.as_object_mut(), was.get("image")) {
                c.insert("image".into(), image.clone());
            }
        }
        if masked[group].is_null() {
            remove(&mut masked, group);
        }
    }
    for key in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        keep(&mut masked, old, key);
    }
    // A grace period below zero always meant the shortest, and may be made so.
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64);
    if grace(old).is_some_and(|g| g < 0) && grace(new) == Some(1) {
        keep(&mut masked, old, "terminationGracePeriodSeconds");
    }
    // While it is gated, a pod may still be steered to fewer nodes.
    if !list(old, "schedulingGates").is_empty() {
        let selector = |spec: &Value| spec.get("nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default();
        let (was, now) = (selector(old), selector(new));
        if was.iter().any(|(k, v)| now.get(k) != Some(v)) {
            let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            errors.push(field::invalid(&path.field("nodeSelector"), now, why));
        }
        keep(&mut masked, old, "nodeSelector");
        podspec::node_affinity_update(errors, path, new, old);
        let now = at(&masked, "affinity.nodeAffinity").cloned();
        if let Some(affinity) = at(old, "affinity.nodeAffinity") {
            set(&mut masked, "affinity.nodeAffinity", affinity.clone());
        } else if now.is_some() {
            remove(&mut masked, "affinity.nodeAffinity");
            if old.get("affinity").is_none() && masked["affinity"].as_object().is_some_and(serde_json::Map::is_empty) {
                remove(&mut masked, "affinity");
            }
        }
    }
    if masked != *old {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,\
                   `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                   existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was \
                   previously negative)";
        errors.push(field::forbidden(path, why));
    }
}

fn keep(value: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(v) => {
            map_mut(value, "").insert(key.into(), v.clone());
        }
        None => {
            remove(value, key);
        }
    }
}

/// Errors in a change through the ephemeralcontainers subresource.
pub(super) fn validate_ephemeral(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let path = path.field("ephemeralContainers");
    podspec::validate_ephemeral_containers(&mut errors, &path, &new["spec"]);
    podspec::validate_ephemeral_update(&mut errors, &path, &new["spec"], &old["spec"]);
    if !text(old, "metadata.annotations.kubernetes.io/config.mirror").is_empty() {
        errors.push(field::forbidden(
            Path::root(""),
            format!("static pods do not support ephemeral containers: {IMMUTABLE}"),
        ));
    }
    errors
}

/// Errors in a change through the resize subresource: only amounts of CPU and memory change, of containers and of the pod as
/// a whole, and the class of service stays.
pub(super) fn validate_resize(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::root("spec");
    let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
    if podspec::qos_class(new_spec) != text(old, "status.qosClass") {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(field::invalid(&path, podspec::qos_class(new_spec), why));
    }
    whole(&mut errors, &path, new_spec.get("resources"), old_spec.get("resources"));
    for group in ["containers", "initContainers"] {
        let base = path.field(group);
        for (i, (now, was)) in list(new_spec, group).iter().zip(list(old_spec, group)).enumerate() {
            let path = base.index(i);
            let path = path.field("resources");
            for which in ["limits", "requests"] {
                amounts(&mut errors, &path.field(which), now, was, which);
            }
        }
    }
    errors
}

/// The same for the pod as a whole, which may also come to say what it wants.
fn whole(errors: &mut Errors, spec: &Path<'_>, now: Option<&Value>, was: Option<&Value>) {
    let path = spec.field("resources");
    let (now, was) = match (now.filter(|r| r.is_object()), was.filter(|r| r.is_object())) {
        (None, None) => return,
        (None, Some(_)) => return errors.push(field::forbidden(&path, "pod-level resources cannot be removed")),
        (Some(now), was) => (now, was.unwrap_or(&Value::Null)),
    };
    let of = |r: &Value, which: &str| r.get(which).and_then(Value::as_object).cloned().unwrap_or_default();
    let mut fixed = true;
    for which in ["requests", "limits"] {
        let (now, was) = (of(now, which), of(was, which));
        if was.keys().any(|name| !now.contains_key(name)) {
            errors.push(field::forbidden(&path.field(which), format!("pod-level resource {which} cannot be removed")));
        }
        let is_other = |name: &&String| !podspec::POD_RESOURCES.contains(&name.as_str());
        fixed &= now.keys().chain(was.keys()).filter(is_other).all(|name| now.get(name) == was.get(name));
    }
    if !fixed {
        errors.push(field::forbidden(spec, "only cpu and memory resources are mutable at pod-level"));
    }
}

/// What was promised may be made more or less, but not taken away, and nothing else may change.
fn amounts(errors: &mut Errors, path: &Path<'_>, now: &Value, was: &Value, which: &str) {
    let of = |c: &Value| {
        at(c, "resources").and_then(|r| r.get(which)).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (now, was) = (of(now), of(was));
    for name in was.keys().chain(now.keys().filter(|k| !was.contains_key(*k))) {
        let resizable = podspec::POD_RESOURCES.contains(&name.as_str());
        if resizable && was.contains_key(name) && !now.contains_key(name) {
            errors.push(field::forbidden(path, format!("resource {which} cannot be removed")));
        } else if !resizable && now.get(name) != was.get(name) {
            errors.push(field::forbidden(&path.key(name), "only cpu and memory resources are mutable"));
        }
    }
}

/// Puts everything but the resources, of containers and of the pod as a whole, back to what it was.
pub(super) fn keep_all_but_resources(new: &mut Value, old: &Value) {
    let wanted = ["containers", "initContainers"].map(|g| list(new, &format!("spec.{g}")).to_vec());
    let whole = at(new, "spec.resources").cloned();
    keep_all_but_ephemeral(new, old);
    match whole {
        Some(whole) => set(new, "spec.resources", whole),
        None => {
            remove(new, "spec.resources");
        }
    }
    match at(old, "spec.ephemeralContainers") {
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
pub(super) fn keep_all_but_ephemeral(new: &mut Value, old: &Value) {
    let containers = at(new, "spec.ephemeralContainers").cloned();
    let tracked = ["resourceVersion", "managedFields"].map(|k| (k, new["metadata"].get(k).cloned()));
    let kind = (new["apiVersion"].clone(), new["kind"].clone());
    *new = old.clone();
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
