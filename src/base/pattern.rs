//! Patterns in Go's syntax (RE2), run by an engine that takes time in the length of the text and no more.
//!
//! Compiled patterns are some hundred times as large as their text, and definitions may have any number of them: they are
//! compiled when they are needed, and few are kept.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use regex::{Regex, RegexBuilder};

/// What a compiled pattern may take, tried one after the other: compiling one that is too large takes as long.
const COMPILED_BYTES: [usize; 3] = [16 << 10, 128 << 10, COMPILED_BYTES_MAX];
/// The most that a compiled pattern may take.
pub const COMPILED_BYTES_MAX: usize = 512 << 10;
/// What matching may keep beside it.
const CACHE_BYTES_MAX: usize = 64 << 10;
/// What patterns that are kept compiled may take; when there are so many, all are let go.
const KEPT_BYTES_MAX: usize = 8 << 20;

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// Compiled patterns by their text, each with what it takes at most.
#[derive(Default)]
struct Kept {
    all: HashMap<Box<str>, Compiled>,
    bytes: usize,
}

#[derive(Clone)]
struct Compiled {
    regex: Arc<Regex>,
    bytes: usize,
}

/// A pattern that some place in a text must match.
#[derive(Debug)]
pub struct Pattern(Box<str>);

/// Why a text is no pattern.
#[derive(Debug, thiserror::Error)]
pub enum PatternError {
    #[error("error parsing regexp: {0}")]
    Syntax(String),
    #[error("the pattern is too large: compiled it takes more than {COMPILED_BYTES_MAX} bytes")]
    Size,
}

// === impl Pattern ===

impl Pattern {
    /// A pattern by its text; whether it is one shows [`Pattern::check`].
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether it can be used at all, and how many bytes it takes at most when compiled.
    pub fn check(text: &str) -> Result<usize, PatternError> {
        compile(text).map(|compiled| compiled.bytes)
    }

    /// Whether some place of the text matches, and how many bytes the pattern takes at most when compiled. A text that is no
    /// pattern matches everything, as definitions are checked.
    pub fn matches(&self, text: &str) -> (bool, usize) {
        match kept(&self.0) {
            Ok((compiled, _)) => (compiled.regex.is_match(text), compiled.bytes),
            Err(_) => (true, COMPILED_BYTES_MAX),
        }
    }
}

/// A pattern, compiled, and whether it was compiled for this.
pub fn compiled(text: &str) -> Result<(Arc<Regex>, bool), PatternError> {
    kept(text).map(|(compiled, is_new)| (compiled.regex, is_new))
}

/// Lets go of what is kept compiled.
pub fn forget() {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
}

fn kept(text: &str) -> Result<(Compiled, bool), PatternError> {
    if let Some(known) = KEPT.lock().unwrap_or_else(PoisonError::into_inner).all.get(text) {
        return Ok((known.clone(), false));
    }
    let compiled = compile(text)?;
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).add(text, compiled.clone());
    Ok((compiled, true))
}

// === impl Kept ===

impl Kept {
    fn add(&mut self, text: &str, compiled: Compiled) {
        if self.bytes + compiled.bytes > KEPT_BYTES_MAX {
            *self = Self::default();
        }
        let bytes = compiled.bytes;
        if self.all.insert(text.into(), compiled).is_none() {
            self.bytes += bytes;
        }
    }
}

fn compile(text: &str) -> Result<Compiled, PatternError> {
    let translated = translate(text)?;
    for bytes in COMPILED_BYTES {
        let mut builder = RegexBuilder::new(&translated);
        return match builder.size_limit(bytes).dfa_size_limit(CACHE_BYTES_MAX).build() {
            Ok(regex) => Ok(Compiled { regex: Arc::new(regex), bytes }),
            Err(regex::Error::CompiledTooBig(_)) => continue,
            Err(other) => {
                let why = other.to_string().lines().last().unwrap_or_default().trim().to_owned();
                Err(PatternError::Syntax(why))
            }
        };
    }
    Err(PatternError::Size)
}

