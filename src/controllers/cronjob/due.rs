//! Which of the times at which a CronJob was due counts now.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::kinds::batch::schedule::Schedule;

/// As many times that were missed are told of.
const MISSED_MAX: i64 = 100;

/// The last time at which it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    /// Whether far more times than this one were missed.
    pub(super) many_missed: bool,
}

/// What a schedule says, in a zone.
#[derive(Debug)]
pub(super) struct Times {
    pub(super) schedule: Schedule,
    pub(super) zone: TimeZone,
}

// === impl Times ===

impl Times {
    /// The last time in `(since, now]`, if there was one; an error is a schedule that is never due.
    pub(super) fn last(&self, since: Timestamp, now: Timestamp) -> Result<Option<Due>, String> {
        let next = |t| self.schedule.next(t, &self.zone);
        let first = next(since);
        let second = first.and_then(next);
        let (Some(first), Some(second)) = (first, second) else {
            return Err("time difference between two schedules is less than 1 second".into());
        };
        if now < first {
            return Ok(None);
        }
        if now < second {
            return Ok(Some(Due { at: first, many_missed: false }));
        }
        // An estimate: as if all were as far apart as the first two.
        let apart = (second.as_second() - first.as_second()).max(1);
        let missed = (now.as_second() - first.as_second()) / apart + 1;
        Ok(Some(Due { at: self.schedule.last(first, now, &self.zone), many_missed: missed > MISSED_MAX }))
    }

    /// When to look again: at the first time after `now`, and a little later, as clocks differ.
    pub(super) fn wake(&self, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let from = match self.last(last, now) {
            Ok(None) => last,
            Ok(Some(due)) => due.at,
            Err(_) => now,
        };
        self.schedule.next(from, &self.zone)?.checked_add(100.milliseconds()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn times(schedule: &str) -> Times {
        Times { schedule: Schedule::parse(schedule).unwrap(), zone: TimeZone::UTC }
    }

    #[test]
    fn the_last_time_counts_and_whether_many_were_missed() {
        let hourly = times("0 * * * *");
        let since = at("2026-01-01T10:00:00Z");
        for (now, want) in [
            ("2026-01-01T10:59:59Z", None),
            ("2026-01-01T11:00:00Z", Some(("2026-01-01T11:00:00Z", false))),
            ("2026-01-01T11:00:30Z", Some(("2026-01-01T11:00:00Z", false))),
            ("2026-01-02T09:30:00Z", Some(("2026-01-02T09:00:00Z", false))),
            ("2026-02-01T09:30:00Z", Some(("2026-02-01T09:00:00Z", true))),
        ] {
            let want = want.map(|(text, many_missed)| Due { at: at(text), many_missed });
            assert_eq!(hourly.last(since, at(now)).unwrap(), want, "{now}");
        }
        let wake = hourly.wake(since, at("2026-01-02T09:30:00Z")).unwrap();
        assert_eq!(wake, at("2026-01-02T10:00:00.1Z"));
        assert_eq!(hourly.wake(since, at("2026-01-01T10:30:00Z")), Some(at("2026-01-01T11:00:00.1Z")));
    }

    #[test]
    fn a_schedule_that_is_never_due_is_told_and_waited_for_no_more() {
        let never = times("0 0 31 2 *");
        let now = at("2026-01-01T10:00:00Z");
        assert!(never.last(now, now).is_err());
        assert_eq!(never.wake(now, now), None);
    }
}
