//! What a volume is made of: one of many kinds of storage, most of them as in volumes of pods.

use serde_json::{Map, Value};

use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::core::podspec;
use crate::kinds::field::{self, Errors};

/// All kinds of storage, with the fields that must be given; `[]` after a name is a list that must not be empty.
const SOURCES: &[(&str, &[&str])] = &[
    ("hostPath", &["path"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("nfs", &["server", "path"]),
    ("rbd", &["monitors[]", "image"]),
    ("quobyte", &["registry", "volume"]),
    ("cephfs", &["monitors[]"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("cinder", &["volumeID"]),
    ("fc", &[]),
    ("flexVolume", &["driver"]),
    ("azureFile", &["secretName", "shareName"]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("local", &["path"]),
    ("storageos", &[]),
    ("csi", &["driver", "volumeHandle"]),
];
/// What nodes mount.
const MOUNTED: &[&str] = &["hostPath", "local"];
/// Secrets that a driver gets.
const CSI_SECRETS: &[&str] = &[
    "controllerPublishSecretRef",
    "nodeStageSecretRef",
    "nodePublishSecretRef",
    "controllerExpandSecretRef",
    "nodeExpandSecretRef",
];

/// Checks the one source of a volume.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, spec: &Value, has_affinity: bool) {
    let mut given = 0;
    for (name, required) in SOURCES {
        let Some(source) = spec.get(*name).filter(|s| !s.is_null()) else { continue };
        given += 1;
        let path = path.field(name);
        if given > 1 {
            errors.push(field::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        for key in *required {
            let (key, missing) = match key.strip_suffix("[]") {
                Some(key) => (key, list(source, key).is_empty()),
                None => (*key, text(source, key).is_empty()),
            };
            if missing {
                errors.push(field::required(&path.field(key), ""));
            }
        }
        match *name {
            "local" => check::no_backsteps(errors, &path.field("path"), text(source, "path")),
            "csi" => csi(errors, &path, source),
            "azureFile" if source.get("secretNamespace").is_some_and(|n| n == "") => {
                errors.push(field::required(&path.field("secretNamespace"), ""));
            }
            _ => podspec::validate_volume_source(errors, &path, name, source),
        }
    }
    if spec.get("local").is_some_and(|l| !l.is_null()) && !has_affinity {
        errors.push(field::required(&path.field("nodeAffinity"), "Local volume requires node affinity"));
    }
    if given == 0 {
        errors.push(field::required(path, "must specify a volume type"));
    }
}

fn csi(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    podspec::validate_volume_source(errors, path, "csi", source);
    for key in CSI_SECRETS {
        let Some(secret) = source.get(*key).filter(|s| s.as_object().is_some_and(|s| !s.is_empty())) else { continue };
        let path = path.field(key);
        for part in ["name", "namespace"] {
            check::given(errors, &path.field(part), text(secret, part));
        }
    }
}

/// The source alone.
pub(super) fn of(spec: &Value) -> Map<String, Value> {
    let known = |name: &str| SOURCES.iter().any(|(source, _)| *source == name);
    let pairs = spec.as_object().into_iter().flatten().filter(|(key, value)| known(key) && !value.is_null());
    pairs.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Of kinds whose time is over; and when it is new, of what no node mounts.
pub(super) fn warnings(spec: &Value, is_new: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let path = Path::root("spec");
    for name in of(spec).keys() {
        warnings.extend(podspec::old_volume(&path.field(name), name));
        if is_new && !MOUNTED.contains(&name.as_str()) {
            warnings.push(format!("spec.{name}: a volume of this type is refused by nodes of this version"));
        }
    }
    if is_new && text(spec, "volumeMode") == "Block" {
        warnings.push("spec.volumeMode: block devices are refused by nodes of this version".into());
    }
    let mounted = MOUNTED.iter().any(|name| spec.get(*name).is_some_and(|s| !s.is_null()));
    if is_new && mounted && !list(spec, "mountOptions").is_empty() {
        warnings.push("spec.mountOptions: volumes of this type have no mount options in this version".into());
    }
    warnings
}
