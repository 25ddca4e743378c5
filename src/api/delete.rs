//! Deletion: graceful, with finalizers, by propagation policy, one or many.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use tokio::sync::Semaphore;

use super::admission::Review;
use super::cache::{self, Pending};
use super::{Api, Request, form};
use crate::apimachinery::delete_options::{DeleteOptions, Propagation};
use crate::apimachinery::status::{Result, Status};
use crate::base::clock::seconds_text;
use crate::base::json::{at, int, list, remove, set};
use crate::base::object::{Draft, Object};
use crate::kinds::KindRef;
use crate::store::{self, Op, Txn};

/// Deletions of a collection that are under way at once; the store makes group commits of them.
const PARALLEL: usize = 256;

/// Stored bytes of what is deleted at once: each object is read, and what is made of it is many times as much.
const PARALLEL_BYTES: usize = 1 << 20;

/// How a deletion ended.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The last state, or the state that waits for finalizers or grace.
    pub object: Arc<Object>,
    /// Nothing is left.
    pub gone: bool,
    pub warnings: Vec<String>,
}

enum Plan {
    /// Remove it now.
    Remove,
    /// Write this and wait.
    Mark(Value),
    /// It waits already, and for no longer than asked.
    Nothing,
}

// === impl Api ===

impl Api {
    /// Deletes the named object, or begins to.
    pub async fn delete(&self, request: &Request, options: &DeleteOptions) -> Result<Deleted> {
        let kind = &request.kind;
        loop {
            let old = self.cache.kind(kind).get(&request.key());
            let Some(old) = old else { return Err(Status::not_found(kind, &request.name)) };
            let pinned = options.resource_version.is_some();
            check_preconditions(request, options, &old)?;
            // What is looked at and written is the same in all versions: nobody is asked to convert it.
            let (written_as, live) = form::own(kind, &old);
            let seen = self.reviewed(request, options, &old, &live).await?;
            let review = Review::delete(self, request, seen.as_ref().unwrap_or(&live), options);
            let mut warnings = review.mutate(&mut Value::Null).await?;
            warnings.extend(review.validate(&Value::Null).await?);
            // Who watches an object that was given time sees that the time is taken back, and only then its end.
            let hurried = kind.grace_seconds(None, &live).is_some()
                && int(&live, "metadata.deletionGracePeriodSeconds").is_some_and(|grace| grace > 0)
                && !(request.dry_run || options.dry_run);
            let (removed, value) = match self.plan(request, options, &live)? {
                Plan::Nothing => return Ok(Deleted { object: old, gone: false, warnings }),
                Plan::Remove => (!hurried, self.last_state(kind, live)),
                Plan::Mark(value) => (false, value),
            };
            let again = hurried && int(&value, "metadata.deletionGracePeriodSeconds") == Some(0);
            let draft = Self::draft(request, &written_as, value);
            match self.apply(request, options, &old, draft, removed).await {
                Ok(_) if again => {}
                Ok((object, gone)) => return Ok(Deleted { object, gone, warnings }),
                Err(Some(status)) => return Err(status),
                Err(None) if pinned => return Err(Status::modified(kind, &request.name)),
                Err(None) => {}
            }
        }
    }

    /// Deletes the given objects of the collection; answers those that were there, as they were before.
    pub async fn delete_collection(
        &self,
        request: &Request,
        objects: Vec<Arc<Object>>,
        options: &DeleteOptions,
    ) -> Result<Vec<Arc<Object>>> {
        let room = Semaphore::new(PARALLEL_BYTES);
        let deletions = objects.into_iter().map(|object| {
            let mut one = request.named(&object.meta.name);
            one.namespace = object.meta.namespace.to_string();
            let bytes = object.body().len().min(PARALLEL_BYTES);
            let room = &room;
            async move {
                let _room = room.acquire_many(bytes as u32).await.map_err(Status::internal)?;
                match self.delete(&one, options).await {
                    Ok(_) => Ok(Some(object)),
                    Err(status) if status.code == 404 => Ok(None),
                    Err(status) => Err(status),
                }
            }
        });
        futures::stream::iter(deletions).buffered(PARALLEL).try_filter_map(|o| async move { Ok(o) }).try_collect().await
    }

    /// How an object that is removed at once is told of: what may be given time ends with none.
    fn last_state(&self, kind: &KindRef, mut live: Value) -> Value {
        let terminating = at(&live, "metadata.deletionTimestamp").is_some();
        let is_graceful = kind.grace_seconds(None, &live).is_some();
        if is_graceful || terminating {
            set(&mut live, "metadata.deletionGracePeriodSeconds", 0);
        }
        if is_graceful && !terminating {
            set(&mut live, "metadata.deletionTimestamp", self.clock.now_text());
            if let Some(generation) = int(&live, "metadata.generation") {
                set(&mut live, "metadata.generation", generation + 1);
            }
        }
        live
    }

