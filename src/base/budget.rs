//! What one request may make: bytes of values in memory, steps of work, levels of nesting.
//!
//! Text of a few bytes becomes a value of hundreds ([`OBJECT_BYTES`]), an alias or a copy in a patch a value of any size, so
//! a limit on the body alone bounds nothing. Whoever makes values out of what a client sent counts them here: decoding,
//! patches, server-side apply, completion. Counting is an addition and a comparison. Invariant: no value that is deeper than
//! [`DEPTH_MAX`] or takes more than [`BYTES_MAX`] bytes leaves a function that was given a budget, so that recursion over
//! values needs no limit of its own.

use serde_json::Value;
use thiserror::Error;

/// The values that one request makes of its body take at most this much memory, copies by patches included.
pub const BYTES_MAX: usize = 24 << 20;
/// Members and items that one request looks at, in all.
pub const STEPS_MAX: u64 = 4_000_000;
/// The deepest nesting. Below the 128 levels that JSON is read to, so that an object still fits into a list or an event,
/// and its managed fields, which lie some levels deeper than what they tell of, into the object.
pub const DEPTH_MAX: usize = 120;
/// Bytes of JSON that one object may have in the store, and that one patch may copy.
pub const STORED_BYTES_MAX: usize = 3 << 20;
/// What one request holds at once at most, all in all: the values of its body ([`BYTES_MAX`]), the live object, the new one, the
/// sets of paths of field management, texts, and the body itself. Whoever bounds the memory of the server counts with this.
pub const REQUEST_BYTES_MAX: usize = 4 * BYTES_MAX;
/// A request that made less than this is done in well under a millisecond.
const HEAVY_BYTES: usize = 1 << 20;

/// A map allocates room for eleven members at once.
const OBJECT_BYTES: usize = 640;
/// An item, with the room that a list has in reserve.
const ITEM_BYTES: usize = 64;
/// What the allocator adds to a text.
const TEXT_BYTES: usize = 32;

/// What one request has made so far.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    bytes: usize,
    steps: u64,
}

/// A limit that a request went beyond.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Exceeded {
    #[error("the request takes more than {BYTES_MAX} bytes of memory, which is the limit")]
    Bytes,
    #[error("the request takes more than {STEPS_MAX} steps, which is the limit")]
    Steps,
    #[error("exceeded max depth: values may be nested {DEPTH_MAX} levels deep")]
    Depth,
}

/// What a value is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Memory that it takes.
    pub bytes: usize,
    /// Members and items in it.
    pub nodes: u64,
    /// Levels of lists and objects; 0 for a scalar.
    pub depth: usize,
    /// About how long it is as JSON.
    pub json: usize,
}

// === impl Budget ===

impl Budget {
    /// Nothing is made yet.
    pub const fn new() -> Self {
        Self { bytes: 0, steps: 0 }
    }

    /// As [`Budget::new`], with no more than so many bytes.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self { bytes: BYTES_MAX.saturating_sub(bytes), steps: 0 }
    }

    /// How many bytes were made.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many steps were taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Whether what is left to do may keep a thread for long enough that others notice.
    pub fn is_heavy(&self) -> bool {
        self.bytes > HEAVY_BYTES || self.steps > STEPS_MAX / 100
    }

    /// Takes steps.
    #[inline]
    pub fn step(&mut self, steps: u64) -> Result<(), Exceeded> {
        counted(steps);
        self.steps = self.steps.saturating_add(steps);
        if self.steps > STEPS_MAX { Err(Exceeded::Steps) } else { Ok(()) }
    }

    #[inline]
    fn take(&mut self, bytes: usize) -> Result<(), Exceeded> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > BYTES_MAX { Err(Exceeded::Bytes) } else { Ok(()) }
    }

    /// Makes a text of this length.
    #[inline]
    pub fn text(&mut self, length: usize) -> Result<(), Exceeded> {
        self.take(length + TEXT_BYTES)
    }

    /// Makes an item of a list.
    #[inline]
    pub fn item(&mut self) -> Result<(), Exceeded> {
        self.step(1)?;
        self.take(ITEM_BYTES)
    }

    /// Makes a member with a key of this length in a map that has `members`.
    #[inline]
    pub fn member(&mut self, members: usize, key: usize) -> Result<(), Exceeded> {
        self.step(1)?;
        self.take(member_bytes(members, key))
    }

    /// Makes a copy of a value of this size.
    pub fn copy(&mut self, size: Size) -> Result<(), Exceeded> {
        self.step(size.nodes)?;
        self.take(size.bytes)
    }
}

