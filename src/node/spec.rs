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

/// Limits of a container, from its requests and limits (`cpu.shares` as the kubelet computes them).
pub fn resources(r: Option<&ResourceRequirements>) -> Resources {
    let limit = |name| quantity(r.and_then(|r| r.limits.as_ref()), name);
    let request = |name| quantity(r.and_then(|r| r.requests.as_ref()), name).or_else(|| limit(name));
    let shares = request("cpu").map_or(2, |q| (q.milli() * 1024 / 1000).clamp(2, 262_144) as u64);
    let quota = limit("cpu").map(|q| (q.milli() * PERIOD as i64 / 1000).max(QUOTA_MIN));
    Resources {
        cpu_shares: Some(shares),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD),
        memory_limit_bytes: limit("memory").map(|q| q.units().max(0) as u64),
        ..Resources::default()
    }
}

/// Limits of the pod as a whole: the sum of its containers' where every one has a limit.
pub fn pod_resources(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::default() };
    let all: Vec<Resources> = spec.containers.iter().map(|c| resources(c.resources.as_ref())).collect();
    let inits: Vec<Resources> =
        spec.init_containers.iter().flatten().map(|c| resources(c.resources.as_ref())).collect();
    let sum = |f: fn(&Resources) -> Option<u64>| -> Option<u64> {
        let mains = all.iter().map(f).sum::<Option<u64>>()?;
        let init = inits.iter().map(f).collect::<Option<Vec<u64>>>()?.into_iter().max().unwrap_or(0);
        Some(mains.max(init))
    };
    let quota = sum(|r| r.cpu_quota.map(|q| q as u64)).map(|q| q as i64);
    Resources {
        cpu_shares: sum(|r| r.cpu_shares).map(|s| s.min(262_144)),
        cpu_quota: quota,
        cpu_period: quota.map(|_| PERIOD),
        memory_limit_bytes: sum(|r| r.memory_limit_bytes),
        ..Resources::default()
    }
}

/// How readily the kernel kills the container when memory ends (`qos.GetContainerOOMScoreAdjust`).
pub fn oom_score(pod: &Pod, container: &Container, memory_bytes: u64) -> i32 {
    match qos(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let request = quantity(container.resources.as_ref().and_then(|r| r.requests.as_ref()), "memory");
            let share = request.map_or(0, |q| 1000 * q.units().max(0) / memory_bytes.max(1) as i64);
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

    fn limits(v: serde_json::Value) -> ResourceRequirements {
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn requests_and_limits_become_shares_and_quotas() {
        let r =
            resources(Some(&limits(json!({"requests": {"cpu": "250m"}, "limits": {"cpu": "1", "memory": "64Mi"}}))));
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit_bytes), (Some(256), Some(100_000), Some(64 << 20)));
        let r = resources(None);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.memory_limit_bytes), (Some(2), None, None));
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
