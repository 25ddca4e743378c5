//! A client that follows a kind by watch from the first to the last moment, over restarts of the server, and believes
//! every event: revisions only grow, what is added is new, what changes or goes was there. At rest it must know exactly
//! what the store holds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use amphipod::api::read::Selection;
use amphipod::api::watch::{WatchEvent, WatchOptions};
use amphipod::api::{Api, Request};
use amphipod::base::object::Object;
use amphipod::base::task;
use amphipod::kinds::KindRef;
use amphipod::store::Store;
use tokio::task::JoinHandle;

use crate::checkers::Checkers;

/// What it knows; outlives the servers that it asks.
pub struct Follower {
    kind: KindRef,
    checkers: Arc<Mutex<Checkers>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The initial objects, which come in no order of revisions, are all there.
    whole: bool,
    revision: u64,
    objects: BTreeMap<Arc<str>, Arc<Object>>,
}

// === impl Follower ===

impl Follower {
    pub fn new(kind: &KindRef, checkers: Arc<Mutex<Checkers>>) -> Arc<Self> {
        Arc::new(Self { kind: kind.clone(), checkers, known: Mutex::default() })
    }

    /// Goes on from where it was, with this server, until aborted.
    pub fn follow(self: &Arc<Self>, api: Api) -> JoinHandle<Option<()>> {
        let follower = self.clone();
        task::spawn("follower", async move { while follower.watch(&api).await.is_err() {} })
    }

    /// Ends when the server says that history is gone.
    async fn watch(&self, api: &Api) -> Result<(), ()> {
        let request = Request::internal("follower", &self.kind, "", "");
        let options = {
            let mut known = self.known.lock().unwrap();
            if !known.whole {
                *known = Known::default();
            }
            let resource_version = if known.whole { known.revision.to_string() } else { String::new() };
            WatchOptions { resource_version, initial_events: (!known.whole).then_some(true), bookmarks: true }
        };
        let mut watch = match api.watch(&request, Selection::default(), &options) {
            Ok(watch) => watch,
            Err(status) => return self.lost(&status.message),
        };
        loop {
            match watch.next().await {
                Ok(seen) => self.believe(seen),
                Err(status) => return self.lost(&status.message),
            }
        }
    }

    /// History may end, then it begins anew.
    fn lost(&self, why: &str) -> Result<(), ()> {
        self.checkers.lock().unwrap().note(&format!("{} watch ended: {why}", self.kind.plural()));
        *self.known.lock().unwrap() = Known::default();
        Err(())
    }

    fn believe(&self, seen: WatchEvent) {
        let mut known = self.known.lock().unwrap();
        if matches!(seen, WatchEvent::Bookmark { initial: true, .. }) {
            known.whole = true;
        }
        let whole = known.whole;
        let (revision, key, wrong) = match seen {
            WatchEvent::Bookmark { revision, .. } => (revision, Arc::from("bookmark"), revision < known.revision),
            WatchEvent::Added(o) => {
                let late = o.revision <= known.revision && whole;
                let was = known.objects.insert(o.key.clone(), o.clone());
                (o.revision, o.key.clone(), late || was.is_some())
            }
            WatchEvent::Modified(o) => {
                let was = known.objects.insert(o.key.clone(), o.clone());
                (o.revision, o.key.clone(), o.revision <= known.revision || was.is_none())
            }
            WatchEvent::Deleted(o) => {
                let was = known.objects.remove(&o.key);
                (o.revision, o.key.clone(), o.revision <= known.revision || was.is_none())
            }
        };
        if wrong {
            let text = format!("a watch at {} was told of {key} at {revision}", known.revision);
            self.checkers.lock().unwrap().violate(text);
        }
        known.revision = known.revision.max(revision);
    }

    /// What it knows that the store does not say, and the other way round.
    pub fn compare(&self, store: &dyn Store) -> Vec<String> {
        let stored = store.range(&self.kind.prefix(), 0, "", 0).unwrap().entries;
        let stored: BTreeMap<_, _> = stored.into_iter().map(|e| (e.key, e.revision)).collect();
        let known = self.known.lock().unwrap();
        let known: BTreeMap<_, _> = known.objects.iter().map(|(k, o)| (k.clone(), o.revision)).collect();
        let differ = |key: &&Arc<str>| stored.get(*key) != known.get(*key);
        stored.keys().chain(known.keys()).filter(differ).map(|k| format!("a watcher of {k} missed something")).collect()
    }
}
