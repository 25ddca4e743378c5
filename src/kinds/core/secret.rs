//! Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use linkme::distributed_slice;
use serde_json::Value;

use super::configmap;
use crate::base::json::{at, map, map_mut, set_default, text};
use crate::kinds::check::{self, IMMUTABLE, Path};
use crate::kinds::field::{self, Errors};
use crate::kinds::table::{self, string};
use crate::kinds::{BUILTIN, Column, Field, Kind, KindRef, Strategy};

/// The kind.
#[distributed_slice(BUILTIN)]
pub static KIND: KindRef = KindRef::builtin(&Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    columns: COLUMNS,
    row,
    fields: &[Field { name: "type", get: |s| text(s, "type").into() }],
    strategy: Strategy { default, validate, validate_update, warnings, ..Strategy::BASE },
    sample: r#"{"metadata":{"name":"sample"},"stringData":{"a":"b"}}"#,
    ..Kind::BASE
});

const COLUMNS: &[Column] = &[
    table::NAME,
    string("Type", "What the entries are used for."),
    string("Data", "How many entries it has."),
    table::AGE,
];

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let entries = map(object, "data").map_or(0, serde_json::Map::len);
    vec![table::name(object), text(object, "type").into(), entries.into(), table::age(object, now)]
}

/// Plain text goes to the data, and a type that is left out is `Opaque`.
fn default(secret: &mut Value) {
    if let Some(Value::Object(plain)) = map_mut(secret, "").remove("stringData") {
        let data = map_mut(secret, "data");
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")).into());
        }
    }
    set_default(secret, "type", "Opaque");
}

fn decoded(secret: &Value, key: &str) -> Option<Vec<u8>> {
    STANDARD.decode(map(secret, "data")?.get(key)?.as_str()?).ok()
}

fn validate(secret: &Value) -> Errors {
    let mut errors = Errors::new();
    let data = Path::root("data");
    let mut total = 0;
    for (key, value) in map(secret, "data").into_iter().flatten() {
        total += value.as_str().map_or(0, str::len) / 4 * 3;
        if let Some(why) = check::config_key_error(key) {
            errors.push(field::invalid(&data.key(key), key.as_str(), why));
        }
    }
    if total > configmap::BYTES {
        errors.push(field::too_long("data", configmap::BYTES));
    }
    let has = |key: &str| map(secret, "data").is_some_and(|d| d.contains_key(key));
    match text(secret, "type") {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let named = at(secret, "metadata.annotations").and_then(|a| a.get(ACCOUNT)).and_then(Value::as_str);
            if named.is_none_or(str::is_empty) {
                errors.push(field::required(&Path::root("metadata.annotations").key(ACCOUNT), ""));
            }
        }
        kind @ ("kubernetes.io/dockercfg" | "kubernetes.io/dockerconfigjson") => {
            let key = if kind.ends_with("cfg") { ".dockercfg" } else { ".dockerconfigjson" };
            match decoded(secret, key) {
                None => errors.push(field::required(&data.key(key), "")),
                Some(bytes) if serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).is_err() => {
                    errors.push(field::invalid(&data.key(key), "<secret contents redacted>", "must be a JSON object"));
                }
                Some(_) => {}
            }
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            errors.push(field::required(&data.key("username"), ""));
            errors.push(field::required(&data.key("password"), ""));
        }
        "kubernetes.io/ssh-auth" if decoded(secret, "ssh-privatekey").is_none_or(|k| k.is_empty()) => {
            errors.push(field::required(&data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"].into_iter().filter(|k| !has(k)) {
                errors.push(field::required(&data.key(key), ""));
            }
        }
        _ => {}
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if new["type"] != old["type"] {
        errors.push(field::invalid("type", text(new, "type"), IMMUTABLE));
    }
    errors.extend(configmap::fixed(new, old, &["data"]));
    errors
}

/// A certificate that nobody can use.
fn warnings(secret: &Value, _old: Option<&Value>) -> Vec<String> {
    if text(secret, "type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let holds = |key: &str, what: &str| {
        let pem = decoded(secret, key).unwrap_or_default();
        let pem = String::from_utf8_lossy(&pem);
        pem.contains("-----BEGIN ") && pem.contains(what)
    };
    if map(secret, "data").is_none() || (holds("tls.crt", "CERTIFICATE-----") && holds("tls.key", "PRIVATE KEY-----")) {
        return Vec::new();
    }
    vec!["tls: failed to find any PEM data in certificate or key input".into()]
}
