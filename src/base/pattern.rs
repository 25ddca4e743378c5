//! Patterns in Go's syntax (RE2), run by an engine that takes time in the length of the text and no more.
//!
//! Compiled patterns are some hundred times as large as their text, and definitions may have any number of them: they are
//! compiled when they are needed, and few are kept.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use regex::{Regex, RegexBuilder};

/// What a compiled pattern may take.
const COMPILED_BYTES_MAX: usize = 512 << 10;
/// What matching may keep beside it.
const CACHE_BYTES_MAX: usize = 64 << 10;
/// Patterns that are kept compiled; when there are so many, all are let go.
const KEPT_MAX: usize = 64;

static KEPT: LazyLock<Mutex<HashMap<Box<str>, Arc<Regex>>>> = LazyLock::new(Mutex::default);

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

    /// Whether it can be used at all.
    pub fn check(text: &str) -> Result<(), PatternError> {
        compile(text).map(drop)
    }

    /// Whether some place of the text matches; a text that is no pattern matches everything, as definitions are checked.
    pub fn matches(&self, text: &str) -> bool {
        compiled(&self.0).map_or(true, |(regex, _)| regex.is_match(text))
    }
}

/// A pattern, compiled, and whether it was compiled for this.
pub fn compiled(text: &str) -> Result<(Arc<Regex>, bool), PatternError> {
    if let Some(regex) = KEPT.lock().unwrap_or_else(PoisonError::into_inner).get(text) {
        return Ok((regex.clone(), false));
    }
    let regex = Arc::new(compile(text)?);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= KEPT_MAX {
        kept.clear();
    }
    kept.insert(text.into(), regex.clone());
    Ok((regex, true))
}

/// Lets go of what is kept compiled.
pub fn forget() {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = HashMap::new();
}

fn compile(text: &str) -> Result<Regex, PatternError> {
    let translated = translate(text)?;
    let mut builder = RegexBuilder::new(&translated);
    builder.size_limit(COMPILED_BYTES_MAX).dfa_size_limit(CACHE_BYTES_MAX);
    builder.build().map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => PatternError::Size,
        other => PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().trim().to_owned()),
    })
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
            assert_eq!(Pattern::new(pattern).matches(text), fits, "{pattern} {text}");
        }
        for wrong in ["(", "*a", "[", "\\", "\\C", "(?=a)", "(?P<a"] {
            assert!(matches!(Pattern::check(wrong), Err(PatternError::Syntax(_))), "{wrong}");
        }
    }

    #[test]
    fn no_pattern_takes_long_or_much() {
        assert!(matches!(Pattern::check(&"(?:\\pL{500}){500}".repeat(2)), Err(PatternError::Size)));
        let slow = Pattern::new("^(a+)+(b|c)*$");
        assert!(!slow.matches(&format!("{}!", "a".repeat(100_000))));
        for i in 0..3 * KEPT_MAX {
            assert!(Pattern::new(&format!("^{i}$")).matches(&i.to_string()));
        }
        assert!(KEPT.lock().unwrap().len() <= KEPT_MAX);
    }
}
