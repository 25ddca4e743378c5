//! Server-side apply: field ownership, merging of applied configurations, conflicts.
//!
//! The algorithm is that of Kubernetes' structured merge. An applied configuration is merged into the live object; what
//! its manager applied before and no longer does is removed unless someone else owns it; what it changes that others own
//! is a conflict, unless forced.

mod changes;
mod compare;
mod extract;
pub mod fieldset;
pub mod managed;
mod merge;
pub mod scale;
mod update;
mod versions;

use std::collections::HashSet;

use serde_json::Value;

pub use fieldset::FieldSet;
use managed::{Entry, Key, Managed, Writer};
pub use update::after_update;
pub use versions::{Unconverted, Versions};

use super::decode::{decode, zero};
use super::parse::parse_json;
use super::types::TypeRef;
use crate::base::budget::{Budget, Exceeded, size_of};
use changes::Changes;
use compare::equal;
use extract::field_set;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Conflicts are told of in this many bytes of paths.
const CONFLICT_BYTES_MAX: usize = 64 << 10;

/// A field that another manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Such as `.spec.replicas`.
    pub field: String,
    /// The cause's message: `conflict with "kubectl" using apps/v1`.
    pub message: String,
    /// The other manager's name.
    pub manager: String,
}

/// An apply that was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// 409 Conflict, one `FieldManagerConflict` cause for each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// 400 BadRequest.
    #[error("{0}")]
    BadRequest(String),
    /// 500 without a reason: what Kubernetes answers when the configuration does not fit the schema.
    #[error("failed to create typed patch object: {0}")]
    Schema(String),
    /// 413: it makes too much.
    #[error(transparent)]
    Limit(#[from] Exceeded),
    /// It is to be begun anew once an object is known in another version.
    #[error(transparent)]
    Unconverted(#[from] Unconverted),
}

/// A merge that nobody owns afterwards, and that was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    #[error("failed to convert patch object to typed object: {0}")]
    Schema(String),
    #[error("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {0}")]
    Atomic(String),
    /// It makes too much.
    #[error(transparent)]
    Limit(#[from] Exceeded),
}

/// The object with everything that `config` says, which nobody owns for it. What could not be merged is refused
/// (`k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch`).
pub fn merge_unowned(live: &Value, config: &Value, of: &TypeRef<'_>, budget: &mut Budget) -> Result<Value, MergeError> {
    budget.copy(size_of(config))?;
    budget.copy(size_of(live))?;
    merge::check(Some(*of), config).map_err(|fault| MergeError::Schema(fault.to_string()))?;
    let mut whole = Vec::new();
    merge::atomics(Some(*of), config, "", &mut whole);
    match &whole[..] {
        [] => Ok(merge::merge(Some(*of), live, config)),
        places => Err(MergeError::Atomic(places.join(", "))),
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    let Some(first) = conflicts.first() else { return "Apply failed".into() };
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message, one.field);
    }
    let mut text = format!("Apply failed with {} conflicts:", conflicts.len());
    let mut current = "";
    let separator = if conflicts.iter().all(|c| c.message == first.message) { " " } else { "\n" };
    for conflict in conflicts {
        if current != conflict.message {
            current = &conflict.message;
            text.push_str(&format!("{separator}{current}:"));
        }
        text.push_str(&format!("\n- {}", conflict.field));
    }
    text
}

/// Applies `config` to the live object (none: it will be created) and returns the new object, not yet defaulted.
///
/// The result is decoded and carries its managed fields; an apply that changes nothing returns the live object with only
/// those updated.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    of: &TypeRef<'_>,
    writer: &Writer<'_>,
    force: bool,
    budget: &mut Budget,
) -> Result<Value, ApplyError> {
    // All of it is walked, and becomes sets of paths and parts of what is merged.
    budget.copy(size_of(config))?;
    if config.pointer("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".into()));
    }
    merge::check(Some(*of), config).map_err(|fault| ApplyError::Schema(fault.to_string()))?;
    let mut base = live.cloned().unwrap_or_else(|| zero(of));
    let list = managed::take(&mut base);
    let mut managed = match &list {
        Some(list) => {
            Managed::read(list).map_err(|e| ApplyError::Schema(format!("failed to decode managed fields: {e}")))?
        }
        None => Managed::default(),
    };
    if managed.entries.is_empty() && live.is_some() {
        let earlier = Writer { manager: managed::BEFORE_FIRST_APPLY, ..*writer };
        update::update(&mut managed, Some(*of), (&zero(of), &base), &earlier)?;
    }
    let mut attempt = |force| run(&base, config, of, writer, managed.clone(), force, budget);
    let mut result = attempt(force);
    if let Err(ApplyError::Conflicts(conflicts)) = &result
        && writer.manager == "kubectl"
        // Of more than are told of, nobody knows whether all are.
        && conflicts.iter().map(|c| c.field.len()).sum::<usize>() < CONFLICT_BYTES_MAX
    {
        let allowed = last_applied_set(&base, of).paths(CONFLICT_BYTES_MAX);
        let allowed: HashSet<&str> = allowed.iter().map(String::as_str).collect();
        let others: Vec<Conflict> = conflicts.iter().filter(|c| !allowed.contains(&*c.field)).cloned().collect();
        result = if others.is_empty() { attempt(true) } else { Err(ApplyError::Conflicts(others)) };
    }
    let (mut object, managed) = result?;
    if writer.manager == "kubectl" {
        renew_last_applied(&mut object, config);
    }
    managed::put(&mut object, &managed);
    Ok(object)
}

