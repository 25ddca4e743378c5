//! The watch cache: every living object of every kind in an `Arc`, and each kind's recent changes.
//!
//! It is the store's [`Sink`]: the writer feeds it before a commit is acknowledged, so what it shows is what was
//! acknowledged, in order. Watchers pull: each keeps the revision it has seen and reads on from the ring when woken, so a
//! slow watcher costs nothing and is told `410 Gone` when the ring (and then the log) has moved on without it. What lists
//! still show when the ring forgets it is counted ([`Evicted`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use serde_json::Value;

use super::evicted::Evicted;
use crate::base::json::text;
use crate::base::object::{Draft, Object};
use crate::base::signal::{Receiver, Signal};
use crate::kinds::apiextensions::customresourcedefinition;
use crate::kinds::registry::{self, Registry};
use crate::kinds::{KindRef, Volatile};
use crate::store::{Change, Error, Page, Sink, Store};

/// Changes that a kind's ring keeps at most.
const RING_EVENTS: usize = 4096;
/// Bytes of memory that a kind's ring keeps at most, about.
const RING_BYTES: usize = 6 << 20;
/// Changes back which followers are expected to be still looking: older ones lose the typed views of what is past.
const RING_FRESH: usize = 256;

/// What the defaults of a custom kind may take in all objects that are stored without them, and in one of them: a definition
/// of a few bytes would otherwise multiply what others have stored.
const DEFAULTS_BYTES_MAX: usize = 128 << 20;
const OBJECT_DEFAULTS_BYTES_MAX: usize = 4 << 20;

/// All kinds' objects; cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    kinds: Registry,
    /// By the prefix of their keys.
    kind_caches: RwLock<HashMap<String, Arc<KindCache>>>,
    /// What has changed of kinds that are being read from the store, by prefix. The store is never asked under a lock of the
    /// cache: whoever writes holds the store's when it tells of a change.
    arriving: Mutex<HashMap<String, Vec<Change>>>,
    head: AtomicU64,
    evicted: Evicted,
}

/// One kind's objects and recent changes.
pub struct KindCache {
    /// The kind whose form is stored.
    pub kind: KindRef,
    /// Everything up to this revision was loaded, and is not taken again where it is told late.
    loaded: u64,
    content: RwLock<Content>,
    changed: Signal,
}

#[derive(Default)]
struct Content {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    ring: VecDeque<Event>,
    ring_bytes: usize,
    /// Changes after this revision are all in the ring.
    ring_after: u64,
    /// The revision of the last change.
    last: u64,
}

/// How much is read at once: so many, and no more once they have so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub count: usize,
    pub bytes: usize,
}

/// A change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: u64,
    /// The object; its last state where `deleted`.
    pub object: Arc<Object>,
    /// What it was before; `None` where it is new or where history no longer tells.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
}

/// What a write sends through the store beside the bytes, and where it finds the object afterwards.
#[derive(Debug)]
pub struct Pending {
    pub draft: Draft,
    pub done: OnceLock<Arc<Object>>,
}

// === impl Cache ===

impl Cache {
    /// Loads everything of the built-in kinds that lives in the store and from then on follows it.
    pub fn load(store: &dyn Store) -> Result<Self, Error> {
        let (kinds, head) = (Registry::new(), store.head());
        let mut kind_caches = HashMap::new();
        for kind in kinds.snapshot().stored() {
            kind_caches
                .insert(kind.prefix(), Arc::new(KindCache::load(kind, store.range(&kind.prefix(), 0, "", 0)?, head)?));
        }
        let (kind_caches, head) = (RwLock::new(kind_caches), AtomicU64::new(head));
        let cache =
            Self(Arc::new(Inner { kinds, kind_caches, arriving: Mutex::default(), head, evicted: Evicted::default() }));
        store.attach(Box::new(cache.clone()));
        cache.load_defined(store);
        Ok(cache)
    }

    /// Lets go of changes that the log has as well, but for the newest: when nothing happens, nobody is on the way to them. Who
    /// comes later from further back reads the log.
    pub fn keep_fresh(&self) {
        let kind_caches: Vec<_> = self.0.kind_caches.read().expect("no panic while held").values().cloned().collect();
        for kind_cache in kind_caches.iter().filter(|of| of.kind.volatile() == Volatile::Never) {
            kind_cache.content.write().expect("no panic while held").keep_fresh(&self.0.evicted);
        }
        self.0.evicted.settle();
    }

