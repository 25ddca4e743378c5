//! OpenAPI documents: version 2 for old clients, version 3 group by group for kubectl's `apply`, `explain` and checks.
//!
//! Documents are written straight to bytes, one definition at a time, whenever they are asked for; nothing of them stays
//! in memory. Callers that are asked often keep a compressed copy.

mod custom;
mod definitions;
mod gnostic;
mod kind;
mod paths;

pub use kind::{ApiKind, ApiSubresource, CustomApi};

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use serde_json::{Value, json};

use super::bundle::{Descriptions, bundle};
use definitions::{Dialect, META};

/// What the schemas of custom kinds take of one document: what comes behind them is an object of which nothing is said.
const CUSTOM_BYTES_MAX: usize = 32 << 20;
/// Custom kinds in one document; others are not in it.
const CUSTOM_KINDS_MAX: usize = 2000;

/// The kinds that a document tells of.
fn described(kinds: &[ApiKind]) -> Vec<ApiKind> {
    let mut left = CUSTOM_KINDS_MAX;
    let mut is_in = |kind: &&ApiKind| {
        let is_in = kind.custom.is_none() || left > 0;
        left = left.saturating_sub(usize::from(kind.custom.is_some()));
        is_in
    };
    kinds.iter().filter(|kind| is_in(kind)).cloned().collect()
}

/// The whole document of version 2, as JSON.
pub fn v2(kinds: &[ApiKind]) -> Vec<u8> {
    let kinds = &described(kinds);
    let mut out = Vec::with_capacity(1 << 20);
    let mut first = true;
    for (name, value) in v2_head() {
        out.push(if std::mem::take(&mut first) { b'{' } else { b',' });
        write!(out, "{}:{value}", Value::from(name)).expect("writing to memory does not fail");
    }
    write_raw(&mut out, r#","paths":"#);
    write_paths(&mut out, kinds, Dialect::V2);
    write_raw(&mut out, r#","definitions":"#);
    write_definitions(&mut out, kinds, kinds, Dialect::V2);
    out.push(b'}');
    out
}

/// The same document as the message `openapi.v2.Document`.
pub fn v2_protobuf(kinds: &[ApiKind]) -> Vec<u8> {
    let kinds = &described(kinds);
    let paths: Vec<u8> = each_path(kinds, Dialect::V2, gnostic::path).into_values().flatten().collect();
    let mut definitions = Vec::with_capacity(1 << 19);
    each_definition(kinds, kinds, Dialect::V2, |name, schema| {
        definitions.extend_from_slice(&gnostic::definition(name, schema));
    });
    gnostic::document(&v2_head(), &paths, &definitions)
}

/// What the document of version 2 has beside paths and definitions.
fn v2_head() -> serde_json::Map<String, Value> {
    let head = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": "v1.37.0"},
        "securityDefinitions": {"BearerToken": {
            "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
        }},
        "security": [{"BearerToken": []}],
    });
    head.as_object().cloned().unwrap_or_default()
}

/// A hash that changes with any kind.
pub fn v2_fingerprint(kinds: &[ApiKind]) -> u64 {
    by_version(kinds).into_values().fold(0, |hash, kinds| hash.rotate_left(1) ^ fingerprint_of(&kinds))
}

