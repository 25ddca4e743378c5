//! Volumes of a pod, and where containers mount them.

use std::collections::HashSet;

use serde_json::Value;

use super::names::Names;
use super::volume_sources;
use crate::base::json::{flag, list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Checks `spec.volumes`.
pub(super) fn validate_all(errors: &mut Errors, path: &Path<'_>, spec: &Value) {
    let volumes = list(spec, "volumes");
    let mut seen = HashSet::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        let name = text(volume, "name");
        let name_path = path.field("name");
        volume_sources::validate(errors, &path, volume);
        if name.is_empty() {
            errors.push(field::required(&name_path, ""));
            continue;
        }
        check::dns_label(errors, &name_path, name);
        if !seen.insert(name) {
            errors.push(field::duplicate(&name_path, name));
        }
    }
}

/// What the items of a list have in a field.
fn texts<'a>(items: &'a [Value], key: &str) -> HashSet<&'a str> {
    items.iter().map(|item| text(item, key)).collect()
}

/// The `volumeMounts` of a container.
pub(super) fn mounts(errors: &mut Errors, path: &Path<'_>, container: &Value, names: &Names<'_>) {
    let (mounts, devices) = (list(container, "volumeMounts"), list(container, "volumeDevices"));
    let base = path.field("volumeMounts");
    let mut paths = HashSet::new();
    let (device_names, device_places) = (texts(devices, "name"), texts(devices, "devicePath"));
    for (i, mount) in mounts.iter().enumerate() {
        let path = base.index(i);
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        check::given(errors, &path.field("name"), name);
        let volume = names.sound_volume(name);
        if volume.is_none() {
            errors.push(field::not_found(&path.field("name"), name));
        }
        check::given(errors, &path.field("mountPath"), place);
        if !paths.insert(place) {
            errors.push(field::invalid(&path.field("mountPath"), place, "must be unique"));
        }
        if device_names.contains(name) {
            errors.push(field::invalid(&path.field("name"), name, "must not already exist in volumeDevices"));
        }
        if device_places.contains(place) {
            errors.push(field::invalid(
                &path.field("mountPath"),
                place,
                "must not already exist as a path in volumeDevices",
            ));
        }
        sub_paths(errors, &base, mount);
        propagation(errors, &base, mount, container);
        recursive_read_only(errors, &base, mount);
    }
}

fn sub_paths(errors: &mut Errors, base: &Path<'_>, mount: &Value) {
    let (plain, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    if !plain.is_empty() {
        check::relative_path(errors, &base.field("subPath"), plain);
    }
    if !expression.is_empty() {
        let path = base.field("subPathExpr");
        if !plain.is_empty() {
            errors.push(field::invalid(&path, expression, "subPathExpr and subPath are mutually exclusive"));
        }
        check::relative_path(errors, &path, expression);
    }
}

fn propagation(errors: &mut Errors, base: &Path<'_>, mount: &Value, container: &Value) {
    let Some(mode) = mount.get("mountPropagation").and_then(Value::as_str) else { return };
    let path = base.field("mountPropagation");
    let supported = ["Bidirectional", "HostToContainer", "None"];
    if !supported.contains(&mode) {
        errors.push(field::not_supported(&path, mode, &supported));
    }
    if mode == "Bidirectional" && !flag(container, "securityContext.privileged") {
        let why = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(field::forbidden(&path, why));
    }
}

fn recursive_read_only(errors: &mut Errors, base: &Path<'_>, mount: &Value) {
    let Some(mode) = mount.get("recursiveReadOnly").and_then(Value::as_str) else { return };
    let path = base.field("recursiveReadOnly");
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !flag(mount, "readOnly") {
                errors.push(field::forbidden(&path, "may only be specified when readOnly is true"));
            }
            let propagation = text(mount, "mountPropagation");
            if !matches!(propagation, "" | "None") {
                errors.push(field::forbidden(
                    &path,
                    "may only be specified when mountPropagation is None or not specified",
                ));
            }
        }
        other => errors.push(field::not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"])),
    }
}

/// The `volumeDevices` of a container.
pub(super) fn devices(errors: &mut Errors, path: &Path<'_>, container: &Value, names: &Names<'_>) {
    let (mounts, devices) = (list(container, "volumeMounts"), list(container, "volumeDevices"));
    let base = path.field("volumeDevices");
    let (mount_names, mount_places) = (texts(mounts, "name"), texts(mounts, "mountPath"));
    let (mut seen_names, mut seen_places) = (HashSet::new(), HashSet::new());
    for (i, device) in devices.iter().enumerate() {
        let path = base.index(i);
        let (name, place) = (text(device, "name"), text(device, "devicePath"));
        let (name_path, place_path) = (path.field("name"), path.field("devicePath"));
        check::given(errors, &name_path, name);
        if !seen_names.insert(name) {
            errors.push(field::invalid(&name_path, name, "must be unique"));
        }
        match names.sound_volume(name) {
            None => errors.push(field::not_found(&name_path, name)),
            Some(volume) if volume.get("persistentVolumeClaim").is_none() && volume.get("ephemeral").is_none() => {
                let why = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(field::invalid(&name_path, name, why));
            }
            Some(_) => {}
        }
        if check::given(errors, &place_path, place) {
            check::no_backsteps(errors, &place_path, place);
        }
        if !seen_places.insert(place) && !place.is_empty() {
            errors.push(field::invalid(&place_path, place, "must be unique"));
        }
        if mount_places.contains(place) && !place.is_empty() {
            errors.push(field::invalid(&place_path, place, "must not already exist as a path in volumeMounts"));
        }
        if mount_names.contains(name) {
            errors.push(field::invalid(&name_path, name, "must not already exist in volumeMounts"));
        }
    }
}
