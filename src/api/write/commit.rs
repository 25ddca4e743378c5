//! The commit that all writes share.

use std::sync::Arc;

use serde_json::Value;

use crate::api::admission::{Charge, Review};
use crate::api::allocate::{self, AddressWrite};
use crate::api::cache::{self, Pending};
use crate::api::{Api, Request, form};
use crate::apimachinery::status::{Result, Status};
use crate::base::budget::{self, Budget, STORED_BYTES_MAX};
use crate::base::json::{at, int, list};
use crate::base::object::{Draft, Object};
use crate::base::task;
use crate::kinds::KindRef;
use crate::store::{self, Op, Txn};

use super::ATTEMPTS;

/// The right to take addresses and ports.
pub(super) type Allocating<'a> = tokio::sync::MutexGuard<'a, ()>;

/// What of IPAddresses is written with a Service.
#[derive(Default)]
pub(in crate::api) struct Addresses {
    pub(in crate::api) expect: Vec<(Arc<str>, u64)>,
    pub(in crate::api) ops: Vec<Op>,
}

/// Why a commit failed.
pub(super) enum Failure {
    /// Somebody else was faster.
    Conflict,
    /// Somebody else was faster with a quota that it takes from.
    Charge,
    Status(Status),
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Api {
    /// Writes an object in the served form, and with it what it takes of quotas; `old` is what was loaded (absent: it must
    /// be new).
    ///
    /// An object that is being deleted and that nothing holds any more is removed instead.
    pub(super) async fn commit(
        &self,
        review: &Review<'_>,
        request: &Request,
        value: Value,
        old: Option<&Arc<Object>>,
    ) -> Result<Arc<Object>, Failure> {
        let converted = match request.kind.is_converted_by_webhook() {
            true => Some(Box::pin(self.converted_to_stored(&request.kind, &value)).await?),
            false => None,
        };
        for _ in 0..ATTEMPTS {
            let charge = review.charge(&value).await?;
            if charge.ops.is_empty() {
                return self.commit_once(request, converted.unwrap_or(value), old, charge).await;
            }
            let written = converted.as_ref().unwrap_or(&value).clone();
            match self.commit_once(request, written, old, charge).await {
                Err(Failure::Charge) => {}
                done => return done,
            }
        }
        Err(Failure::Status(Status::modified(&request.kind, &request.name)))
    }

    async fn commit_once(
        &self,
        request: &Request,
        mut value: Value,
        old: Option<&Arc<Object>>,
        charge: Charge<'_>,
    ) -> Result<Arc<Object>, Failure> {
        let kind = &request.kind;
        if !kind.is_converted_by_webhook() {
            form::stored(kind, &mut value);
        }
        let stored = kind.stored();
        let written = || Draft::new(request.key(), &value, stored.field_values(&value));
        let draft = task::in_place(request.heavy, written);
        check_size(&value, draft.stored().len(), old)?;
        if request.dry_run {
            return Ok(Arc::new(draft.at(old.map_or(0, |o| o.revision))));
        }
        // Who watches is told of the last state that was stored, who asked of what they made of it.
        let released = old.filter(|_| is_released(kind, &value));
        let pending = match released {
            Some(old) => Pending::new(Draft::new(request.key(), &old.value(), old.fields.clone())),
            None => Pending::new(draft.clone()),
        };
        let (key, bytes) = (request.key(), cache::stored_bytes(kind, &pending.draft));
        let expect = [(key.clone(), old.map_or(0, |o| o.revision))];
        let payload = Some(pending.clone() as store::CommitPayload);
        let op = if released.is_some() {
            Op::Delete { key, value: bytes, payload }
        } else {
            Op::Put { key, value: bytes, payload, volatile: kind.is_volatile_in(&request.namespace) }
        };
        let left = released.is_none().then_some(&value);
        for _ in 0..ATTEMPTS {
            let definition = if old.is_none() { self.definition_of(kind, &request.name)? } else { None };
            let addresses = self.addresses_with(request, old, left)?;
            let expect = expect.iter().chain(charge.expect.iter()).chain(&addresses.expect).chain(&definition);
            let expect = expect.cloned().collect();
            // The object comes first: who sees that it was counted, or its address, sees it too.
            let ops = [op.clone()].into_iter().chain(charge.ops.iter().cloned()).chain(addresses.ops).collect();
            return match self.store.commit(Txn { expect, ops }).await {
                Ok(_) if released.is_some() => Ok(Arc::new(draft.at(pending.object().revision))),
                Ok(_) => Ok(pending.object()),
                // It has changed, which alone is no reason to refuse.
                Err(store::Error::Conflict { key, .. }) if definition.as_ref().is_some_and(|(d, _)| *d == key) => {
                    continue;
                }
                Err(store::Error::Conflict { key, .. }) if charge.expect.iter().any(|(quota, _)| *quota == key) => {
                    Err(Failure::Charge)
                }
                // Somebody has taken or freed an address: it is looked at again.
                Err(store::Error::Conflict { key, .. }) if addresses.expect.iter().any(|(of, _)| *of == key) => {
                    continue;
                }
                Err(store::Error::Conflict { .. }) => Err(Failure::Conflict),
                Err(error) => Err(Failure::Status(error.into())),
            };
        }
        Err(Failure::Status(Status::modified(kind, &request.name)))
    }

    /// Lets admission look at an object in its last form; answers its warnings. What is held meanwhile is let go where somebody
    /// else is asked, for they may write themselves: then what the object has taken is taken `again`, and where another one has
    /// it by now there is no answer.
    pub(super) async fn validate<'a>(
        &'a self,
        review: &Review<'_>,
        value: &mut Value,
        held: Option<Allocating<'a>>,
        again: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Option<(Vec<String>, Option<Allocating<'a>>)>> {
        if held.is_none() || !review.asks_others(value) {
            return Ok(Some((review.validate(value).await?, held)));
        }
        drop(held);
        let warnings = review.validate(value).await?;
        let held = self.lock_allocation(&review.request.kind).await;
        Ok(again(value).is_ok().then_some((warnings, held)))
    }

    /// The IPAddresses that come and go with an object when it becomes what it is to be; `None` is one that goes.
    pub(in crate::api) fn addresses_with(
        &self,
        request: &Request,
        old: Option<&Arc<Object>>,
        new: Option<&Value>,
    ) -> Result<Addresses> {
        let mut addresses = Addresses::default();
        for write in allocate::address_writes(self, request, old, new)? {
            match write {
                AddressWrite::Put { request, value } => {
                    let value = self.made(&request, value)?;
                    let draft = Draft::new(request.key(), &value, request.kind.field_values(&value));
                    let (key, pending) = (request.key(), Pending::new(draft));
                    let (value, payload) = (pending.draft.stored().clone(), Some(pending as store::CommitPayload));
                    addresses.expect.push((key.clone(), 0));
                    addresses.ops.push(Op::Put { key, value, payload, volatile: false });
                }
                AddressWrite::Delete { request, object } => {
                    let last = object.value();
                    let draft = Draft::new(request.key(), &last, request.kind.field_values(&last));
                    let (key, pending) = (request.key(), Pending::new(draft));
                    let (value, payload) = (pending.draft.stored().clone(), Some(pending as store::CommitPayload));
                    addresses.expect.push((key.clone(), object.revision));
                    addresses.ops.push(Op::Delete { key, value, payload });
                }
            }
        }
        Ok(addresses)
    }

    /// Held while a kind whose objects take addresses or ports is written.
    pub(super) async fn lock_allocation(&self, kind: &KindRef) -> Option<Allocating<'_>> {
        if kind.allocates() { Some(self.allocation.lock().await) } else { None }
    }
}

/// Refuses what would be too large to be read again; what was so before may only become smaller.
fn check_size(value: &Value, bytes: usize, old: Option<&Arc<Object>>) -> Result<()> {
    let size = budget::size_of(value);
    let limits = budget::check_depth(0, size.depth).and_then(|()| Budget::new().copy(size));
    if bytes <= STORED_BYTES_MAX && limits.is_ok() {
        return Ok(());
    }
    if let Some(old) = old {
        let before = budget::size_of(&old.value());
        if bytes <= old.body().len() && size.bytes <= before.bytes && size.depth <= before.depth {
            return Ok(());
        }
    }
    limits.map_err(Status::exceeded)?;
    Err(Status::too_large(format!("the object has {bytes} bytes, limit is {STORED_BYTES_MAX}")))
}

/// Whether the object waits for its end and nothing holds it any more.
fn is_released(kind: &KindRef, value: &Value) -> bool {
    at(value, "metadata.deletionTimestamp").is_some()
        && int(value, "metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
        && list(value, "metadata.finalizers").is_empty()
        && !kind.is_held(value)
}
