//! Watches: pulled from the kind's ring, resumed from the store's log, ended with 410 when history is gone.

use std::collections::VecDeque;
use std::sync::Arc;

use super::cache::{self, Event};
use super::read::{Selection, parse_version};
use super::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::object::{Draft, Object};
use crate::base::signal::Receiver;
use crate::kinds::{KindRef, Volatile};

/// Events that are taken from the ring at once.
const BATCH: usize = 256;

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
    /// Everything up to this revision was looked at.
    position: u64,
    ready: VecDeque<WatchEvent>,
    changed: Receiver,
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
        let mut ready = VecDeque::new();
        let initial = options.initial_events.unwrap_or(asked == 0);
        let position = if initial {
            let (objects, last) = kind_cache.snapshot(&prefix);
            ready.extend(objects.into_iter().filter(|o| selection.matches(o)).map(WatchEvent::Added));
            if options.initial_events == Some(true) && options.bookmarks {
                ready.push_back(WatchEvent::Bookmark { revision: last.max(asked).max(1), initial: true });
            }
            last
        } else if asked == 0 {
            kind_cache.last()
        } else {
            asked
        };
        Ok(Watch { api: self.clone(), kind: request.kind.clone(), prefix, selection, position, ready, changed })
    }
}

// === impl Watch ===

impl Watch {
    /// The next event; waits for it. An error ends the watch.
    pub async fn next(&mut self) -> Result<WatchEvent> {
        loop {
            if let Some(seen) = self.ready.pop_front() {
                return Ok(seen);
            }
            self.changed.mark_unchanged();
            if self.fill()? {
                continue;
            }
            if self.changed.changed().await.is_err() {
                return Err(Status::unavailable(
                    "the watch ends: the server is shutting down, or the kind is no longer served",
                ));
            }
        }
    }

    /// An event that is ready now.
    pub fn ready(&mut self) -> Result<Option<WatchEvent>> {
        if self.ready.is_empty() {
            self.fill()?;
        }
        Ok(self.ready.pop_front())
    }

    /// The revision that a bookmark may name now: everything before was sent or did not match.
    pub fn bookmark(&mut self) -> Result<WatchEvent> {
        let head = self.api.cache.head();
        let quiet = self.ready.is_empty() && self.api.cache.kind(&self.kind).last() <= self.position;
        Ok(WatchEvent::Bookmark {
            revision: if quiet { head.max(self.position) } else { self.position },
            initial: false,
        })
    }

    /// Looks at what has happened since; true if anything was looked at.
    fn fill(&mut self) -> Result<bool> {
        let kind_cache = self.api.cache.kind(&self.kind);
        let events = match kind_cache.changes(self.position, BATCH) {
            Some(events) => events,
            None => self.from_history()?,
        };
        for event in &events {
            self.position = event.revision;
            if event.object.key.starts_with(&self.prefix) {
                self.ready.extend(self.see(event));
            }
        }
        Ok(!events.is_empty())
    }

    /// Changes that the ring has forgotten but the log has not. The states before are rebuilt from the first change on.
    fn from_history(&self) -> Result<Vec<Event>> {
        let gone =
            || Status::expired(format!("too old resource version: {} ({})", self.position, self.api.store.oldest()));
        if self.kind.stored().volatile() != Volatile::Never {
            return Err(gone());
        }
        let prefix = self.kind.prefix();
        let changes = self.api.store.changes(self.position, &prefix, BATCH).map_err(|_| gone())?;
        if changes.is_empty() {
            return Err(gone());
        }
        let mut events = Vec::with_capacity(changes.len());
        for c in changes {
            let before = self.api.store.range(&c.key, c.revision - 1, "", 1).map_err(|_| gone())?;
            let decode = |key, value, revision| {
                cache::decode(self.kind.stored(), key, value, revision).map(Arc::new).map_err(Status::internal)
            };
            let previous = before.entries.into_iter().find(|e| e.key == c.key);
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
