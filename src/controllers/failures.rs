//! How long to wait before another failed pod is replaced, so that a node that refuses a pod is not asked without end.
//!
//! The waits are counted by place: the node of a DaemonSet's pod, the name of a StatefulSet's.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;

use crate::reconcile::Key;

const FIRST: Duration = Duration::from_secs(1);

/// The waits of all workloads of a kind. They are lost with the process, which only makes them begin anew.
#[derive(Debug)]
pub(super) struct Failures {
    longest: Duration,
    all: Mutex<HashMap<Key, Waits>>,
}

/// The waits of one workload, as long as its specification is the same.
#[derive(Debug, Default)]
struct Waits {
    uid: Box<str>,
    generation: i64,
    places: HashMap<String, Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Timestamp,
    duration: Duration,
}

// === impl Failures ===

impl Failures {
    /// None yet; no wait is longer than this.
    pub(super) fn new(longest: Duration) -> Self {
        Self { longest, all: Mutex::default() }
    }

    /// Until when failed pods of a place stay as they are.
    pub(super) fn waits(&self, key: &Key, uid: &str, generation: i64, now: Timestamp) -> HashMap<String, Timestamp> {
        let mut all = self.all.lock().expect("no panic while held");
        let Some(waits) = all.get_mut(key) else { return HashMap::new() };
        if *waits.uid != *uid || waits.generation != generation {
            all.remove(key);
            return HashMap::new();
        }
        waits.places.retain(|_, w| now < w.since + 2 * self.longest);
        waits.places.iter().map(|(place, w)| (place.clone(), w.since + w.duration)).collect()
    }

    /// A failed pod of a place is being replaced.
    pub(super) fn replaced(&self, key: &Key, uid: &str, generation: i64, place: &str, now: Timestamp) {
        let mut all = self.all.lock().expect("no panic while held");
        let waits = all.entry(key.clone()).or_default();
        if *waits.uid != *uid || waits.generation != generation {
            *waits = Waits { uid: uid.into(), generation, places: HashMap::new() };
        }
        let before = waits.places.get(place).map(|w| w.duration);
        let duration = before.map_or(FIRST, |d| (d * 2).min(self.longest));
        waits.places.insert(place.to_owned(), Wait { since: now, duration });
    }

    /// The workload is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.all.lock().expect("no panic while held").remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_until_the_specification_changes() {
        let failures = Failures::new(Duration::from_secs(900));
        let (key, now) = (Key::new("n", "d"), "2026-01-01T00:00:00Z".parse().unwrap());
        let wait =
            |generation| failures.waits(&key, "u", generation, now).get("a").map(|t| t.duration_since(now).as_secs());
        assert_eq!(wait(1), None);
        for want in [1, 2, 4] {
            failures.replaced(&key, "u", 1, "a", now);
            assert_eq!(wait(1), Some(want));
        }
        for _ in 0..20 {
            failures.replaced(&key, "u", 1, "a", now);
        }
        assert_eq!(wait(1), Some(900));
        assert_eq!(failures.waits(&key, "u", 1, now + 3 * Duration::from_secs(900)).len(), 0);
        failures.replaced(&key, "u", 1, "a", now);
        assert_eq!(wait(2), None);
    }
}
