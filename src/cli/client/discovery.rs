//! What kinds the server has, by any of their names.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Cluster, escape};

/// Aggregated discovery: everything in two answers.
const ACCEPT: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A kind that the server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    singular: String,
    short_names: Vec<String>,
    categories: Vec<String>,
    /// Its objects can be shown.
    listable: bool,
    pub namespaced: bool,
}

/// All kinds, preferred versions first.
pub(super) struct Resources(Vec<Resource>);

// === impl Resource ===

impl Resource {
    /// The path of a collection; an empty namespace is all of them.
    pub(super) fn path(&self, namespace: &str) -> String {
        let root = match &*self.group {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        match (self.namespaced, namespace) {
            (true, namespace) if !namespace.is_empty() => {
                format!("{root}/namespaces/{}/{}", escape(namespace), self.plural)
            }
            _ => format!("{root}/{}", self.plural),
        }
    }

    /// `deployment.apps`, as messages name it.
    pub(super) fn shown(&self) -> String {
        let name = self.kind.to_lowercase();
        if self.group.is_empty() { name } else { format!("{name}.{}", self.group) }
    }

    fn answers_to(&self, name: &str) -> bool {
        let (name, group) = name.split_once('.').unwrap_or((name, ""));
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        let named = same(&self.plural) || same(&self.singular) || same(&self.kind);
        (named || self.short_names.iter().any(|s| same(s))) && (group.is_empty() || group == self.group)
    }
}

// === impl Resources ===

impl Resources {
    pub(super) async fn load(cluster: &mut Cluster) -> Result<Self> {
        let mut all = Vec::new();
        for path in ["/api", "/apis"] {
            all.extend(read(&cluster.json(path, ACCEPT).await?));
        }
        Ok(Self(all))
    }

    /// By plural, singular, short name or kind, with or without the group.
    pub(super) fn named(&self, name: &str) -> Result<&Resource> {
        match self.0.iter().find(|r| r.answers_to(name)) {
            Some(resource) => Ok(resource),
            None => bail!("the server has no kind {name:?}: it accepts {}", self.some_names()),
        }
    }

    /// Those that `all`, or another word for several kinds, stands for; none if it is no such word. Each once, by the version
    /// that comes first.
    pub(super) fn of_category(&self, name: &str) -> Vec<&Resource> {
        let mut members: Vec<&Resource> = Vec::new();
        for resource in self.0.iter().filter(|r| r.listable && r.categories.iter().any(|c| c == name)) {
            let same = |other: &&Resource| (&other.group, &other.plural) == (&resource.group, &resource.plural);
            if !members.iter().any(same) {
                members.push(resource);
            }
        }
        members
    }

    fn some_names(&self) -> String {
        let mut names: Vec<&str> = self.0.iter().filter(|r| r.listable).map(|r| r.plural.as_str()).collect();
        names.dedup();
        names.join(", ")
    }

    /// By what a manifest says.
    pub(super) fn of_manifest(&self, api_version: &str, kind: &str) -> Result<&Resource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        match self.0.iter().find(|r| r.kind == kind && r.group == group && r.version == version) {
            Some(resource) => Ok(resource),
            None => bail!("the server has no kind {kind:?} in apiVersion {api_version:?}"),
        }
    }
}

fn read(list: &Value) -> Vec<Resource> {
    let items = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for group in items(list, "items") {
        for version in items(&group, "versions") {
            let resources = items(&version, "resources").into_iter().map(|r| Resource {
                group: text(&group["metadata"]["name"]),
                version: text(&version["version"]),
                kind: text(&r["responseKind"]["kind"]),
                plural: text(&r["resource"]),
                singular: text(&r["singularResource"]),
                short_names: items(&r, "shortNames").iter().map(text).collect(),
                categories: items(&r, "categories").iter().map(text).collect(),
                listable: items(&r, "verbs").iter().any(|verb| verb == "list"),
                namespaced: r["scope"] == "Namespaced",
            });
            all.extend(resources);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds_are_found_by_every_name() {
        let list = json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [
                {"resource": "bindings", "responseKind": {"kind": "Binding"}, "scope": "Namespaced", "singularResource": "binding",
                 "verbs": ["create"], "categories": ["all"]},
                {"resource": "pods", "responseKind": {"kind": "Pod"}, "scope": "Namespaced", "singularResource": "pod", "shortNames": ["po"],
                 "categories": ["all"], "verbs": ["get", "list"]},
                {"resource": "events", "responseKind": {"kind": "Event"}, "scope": "Namespaced", "singularResource": "event"},
                {"resource": "nodes", "responseKind": {"kind": "Node"}, "scope": "Cluster", "singularResource": "node"}]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [{"version": "v1", "resources": [
                {"resource": "events", "responseKind": {"kind": "Event"}, "scope": "Namespaced", "singularResource": "event"}]}]},
        ]});
        let all = Resources(read(&list));
        for name in ["pods", "pod", "po", "Pod", "PODS"] {
            assert_eq!(all.named(name).unwrap().plural, "pods", "{name}");
        }
        assert_eq!(all.named("events").unwrap().group, "");
        assert_eq!(all.named("events.events.k8s.io").unwrap().group, "events.k8s.io");
        assert_eq!(
            all.named("events.events.k8s.io").unwrap().path("a b"),
            "/apis/events.k8s.io/v1/namespaces/a%20b/events"
        );
        assert_eq!(all.named("node").unwrap().path("x"), "/api/v1/nodes");
        let refused = all.named("cow").unwrap_err().to_string();
        assert_eq!(refused, "the server has no kind \"cow\": it accepts pods", "what can be shown");
        let category: Vec<&str> = all.of_category("all").iter().map(|r| r.plural.as_str()).collect();
        assert_eq!(category, ["pods"]);
        assert!(all.of_category("pods").is_empty());
        assert_eq!(all.of_manifest("events.k8s.io/v1", "Event").unwrap().shown(), "event.events.k8s.io");
        assert!(all.of_manifest("v2", "Pod").is_err());
    }
}
