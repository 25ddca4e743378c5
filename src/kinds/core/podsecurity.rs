//! Pod security standards (Kubernetes 1.36): what a pod may not have at a level, and the labels by which a namespace asks.
//!
//! Pure: a level and a pod's spec make a list of what is forbidden, each with the containers that have it.

use serde_json::Value;

use crate::base::json::{at, flag, int, list, text};
use crate::kinds::field::{self, Errors};

/// What begins the labels.
const PREFIX: &str = "pod-security.kubernetes.io/";
/// The minor version that `latest` stands for.
const LATEST: u32 = 37;
/// What a container may add at the baseline.
const BASELINE_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Types that a process may have at the baseline.
const SELINUX_TYPES: &[&str] = &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
/// Kernel parameters that concern the pod alone.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];
/// Volumes that the restricted level knows.
const RESTRICTED_VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "name",
    "persistentVolumeClaim",
    "projected",
    "secret",
];
/// Annotations that name an AppArmor profile of a container.
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// How much pods are restricted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level as of a minor version of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    /// `None` is the latest.
    pub minor: Option<u32>,
}

// === impl Standard ===

impl Standard {
    /// What a namespace's labels ask for in a mode: `enforce`, `warn` or `audit`.
    ///
    /// A namespace that says nothing of warnings warns of what it would refuse.
    pub fn of<'l>(labels: impl Fn(&str) -> Option<&'l str>, mode: &str) -> Self {
        let mode = if mode == "warn" && labels(&format!("{PREFIX}warn")).is_none() { "enforce" } else { mode };
        let level = labels(&format!("{PREFIX}{mode}")).and_then(level).unwrap_or(Level::Privileged);
        let minor = labels(&format!("{PREFIX}{mode}-version")).and_then(minor).flatten();
        Self { level, minor }
    }

    /// As [`Standard::of`], for a whole namespace.
    pub fn of_namespace(namespace: &Value, mode: &str) -> Self {
        Self::of(|key| namespace["metadata"]["labels"].get(key).and_then(Value::as_str), mode)
    }

    /// What of a pod is forbidden, by its `metadata` and `spec`.
    pub fn violations(self, metadata: &Value, spec: &Value) -> Vec<String> {
        let minor = self.minor.unwrap_or(LATEST);
        let pod = Pod { metadata, spec, level: self.level, minor, found: Vec::new() };
        match self.level {
            Level::Privileged => Vec::new(),
            Level::Baseline => pod.baseline().found,
            Level::Restricted => pod.baseline().restricted().found,
        }
    }
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            None => write!(f, "{level}:latest"),
            Some(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

/// `latest` and nothing are `Some(None)`, `v1.30` is `Some(Some(30))`.
fn minor(text: &str) -> Option<Option<u32>> {
    match text {
        "" | "latest" => Some(None),
        text => {
            let digits = text.strip_prefix("v1.")?;
            let plain = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
            digits.parse().ok().filter(|_| plain).map(Some)
        }
    }
}

/// Labels of a namespace that ask for what there is not.
pub(super) fn validate_labels(namespace: &Value) -> Errors {
    let mut errors = Errors::new();
    for mode in ["enforce", "audit", "warn"] {
        for (key, is_version) in [(format!("{PREFIX}{mode}"), false), (format!("{PREFIX}{mode}-version"), true)] {
            let Some(value) = namespace["metadata"]["labels"].get(&key).and_then(Value::as_str) else { continue };
            let path = format!("metadata.labels[{key}]");
            if is_version && (value.is_empty() || minor(value).is_none()) {
                errors.push(field::invalid(path, value, "must be \"latest\" or \"v1.x\""));
            } else if !is_version && level(value).is_none() {
                errors.push(field::invalid(path, value, "must be one of privileged, baseline, restricted"));
            }
        }
    }
    errors
}

struct Pod<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    level: Level,
    minor: u32,
    found: Vec<String>,
}

