//! Watches: pulled from the kind's ring, resumed from the store's log, ended with 410 when history is gone.
//!
//! What there is at the beginning is no list that a watch would keep until its client has taken it: the watch walks over
//! the kind's keys, a batch at a time, and between two batches tells what has become of the keys that it has passed. So each
//! key is shown as it was at some revision, then each change of it, and the whole is one revision when the walk is over.
//! Invariant: a watch whose client does not read keeps a place, and no object ([`Watch::release`]).

use std::collections::VecDeque;
use std::sync::Arc;

use super::cache::{self, Batch, Event};
use super::read::{Selection, parse_version};
use super::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::{Draft, Object};
use crate::base::signal::Receiver;
use crate::kinds::{KindRef, Volatile};

/// What is looked at at once.
const BATCH: Batch = Batch { count: 256, bytes: 32 << 10 };
/// Room for so many events may stay.
const KEPT: usize = 16;

/// How a watch is asked for.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    pub resource_version: String,
    /// `sendInitialEvents`.
    pub initial_events: Option<bool>,
    pub bookmarks: bool,
}

/// A watch event.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    Added(Arc<Object>),
    Modified(Arc<Object>),
    Deleted(Arc<Object>),
    /// Everything up to the revision was sent; `initial` ends the initial events.
    Bookmark {
        revision: u64,
        initial: bool,
    },
}

/// A running watch.
pub struct Watch {
    api: Api,
    kind: KindRef,
    prefix: String,
    selection: Selection,
    /// Everything up to this revision was taken, of the keys that a walk has passed.
    position: u64,
    walk: Option<Walk>,
    ready: VecDeque<WatchEvent>,
    /// Where it is once everything that is ready was taken.
    next: Next,
    changed: Receiver,
}

/// A walk over what there is.
struct Walk {
    /// The last key that was taken.
    after: Arc<str>,
    /// The least revision of the bookmark that ends it, if one does.
    bookmark: Option<u64>,
}

/// What is there to be told.
enum Found {
    Objects {
        objects: Vec<Arc<Object>>,
        bookmark: Option<u64>,
    },
    /// Those of the objects that may be meant, in the form of the kind; `last` is the key of the last one that there was.
    Presented {
        objects: Vec<Arc<Object>>,
        last: Option<Arc<str>>,
        bookmark: Option<u64>,
    },
    Events(Vec<Event>),
}

/// What follows what is ready.
enum Next {
    /// The same place.
    Here,
    /// Changes after this revision.
    Changes(u64),
    /// What there is behind this key.
    Objects(Arc<str>),
    /// Changes alone: what there was at the beginning was told.
    Followed,
}

// === impl Api ===

impl Api {
    /// Begins a watch of the collection.
    pub fn watch(&self, request: &Request, selection: Selection, options: &WatchOptions) -> Result<Watch> {
        let kind_cache = self.cache.kind(&request.kind);
        let changed = kind_cache.subscribe();
        let asked = parse_version(&options.resource_version)?;
        // A revision that is not reached yet is waited for; only the initial events must be as new as asked.
        let head = self.cache.head();
        if asked > head && options.initial_events == Some(true) {
            return Err(Status::too_large_revision(asked, head));
        }
        let prefix = request.prefix();
        let is_told = options.initial_events == Some(true) && options.bookmarks;
        let walk = options
            .initial_events
            .unwrap_or(asked == 0)
            .then(|| Walk { after: Arc::from(""), bookmark: is_told.then_some(asked.max(1)) });
        let position = if walk.is_some() || asked == 0 { kind_cache.last() } else { asked };
        let (api, kind, ready) = (self.clone(), request.kind.clone(), VecDeque::new());
        Ok(Watch { api, kind, prefix, selection, position, walk, ready, next: Next::Here, changed })
    }
}

// === impl Watch ===

