//! Counters of the process in the Prometheus text format, under the names that the world's dashboards use.
//!
//! A counter is a static that whoever counts declares; counting is an addition under a short lock or none, and whatever can
//! be had from elsewhere is asked for only when somebody reads. Invariant: labels come from closed sets, so that nobody makes
//! the process grow by what they ask for.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

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
    name: &'static str,
    help: &'static str,
    cells: Mutex<BTreeMap<L, u64>>,
}

/// Durations in buckets, by labels.
#[derive(Debug)]
pub struct Histograms<L> {
    name: &'static str,
    help: &'static str,
    bounds: &'static [Bound],
    cells: Mutex<BTreeMap<L, Distribution>>,
}

/// The upper bound of a bucket in seconds, and as it is written.
pub type Bound = (f64, &'static str);

#[derive(Clone, Debug)]
struct Distribution {
    /// One more than there are bounds.
    counts: Box<[u64]>,
    sum_seconds: f64,
}

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
struct Work {
    /// When each run that goes on has begun.
    running: BTreeMap<u64, Instant>,
    runs: u64,
    waited: Distribution,
    worked: Distribution,
}

/// Of `workqueue_*`, as Go writes powers of ten.
const WORK_BOUNDS: &[Bound] = &[
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
/// Of `rest_client_request_duration_seconds`.
const CLIENT_BOUNDS: &[Bound] = &[
    (0.005, "0.005"),
    (0.025, "0.025"),
    (0.1, "0.1"),
    (0.25, "0.25"),
    (0.5, "0.5"),
    (1.0, "1"),
    (2.0, "2"),
    (4.0, "4"),
    (8.0, "8"),
    (15.0, "15"),
    (30.0, "30"),
    (60.0, "60"),
];
/// Powers of two of a quarter of a millisecond.
const POWERS_OF_TWO: &[Bound] = &[
    (0.00025, "0.00025"),
    (0.0005, "0.0005"),
    (0.001, "0.001"),
    (0.002, "0.002"),
    (0.004, "0.004"),
    (0.008, "0.008"),
    (0.016, "0.016"),
    (0.032, "0.032"),
    (0.064, "0.064"),
    (0.128, "0.128"),
    (0.256, "0.256"),
    (0.512, "0.512"),
    (1.024, "1.024"),
    (2.048, "2.048"),
    (4.096, "4.096"),
    (8.192, "8.192"),
    (16.384, "16.384"),
];
/// Of `scheduler_*` and `kubeproxy_sync_proxy_rules_duration_seconds`: from a millisecond.
const MILLISECONDS_BOUNDS: &[Bound] = POWERS_OF_TWO.split_at(2).1;
/// From a pod's first try to its node: powers of two from ten milliseconds.
const POD_SCHEDULING_BOUNDS: &[Bound] = &[
    (0.01, "0.01"),
    (0.02, "0.02"),
    (0.04, "0.04"),
    (0.08, "0.08"),
    (0.16, "0.16"),
    (0.32, "0.32"),
    (0.64, "0.64"),
    (1.28, "1.28"),
    (2.56, "2.56"),
    (5.12, "5.12"),
    (10.24, "10.24"),
    (20.48, "20.48"),
    (40.96, "40.96"),
    (81.92, "81.92"),
    (163.84, "163.84"),
    (327.68, "327.68"),
    (655.36, "655.36"),
    (1310.72, "1310.72"),
    (2621.44, "2621.44"),
    (5242.88, "5242.88"),
];

/// Of `kubelet_runtime_operations_duration_seconds`: powers of 2.5 from five milliseconds.
const RUNTIME_BOUNDS: &[Bound] = &[
    (0.005, "0.005"),
    (0.0125, "0.0125"),
    (0.03125, "0.03125"),
    (0.078125, "0.078125"),
    (0.1953125, "0.1953125"),
    (0.48828125, "0.48828125"),
    (1.220703125, "1.220703125"),
    (3.0517578125, "3.0517578125"),
    (7.62939453125, "7.62939453125"),
    (19.073486328125, "19.073486328125"),
    (47.6837158203125, "47.6837158203125"),
    (119.20928955078125, "119.20928955078125"),
    (298.0232238769531, "298.0232238769531"),
    (745.0580596923828, "745.0580596923828"),
];
/// Of `kubelet_pod_start_duration_seconds`.
const POD_START_BOUNDS: &[Bound] = &[
    (0.5, "0.5"),
    (1.0, "1"),
    (2.0, "2"),
    (3.0, "3"),
    (4.0, "4"),
    (5.0, "5"),
    (6.0, "6"),
    (8.0, "8"),
    (10.0, "10"),
    (20.0, "20"),
    (30.0, "30"),
    (45.0, "45"),
    (60.0, "60"),
    (120.0, "120"),
    (180.0, "180"),
    (240.0, "240"),
    (300.0, "300"),
    (360.0, "360"),
    (480.0, "480"),
    (600.0, "600"),
    (900.0, "900"),
    (1200.0, "1200"),
    (1800.0, "1800"),
    (2700.0, "2700"),
    (3600.0, "3600"),
];
/// Of `coredns_dns_request_duration_seconds`: from a quarter of a millisecond.
const DNS_BOUNDS: &[Bound] = POWERS_OF_TWO.split_at(POWERS_OF_TWO.len() - 1).0;

/// Of `apiserver_client_certificate_expiration_seconds`: from half an hour to a year.
const CERTIFICATE_BOUNDS: &[Bound] = &[
    (0.0, "0"),
    (1800.0, "1800"),
    (3600.0, "3600"),
    (7200.0, "7200"),
    (21600.0, "21600"),
    (43200.0, "43200"),
    (86400.0, "86400"),
    (172800.0, "172800"),
    (345600.0, "345600"),
    (604800.0, "604800"),
    (2592000.0, "2.592e+06"),
    (7776000.0, "7.776e+06"),
    (15552000.0, "1.5552e+07"),
    (31104000.0, "3.1104e+07"),
];

/// Decisions about pods, by their result.
pub static SCHEDULE_ATTEMPTS: Counters<Pairs<2>> = Counters::new(
    "scheduler_schedule_attempts_total",
    "[STABLE] Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be scheduled, while \
     'error' means an internal scheduler problem.",
);
/// How long a decision and the binding took.
pub static SCHEDULING_ATTEMPT: Histograms<Pairs<2>> = Histograms::new(
    "scheduler_scheduling_attempt_duration_seconds",
    "[STABLE] Scheduling attempt latency in seconds (scheduling algorithm + binding)",
    MILLISECONDS_BOUNDS,
);
/// How long a decision took.
pub static SCHEDULING_ALGORITHM: Histograms<Pairs<0>> = Histograms::new(
    "scheduler_scheduling_algorithm_duration_seconds",
    "[ALPHA] Scheduling algorithm latency in seconds",
    MILLISECONDS_BOUNDS,
);
/// How long pods waited for their nodes.
pub static POD_SCHEDULING: Histograms<Pairs<1>> = Histograms::new(
    "scheduler_pod_scheduling_sli_duration_seconds",
    "[BETA] E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and might involve \
     multiple scheduling attempts.",
    POD_SCHEDULING_BOUNDS,
);
/// What this process asked of a server.
pub static CLIENT_REQUESTS: Counters<ClientLabels> = Counters::new(
    "rest_client_requests_total",
    "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.",
);
/// How long the server took.
pub static CLIENT_DURATIONS: Histograms<ClientLabels> = Histograms::new(
    "rest_client_request_duration_seconds",
    "[ALPHA] Request latency in seconds. Broken down by verb, and host.",
    CLIENT_BOUNDS,
);

/// What the node asked of the container runtime, under the kubelet's names for it.
static RUNTIME_OPERATIONS: Counters<Pairs<1>> = Counters::new(
    "kubelet_runtime_operations_total",
    "[ALPHA] Cumulative number of runtime operations by operation type.",
);
static RUNTIME_ERRORS: Counters<Pairs<1>> = Counters::new(
    "kubelet_runtime_operations_errors_total",
    "[ALPHA] Cumulative number of runtime operation errors by operation type.",
);
static RUNTIME_DURATIONS: Histograms<Pairs<1>> = Histograms::new(
    "kubelet_runtime_operations_duration_seconds",
    "[ALPHA] Duration in seconds of runtime operations. Broken down by operation type.",
    RUNTIME_BOUNDS,
);
/// From the time when the node knew of a pod until it ran.
pub static POD_START: Histograms<Pairs<0>> = Histograms::new(
    "kubelet_pod_start_duration_seconds",
    "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run",
    POD_START_BOUNDS,
);
/// How long the rules of Services took to write.
pub static PROXY_SYNC: Histograms<Pairs<0>> = Histograms::new(
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "[ALPHA] SyncProxyRules latency in seconds",
    MILLISECONDS_BOUNDS,
);
/// What was asked of the cluster DNS: family, protocol, type.
pub static DNS_REQUESTS: Counters<Pairs<3>> =
    Counters::new("coredns_dns_requests_total", "Counter of DNS requests made per zone, protocol and family.");
/// What it answered.
pub static DNS_RESPONSES: Counters<Pairs<1>> =
    Counters::new("coredns_dns_responses_total", "Counter of response status codes.");
/// How long that took.
pub static DNS_DURATIONS: Histograms<Pairs<0>> = Histograms::new(
    "coredns_dns_request_duration_seconds",
    "Histogram of the time (in seconds) each request took per zone.",
    DNS_BOUNDS,
);
/// Names of the world that were remembered, and those that were not.
pub static DNS_CACHE_HITS: Counters<Pairs<0>> = Counters::new("coredns_cache_hits_total", "The count of cache hits.");
pub static DNS_CACHE_MISSES: Counters<Pairs<0>> =
    Counters::new("coredns_cache_misses_total", "The count of cache misses.");

/// Answers that are remembered; negative where there is no cache.
pub static DNS_CACHE_ENTRIES: AtomicI64 = AtomicI64::new(-1);
/// How long the certificates will hold that clients show.
pub static CLIENT_CERTIFICATES: Histograms<Pairs<0>> = Histograms::new(
    "apiserver_client_certificate_expiration_seconds",
    "[ALPHA] Distribution of the remaining lifetime on the certificate used to authenticate a request.",
    CERTIFICATE_BOUNDS,
);

/// Every queue of a controller.
static WORKQUEUES: Mutex<Vec<Arc<Workqueue>>> = Mutex::new(Vec::new());

/// A request to a server; the code is empty where only its duration counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientLabels {
    pub host: String,
    pub method: &'static str,
    /// 0: none came.
    pub code: Option<u16>,
}

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

// === impl Pairs ===

impl<const N: usize> Labels for Pairs<N> {
    fn write(&self, out: &mut String) {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let _ = write!(out, "{}{name}=\"{value}\"", if i > 0 { "," } else { "" });
        }
    }
}