// === impl Pod ===

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(move |group| list(spec, group))
    }

    fn is_windows(&self) -> bool {
        text(self.spec, "os.name") == "windows"
    }

    /// Then root of the pod is nobody on the node, and newer standards let it be.
    fn has_own_users(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == Value::Bool(false)
    }

    /// Notes `what` if containers are bad, or the pod itself is.
    fn forbid(&mut self, what: &str, pod: bool, bad: impl Fn(&Value) -> bool) {
        let names: Vec<String> =
            self.containers().filter(|c| bad(c)).map(|c| format!("{:?}", text(c, "name"))).collect();
        let by = match (pod, names.len()) {
            (false, 0) => return,
            (true, 0) => "pod".to_owned(),
            (true, 1) => format!("pod and container {}", names[0]),
            (true, _) => format!("pod and containers {}", names.join(", ")),
            (false, 1) => format!("container {}", names[0]),
            (false, _) => format!("containers {}", names.join(", ")),
        };
        self.found.push(format!("{what} ({by})"));
    }

    fn baseline(mut self) -> Self {
        let spec = self.spec;
        let context = &spec["securityContext"];
        self.forbid("hostProcess", flag(context, "windowsOptions.hostProcess"), |c| {
            flag(c, "securityContext.windowsOptions.hostProcess")
        });
        let shared: Vec<&str> = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|k| flag(spec, k)).collect();
        if !shared.is_empty() {
            self.found.push(format!("host namespaces ({})", shared.join(", ")));
        }
        self.forbid("privileged", false, |c| flag(c, "securityContext.privileged"));
        self.forbid("non-default capabilities", false, |c| adds_beyond(c, BASELINE_CAPABILITIES));
        let host_paths = list(spec, "volumes").iter().filter(|v| v.get("hostPath").is_some_and(Value::is_object));
        let host_paths: Vec<String> = host_paths.map(|v| format!("{:?}", text(v, "name"))).collect();
        if !host_paths.is_empty() {
            self.found.push(format!("hostPath volumes (volume {})", host_paths.join(", ")));
        }
        self.forbid("hostPort", false, |c| list(c, "ports").iter().any(|p| int(p, "hostPort").unwrap_or(0) != 0));
        if self.minor >= 34 {
            self.forbid("probe or lifecycle host", false, names_a_host);
        }
        self.profiles(context);
        let bad_labels = |c: &Value| {
            let options = &c["seLinuxOptions"];
            let kind = text(options, "type");
            !SELINUX_TYPES.contains(&kind) || !text(options, "user").is_empty() || !text(options, "role").is_empty()
        };
        self.forbid("seLinuxOptions", bad_labels(context), |c| bad_labels(&c["securityContext"]));
        if !(self.level == Level::Baseline && self.has_own_users()) {
            self.forbid("procMount", false, |c| !matches!(text(c, "securityContext.procMount"), "" | "Default"));
        }
        let sysctls = list(context, "sysctls").iter().map(|s| text(s, "name"));
        let sysctls: Vec<&str> = sysctls.filter(|name| !SAFE_SYSCTLS.contains(name)).collect();
        if !sysctls.is_empty() {
            self.found.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
        }
        self
    }

    /// Profiles of AppArmor and seccomp may be chosen, but not switched off.
    fn profiles(&mut self, context: &Value) {
        let annotations = self.metadata["annotations"].as_object().into_iter().flatten();
        let annotated = annotations.filter(|(k, _)| k.starts_with(APPARMOR)).any(|(_, v)| {
            let profile = v.as_str().unwrap_or("");
            !matches!(profile, "" | "runtime/default") && !profile.starts_with("localhost/")
        });
        let open = |c: &Value, profile: &str| text(&c[profile], "type") == "Unconfined";
        let pod = annotated || open(context, "appArmorProfile");
        self.forbid("forbidden AppArmor profile", pod, |c| open(&c["securityContext"], "appArmorProfile"));
        self.forbid("seccompProfile", open(context, "seccompProfile"), |c| {
            open(&c["securityContext"], "seccompProfile")
        });
    }

    fn restricted(mut self) -> Self {
        let spec = self.spec;
        let context = &spec["securityContext"];
        let is_other =
            |v: &&Value| v.as_object().is_some_and(|m| m.keys().any(|k| !RESTRICTED_VOLUMES.contains(&&**k)));
        let others: Vec<String> =
            list(spec, "volumes").iter().filter(is_other).map(|v| format!("{:?}", text(v, "name"))).collect();
        if !others.is_empty() {
            self.found.push(format!("restricted volume types (volume {})", others.join(", ")));
        }
        let unix = !self.is_windows();
        if unix {
            self.forbid("allowPrivilegeEscalation != false", false, |c| {
                c["securityContext"]["allowPrivilegeEscalation"] != Value::Bool(false)
            });
        }
        if unix && self.minor >= 22 {
            self.forbid("unrestricted capabilities", false, |c| {
                let drops = list(c, "securityContext.capabilities.drop").iter().any(|d| d == "ALL");
                !drops || adds_beyond(c, &["NET_BIND_SERVICE"])
            });
        }
        let says = |c: &Value| at(c, "runAsNonRoot").and_then(Value::as_bool);
        let pod_says = says(context);
        let may_be_root = self.has_own_users();
        if !may_be_root {
            self.forbid("runAsNonRoot != true", pod_says == Some(false), |c| {
                says(&c["securityContext"]).or(pod_says) != Some(true)
            });
        }
        if self.minor >= 23 && !may_be_root {
            let is_root = |c: &Value| int(c, "runAsUser") == Some(0);
            self.forbid("runAsUser=0", is_root(context), |c| is_root(&c["securityContext"]));
        }
        if unix {
            let confined = |c: &Value| matches!(text(&c["seccompProfile"], "type"), "RuntimeDefault" | "Localhost");
            let given = |c: &Value| c.get("seccompProfile").is_some_and(Value::is_object);
            self.forbid("seccompProfile", false, |c| {
                let own = &c["securityContext"];
                if given(own) { !confined(own) } else { !confined(context) }
            });
        }
        self
    }
}

