//! Path items: which operations each resource has, with the names, parameters and answers clients look for.

use serde_json::{Map, Value, json};

use super::definitions::{Dialect, META};
use super::{ApiKind, ApiSubresource};

const BODIES: [&str; 2] = ["application/json", "application/yaml"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// Nobody knows how to merge what has no marks of Go's types.
const CUSTOM_PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// One operation, before it is written in a dialect.
struct Operation<'k> {
    kind: &'k ApiKind,
    subresource: Option<&'k ApiSubresource>,
    /// `get`, `list`, `create`, `update`, `patch`, `delete`, `deletecollection` or `connect`.
    verb: &'k str,
    /// Over all namespaces.
    everywhere: bool,
    /// The method, for connections.
    method: &'static str,
}

/// A query parameter: name, type, description.
type Query = (&'static str, &'static str, &'static str);

const PRETTY: Query = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Query =
    ("dryRun", "string", "When present, indicates that modifications should not be persisted. Valid value: All.");
const MANAGER: Query =
    ("fieldManager", "string", "The name of the actor making these changes, at most 128 printable characters.");
const VALIDATION: Query =
    ("fieldValidation", "string", "How to treat unknown or duplicate fields: Ignore, Warn (the default) or Strict.");
const FORCE: Query = ("force", "boolean", "Re-acquire conflicting fields owned by others. Only for apply patches.");
const LISTS: [Query; 11] = [
    ("allowWatchBookmarks", "boolean", "Requests watch events of type BOOKMARK."),
    ("continue", "string", "The token of an earlier, limited list to go on with."),
    ("fieldSelector", "string", "Restricts the objects by their fields."),
    ("labelSelector", "string", "Restricts the objects by their labels."),
    ("limit", "integer", "The most objects to return."),
    PRETTY,
    ("resourceVersion", "string", "A constraint on what resource versions a request may be served from."),
    ("resourceVersionMatch", "string", "How resourceVersion is applied to list calls."),
    ("sendInitialEvents", "boolean", "Begin a watch with the present state."),
    ("timeoutSeconds", "integer", "The time limit of the call."),
    ("watch", "boolean", "Watch for changes instead of listing."),
];
const DELETES: [Query; 5] = [
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object should be deleted."),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Delete although the object cannot be read."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "Orphan, Background or Foreground."),
];

/// All path items of a kind.
pub(super) fn of_kind(kind: &ApiKind, dialect: Dialect) -> Vec<(String, Value)> {
    let root = kind.root();
    let base = if kind.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
    let has = |verb: &str| kind.verbs.iter().any(|v| v == verb);
    let operation = |verb| Operation { kind, subresource: None, verb, everywhere: false, method: "" };
    let mut items = Vec::new();
    let collect = |verbs: &[&'static str]| {
        let mut item = Map::new();
        for verb in verbs.iter().filter(|v| has(v)) {
            let operation = operation(verb);
            item.insert(operation.http().into(), operation.write(dialect));
        }
        item
    };
    let collection = collect(&["list", "create", "deletecollection"]);
    push(&mut items, format!("{base}/{}", kind.plural), collection, kind.namespaced, false, dialect);
    let single = collect(&["get", "update", "patch", "delete"]);
    push(&mut items, format!("{base}/{}/{{name}}", kind.plural), single, kind.namespaced, true, dialect);
    if kind.namespaced && has("list") {
        let list = Operation { everywhere: true, ..operation("list") };
        let item = Map::from_iter([("get".to_owned(), list.write(dialect))]);
        push(&mut items, format!("{root}/{}", kind.plural), item, false, false, dialect);
    }
    for subresource in &kind.subresources {
        let mut item = Map::new();
        let connects = subresource.definition.is_empty() && subresource.name != "log";
        for verb in &subresource.verbs {
            let verb = if connects { "connect" } else { verb.as_str() };
            let methods: &[&str] = if connects { &["get", "post"] } else { &[""] };
            for method in methods {
                let operation = Operation { kind, subresource: Some(subresource), verb, everywhere: false, method };
                item.insert(operation.http().into(), operation.write(dialect));
            }
        }
        let path = format!("{base}/{}/{{name}}/{}", kind.plural, subresource.name);
        push(&mut items, path, item, kind.namespaced, true, dialect);
    }
    items
}

