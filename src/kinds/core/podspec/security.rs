//! Security contexts of pods and containers.

use std::collections::HashSet;

use serde_json::Value;

use crate::base::json::{at, flag, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Highest user and group number.
const ID_MAX: i64 = i32::MAX as i64;
/// Names of sysctls may be this long.
const SYSCTL_BYTES: usize = 253;
/// Resources that a pod as a whole may ask for by name.
pub const RESOURCES: &[&str] = &["cpu", "memory"];

fn id(errors: &mut Errors, path: &Path<'_>, value: Option<&Value>) {
    if let Some(n) = value.and_then(Value::as_i64) {
        check::within(errors, path, n, 0, ID_MAX);
    }
}

/// `spec.securityContext`, and what of the spec it must fit.
pub(super) fn validate_pod(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(context) = spec.get("securityContext").filter(|c| c.is_object()) else { return };
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, &path.field(key), context.get(key));
    }
    let groups = path.field("supplementalGroups");
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        id(errors, &groups.index(i), Some(group));
    }
    for (key, supported) in [
        ("fsGroupChangePolicy", ["Always", "OnRootMismatch"]),
        ("supplementalGroupsPolicy", ["Merge", "Strict"]),
        ("seLinuxChangePolicy", ["MountOption", "Recursive"]),
    ] {
        if let Some(value) = context.get(key).and_then(Value::as_str)
            && !supported.contains(&value)
        {
            errors.push(field::not_supported(&path.field(key), value, &supported));
        }
    }
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(field::invalid(&path.field("shareProcessNamespace"), true, why));
    }
    sysctls(errors, &path.field("sysctls"), list(context, "sysctls"), spec);
    seccomp(errors, &path.field("seccompProfile"), context.get("seccompProfile"));
    app_armor(errors, &path.field("appArmorProfile"), context.get("appArmorProfile"));
    windows(errors, &path.field("windowsOptions"), context.get("windowsOptions"));
}

fn is_sysctl(name: &str) -> bool {
    let segment = |s: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(s.bytes().next())
            && edge(s.bytes().last())
            && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    name.len() <= SYSCTL_BYTES && name.split(['.', '/']).all(segment)
}

fn sysctls(errors: &mut Errors, path: &Path<'_>, sysctls: &[Value], spec: &Value) {
    let dotted = |name: &str| name.replace('/', ".");
    let mut seen = HashSet::new();
    for (i, sysctl) in sysctls.iter().enumerate() {
        let path = path.index(i);
        let path = path.field("name");
        let name = text(sysctl, "name");
        let again = !seen.insert(dotted(name));
        if name.is_empty() {
            errors.push(field::required(&path, ""));
        } else if !is_sysctl(name) {
            errors.push(field::invalid(
                &path,
                name,
                "must have at most 253 characters and match the pattern of sysctls",
            ));
        } else if again {
            errors.push(field::duplicate(&path, name));
        }
        let plain = dotted(name);
        if flag(spec, "hostNetwork") && (plain.starts_with("net.")) {
            errors.push(field::invalid(&path, name, "may not be specified when 'hostNetwork' is set to true"));
        }
        let ipc = plain.starts_with("kernel.shm")
            || plain.starts_with("kernel.msg")
            || plain.starts_with("fs.mqueue.")
            || plain == "kernel.sem";
        if flag(spec, "hostIPC") && ipc {
            errors.push(field::invalid(&path, name, "may not be specified when 'hostIPC' is set to true"));
        }
    }
}