// === impl ClientLabels ===

impl Labels for ClientLabels {
    fn write(&self, out: &mut String) {
        let Self { host, method, code } = self;
        let _ = match code {
            None => write!(out, "host=\"{host}\",verb=\"{method}\""),
            Some(0) => write!(out, "code=\"<error>\",host=\"{host}\",method=\"{method}\""),
            Some(code) => write!(out, "code=\"{code}\",host=\"{host}\",method=\"{method}\""),
        };
    }
}

// === impl Counters ===

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
    fn new(bounds: &[Bound]) -> Self {
        Self { counts: vec![0; bounds.len() + 1].into(), sum_seconds: 0.0 }
    }

    fn observe(&mut self, bounds: &[Bound], took: Duration) {
        let seconds = took.as_secs_f64();
        self.counts[bounds.partition_point(|(bound, _)| *bound < seconds)] += 1;
        self.sum_seconds += seconds;
    }

    fn write(&self, out: &mut String, name: &str, bounds: &[Bound], labels: &impl Labels) {
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

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(out: &mut String, name: &str, labels: &impl Labels, end: &str, value: &impl std::fmt::Display) {
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
fn gauge(out: &mut String, name: &str, kind: &str, help: &str, value: &impl std::fmt::Display) {
    head(out, name, kind, help);
    let _ = writeln!(out, "{name} {value}");
}

// === impl Workqueue ===

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

fn workqueues(out: &mut String) {
    let all = WORKQUEUES.lock().expect("no panic while held").clone();
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

/// Everything that is counted, in the text exposition format, with what the kernel knows of the process.
pub fn text() -> String {
    let mut out = String::new();
    for c in ALL {
        gauge(&mut out, c.name, "counter", c.help, &c.value());
    }
    SCHEDULE_ATTEMPTS.write(&mut out);
    SCHEDULING_ATTEMPT.write(&mut out);
    SCHEDULING_ALGORITHM.write(&mut out);
    POD_SCHEDULING.write(&mut out);
    CLIENT_REQUESTS.write(&mut out);
    CLIENT_DURATIONS.write(&mut out);
    RUNTIME_OPERATIONS.write(&mut out);
    RUNTIME_ERRORS.write(&mut out);
    RUNTIME_DURATIONS.write(&mut out);
    POD_START.write(&mut out);
    PROXY_SYNC.write(&mut out);
    DNS_REQUESTS.write(&mut out);
    DNS_RESPONSES.write(&mut out);
    DNS_DURATIONS.write(&mut out);
    DNS_CACHE_HITS.write(&mut out);
    DNS_CACHE_MISSES.write(&mut out);
    if let Ok(entries) = u64::try_from(DNS_CACHE_ENTRIES.load(Ordering::Relaxed)) {
        gauge(&mut out, "coredns_cache_entries", "gauge", "The number of elements in the cache.", &entries);
    }
    CLIENT_CERTIFICATES.write(&mut out);
    if !WORKQUEUES.lock().expect("no panic while held").is_empty() {
        workqueues(&mut out);
    }
    process(&mut out);
    out
}

/// Counts an operation of the container runtime, by the kubelet's name for it.
pub async fn runtime_operation<T, E>(name: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let labels = Pairs([("operation_type", name)]);
    RUNTIME_OPERATIONS.add(labels);
    let began = Instant::now();
    let result = work.await;
    RUNTIME_DURATIONS.observe(labels, began.elapsed());
    if result.is_err() {
        RUNTIME_ERRORS.add(labels);
    }
    result
}

/// What Prometheus' client libraries tell of a process.
fn process(out: &mut String) {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    // The fields of `stat` after the name, which may have spaces: the first one is the third of all.
    let stat = read("/proc/self/stat").and_then(|s| Some(s.rsplit_once(") ")?.1.to_owned())).unwrap_or_default();
    let fields: Vec<u64> = stat.split(' ').map(|f| f.parse().unwrap_or(0)).collect();
    let field = |n: usize| fields.get(n - 3).copied().unwrap_or(0);
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let (user, system, started) = (field(14) as f64, field(15) as f64, field(22) as f64);
    let help = "Total user and system CPU time spent in seconds.";
    gauge(out, "process_cpu_seconds_total", "counter", help, &((user + system) / ticks));
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    gauge(out, "process_open_fds", "gauge", "Number of open file descriptors.", &open.saturating_sub(1));
    let limits = read("/proc/self/limits").unwrap_or_default();
    let most = limits.lines().find_map(|l| l.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    gauge(out, "process_max_fds", "gauge", "Maximum number of open file descriptors.", &most.unwrap_or(0u64));
    let page = rustix::param::page_size() as u64;
    let help = "Resident memory size in bytes.";
    gauge(out, "process_resident_memory_bytes", "gauge", help, &(field(24) * page));
    gauge(out, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", &field(23));
    let boot = read("/proc/stat").and_then(|s| s.lines().find_map(|l| l.strip_prefix("btime ")?.parse::<f64>().ok()));
    let help = "Start time of the process since unix epoch in seconds.";
    gauge(out, "process_start_time_seconds", "gauge", help, &(boot.unwrap_or(0.0) + started / ticks));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_written_as_prometheus_reads_them() {
        let all: Histograms<Pairs<1>> = Histograms::new("x_seconds", "Help.", &[(0.5, "0.5"), (1.0, "1")]);
        for millis in [500, 600, 5000] {
            all.observe(Pairs([("verb", "GET")]), Duration::from_millis(millis));
        }
        let mut out = String::new();
        all.write(&mut out);
        assert_eq!(
            out,
            "# HELP x_seconds Help.\n# TYPE x_seconds histogram\nx_seconds_bucket{verb=\"GET\",le=\"0.5\"} 1\n\
             x_seconds_bucket{verb=\"GET\",le=\"1\"} 2\nx_seconds_bucket{verb=\"GET\",le=\"+Inf\"} 3\n\
             x_seconds_sum{verb=\"GET\"} 6.1\nx_seconds_count{verb=\"GET\"} 3\n"
        );
        let bare: Counters<Pairs<0>> = Counters::new("y_total", "Help.");
        let mut out = String::new();
        bare.write(&mut out);
        assert_eq!(out, "", "nothing without a sample");
        bare.add(Pairs([]));
        bare.write(&mut out);
        assert!(out.ends_with("\ny_total 1\n"), "{out}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_tells_what_waits_and_how_long_work_takes() {
        let (queue, now) = (Workqueue::named("of-the-test"), Instant::now());
        queue.added(2, 2);
        let run = queue.begun(Duration::from_millis(5), now, 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        let has = |line: &str| {
            let text = text();
            let line = line.replace('@', "name=\"of-the-test\"");
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        };
        has("workqueue_depth{@} 1");
        has("workqueue_unfinished_work_seconds{@} 2");
        queue.ended(run, Instant::now());
        queue.retried();
        has("workqueue_adds_total{@} 2");
        has("workqueue_retries_total{@} 1");
        has("workqueue_queue_duration_seconds_bucket{@,le=\"0.001\"} 0");
        has("workqueue_queue_duration_seconds_bucket{@,le=\"0.01\"} 1");
        has("workqueue_work_duration_seconds_bucket{@,le=\"1\"} 0");
        has("workqueue_work_duration_seconds_sum{@} 2");
        has("workqueue_unfinished_work_seconds{@} 0");
        assert!(Arc::ptr_eq(&queue, &Workqueue::named("of-the-test")));
    }

    #[test]
    fn the_process_tells_what_every_process_tells() {
        let text = text();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("no {name}"));
            line.rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_cpu_seconds_total") >= 0.0 && value("process_start_time_seconds") > 1.6e9);
    }
}
