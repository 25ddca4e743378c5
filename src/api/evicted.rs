//! Objects that the cache has let go of while somebody still reads them: counted, and bounded.
//!
//! A list keeps the objects that it shows until its client has them, also when they have long been replaced. Each costs the
//! memory of a whole object, and how many there are depends on how much is written meanwhile. So what the ring forgets and
//! somebody else still has is remembered here without being kept; beyond [`BYTES_MAX`] readers are ended, the oldest first.
//! Invariant: after a commit was published, either no more than this is kept, or nobody is left who could be ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use crate::base::object::Object;

/// What readers keep of what is past.
pub const BYTES_MAX: usize = 32 << 20;
/// So much more may be past before it is looked at again whether it is still kept.
const STEP_BYTES: usize = BYTES_MAX / 8;

/// Ends a reader; false where there is none.
type EndReader = Box<dyn Fn() -> bool + Send + Sync>;

/// What is past and still kept.
#[derive(Default)]
pub struct Evicted {
    kept: Mutex<Kept>,
    end_reader: OnceLock<EndReader>,
}

#[derive(Default)]
struct Kept {
    objects: VecDeque<(Weak<Object>, usize)>,
    /// What they took when it was last looked at, and since.
    bytes: usize,
    /// What they took when it was last looked at.
    known_bytes: usize,
}

// === impl Evicted ===

impl Evicted {
    /// How readers are ended; the first one counts.
    pub fn ends_readers(&self, end_reader: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.end_reader.set(Box::new(end_reader));
    }

    /// The cache lets go of an object.
    pub(super) fn add(&self, object: &Arc<Object>) {
        // The cache's own reference is still there.
        if Arc::strong_count(object) > 1 {
            let mut kept = self.lock();
            kept.bytes += object.weight();
            kept.objects.push_back((Arc::downgrade(object), object.weight()));
        }
    }

    /// Ends readers while too much is kept. No lock may be held that a reader's end needs.
    pub(super) fn settle(&self) {
        {
            let kept = self.lock();
            if kept.bytes <= BYTES_MAX || kept.bytes < kept.known_bytes + STEP_BYTES {
                return;
            }
        }
        while self.bytes() > BYTES_MAX && self.end_reader.get().is_some_and(|end_reader| end_reader()) {}
    }

    /// The bytes that are kept now.
    pub fn bytes(&self) -> usize {
        let mut kept = self.lock();
        kept.objects.retain(|(object, _)| object.strong_count() > 0);
        kept.bytes = kept.objects.iter().map(|(_, bytes)| bytes).sum();
        kept.known_bytes = kept.bytes;
        if kept.objects.capacity() > 4 * kept.objects.len() {
            let len = 2 * kept.objects.len();
            kept.objects.shrink_to(len);
        }
        kept.bytes
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic while held")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    fn object(bytes: usize) -> Arc<Object> {
        let value = json!({"metadata": {"name": "x"}, "data": {"a": "x".repeat(bytes)}});
        Arc::new(Object::new("/core/configmaps/n/x".into(), 1, &value, Box::default()))
    }

    #[test]
    fn readers_are_ended_when_what_they_keep_is_too_much_and_no_sooner() {
        let evicted = Evicted::default();
        let readers: Arc<Mutex<VecDeque<Vec<Arc<Object>>>>> = Arc::default();
        let ended = Arc::new(AtomicUsize::new(0));
        evicted.ends_readers({
            let (readers, ended) = (readers.clone(), ended.clone());
            move || {
                let reader = readers.lock().unwrap().pop_front();
                ended.fetch_add(usize::from(reader.is_some()), Ordering::SeqCst);
                reader.is_some()
            }
        });
        let mut most = 0;
        for round in 0..40 {
            let read: Vec<_> = (0..64).map(|_| object(64 << 10)).collect();
            // Every other round nobody reads.
            if round % 2 == 0 {
                readers.lock().unwrap().push_back(read.clone());
            }
            for past in read {
                evicted.add(&past);
                drop(past);
                evicted.settle();
                let kept: usize = readers.lock().unwrap().iter().flatten().map(|object| object.weight()).sum();
                most = most.max(kept);
            }
        }
        let left = readers.lock().unwrap().len();
        assert!(most < BYTES_MAX + (8 << 20), "{most}");
        assert!((6..10).contains(&left) && left + ended.load(Ordering::SeqCst) == 20, "{left}");
        readers.lock().unwrap().clear();
        assert_eq!(evicted.bytes(), 0);
    }

    #[test]
    fn what_nobody_else_has_is_not_remembered() {
        let evicted = Evicted::default();
        (0..100).for_each(|_| evicted.add(&object(1 << 10)));
        assert_eq!(evicted.lock().objects.len(), 0);
    }
}
