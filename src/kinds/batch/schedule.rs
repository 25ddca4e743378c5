//! When a CronJob's Jobs are due: five fields as in crontab(5), or a descriptor such as `@hourly` or `@every 90m`.
//!
//! A schedule is due in each minute whose local time fits all fields. So what falls into an hour that a change of clocks skips is not
//! due on that day, and what falls into one that it repeats is due twice, as with Kubernetes' own parser (robfig/cron v3).

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// A schedule that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Recurrence);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Recurrence {
    Every(Duration),
    Fields(Fields),
}

/// One bit for each value that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether days of the month and of the week must both fit, which is so where one of them is `*`.
    both_days: bool,
}

/// What a field may say.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// What never comes in so many years never comes.
const YEARS_MAX: i16 = 5;
/// More than that many seconds in `@every` are more than there are.
const EVERY_NANOS_MAX: u128 = i64::MAX as u128;

// === impl Schedule ===

impl Schedule {
    /// Reads a schedule; an error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".into());
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let (minutes, hours) = (field(minutes, &MINUTES)?.0, field(hours, &HOURS)?.0);
        let (days, any_day) = field(days, &DAYS)?;
        let months = field(months, &MONTHS)?.0;
        let (weekdays, any_weekday) = field(weekdays, &WEEKDAYS)?;
        let both_days = any_day || any_weekday;
        Ok(Self(Recurrence::Fields(Fields { minutes, hours, days, months, weekdays, both_days })))
    }

    /// The first time after `after` at which it is due; `None` where it never is.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = Timestamp::from_second(after.as_second()).ok()?;
        match &self.0 {
            Recurrence::Every(delay) => second.checked_add(*delay).ok(),
            Recurrence::Fields(fields) => fields.next(second.checked_add(1.second()).ok()?, zone),
        }
    }

    /// The last time in `(after, until]` at which it is due, where `first` is the first one.
    pub fn last(&self, first: Timestamp, until: Timestamp, zone: &TimeZone) -> Timestamp {
        if let Recurrence::Every(delay) = &self.0 {
            let seconds = delay.as_secs().max(1) as i64;
            let passed = (until.as_second() - first.as_second()) / seconds * seconds;
            return first.checked_add(passed.seconds()).unwrap_or(first);
        }
        // Where one is due after a moment, one is after any earlier moment: halve what is between.
        let (mut last, mut low, mut high) = (first, first.as_second(), until.as_second());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let due = Timestamp::from_second(middle - 1).ok().and_then(|t| self.next(t, zone));
            match due.filter(|t| *t <= until) {
                Some(due) => (last, low) = (due, due.as_second()),
                None => high = middle - 1,
            }
        }
        last
    }
}

/// The zone of a name of the IANA database, spelled as there. The machine's database comes first, then the one in this program.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    let unknown = || format!("unknown time zone {name}");
    if matches!(name, "" | "UTC") {
        return Ok(TimeZone::UTC);
    }
    let found = TimeZone::get(name).map_err(|_| unknown())?;
    if found.iana_name() == Some(name) { Ok(found) } else { Err(unknown()) }
}

// === impl Fields ===