fn adds_beyond(container: &Value, allowed: &[&str]) -> bool {
    let adds = list(container, "securityContext.capabilities.add").iter();
    adds.filter_map(Value::as_str).any(|c| !allowed.contains(&c))
}

/// Whether a probe or a hook is sent to another address than the pod's own.
fn names_a_host(container: &Value) -> bool {
    let places = ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let mut actions = places.iter().filter_map(|p| at(container, p));
    actions.any(|a| ["httpGet.host", "tcpSocket.host"].iter().any(|host| !text(a, host).is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn violations(level: Level, spec: &Value) -> Vec<String> {
        Standard { level, minor: None }.violations(&json!({}), spec)
    }

    #[test]
    fn the_baseline_forbids_known_ways_out() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert!(violations(Level::Baseline, &plain).is_empty());
        for (spec, what) in [
            (json!({"hostPID": true}), "host namespaces (hostPID)"),
            (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "forbidden sysctls (kernel.msgmax)"),
            (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), "seccompProfile (pod)"),
            (
                json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}, {"name": "b"}]}),
                "privileged (container \"a\")",
            ),
            (
                json!({"initContainers": [{"name": "i", "securityContext": {"capabilities": {"add": ["NET_RAW"]}}}]}),
                "non-default capabilities (container \"i\")",
            ),
            (json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}), "hostPort (container \"c\")"),
        ] {
            assert_eq!(violations(Level::Baseline, &spec), [what]);
            assert!(violations(Level::Privileged, &spec).is_empty());
        }
    }

    #[test]
    fn the_restricted_level_wants_to_be_told() {
        let container = json!({"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
        let mut spec = json!({"containers": [container],
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}});
        assert!(violations(Level::Restricted, &spec).is_empty());
        spec["containers"][0]["securityContext"]["runAsUser"] = 0.into();
        assert_eq!(violations(Level::Restricted, &spec), ["runAsUser=0 (container \"c\")"]);
        assert_eq!(violations(Level::Restricted, &json!({"containers": [{"name": "c"}]})).len(), 4);
        let old = Standard { level: Level::Restricted, minor: Some(20) };
        assert!(old.violations(&json!({}), &spec).is_empty(), "older standards did not ask for the user");
    }

    #[test]
    fn root_of_a_pod_with_users_of_its_own_is_let_be() {
        let pod = |own_users: bool, proc: &str| {
            let container = json!({"name": "c", "securityContext": {"runAsUser": 0, "procMount": proc,
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
            json!({"hostUsers": !own_users, "containers": [container],
                "securityContext": {"runAsNonRoot": false, "seccompProfile": {"type": "RuntimeDefault"}}})
        };
        let said = |level, minor, spec: &Value| Standard { level, minor }.violations(&json!({}), spec);
        let proc = "procMount (container \"c\")";
        let root = "runAsNonRoot != true (pod and container \"c\")";
        let user = "runAsUser=0 (container \"c\")";
        let none: [&str; 0] = [];
        for minor in [None, Some(35)] {
            assert_eq!(said(Level::Restricted, minor, &pod(true, "Default")), none);
            assert_eq!(said(Level::Baseline, minor, &pod(true, "Unmasked")), none);
            assert_eq!(said(Level::Restricted, minor, &pod(true, "Unmasked")), [proc], "not at this level");
            assert_eq!(said(Level::Restricted, minor, &pod(false, "Default")), [root, user]);
            assert_eq!(said(Level::Baseline, minor, &pod(false, "Unmasked")), [proc]);
        }
        assert_eq!(said(Level::Restricted, Some(34), &pod(true, "Default")), [root, user], "older standards do not");
        assert_eq!(said(Level::Baseline, Some(34), &pod(true, "Unmasked")), [proc]);
    }

    #[test]
    fn labels_are_read_and_checked() {
        let namespace = |labels: Value| json!({"metadata": {"labels": labels}});
        let of = |v: &str| {
            Standard::of_namespace(&namespace(json!({"pod-security.kubernetes.io/warn": v})), "warn").to_string()
        };
        assert_eq!((of("restricted"), of("")), ("restricted:latest".into(), "privileged:latest".into()));
        for (key, value, right) in
            [("enforce", "bogus", false), ("enforce-version", "v1.x", false), ("audit-version", "v1.30", true)]
        {
            let mut labels = serde_json::Map::new();
            labels.insert(format!("{PREFIX}{key}"), value.into());
            assert_eq!(validate_labels(&namespace(labels.into())).is_empty(), right, "{key}={value}");
        }
    }
}