    /// Serves the kinds whose definitions are stored, before anybody looks for them.
    fn load_defined(&self, store: &dyn Store) {
        for definition in self.kind(&customresourcedefinition::KIND).list("", "") {
            let kinds = match customresourcedefinition::kinds(&definition.value()) {
                Ok(kinds) => kinds,
                Err(error) => {
                    tracing::error!(name = %definition.meta.name, %error, "a stored definition cannot be served");
                    continue;
                }
            };
            if let Err(error) = self.set_kinds(store, &[], &kinds, true) {
                tracing::error!(name = %definition.meta.name, %error, "the objects of a custom kind cannot be read");
            }
        }
    }

    /// Serves the kinds of a definition in the place of those that it had before; `new` begins with the one that is stored,
    /// and `false` beside it says that it is not served. With `reload` what is stored is read anew, in its form of now, and
    /// watches of what was read before end.
    pub fn set_kinds(
        &self,
        store: &dyn Store,
        old: &[KindRef],
        new: &[(KindRef, bool)],
        reload: bool,
    ) -> Result<(), Error> {
        let is_free = |kind: &KindRef| {
            let is_ours = |other: &KindRef| {
                other.group() == kind.group() && (other.plural() == kind.plural() || other.version() == kind.version())
            };
            !registry::builtin().iter().any(is_ours)
        };
        if let Some((taken, _)) = new.iter().find(|(kind, _)| !is_free(kind)) {
            tracing::warn!(kind = ?taken, "a custom kind is not served: the server has kinds of that group and version");
            self.0.kinds.replace(old, &[]);
            return Ok(());
        }
        if let Some((stored, _)) = new.first()
            && (reload || self.served(stored).is_none())
        {
            self.read_kind(store, stored)?;
        }
        let served: Vec<KindRef> = new.iter().filter(|(_, served)| *served).map(|(kind, _)| kind.clone()).collect();
        self.0.kinds.replace(old, &served);
        if new.is_empty()
            && let Some(gone) = old.first()
        {
            self.0.kind_caches.write().expect("no panic while held").remove(&gone.prefix());
        }
        Ok(())
    }

    /// The kinds that are served.
    pub fn kinds(&self) -> &Registry {
        &self.0.kinds
    }

    /// Serves a kind from now on, with what the store has of it.
    pub fn add_kind(&self, store: &dyn Store, kind: KindRef) -> Result<(), Error> {
        if kind.owns_storage() && self.served(&kind).is_none() {
            self.read_kind(store, &kind)?;
        }
        self.0.kinds.add(kind);
        Ok(())
    }

    /// Reads what the store has of a kind, with what is committed meanwhile, in the place of what was read before.
    fn read_kind(&self, store: &dyn Store, kind: &KindRef) -> Result<(), Error> {
        let prefix = kind.prefix();
        let arriving = || self.0.arriving.lock().expect("no panic while held");
        arriving().insert(prefix.clone(), Vec::new());
        let head = store.head();
        let read = store.range(&prefix, head, "", 0).and_then(|page| KindCache::load(kind, page, head));
        // Nothing is told while this is held.
        let mut kind_caches = self.0.kind_caches.write().expect("no panic while held");
        let changes = arriving().remove(&prefix).unwrap_or_default();
        let kind_cache = Arc::new(read?);
        changes.into_iter().for_each(|change| kind_cache.take(change, &self.0.evicted));
        kind_caches.insert(prefix, kind_cache);
        Ok(())
    }

    /// Serves a kind no longer: its watches end. What is stored of it stays in the store.
    pub fn remove_kind(&self, kind: &KindRef) {
        self.0.kinds.remove(kind);
        let prefix = kind.prefix();
        if !self.0.kinds.snapshot().stored().any(|other| other.prefix() == prefix) {
            self.0.kind_caches.write().expect("no panic while held").remove(&prefix);
        }
    }

    /// The objects of a kind (of its stored form); none for a kind that is not served.
    pub fn kind(&self, kind: &KindRef) -> Arc<KindCache> {
        self.served(kind).unwrap_or_else(|| Arc::new(KindCache::new(kind.stored(), 0, BTreeMap::new())))
    }

    /// The objects of a kind, if it is served.
    pub fn served(&self, kind: &KindRef) -> Option<Arc<KindCache>> {
        kind.with_prefix(|prefix| self.0.kind_caches.read().expect("no panic while held").get(prefix).cloned())
    }

