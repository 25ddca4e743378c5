//! What `spec.os` allows: settings of the other system are refused.

use serde_json::Value;

use crate::base::json::{at, list, text};
use crate::kinds::check::Path;
use crate::kinds::field::{self, Errors};

/// Settings that mean nothing on Windows: of the spec, of the pod's security context, of a container's.
const LINUX_SPEC: &[&str] = &["hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"];
const LINUX_POD: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "sysctls",
    "runAsUser",
    "runAsGroup",
    "supplementalGroups",
    "supplementalGroupsPolicy",
];
const LINUX_CONTAINER: &[&str] = &[
    "appArmorProfile",
    "seLinuxOptions",
    "seccompProfile",
    "capabilities",
    "readOnlyRootFilesystem",
    "privileged",
    "allowPrivilegeEscalation",
    "procMount",
    "runAsUser",
    "runAsGroup",
];

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let Some(os) = spec.get("os").filter(|o| o.is_object()) else { return };
    let name = text(os, "name");
    let at_os = path.field("os");
    match name {
        "" => errors.push(field::required(&at_os.field("name"), "cannot be empty")),
        "linux" => forbid_windows(errors, path, spec),
        "windows" => forbid_linux(errors, path, spec),
        other => errors.push(field::not_supported(&at_os, other, &["linux", "windows"])),
    }
}

fn each_container(spec: &Value, path: &Path<'_>, mut run: impl FnMut(&Path<'_>, &Value)) {
    for group in ["initContainers", "containers", "ephemeralContainers"] {
        let path = path.field(group);
        for (i, container) in list(spec, group).iter().enumerate() {
            if let Some(context) = container.get("securityContext") {
                run(&path.index(i).field("securityContext"), context);
            }
        }
    }
}

fn forbid_windows(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    const WHY: &str = "windows options cannot be set for a linux pod";
    if at(spec, "securityContext.windowsOptions").is_some() {
        errors.push(field::forbidden(&path.field("securityContext.windowsOptions"), WHY));
    }
    each_container(spec, path, |path, context| {
        if context.get("windowsOptions").is_some() {
            errors.push(field::forbidden(&path.field("windowsOptions"), WHY));
        }
    });
}

fn forbid_linux(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    const WHY: &str = "cannot be set for a windows pod";
    for key in LINUX_SPEC {
        let given = spec.get(*key).is_some_and(|v| *v == true || (*key == "hostUsers" && !v.is_null()));
        if given || (*key == "shareProcessNamespace" && spec.get(*key).is_some()) {
            errors.push(field::forbidden(&path.field(key), WHY));
        }
    }
    let context_path = path.field("securityContext");
    for key in LINUX_POD {
        if at(spec, "securityContext").is_some_and(|c| c.get(*key).is_some()) {
            errors.push(field::forbidden(&context_path.field(key), WHY));
        }
    }
    each_container(spec, path, |path, context| {
        for key in LINUX_CONTAINER {
            if context.get(*key).is_some() {
                errors.push(field::forbidden(&path.field(key), WHY));
            }
        }
    });
}
