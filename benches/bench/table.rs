//! The table that is printed, a row as soon as it is known.

/// Rows in Markdown.
pub struct Table;

// === impl Table ===

impl Table {
    pub fn begin() -> Self {
        println!("| what | measured | floor | runs |\n|---|---|---|---|");
        Self
    }

    pub fn row(&mut self, what: &str, value: &str, floor: &str, runs: usize) {
        println!("| {what} | {value} | {floor} | {runs} |");
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Every value, in the order of measurement.
pub fn all(values: &[f64], digits: usize) -> String {
    values.iter().map(|v| format!("{v:.digits$}")).collect::<Vec<_>>().join(", ")
}
