//! Objects of one write as of other versions, for computations that may have to ask a webhook for them.
//!
//! Such a computation is pure. Where it needs an object that nobody has converted yet, it notes that here and ends;
//! `Api::learn` then asks for all that was noted, and the computation is begun anew.

use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use crate::base::budget::{Budget, Exceeded, size_of};
use crate::base::json::{remove, set};
use crate::kinds::KindRef;
use crate::schema::TypeRef;
use crate::schema::apply::{Unconverted, Versions};

/// What is known of objects of a request as of other versions; nothing is kept where nothing was asked.
#[derive(Debug, Default)]
pub struct Conversions(Mutex<Option<Box<Memo>>>);

#[derive(Debug, Default)]
struct Memo {
    /// Each with the version it was converted to.
    known: Vec<(Value, KindRef, Value)>,
    missing: Vec<(Value, KindRef)>,
    budget: Budget,
}

/// The versions of a kind, for the ownership of fields.
#[derive(Debug)]
pub(in crate::api) struct KindVersions<'r> {
    all: Vec<KindRef>,
    conversions: &'r Conversions,
}

// === impl Conversions ===

impl Conversions {
    /// The versions of a kind, if a webhook converts between them.
    pub(in crate::api) fn versions<'r>(&'r self, kind: &KindRef) -> Option<KindVersions<'r>> {
        kind.is_converted_by_webhook().then(|| KindVersions { all: kind.all_versions(), conversions: self })
    }

    /// An object as of another version of its kind, to which a webhook converts. Whose fields they are stays as it is: that is
    /// no business of the webhook, and may differ where the object does not.
    pub(in crate::api) fn get(&self, object: &Value, to: &KindRef) -> Result<Value, Unconverted> {
        let mut object = object.clone();
        if object["apiVersion"] == to.api_version() {
            return Ok(object);
        }
        let managed = remove(&mut object, "metadata.managedFields");
        let mut memo = self.lock();
        let memo = memo.get_or_insert_default();
        if let Some((_, _, known)) = memo.known.iter().find(|(from, version, _)| version == to && *from == object) {
            let mut converted = known.clone();
            managed.into_iter().for_each(|managed| set(&mut converted, "metadata.managedFields", managed));
            return Ok(converted);
        }
        memo.missing.push((object, to.clone()));
        Err(Unconverted)
    }

    /// What was missed since this was asked last.
    pub(super) fn take_missing(&self) -> Vec<(Value, KindRef)> {
        self.lock().as_mut().map(|memo| std::mem::take(&mut memo.missing)).unwrap_or_default()
    }

    /// What an object is as of a version; refused where that is too much to be kept.
    pub(super) fn keep(&self, object: &Value, to: &KindRef, converted: Value) -> Result<(), Exceeded> {
        let mut memo = self.lock();
        let memo = memo.get_or_insert_default();
        for value in [object, &converted] {
            memo.budget.copy(size_of(value))?;
        }
        memo.known.push((object.clone(), to.clone(), converted));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<Memo>>> {
        self.0.lock().expect("no panic while held")
    }
}

/// Another request may be about something else.
impl Clone for Conversions {
    fn clone(&self) -> Self {
        Self::default()
    }
}

// === impl KindVersions ===

impl KindVersions<'_> {
    fn of(&self, api_version: &str) -> Option<&KindRef> {
        self.all.iter().find(|kind| kind.api_version() == api_version)
    }
}

impl Versions for KindVersions<'_> {
    fn shape(&self, api_version: &str) -> Option<TypeRef<'_>> {
        self.of(api_version).map(KindRef::type_ref)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, Unconverted> {
        self.conversions.get(object, self.of(api_version).ok_or(Unconverted)?)
    }
}
