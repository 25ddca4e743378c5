//! How long a Job waits before it makes pods again after some have failed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::view::{View, finished_at, is_tracked};
use crate::controllers::Member;
use crate::controllers::pods;

const WAIT_MIN: Duration = Duration::from_secs(10);
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    failures: u32,
    last: Option<Timestamp>,
}

// === impl Record ===

impl Record {
    /// What the pods tell that were counted before this process began to watch.
    pub(super) fn of_counted(view: &View<'_>, members: &[Member]) -> Self {
        let counted = || members.iter().map(|m| &*m.pod).filter(|p| !is_tracked(p));
        let ended_well = |p: &&Pod| pods::phase(p) == "Succeeded";
        let succeeded: Vec<&Pod> = counted().filter(ended_well).collect();
        let failed: Vec<&Pod> = counted().filter(|p| view.is_failed(p)).collect();
        Self::default().with(&succeeded, &failed)
    }

    /// With pods that have ended since.
    pub(super) fn with(self, succeeded: &[&Pod], failed: &[&Pod]) -> Self {
        let success = succeeded.iter().map(|p| finished_at(p)).max();
        let times = failed.iter().map(|p| finished_at(p)).filter(|t| success.is_none_or(|s| *t > s));
        let before = if success.is_some() { Self::default() } else { self };
        times
            .fold(before, |all, time| Self { failures: all.failures.saturating_add(1), last: all.last.max(Some(time)) })
    }

    /// When pods may be made again; `None` is at once.
    pub(super) fn until(self) -> Option<Timestamp> {
        until(self.failures, self.last?)
    }
}

/// When the pod that failed last for an index may be replaced, after as many failures as its annotations say and its own.
pub(super) fn until_replaced(failures: i64, pod: &Pod) -> Option<Timestamp> {
    until(u32::try_from(failures).unwrap_or(u32::MAX).saturating_add(1), finished_at(pod))
}

fn until(failures: u32, last: Timestamp) -> Option<Timestamp> {
    let doublings = failures.checked_sub(1)?;
    last.checked_add(WAIT_MIN.saturating_mul(1 << doublings.min(16)).min(WAIT_MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_ten_minutes() {
        let last: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (failures, seconds) in [(1, 10), (2, 20), (3, 40), (6, 320), (7, 600), (1_000_000, 600)] {
            assert_eq!(until(failures, last), Some(last + Duration::from_secs(seconds)));
        }
        assert_eq!(until(0, last), None);
        assert_eq!(until(1, Timestamp::MAX), None);
    }
}
