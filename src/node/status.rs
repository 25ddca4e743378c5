//! The status of a pod, computed from its state machine.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, VolumeMount};
use serde_json::{Map, Value, json};

use super::machine::{Container, ContainerState, Ended, Phase, PodState, Restart, Role, Stage};
use super::resize::{Quantities, Shares, WHOLE};
use super::spec;
use crate::base::clock::seconds_text;

/// Reason and message of a pod that was active for too long.
pub const OVERDUE: (&str, &str) = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline");

/// What the status says beside the machine's state.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub addresses: Vec<IpAddr>,
    pub host_addresses: Vec<IpAddr>,
    pub sandbox: bool,
    pub start_time: Option<Timestamp>,
    pub deleting: bool,
    pub resources: Resources,
}

/// What the containers of a pod have, and what is under way.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// What counts against the node.
    pub allocated: Quantities,
    pub granted: Shares,
    pub has: Shares,
    pub conditions: Vec<Condition>,
}

/// A condition that is there only while it is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// Conditions of this kind.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The status to report; `current` is what the API has, whose other conditions and unchanged times stay.
pub fn of(pod: &Pod, state: &PodState, observed: &Observed, current: &Value, now: Timestamp) -> Value {
    let phase = match state.phase() {
        // What has ended well or not stays so also while the pod is being deleted.
        Phase::Pending if observed.deleting && matches!(state.stage, Stage::Gone) => Phase::Failed,
        phase => phase,
    };
    let mut status = Map::new();
    let name = |p| match p {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    };
    status.insert("phase".into(), name(phase).into());
    if state.overdue {
        status.insert("reason".into(), OVERDUE.0.into());
        status.insert("message".into(), OVERDUE.1.into());
    }
    if let Some((reason, message)) = &state.refused {
        status.insert("reason".into(), reason.as_ref().into());
        status.insert("message".into(), format!("Pod was rejected: {message}").into());
    }
    status.insert("conditions".into(), conditions(pod, state, observed, phase, current, now));
    let list = |key: &str, all: &[IpAddr]| -> Value { all.iter().map(|a| json!({key: a.to_string()})).collect() };
    if let Some(first) = observed.host_addresses.first() {
        status.insert("hostIP".into(), first.to_string().into());
        status.insert("hostIPs".into(), list("ip", &observed.host_addresses));
    }
    if let Some(first) = observed.addresses.first() {
        status.insert("podIP".into(), first.to_string().into());
        status.insert("podIPs".into(), list("ip", &observed.addresses));
    }
    if let Some(start) = observed.start_time {
        status.insert("startTime".into(), seconds_text(start).into());
    }
    if let Some(generation) = pod.metadata.generation {
        status.insert("observedGeneration".into(), generation.into());
    }
    let entries = |want: fn(Role) -> bool| -> Vec<Value> {
        let all = state.containers.iter().zip(&state.plan.containers);
        all.filter(|(_, p)| want(p.role) && state.refused.is_none())
            .map(|(c, p)| entry(pod, state, c, p.role, &observed.resources))
            .collect()
    };
    let init = entries(|r| matches!(r, Role::Init | Role::Sidecar));
    if !init.is_empty() {
        status.insert("initContainerStatuses".into(), init.into());
    }
    let ephemeral = entries(|r| r == Role::Ephemeral);
    if !ephemeral.is_empty() {
        status.insert("ephemeralContainerStatuses".into(), ephemeral.into());
    }
    status.insert("containerStatuses".into(), entries(|r| r == Role::Main).into());
    if state.refused.is_none() {
        if !observed.resources.allocated.is_empty() {
            status.insert("allocatedResources".into(), json!(observed.resources.allocated));
        }
        if let Some(has) = observed.resources.has.get(WHOLE) {
            status.insert("resources".into(), json!(has));
        }
    }
    if let Some(qos) = current.get("qosClass") {
        status.insert("qosClass".into(), qos.clone());
    }
    Value::Object(status)
}

