//! Discovery: which groups, versions and resources there are, plain and aggregated (v2).

use http::HeaderMap;
use serde_json::{Value, json};

use crate::kinds::KindRef;
use crate::kinds::registry::Snapshot;
use crate::kinds::version::version_rank;

/// Groups in the order of Kubernetes' group priority; what is not listed follows in the order of the kinds.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
];

/// The answer of a discovery path, if it is one.
pub fn answer(kinds: &Snapshot, path: &str, headers: &HeaderMap) -> Option<(Value, &'static str)> {
    let path = path.trim_end_matches('/');
    let plain = |v: Value| (v, "application/json");
    let aggregated = wants_aggregated(headers);
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    match path {
        "/api" if aggregated => Some((aggregate(kinds, &[""]), AGGREGATED)),
        "/apis" if aggregated => Some((aggregate(kinds, &groups(kinds)[1..]), AGGREGATED)),
        "/api" => Some(plain(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        }))),
        "/apis" => {
            let all: Vec<Value> = groups(kinds).iter().filter(|g| !g.is_empty()).map(|g| group(kinds, g)).collect();
            Some(plain(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all})))
        }
        "/api/v1" => Some(plain(resources(kinds, "", "v1"))),
        _ => {
            let mut parts = path.strip_prefix("/apis/")?.split('/');
            let (name, version, end) = (parts.next()?, parts.next(), parts.next());
            if end.is_some() || !groups(kinds).contains(&name) || name.is_empty() {
                return None;
            }
            match version {
                None => {
                    let mut found = group(kinds, name);
                    found["kind"] = "APIGroup".into();
                    found["apiVersion"] = "v1".into();
                    Some(plain(found))
                }
                Some(v) => versions(kinds, name).contains(&v).then(|| plain(resources(kinds, name, v))),
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

/// Every group that has kinds, in order.
pub fn groups(kinds: &Snapshot) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for kind in kinds.iter() {
        if !found.contains(&kind.group()) {
            found.push(kind.group());
        }
    }
    found.sort_by_key(|g| GROUP_ORDER.iter().position(|o| o == g).unwrap_or(GROUP_ORDER.len()));
    found
}

/// The versions of a group, the best first.
pub fn versions<'a>(kinds: &'a Snapshot, group: &str) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for kind in kinds.iter().filter(|k| k.group() == group) {
        if !found.contains(&kind.version()) {
            found.push(kind.version());
        }
    }
    found.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
    found
}

fn of<'a>(kinds: &'a Snapshot, group: &str, version: &str) -> Vec<&'a KindRef> {
    kinds.iter().filter(|k| k.group() == group && k.version() == version).collect()
}

fn group(kinds: &Snapshot, name: &str) -> Value {
    let all: Vec<Value> =
        versions(kinds, name).iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
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

fn aggregate(kinds: &Snapshot, names: &[&str]) -> Value {
    let items: Vec<Value> = names
        .iter()
        .map(|name| {
            let versions: Vec<Value> = versions(kinds, name)
                .iter()
                .map(|v| json!({"version": v, "freshness": "Current", "resources": of(kinds, name, v).into_iter().map(aggregated_entry).collect::<Vec<_>>()}))
                .collect();
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
