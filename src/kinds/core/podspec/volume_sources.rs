//! Every type of volume source, most of them by a table of what must be given.

use serde_json::Value;

use super::{projection, volume_items};
use crate::base::json::{at, list, text};
use crate::base::labels::dns_subdomain_error;
use crate::base::quantity::Quantity;
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// Types of sources with the fields that must be given; `[]` after a name is a list that must not be empty.
const SOURCES: &[(&str, &[&str])] = &[
    ("emptyDir", &[]),
    ("hostPath", &["path"]),
    ("gitRepo", &["repository"]),
    ("gcePersistentDisk", &["pdName"]),
    ("awsElasticBlockStore", &["volumeID"]),
    ("secret", &["secretName"]),
    ("nfs", &["server", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("glusterfs", &["endpoints", "path"]),
    ("flocker", &[]),
    ("persistentVolumeClaim", &["claimName"]),
    ("rbd", &["monitors[]", "image"]),
    ("cinder", &["volumeID"]),
    ("cephfs", &["monitors[]"]),
    ("flexVolume", &["driver"]),
    ("configMap", &["name"]),
    ("azureFile", &["secretName", "shareName"]),
    ("fc", &[]),
    ("vsphereVolume", &["volumePath"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("storageos", &[]),
    ("quobyte", &["registry", "volume"]),
    ("projected", &[]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("csi", &["driver"]),
    ("downwardAPI", &[]),
    ("ephemeral", &["volumeClaimTemplate"]),
    ("image", &["reference"]),
];

/// Checks the one source of a volume.
pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, volume: &Value) {
    let mut given = 0;
    for (name, required) in SOURCES {
        let Some(source) = volume.get(*name) else { continue };
        given += 1;
        let path = path.field(name);
        if given > 1 {
            errors.push(field::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        for key in *required {
            let (key, missing) = match key.strip_suffix("[]") {
                Some(key) => (key, list(source, key).is_empty()),
                None => (*key, source.get(*key).is_none_or(|v| v.is_null() || v == "")),
            };
            if missing {
                errors.push(field::required(&path.field(key), ""));
            }
        }
        special(errors, &path, name, source, volume);
    }
    if given == 0 {
        errors.push(field::required(path, "must specify a volume type"));
    }
}

fn special(errors: &mut Errors, path: &Path<'_>, name: &str, source: &Value, volume: &Value) {
    if name == "ephemeral" {
        if let Some(template) = source.get("volumeClaimTemplate").filter(|t| t.is_object()) {
            volume_items::claim_template(errors, &path.field("volumeClaimTemplate"), template);
            claim_name(errors, path, volume);
        }
    } else {
        validate_source(errors, path, name, source);
    }
}

/// What there is to say of the fields of one type of source, in pods or elsewhere, beside which must be given.
pub fn validate_source(errors: &mut Errors, path: &Path<'_>, name: &str, source: &Value) {
    match name {
        "emptyDir" => {
            let limit = source.get("sizeLimit").and_then(Value::as_str).and_then(|s| s.parse::<Quantity>().ok());
            if limit.is_some_and(|l| l.is_negative()) {
                errors.push(field::forbidden(
                    &path.field("sizeLimit"),
                    "SizeLimit field must be a valid resource quantity",
                ));
            }
        }
        "hostPath" => host_path(errors, path, source),
        "gitRepo" => {
            let directory = text(source, "directory");
            if !directory.is_empty() {
                check::relative_path_strict(errors, &path.field("directory"), directory);
            }
        }
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            if let Some(n) = source.get("partition").and_then(Value::as_i64).filter(|n| !(0..=255).contains(n)) {
                errors.push(field::invalid(&path.field("partition"), n, "must be between 1 and 255, inclusive"));
            }
        }
        "secret" | "configMap" => {
            check::file_mode(errors, &path.field("defaultMode"), source.get("defaultMode"));
            volume_items::keys(errors, &path.field("items"), list(source, "items"));
        }
        "downwardAPI" => {
            check::file_mode(errors, &path.field("defaultMode"), source.get("defaultMode"));
            volume_items::downward(errors, path, list(source, "items"));
        }
        "projected" => projection::validate(errors, path, source),
        "nfs" => {
            if !text(source, "path").starts_with('/') {
                errors.push(field::invalid(&path.field("path"), text(source, "path"), "must be an absolute path"));
            }
        }
        "iscsi" => iscsi(errors, path, source),
        "fc" => fibre_channel(errors, path, source),
        "flocker" => flocker(errors, path, source),
        "csi" => csi(errors, path, source),
        "azureDisk" => azure_disk(errors, path, source),
        "cinder" | "storageos" | "scaleIO" => secret_reference(errors, path, name, source),
        "image" => {
            let policies = ["Always", "IfNotPresent", "Never"];
            check::required_one_of(errors, &path.field("pullPolicy"), text(source, "pullPolicy"), &policies);
        }
        _ => {}
    }
}

/// The claim is named after the pod and the volume; both together must be a name.
fn claim_name(errors: &mut Errors, path: &Path<'_>, volume: &Value) {
    let name = text(volume, "name");
    if name.len() > 253 {
        errors.push(field::invalid(path, name, "the name of its claim is too long"));
    }
}

fn host_path(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    check::no_backsteps(errors, &path.field("path"), text(source, "path"));
    let supported =
        ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let kind = text(source, "type");
    if !supported.contains(&kind) {
        errors.push(field::not_supported(&path.field("type"), kind, &supported));
    }
}

fn iscsi(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    let iqn = text(source, "iqn");
    if !iqn.is_empty() {
        let fine = match iqn.split_once('.') {
            Some(("iqn", rest)) => is_iqn(rest),
            Some((kind @ ("eui" | "naa"), rest)) => {
                let length = if kind == "eui" { 16 } else { 32 };
                rest.len() == length && rest.bytes().all(|b| b.is_ascii_alphanumeric())
            }
            _ => false,
        };
        if !fine {
            errors.push(field::invalid(&path.field("iqn"), iqn, "must be valid format starting with iqn, eui, or naa"));
        }
    }
    if let Some(lun) = source.get("lun").and_then(Value::as_i64).filter(|n| !(0..=255).contains(n)) {
        errors.push(field::invalid(&path.field("lun"), lun, "must be between 0 and 255, inclusive"));
    }
    let chap = ["chapAuthDiscovery", "chapAuthSession"].iter().any(|k| source.get(*k) == Some(&Value::Bool(true)));
    match source.get("secretRef") {
        None if chap => errors.push(field::required(&path.field("secretRef"), "")),
        Some(reference) if text(reference, "name").is_empty() => {
            errors.push(field::required(&path.field("secretRef").field("name"), ""));
        }
        _ => {}
    }
}

/// `2001-04.com.example:storage`
fn is_iqn(text: &str) -> bool {
    let mut bytes = text.bytes();
    let date = "dddd-dd."
        .bytes()
        .all(|pattern| bytes.next().is_some_and(|b| if pattern == b'd' { b.is_ascii_digit() } else { b == pattern }));
    let rest = text.get(8..).unwrap_or("");
    let (domain, name) = rest.split_once(':').map_or((rest, None), |(d, n)| (d, Some(n)));
    date && !domain.is_empty()
        && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        && name.is_none_or(|n| !n.is_empty() && !n.contains([',', ';', '*', '&', '$', '|', ' ']))
}

fn fibre_channel(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    let (names, ids) = (list(source, "targetWWNs"), list(source, "wwids"));
    let at = path.field("targetWWNs");
    match (names.is_empty(), ids.is_empty()) {
        (true, true) => errors.push(field::required(&at, "must specify either targetWWNs or wwids, but not both")),
        (false, false) => {
            errors.push(field::invalid(
                &at,
                names.to_vec(),
                "targetWWNs and wwids can not be specified simultaneously",
            ));
        }
        (false, true) => match source.get("lun").and_then(Value::as_i64) {
            None => errors.push(field::required(&path.field("lun"), "lun is required if targetWWNs is specified")),
            Some(n) => check::within(errors, &path.field("lun"), n, 0, 255),
        },
        (true, false) => {}
    }
}

fn flocker(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    match (name.is_empty(), uuid.is_empty()) {
        (true, true) => errors.push(field::required(path, "one of datasetName and datasetUUID is required")),
        (false, false) => {
            errors.push(field::invalid(
                path,
                "resource",
                "datasetName and datasetUUID can not be specified simultaneously",
            ));
        }
        _ => {}
    }
    if name.contains('/') {
        errors.push(field::invalid(&path.field("datasetName"), name, "must not contain '/'"));
    }
}

fn csi(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    let driver = text(source, "driver");
    let at_driver = path.field("driver");
    if driver.len() > 63 {
        errors.push(field::too_long(&at_driver, 63));
    }
    if let Some(why) = dns_subdomain_error(&driver.to_lowercase()).filter(|_| !driver.is_empty()) {
        errors.push(field::invalid(&at_driver, driver, why));
    }
    if let Some(reference) = source.get("nodePublishSecretRef")
        && text(reference, "name").is_empty()
    {
        errors.push(field::required(&path.field("nodePublishSecretRef").field("name"), ""));
    }
}

fn azure_disk(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    let caching = ["None", "ReadOnly", "ReadWrite"];
    check::one_of(errors, &path.field("cachingMode"), text(source, "cachingMode"), &caching);
    let (kind, uri) = (text(source, "kind"), text(source, "diskURI"));
    check::one_of(errors, &path.field("kind"), kind, &["Dedicated", "Managed", "Shared"]);
    let (managed, prefix) = (kind == "Managed", uri.starts_with("/subscriptions/"));
    let plain = uri.starts_with("https://");
    if (managed && !prefix) || (!managed && !plain && !kind.is_empty()) {
        let supported: &[&str] =
            if managed { &["/subscriptions/{sub-id}/..."] } else { &["https://{account-name}.blob..."] };
        errors.push(field::not_supported(&path.field("diskURI"), uri, supported));
    }
}

fn secret_reference(errors: &mut Errors, path: &Path<'_>, name: &str, source: &Value) {
    let reference = at(source, "secretRef");
    match name {
        "cinder" | "storageos" => {
            if reference.is_some_and(|r| text(r, "name").is_empty()) {
                errors.push(field::required(&path.field("secretRef").field("name"), ""));
            }
        }
        _ => {}
    }
    if name == "storageos" && text(source, "volumeName").is_empty() {
        errors.push(field::required(&path.field("volumeName"), ""));
    }
}