/// The path that lists a group version's resources.
pub(super) fn of_discovery(group: &str, version: &str, dialect: Dialect) -> Value {
    let answer = answer(&dialect.reference(&format!("{META}.APIResourceList")), dialect);
    json!({"get": {
        "description": "get available resources",
        "operationId": format!("get{}APIResources", camel(group, version)),
        "tags": [tag(group, version)],
        "responses": {"200": answer, "401": {"description": "Unauthorized"}},
    }})
}

fn push(
    items: &mut Vec<(String, Value)>,
    path: String,
    mut item: Map<String, Value>,
    namespaced: bool,
    named: bool,
    dialect: Dialect,
) {
    if item.is_empty() {
        return;
    }
    let mut parameters = Vec::new();
    let mut add = |name: &str, text: &str| parameters.push(parameter(name, "path", "string", text, true, dialect));
    if named {
        add("name", "name of the object");
    }
    if namespaced {
        add("namespace", "object name and auth scope, such as for teams and projects");
    }
    if !parameters.is_empty() {
        item.insert("parameters".into(), Value::Array(parameters));
    }
    items.push((path, Value::Object(item)));
}

fn parameter(name: &str, place: &str, kind: &str, text: &str, required: bool, dialect: Dialect) -> Value {
    let mut value = json!({"name": name, "in": place, "description": text});
    let map = value.as_object_mut().expect("an object");
    if required {
        map.insert("required".into(), true.into());
    }
    match dialect {
        Dialect::V2 => {
            map.insert("type".into(), kind.into());
            map.insert("uniqueItems".into(), true.into());
        }
        Dialect::V3 => drop(map.insert("schema".into(), json!({"type": kind, "uniqueItems": true}))),
    }
    value
}

fn answer(schema: &Value, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"description": "OK", "schema": schema}),
        Dialect::V3 => {
            let content: Map<String, Value> =
                BODIES.iter().map(|t| (t.to_string(), json!({ "schema": schema }))).collect();
            json!({"description": "OK", "content": content})
        }
    }
}

