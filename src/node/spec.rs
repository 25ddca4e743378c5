//! From a pod's spec to what the container room wants: plan, security, resources, mounts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, Pod, PodSecurityContext, Probe, ResourceRequirements, SecurityContext,
};

use super::machine::{ContainerPlan, Plan, Restart, Role};
use crate::base::quantity::Quantity;
use crate::containers::{CapabilityChange, Mount, MountSource, Propagation, Resources, Seccomp};

/// CFS period of CPU limits, in microseconds.
const PERIOD: u64 = 100_000;
/// The smallest quota the kernel takes.
const QUOTA_MIN: i64 = 1000;

/// What the machine must know of the pod.
pub fn plan(pod: &Pod) -> Plan {
    let Some(spec) = &pod.spec else { return Plan::default() };
    let restart = match spec.restart_policy.as_deref() {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    };
    let part = |c: &Container, role: Role| ContainerPlan {
        name: c.name.clone(),
        role,
        startup_probe: c.startup_probe.is_some(),
        readiness_probe: c.readiness_probe.is_some(),
        post_start: c.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()),
    };
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        part(c, if sidecar { Role::Sidecar } else { Role::Init })
    });
    let main = spec.containers.iter().map(|c| part(c, Role::Main));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral =
        ephemeral.map(|c| ContainerPlan { name: c.name.clone(), role: Role::Ephemeral, ..ContainerPlan::default() });
    Plan { restart, containers: init.chain(main).chain(ephemeral).collect() }
}

/// The container of a name, init and ephemeral ones included.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    let found = spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name);
    let ephemeral = || spec.ephemeral_containers.iter().flatten().find(|c| c.name == name);
    found.map(Cow::Borrowed).or_else(|| ephemeral().map(|c| Cow::Owned(plain(c))))
}

/// Where the container is in its pod, as events say it.
pub fn field_of(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let list = match () {
        () if spec.is_some_and(|s| s.init_containers.iter().flatten().any(|c| c.name == name)) => "initContainers",
        () if spec.is_some_and(|s| s.ephemeral_containers.iter().flatten().any(|c| c.name == name)) => {
            "ephemeralContainers"
        }
        () => "containers",
    };
    format!("spec.{list}{{{name}}}")
}

/// The container in whose process namespace an ephemeral one of this name is to run.
pub fn target<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    let all = pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten());
    all.into_iter().find(|c| c.name == name)?.target_container_name.as_deref().filter(|t| !t.is_empty())
}

/// What an ephemeral container has in common with others: everything that it may say.
fn plain(c: &EphemeralContainer) -> Container {
    let c = c.clone();
    Container {
        name: c.name,
        image: c.image,
        image_pull_policy: c.image_pull_policy,
        command: c.command,
        args: c.args,
        working_dir: c.working_dir,
        env: c.env,
        env_from: c.env_from,
        volume_mounts: c.volume_mounts,
        volume_devices: c.volume_devices,
        security_context: c.security_context,
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        termination_message_path: c.termination_message_path,
        termination_message_policy: c.termination_message_policy,
        ..Container::default()
    }
}

/// The probe's timing in seconds and counts, with defaults as the API fills them in.
pub fn grace_of(probe: &Probe, pod: &Pod) -> std::time::Duration {
    let seconds =
        probe.termination_grace_period_seconds.or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds);
    std::time::Duration::from_secs(seconds.unwrap_or(30).max(1) as u64)
}

/// `Guaranteed`, `Burstable` or `BestEffort`, as the API wrote it.
pub fn qos(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.qos_class.as_deref()).unwrap_or("BestEffort")
}

/// The pod's cgroup below the node's root.
pub fn cgroup_parent(pod: &Pod, uid: &str) -> String {
    match qos(pod) {
        "Guaranteed" => format!("kubepods/pod{uid}"),
        "Burstable" => format!("kubepods/burstable/pod{uid}"),
        _ => format!("kubepods/besteffort/pod{uid}"),
    }
}

fn quantity(
    map: Option<&BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
    name: &str,
) -> Option<Quantity> {
    map?.get(name)?.0.parse().ok()
}

/// `cpu.shares` for a request, as the kubelet computes them.
fn shares(milli: i64) -> u64 {
    (milli * 1024 / 1000).clamp(2, 262_144) as u64
}

fn quota(milli: i64) -> i64 {
    (milli * PERIOD as i64 / 1000).max(QUOTA_MIN)
}

