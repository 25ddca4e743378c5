//! From two samples to what is used: pure.

use super::sample::{Point, Sample};

/// A container that began so long before the last sample may be measured from its beginning.
const NEW_SECONDS_MAX: f64 = 120.0;
/// A shorter time says nothing.
const WINDOW_SECONDS_MIN: f64 = 0.5;

/// What is used on average in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Milliseconds since 1970 at the end of the window.
    pub at: i64,
    pub window_nanos: i64,
    /// Billionths of a core.
    pub cpu_nanos: i64,
    pub memory_bytes: i64,
}

/// What a node uses.
pub(in crate::api) type NodeUsage = Usage;

/// What a container uses.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerUsage {
    pub name: Box<str>,
    pub usage: Usage,
}

/// What the containers of a pod use, and in which window.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::api) struct PodUsage {
    pub at: i64,
    pub window_nanos: i64,
    pub containers: Vec<ContainerUsage>,
}

/// What a node used between two samples.
pub(super) fn node_usage(before: &Sample, last: &Sample) -> Option<NodeUsage> {
    between(&before.node, &last.node)
}

/// What a pod used between two samples: nothing is said of one of whose containers something is missing.
pub(super) fn pod_usage(before: &Sample, last: &Sample, namespace: &str, pod: &str) -> Option<PodUsage> {
    let key = (namespace.into(), pod.into());
    let now = last.pods.get(&key)?;
    let then = before.pods.get(&key);
    let mut containers = Vec::with_capacity(now.len());
    for (name, point) in now {
        let known = then.and_then(|then| then.get(name)).filter(|then| then.started == point.started).copied();
        let usage = between(&known.or_else(|| beginning(point))?, point)?;
        containers.push(ContainerUsage { name: name.clone(), usage });
    }
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let earliest = containers.iter().map(|c| c.usage).min_by_key(|usage| usage.at)?;
    Some(PodUsage { at: earliest.at, window_nanos: earliest.window_nanos, containers })
}

/// A container that is new had used nothing when it began.
fn beginning(point: &Point) -> Option<Point> {
    let age = point.at as f64 / 1e3 - point.started;
    let is_new = point.started > 0.0 && (WINDOW_SECONDS_MIN..=NEW_SECONDS_MAX).contains(&age);
    is_new.then(|| Point { at: (point.started * 1e3) as i64, cpu_seconds: Some(0.0), ..*point })
}

fn between(before: &Point, last: &Point) -> Option<Usage> {
    let seconds = (last.at - before.at) as f64 / 1e3;
    let used = last.cpu_seconds? - before.cpu_seconds?;
    // What went backwards began anew.
    (seconds >= WINDOW_SECONDS_MIN && used >= 0.0).then_some(())?;
    Some(Usage {
        at: last.at,
        window_nanos: (seconds * 1e9) as i64,
        cpu_nanos: (used / seconds * 1e9) as i64,
        memory_bytes: last.memory_bytes? as i64,
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn sample(at: i64, containers: &[(&str, f64, f64)]) -> Sample {
        let lines = containers.iter().map(|(name, cpu, started)| {
            let labels = format!("{{container=\"{name}\",namespace=\"n\",pod=\"p\"}}");
            format!(
                "container_cpu_usage_seconds_total{labels} {cpu} {at}\ncontainer_memory_working_set_bytes{labels} 1024 {at}\n\
                 container_start_time_seconds{labels} {started}\n"
            )
        });
        Sample::read(&lines.collect::<String>(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_rate_is_what_was_used_over_the_time_that_passed() {
        let (before, last) = (sample(10_000_000, &[("a", 5.0, 1.0)]), sample(10_015_000, &[("a", 8.0, 1.0)]));
        let used = pod_usage(&before, &last, "n", "p").unwrap();
        assert_eq!((used.at, used.window_nanos), (10_015_000, 15_000_000_000));
        assert_eq!(used.containers[0].usage.cpu_nanos, 200_000_000);
        assert_eq!(used.containers[0].usage.memory_bytes, 1024);
        assert_eq!(pod_usage(&before, &last, "n", "other"), None);
    }

    #[test]
    fn a_container_that_began_anew_is_measured_from_its_beginning_and_an_unknown_one_hides_its_pod() {
        let before = sample(10_000_000, &[("a", 50.0, 1.0)]);
        let restarted = sample(10_015_000, &[("a", 2.0, 10_005.0)]);
        let used = pod_usage(&before, &restarted, "n", "p").unwrap();
        assert_eq!(used.window_nanos, 10_000_000_000);
        assert_eq!(used.containers[0].usage.cpu_nanos, 200_000_000);
        let backwards = sample(10_015_000, &[("a", 2.0, 1.0)]);
        assert_eq!(pod_usage(&before, &backwards, "n", "p"), None);
        let second = sample(10_015_000, &[("a", 51.0, 1.0), ("b", 1.0, 2.0)]);
        assert_eq!(pod_usage(&before, &second, "n", "p"), None, "nobody knows what b has used lately");
    }
}
