//! How long to wait before another failed pod of a node is replaced, so that a node that refuses a pod is not asked without end.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;

use crate::reconcile::Key;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(900);

/// The waits of all DaemonSets. They are lost with the process, which only makes them begin anew.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<HashMap<Key, Waits>>);

/// The waits of the nodes of one DaemonSet, as long as its specification is the same.
#[derive(Debug, Default)]
struct Waits {
    uid: Box<str>,
    generation: i64,
    nodes: HashMap<String, Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Timestamp,
    duration: Duration,
}

// === impl Failures ===

impl Failures {
    /// Until when failed pods of a node stay as they are.
    pub(super) fn waits(&self, key: &Key, uid: &str, generation: i64, now: Timestamp) -> HashMap<String, Timestamp> {
        let mut all = self.0.lock().expect("no panic while held");
        let Some(waits) = all.get_mut(key) else { return HashMap::new() };
        if *waits.uid != *uid || waits.generation != generation {
            all.remove(key);
            return HashMap::new();
        }
        waits.nodes.retain(|_, w| now < w.since + 2 * LONGEST);
        waits.nodes.iter().map(|(node, w)| (node.clone(), w.since + w.duration)).collect()
    }

    /// A failed pod of a node is being replaced.
    pub(super) fn replaced(&self, key: &Key, uid: &str, generation: i64, node: &str, now: Timestamp) {
        let mut all = self.0.lock().expect("no panic while held");
        let waits = all.entry(key.clone()).or_default();
        if *waits.uid != *uid || waits.generation != generation {
            *waits = Waits { uid: uid.into(), generation, nodes: HashMap::new() };
        }
        let before = waits.nodes.get(node).map(|w| w.duration);
        let duration = before.map_or(FIRST, |d| (d * 2).min(LONGEST));
        waits.nodes.insert(node.to_owned(), Wait { since: now, duration });
    }

    /// The DaemonSet is gone.
    pub(super) fn forget(&self, key: &Key) {
        self.0.lock().expect("no panic while held").remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_doubles_the_wait_until_the_specification_changes() {
        let failures = Failures::default();
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
        assert_eq!(failures.waits(&key, "u", 1, now + 3 * LONGEST).len(), 0);
        failures.replaced(&key, "u", 1, "a", now);
        assert_eq!(wait(2), None);
    }
}