/// Limits of a container, from its requests and limits. Where it names no limit, that of the pod as a whole is its own.
pub fn resources(pod: &Pod, container: &Container) -> Resources {
    let (own, whole) = (container.resources.as_ref(), whole(pod));
    let limit = |name| {
        let of = |r: Option<&ResourceRequirements>| quantity(r?.limits.as_ref(), name).filter(|q| !q.is_zero());
        // A limit of nothing is none.
        of(own).or_else(|| of(whole))
    };
    let request = |name| quantity(own.and_then(|r| r.requests.as_ref()), name).or_else(|| limit(name));
    let quota = limit("cpu").map(|q| quota(q.milli()));
    Resources {
        cpu_shares: Some(request("cpu").map_or(2, |q| shares(q.milli()))),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD),
        memory_limit_bytes: limit("memory").map(|q| q.units().max(0) as u64),
        ..Resources::default()
    }
}

/// What the pod as a whole may use, where it says so itself.
fn whole(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref()?.resources.as_ref()
}

/// What containers use at most at a time: those that run together, or the hungriest start. `None` where one does not say.
fn together(pod: &Pod, of: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let (mut starts, mut sidecars) = (0, 0i64);
    for container in spec.init_containers.iter().flatten() {
        let now = sidecars.saturating_add(of(container)?);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = now;
        }
        starts = starts.max(now);
    }
    let runs = spec.containers.iter().try_fold(sidecars, |sum, c| Some(sum.saturating_add(of(c)?)))?;
    Some(runs.max(starts))
}

/// Limits of the pod as a whole: its own, or the sum of its containers' where every one has a limit; and its overhead.
pub fn pod_resources(pod: &Pod) -> Resources {
    let (limits, requests) = (whole(pod).and_then(|r| r.limits.as_ref()), whole(pod).and_then(|r| r.requests.as_ref()));
    let overhead = |name| quantity(pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref()), name);
    let limit_of = |name: &'static str, amount: fn(&Quantity) -> i64| {
        let own = quantity(limits, name).filter(|q| !q.is_zero()).map(|q| amount(&q));
        let limit = own.or_else(|| {
            let of = |c: &Container| quantity(c.resources.as_ref()?.limits.as_ref(), name).map(|q| amount(&q));
            together(pod, |c| of(c).filter(|amount| *amount > 0))
        });
        limit.map(|limit| limit.saturating_add(overhead(name).map_or(0, |q| amount(&q))))
    };
    let request = quantity(requests, "cpu").or_else(|| quantity(limits, "cpu")).map(|q| q.milli());
    let requested = |c: &Container| {
        let own = c.resources.as_ref();
        let named = quantity(own.and_then(|r| r.requests.as_ref()), "cpu");
        Some(named.or_else(|| quantity(own.and_then(|r| r.limits.as_ref()), "cpu")).map_or(0, |q| q.milli()))
    };
    let milli = request.or_else(|| together(pod, requested)).unwrap_or(0);
    let milli = milli.saturating_add(overhead("cpu").map_or(0, |q| q.milli()));
    let quota = limit_of("cpu", Quantity::milli).map(quota);
    Resources {
        cpu_shares: Some(shares(milli)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD),
        memory_limit_bytes: limit_of("memory", Quantity::units).map(|bytes| bytes.max(0) as u64),
        ..Resources::default()
    }
}

/// How readily the kernel kills the container when memory ends (`qos.GetContainerOOMScoreAdjust`).
pub fn oom_score(pod: &Pod, container: &Container, memory_bytes: u64) -> i32 {
    match qos(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = |c: &Container| {
                quantity(c.resources.as_ref().and_then(|r| r.requests.as_ref()), "memory")
                    .map_or(0, |q| q.units().max(0))
            };
            // What the pod has beyond its containers is for all of them.
            let of_pod = quantity(whole(pod).and_then(|r| r.requests.as_ref()), "memory").map_or(0, |q| q.units());
            let count =
                pod.spec.as_ref().map_or(1, |s| s.containers.len() + s.init_containers.iter().flatten().count());
            let rest = of_pod.saturating_sub(together(pod, |c| Some(request(c))).unwrap_or(0)).max(0);
            let asked = request(container).saturating_add(rest / count.max(1) as i64);
            let share = asked.saturating_mul(1000) / memory_bytes.max(1) as i64;
            (1000 - share).clamp(3, 999) as i32
        }
    }
}

/// The system call filter, looked up in the container and then in the pod.
pub fn seccomp(pod: Option<&PodSecurityContext>, own: Option<&SecurityContext>, profiles: &Path) -> Seccomp {
    let profile = own.and_then(|s| s.seccomp_profile.as_ref()).or_else(|| pod.and_then(|s| s.seccomp_profile.as_ref()));
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", Some(path))) => Seccomp::Localhost(profiles.join(path)),
        Some(_) => Seccomp::Unconfined,
        None => Seccomp::Unsaid,
    }
}

/// The profile that confines the container, where one of this machine is named.
pub fn app_armor(pod: Option<&PodSecurityContext>, own: Option<&SecurityContext>) -> Option<String> {
    let of_pod = || pod.and_then(|s| s.app_armor_profile.as_ref());
    let profile = own.and_then(|s| s.app_armor_profile.as_ref()).or_else(of_pod)?;
    profile.localhost_profile.clone().filter(|_| profile.type_ == "Localhost")
}