/// The index of version 3: each group version and where its document is, with a hash that changes with it.
pub fn v3_index(kinds: &[ApiKind]) -> Value {
    let mut paths = serde_json::Map::new();
    for ((group, version), kinds) in by_version(kinds) {
        let name = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let hash = fingerprint_of(&kinds);
        paths.insert(name.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash={hash:016X}")}));
    }
    json!({ "paths": paths })
}

/// The document of version 3 for one group version; none if no kind of it is served.
pub fn v3(kinds: &[ApiKind], group: &str, version: &str) -> Option<Vec<u8>> {
    let served: Vec<ApiKind> = kinds.iter().filter(|k| k.group_version() == (group, version)).cloned().collect();
    if served.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(1 << 19);
    write_raw(&mut out, r#"{"openapi":"3.0.0","info":{"title":"Kubernetes","version":"v1.37.0"},"paths":"#);
    write_paths(&mut out, &served, Dialect::V3);
    write_raw(&mut out, r#","components":{"schemas":"#);
    write_definitions(&mut out, &served, kinds, Dialect::V3);
    let security = json!({"BearerToken": {
        "description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey",
    }});
    write_raw(&mut out, &format!(r#","securitySchemes":{security}}}}}"#));
    Some(out)
}

/// The hash that [`v3_index`] gives for this group version.
pub fn fingerprint(kinds: &[ApiKind], group: &str, version: &str) -> u64 {
    let kinds: Vec<&ApiKind> = kinds.iter().filter(|k| k.group_version() == (group, version)).collect();
    fingerprint_of(&kinds)
}

fn by_version(kinds: &[ApiKind]) -> BTreeMap<(&str, &str), Vec<&ApiKind>> {
    let mut all: BTreeMap<_, Vec<&ApiKind>> = BTreeMap::new();
    for kind in kinds {
        all.entry(kind.group_version()).or_default().push(kind);
    }
    all
}

fn fingerprint_of(kinds: &[&ApiKind]) -> u64 {
    let mut text = format!("{} {}", env!("CARGO_PKG_VERSION"), bundle().fields.len());
    for kind in kinds {
        text.push_str(&format!("{kind:?}"));
    }
    kind::hash(text.bytes())
}

fn write_raw(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// Every path item, written by `write`, by path; as bytes, which are a fraction of the values.
fn each_path(
    kinds: &[ApiKind],
    dialect: Dialect,
    write: impl Fn(&str, &Value) -> Vec<u8>,
) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut put = |path: String, item: &Value| {
        let written = write(&path, item);
        all.insert(path, written);
    };
    for kind in kinds {
        paths::of_kind(kind, dialect).into_iter().for_each(|(path, item)| put(path, &item));
    }
    for (root, (group, version)) in kinds.iter().map(|k| (k.root(), k.group_version())).collect::<BTreeSet<_>>() {
        put(format!("{root}/"), &paths::of_discovery(group, version, dialect));
    }
    all
}

fn member(name: &str, value: &Value) -> Vec<u8> {
    format!("{}:{value}", Value::from(name)).into_bytes()
}

fn write_paths(out: &mut Vec<u8>, kinds: &[ApiKind], dialect: Dialect) {
    out.push(b'{');
    for (i, item) in each_path(kinds, dialect, member).into_values().enumerate() {
        write_raw(out, if i > 0 { "," } else { "" });
        out.extend_from_slice(&item);
    }
    out.push(b'}');
}

fn write_definitions(out: &mut Vec<u8>, kinds: &[ApiKind], all: &[ApiKind], dialect: Dialect) {
    let mut first = true;
    out.push(b'{');
    each_definition(kinds, all, dialect, |name, schema| {
        write_raw(out, if std::mem::take(&mut first) { "" } else { "," });
        out.extend_from_slice(&member(name, schema));
    });
    out.push(b'}');
}

fn each_definition(kinds: &[ApiKind], all: &[ApiKind], dialect: Dialect, mut write: impl FnMut(&str, &Value)) {
    let mut roots = BTreeSet::new();
    for kind in kinds {
        if kind.custom.is_none() {
            roots.insert(kind.definition.clone());
            roots.insert(format!("{}List", kind.definition));
        }
        roots.extend(kind.subresources.iter().map(|s| s.definition.clone()));
    }
    for name in ["ObjectMeta", "ListMeta", "APIResourceList", "DeleteOptions", "Status", "WatchEvent", "Patch"] {
        roots.insert(format!("{META}.{name}"));
    }
    let group_versions: BTreeSet<(&str, &str)> = all.iter().map(ApiKind::group_version).collect();
    let descriptions = Descriptions::load();
    for name in &definitions::reachable(bundle(), &roots) {
        let schema = definitions::schema(bundle(), Some(&descriptions), name, dialect, &group_versions);
        write(name, &schema);
    }
    let mut left = CUSTOM_BYTES_MAX;
    for (kind, own) in kinds.iter().filter_map(|k| Some((k, k.custom.as_ref()?))) {
        write(&kind.definition, &custom::object(kind, own, dialect, &mut left));
        write(&kind.list_definition(), &custom::list(kind, own, dialect));
    }
}

#[cfg(test)]
mod tests;