/// `AppsV1`, `CoreV1`, `RbacAuthorizationV1`
fn camel(group: &str, version: &str) -> String {
    let group = if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") };
    group.split('.').chain([version]).map(capital).collect()
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn tag(group: &str, version: &str) -> String {
    format!("{}_{version}", if group.is_empty() { "core" } else { group.trim_end_matches(".k8s.io") }.replace('.', ""))
}

// === impl Operation ===

impl Operation<'_> {
    fn http(&self) -> &'static str {
        match self.verb {
            "create" => "post",
            "update" => "put",
            "patch" => "patch",
            "delete" | "deletecollection" => "delete",
            "connect" => self.method,
            _ => "get",
        }
    }

    fn action(&self) -> &str {
        match self.verb {
            "create" => "post",
            "update" => "put",
            other => other,
        }
    }

    fn id(&self) -> String {
        let verb = match self.verb {
            "get" => "read",
            "update" => "replace",
            "deletecollection" => "delete",
            other => other,
        };
        let group = camel(&self.kind.group, &self.kind.version);
        let method = capital(self.method);
        let collection = if self.verb == "deletecollection" { "Collection" } else { "" };
        let scope = if self.kind.namespaced && !self.everywhere { "Namespaced" } else { "" };
        let part: String = self.subresource.map(|s| s.name.split('/').map(capital).collect()).unwrap_or_default();
        let everywhere = if self.everywhere { "ForAllNamespaces" } else { "" };
        format!("{verb}{group}{method}{collection}{scope}{}{part}{everywhere}", self.kind.kind)
    }

    fn describe(&self) -> String {
        let (kind, part) = (&self.kind.kind, self.subresource.map(|s| format!("{} of ", s.name)).unwrap_or_default());
        match self.verb {
            "list" => format!("list or watch objects of kind {kind}"),
            "create" => format!("create {part}a {kind}"),
            "update" => format!("replace {part}the specified {kind}"),
            "patch" => format!("partially update {part}the specified {kind}"),
            "delete" => format!("delete a {kind}"),
            "deletecollection" => format!("delete collection of {kind}"),
            "connect" => format!("connect {} requests to {part}{kind}", self.method.to_uppercase()),
            _ => format!("read {part}the specified {kind}"),
        }
    }

    /// The definition that is exchanged; empty for plain text.
    fn definition(&self) -> &str {
        self.subresource.map_or(&self.kind.definition, |s| &s.definition)
    }

    fn queries(&self) -> Vec<Query> {
        match self.verb {
            "list" => LISTS.to_vec(),
            "create" | "update" => vec![DRY_RUN, MANAGER, VALIDATION, PRETTY],
            "patch" => vec![DRY_RUN, MANAGER, VALIDATION, FORCE, PRETTY],
            "delete" => [&DELETES[..], &[PRETTY]].concat(),
            "deletecollection" => [&DELETES[..], &LISTS[1..10]].concat(),
            _ => vec![PRETTY],
        }
    }

    fn body(&self, dialect: Dialect) -> Option<(Value, bool, &'static [&'static str])> {
        match self.verb {
            "create" | "update" => Some((dialect.reference(self.definition()), true, &BODIES)),
            "patch" => {
                let all = if self.kind.custom.is_some() { &CUSTOM_PATCHES[..] } else { &PATCHES[..] };
                Some((dialect.reference(&format!("{META}.Patch")), true, all))
            }
            "delete" | "deletecollection" => {
                Some((dialect.reference(&format!("{META}.DeleteOptions")), false, &BODIES))
            }
            _ => None,
        }
    }

    fn write(&self, dialect: Dialect) -> Value {
        let schema = match self.verb {
            "list" => dialect.reference(&self.kind.list_definition()),
            "delete" | "deletecollection" => dialect.reference(&format!("{META}.Status")),
            _ if self.definition().is_empty() => json!({"type": "string"}),
            _ => dialect.reference(self.definition()),
        };
        let mut responses = Map::from_iter([("200".to_owned(), answer(&schema, dialect))]);
        if matches!(self.verb, "create" | "update" | "patch") {
            responses.insert("201".into(), answer(&schema, dialect));
        }
        if matches!(self.verb, "create" | "delete") {
            responses.insert("202".into(), answer(&schema, dialect));
        }
        responses.insert("401".into(), json!({"description": "Unauthorized"}));
        let mut parameters: Vec<Value> = self
            .queries()
            .iter()
            .map(|(name, kind, text)| parameter(name, "query", kind, text, false, dialect))
            .collect();
        let (group, version, kind) = match self.subresource {
            Some(s) => (&s.group, &s.version, &s.kind),
            None => (&self.kind.group, &self.kind.version, &self.kind.kind),
        };
        let mut operation = json!({
            "description": self.describe(),
            "operationId": self.id(),
            "tags": [tag(&self.kind.group, &self.kind.version)],
            "responses": responses,
            "x-kubernetes-action": self.action(),
            "x-kubernetes-group-version-kind": {"group": group, "kind": kind, "version": version},
        });
        let map = operation.as_object_mut().expect("an object");
        let body = self.body(dialect);
        match dialect {
            Dialect::V2 => {
                let consumes = body.as_ref().map_or(&["*/*"][..], |(_, _, types)| types);
                map.insert("consumes".into(), json!(consumes));
                map.insert("produces".into(), json!(BODIES));
                map.insert("schemes".into(), json!(["https"]));
                if let Some((schema, required, _)) = body {
                    let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        parameter["required"] = true.into();
                    }
                    parameters.push(parameter);
                }
            }
            Dialect::V3 => {
                if let Some((schema, required, types)) = body {
                    let content: Map<String, Value> =
                        types.iter().map(|t| (t.to_string(), json!({ "schema": schema }))).collect();
                    let mut request = json!({ "content": content });
                    if required {
                        request["required"] = true.into();
                    }
                    map.insert("requestBody".into(), request);
                }
            }
        }
        map.insert("parameters".into(), Value::Array(parameters));
        operation
    }
}
