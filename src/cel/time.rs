//! Instants and durations, as Go reads and writes them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

const DAY_SECONDS: i64 = 86_400;
/// From the first second of year 1 to the last of year 9999, since 1970.
const SECONDS_MIN: i64 = -62_135_596_800;
const SECONDS_MAX: i64 = 253_402_300_799;
const SECOND_NANOS: i64 = 1_000_000_000;

/// An instant of the years 1 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    seconds: i64,
    nanos: u32,
}

/// The parts of an instant in some place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Civil {
    pub year: i64,
    /// From 1.
    pub month: i64,
    pub day: i64,
    /// From 0.
    pub day_of_year: i64,
    /// From Sunday, 0.
    pub day_of_week: i64,
    pub second_of_day: i64,
}

// === impl Time ===

impl Time {
    pub(super) const MIN: Self = Self { seconds: SECONDS_MIN, nanos: 0 };

    /// So many seconds after 1970 began.
    pub(super) fn from_seconds(seconds: i64) -> Option<Self> {
        (SECONDS_MIN..=SECONDS_MAX).contains(&seconds).then_some(Self { seconds, nanos: 0 })
    }

    pub(super) fn seconds(self) -> i64 {
        self.seconds
    }

    pub(super) fn nanos(self) -> u32 {
        self.nanos
    }

    /// So many nanoseconds later.
    pub(super) fn plus(self, nanos: i64) -> Option<Self> {
        let sum = i64::from(self.nanos) + nanos.rem_euclid(SECOND_NANOS);
        let seconds = self.seconds + nanos.div_euclid(SECOND_NANOS) + sum / SECOND_NANOS;
        Self::from_seconds(seconds).map(|time| Self { nanos: (sum % SECOND_NANOS) as u32, ..time })
    }

    /// The nanoseconds since another instant.
    pub(super) fn since(self, other: Self) -> Option<i64> {
        let whole = self.seconds.checked_sub(other.seconds)?.checked_mul(SECOND_NANOS)?;
        whole.checked_add(i64::from(self.nanos) - i64::from(other.nanos))
    }

    /// Reads RFC 3339.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if !text.is_ascii() || bytes.len() < 20 {
            return None;
        }
        let number = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
        };
        let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if signs.iter().any(|(at, sign)| bytes[*at] != *sign) {
            return None;
        }
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if !(1..=12).contains(&month)
            || day < 1
            || day > days_in(year, month)
            || hour > 23
            || minute > 59
            || second > 59
        {
            return None;
        }
        let (nanos, zone) = fraction(&text[19..])?;
        let offset = match zone {
            "Z" => 0,
            _ => offset_minutes(zone, true)? * 60,
        };
        let seconds = days_since_1970(year, month, day) * DAY_SECONDS + hour * 3600 + minute * 60 + second - offset;
        Self::from_seconds(seconds).map(|time| Self { nanos, ..time })
    }

    /// As RFC 3339, in UTC.
    pub(super) fn text(self) -> String {
        let civil = Civil::of(self.seconds);
        let (hour, minute, second) =
            (civil.second_of_day / 3600, civil.second_of_day / 60 % 60, civil.second_of_day % 60);
        let fraction = match self.nanos {
            0 => String::new(),
            nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
        };
        format!("{:04}-{:02}-{:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z", civil.year, civil.month, civil.day)
    }

    /// Its parts, in a zone: a name, or an offset.
    pub(super) fn civil(self, zone: &str) -> Result<Civil, String> {
        let offset = match zone {
            "" | "UTC" | "Local" => 0,
            zone if zone.contains(':') => {
                let wrong = || format!("invalid timezone offset: {zone}");
                offset_minutes(zone, false).ok_or_else(wrong)? * 60
            }
            zone => {
                let found = TimeZone::get(zone).map_err(|_| format!("unknown time zone {zone}"))?;
                let nearest = self.seconds.clamp(Timestamp::MIN.as_second() + 1, Timestamp::MAX.as_second());
                let at = Timestamp::from_second(nearest).map_err(|e| e.to_string())?;
                i64::from(found.to_offset(at).seconds())
            }
        };
        Ok(Civil::of(self.seconds + offset))
    }
}