/// What a member costs; a map's leaves hold eleven members and are split at six.
#[inline]
fn member_bytes(members: usize, key: usize) -> usize {
    let leaf = members == 0 || (members > 10 && members.is_multiple_of(6));
    key + TEXT_BYTES + if leaf { OBJECT_BYTES } else { 0 }
}

/// Refuses what is nested too deep, `within` levels of which are around it.
pub fn check_depth(within: usize, depth: usize) -> Result<(), Exceeded> {
    if within + depth > DEPTH_MAX { Err(Exceeded::Depth) } else { Ok(()) }
}

/// The size of a value.
pub fn size_of(value: &Value) -> Size {
    let mut size = Size::default();
    size.depth = walk(value, &mut size);
    size
}

fn walk(value: &Value, size: &mut Size) -> usize {
    size.nodes += 1;
    match value {
        Value::String(text) => {
            size.bytes += text.len() + TEXT_BYTES;
            size.json += text.len() + 3;
            0
        }
        Value::Array(items) => {
            size.bytes += items.len() * ITEM_BYTES;
            size.json += 2;
            1 + items.iter().map(|item| walk(item, size)).max().unwrap_or(0)
        }
        Value::Object(map) => {
            size.json += 2;
            let mut depth = 0;
            for (i, (key, value)) in map.iter().enumerate() {
                size.bytes += member_bytes(i, key.len());
                size.json += key.len() + 4;
                depth = depth.max(walk(value, size));
            }
            1 + depth
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {
            size.json += 5;
            0
        }
    }
}

/// Tells the tests of growth of steps that no budget is asked about: look-ups in objects. Costs nothing outside of tests.
#[inline]
pub(super) fn counted(steps: u64) {
    #[cfg(test)]
    STEPS.with(|all| all.set(all.get().saturating_add(steps)));
    let _ = steps;
}

#[cfg(test)]
thread_local!(static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });

/// How many steps this thread has taken so far.
#[cfg(test)]
pub(crate) fn steps_so_far() -> u64 {
    STEPS.with(std::cell::Cell::get)
}

/// The first bytes of a text that a client sent, for messages.
pub fn shortened(text: &str, bytes: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= bytes {
        return text.into();
    }
    let end = (0..=bytes).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}...", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_measured_by_what_it_takes_and_not_by_its_text() {
        let small = size_of(&json!({"a": 0}));
        assert!(small.bytes >= 640 && small.depth == 1 && small.nodes == 2, "{small:?}");
        assert_eq!(size_of(&json!([[[]], 1])).depth, 3);
        let many: Value = (0..1000).map(|i| (format!("k{i}"), json!(i))).collect::<serde_json::Map<_, _>>().into();
        let size = size_of(&many);
        assert!((100_000..200_000).contains(&size.bytes), "{size:?}");
        assert!(size.json.abs_diff(many.to_string().len()) < size.json / 2);
    }

    #[test]
    fn what_is_beyond_a_limit_is_named() {
        let mut budget = Budget::new();
        assert_eq!(budget.text(BYTES_MAX - 32), Ok(()));
        assert_eq!(budget.text(1), Err(Exceeded::Bytes));
        assert!(Exceeded::Bytes.to_string().contains("25165824"));
        let mut budget = Budget::new();
        assert_eq!(budget.step(u64::MAX), Err(Exceeded::Steps));
        assert_eq!(budget.step(u64::MAX), Err(Exceeded::Steps));
        assert_eq!((check_depth(60, 60), check_depth(60, 61)), (Ok(()), Err(Exceeded::Depth)));
        assert_eq!(shortened("aäb", 2), "a...");
    }
}
