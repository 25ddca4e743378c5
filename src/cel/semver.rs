//! Semantic versions (`github.com/blang/semver`).

use std::cmp::Ordering;

/// A version; what it was built from does not matter in comparisons.
#[derive(Clone, Debug)]
pub struct Semver {
    pub numbers: [u64; 3],
    before: Vec<Identifier>,
}

/// A part of what comes before a release. Numbers come before words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Word(String),
}

// === impl Semver ===

impl Semver {
    /// Reads a version.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Version string empty".into());
        }
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (core, before) = rest.split_once('-').map_or((rest, None), |(core, before)| (core, Some(before)));
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else { return Err("No Major.Minor.Patch elements found".into()) };
        let numbers = [number(major, "major")?, number(minor, "minor")?, number(patch, "patch")?];
        let before = before.map_or(Ok(Vec::new()), |b| b.split('.').map(Identifier::parse).collect())?;
        if build.is_some_and(|b| b.split('.').any(|part| !is_word(part))) {
            return Err("Invalid character(s) found in build meta data".into());
        }
        Ok(Self { numbers, before })
    }

    /// Reads a version that may begin with `v`, be shorter, and have zeros in front of its numbers.
    pub(super) fn parse_tolerant(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let mut parts: Vec<String> = text.splitn(3, '.').map(without_zeros).collect();
        if parts.len() < 3 {
            if parts.last().is_some_and(|p| p.contains(['+', '-'])) {
                return Err("short version cannot contain PreRelease/Build meta data".into());
            }
            parts.resize(3, "0".into());
        }
        Self::parse(&parts.join("."))
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.before.is_empty(), other.before.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.before.cmp(&other.before),
        })
    }
}

fn without_zeros(part: &str) -> String {
    let trimmed = part.trim_start_matches('0');
    if part.len() <= 1 || trimmed.len() == part.len() {
        return part.to_owned();
    }
    if trimmed.starts_with(|c: char| c.is_ascii_digit()) { trimmed.to_owned() } else { format!("0{trimmed}") }
}

fn is_word(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn number(text: &str, what: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {what} number {text:?}"));
    }
    if text.len() > 1 && text.starts_with('0') {
        let what = format!("{}{}", what[..1].to_ascii_uppercase(), &what[1..]);
        return Err(format!("{what} number must not contain leading zeroes {text:?}"));
    }
    text.parse().map_err(|_| format!("strconv.ParseUint: parsing {text:?}: value out of range"))
}

// === impl Identifier ===

impl Identifier {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("Prerelease is empty".into());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            if text.len() > 1 && text.starts_with('0') {
                return Err(format!("Numeric PreRelease version must not contain leading zeroes {text:?}"));
            }
            return text.parse().map(Self::Number).map_err(|_| format!("strconv.ParseUint: parsing {text:?}"));
        }
        if is_word(text) {
            Ok(Self::Word(text.to_owned()))
        } else {
            Err(format!("Invalid character(s) found in prerelease {text:?}"))
        }
    }
}
