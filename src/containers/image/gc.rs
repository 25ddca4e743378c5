//! Room on the disk: which images go when the file system of the store is nearly full.
//!
//! As the kubelet has it: above the high threshold, images that nobody uses go, those first that were used longest ago, until
//! the low one is reached. What an image frees is told by the file system, because layers are shared. Invariant: an image
//! that is pinned, used by a container, or was asked for within the minimum age stays.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::base::fs_stats::FsStats;

/// When images go, and which may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From this part of the disk on, in percent, images go; 100 means never.
    pub high_percent: u8,
    /// They go until no more than this is used.
    pub low_percent: u8,
    /// How long ago an image must have come, or have been asked for.
    pub min_age: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120) }
    }
}

/// What was done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// How full it was before.
    pub space: FsStats,
    /// How much had to be freed.
    pub wanted_bytes: u64,
    pub freed_bytes: u64,
    /// Ids of the images that are gone.
    pub removed: Vec<String>,
    /// A pull was under way, so nothing was removed.
    pub postponed: bool,
}

/// When an image that nobody has mounted was last of interest; only this process remembers.
#[derive(Debug, Default)]
pub(super) struct Interest {
    /// Somebody looked whether it is there: it may be about to be used.
    pub(super) asked: HashMap<String, Timestamp>,
    /// A container that used it is gone.
    pub(super) released: HashMap<String, Timestamp>,
}

/// An image that may go, if it is old enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub id: String,
    /// When it came, or was mounted.
    pub last_used: Timestamp,
}

// === impl Policy ===

impl Policy {
    /// How much has to be freed; 0 below the high threshold.
    pub(super) fn wanted_bytes(&self, space: FsStats) -> u64 {
        if self.high_percent >= 100 || space.used_percent() < u64::from(self.high_percent) {
            return 0;
        }
        let free = u128::from(space.capacity_bytes) * u128::from(100 - self.low_percent.min(100)) / 100;
        (free as u64).saturating_sub(space.available_bytes)
    }

    /// The one that goes first.
    pub(super) fn next(&self, candidates: Vec<Candidate>, interest: &Interest, now: Timestamp) -> Option<String> {
        let latest = |at: Timestamp, of: &HashMap<String, Timestamp>, id: &str| of.get(id).map_or(at, |t| at.max(*t));
        let old = |c: &Candidate| {
            let at = latest(c.last_used, &interest.asked, &c.id);
            Duration::try_from(now.duration_since(at)).unwrap_or_default() >= self.min_age
        };
        let order = |c: &Candidate| latest(c.last_used, &interest.released, &c.id);
        candidates.into_iter().filter(old).min_by(|a, b| order(a).cmp(&order(b)).then(a.id.cmp(&b.id))).map(|c| c.id)
    }
}

// === impl Interest ===

impl Interest {
    pub(super) fn ask(&mut self, id: &str) {
        self.asked.insert(id.to_owned(), Timestamp::now());
    }

    pub(super) fn release(&mut self, id: &str) {
        self.released.insert(id.to_owned(), Timestamp::now());
    }

    pub(super) fn forget(&mut self, id: &str) {
        self.asked.remove(id);
        self.released.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn space(used: u64) -> FsStats {
        FsStats { capacity_bytes: 1000, available_bytes: 1000 - used, ..FsStats::default() }
    }

    #[test]
    fn nothing_goes_below_the_high_threshold_and_then_as_much_as_the_low_one_says() {
        let policy = Policy::default();
        assert_eq!([840, 850, 900, 1000].map(|used| policy.wanted_bytes(space(used))), [0, 50, 100, 200]);
        // 84.1 % counts as 85 %, as in Kubernetes.
        assert_eq!(space(841).used_percent(), 85);
        let never = Policy { high_percent: 100, ..policy };
        assert_eq!(never.wanted_bytes(space(1000)), 0);
        let all = Policy { high_percent: 0, low_percent: 0, ..policy };
        assert_eq!(all.wanted_bytes(space(10)), 10);
        let huge = FsStats { capacity_bytes: u64::MAX, ..FsStats::default() };
        assert_eq!((huge.used_percent(), policy.wanted_bytes(huge) / (u64::MAX / 100)), (100, 20));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_young_or_wanted_stays() {
        let policy = Policy::default();
        let candidate = |id: &str, used: i64| Candidate { id: id.into(), last_used: at(used) };
        let mut left = vec![candidate("new", 990), candidate("b", 200), candidate("a", 200), candidate("old", 100)];
        left.extend([candidate("asked", 50), candidate("ran-long", 10)]);
        let interest = Interest {
            asked: [("asked".to_owned(), at(950))].into(),
            released: [("ran-long".to_owned(), at(999))].into(),
        };
        let mut order = Vec::new();
        while let Some(id) = policy.next(left.clone(), &interest, at(1000)) {
            left.retain(|c| c.id != id);
            order.push(id);
        }
        assert_eq!(order, ["old", "a", "b", "ran-long"]);
        // A clock that was set back makes nothing old.
        assert_eq!(policy.next(vec![candidate("old", 100)], &Interest::default(), at(0)), None);
    }
}
