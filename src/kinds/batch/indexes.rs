//! Completion indexes of an Indexed Job as its status writes them: `0,2-5,7`.
//!
//! A Job may have a thousand million indexes; they are kept and compared as intervals, so that work and memory follow what was
//! written and not what is meant.

use std::cmp::Ordering;
use std::fmt;

/// Indexes as intervals, both ends included: in order, apart by one at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i64, i64)>);

// === impl Indexes ===

impl Indexes {
    /// Reads what a status says, as far as it is below `completions`; what cannot be read is left out.
    pub fn of_status(text: &str, completions: i64) -> Self {
        let mut found = Self::default();
        for part in text.split(',') {
            let Some((first, last)) = ends(part).ok().filter(|(first, _)| *first < completions) else { continue };
            found = found.union(&Self(vec![(first, last.min(completions - 1))]));
        }
        found
    }

    /// Reads what must be in order and below `completions`; an error says what is not.
    pub fn parse(text: &str, completions: i64) -> Result<Self, String> {
        let mut all: Vec<(i64, i64)> = Vec::new();
        if text.is_empty() {
            return Ok(Self(all));
        }
        let mut previous = None;
        for part in text.split(',') {
            let (first, last) = interval(part, completions)?;
            if let Some(previous) = previous.filter(|p| *p >= first) {
                return Err(format!("non-increasing order, previous: {previous}, current: {first}"));
            }
            previous = Some(last);
            match all.last_mut() {
                Some(end) if end.1 + 1 == first => end.1 = last,
                _ => all.push((first, last)),
            }
        }
        Ok(Self(all))
    }

    /// How many there are.
    pub fn count(&self) -> i64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of them.
    pub fn has(&self, index: i64) -> bool {
        let place = |(first, last): &(i64, i64)| match (*first > index, *last < index) {
            (true, _) => Ordering::Greater,
            (_, true) => Ordering::Less,
            _ => Ordering::Equal,
        };
        self.0.binary_search_by(place).is_ok()
    }

    /// The indexes of both.
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<(i64, i64)> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(end) if first <= end.1 + 1 => end.1 = end.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// How many indexes are in both.
    pub fn common(&self, other: &Self) -> i64 {
        self.overlaps(other).map(|(first, last)| last - first + 1).sum()
    }

    /// The first index that is in both.
    pub fn first_common(&self, other: &Self) -> Option<i64> {
        self.overlaps(other).next().map(|(first, _)| first)
    }

    /// The first `count` indexes below `completions` that are not among these.
    pub fn absent(&self, count: usize, completions: i64) -> Vec<i64> {
        let ends = self.0.iter().copied().chain([(completions, completions)]);
        let mut next = 0;
        let mut found = Vec::new();
        for (first, last) in ends {
            while next < first.min(completions) && found.len() < count {
                found.push(next);
                next += 1;
            }
            next = next.max(last + 1);
        }
        found
    }

    fn overlaps<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (i64, i64)> + 'a {
        let (mut i, mut k) = (0, 0);
        std::iter::from_fn(move || {
            loop {
                let (a, b) = (self.0.get(i)?, other.0.get(k)?);
                if a.1 < b.1 {
                    i += 1;
                } else {
                    k += 1;
                }
                let (first, last) = (a.0.max(b.0), a.1.min(b.1));
                if first <= last {
                    return Some((first, last));
                }
            }
        })
    }
}

impl FromIterator<i64> for Indexes {
    fn from_iter<I: IntoIterator<Item = i64>>(indexes: I) -> Self {
        Self(indexes.into_iter().map(|i| (i, i)).collect()).union(&Self::default())
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match last - first {
                0 => write!(f, "{first}")?,
                1 => write!(f, "{first},{last}")?,
                _ => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<i64, String> {
    // As Go reads numbers: with a sign, in the range of the completions' own type.
    text.parse::<i32>().map(i64::from).map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
}

/// Both ends of a part, which may be one number.
fn ends(part: &str) -> Result<(i64, i64), String> {
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (number(first)?, number(last)?);
    if first < 0 || first > last {
        return Err(format!("non-increasing order, previous: {first}, current: {last}"));
    }
    Ok((first, last))
}

fn interval(part: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = part.splitn(3, '-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {part:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let numbers = parts.iter().map(|text| {
        let n = number(text)?;
        if n >= completions { Err(format!("too large index: {text:?}")) } else { Ok(n) }
    });
    let numbers: Vec<i64> = numbers.collect::<Result<_, _>>()?;
    match numbers[..] {
        [first, last] if first >= last => Err(format!("non-increasing order, previous: {first}, current: {last}")),
        [first, last] => Ok((first, last)),
        _ => Ok((numbers[0], numbers[0])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Indexes {
        Indexes::parse(text, 1000).unwrap()
    }

    #[test]
    fn indexes_are_written_as_intervals_and_read_again() {
        for (given, text) in [(&[][..], ""), (&[3, 1, 2, 7], "1-3,7"), (&[0, 1], "0,1"), (&[5, 5, 9, 8], "5,8,9")] {
            let indexes: Indexes = given.iter().copied().collect();
            assert_eq!(indexes.to_string(), text);
            assert_eq!(read(text), indexes);
        }
        assert_eq!(read("1,2,3-5,7").to_string(), "1-5,7");
        assert_eq!((read("1-3,7").count(), read("1-3,7").has(3), read("1-3,7").has(4)), (4, true, false));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("5-2", "non-increasing order, previous: 5, current: 2"),
            ("3,3", "non-increasing order, previous: 3, current: 3"),
            ("1-2-3", "the fragment \"1-2-3\" violates the requirement"),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("99999999999", "cannot convert string to integer"),
            ("10", "too large index: \"10\""),
            ("", ""),
        ] {
            let error = Indexes::parse(text, 10).err().unwrap_or_default();
            assert!(error.starts_with(why) && error.is_empty() == why.is_empty(), "{text}: {error}");
        }
        // What a status says is taken as far as it makes sense.
        assert_eq!(Indexes::of_status("0,x,2-5,9-3,8-20,30", 10).to_string(), "0,2-5,8,9");
    }

    #[test]
    fn common_and_absent_indexes_cost_what_is_written_of_them() {
        assert_eq!(read("0-4,10-20").common(&read("3-12,15,30")), 6);
        assert_eq!(read("0-4,10-20").first_common(&read("6,12")), Some(12));
        assert_eq!(read("0-4").first_common(&read("5-9")), None);
        assert_eq!(read("0-1,3").absent(3, 1000), [2, 4, 5]);
        assert_eq!(read("0-1,3").absent(9, 5), [2, 4]);
        assert!(read("").absent(2, 0).is_empty());
        let most = Indexes::of_status("0-999999990", 1_000_000_000);
        assert_eq!(most.absent(3, 1_000_000_000), [999_999_991, 999_999_992, 999_999_993]);
        assert_eq!(most.count(), 999_999_991);
    }
}
