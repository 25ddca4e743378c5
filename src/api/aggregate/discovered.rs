//! What a server says it has: the resources of a group version, as it was asked last.

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::base::budget::Budget;
use crate::base::json::{flag, list, text};
use crate::schema;

/// Resources of one group version, subresources included.
const RESOURCES_MAX: usize = 1000;

/// The resources of a group version.
#[derive(Clone, Debug, Default)]
pub struct Discovered {
    pub freshness: Freshness,
    /// As aggregated discovery has them (`APIResourceDiscovery`).
    pub resources: Vec<Value>,
    /// Where its OpenAPI document is.
    pub(super) openapi: Option<Told>,
}

/// Where a server said last that its document is, and when.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub at: Instant,
    pub address: Option<String>,
}

/// Whether what is known is what is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freshness {
    Current,
    /// It did not answer.
    #[default]
    Stale,
}

// === impl Discovered ===

impl Discovered {
    /// What a client is told of a version.
    pub fn shown(&self, version: &str) -> Value {
        match self.freshness {
            Freshness::Current => json!({"version": version, "resources": self.resources, "freshness": "Current"}),
            // As Kubernetes: what is no longer known to be there is not listed.
            Freshness::Stale => json!({"version": version, "freshness": "Stale"}),
        }
    }
}

/// The resources of an `APIResourceList`, as aggregated discovery has them (`ConvertGroupVersionIntoToDiscovery`).
pub(super) fn read(body: &[u8], group: &str, version: &str) -> Result<Vec<Value>, String> {
    let (value, _) = schema::parse_json(body, &mut Budget::new()).map_err(|error| error.to_string())?;
    if text(&value, "kind") != "APIResourceList" {
        return Err("the answer is no APIResourceList".into());
    }
    let all = list(&value, "resources");
    if all.len() > RESOURCES_MAX {
        return Err(format!("{} resources are more than {RESOURCES_MAX}", all.len()));
    }
    let (subs, mains): (Vec<&Value>, Vec<&Value>) = all.iter().partition(|r| text(r, "name").contains('/'));
    let mut found: Vec<Value> = mains.into_iter().map(|r| resource(r, group, version)).collect();
    for sub in subs {
        let (of, name) = text(sub, "name").split_once('/').unwrap_or_default();
        let entry = json!({
            "subresource": name, "responseKind": response_kind(sub, group, version), "verbs": verbs(sub),
        });
        let parent = match found.iter().position(|r| r["resource"] == of) {
            Some(at) => at,
            // A subresource without its resource, as `pods/exec` may be served.
            None => {
                let scope = if flag(sub, "namespaced") { "Namespaced" } else { "Cluster" };
                found.push(json!({"resource": of, "scope": scope, "verbs": [], "responseKind": {}}));
                found.len() - 1
            }
        };
        if let Some(parent) = found[parent].as_object_mut()
            && let Some(all) = parent.entry("subresources").or_insert_with(|| json!([])).as_array_mut()
        {
            all.push(entry);
        }
    }
    Ok(found)
}

fn resource(of: &Value, group: &str, version: &str) -> Value {
    let mut entry = Map::new();
    entry.insert("resource".into(), text(of, "name").into());
    entry.insert("responseKind".into(), response_kind(of, group, version));
    entry.insert("scope".into(), if flag(of, "namespaced") { "Namespaced" } else { "Cluster" }.into());
    entry.insert("singularResource".into(), text(of, "singularName").into());
    entry.insert("verbs".into(), verbs(of).into());
    for key in ["shortNames", "categories"] {
        let all: Vec<Value> = list(of, key).iter().filter(|v| v.is_string()).cloned().collect();
        if !all.is_empty() {
            entry.insert(key.into(), all.into());
        }
    }
    Value::Object(entry)
}

fn verbs(of: &Value) -> Vec<Value> {
    list(of, "verbs").iter().filter(|v| v.is_string()).cloned().collect()
}

fn response_kind(of: &Value, group: &str, version: &str) -> Value {
    let own = |key: &str, otherwise: &str| match text(of, key) {
        "" => otherwise.to_owned(),
        given => given.to_owned(),
    };
    let (group, version) = match text(of, "version") {
        "" => (group.to_owned(), version.to_owned()),
        given => (text(of, "group").to_owned(), given.to_owned()),
    };
    json!({"group": group, "version": version, "kind": own("kind", "")})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_told_as_aggregated_discovery_tells_them() {
        let said = json!({"kind": "APIResourceList", "groupVersion": "w.example/v1", "resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
                "verbs": ["get", "list"], "shortNames": ["fl"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "others/scale", "namespaced": false, "group": "autoscaling", "version": "v1", "kind": "Scale",
                "verbs": ["get"]}]});
        let found = read(said.to_string().as_bytes(), "w.example", "v1").unwrap();
        let kind = json!({"group": "w.example", "version": "v1", "kind": "Flunder"});
        assert_eq!(
            found,
            [
                json!({"resource": "flunders", "responseKind": kind, "scope": "Namespaced", "singularResource": "flunder",
                    "verbs": ["get", "list"], "shortNames": ["fl"],
                    "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["get"]}]}),
                json!({"resource": "others", "scope": "Cluster", "verbs": [], "responseKind": {},
                    "subresources": [{"subresource": "scale", "verbs": ["get"],
                        "responseKind": {"group": "autoscaling", "version": "v1", "kind": "Scale"}}]}),
            ]
        );
        assert!(read(b"{}", "w.example", "v1").is_err());
        assert!(read(b"<html>", "w.example", "v1").is_err());
        let many: Vec<Value> = (0..2000).map(|i| json!({"name": format!("r{i}")})).collect();
        let many = json!({"kind": "APIResourceList", "resources": many}).to_string();
        assert!(read(many.as_bytes(), "w.example", "v1").is_err(), "bounded");
    }
}
