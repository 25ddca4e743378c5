//! Follows the APIServices: registers custom kinds, and finds out who can be asked.
//!
//! A server is asked when its APIService, its Service or an endpoint has changed, and every half minute: networks break
//! without telling. Nothing is asked, and nothing waits, while all versions are this server's own. A server that does not
//! answer holds up nobody: checks run beside each other, a bounded number at a time.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::Instant;

use super::available::{Behind, Verdict, check};
use super::remote::Remote;
use super::{authentication, automanaged};
use crate::api::write::Change;
use crate::api::{Api, Request};
use crate::base::json::text;
use crate::base::signal;
use crate::kinds::apiregistration::apiservice;
use crate::kinds::core::{configmap, service};
use crate::kinds::discovery::endpointslice;
use crate::kinds::registry::Snapshot;
use crate::kinds::{KindRef, Subresource};

const MANAGER: &str = "kube-apiserver";
/// How often a server is asked while nothing changes.
const PERIOD: Duration = Duration::from_secs(30);
/// After a failure, growing to [`PERIOD`].
const RETRY: Duration = Duration::from_millis(200);
/// What changes together is looked at once.
const SETTLE: Duration = Duration::from_millis(20);
/// Servers that are asked at the same time.
const CHECKS_MAX: usize = 8;

/// A server that is followed.
struct Followed {
    remote: Arc<Remote>,
    /// What its last check was about.
    revisions: Vec<u64>,
    due: Instant,
    retry: Duration,
    is_running: bool,
}

struct Keeper {
    api: Api,
    followed: Vec<Followed>,
    checks: FuturesUnordered<BoxFuture<'static, (Arc<Remote>, Verdict)>>,
    /// Something could not be written.
    owes: bool,
    looked_at: Revisions,
}

/// What was looked at last, so that a change of something else costs nothing.
#[derive(Default)]
struct Revisions {
    /// The ConfigMap.
    map: Option<u64>,
    services: Option<u64>,
    kinds: Option<Arc<Snapshot>>,
}

