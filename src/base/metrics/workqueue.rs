//! What is told of controllers' queues (`workqueue_*`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::families::{Bound, Distribution, Pairs, head, sample};

/// What is known of one controller's queue.
#[derive(Debug)]
pub struct Workqueue {
    name: &'static str,
    /// Waiting now.
    depth: AtomicU64,
    adds: AtomicU64,
    retries: AtomicU64,
    work: Mutex<Work>,
}

#[derive(Debug)]
pub(super) struct Work {
    /// When each run that goes on has begun.
    running: BTreeMap<u64, Instant>,
    runs: u64,
    waited: Distribution,
    worked: Distribution,
}

/// Of `workqueue_*`, as Go writes powers of ten.
pub(super) const WORK_BOUNDS: &[Bound] = &[
    (1e-8, "1e-08"),
    (1e-7, "1e-07"),
    (1e-6, "1e-06"),
    (1e-5, "9.999999999999999e-06"),
    (1e-4, "9.999999999999999e-05"),
    (1e-3, "0.001"),
    (1e-2, "0.01"),
    (1e-1, "0.1"),
    (1.0, "1"),
    (10.0, "10"),
    (100.0, "100"),
    (1000.0, "1000"),
];
/// Every queue of a controller.
pub(super) static WORKQUEUES: Mutex<Vec<Arc<Workqueue>>> = Mutex::new(Vec::new());

impl Workqueue {
    /// The queue with this name, the same one for all that ask.
    pub fn named(name: &'static str) -> Arc<Self> {
        let mut all = WORKQUEUES.lock().expect("no panic while held");
        if let Some(known) = all.iter().find(|q| q.name == name) {
            return known.clone();
        }
        let distribution = Distribution::new(WORK_BOUNDS);
        let work = Work { running: BTreeMap::new(), runs: 0, waited: distribution.clone(), worked: distribution };
        let new = Arc::new(Self {
            name,
            depth: AtomicU64::new(0),
            adds: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            work: Mutex::new(work),
        });
        all.push(new.clone());
        new
    }

    /// So many keys were added, and so many wait now.
    pub fn added(&self, count: u64, depth: usize) {
        self.adds.fetch_add(count, Ordering::Relaxed);
        self.depth.store(depth as u64, Ordering::Relaxed);
    }

    /// A key is tried again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    /// A key that has waited so long is worked on from now; `depth` others wait. What is answered ends it.
    pub fn begun(&self, waited: Duration, now: Instant, depth: usize) -> u64 {
        self.depth.store(depth as u64, Ordering::Relaxed);
        let mut work = self.work.lock().expect("no panic while held");
        work.waited.observe(WORK_BOUNDS, waited);
        work.runs += 1;
        let run = work.runs;
        work.running.insert(run, now);
        run
    }

    /// The run has ended.
    pub fn ended(&self, run: u64, now: Instant) {
        let mut work = self.work.lock().expect("no panic while held");
        if let Some(begun) = work.running.remove(&run) {
            work.worked.observe(WORK_BOUNDS, now - begun);
        }
    }
}

pub(super) fn workqueues(out: &mut String) {
    let all = WORKQUEUES.lock().expect("no panic while held").clone();
    if all.is_empty() {
        return;
    }
    let labels = |q: &Workqueue| Pairs([("name", q.name)]);
    let now = Instant::now();
    let numbers: [(&str, &str, &str, fn(&Workqueue) -> u64); 3] = [
        ("workqueue_adds_total", "counter", "[ALPHA] Total number of adds handled by workqueue", |q| {
            q.adds.load(Ordering::Relaxed)
        }),
        ("workqueue_depth", "gauge", "[ALPHA] Current depth of workqueue", |q| q.depth.load(Ordering::Relaxed)),
        ("workqueue_retries_total", "counter", "[ALPHA] Total number of retries handled by workqueue", |q| {
            q.retries.load(Ordering::Relaxed)
        }),
    ];
    for (name, kind, help, read) in numbers {
        head(out, name, kind, help);
        all.iter().for_each(|q| sample(out, name, &labels(q), "", &read(q)));
    }
    let name = "workqueue_queue_duration_seconds";
    head(out, name, "histogram", "[ALPHA] How long in seconds an item stays in workqueue before being requested.");
    let work = |q: &Arc<Workqueue>| {
        let work = q.work.lock().expect("no panic while held");
        let going: Vec<Duration> = work.running.values().map(|begun| now.saturating_duration_since(*begun)).collect();
        (work.waited.clone(), work.worked.clone(), going)
    };
    let worked: Vec<_> = all.iter().map(work).collect();
    for (q, (waited, ..)) in all.iter().zip(&worked) {
        waited.write(out, name, WORK_BOUNDS, &labels(q));
    }
    let name = "workqueue_work_duration_seconds";
    head(out, name, "histogram", "[ALPHA] How long in seconds processing an item from workqueue takes.");
    for (q, (_, worked, _)) in all.iter().zip(&worked) {
        worked.write(out, name, WORK_BOUNDS, &labels(q));
    }
    type Read = fn(&[Duration]) -> Duration;
    let going: [(&str, &str, Read); 2] = [
        (
            "workqueue_unfinished_work_seconds",
            "[ALPHA] How many seconds of work has done that is in progress and hasn't been observed by work_duration.",
            |all| all.iter().sum(),
        ),
        (
            "workqueue_longest_running_processor_seconds",
            "[ALPHA] How many seconds has the longest running processor for workqueue been running.",
            |all| all.iter().max().copied().unwrap_or_default(),
        ),
    ];
    for (name, help, read) in going {
        head(out, name, "gauge", help);
        for (q, (.., going)) in all.iter().zip(&worked) {
            sample(out, name, &labels(q), "", &read(going).as_secs_f64());
        }
    }
}