    fn plan(&self, request: &Request, options: &DeleteOptions, live: &Value) -> Result<Plan> {
        let kind = &request.kind;
        let grace = kind.grace_seconds(options.grace_seconds, live).unwrap_or(0);
        let terminating = at(live, "metadata.deletionTimestamp").is_some();
        let mut finalizers: Vec<Value> = list(live, "metadata.finalizers").to_vec();
        let held = finalizers.clone();
        match options.propagation {
            Some(Propagation::Orphan) => hold(&mut finalizers, "orphan", "foregroundDeletion"),
            Some(Propagation::Foreground) => hold(&mut finalizers, "foregroundDeletion", "orphan"),
            Some(Propagation::Background) => finalizers.retain(|f| f != "orphan" && f != "foregroundDeletion"),
            None if kind.orphans_dependents() && !held.iter().any(|f| f == "foregroundDeletion") => {
                hold(&mut finalizers, "orphan", "foregroundDeletion");
            }
            None => {}
        }
        // What such a kind is marked with is no graceful deletion: only the time is written, and who holds it.
        let cleaned = kind.deletion_finalizer().filter(|_| !terminating);
        if let Some(ours) = cleaned.filter(|ours| !held.iter().any(|f| f == ours)) {
            finalizers.push(ours.into());
        }
        let blocked = !finalizers.is_empty() || kind.is_held(live);
        if !blocked && grace == 0 {
            return Ok(Plan::Remove);
        }
        let old_grace = int(live, "metadata.deletionGracePeriodSeconds");
        if terminating && finalizers == held && old_grace.is_some_and(|old| grace >= old) {
            return Ok(Plan::Nothing);
        }
        let mut new = live.clone();
        if finalizers.is_empty() {
            remove(&mut new, "metadata.finalizers");
        } else {
            set(&mut new, "metadata.finalizers", finalizers);
        }
        if !terminating || old_grace.is_some_and(|old| grace < old) {
            let end = self.clock.now() + Duration::from_secs(grace.max(0) as u64);
            set(&mut new, "metadata.deletionTimestamp", seconds_text(end));
            if cleaned.is_none() {
                set(&mut new, "metadata.deletionGracePeriodSeconds", grace);
            }
            if let Some(generation) =
                int(live, "metadata.generation").filter(|g| *g > 0 && !terminating && cleaned.is_none())
            {
                set(&mut new, "metadata.generation", generation + 1);
            }
        }
        kind.prepare_deletion(&mut new);
        Ok(Plan::Mark(new))
    }

    /// What is deleted in the request's form, where somebody is to look at it who sees more of it than its metadata.
    async fn reviewed(
        &self,
        request: &Request,
        options: &DeleteOptions,
        old: &Arc<Object>,
        live: &Value,
    ) -> Result<Option<Value>> {
        let kind = &request.kind;
        if kind.as_custom().is_none()
            || kind.has_form_of(old)
            || !Review::delete(self, request, live, options).is_looked_at()
        {
            return Ok(None);
        }
        Ok(Some(form::served(kind, &*self.presented(kind, old).await?)))
    }

    /// What is written of an object of which only the metadata has changed.
    fn draft(request: &Request, written_as: &KindRef, mut value: Value) -> Draft {
        if written_as.as_custom().is_none() {
            form::stored(written_as, &mut value);
        }
        let form = if written_as.as_custom().is_some() { written_as } else { written_as.stored() };
        Draft::new(request.key(), &value, form.field_values(&value))
    }

    /// Answers what is left, and whether nothing is; `Err(None)` is a lost race.
    async fn apply(
        &self,
        request: &Request,
        options: &DeleteOptions,
        old: &Arc<Object>,
        draft: Draft,
        removed: bool,
    ) -> Result<(Arc<Object>, bool), Option<Status>> {
        let kind = &request.kind;
        if request.dry_run || options.dry_run {
            return Ok((Arc::new(draft.at(old.revision)), removed));
        }
        let pending = Pending::new(draft);
        let (key, bytes, payload) =
            (request.key(), cache::stored_bytes(kind, &pending.draft), Some(pending.clone() as store::CommitPayload));
        let op = if removed {
            Op::Delete { key: key.clone(), value: bytes, payload }
        } else {
            Op::Put { key: key.clone(), value: bytes, payload, volatile: kind.is_volatile_in(&request.namespace) }
        };
        let (mut expect, mut ops) = (vec![(key, old.revision)], vec![op]);
        if removed {
            let addresses = self.addresses_with(request, Some(old), None).map_err(Some)?;
            expect.extend(addresses.expect);
            ops.extend(addresses.ops);
        }
        match self.store.commit(Txn { expect, ops }).await {
            Ok(_) => Ok((pending.object(), removed)),
            Err(store::Error::Conflict { .. }) => Err(None),
            Err(error) => Err(Some(error.into())),
        }
    }
}

fn hold(finalizers: &mut Vec<Value>, add: &str, drop: &str) {
    finalizers.retain(|f| f != drop);
    if !finalizers.iter().any(|f| f == add) {
        finalizers.push(add.into());
    }
}

fn check_preconditions(request: &Request, options: &DeleteOptions, old: &Object) -> Result<()> {
    let (kind, name) = (&request.kind, &request.name);
    if let Some(uid) = &options.uid
        && **uid != *old.meta.uid
    {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.meta.uid);
        return Err(unmet(kind, name, why));
    }
    if let Some(version) = &options.resource_version
        && *version != old.revision.to_string()
    {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            old.revision
        );
        return Err(unmet(kind, name, why));
    }
    Ok(())
}

/// A precondition that does not hold; Kubernetes names the kind and not the resource here.
fn unmet(kind: &KindRef, name: &str, why: String) -> Status {
    let mut status = Status::conflict(kind, name, why);
    (status.details.kind, status.details.group) = (kind.kind().into(), kind.stored().group().into());
    status
}
