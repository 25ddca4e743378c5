//! Projected volumes: several sources in one directory.

use std::collections::HashSet;

use serde_json::Value;

use super::volume_items;
use crate::base::json::{list, text};
use crate::kinds::check::{self, Path};
use crate::kinds::field::{self, Errors};

/// The kinds of sources of a projected volume.
const KINDS: &[&str] =
    &["secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"];
/// Key types of pod certificates.
const KEY_TYPES: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];

pub(super) fn validate(errors: &mut Errors, path: &Path<'_>, source: &Value) {
    check::file_mode(errors, &path.field("defaultMode"), source.get("defaultMode"));
    let sources = path.field("sources");
    let mut files = HashSet::new();
    for (i, source) in list(source, "sources").iter().enumerate() {
        let here = sources.index(i);
        for kind in KINDS {
            if let Some(one) = source.get(*kind) {
                validate_one(errors, path, &here.field(kind), kind, one, &mut files);
            }
        }
        if KINDS.iter().filter(|k| source.get(**k).is_some()).count() > 1 {
            errors.push(field::forbidden(&here, "may not specify more than 1 volume type"));
        }
    }
}

fn validate_one<'a>(
    errors: &mut Errors,
    volume_path: &Path<'_>,
    path: &Path<'_>,
    kind: &str,
    one: &'a Value,
    files: &mut HashSet<&'a str>,
) {
    let mut claim = |errors: &mut Errors, file: &'a str| {
        if !file.is_empty() && !files.insert(file) {
            errors.push(field::invalid(volume_path, file, "conflicting duplicate paths"));
        }
    };
    match kind {
        "secret" | "configMap" => {
            check::given(errors, &path.field("name"), text(one, "name"));
            volume_items::keys(errors, &path.field("items"), list(one, "items"));
            list(one, "items").iter().for_each(|item| claim(errors, text(item, "path")));
        }
        "downwardAPI" => {
            volume_items::downward(errors, path, list(one, "items"));
            list(one, "items").iter().for_each(|item| claim(errors, text(item, "path")));
        }
        "serviceAccountToken" => {
            let seconds = one.get("expirationSeconds").and_then(Value::as_i64).unwrap_or(0);
            let at = path.field("expirationSeconds");
            if seconds < 600 {
                errors.push(field::invalid(&at, seconds, "may not specify a duration less than 10 minutes"));
            }
            if seconds > 1 << 32 {
                errors.push(field::invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds"));
            }
            let file = text(one, "path");
            if file.is_empty() {
                errors.push(field::required(&volume_path.field("path"), ""));
            } else {
                check::relative_path_strict(errors, &volume_path.field("path"), file);
            }
            claim(errors, file);
        }
        "clusterTrustBundle" => {
            trust_bundle(errors, path, one);
            claim(errors, text(one, "path"));
        }
        _ => {
            certificate(errors, path, one);
            for key in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                claim(errors, text(one, key));
            }
        }
    }
}

fn trust_bundle(errors: &mut Errors, path: &Path<'_>, one: &Value) {
    let (name, signer) = (one.get("name"), one.get("signerName"));
    match (name.and_then(Value::as_str), signer.and_then(Value::as_str)) {
        (Some(_), Some(_)) => {
            errors.push(field::invalid(path, one.clone(), "only one of name and signerName may be used"));
        }
        (None, None) => errors.push(field::required(path, "either name or signerName must be specified")),
        (Some(name), None) => {
            if check::given(errors, &path.field("name"), name) {
                // A bundle of a signer is named `domain:name:rest`.
                check::dns_subdomain(errors, &path.field("name"), name.rsplit(':').next().unwrap_or(""));
            }
            if one.get("labelSelector").is_some() {
                errors.push(field::invalid(
                    &path.field("labelSelector"),
                    "",
                    "labelSelector may not be used with name",
                ));
            }
        }
        (None, Some(signer)) => {
            check::given(errors, &path.field("signerName"), signer);
            check::label_selector(errors, &path.field("labelSelector"), one.get("labelSelector"));
        }
    }
    let file = text(one, "path");
    if check::given(errors, &path.field("path"), file) {
        check::relative_path_strict(errors, &path.field("path"), file);
    }
}

fn certificate(errors: &mut Errors, path: &Path<'_>, one: &Value) {
    check::given(errors, &path.field("signerName"), text(one, "signerName"));
    let kind = text(one, "keyType");
    if !KEY_TYPES.contains(&kind) {
        errors.push(field::not_supported(&path.field("keyType"), kind, KEY_TYPES));
    }
    if let Some(seconds) = one.get("maxExpirationSeconds").and_then(Value::as_i64)
        && !(3600..=91 * 86400).contains(&seconds)
    {
        let why = "must be between 1 hour and 91 days";
        errors.push(field::invalid(&path.field("maxExpirationSeconds"), seconds, why));
    }
    let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    if paths.iter().all(|k| text(one, k).is_empty()) {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(field::required(path, why));
    }
    for key in paths {
        let file = text(one, key);
        if !file.is_empty() {
            check::relative_path_strict(errors, &path.field(key), file);
        }
    }
}