fn run(
    live: &Value,
    config: &Value,
    of: &TypeRef<'_>,
    writer: &Writer<'_>,
    mut managed: Managed,
    force: bool,
    budget: &mut Budget,
) -> Result<(Value, Managed), ApplyError> {
    let place = Some(*of);
    let key = Key::of(writer, false);
    let merged = merge::merge(place, live, config);
    let last = managed.entries.get(&key).cloned();
    let mut set = field_set(place, config);
    set.subtract_deep(writer.reset);
    let time = last.as_ref().and_then(|e| e.time.clone());
    managed.entries.insert(key.clone(), Entry { set, time, api_version: writer.api_version.to_owned() });
    let pruned = match last.filter(|last| !last.set.is_empty()) {
        None => merged,
        Some(last) => changes::prune(of, &merged, &managed, &last, writer)?,
    };

    let changes = Changes::between(&managed, place, (live, &pruned), writer)?;
    let (mut conflicts, mut room) = (Vec::new(), CONFLICT_BYTES_MAX);
    managed.entries.retain(|other, entry| *other == key || changes.of(entry).is_some());
    for (other, entry) in managed.entries.iter_mut().filter(|(k, _)| **k != key) {
        let Some(changed) = changes.of(entry) else { continue };
        let lost = entry.set.intersection(&changed.taken);
        if !force && !lost.is_empty() {
            let more = describe(other, entry, &lost, room);
            room = room.saturating_sub(more.iter().map(|c| c.field.len()).sum());
            conflicts.extend(more);
        }
        entry.set.subtract(&lost);
        entry.set.subtract(&changed.removed);
    }
    if !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    // Also a change of order is a change.
    let same = equal(live, &pruned);
    if let Some(mine) = managed.entries.get_mut(&key) {
        managed::strip(&mut mine.set);
        if !same {
            mine.time = Some(writer.now.to_owned());
        }
    }
    managed.tidy();
    let mut object = if same { live.clone() } else { pruned };
    decode(&mut object, of, budget).map_err(|e| match e.limit {
        Some(limit) => ApplyError::Limit(limit),
        None => ApplyError::Schema(e.to_string()),
    })?;
    Ok((object, managed))
}

fn describe(key: &Key, entry: &Entry, lost: &FieldSet, bytes: usize) -> Vec<Conflict> {
    let subresource =
        if key.subresource.is_empty() { String::new() } else { format!(" with subresource {:?}", key.subresource) };
    let mut message = format!("conflict with {:?}{subresource}", key.manager);
    if key.update {
        message.push_str(&format!(" using {}", key.api_version));
        if let Some(time) = &entry.time {
            message.push_str(&format!(" at {time}"));
        }
    }
    let conflict = |field| Conflict { field, message: message.clone(), manager: key.manager.clone() };
    lost.paths(bytes).into_iter().map(conflict).collect()
}

/// What `kubectl apply` on the client's side recorded as its own.
fn last_applied_set(live: &Value, of: &TypeRef<'_>) -> FieldSet {
    let annotations = live.get("metadata").and_then(|m| m.get("annotations"));
    let text = annotations.and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
    let config = text.and_then(|t| parse_json(t.as_bytes(), &mut Budget::new()).ok()).map(|(config, _)| config);
    config.map(|c| field_set(Some(*of), &c)).unwrap_or_default()
}

/// `kubectl apply --server-side` keeps the annotation of client-side apply up to date, so one can go back.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let annotations = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut);
    let Some(slot) = annotations.and_then(|a| a.get_mut(LAST_APPLIED)) else { return };
    let mut config = config.clone();
    managed::take(&mut config);
    if let Some(annotations) =
        config.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut)
    {
        annotations.remove(LAST_APPLIED);
    }
    *slot = Value::from(format!("{config}\n"));
}

#[cfg(test)]
mod tests;
