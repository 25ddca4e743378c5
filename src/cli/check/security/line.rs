//! A line of the benchmark and what became of it.

/// What became of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// With what was seen.
    Passed(String),
    /// With what is wrong and what helps.
    Failed(String),
    /// With the reason.
    NotApplicable(&'static str),
}

/// A line of the benchmark.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) verdict: Verdict,
}

pub(super) fn line(id: &'static str, what: &'static str, verdict: Verdict) -> Line {
    Line { id, what, verdict }
}

/// The first few of a list, and how many more there are.
pub(super) fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