impl Fields {
    fn next(&self, from: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let has = |bits: u64, value: i8| bits >> value & 1 == 1;
        // Only whole minutes fit.
        let seconds = (60 - from.as_second().rem_euclid(60)) % 60;
        let mut at = from.checked_add(seconds.seconds()).ok()?.to_zoned(zone.clone());
        // A zone may be apart from UTC by seconds, in the past.
        if at.second() != 0 {
            at = at.checked_add(i64::from(60 - at.second()).seconds()).ok()?;
        }
        let end = at.year().saturating_add(YEARS_MAX);
        loop {
            if at.year() > end {
                return None;
            }
            if !has(self.months, at.month()) {
                let first = at.date().first_of_month().checked_add(1.month()).ok()?;
                at = later(&at, first.to_zoned(zone.clone()).ok()?)?;
            } else if !self.fits_day(&at) {
                at = later(&at, at.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?)?;
            } else if !has(self.hours, at.hour()) {
                at = at.checked_add(i64::from(60 - at.minute()).minutes()).ok()?;
            } else if !has(self.minutes, at.minute()) {
                let rest = self.minutes >> at.minute();
                let wait = if rest == 0 { 60 - i64::from(at.minute()) } else { i64::from(rest.trailing_zeros()) };
                at = at.checked_add(wait.minutes()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
    }

    fn fits_day(&self, at: &Zoned) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.both_days { day && weekday } else { day || weekday }
    }
}

/// The later of a time and the beginning of a day; where a change of clocks makes them one, a minute on.
fn later(at: &Zoned, day: Zoned) -> Option<Zoned> {
    if day > *at { Some(day) } else { at.checked_add(1.minute()).ok() }
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let duration = text.strip_prefix("@every ").ok_or_else(|| format!("unrecognized descriptor: {text}"))?;
            let nanos = duration_nanos(duration)
                .ok_or_else(|| format!("failed to parse duration {text}: time: invalid duration {duration:?}"))?;
            // Whole seconds, and one at least.
            let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(0).max(1);
            return Ok(Schedule(Recurrence::Every(Duration::from_secs(seconds))));
        }
    };
    Schedule::parse(fields)
}

/// A duration as Go reads it, such as `1h30m` or `-1.5s`.
fn duration_nanos(text: &str) -> Option<i128> {
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("\u{3bc}s", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let is_negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    let mut total: u128 = 0;
    while !rest.is_empty() || total == 0 && rest == text {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let (_, nanos) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') {
            return None;
        }
        let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // More digits than these say nothing of a nanosecond.
        let part = &part[..part.len().min(18)];
        let scale = 10_u128.pow(part.len() as u32);
        let part: u128 = if part.is_empty() { 0 } else { part.parse().ok()? };
        total = total.checked_add(whole.checked_mul(*nanos)?)?.checked_add(part * nanos / scale)?;
        if total > EVERY_NANOS_MAX {
            return None;
        }
        rest = after;
    }
    let total = total as i128;
    Some(if is_negative { -total } else { total })
}