/// Capabilities added and dropped.
pub fn capabilities(own: Option<&SecurityContext>) -> CapabilityChange {
    let change = own.and_then(|s| s.capabilities.as_ref());
    CapabilityChange {
        add: change.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop: change.and_then(|c| c.drop.clone()).unwrap_or_default(),
    }
}

/// A bind mount of a file or directory of the host.
pub fn bind(host: impl Into<PathBuf>, inside: impl Into<PathBuf>, read_only: bool, propagation: Option<&str>) -> Mount {
    let propagation = match propagation {
        Some("HostToContainer") => Propagation::HostToContainer,
        Some("Bidirectional") => Propagation::Bidirectional,
        _ => Propagation::Private,
    };
    Mount {
        container_path: inside.into(),
        read_only,
        source: MountSource::Bind { host_path: host.into(), propagation },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"qosClass": "Burstable"}}))
            .unwrap()
    }

    fn shown(r: &Resources) -> (Option<u64>, Option<i64>, Option<u64>) {
        (r.cpu_shares, r.cpu_quota, r.memory_limit_bytes.map(|bytes| bytes >> 20))
    }

    fn with(name: &str, resources: serde_json::Value) -> serde_json::Value {
        json!({"name": name, "resources": resources})
    }

    #[test]
    fn requests_and_limits_become_shares_and_quotas() {
        let limits = json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1", "memory": "64Mi"}});
        let pod = pod(json!({"containers": [with("a", limits), with("b", json!({}))]}));
        let containers = &pod.spec.as_ref().unwrap().containers;
        assert_eq!(shown(&resources(&pod, &containers[0])), (Some(256), Some(100_000), Some(64)));
        assert_eq!(shown(&resources(&pod, &containers[1])), (Some(2), None, None));
        assert_eq!(shown(&pod_resources(&pod)), (Some(256), None, None), "one container has no limit");
        let none: Container =
            serde_json::from_value(with("c", json!({"limits": {"cpu": "0", "memory": "0"}}))).unwrap();
        assert_eq!(shown(&resources(&pod, &none)), (Some(2), None, None), "a limit of nothing is none");
    }

    #[test]
    fn sidecars_and_containers_share_the_limit_of_the_pod() {
        let of = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}});
        let mut sidecar = with("s", of("1", "32Mi"));
        sidecar["restartPolicy"] = "Always".into();
        let inits = json!([sidecar, with("i", of("4", "16Mi"))]);
        let pod = pod(json!({"initContainers": inits, "containers": [with("a", of("1", "64Mi"))]}));
        assert_eq!(shown(&pod_resources(&pod)), (Some(5120), Some(500_000), Some(96)));
    }

    #[test]
    fn a_pod_that_says_what_it_may_use_as_a_whole_has_that() {
        let whole = json!({"requests": {"cpu": "500m", "memory": "100Mi"}, "limits": {"cpu": "2", "memory": "200Mi"}});
        let small = json!({"requests": {"cpu": "100m", "memory": "20Mi"}, "limits": {"memory": "50Mi"}});
        let pod = pod(json!({"resources": whole, "containers": [with("a", small), with("b", json!({}))]}));
        assert_eq!(shown(&pod_resources(&pod)), (Some(512), Some(200_000), Some(200)));
        let containers = &pod.spec.as_ref().unwrap().containers;
        assert_eq!(shown(&resources(&pod, &containers[0])), (Some(102), Some(200_000), Some(50)));
        assert_eq!(shown(&resources(&pod, &containers[1])), (Some(2048), Some(200_000), Some(200)));
        // 80Mi are asked for beside the 20Mi of the first, 40Mi for each.
        let score = |c: usize| oom_score(&pod, &containers[c], 1000 << 20);
        assert_eq!((score(0), score(1)), (1000 - 60, 1000 - 40));
    }

    #[test]
    fn a_named_profile_is_the_containers_before_the_pods() {
        let profile =
            |kind: &str, name: Option<&str>| json!({"appArmorProfile": {"type": kind, "localhostProfile": name}});
        let of_pod: PodSecurityContext = serde_json::from_value(profile("Localhost", Some("one"))).unwrap();
        let own = |v| serde_json::from_value::<SecurityContext>(v).unwrap();
        assert_eq!(app_armor(Some(&of_pod), None).as_deref(), Some("one"));
        assert_eq!(app_armor(Some(&of_pod), Some(&own(profile("Localhost", Some("two"))))).as_deref(), Some("two"));
        assert_eq!(app_armor(Some(&of_pod), Some(&own(profile("Unconfined", None)))), None);
        assert_eq!(app_armor(None, Some(&own(json!({})))), None);
    }
}