    /// What it has let go of, and somebody still keeps.
    pub fn evicted(&self) -> &Evicted {
        &self.0.evicted
    }

    /// The revision up to which the cache is complete.
    pub fn head(&self) -> u64 {
        self.0.head.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cache(head {})", self.head())
    }
}

impl Sink for Cache {
    fn publish(&mut self, changes: Vec<Change>) {
        let Some(head) = changes.last().map(|c| c.revision) else { return };
        let kind_caches = self.0.kind_caches.read().expect("no panic while held");
        let mut arriving = self.0.arriving.lock().expect("no panic while held");
        let mut touched: Vec<&Arc<KindCache>> = Vec::new();
        for change in changes {
            let prefix_end = change.key.match_indices('/').nth(2).map_or(change.key.len(), |(i, _)| i + 1);
            if let Some(of_kind) = arriving.get_mut(&change.key[..prefix_end]) {
                of_kind.push(change.clone());
            }
            let Some(kind_cache) = kind_caches.get(&change.key[..prefix_end]) else {
                // Its kind went while it was written.
                Pending::settle(&change);
                continue;
            };
            if !touched.iter().any(|t| Arc::ptr_eq(t, kind_cache)) {
                touched.push(kind_cache);
            }
            kind_cache.take(change, &self.0.evicted);
        }
        self.0.head.store(head, Ordering::Release);
        touched.iter().for_each(|kind_cache| kind_cache.changed.tell());
        self.0.evicted.settle();
    }

    fn forget(&mut self, through: u64) {
        let kind_caches = self.0.kind_caches.read().expect("no panic while held");
        kind_caches.values().for_each(|kind_cache| {
            kind_cache.content.write().expect("no panic while held").forget(through, &self.0.evicted)
        });
        self.0.evicted.settle();
    }
}

// === impl KindCache ===

impl KindCache {
    fn new(kind: &KindRef, loaded: u64, objects: BTreeMap<Arc<str>, Arc<Object>>) -> Self {
        let content = Content { objects, ring_after: loaded, last: loaded, ..Content::default() };
        Self { kind: kind.clone(), loaded, content: RwLock::new(content), changed: Signal::default() }
    }

    /// The objects that the store had at a revision.
    fn load(kind: &KindRef, page: Page, revision: u64) -> Result<Self, Error> {
        let (mut objects, mut left) = (BTreeMap::new(), DEFAULTS_BYTES_MAX);
        for entry in page.entries {
            let object = decode_within(kind, entry.key.clone(), entry.value, entry.revision, &mut left)
                .map_err(|e| Error::Failed(format!("{} cannot be decoded: {e}", entry.key)))?;
            objects.insert(entry.key, Arc::new(object));
        }
        Ok(Self::new(kind, revision, objects))
    }

