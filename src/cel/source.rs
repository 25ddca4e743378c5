//! The text of an expression, and what is wrong with it, as cel-go prints it.

use std::fmt;

/// More is not told.
const ISSUES_MAX: usize = 100;
/// A longer line is not shown below its issue.
const SHOWN_LETTERS_MAX: usize = 16_384;

/// What is wrong with an expression; never empty where it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issues {
    /// In the order found: where, and what.
    all: Vec<(Option<u32>, String)>,
    omitted: usize,
    text: Box<str>,
}

impl Issues {
    pub(super) fn of(text: &str) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Notes an issue at a place, counted in code points from the start.
    pub(super) fn push(&mut self, at: Option<u32>, message: impl Into<String>) {
        if self.all.len() < ISSUES_MAX {
            self.all.push((at, message.into()));
        } else {
            self.omitted += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What is wrong, without places.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|(_, message)| message.as_str())
    }

    fn line(&self, at: u32) -> (usize, usize, &str) {
        let mut left = at as usize;
        for (number, line) in self.text.split('\n').enumerate() {
            let length = line.chars().count();
            if left <= length {
                return (number + 1, left + 1, line);
            }
            left -= length + 1;
        }
        (1, 1, "")
    }
}

impl fmt::Display for Issues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&(Option<u32>, String)> = self.all.iter().collect();
        sorted.sort_by_key(|(at, _)| *at);
        for (i, (at, message)) in sorted.into_iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            let Some(at) = at else {
                write!(f, "ERROR: <input>:-1:0: {message}")?;
                continue;
            };
            let (line, column, shown) = self.line(*at);
            write!(f, "ERROR: <input>:{line}:{column}: {message}")?;
            if shown.chars().count() > SHOWN_LETTERS_MAX {
                continue;
            }
            let shown = shown.replace('\t', " ");
            write!(f, "\n | {shown}\n | ")?;
            let mark = |c: Option<char>, narrow, wide| if c.is_some_and(|c| !c.is_ascii()) { wide } else { narrow };
            for c in shown.chars().take(column - 1) {
                write!(f, "{}", mark(Some(c), '.', '\u{ff0e}'))?;
            }
            write!(f, "{}", mark(shown.chars().nth(column - 1), '^', '\u{ff3e}'))?;
        }
        if self.omitted > 0 {
            write!(f, "\n{} more errors were truncated", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Issues {}
