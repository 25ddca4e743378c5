//! What is counted: names, help texts and bounds as Kubernetes and its companions have them.

use std::fmt::Write;
use std::sync::atomic::AtomicI64;

use super::families::{Bound, Counter, Counters, Histograms, Labels, Pairs};

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

/// Of `rest_client_request_duration_seconds`.
pub(super) const CLIENT_BOUNDS: &[Bound] = &[
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
pub(super) const POWERS_OF_TWO: &[Bound] = &[
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
pub(super) const MILLISECONDS_BOUNDS: &[Bound] = POWERS_OF_TWO.split_at(2).1;
/// From a pod's first try to its node: powers of two from ten milliseconds.
pub(super) const POD_SCHEDULING_BOUNDS: &[Bound] = &[
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
pub(super) const RUNTIME_BOUNDS: &[Bound] = &[
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
pub(super) const POD_START_BOUNDS: &[Bound] = &[
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
pub(super) const DNS_BOUNDS: &[Bound] = POWERS_OF_TWO.split_at(POWERS_OF_TWO.len() - 1).0;

/// Of `apiserver_client_certificate_expiration_seconds`: from half an hour to a year.
pub(super) const CERTIFICATE_BOUNDS: &[Bound] = &[
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
pub(super) static RUNTIME_OPERATIONS: Counters<Pairs<1>> = Counters::new(
    "kubelet_runtime_operations_total",
    "[ALPHA] Cumulative number of runtime operations by operation type.",
);
pub(super) static RUNTIME_ERRORS: Counters<Pairs<1>> = Counters::new(
    "kubelet_runtime_operations_errors_total",
    "[ALPHA] Cumulative number of runtime operation errors by operation type.",
);
pub(super) static RUNTIME_DURATIONS: Histograms<Pairs<1>> = Histograms::new(
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

/// A request to a server; the code is empty where only its duration counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientLabels {
    pub host: String,
    pub method: &'static str,
    /// 0: none came.
    pub code: Option<u16>,
}

/// Every counter.
pub(super) static ALL: &[&Counter] = &[&REQUESTS, &REQUEST_ERRORS, &REJECTED, &TOLD, &RECONCILES, &RECONCILE_ERRORS];

// === impl Counter ===

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
