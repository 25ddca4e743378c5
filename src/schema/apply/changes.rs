//! Ownership in several versions of a kind: who owns a field by its name in another version than the writer's loses it where
//! it changes there. So objects are compared, and what was given up is taken out, in the version of each owner.

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::{Comparison, compare};
use super::extract::{TypeAt, field_set, with_named_parents};
use super::fieldset::FieldSet;
use super::managed::{Entry, Managed, Writer};
use super::merge;
use super::versions::Unconverted;
use crate::schema::types::TypeRef;

/// What a write has changed, in one version.
#[derive(Debug, Default)]
pub(super) struct Changed {
    pub taken: FieldSet,
    pub removed: FieldSet,
}

/// What a write has changed, in all versions in which fields are owned.
pub(super) struct Changes {
    pub own: Changed,
    /// By version; none for one that there is not.
    others: BTreeMap<String, Option<Changed>>,
    is_versioned: bool,
}

// === impl Changed ===

impl Changed {
    fn of(mut changes: Comparison, writer: &Writer<'_>) -> Self {
        changes.exclude(writer.reset);
        let mut taken = changes.modified;
        taken.add(changes.added);
        Self { taken, removed: changes.removed }
    }
}

// === impl Changes ===

impl Changes {
    /// Compares two objects in the version of the writer, and in those in which others own something.
    pub fn between(
        managed: &Managed,
        place: TypeAt<'_>,
        (old, new): (&Value, &Value),
        writer: &Writer<'_>,
    ) -> Result<Self, Unconverted> {
        let own = Changed::of(compare(place, old, new), writer);
        let mut changes = Self { own, others: BTreeMap::new(), is_versioned: writer.versions.is_some() };
        let Some(versions) = writer.versions else { return Ok(changes) };
        let mut done = Ok(());
        for entry in managed.entries.values() {
            let version = entry.api_version.as_str();
            if version == writer.api_version || changes.others.contains_key(version) {
                continue;
            }
            let changed = versions.shape(version).map(|shape| {
                let (old, new) = (versions.convert(old, version), versions.convert(new, version));
                Ok(Changed::of(compare(Some(shape), &old?, &new?), writer))
            });
            // What else is not known is noted as well, so that it is asked for at once.
            let changed = changed.transpose().unwrap_or_else(|unconverted| {
                done = Err(unconverted);
                None
            });
            changes.others.insert(version.to_owned(), changed);
        }
        done.map(|()| changes)
    }

    /// What has changed for somebody who owns fields of a version; nothing is known of a version that there is not.
    pub fn of(&self, entry: &Entry) -> Option<&Changed> {
        match self.others.get(&entry.api_version) {
            Some(other) if self.is_versioned => other.as_ref(),
            _ => Some(&self.own),
        }
    }
}

/// Takes out of a merged object what its manager applied before and neither it nor anyone else owns now; `last` is what it
/// applied then.
pub(super) fn prune(
    of: &TypeRef<'_>,
    merged: &Value,
    managed: &Managed,
    last: &Entry,
    writer: &Writer<'_>,
) -> Result<Value, Unconverted> {
    let Some(versions) = writer.versions else { return Ok(prune_here(of, merged, managed, &last.set)) };
    let is_here = |entry: &Entry| entry.api_version == writer.api_version;
    if is_here(last) && managed.entries.values().all(is_here) {
        return Ok(prune_here(of, merged, managed, &last.set));
    }
    let Some(shape) = versions.shape(&last.api_version) else { return Ok(merged.clone()) };
    let whole = versions.convert(merged, &last.api_version)?;
    let given_up = with_named_parents(Some(shape), &last.set);
    let mut pruned = merge::remove(Some(shape), &whole, &given_up);
    let mut owned: BTreeMap<&str, FieldSet> = BTreeMap::new();
    for entry in managed.entries.values() {
        owned.entry(&entry.api_version).or_default().add(entry.set.clone());
    }
    // First where it was taken out: without what others own there, it may be none that can be converted.
    let first = owned.remove_entry(last.api_version.as_str());
    for (version, owned) in first.into_iter().chain(owned) {
        let Some(shape) = versions.shape(version) else { continue };
        let (whole, rest) = (versions.convert(&whole, version)?, versions.convert(&pruned, version)?);
        let full = |value: &Value| with_named_parents(Some(shape), &field_set(Some(shape), value));
        let keep = full(&rest).union(&with_named_parents(Some(shape), &owned));
        pruned = merge::remove(Some(shape), &whole, &full(&whole).difference(&keep));
    }
    // What was never applied comes back: only what was may go.
    let rest = versions.convert(&pruned, &last.api_version)?;
    let full = |value: &Value| with_named_parents(Some(shape), &field_set(Some(shape), value));
    let gone = full(&whole).difference(&full(&rest)).intersection(&given_up);
    versions.convert(&merge::remove(Some(shape), &whole, &gone), writer.api_version)
}

/// As [`prune`], in one version.
fn prune_here(of: &TypeRef<'_>, merged: &Value, managed: &Managed, last: &FieldSet) -> Value {
    let place = Some(*of);
    let full = |set: &FieldSet| with_named_parents(place, set);
    let mut pruned = merge::remove(place, merged, &full(last));
    let merged_set = full(&field_set(place, merged));
    // Bring back what is owned by anyone.
    let mut owned = FieldSet::default();
    managed.entries.values().for_each(|e| owned.add(e.set.clone()));
    let keep = full(&field_set(place, &pruned)).union(&full(&owned));
    pruned = merge::remove(place, merged, &merged_set.clone().difference(&keep));
    // Bring back what was never applied: only the last set's paths may go.
    let gone = merged_set.difference(&full(&field_set(place, &pruned)));
    merge::remove(place, merged, &gone.intersection(&full(last)))
}
