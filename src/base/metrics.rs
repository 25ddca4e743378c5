//! Counters of the process in the Prometheus text format, under the names that the world's dashboards use.
//!
//! A counter is a static that whoever counts declares; counting is an addition under a short lock or none, and whatever can
//! be had from elsewhere is asked for only when somebody reads. Invariant: labels come from closed sets, so that nobody makes
//! the process grow by what they ask for.

mod families;
mod series;
mod workqueue;

use families::gauge;
pub use families::{Bound, Counter, Counters, Histograms, Labels, Pairs};
pub use series::*;
pub use workqueue::Workqueue;
use workqueue::workqueues;

use std::sync::atomic::Ordering;

use tokio::time::Instant;

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
    workqueues(&mut out);
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
    use std::sync::Arc;
    use std::time::Duration;

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
