//! What a node has said once: `/metrics/resource` of the kubelet, read.

use std::collections::HashMap;

use jiff::Timestamp;

/// Containers of a node that are taken in.
const CONTAINERS_MAX: usize = 20_000;
/// Bytes of a name.
const NAME_BYTES_MAX: usize = 253;

/// Everything of a node at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub node: Point,
    /// By namespace and pod, each with its containers by name.
    pub pods: HashMap<(Box<str>, Box<str>), HashMap<Box<str>, Point>>,
}

/// What something had used and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// Milliseconds since 1970 when it was measured.
    pub at: i64,
    pub cpu_seconds: Option<f64>,
    pub memory_bytes: Option<f64>,
    /// Seconds since 1970 when it began; 0 where nobody knows.
    pub started: f64,
}

// === impl Sample ===

impl Sample {
    /// Reads a text in the Prometheus format. What is not understood is left out.
    pub(super) fn read(text: &str, now: Timestamp) -> Self {
        let (mut sample, mut containers) = (Self::default(), 0);
        sample.node.at = now.as_millisecond();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, labels, value, at)) = parts(line) else { continue };
            let point = match name {
                "node_cpu_usage_seconds_total" | "node_memory_working_set_bytes" => Some(&mut sample.node),
                "container_cpu_usage_seconds_total"
                | "container_memory_working_set_bytes"
                | "container_start_time_seconds" => sample.container(labels, now, &mut containers),
                _ => None,
            };
            let Some(point) = point else { continue };
            match name.rsplit_once('_').map_or("", |(rest, _)| rest) {
                rest if rest.ends_with("cpu_usage_seconds") => {
                    point.cpu_seconds = Some(value);
                    point.at = at.unwrap_or(point.at);
                }
                rest if rest.ends_with("memory_working_set") => point.memory_bytes = Some(value),
                _ => point.started = value,
            }
        }
        sample
    }

    fn container(&mut self, labels: &str, now: Timestamp, containers: &mut usize) -> Option<&mut Point> {
        let (namespace, pod, container) =
            (label(labels, "namespace")?, label(labels, "pod")?, label(labels, "container")?);
        let of_pod = self.pods.entry((namespace, pod)).or_default();
        if !of_pod.contains_key(&container) {
            *containers += 1;
        }
        let fresh = Point { at: now.as_millisecond(), ..Point::default() };
        (*containers <= CONTAINERS_MAX).then(|| of_pod.entry(container).or_insert(fresh))
    }
}

/// Name, labels, value and time of a line.
fn parts(line: &str) -> Option<(&str, &str, f64, Option<i64>)> {
    let (name, labels, rest) = match line.split_once('{') {
        // No name of a pod or container has a brace.
        Some((name, rest)) => rest.split_once('}').map(|(labels, rest)| (name, labels, rest))?,
        None => line.split_once(' ').map(|(name, rest)| (name, "", rest))?,
    };
    let mut numbers = rest.split_ascii_whitespace();
    let value: f64 = numbers.next()?.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
    Some((name, labels, value, numbers.next().and_then(|at| at.parse().ok())))
}

/// The value of a label, if it can be a name.
fn label(labels: &str, name: &str) -> Option<Box<str>> {
    let found = labels.split(',').find_map(|pair| pair.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))?;
    (!found.is_empty() && found.len() <= NAME_BYTES_MAX && !found.contains('\\')).then(|| found.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kubelet_says_is_read_and_the_rest_left_out() {
        let text = "# HELP node_cpu_usage_seconds_total x\n\
            container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5 1700000000123\n\
            container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 4096 1700000000123\n\
            container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.7e9\n\
            container_cpu_usage_seconds_total{container=\"d\",namespace=\"n\"} 1 1\n\
            container_cpu_usage_seconds_total{container=\"d\",namespace=\"n\",pod=\"p\"} NaN 1\n\
            container_cpu_usage_seconds_total{container=\n\
            node_cpu_usage_seconds_total 10 1700000000456\n\
            node_memory_working_set_bytes 8192 1700000000456\n\
            pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 7 1\n";
        let sample = Sample::read(text, Timestamp::UNIX_EPOCH);
        let node = Point { at: 1_700_000_000_456, cpu_seconds: Some(10.0), memory_bytes: Some(8192.0), started: 0.0 };
        assert_eq!(sample.node, node);
        let containers = &sample.pods[&("n".into(), "p".into())];
        let container =
            Point { at: 1_700_000_000_123, cpu_seconds: Some(1.5), memory_bytes: Some(4096.0), started: 1.7e9 };
        assert_eq!(containers.get("c"), Some(&container));
        assert_eq!((containers.len(), sample.pods.len()), (1, 1));
    }
}