/// From Go's syntax to that of the engine: classes of letters are of ASCII there, and what means something inside of
/// brackets here does not there.
fn translate(text: &str) -> Result<String, PatternError> {
    let mut out = String::with_capacity(text.len() + 16);
    let mut letters = text.chars().peekable();
    let mut in_class = false;
    let mut class_begun = false;
    while let Some(c) = letters.next() {
        let first_in_class = std::mem::take(&mut class_begun);
        match c {
            '\\' => match letters.next() {
                Some('Q') => {
                    let mut literal = String::new();
                    while let Some(c) = letters.next() {
                        if c == '\\' && letters.peek() == Some(&'E') {
                            letters.next();
                            break;
                        }
                        literal.push(c);
                    }
                    out.push_str(&regex::escape(&literal));
                }
                Some('C') => return Err(PatternError::Syntax("invalid escape sequence: `\\C`".into())),
                Some('d') => out.push_str("[0-9]"),
                Some('D') => out.push_str("[^0-9]"),
                Some('w') => out.push_str("[0-9A-Za-z_]"),
                Some('W') => out.push_str("[^0-9A-Za-z_]"),
                Some('s') => out.push_str("[\\t\\n\\f\\r ]"),
                Some('S') => out.push_str("[^\\t\\n\\f\\r ]"),
                Some('b') if !in_class => out.push_str("(?-u:\\b)"),
                Some('B') if !in_class => out.push_str("(?-u:\\B)"),
                Some(c) => {
                    out.push('\\');
                    out.push(c);
                }
                None => return Err(PatternError::Syntax("trailing backslash at end of expression: ``".into())),
            },
            '[' if !in_class => {
                (in_class, class_begun) = (true, true);
                out.push('[');
                if letters.peek() == Some(&'^') {
                    letters.next();
                    out.push('^');
                }
            }
            '[' if letters.peek() == Some(&':') => out.push('['),
            // Otherwise a class in a class.
            '[' => out.push_str("\\["),
            // The first is no end.
            ']' if in_class && first_in_class => out.push_str("\\]"),
            ']' if in_class => {
                // The end of `[:word:]` is not that of the class.
                let is_word = out.ends_with(':') && out.rfind("[:").is_some_and(|i| !out[i..].contains(']'));
                in_class = is_word;
                out.push(']');
            }
            // Differences and intersections of classes.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && letters.peek() == Some(&'-') => out.push_str("\\-"),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, fits) in [
            ("^[a-z]+$", "abc", true),
            ("q", "xqx", true),
            ("^\\d+$", "12", true),
            ("^\\d+$", "\u{664}", false),
            ("^[\\w.-]+$", "a_b.c-d", true),
            ("^\\w$", "\u{e9}", false),
            ("^.$", "\u{e9}", true),
            ("^[[:alpha:]]+$", "ab", true),
            ("^[a[]$", "[", true),
            ("^[]a]$", "]", true),
            ("^[^]]$", "]", false),
            ("^[a&&b]+$", "&b", true),
            ("^[\\D]$", "x", true),
            ("^\\Qa.b\\E$", "a.b", true),
            ("^\\Qa.b\\E$", "axb", false),
            ("^(?:[a-z0-9]([-a-z0-9]*[a-z0-9])?)(?:\\.x)?$", "a-b.x", true),
            ("^$|^[A-Z]{2,}$", "", true),
        ] {
            assert!(Pattern::check(pattern).is_ok(), "{pattern}");
            assert_eq!(Pattern::new(pattern).matches(text).0, fits, "{pattern} {text}");
        }
        for wrong in ["(", "*a", "[", "\\", "\\C", "(?=a)", "(?P<a"] {
            assert!(matches!(Pattern::check(wrong), Err(PatternError::Syntax(_))), "{wrong}");
        }
    }

    #[test]
    fn no_pattern_takes_long_or_much() {
        assert!(matches!(Pattern::check(&"(?:\\pL{500}){500}".repeat(2)), Err(PatternError::Size)));
        let slow = Pattern::new("^(a+)+(b|c)*$");
        assert!(!slow.matches(&format!("{}!", "a".repeat(100_000))).0);
        for i in 0..2 * KEPT_BYTES_MAX / COMPILED_BYTES[0] {
            assert_eq!(Pattern::new(&format!("^{i}$")).matches(&i.to_string()), (true, COMPILED_BYTES[0]));
        }
        let kept = KEPT.lock().unwrap();
        assert!(kept.bytes <= KEPT_BYTES_MAX && kept.all.len() <= KEPT_BYTES_MAX / COMPILED_BYTES[0]);
    }
}