/// A condition's value, reason and message.
type Verdict = (bool, &'static str, String);

fn conditions(
    pod: &Pod,
    state: &PodState,
    observed: &Observed,
    phase: Phase,
    current: &Value,
    now: Timestamp,
) -> Value {
    let ready = containers_ready(state, phase);
    let mut mine: Vec<(&str, Verdict)> = vec![
        ("PodReadyToStartContainers", (observed.sandbox, "", String::new())),
        ("Initialized", initialized(state, phase)),
        ("Ready", pod_ready(pod, &ready, current)),
        ("ContainersReady", ready),
        ("PodScheduled", (true, "", String::new())),
    ];
    let passing = observed.resources.conditions.iter().map(|c| (c.kind, (true, c.reason, c.message.clone())));
    mine.extend(passing);
    let old = current.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out: Vec<Value> = Vec::new();
    for (kind, (value, reason, message)) in mine {
        let before = old.iter().find(|c| c["type"] == kind);
        let text = if value { "True" } else { "False" };
        let since = before.filter(|b| b["status"] == text).and_then(|b| b.get("lastTransitionTime").cloned());
        let mut condition = json!({
            "type": kind, "status": text, "lastProbeTime": null, "lastTransitionTime": since.unwrap_or_else(|| seconds_text(now).into()),
        });
        if !reason.is_empty() {
            condition["reason"] = reason.into();
        }
        if !message.is_empty() {
            condition["message"] = message.into();
        }
        if let Some(generation) = pod.metadata.generation {
            condition["observedGeneration"] = generation.into();
        }
        out.push(condition);
    }
    let known: Vec<Value> = out.iter().map(|c| c["type"].clone()).collect();
    let passed = |c: &Value| c["type"].as_str().is_some_and(|kind| PASSING.contains(&kind));
    out.extend(old.into_iter().filter(|c| !known.contains(&c["type"]) && !passed(c)));
    out.into()
}

fn initialized(state: &PodState, phase: Phase) -> Verdict {
    let waiting = names_of(state, |c, role| match role {
        Role::Init => !matches!(&c.now, ContainerState::Ended(e) if e.code == 0),
        Role::Sidecar => !c.started,
        Role::Main | Role::Ephemeral => false,
    });
    match phase {
        Phase::Succeeded => (true, "PodCompleted", String::new()),
        _ if waiting.is_empty() => (true, "", String::new()),
        _ => (false, "ContainersNotInitialized", format!("containers with incomplete status: [{}]", waiting.join(" "))),
    }
}

fn containers_ready(state: &PodState, phase: Phase) -> Verdict {
    let unready = names_of(state, |c, role| {
        matches!(role, Role::Main | Role::Sidecar) && !(c.ready && matches!(c.now, ContainerState::Running { .. }))
    });
    match phase {
        Phase::Succeeded => (false, "PodCompleted", String::new()),
        Phase::Failed => (false, "PodFailed", String::new()),
        Phase::Pending | Phase::Running if unready.is_empty() => (true, "", String::new()),
        _ => (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
    }
}

/// As ready as the containers, and as the pod's readiness gates say.
fn pod_ready(pod: &Pod, containers_ready: &Verdict, current: &Value) -> Verdict {
    let gates = pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten());
    let gates: Vec<String> =
        gates.filter(|g| !is_true(current, &g.condition_type)).map(|g| g.condition_type.clone()).collect();
    if !containers_ready.0 || gates.is_empty() {
        return containers_ready.clone();
    }
    (false, "ReadinessGatesNotReady", format!("the status of pod readiness gates {gates:?} is not \"True\""))
}

fn names_of(state: &PodState, which: impl Fn(&Container, Role) -> bool) -> Vec<&str> {
    let all = state.containers.iter().zip(&state.plan.containers);
    all.filter(|(c, p)| which(c, p.role)).map(|(c, _)| c.name.as_str()).collect()
}

fn is_true(current: &Value, kind: &str) -> bool {
    let all = current.get("conditions").and_then(Value::as_array);
    all.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

fn entry(pod: &Pod, state: &PodState, c: &Container, role: Role, resources: &Resources) -> Value {
    let image = spec::container(pod, &c.name).and_then(|s| s.image.clone()).unwrap_or_default();
    let mut out = json!({
        "name": c.name, "image": image, "imageID": c.image_id, "restartCount": c.restarts,
        "ready": match (&c.now, role) {
            (ContainerState::Running { .. }, Role::Init | Role::Sidecar | Role::Main) => c.ready,
            (ContainerState::Ended(e), Role::Init) => e.code == 0,
            _ => false,
        },
        "started": c.started && matches!(c.now, ContainerState::Running { .. }),
        "state": now_state(state, c, role, &image),
        "lastState": last_state(c),
    });
    let mounts = mounts(pod, c);
    if !mounts.is_empty() {
        out["volumeMounts"] = mounts.into();
    }
    if let (Some(granted), Some(has)) = (resources.granted.get(&c.name), resources.has.get(&c.name)) {
        out["resources"] = json!(has);
        if let Some(requests) = granted.requests.as_ref().filter(|r| !r.is_empty()) {
            out["allocatedResources"] = json!(requests);
        }
    }
    let id = match &c.now {
        ContainerState::Running { id, .. } => Some(id),
        ContainerState::Ended(e) | ContainerState::Crashed { ended: e, .. } => Some(&e.id),
        _ => c.last.as_ref().map(|e| &e.id),
    };
    if let Some(id) = id.filter(|id| !id.is_empty()) {
        out["containerID"] = format!("amphipod://{id}").into();
    }
    out
}

/// What a container mounts of the pod's volumes; of an image, which one it is, once it is known.
fn mounts(pod: &Pod, c: &Container) -> Vec<Value> {
    let container = spec::container(pod, &c.name);
    let mount = |m: &VolumeMount| {
        let mut out = json!({"name": m.name, "mountPath": m.mount_path});
        if m.read_only == Some(true) {
            out["readOnly"] = true.into();
            // What is mounted below a volume is as it is.
            out["recursiveReadOnly"] = "Disabled".into();
        }
        if let Some(image) = c.volume_images.get(&m.name) {
            out["volumeStatus"] = json!({"image": {"imageRef": image}});
        }
        out
    };
    container.iter().flat_map(|c| c.volume_mounts.iter().flatten()).map(mount).collect()
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut out = json!({"reason": reason});
    if !message.is_empty() {
        out["message"] = message.into();
    }
    json!({"waiting": out})
}

fn now_state(state: &PodState, c: &Container, role: Role, image: &str) -> Value {
    if let (Role::Init, Restart::OnFailure, Some(last)) = (role, state.plan.restart, &c.last)
        && last.code == 0
        && !matches!(c.now, ContainerState::Ended(_))
    {
        // It runs once more in a new sandbox, and the API lets nobody begin again who has succeeded.
        return json!({"terminated": terminated(last)});
    }
    match &c.now {
        ContainerState::Waiting | ContainerState::Starting | ContainerState::Pulling | ContainerState::Pulled => {
            let any_init = state.plan.containers.iter().any(|p| matches!(p.role, Role::Init | Role::Sidecar));
            waiting(if any_init { "PodInitializing" } else { "ContainerCreating" }, "")
        }
        ContainerState::PullFailed { reason: reason @ "ErrImagePull", message, rests_at: None, .. } => {
            waiting("ImagePullBackOff", &format!("Back-off pulling image {image:?}: {reason}: {message}"))
        }
        ContainerState::PullFailed { reason, message, .. } => waiting(reason, message),
        ContainerState::StartFailed { reason, message, .. } => waiting(reason, message),
        ContainerState::Running { since, .. } => json!({"running": {"startedAt": seconds_text(*since)}}),
        ContainerState::Ended(e) => json!({"terminated": terminated(e)}),
        ContainerState::Crashed { .. } => {
            waiting("CrashLoopBackOff", &format!("back-off restarting failed container={}", c.name))
        }
    }
}

fn last_state(c: &Container) -> Value {
    match (&c.now, &c.last) {
        (ContainerState::Crashed { ended, .. }, _) | (_, Some(ended)) => json!({"terminated": terminated(ended)}),
        _ => json!({}),
    }
}

fn terminated(e: &Ended) -> Value {
    let mut out = json!({
        "exitCode": e.code, "reason": e.reason, "finishedAt": seconds_text(e.finished_at),
        "startedAt": e.started_at.map(seconds_text),
    });
    // What never began has none.
    if !e.id.is_empty() {
        out["containerID"] = format!("amphipod://{}", e.id).into();
    }
    if let Some(signal) = e.signal {
        out["signal"] = signal.into();
    }
    if !e.message.is_empty() {
        out["message"] = e.message.as_str().into();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::machine::{self, Event};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn pod(v: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": v})).unwrap()
    }

    fn status(pod: &Pod, events: Vec<Event>) -> Value {
        let mut state = PodState::new(spec::plan(pod));
        for event in [vec![Event::Begin, Event::Prepared], events].concat() {
            state = machine::step(state, event, at(0)).0;
        }
        of(pod, &state, &Observed::default(), &json!({}), at(0))
    }

    fn run(name: &str) -> Vec<Event> {
        let container = || name.to_owned();
        let id = format!("{name}-id");
        vec![
            Event::Pulled {
                container: container(),
                image_id: String::new(),
                volume_images: [("v".to_owned(), "r/i@sha256:1".to_owned())].into(),
            },
            Event::Started { container: container(), id, pid: 1, since: at(0) },
        ]
    }

    fn exit(name: &str, code: i32) -> Event {
        let reason = Ended::reason(code, false).to_owned();
        Event::Exited { container: name.into(), ended: Ended { id: "x".into(), code, reason, ..Ended::lost(at(1)) } }
    }

    #[test]
    fn init_containers_are_ready_when_they_are_through_and_all_wait_for_the_initialisation() {
        let pod = pod(json!({
            "initContainers": [{"name": "i", "image": "b"}, {"name": "j", "image": "b"}],
            "containers": [{"name": "a", "image": "b"}],
        }));
        let now = status(&pod, [run("i"), vec![exit("i", 0)]].concat());
        let init = &now["initContainerStatuses"];
        assert_eq!((&init[0]["ready"], &init[0]["started"]), (&json!(true), &json!(false)));
        assert_eq!(init[0]["state"]["terminated"]["reason"], "Completed");
        assert_eq!(init[1]["state"], json!({"waiting": {"reason": "PodInitializing"}}));
        assert_eq!(init[1]["ready"], false);
        assert_eq!(now["containerStatuses"][0]["state"], json!({"waiting": {"reason": "PodInitializing"}}));
        let failed = status(&pod, [run("i"), vec![exit("i", 1)]].concat());
        assert_eq!(failed["initContainerStatuses"][0]["ready"], false);
        let alone = super::tests::pod(json!({"containers": [{"name": "a", "image": "b"}]}));
        let waits = &status(&alone, Vec::new())["containerStatuses"][0]["state"];
        assert_eq!(*waits, json!({"waiting": {"reason": "ContainerCreating"}}));
    }

    #[test]
    fn mounts_are_told_with_the_images_that_they_are_of() {
        let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "e", "mountPath": "/e", "readOnly": true}]);
        let pod = pod(json!({
            "volumes": [{"name": "v", "image": {"reference": "r/i"}}, {"name": "e", "emptyDir": {}}],
            "containers": [{"name": "a", "image": "b", "volumeMounts": mounts}, {"name": "b", "image": "b"}],
        }));
        let of_volume = json!({"name": "e", "mountPath": "/e", "readOnly": true, "recursiveReadOnly": "Disabled"});
        let before = status(&pod, Vec::new());
        let plain = json!({"name": "v", "mountPath": "/v"});
        assert_eq!(before["containerStatuses"][0]["volumeMounts"], json!([plain, of_volume]));
        assert_eq!(before["containerStatuses"][1].get("volumeMounts"), None);
        let of_image = json!({"name": "v", "mountPath": "/v", "volumeStatus": {"image": {"imageRef": "r/i@sha256:1"}}});
        for events in [run("a"), [run("a"), vec![exit("a", 1)]].concat()] {
            let after = status(&pod, events);
            assert_eq!(after["containerStatuses"][0]["volumeMounts"], json!([of_image, of_volume]));
        }
    }

    #[test]
    fn what_could_not_be_started_has_a_reason_and_no_id() {
        let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}));
        let failed = Event::StartFailed { container: "a".into(), reason: "RunContainerError", message: "no".into() };
        let all = status(&pod, vec![run("a").remove(0), failed]);
        let ended = &all["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (&ended["reason"], &ended["exitCode"], &ended["message"]),
            (&json!("StartError"), &json!(128), &json!("no"))
        );
        assert!(
            ended.get("containerID").is_none() && all["containerStatuses"][0].get("containerID").is_none(),
            "{all}"
        );
    }

    #[test]
    fn an_init_container_that_runs_once_more_is_as_it_ended_until_it_ends_again() {
        let pod = pod(json!({
            "restartPolicy": "OnFailure",
            "initContainers": [{"name": "i", "image": "b"}], "containers": [{"name": "a", "image": "b"}],
        }));
        let first = [run("i"), vec![exit("i", 0)], run("a"), vec![Event::SandboxGone, Event::Prepared]].concat();
        let again = status(&pod, [first.clone(), run("i")].concat());
        let init = &again["initContainerStatuses"][0];
        assert_eq!((&init["restartCount"], &init["state"]["terminated"]["exitCode"]), (&json!(1), &json!(0)));
        let failed = status(&pod, [first, run("i"), vec![exit("i", 3)]].concat());
        assert_eq!(failed["initContainerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    }
}