fn seccomp(errors: &mut Errors, path: &Path<'_>, profile: Option<&Value>) {
    let Some(profile) = profile else { return };
    let kind = text(profile, "type");
    let (at, local) = (path.field("localhostProfile"), profile.get("localhostProfile").and_then(Value::as_str));
    check::required_one_of(errors, &path.field("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    match (kind, local) {
        ("Localhost", None) => errors.push(field::required(&at, "must be set when seccomp type is Localhost")),
        ("Localhost", Some(file)) => {
            if file.is_empty() {
                errors.push(field::required(&at, "must be set when seccomp type is Localhost"));
            }
            check::relative_path(errors, &at, file);
        }
        (_, Some(file)) => errors.push(field::invalid(&at, file, "can only be set when seccomp type is Localhost")),
        (_, None) => {}
    }
}

fn app_armor(errors: &mut Errors, path: &Path<'_>, profile: Option<&Value>) {
    let Some(profile) = profile else { return };
    let kind = text(profile, "type");
    let (at, local) = (path.field("localhostProfile"), profile.get("localhostProfile").and_then(Value::as_str));
    check::required_one_of(errors, &path.field("type"), kind, &["Localhost", "RuntimeDefault", "Unconfined"]);
    match (kind, local) {
        ("Localhost", None) => errors.push(field::required(&at, "must be set when AppArmor type is Localhost")),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.push(field::invalid(&at, name, "must not be padded with whitespace"));
            } else if name.is_empty() {
                errors.push(field::required(&at, "must be set when AppArmor type is Localhost"));
            }
            if name.len() > 4095 {
                errors.push(field::too_long(&at, 4095));
            }
        }
        (_, Some(name)) => errors.push(field::invalid(&at, name, "can only be set when AppArmor type is Localhost")),
        (_, None) => {}
    }
}

fn windows(errors: &mut Errors, path: &Path<'_>, options: Option<&Value>) {
    let Some(options) = options else { return };
    if let Some(name) = options.get("gmsaCredentialSpecName").and_then(Value::as_str) {
        check::dns_subdomain(errors, &path.field("gmsaCredentialSpecName"), name);
    }
    if let Some(spec) = options.get("gmsaCredentialSpec").and_then(Value::as_str) {
        let path = path.field("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.push(field::invalid(&path, spec, "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > 64 << 10 {
            errors.push(field::invalid(&path, "", "gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    if let Some(user) = options.get("runAsUserName").and_then(Value::as_str) {
        run_as_user_name(errors, &path.field("runAsUserName"), user);
    }
}

/// `DOMAIN\user` or `user`.
fn run_as_user_name(errors: &mut Errors, path: &Path<'_>, name: &str) {
    let mut refuse = |why: &str| errors.push(field::invalid(path, name, why));
    if name.is_empty() {
        return refuse("runAsUserName cannot be an empty string");
    }
    if name.chars().any(char::is_control) {
        return refuse("runAsUserName cannot contain control characters");
    }
    let (domain, user) = name.split_once('\\').map_or((None, name), |(d, u)| (Some(d), u));
    if user.contains('\\') {
        return refuse("runAsUserName cannot contain more than one backslash");
    }
    if let Some(domain) = domain
        && (domain.is_empty() || domain.len() > 256)
    {
        refuse("runAsUserName's Domain is empty or too long");
    }
    if user.is_empty() || user.len() > 104 {
        refuse("runAsUserName's User is empty or too long");
    }
    if user.chars().all(|c| c == '.' || c == ' ')
        || user.contains(['"', '/', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']'])
    {
        refuse("runAsUserName's User contains characters that are not allowed");
    }
}

/// The security context of a container.
pub(super) fn validate_container(errors: &mut Errors, path: &Path<'_>, context: Option<&Value>, host_users: bool) {
    let Some(context) = context.filter(|c| c.is_object()) else { return };
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, &path.field(key), context.get(key));
    }
    if let Some(mount) = context.get("procMount").and_then(Value::as_str) {
        let path = path.field("procMount");
        if !["Default", "Unmasked"].contains(&mount) {
            errors.push(field::not_supported(&path, mount, &["Default", "Unmasked"]));
        }
        if host_users && mount == "Unmasked" {
            errors.push(field::invalid(&path, mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    seccomp(errors, &path.field("seccompProfile"), context.get("seccompProfile"));
    if at(context, "allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if flag(context, "privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(field::invalid(path, "", why));
        }
        if list(context, "capabilities.add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(field::invalid(path, "", why));
        }
    }
    windows(errors, &path.field("windowsOptions"), context.get("windowsOptions"));
    app_armor(errors, &path.field("appArmorProfile"), context.get("appArmorProfile"));
}