impl Watch {
    /// The next event; waits for it. An error ends the watch.
    pub async fn next(&mut self) -> Result<WatchEvent> {
        loop {
            if let Some(seen) = self.take() {
                return Ok(seen);
            }
            self.changed.mark_unchanged();
            let is_filled = match self.kind.is_converted_by_webhook() {
                true => Box::pin(self.fill_converted()).await?,
                false => self.fill()?,
            };
            if is_filled {
                continue;
            }
            if self.changed.changed().await.is_err() {
                return Err(Status::unavailable(
                    "the watch ends: the server is shutting down, or the kind is no longer served",
                ));
            }
        }
    }

    /// An event that is ready now, and needs nobody else's answer.
    pub fn ready(&mut self) -> Result<Option<WatchEvent>> {
        if self.ready.is_empty() && !self.kind.is_converted_by_webhook() {
            self.fill()?;
        }
        Ok(self.take())
    }

    /// Lets go of what is ready: it is looked at again when it is asked for.
    pub fn release(&mut self) {
        if !self.ready.is_empty() || self.ready.capacity() > KEPT {
            self.ready = VecDeque::new();
            self.next = Next::Here;
        }
    }

    /// The next of what is ready; the watch is at its place from then on.
    fn take(&mut self) -> Option<WatchEvent> {
        let seen = self.ready.pop_front()?;
        if self.ready.is_empty() {
            self.arrive();
            return Some(seen);
        }
        let (WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object)) = &seen else {
            return Some(seen);
        };
        match (&self.next, &mut self.walk) {
            (Next::Changes(_), _) => self.position = object.revision,
            (Next::Objects(_), Some(walk)) => walk.after = object.key.clone(),
            _ => {}
        }
        Some(seen)
    }

    /// Everything that was ready was taken.
    fn arrive(&mut self) {
        match (std::mem::replace(&mut self.next, Next::Here), &mut self.walk) {
            (Next::Changes(revision), _) => self.position = revision,
            (Next::Objects(key), Some(walk)) => walk.after = key,
            (Next::Followed, walk) => *walk = None,
            _ => {}
        }
    }

    /// The revision that a bookmark may name now: everything before was sent or did not match.
    pub fn bookmark(&mut self) -> Result<WatchEvent> {
        if self.walk.is_some() {
            return Ok(WatchEvent::Bookmark { revision: 0, initial: false });
        }
        let head = self.api.cache.head();
        let quiet = self.ready.is_empty() && self.api.cache.kind(&self.kind).last() <= self.position;
        Ok(WatchEvent::Bookmark {
            revision: if quiet { head.max(self.position) } else { self.position },
            initial: false,
        })
    }

    /// Looks at what has happened since; true if anything was looked at.
    fn fill(&mut self) -> Result<bool> {
        let found = self.look()?;
        Ok(found.is_some_and(|found| self.keep(found)))
    }

    /// As [`Watch::fill`], in the form of a kind that a webhook converts to. Until it has answered, the watch stays where it is.
    async fn fill_converted(&mut self) -> Result<bool> {
        let found = match self.look()? {
            None => return Ok(false),
            Some(Found::Objects { objects, bookmark }) => {
                let last = objects.last().map(|last| last.key.clone());
                let meant = objects.into_iter().filter(|o| self.selection.may_match(o)).collect();
                let objects = self.api.presented_all(&self.kind, meant).await?;
                Found::Presented { objects, last, bookmark }
            }
            Some(found @ Found::Presented { .. }) => found,
            Some(Found::Events(events)) => Found::Events(self.presented_events(events).await?),
        };
        Ok(self.keep(found))
    }

    /// Events with their objects in the form of the kind.
    async fn presented_events(&self, mut events: Vec<Event>) -> Result<Vec<Event>> {
        let is_told = |event: &Event| self.is_passed(event) && self.selection.may_match(&event.object);
        let mut objects = Vec::new();
        for event in events.iter().filter(|event| is_told(event)) {
            objects.push(event.object.clone());
            objects.extend(event.previous.clone());
        }
        let mut presented = self.api.presented_all(&self.kind, objects).await?.into_iter();
        for event in events.iter_mut().filter(|event| is_told(event)) {
            let object = presented.next().ok_or_else(|| Status::internal("an event was not converted"))?;
            event.previous = event.previous.as_ref().and_then(|_| presented.next());
            event.object = object;
        }
        Ok(events)
    }

    /// What there is to be told next.
    fn look(&self) -> Result<Option<Found>> {
        let kind_cache = self.api.cache.kind(&self.kind);
        let walked = self.walk.as_ref().and_then(|walk| {
            let objects = kind_cache.objects_at(self.position, &self.prefix, &walk.after, BATCH)?;
            Some(Found::Objects { objects, bookmark: walk.bookmark })
        });
        if walked.is_some() {
            return Ok(walked);
        }
        let events = match kind_cache.changes(self.position, BATCH) {
            Some(events) => events,
            None => self.from_history()?,
        };
        Ok((!events.is_empty()).then_some(Found::Events(events)))
    }

    /// Makes what was found ready, as far as it is meant.
    fn keep(&mut self, found: Found) -> bool {
        match found {
            Found::Objects { objects, bookmark } => {
                let last = objects.last().map(|last| last.key.clone());
                self.keep_objects(objects, last, bookmark);
            }
            Found::Presented { objects, last, bookmark } => self.keep_objects(objects, last, bookmark),
            Found::Events(events) => {
                let Some(last) = events.last() else { return false };
                self.next = Next::Changes(last.revision);
                for event in &events {
                    if self.is_passed(event) {
                        self.ready.extend(self.see(event));
                    }
                }
            }
        }
        if self.ready.is_empty() {
            self.arrive();
        }
        true
    }

    fn keep_objects(&mut self, objects: Vec<Arc<Object>>, last: Option<Arc<str>>, bookmark: Option<u64>) {
        self.next = last.map_or(Next::Followed, Next::Objects);
        if let (Next::Followed, Some(least)) = (&self.next, bookmark) {
            self.ready.push_back(WatchEvent::Bookmark { revision: self.position.max(least), initial: true });
        }
        self.ready.extend(objects.into_iter().filter(|o| self.selection.matches(o)).map(WatchEvent::Added));
    }

    /// Whether a change is told of; what a walk has not passed it will show as it is then.
    fn is_passed(&self, event: &Event) -> bool {
        self.walk.as_ref().is_none_or(|walk| event.object.key <= walk.after)
            && event.object.key.starts_with(&self.prefix)
    }

    /// Changes that the ring has forgotten but the log has not. The states before are rebuilt from the first change on.
    fn from_history(&self) -> Result<Vec<Event>> {
        let gone =
            || Status::expired(format!("too old resource version: {} ({})", self.position, self.api.store.oldest()));
        if self.kind.stored().volatile() != Volatile::Never {
            return Err(gone());
        }
        let prefix = self.kind.prefix();
        let changes = self.api.store.changes(self.position, &prefix, BATCH.count, BATCH.bytes).map_err(|_| gone())?;
        if changes.is_empty() {
            return Err(gone());
        }
        let mut events = Vec::with_capacity(changes.len());
        for c in changes {
            let previous = self.api.store.read_at(&c.key, c.revision - 1).map_err(|_| gone())?;
            let decode = |key, value, revision| {
                cache::decode(self.kind.stored(), key, value, revision).map(Arc::new).map_err(Status::internal)
            };
            let previous = previous.map(|e| decode(e.key, e.value, e.revision)).transpose()?;
            let object = decode(c.key, c.value, c.revision)?;
            events.push(Event { revision: c.revision, object, previous, deleted: c.deleted });
        }
        Ok(events)
    }

    fn see(&self, event: &Event) -> Option<WatchEvent> {
        let was = event.previous.as_ref().is_some_and(|p| self.selection.matches(p));
        let is = !event.deleted && self.selection.matches(&event.object);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(WatchEvent::Added(event.object.clone())),
            (true, true) => Some(WatchEvent::Modified(event.object.clone())),
            (true, false) if event.deleted => Some(WatchEvent::Deleted(event.object.clone())),
            // It left the selection: shown as it was when it still matched, at the revision of its leaving.
            (true, false) => event.previous.as_ref().map(|p| WatchEvent::Deleted(Arc::new(restamp(p, event.revision)))),
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({} from {})", self.prefix, self.position)
    }
}

