//! Discovery: which groups, versions and resources there are, plain and aggregated (v2).

use http::HeaderMap;
use serde_json::{Value, json};

use crate::api::aggregate::{GroupVersion, Groups};
use crate::api::{Api, resource_metrics};
use crate::kinds::KindRef;
use crate::kinds::registry::Snapshot;

/// The answer of a discovery path, if it is one.
pub fn answer(api: &Api, path: &str, headers: &HeaderMap) -> Option<(Value, &'static str)> {
    let (kinds, groups) = (&*api.kinds.snapshot(), || api.groups());
    let path = path.trim_end_matches('/');
    let plain = |v: Value| (v, "application/json");
    let aggregated = wants_aggregated(headers);
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    match path {
        "/api" | "/apis" if aggregated => {
            let mut all = groups();
            all.retain(|(name, _)| name.is_empty() == (path == "/api"));
            Some((aggregate(kinds, &all), AGGREGATED))
        }
        "/api" => Some(plain(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }))),
        "/apis" => {
            let all: Vec<Value> =
                groups().iter().filter(|(g, _)| !g.is_empty()).map(|(g, versions)| group(g, versions)).collect();
            Some(plain(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})))
        }
        "/api/v1" => Some(plain(resources(kinds, "", "v1"))),
        _ => {
            let mut parts = path.strip_prefix("/apis/")?.split('/');
            let (name, version, end) = (parts.next()?, parts.next(), parts.next());
            if end.is_some() || name.is_empty() {
                return None;
            }
            match version {
                None => {
                    let (_, versions) = groups().into_iter().find(|(group, _)| group == name)?;
                    let mut found = group(name, &versions);
                    found["kind"] = "APIGroup".into();
                    found["apiVersion"] = "v1".into();
                    Some(plain(found))
                }
                Some(v) => (!of(kinds, name, v).is_empty()).then(|| plain(resources(kinds, name, v))),
            }
        }
    }
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(http::header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    accepts.flat_map(|v| v.split(',')).map(str::trim).any(|range| {
        let has = |p: &str| range.split(';').any(|x| x.trim() == p);
        range.starts_with("application/json")
            && has("g=apidiscovery.k8s.io")
            && has("v=v2")
            && has("as=APIGroupDiscoveryList")
    })
}

fn of<'a>(kinds: &'a Snapshot, group: &str, version: &str) -> Vec<&'a KindRef> {
    kinds.iter().filter(|k| k.group() == group && k.version() == version).collect()
}

fn group(name: &str, versions: &[GroupVersion]) -> Value {
    let all: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{}", v.version), "version": v.version}))
        .collect();
    json!({"name": name, "versions": all, "preferredVersion": all[0]})
}

fn resources(kinds: &Snapshot, group: &str, version: &str) -> Value {
    let mut out = Vec::new();
    for kind in of(kinds, group, version) {
        let mut entry = json!({
            "name": kind.plural(), "singularName": kind.singular(), "namespaced": kind.namespaced(), "kind": kind.kind(), "verbs": kind.verbs(),
        });
        if !kind.short_names().is_empty() {
            entry["shortNames"] = json!(kind.short_names());
        }
        if !kind.categories().is_empty() {
            entry["categories"] = json!(kind.categories());
        }
        if kind.is_stored() {
            entry["storageVersionHash"] = storage_hash(kind).into();
        }
        out.push(entry);
        let mut subs = kind.subresources().to_vec();
        subs.sort_by_key(|s| s.name());
        for sub in subs {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural(), sub.name()), "singularName": "", "namespaced": kind.namespaced(),
                "kind": kind.kind(), "verbs": sub.verbs(),
            });
            if let Some((g, v, k)) = sub.gvk(kind.kind()) {
                entry["kind"] = k.into();
                if g != kind.group() || v != kind.version() {
                    if !g.is_empty() {
                        entry["group"] = g.into();
                    }
                    entry["version"] = v.into();
                }
            }
            out.push(entry);
        }
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = json!({"kind": "APIResourceList", "groupVersion": name, "resources": out});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    list
}

/// Changes when the stored form of a kind would change.
fn storage_hash(kind: &KindRef) -> String {
    use base64::Engine;
    let stored = kind.stored();
    let text = format!("{}/{}/{}", stored.group(), stored.version(), stored.kind());
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(&digest.as_ref()[..8])
}

fn aggregate(kinds: &Snapshot, groups: &Groups) -> Value {
    let shown = |group: &str, v: &GroupVersion| match &v.remote {
        Some(remote) => remote.shown(),
        None if group == resource_metrics::GROUP => resource_metrics::discovered(),
        None => {
            let resources: Vec<Value> = of(kinds, group, &v.version).into_iter().map(aggregated_entry).collect();
            json!({"version": v.version, "freshness": "Current", "resources": resources})
        }
    };
    let items: Vec<Value> = groups
        .iter()
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions.iter().map(|v| shown(name, v)).collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_entry(kind: &KindRef) -> Value {
    let gvk = |g: &str, v: &str, k: &str| json!({"group": g, "version": v, "kind": k});
    let mut entry = json!({
        "resource": kind.plural(), "responseKind": gvk(kind.group(), kind.version(), kind.kind()),
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" }, "singularResource": kind.singular(), "verbs": kind.verbs(),
    });
    if !kind.short_names().is_empty() {
        entry["shortNames"] = json!(kind.short_names());
    }
    if !kind.categories().is_empty() {
        entry["categories"] = json!(kind.categories());
    }
    if !kind.subresources().is_empty() {
        let mut subs = kind.subresources().to_vec();
        subs.sort_by_key(|s| s.name());
        let subs = subs.into_iter().map(|s| {
            let own = (kind.group(), kind.version(), kind.kind().to_owned());
            let (g, v, k) = s.gvk(kind.kind()).unwrap_or(own);
            json!({"subresource": s.name(), "responseKind": gvk(g, v, &k), "verbs": s.verbs()})
        });
        entry["subresources"] = subs.collect();
    }
    entry
}
