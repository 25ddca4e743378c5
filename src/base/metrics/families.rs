//! Counters and histograms, with labels and without, and how they are written.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    value: AtomicU64,
}

/// Names and values of labels.
pub trait Labels: Ord {
    /// Appends them, such as `code="200",verb="GET"`.
    fn write(&self, out: &mut String);
}

/// Labels whose values are known words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pairs<const N: usize>(pub [(&'static str, &'static str); N]);

/// Numbers that only grow, by labels.
#[derive(Debug)]
pub struct Counters<L> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    cells: Mutex<BTreeMap<L, u64>>,
}

/// Durations in buckets, by labels.
#[derive(Debug)]
pub struct Histograms<L> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    bounds: &'static [Bound],
    cells: Mutex<BTreeMap<L, Distribution>>,
}

/// The upper bound of a bucket in seconds, and as it is written.
pub type Bound = (f64, &'static str);

#[derive(Clone, Debug)]
pub(super) struct Distribution {
    /// One more than there are bounds.
    counts: Box<[u64]>,
    sum_seconds: f64,
}

impl Counter {
    /// A counter at zero.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, value: AtomicU64::new(0) }
    }

    /// How many there were.
    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// One more.
    pub fn add(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Pairs ===

impl<const N: usize> Labels for Pairs<N> {
    fn write(&self, out: &mut String) {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let _ = write!(out, "{}{name}=\"{value}\"", if i > 0 { "," } else { "" });
        }
    }
}

// === impl ClientLabels ===

impl<L: Labels> Counters<L> {
    /// None yet.
    pub const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, cells: Mutex::new(BTreeMap::new()) }
    }

    /// One more. Answers how many rows there are.
    pub fn add(&self, labels: L) -> usize {
        let mut cells = self.cells.lock().expect("no panic while held");
        *cells.entry(labels).or_default() += 1;
        cells.len()
    }

    /// Forgets the rows that are not to be kept. Answers how many there are still.
    pub fn retain(&self, is_kept: impl Fn(&L) -> bool) -> usize {
        let mut cells = self.cells.lock().expect("no panic while held");
        cells.retain(|labels, _| is_kept(labels));
        cells.len()
    }

    /// Appends all of them.
    pub fn write(&self, out: &mut String) {
        let cells = self.cells.lock().expect("no panic while held");
        if !cells.is_empty() {
            head(out, self.name, "counter", self.help);
        }
        for (labels, value) in &*cells {
            sample(out, self.name, labels, "", value);
        }
    }
}

// === impl Histograms ===

impl<L: Labels> Histograms<L> {
    /// Nothing observed yet.
    pub const fn new(name: &'static str, help: &'static str, bounds: &'static [Bound]) -> Self {
        Self { name, help, bounds, cells: Mutex::new(BTreeMap::new()) }
    }

    /// It took so long.
    pub fn observe(&self, labels: L, took: Duration) {
        let mut cells = self.cells.lock().expect("no panic while held");
        cells.entry(labels).or_insert_with(|| Distribution::new(self.bounds)).observe(self.bounds, took);
    }

    /// Forgets the rows that are not to be kept.
    pub fn retain(&self, is_kept: impl Fn(&L) -> bool) {
        self.cells.lock().expect("no panic while held").retain(|labels, _| is_kept(labels));
    }

    /// Appends all of them.
    pub fn write(&self, out: &mut String) {
        let cells = self.cells.lock().expect("no panic while held");
        if !cells.is_empty() {
            head(out, self.name, "histogram", self.help);
        }
        for (labels, distribution) in &*cells {
            distribution.write(out, self.name, self.bounds, labels);
        }
    }
}

// === impl Distribution ===

impl Distribution {
    pub(super) fn new(bounds: &[Bound]) -> Self {
        Self { counts: vec![0; bounds.len() + 1].into(), sum_seconds: 0.0 }
    }

    pub(super) fn observe(&mut self, bounds: &[Bound], took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[bounds.partition_point(|(bound, _)| *bound < seconds)] += 1;
        self.sum_seconds += seconds;
    }

    pub(super) fn write(&self, out: &mut String, name: &str, bounds: &[Bound], labels: &impl Labels) {
        let mut below = 0;
        let ends = bounds.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (count, end) in self.counts.iter().zip(ends) {
            below += count;
            sample(out, &format!("{name}_bucket"), labels, end, &below);
        }
        sample(out, &format!("{name}_sum"), labels, "", &self.sum_seconds);
        sample(out, &format!("{name}_count"), labels, "", &below);
    }
}

pub(super) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

pub(super) fn sample(out: &mut String, name: &str, labels: &impl Labels, end: &str, value: &impl std::fmt::Display) {
    out.push_str(name);
    let begun = out.len();
    out.push('{');
    labels.write(out);
    if !end.is_empty() {
        let comma = if out.len() > begun + 1 { "," } else { "" };
        let _ = write!(out, "{comma}le=\"{end}\"");
    }
    if out.len() == begun + 1 {
        out.pop();
    } else {
        out.push('}');
    }
    let _ = writeln!(out, " {value}");
}

/// Appends a gauge without labels.
pub(super) fn gauge(out: &mut String, name: &str, kind: &str, help: &str, value: &impl std::fmt::Display) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

// === impl Workqueue ===