fn restamp(object: &Object, revision: u64) -> Object {
    Draft::new(object.key.clone(), &object.value(), object.fields.clone()).at(revision)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::api::in_memory;
    use crate::api::write::Change;
    use crate::base::labels::{FieldSelector, Selector};
    use crate::kinds::core::configmap;
    use crate::kinds::core::namespace;

    fn maps(name: &str) -> Request {
        Request::internal("test", &configmap::KIND, "default", name)
    }

    async fn put(api: &Api, name: &str, text: &str) {
        let (labels, data) = (json!({"set": "s"}), json!({"a": text}));
        if api.get(&maps(name)).is_err() {
            let map = json!({"metadata": {"name": name, "labels": labels}, "data": data});
            api.create(&maps(""), map).await.unwrap();
            return;
        }
        let mut change = |live: &serde_json::Value| {
            let mut new = live.clone();
            new["data"] = data.clone();
            Ok(new)
        };
        api.update(&maps(name), Change::Patch(&mut change)).await.unwrap();
    }

    async fn remove(api: &Api, name: &str) {
        api.delete(&maps(name), &Default::default()).await.unwrap();
    }

    /// What somebody knows who follows a watch.
    #[derive(Default)]
    struct Follower {
        known: BTreeMap<Arc<str>, u64>,
        revisions: BTreeMap<Arc<str>, u64>,
        bookmark: Option<u64>,
        seen: usize,
    }

    impl Follower {
        /// Takes so many events of those that are ready, or all.
        fn take(&mut self, watch: &mut Watch, limit: usize) {
            for _ in 0..limit {
                let Some(event) = watch.ready().unwrap() else { return };
                self.seen += 1;
                let (WatchEvent::Added(o) | WatchEvent::Modified(o) | WatchEvent::Deleted(o)) = &event else {
                    let WatchEvent::Bookmark { revision, initial: true } = event else { panic!("{event:?}") };
                    assert_eq!(self.bookmark.replace(revision), None);
                    continue;
                };
                let before = self.revisions.insert(o.key.clone(), o.revision).unwrap_or(0);
                assert!(before < o.revision, "{} again, or an older one: {event:?}", o.key);
                match event {
                    WatchEvent::Deleted(_) => {
                        assert!(self.known.remove(&o.key).is_some(), "{} was not there", o.key);
                    }
                    WatchEvent::Added(_) => assert!(self.known.insert(o.key.clone(), o.revision).is_none()),
                    _ => assert!(self.known.insert(o.key.clone(), o.revision).is_some()),
                }
            }
        }

        fn assert_knows(&self, api: &Api) {
            let all = api.cache.kind(&configmap::KIND).list(&maps("").prefix(), "");
            let all: BTreeMap<_, _> = all.iter().map(|o| (o.key.clone(), o.revision)).collect();
            assert_eq!(self.known, all);
        }
    }

    async fn filled(count: usize) -> Api {
        let api = in_memory::api();
        let request = Request::internal("test", &namespace::KIND, "", "");
        api.create(&request, json!({"metadata": {"name": "default"}})).await.unwrap();
        for i in 0..count {
            put(&api, &format!("m{i:04}"), "first").await;
        }
        api
    }

    fn initial() -> WatchOptions {
        WatchOptions { initial_events: Some(true), bookmarks: true, ..WatchOptions::default() }
    }

    #[tokio::test]
    async fn the_initial_events_and_what_happens_meanwhile_are_one_state_in_the_end() {
        let api = filled(700).await;
        let mut watch = api.watch(&maps(""), Selection::default(), &initial()).unwrap();
        let mut follower = Follower::default();
        for round in 0..12 {
            follower.take(&mut watch, 60);
            if round % 3 == 0 {
                watch.release();
            }
            let here = follower.seen.min(690);
            // Before the place where the watch is, at it, and behind it.
            for i in [3, here / 2, here, here + 5, 699] {
                put(&api, &format!("m{i:04}"), &format!("round {round}")).await;
                put(&api, &format!("m{i:04}-{round}"), "new").await;
            }
            remove(&api, &format!("m{:04}", 10 + round)).await;
            remove(&api, &format!("m{:04}", 600 + round)).await;
        }
        assert_eq!(follower.bookmark, None, "it is not told of the end before it is there");
        follower.take(&mut watch, usize::MAX);
        follower.assert_knows(&api);
        assert_eq!(follower.bookmark, Some(api.cache.kind(&configmap::KIND).last()));
        put(&api, "m0003", "last").await;
        follower.take(&mut watch, usize::MAX);
        follower.assert_knows(&api);
    }

    #[tokio::test]
    async fn what_is_let_go_of_comes_again_and_nothing_comes_twice() {
        let api = filled(300).await;
        let mut watch = api.watch(&maps(""), Selection::default(), &initial()).unwrap();
        let mut follower = Follower::default();
        while follower.bookmark.is_none() {
            follower.take(&mut watch, 1);
            watch.release();
            assert!(watch.ready.is_empty() && watch.ready.capacity() <= KEPT, "nothing is kept");
            let Ok(WatchEvent::Bookmark { revision, .. }) = watch.bookmark() else { panic!("no bookmark") };
            assert_eq!(revision == 0, follower.bookmark.is_none(), "{revision}");
        }
        for i in 0..300 {
            put(&api, &format!("m{i:04}"), "second").await;
        }
        let before = follower.seen;
        while follower.seen < before + 300 {
            follower.take(&mut watch, 7);
            watch.release();
        }
        follower.assert_knows(&api);
        assert!(watch.ready().unwrap().is_none());
    }

    #[tokio::test]
    async fn who_comes_after_a_burst_sees_all_of_it_though_memory_has_let_go_of_it() {
        let api = filled(1).await;
        let start = api.cache.head();
        for i in 0..600 {
            put(&api, &format!("m{:04}", i % 400), &format!("{i}")).await;
        }
        api.cache.keep_fresh();
        assert!(api.cache.kind(&configmap::KIND).changes(start, BATCH).is_none(), "memory has all of it");
        let selection = Selection::new(&configmap::KIND, Selector::parse("set=s").unwrap(), &FieldSelector::default());
        let selection = selection.unwrap();
        let options = WatchOptions { resource_version: start.to_string(), ..WatchOptions::default() };
        let mut watch = api.watch(&maps(""), selection, &options).unwrap();
        let mut follower = Follower::default();
        follower.known.insert(maps("m0000").key(), start);
        follower.take(&mut watch, usize::MAX);
        assert_eq!(follower.seen, 600);
        follower.assert_knows(&api);
    }

    #[tokio::test]
    async fn what_the_ring_has_forgotten_is_read_from_the_log_a_little_at_a_time() {
        let api = filled(1).await;
        let start = api.cache.head();
        // More than a ring keeps, of which one change is more than a batch.
        for i in 0..40 {
            put(&api, "m0000", &format!("{i}{}", "x".repeat(200_000))).await;
        }
        put(&api, "m0000-longer-name", "").await;
        assert!(api.cache.kind(&configmap::KIND).changes(start, BATCH).is_none(), "the ring has all of it");
        let options = WatchOptions { resource_version: start.to_string(), ..WatchOptions::default() };
        let mut watch = api.watch(&maps(""), Selection::default(), &options).unwrap();
        let (mut most, mut modified) = (0, 0);
        while let Some(event) = watch.ready().unwrap() {
            modified += usize::from(matches!(event, WatchEvent::Modified(_)));
            most = most.max(watch.ready.len());
        }
        assert_eq!((modified, most), (40, 0));
    }
}
