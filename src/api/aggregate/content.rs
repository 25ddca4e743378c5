//! What controllers do with objects of other servers: emptying namespaces, looking for owners.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use super::connection::Question;
use super::discovered::Freshness;
use super::remote::Remote;
use crate::api::Api;
use crate::apimachinery::aggregated::{Aggregated, Emptied, Left};
use crate::apimachinery::status::{Result, Status};
use crate::apimachinery::user::User;
use crate::base::budget::Budget;
use crate::base::json::{list, text};
use crate::schema;

/// How long a server may take for one of these requests.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an answer.
const BYTES_MAX: usize = 4 << 20;
/// Objects that are looked at at once.
const PAGE: usize = 500;

#[async_trait]
impl Aggregated for Api {
    async fn empty(&self, namespace: &str) -> Emptied {
        let parts = join_all(self.remotes().iter().map(|remote| empty(self, remote, namespace))).await;
        let mut whole = Emptied::default();
        for part in parts {
            whole.undiscovered.extend(part.undiscovered);
            whole.left.extend(part.left);
            whole.failures.extend(part.failures);
        }
        whole.undiscovered.sort();
        whole
    }

    async fn owner(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Option<String>>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(remote) = self.remote(group, version) else { return Ok(None) };
        let unknown = || Status::unavailable(format!("stale GroupVersion discovery: {api_version}"));
        let (freshness, resource) = {
            let discovered = remote.discovered();
            let found = discovered.resources.iter().find(|r| text(r, "responseKind.kind") == kind).cloned();
            (discovered.freshness, found)
        };
        if freshness == Freshness::Stale {
            return Err(unknown());
        }
        // Whoever it is that has such a kind, it is not this version.
        let Some(resource) = resource.filter(|r| !(namespace.is_empty() && text(r, "scope") == "Namespaced")) else {
            return Ok(None);
        };
        let path = path_of(&remote, &resource, namespace, name);
        let user = account("generic-garbage-collector");
        match ask(self, &remote, &user, &Method::GET, &path).await {
            Ok(found) => Ok(Some(Some(text(&found, "metadata.uid").to_owned()))),
            Err(Failed { code: 404, .. }) => Ok(Some(None)),
            Err(failed) => Err(Status::unavailable(failed.why)),
        }
    }
}

/// Why there is no answer.
pub(super) struct Failed {
    pub code: u16,
    pub why: String,
}

/// A controller of the cluster.
pub(super) fn account(name: &str) -> User {
    User::service_account("kube-system", name)
}

fn path_of(remote: &Remote, resource: &Value, namespace: &str, name: &str) -> String {
    let root = remote.root();
    let plural = text(resource, "resource");
    let place = match text(resource, "scope") {
        "Namespaced" => format!("{root}/namespaces/{namespace}/{plural}"),
        _ => format!("{root}/{plural}"),
    };
    if name.is_empty() { place } else { format!("{place}/{name}") }
}

async fn empty(api: &Api, remote: &Remote, namespace: &str) -> Emptied {
    let (freshness, resources) = {
        let discovered = remote.discovered();
        (discovered.freshness, discovered.resources.clone())
    };
    let mut emptied = Emptied::default();
    if freshness == Freshness::Stale || !remote.is_available {
        emptied.undiscovered.push(format!("{}/{}", remote.group, remote.version));
        return emptied;
    }
    let has = |resource: &Value, verb: &str| list(resource, "verbs").iter().any(|v| v == verb);
    let mut content: Vec<&Value> = resources.iter().filter(|r| text(r, "scope") == "Namespaced").collect();
    content.retain(|r| has(r, "list") && (has(r, "delete") || has(r, "deletecollection")));
    for resource in content {
        let emptying = empty_resource(api, remote, resource, namespace, has(resource, "deletecollection"));
        match emptying.await {
            Ok(left) => emptied.left.extend(left),
            Err(failed) => emptied.failures.push(failed.why),
        }
    }
    emptied
}

async fn empty_resource(
    api: &Api,
    remote: &Remote,
    resource: &Value,
    namespace: &str,
    at_once: bool,
) -> Result<Option<Left>, Failed> {
    let user = account("namespace-controller");
    let path = path_of(remote, resource, namespace, "");
    let listed = format!("{path}?limit={PAGE}");
    let found = ask(api, remote, &user, &Method::GET, &listed).await?;
    let names: Vec<&str> = list(&found, "items").iter().map(|o| text(o, "metadata.name")).collect();
    if names.is_empty() {
        return Ok(None);
    }
    if at_once {
        ask(api, remote, &user, &Method::DELETE, &path).await?;
    } else {
        for name in names.iter().take(PAGE) {
            match ask(api, remote, &user, &Method::DELETE, &format!("{path}/{name}")).await {
                Err(failed) if failed.code != 404 => return Err(failed),
                _ => {}
            }
        }
    }
    let left = ask(api, remote, &user, &Method::GET, &listed).await?;
    let items = list(&left, "items");
    let finalizers = items.iter().flat_map(|o| list(o, "metadata.finalizers")).filter_map(Value::as_str);
    Ok((!items.is_empty()).then(|| Left {
        resource: format!("{}.{}", text(resource, "resource"), remote.group),
        count: items.len(),
        finalizers: finalizers.map(str::to_owned).collect(),
    }))
}

/// Asks a server; a deletion lets what depends on its object go as well.
pub(super) async fn ask(api: &Api, remote: &Remote, user: &User, method: &Method, path: &str) -> Result<Value, Failed> {
    let body = match *method {
        Method::DELETE => {
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}).to_string()
        }
        _ => String::new(),
    };
    let question = Question { user, method, body, ..Question::get(path, BYTES_MAX) };
    let failed = |code: u16, why: String| Failed { code, why: format!("{method} {path}: {why}") };
    let asked = tokio::time::timeout(TIMEOUT, remote.ask(api, &question)).await;
    let reply = asked.map_err(|_| failed(504, "context deadline exceeded".into()))?.map_err(|why| failed(503, why))?;
    if !(200..300).contains(&reply.status) {
        return Err(failed(reply.status, format!("status {} ({:?})", reply.status, reply.beginning())));
    }
    let parsed = schema::parse_json(&reply.body, &mut Budget::new());
    parsed.map(|(value, _)| value).map_err(|error| failed(500, error.to_string()))
}