// === impl Civil ===

impl Civil {
    fn of(seconds: i64) -> Self {
        let days = seconds.div_euclid(DAY_SECONDS);
        // Years are counted from March on, so that the leap day is their last.
        let z = days + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Self {
            year,
            month,
            day,
            day_of_year: days - days_since_1970(year, 1, 1),
            day_of_week: (days + 4).rem_euclid(7),
            second_of_day: seconds.rem_euclid(DAY_SECONDS),
        }
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// A fraction of a second as nanoseconds, and what is behind it.
fn fraction(text: &str) -> Option<(u32, &str)> {
    let Some(digits) = text.strip_prefix(['.', ',']) else { return Some((0, text)) };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let padded = format!("{:0<9}", &digits[..end.min(9)]);
    Some((padded.parse().ok()?, &digits[end..]))
}

/// `+01:30` as minutes; the sign may be left out, unless `signed`.
fn offset_minutes(text: &str, signed: bool) -> Option<i64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (1, &text[1..]),
        b'-' => (-1, &text[1..]),
        _ if signed => return None,
        _ => (1, text),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let number = |digits: &str| {
        let plain = (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<i64>().ok())?
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

/// The nanoseconds of a unit of Go's durations.
fn unit_nanos(unit: &str) -> Option<i64> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND_NANOS,
        "m" => 60 * SECOND_NANOS,
        "h" => 3600 * SECOND_NANOS,
        _ => return None,
    })
}

/// Reads Go's form of durations (`1h2m3.5s`), as nanoseconds.
pub(super) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = |t: &str| t.find(|c: char| !c.is_ascii_digit()).unwrap_or(t.len());
        let end = digits(rest);
        let (whole, behind) = rest.split_at(end);
        let (part, behind) = match behind.strip_prefix('.') {
            Some(behind) => behind.split_at(digits(behind)),
            None => ("", behind),
        };
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let end = behind.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = i128::from(unit_nanos(unit)?);
        let whole: i128 = if whole.is_empty() { 0 } else { whole.get(..19.min(whole.len()))?.parse().ok()? };
        let part = part.get(..18.min(part.len()))?;
        let finer: i128 = if part.is_empty() { 0 } else { part.parse().ok()? };
        total += whole * unit + finer * unit / 10_i128.pow(part.len() as u32);
        if total > 1 << 63 {
            return None;
        }
        rest = behind;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// Reads a duration as schemas have them: Go's form, or amounts with words as `2 days`.
pub(super) fn schema_duration(text: &str) -> Option<i64> {
    if let Some(nanos) = duration(text) {
        return Some(nanos);
    }
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit())?;
    let amount: i64 = trimmed[..end].parse().ok()?;
    let unit = match trimmed[end..].trim() {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        "us" | "\u{b5}s" | "micro" | "micros" | "microsecond" | "microseconds" => 1_000,
        "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => SECOND_NANOS,
        "m" | "min" | "mins" | "minute" | "minutes" => 60 * SECOND_NANOS,
        "h" | "hr" | "hour" | "hours" => 3600 * SECOND_NANOS,
        "d" | "day" | "days" => DAY_SECONDS * SECOND_NANOS,
        "w" | "wk" | "week" | "weeks" => 7 * DAY_SECONDS * SECOND_NANOS,
        _ => return None,
    };
    amount.checked_mul(unit)
}

/// A duration as its seconds.
pub(super) fn duration_text(nanos: i64) -> String {
    let magnitude = nanos.unsigned_abs();
    let (seconds, finer) = (magnitude / SECOND_NANOS as u64, magnitude % SECOND_NANOS as u64);
    let sign = if nanos < 0 { "-" } else { "" };
    let fraction = if finer == 0 { String::new() } else { format!(".{finer:09}").trim_end_matches('0').to_owned() };
    format!("{sign}{seconds}{fraction}s")
}
