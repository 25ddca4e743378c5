//! What a node refuses before anything of a pod is made: what it could not enforce must not run without it.
//!
//! What the Node object and other pods decide is in [`super::fit`]. Reasons and messages are the kubelet's.
//! Invariant: [`refuse`] is pure; what it must know of the machine is in [`Host`].

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, SecurityContext};

use super::error::{Error, Result};
use crate::containers::sysctl::{self, Namespace};

/// Parameters that a pod may always set: they have a namespace, and one pod cannot harm another by them.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What the answer depends on beside the pod.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub app_armor: bool,
    pub se_linux: bool,
    /// Names, and patterns that end in `*`, which an administrator allows.
    pub unsafe_sysctls: Vec<String>,
}

/// Why a pod is not run here, for its status and an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Cow<'static, str>,
    pub message: String,
}

// === impl Host ===

impl Host {
    /// This machine.
    pub fn look(unsafe_sysctls: &[String]) -> Self {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        Self {
            app_armor: enabled.is_ok_and(|text| text.trim() == "Y"),
            se_linux: std::fs::symlink_metadata("/sys/fs/selinux/enforce").is_ok(),
            unsafe_sysctls: unsafe_sysctls.to_vec(),
        }
    }
}

/// Whether `--allowed-unsafe-sysctls` may name it.
pub fn unsafe_sysctl(text: &str) -> Result<String> {
    match sysctl::namespace_of(text) {
        Some(_) => Ok(sysctl::normal(text)),
        None => Err(Error::AllowSysctl(text.to_owned())),
    }
}

/// The first reason not to run the pod.
pub fn refuse(pod: &Pod, host: &Host) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    system(spec).or_else(|| sysctls(spec, host)).or_else(|| app_armor(spec, host)).or_else(|| se_linux(spec, host))
}

/// Whether the pod is to have users of its own.
pub fn own_users(spec: &PodSpec) -> bool {
    spec.host_users == Some(false)
}

fn system(spec: &PodSpec) -> Option<Refusal> {
    let other = spec.os.as_ref().is_some_and(|os| os.name != "linux");
    let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
    other.then_some(Refusal { reason: "PodOSNotSupported".into(), message })
}

fn sysctls(spec: &PodSpec, host: &Host) -> Option<Refusal> {
    let wanted = spec.security_context.as_ref()?.sysctls.as_ref()?;
    let why = wanted.iter().find_map(|s| sysctl_error(&s.name, spec, host))?;
    Some(Refusal { reason: "SysctlForbidden".into(), message: format!("forbidden sysctl: {why}") })
}

fn sysctl_error(name: &str, spec: &PodSpec, host: &Host) -> Option<String> {
    let name = sysctl::normal(name);
    let listed = |pattern: &str| match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == pattern,
    };
    let allowed = SAFE_SYSCTLS.iter().copied().chain(host.unsafe_sysctls.iter().map(String::as_str)).any(listed);
    match sysctl::namespace_of(&name).filter(|_| allowed) {
        None => Some(format!("{name:?} not allowlisted")),
        Some(Namespace::Ipc) if spec.host_ipc == Some(true) => {
            Some(format!("{name:?} not allowed with host ipc enabled"))
        }
        Some(Namespace::Net) if spec.host_network == Some(true) => {
            Some(format!("{name:?} not allowed with host net enabled"))
        }
        Some(_) => None,
    }
}