    /// The object under a key.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// The objects whose keys begin with `prefix` and sort after `after`, in key order, and the revision they show.
    pub fn list(&self, prefix: &str, after: &str) -> Vec<Arc<Object>> {
        let content = self.read();
        let low = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let range = content.objects.range::<str, _>((low, Bound::Unbounded));
        range.take_while(|(k, _)| k.starts_with(prefix)).map(|(_, o)| o.clone()).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision of the kind's last change.
    pub fn last(&self) -> u64 {
        self.read().last
    }

    /// Some of the objects whose keys begin with `prefix` and sort after `after`, in key order; `None` where something has
    /// changed since a revision. There are no more where there are none.
    pub fn objects_at(&self, revision: u64, prefix: &str, after: &str, batch: Batch) -> Option<Vec<Arc<Object>>> {
        let content = self.read();
        if content.last > revision {
            return None;
        }
        let low = if after > prefix { Bound::Excluded(after) } else { Bound::Included(prefix) };
        let range = content.objects.range::<str, _>((low, Bound::Unbounded));
        let of_prefix = range.take_while(|(k, _)| k.starts_with(prefix)).map(|(_, object)| object);
        Some(batch.of(of_prefix, |object| object.weight()))
    }

    /// The changes after a revision, a batch of them, oldest first; `None` when the ring no longer reaches back so far.
    pub fn changes(&self, after: u64, batch: Batch) -> Option<Vec<Event>> {
        let content = self.read();
        if after < content.ring_after {
            return None;
        }
        let start = content.ring.partition_point(|e| e.revision <= after);
        Some(batch.of(content.ring.iter().skip(start), |event| event.object.weight()))
    }

    /// Wakes on each change.
    pub fn subscribe(&self) -> Receiver {
        self.changed.subscribe()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Content> {
        self.content.read().expect("no panic while held")
    }

    fn take(&self, change: Change, evicted: &Evicted) {
        let object = match Pending::settle(&change) {
            Some(object) => object,
            None => match decode(&self.kind, change.key.clone(), change.value, change.revision) {
                Ok(object) => Arc::new(object),
                Err(error) => {
                    tracing::error!(key = %change.key, %error, "a change cannot be decoded");
                    return;
                }
            },
        };
        if change.revision <= self.loaded {
            return;
        }
        let mut content = self.content.write().expect("no panic while held");
        let previous = if change.deleted {
            content.objects.remove(&change.key)
        } else {
            content.objects.insert(change.key, object.clone())
        };
        content.last = change.revision;
        content.push(Event { revision: change.revision, object, previous, deleted: change.deleted }, evicted);
    }
}

// === impl Batch ===

impl Batch {
    /// So many, of any size.
    pub const fn of_count(count: usize) -> Self {
        Self { count, bytes: usize::MAX }
    }

    fn of<'a, T: Clone + 'a>(self, all: impl Iterator<Item = &'a T>, weight: impl Fn(&T) -> usize) -> Vec<T> {
        let (mut found, mut left) = (Vec::new(), self.bytes);
        for one in all.take(self.count) {
            left = left.saturating_sub(weight(one));
            found.push(one.clone());
            if left == 0 {
                break;
            }
        }
        found
    }
}

// === impl Content ===

impl Content {
    fn push(&mut self, event: Event, evicted: &Evicted) {
        self.ring_bytes += event.weight();
        self.ring.push_back(event);
        while self.ring.len() > RING_EVENTS || (self.ring_bytes > RING_BYTES && self.ring.len() > 1) {
            self.pop(evicted);
        }
        if let Some(old) = self.ring.len().checked_sub(RING_FRESH).and_then(|i| self.ring.get(i)) {
            old.retire();
        }
    }

    fn pop(&mut self, evicted: &Evicted) {
        let Some(old) = self.ring.pop_front() else { return };
        self.ring_bytes -= old.weight();
        self.ring_after = old.revision;
        old.retire();
        old.past().for_each(|object| evicted.add(object));
    }

    /// Drops all changes but the newest.
    fn keep_fresh(&mut self, evicted: &Evicted) {
        while self.ring.len() > RING_FRESH {
            self.pop(evicted);
        }
        self.ring.shrink_to(2 * self.ring.len());
    }

    /// Drops the changes up to a revision: nobody is to resume from before it.
    fn forget(&mut self, through: u64, evicted: &Evicted) {
        while self.ring.front().is_some_and(|e| e.revision <= through) {
            self.pop(evicted);
        }
        self.ring.shrink_to(2 * self.ring.len());
    }
}

// === impl Event ===

impl Event {
    /// Bytes of memory that go when it goes, about: what the newest state takes is counted too, which errs to less memory.
    fn weight(&self) -> usize {
        self.object.weight() + self.previous.as_ref().map_or(0, |p| p.weight())
    }

    /// Nobody is expected to look at what it replaced any more.
    fn retire(&self) {
        self.past().for_each(|object| object.retire());
    }

    /// The objects that are no more once it has happened.
    fn past(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.previous.iter().chain(self.deleted.then_some(&self.object))
    }
}

// === impl Pending ===

impl Pending {
    /// A draft on its way.
    pub fn new(draft: Draft) -> Arc<Self> {
        Arc::new(Self { draft, done: OnceLock::new() })
    }

    /// The object of a change that was written in this process; whoever wrote it finds it.
    fn settle(change: &Change) -> Option<Arc<Object>> {
        let pending = change.payload.clone()?.downcast::<Self>().ok()?;
        let object = Arc::new(pending.draft.at(change.revision));
        let _ = pending.done.set(object.clone());
        Some(object)
    }

    /// The object that the committed draft became.
    pub fn object(&self) -> Arc<Object> {
        self.done.get().expect("an acknowledged commit was published first").clone()
    }
}

/// An object from its stored bytes.
pub fn decode(kind: &KindRef, key: Arc<str>, stored: bytes::Bytes, revision: u64) -> Result<Object, serde_json::Error> {
    decode_within(kind, key, stored, revision, &mut OBJECT_DEFAULTS_BYTES_MAX.clone())
}

/// As [`decode`]; `left` is what defaults may still take. An object for which that is too little has none.
fn decode_within(
    kind: &KindRef,
    key: Arc<str>,
    stored: bytes::Bytes,
    revision: u64,
    left: &mut usize,
) -> Result<Object, serde_json::Error> {
    if kind.as_custom().is_some() {
        return decode_custom(kind, key, &stored, revision, left);
    }
    Ok(Draft::decode(key, stored, |v| kind.field_values(v))?.at(revision))
}

/// An object of a custom kind is restored in the version in which it was written; where nothing says so, that is the one of
/// today.
fn decode_custom(
    kind: &KindRef,
    key: Arc<str>,
    stored: &[u8],
    revision: u64,
    left: &mut usize,
) -> Result<Object, serde_json::Error> {
    let mut value: Value = serde_json::from_slice(stored)?;
    let written = match text(&value, "apiVersion").rsplit_once('/') {
        Some((_, version)) => version.to_owned(),
        None => kind.version().to_owned(),
    };
    let known = kind.in_version(&written);
    let of = known.as_ref().unwrap_or(kind);
    if known.is_some() {
        match of.restore(&mut value, OBJECT_DEFAULTS_BYTES_MAX.min(*left)) {
            Ok(bytes) => *left -= bytes,
            Err(_) => {
                tracing::warn!(%key, "the defaults of a stored object take too much memory: it is shown without them");
                value = serde_json::from_slice(stored)?;
                let _ = of.restore(&mut value, 0);
            }
        }
    }
    let mut fields = of.field_values(&value);
    if let Some(version) = fields.last_mut() {
        *version = written.into();
    }
    Ok(Draft::new(key, &value, fields).at(revision))
}

/// What is stored of an object: of a custom kind also in which version it is written.
pub fn stored_bytes(kind: &KindRef, draft: &Draft) -> bytes::Bytes {
    let Some(version) = kind.as_custom().and_then(|_| draft.fields().last()) else { return draft.stored().clone() };
    let api_version = serde_json::json!(format!("{}/{version}", kind.group()));
    let head = format!("{{\"apiVersion\":{api_version},");
    [head.as_bytes(), &draft.stored()[1..]].concat().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kinds::custom::CustomKind;
    use crate::schema::{CustomNames, Schema};

    fn version(version: &str, field: &str) -> CustomKind {
        let names = CustomNames { definition: "com.example.x.Link", group: "example.com", version, kind: "Link" };
        let spec = json!({"type": "object", "properties": {field: {"type": "string", "default": "d"}}});
        let openapi = json!({"type": "object", "properties": {"spec": spec}});
        CustomKind {
            group: "example.com".into(),
            version: version.into(),
            plural: "links".into(),
            kind: "Link".into(),
            ..CustomKind::bare(Schema::custom(&names, &openapi).unwrap().into())
        }
    }

    #[test]
    fn a_custom_object_is_read_in_the_version_in_which_it_was_written() {
        let kinds = KindRef::versions(vec![version("v2", "b"), version("v1", "a")]);
        let (stored, old) = (&kinds[0], &kinds[1]);
        let key: Arc<str> = "/example.com/links/n/x".into();
        let read = |bytes: bytes::Bytes| decode(stored, key.clone(), bytes, 7).unwrap();
        let value = json!({"metadata": {"name": "x"}, "spec": {}});
        let draft = Draft::new(key.clone(), &value, old.field_values(&value));
        let bytes = stored_bytes(old, &draft);
        assert_eq!(bytes, r#"{"apiVersion":"example.com/v1","metadata":{"name":"x"},"spec":{}}"#);
        let object = read(bytes);
        assert_eq!((object.value()["spec"].clone(), old.version_of(&object)), (json!({"a": "d"}), "v1"));
        assert!(old.has_form_of(&object) && !stored.has_form_of(&object));
        let older = read(r#"{"metadata":{"name":"x"},"spec":{"b":"c"}}"#.into());
        assert_eq!((older.value()["spec"].clone(), stored.version_of(&older)), (json!({"b": "c"}), "v2"), "of today");
        let gone = read(r#"{"apiVersion":"example.com/v0","metadata":{"name":"x"},"spec":{"c":1}}"#.into());
        assert_eq!((gone.value()["spec"].clone(), stored.version_of(&gone)), (json!({"c": 1}), "v0"), "left as it is");
    }
}