/// Runs until it is aborted.
pub async fn keep(api: Api) {
    let told = |kind: &KindRef| api.cache.kind(kind).subscribe();
    let (mut services, mut maps) = (told(&apiservice::KIND), told(&configmap::KIND));
    let (mut fronts, mut endpoints) = (told(&service::KIND), told(&endpointslice::KIND));
    let mut kinds = api.kinds.subscribe();
    let mut keeper = Keeper {
        api,
        followed: Vec::new(),
        checks: FuturesUnordered::new(),
        owes: false,
        looked_at: Revisions::default(),
    };
    loop {
        for seen in [&mut services, &mut maps, &mut fronts, &mut endpoints] {
            seen.mark_unchanged();
        }
        kinds.mark_unchanged();
        keeper.look().await;
        let (follows, next) = (!keeper.followed.is_empty(), keeper.next_due());
        let ended = tokio::select! {
            told = services.changed() => told.is_err(),
            told = maps.changed() => told.is_err(),
            told = kinds.changed() => told.is_err(),
            told = either(&mut fronts, &mut endpoints), if follows => told.is_err(),
            Some((remote, verdict)) = keeper.checks.next() => {
                keeper.settle(&remote, verdict).await;
                false
            }
            () = sleep_until(next) => false,
        };
        if ended {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

async fn either(one: &mut signal::Receiver, other: &mut signal::Receiver) -> Result<(), signal::Closed> {
    tokio::select! {
        told = one.changed() => told,
        told = other.changed() => told,
    }
}

async fn sleep_until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

// === impl Keeper ===

impl Keeper {
    /// Brings everything to what the objects say now.
    async fn look(&mut self) {
        if std::mem::take(&mut self.owes) {
            self.looked_at = Revisions::default();
        }
        let map = Some(authentication::published(&self.api));
        if self.looked_at.map != map {
            self.publish().await;
            self.looked_at.map = map;
        }
        let services = Some(self.api.cache.kind(&apiservice::KIND).last());
        let kinds = self.api.kinds.snapshot();
        if self.looked_at.services != services
            || self.looked_at.kinds.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, &kinds))
        {
            self.register().await;
            (self.looked_at.services, self.looked_at.kinds) = (services, Some(kinds));
        }
        self.follow();
        self.begin();
    }

    async fn publish(&mut self) {
        if let Some(identity) = self.api.aggregate.identity()
            && let Err(error) = authentication::publish(&self.api, &identity).await
        {
            tracing::warn!(%error, "extension-apiserver-authentication cannot be kept");
            self.owes = true;
        }
    }

    async fn register(&mut self) {
        if let Err(error) = automanaged::follow(&self.api).await {
            tracing::warn!(%error, "the APIServices of custom kinds cannot be kept");
            self.owes = true;
        }
        self.mark_local().await;
    }

    /// What became this server's own is available.
    async fn mark_local(&mut self) {
        for object in self.api.cache.kind(&apiservice::KIND).list("", "") {
            let value = object.value();
            let is_marked = apiservice::available(&value).is_some_and(|c| text(c, "reason") == apiservice::LOCAL.1);
            if !apiservice::is_remote(&value) && !is_marked {
                self.write(&object.meta.name, &object.meta.uid, false, apiservice::LOCAL).await;
            }
        }
    }

    /// Notes whom to ask when.
    fn follow(&mut self) {
        let now = Instant::now();
        let remotes = self.api.remotes();
        self.followed.retain(|known| remotes.iter().any(|remote| remote.is_same(&known.remote)));
        for remote in remotes {
            let revisions = Behind::of(&self.api, &remote).revisions();
            match self.followed.iter_mut().find(|known| known.remote.is_same(&remote)) {
                Some(known) => {
                    if known.revisions != revisions {
                        (known.revisions, known.due, known.retry) = (revisions, now, RETRY);
                    }
                }
                None => self.followed.push(Followed { remote, revisions, due: now, retry: RETRY, is_running: false }),
            }
        }
    }

    /// Begins the checks that are due.
    fn begin(&mut self) {
        let now = Instant::now();
        for known in self.followed.iter_mut().filter(|known| !known.is_running && known.due <= now) {
            if self.checks.len() >= CHECKS_MAX {
                break;
            }
            known.is_running = true;
            // Whatever changes from now on makes it due again.
            known.due = now + PERIOD;
            let (api, remote) = (self.api.clone(), known.remote.clone());
            self.checks.push(Box::pin(async move {
                let behind = Behind::of(&api, &remote);
                let verdict = check(&api, &remote, &behind).await;
                (remote, verdict)
            }));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let owed = self.owes.then(|| Instant::now() + Duration::from_secs(1));
        let is_room = self.checks.len() < CHECKS_MAX;
        let due = self.followed.iter().filter(|known| is_room && !known.is_running).map(|known| known.due);
        due.chain(owed).min()
    }

    /// Writes what a check has found.
    async fn settle(&mut self, remote: &Arc<Remote>, verdict: Verdict) {
        // Of one that is another one now, nothing is said.
        let Some(known) = self.followed.iter_mut().find(|known| known.remote.is_same(remote)) else { return };
        known.is_running = false;
        if verdict.is_available {
            known.retry = RETRY;
        } else {
            known.due = known.due.min(Instant::now() + known.retry);
            known.retry = (known.retry * 2).min(PERIOD);
        }
        let is = (verdict.is_available, verdict.reason, &*verdict.message);
        self.write(&remote.name, &remote.uid, true, is).await;
    }

    async fn write(&mut self, name: &str, uid: &str, of_remote: bool, is: (bool, &str, &str)) {
        let request = Request::internal(MANAGER, &apiservice::KIND, "", name).on(Subresource::Status);
        let now = self.api.clock.now_text();
        let mut change = |live: &Value| {
            let mut new = live.clone();
            if text(live, "metadata.uid") == uid && apiservice::is_remote(live) == of_remote {
                apiservice::set_available(&mut new, is, &now);
            }
            Ok(new)
        };
        match self.api.update(&request, Change::Patch(&mut change)).await {
            Err(error) if error.code != 404 => {
                tracing::warn!(name, %error, "the status of an APIService cannot be written");
                self.owes = true;
            }
            _ => {}
        }
    }
}