/// The values of a list of ranges, and whether one of them is everything.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut any) = (0, false);
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (more, all) = range(part, bounds)?;
        bits |= more;
        any |= all;
    }
    Ok((bits, any))
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let mut any = matches!(ends[0], "*" | "?");
    let (low, mut high) = if any {
        (bounds.min, bounds.max)
    } else {
        let low = number_or_name(ends[0], bounds)?;
        match ends[..] {
            [_] => (low, low),
            [_, high] => (low, number_or_name(high, bounds)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            // `N/step` is from N to the end.
            if ends.len() == 1 {
                high = bounds.max;
            }
            any &= step <= 1;
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    let (min, max) = (bounds.min, bounds.max);
    if low < min {
        return Err(format!("beginning of range ({low}) below minimum ({min}): {text}"));
    }
    if high > max {
        return Err(format!("end of range ({high}) above maximum ({max}): {text}"));
    }
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {text}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {text}"));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok(((low..=high).step_by(step).fold(0, |bits, value| bits | 1 << value), any))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    let lower = text.to_lowercase();
    match bounds.names.iter().position(|name| *name == lower) {
        Some(place) => Ok(bounds.min + place as u64),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed: Result<i64, _> = text.parse();
    match parsed {
        Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {text}")),
        Ok(n) => Ok(n as u64),
        Err(error) => {
            let why = match error.kind() {
                std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str, name: &str) -> String {
        let due = Schedule::parse(schedule).unwrap().next(after.parse().unwrap(), &zone(name).unwrap());
        due.map(|t| t.to_string()).unwrap_or_default()
    }

    #[test]
    fn schedules_are_due_when_all_fields_fit() {
        for (schedule, after, want) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("* * * * *", "2026-01-01T00:00:59.5Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"),
            ("5/20 3 * * *", "2026-01-01T03:25:00Z", "2026-01-01T03:45:00Z"),
            ("0 9-17/4 * * mon-fri", "2026-01-02T17:00:00Z", "2026-01-05T09:00:00Z"),
            ("0 0 29 2 *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", ""),
            // Either day fits where both are given, both must where one is a star.
            ("0 0 13 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 */2 * fri", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
            ("0 0 * * sat", "2026-01-01T00:00:00Z", "2026-01-03T00:00:00Z"),
            ("0 0 ? dec ?", "2026-01-01T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("@yearly", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("@weekly", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00.7Z", "2026-01-01T01:30:00Z"),
            ("@every 10ms", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
            ("@every -1.5s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), want, "{schedule}");
        }
    }

    #[test]
    fn hours_that_a_change_of_clocks_skips_are_left_out_and_those_it_repeats_come_twice() {
        let berlin = "Europe/Berlin";
        assert_eq!(next("30 2 * * *", "2026-03-28T02:00:00Z", berlin), "2026-03-30T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-24T12:00:00Z", berlin), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", berlin), "2026-10-25T01:30:00Z");
        assert_eq!(next("0 9 * * *", "2026-07-01T00:00:00Z", "America/New_York"), "2026-07-01T13:00:00Z");
        assert_eq!(next("0 9 * * *", "2026-07-01T00:00:00Z", "Asia/Kathmandu"), "2026-07-01T03:15:00Z");
        // A day without midnight.
        assert_eq!(next("0 0 * * *", "2018-11-03T04:00:00Z", "America/Sao_Paulo"), "2018-11-05T02:00:00Z");
        for (name, known) in
            [("Mars", false), ("europe/berlin", false), ("UTC", true), ("Etc/UTC", true), ("../x", false)]
        {
            assert_eq!(zone(name).is_ok(), known, "{name}");
        }
    }

    #[test]
    fn the_last_time_due_is_found_without_counting_all() {
        let last = |schedule: &str, from: &str, until: &str| {
            let schedule = Schedule::parse(schedule).unwrap();
            let first = schedule.next(from.parse().unwrap(), &TimeZone::UTC).unwrap();
            schedule.last(first, until.parse().unwrap(), &TimeZone::UTC).to_string()
        };
        for (schedule, want) in [
            ("* * * * *", "2026-07-01T12:34:00Z"),
            ("*/7 * * * *", "2026-07-01T12:28:00Z"),
            ("0 0 1 1 *", "2026-01-01T00:00:00Z"),
            ("59 23 31 * *", "2026-05-31T23:59:00Z"),
            ("0 12 * * wed", "2026-07-01T12:00:00Z"),
            ("@every 7m", "2026-07-01T12:30:30Z"),
        ] {
            assert_eq!(last(schedule, "2001-02-03T04:05:30Z", "2026-07-01T12:34:56Z"), want, "{schedule}");
        }
        assert_eq!(last("0 * * * *", "2026-07-01T11:00:00Z", "2026-07-01T12:00:00Z"), "2026-07-01T12:00:00Z");
    }

    #[test]
    fn what_is_no_schedule_is_refused_in_words() {
        for (schedule, why) in [
            ("", "empty spec string"),
            ("foo", "expected exactly 5 fields, found 1: [foo]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("5-2 * * * *", "beginning of range (5) beyond end of range (2): 5-2"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
            ("@fortnightly", "unrecognized descriptor: @fortnightly"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every ", "failed to parse duration @every : time: invalid duration \"\""),
            ("@every 1", "failed to parse duration @every 1: time: invalid duration \"1\""),
            ("@every 1.2.3s", "failed to parse duration @every 1.2.3s: time: invalid duration \"1.2.3s\""),
            ("@every 9999999h9999999h", "failed to parse duration @every 9999999h9999999h"),
        ] {
            let error = Schedule::parse(schedule).unwrap_err();
            assert!(error.starts_with(why), "{schedule}: {error}");
        }
        // A step beyond the end leaves the first value.
        assert_eq!(next("*/99999999999 * * * *", "2026-01-01T00:00:00Z", "UTC"), "2026-01-01T01:00:00Z");
    }
}