/// The security contexts of all containers.
fn contexts(spec: &PodSpec) -> impl Iterator<Item = &SecurityContext> {
    let plain = spec.init_containers.iter().flatten().chain(&spec.containers);
    let plain = plain.filter_map(|c: &Container| c.security_context.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    plain.chain(ephemeral.filter_map(|c: &EphemeralContainer| c.security_context.as_ref()))
}

fn app_armor(spec: &PodSpec, host: &Host) -> Option<Refusal> {
    let of_pod = spec.security_context.iter().filter_map(|s| s.app_armor_profile.as_ref());
    let mut all = of_pod.chain(contexts(spec).filter_map(|s| s.app_armor_profile.as_ref()));
    let refuse = |why: &str| Refusal { reason: "AppArmor".into(), message: format!("Cannot enforce AppArmor: {why}") };
    if host.app_armor {
        let default = all.any(|p| p.type_ == "RuntimeDefault");
        return default.then(|| refuse("no default profile is loaded; name one by Localhost"));
    }
    all.any(|p| p.type_ != "Unconfined").then(|| refuse("AppArmor is not enabled on the host"))
}

/// Labels are not set, so where they count a pod that asks for one does not run.
fn se_linux(spec: &PodSpec, host: &Host) -> Option<Refusal> {
    let of_pod = spec.security_context.iter().filter_map(|s| s.se_linux_options.as_ref());
    let any = of_pod.chain(contexts(spec).filter_map(|s| s.se_linux_options.as_ref())).next().is_some();
    let message = "Cannot enforce SELinux: labels of containers are not set by this version".to_owned();
    (any && host.se_linux).then_some(Refusal { reason: "SELinux".into(), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(spec: Value, host: &Host) -> Option<(Cow<'static, str>, String)> {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        refuse(&serde_json::from_value(pod).unwrap(), host).map(|r| (r.reason, r.message))
    }

    fn with_sysctl(name: &str) -> Value {
        json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
    }

    #[test]
    fn sysctls_are_safe_or_allowed_or_refused() {
        let host = Host { unsafe_sysctls: vec!["net.core.*".into(), "kernel.msgmax".into()], ..Host::default() };
        for name in
            ["kernel.shm_rmid_forced", "net.ipv4.tcp_wmem", "net.core.somaxconn", "net/core/somaxconn", "kernel.msgmax"]
        {
            assert_eq!(said(with_sysctl(name), &host), None, "{name}");
        }
        for name in ["fs.lease-break-time", "kernel.msgmnb", "net.ipv4.ip_forward", "vm.swappiness"] {
            let message = format!("forbidden sysctl: {name:?} not allowlisted");
            assert_eq!(said(with_sysctl(name), &host), Some(("SysctlForbidden".into(), message)));
        }
        let mut shared = with_sysctl("net.ipv4.tcp_rmem");
        shared["hostNetwork"] = true.into();
        let why = "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host net enabled";
        assert_eq!(said(shared, &host), Some(("SysctlForbidden".into(), why.into())));
        let mut shared = with_sysctl("kernel.shm_rmid_forced");
        shared["hostIPC"] = true.into();
        assert!(said(shared, &host).unwrap().1.ends_with("not allowed with host ipc enabled"));
    }

    #[test]
    fn a_pod_for_another_system_is_refused() {
        let of = |name: &str| said(json!({"os": {"name": name}}), &Host::default()).map(|(reason, _)| reason);
        assert_eq!((of("linux"), of("windows")), (None, Some("PodOSNotSupported".into())));
    }

    #[test]
    fn no_flag_allows_what_is_the_whole_machines() {
        for bad in ["fs.lease-break-time", "*", "kernel.*", "vm.*"] {
            assert!(unsafe_sysctl(bad).is_err(), "{bad}");
        }
        assert_eq!(unsafe_sysctl("net/core/somaxconn").unwrap(), "net.core.somaxconn");
        let host = Host { unsafe_sysctls: vec!["fs.*".into()], ..Host::default() };
        assert!(said(with_sysctl("fs.lease-break-time"), &host).is_some(), "whatever a list says");
    }

    #[test]
    fn profiles_that_cannot_be_enforced_are_refused() {
        let (without, with) = (Host::default(), Host { app_armor: true, ..Host::default() });
        let profile = |kind: &str| json!({"ephemeralContainers": [{"name": "e", "securityContext": {"appArmorProfile": {"type": kind}}}]});
        let why = "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned();
        assert_eq!(said(profile("RuntimeDefault"), &without), Some(("AppArmor".into(), why.clone())));
        assert_eq!(said(profile("Localhost"), &without), Some(("AppArmor".into(), why)));
        assert_eq!(said(profile("Unconfined"), &without), None);
        assert_eq!(said(profile("Localhost"), &with), None);
        assert_eq!(said(profile("RuntimeDefault"), &with).unwrap().0, "AppArmor");
        let label = json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}});
        assert_eq!(said(label.clone(), &without), None);
        assert_eq!(said(label, &Host { se_linux: true, ..Host::default() }).unwrap().0, "SELinux");
    }
}
