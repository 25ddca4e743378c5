//! How often each probe went well or not, for `/metrics/probes`; forgotten when its container is no longer probed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Which probe of which container.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    /// `Startup`, `Liveness` or `Readiness`.
    pub role: String,
}

/// How often it went well, and how often not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub successful: u64,
    pub failed: u64,
}

/// The counts of all probes of a node; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Results(Arc<Mutex<BTreeMap<Probed, Count>>>);

/// Counts for one probe while it lives.
#[derive(Debug)]
pub struct Counting {
    results: Results,
    probed: Probed,
}

// === impl Results ===

impl Results {
    /// Counts from zero until what is returned is dropped.
    pub fn begin(&self, probed: Probed) -> Counting {
        self.0.lock().expect("no panic while held").insert(probed.clone(), Count::default());
        Counting { results: self.clone(), probed }
    }

    /// All counts, in order.
    pub fn all(&self) -> Vec<(Probed, Count)> {
        let all = self.0.lock().expect("no panic while held");
        all.iter().map(|(probed, count)| (probed.clone(), *count)).collect()
    }
}

// === impl Counting ===

impl Counting {
    /// One more.
    pub fn add(&self, successful: bool) {
        let mut all = self.results.0.lock().expect("no panic while held");
        // The end of the run before may have come later than the beginning of this one.
        let count = all.entry(self.probed.clone()).or_default();
        *(if successful { &mut count.successful } else { &mut count.failed }) += 1;
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.results.0.lock().expect("no panic while held").remove(&self.probed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_counted_while_it_lives() {
        let results = Results::default();
        let probed = Probed { pod: "p".into(), role: "Liveness".into(), ..Probed::default() };
        let counting = results.begin(probed.clone());
        for successful in [true, true, false] {
            counting.add(successful);
        }
        assert_eq!(results.all(), [(probed.clone(), Count { successful: 2, failed: 1 })]);
        let again = results.begin(probed.clone());
        drop(counting);
        again.add(true);
        assert_eq!(results.all(), [(probed, Count { successful: 1, failed: 0 })], "the run before ended late");
        drop(again);
        assert!(results.all().is_empty());
    }
}
