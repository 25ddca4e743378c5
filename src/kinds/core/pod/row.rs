//! A pod's row in a table: what kubectl calls its status is made of many fields.

use jiff::Timestamp;
use serde_json::Value;

use crate::base::json::{at, int, list, text};
use crate::kinds::Column;
use crate::kinds::table::{self, string, wide};

pub(super) const COLUMNS: &[Column] = &[
    table::NAME,
    string("Ready", "How many containers are ready, of how many."),
    string("Status", "The aggregate state of the containers in this pod."),
    string("Restarts", "How often the containers were restarted in all, and when last."),
    table::AGE,
    wide("IP", "The first address of the pod."),
    wide("Node", "The node that the pod is bound to."),
    wide("Nominated Node", "The node that preemption makes room on for the pod."),
    wide("Readiness Gates", "How many readiness gates are open, of how many."),
];

/// The cells.
pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let counted = count(pod);
    let restarts = match counted.restarted {
        Some(at) if counted.restarts > 0 => format!("{} ({} ago)", counted.restarts, table::since(at, now)),
        _ => counted.restarts.to_string(),
    };
    let or_none = |path: &str| -> Value {
        let text = text(pod, path);
        if text.is_empty() { "<none>".into() } else { text.into() }
    };
    let address = match list(pod, "status.podIPs").first() {
        Some(first) => Value::from(text(first, "ip")),
        None => or_none("status.podIP"),
    };
    vec![
        table::name(pod),
        format!("{}/{}", counted.ready, counted.total).into(),
        counted.reason.into(),
        restarts.into(),
        table::age(pod, now),
        address,
        or_none("spec.nodeName"),
        or_none("status.nominatedNodeName"),
        gates(pod),
    ]
}

fn gates(pod: &Value) -> Value {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let open = gates.iter().filter(|g| condition(pod, text(g, "conditionType")).is_some_and(|c| c["status"] == "True"));
    format!("{}/{}", open.count(), gates.len()).into()
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    list(pod, "status.conditions").iter().find(|c| text(c, "type") == kind)
}

struct Count<'a> {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i64,
    restarted: Option<&'a str>,
}

/// Restarts of some containers, and the latest end of one before it was restarted.
#[derive(Default)]
struct Restarts<'a> {
    count: i64,
    last: Option<&'a str>,
}

// === impl Restarts ===

impl<'a> Restarts<'a> {
    fn add(&mut self, status: &'a Value) {
        self.count += int(status, "restartCount").unwrap_or(0);
        let ended = text(status, "lastState.terminated.finishedAt");
        // Times of one form sort as texts.
        if !ended.is_empty() && self.last.is_none_or(|last| last < ended) {
            self.last = Some(ended);
        }
    }
}

fn count(pod: &Value) -> Count<'_> {
    let mut reason = phase(pod);
    let init = list(pod, "spec.initContainers");
    let is_sidecar = |name: &str| init.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always");
    let mut total = list(pod, "spec.containers").len();
    total += init.iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let (mut all, mut sidecars) = (Restarts::default(), Restarts::default());
    let mut ready = 0;
    let mut initializing = false;
    for (i, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        all.add(status);
        let sidecar = is_sidecar(text(status, "name"));
        if sidecar {
            sidecars.add(status);
        }
        let exit = int(status, "state.terminated.exitCode");
        if exit == Some(0) {
            continue;
        }
        if sidecar && status["started"] == true {
            ready += usize::from(status["ready"] == true);
            continue;
        }
        if initializing {
            continue;
        }
        initializing = true;
        let waiting = text(status, "state.waiting.reason");
        reason = match exit {
            Some(_) => format!("Init:{}", ended(status)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", init.len()),
        };
    }
    if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == "True") {
        all = sidecars;
        let mut running = false;
        for status in list(pod, "status.containerStatuses").iter().rev() {
            all.add(status);
            let waiting = text(status, "state.waiting.reason");
            if !waiting.is_empty() {
                reason = waiting.to_owned();
            } else if at(status, "state.terminated").is_some() {
                reason = ended(status);
            } else if status["ready"] == true && at(status, "state.running").is_some() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let is_ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.into();
        }
    }
    if at(pod, "metadata.deletionTimestamp").is_some_and(|t| !t.is_null()) {
        if text(pod, "status.reason") == "NodeLost" {
            reason = "Unknown".into();
        } else if !matches!(text(pod, "status.phase"), "Succeeded" | "Failed") {
            reason = "Terminating".into();
        }
    }
    Count { reason, ready, total, restarts: all.count, restarted: all.last }
}

fn phase(pod: &Value) -> String {
    let gated = condition(pod, "PodScheduled").is_some_and(|c| text(c, "reason") == "SchedulingGated");
    match (text(pod, "status.reason"), gated) {
        (_, true) => "SchedulingGated".into(),
        ("", false) => text(pod, "status.phase").into(),
        (reason, false) => reason.into(),
    }
}

/// Why a container ended.
fn ended(status: &Value) -> String {
    let state = &status["state"]["terminated"];
    let (reason, signal) = (text(state, "reason"), int(state, "signal").unwrap_or(0));
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", int(state, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}
