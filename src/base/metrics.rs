//! Counters of the process in the Prometheus text format.
//!
//! A counter is a static that whoever counts declares with [`Counter::new`] and lists in [`ALL`]; reading costs nothing until asked.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug)]
pub struct Counter {
    name: &'static str,
    help: &'static str,
    value: AtomicU64,
}

/// Requests that the API answered.
pub static REQUESTS: Counter =
    Counter::new("apiserver_requests_answered_total", "Requests that the API server answered.");
/// Requests that ended in a server error.
pub static REQUEST_ERRORS: Counter =
    Counter::new("apiserver_request_errors_total", "Requests that the API server answered with a 5xx status.");
/// Requests that were refused because too much was asked at once.
pub static REJECTED: Counter = Counter::new(
    "apiserver_flowcontrol_rejected_requests_total",
    "Requests that were refused because too many waited or took too much memory.",
);
/// What an agent was told of by its server.
pub static TOLD: Counter = Counter::new("client_watch_events_total", "Events that watches on the server have told.");
/// Reconciliations that failed and are tried again.
pub static RECONCILE_ERRORS: Counter =
    Counter::new("controller_reconcile_errors_total", "Reconciliations that failed and were tried again.");
/// Reconciliations.
pub static RECONCILES: Counter = Counter::new("controller_reconcile_total", "Reconciliations of all controllers.");

/// Every counter.
static ALL: &[&Counter] = &[&REQUESTS, &REQUEST_ERRORS, &REJECTED, &TOLD, &RECONCILES, &RECONCILE_ERRORS];

// === impl Counter ===

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

/// Everything that is counted, in the text exposition format, with the process's own memory.
pub fn text() -> String {
    let mut out = String::new();
    for c in ALL {
        let value = c.value();
        let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} counter\n{0} {value}", c.name, c.help);
    }
    if let Some(bytes) = resident_bytes() {
        let name = "process_resident_memory_bytes";
        let _ = writeln!(out, "# HELP {name} Resident memory size in bytes.\n# TYPE {name} gauge\n{name} {bytes}");
    }
    out
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
