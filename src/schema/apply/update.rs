//! Ownership after a plain write: it takes from other managers what this write changed or removed, gives the writer what it
//! changed, and leaves entries that did not change untouched, timestamps included.

use serde_json::{Map, Value};

use super::changes::Changes;
use super::extract::TypeAt;
use super::fieldset::FieldSet;
use super::managed::{Entry, Key, Managed, Writer, put, strip, take};
use super::versions::Unconverted;
use crate::schema::decode::zero;
use crate::schema::types::TypeRef;

/// Keeps `new.metadata.managedFields` right after a create (`live` is none), an update or a patch.
///
/// Both objects are decoded and `new` is defaulted, but nothing else has been done to it: Kubernetes tracks what the
/// client sent, before admission and before fields it may not set are reset.
pub fn after_update(
    live: Option<&Value>,
    new: &mut Value,
    of: &TypeRef<'_>,
    writer: &Writer<'_>,
) -> Result<(), Unconverted> {
    let given = take(new);
    let live_list = live.and_then(|l| l.get("metadata")).and_then(|m| m.get("managedFields"));
    let mut managed = start(live_list, given.as_ref(), !writer.subresource.is_empty());
    if managed.entries.is_empty() && live.is_some() {
        return Ok(()); // an object without tracking gets it back only by an apply
    }
    // The live object's own managed fields look removed from here; nobody owns that path, so it does not matter.
    let empty;
    let old = match live {
        Some(live) => live,
        None => {
            empty = zero(of);
            &empty
        }
    };
    // What is new is nothing yet in any other version.
    let writer = Writer { versions: writer.versions.filter(|_| live.is_some()), ..*writer };
    update(&mut managed, Some(*of), (old, new), &writer)?;
    managed.cap();
    put(new, &managed);
    Ok(())
}

/// The entries to start from: what the client sent counts, if it makes sense.
fn start(live: Option<&Value>, given: Option<&Value>, ignore_given: bool) -> Managed {
    let live = || live.and_then(|list| Managed::read(list).ok()).unwrap_or_default();
    let Some(given) = given.filter(|_| !ignore_given) else { return live() };
    let list = given.as_array().map_or(&[][..], Vec::as_slice);
    let reset = list.is_empty() || (list.len() == 1 && list[0].as_object().is_some_and(Map::is_empty));
    if reset {
        return Managed::default();
    }
    match Managed::read(given) {
        Ok(managed) if !managed.entries.is_empty() => managed,
        _ => live(),
    }
}

/// Moves ownership for a change from an old object to a new one by this writer.
pub(super) fn update(
    managed: &mut Managed,
    place: TypeAt<'_>,
    (old, new): (&Value, &Value),
    writer: &Writer<'_>,
) -> Result<(), Unconverted> {
    let changes = Changes::between(managed, place, (old, new), writer)?;
    managed.entries.retain(|_, entry| match changes.of(entry) {
        Some(changed) => {
            entry.set.subtract(&changed.taken);
            entry.set.subtract(&changed.removed);
            true
        }
        None => false,
    });
    managed.tidy();
    let mut taken = changes.own.taken;
    strip(&mut taken);
    if taken.is_empty() {
        return Ok(());
    }
    let empty = || Entry { set: FieldSet::default(), time: None, api_version: writer.api_version.to_owned() };
    let entry = managed.entries.entry(Key::of(writer, true)).or_insert_with(empty);
    entry.set.add(taken);
    entry.time = Some(writer.now.to_owned());
    Ok(())
}
