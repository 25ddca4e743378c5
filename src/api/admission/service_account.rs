//! ServiceAccount: a new pod gets an account, the account's token and its pull secrets.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Plugin, Review};
use crate::api::{Api, Request};
use crate::apimachinery::status::{Result, Status};
use crate::base::json::{at, list, map_mut, set, text};
use crate::base::task;
use crate::kinds::Subresource;
use crate::kinds::core::pod;
use crate::kinds::core::serviceaccount;

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a projected token lives. Kubernetes asks for an hour and seven seconds, and so recognises its own.
const TOKEN_SECONDS: i64 = 3607;
/// On an account: its pods may use only the secrets it names.
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// Set on pods that a node made for itself.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn handles(&self, review: &Review<'_>) -> bool {
        review.creates(&pod::KIND) || changes_ephemeral_containers(review)
    }

    async fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        let (api, request) = (review.api, review.request);
        if !review.creates(&pod::KIND) || is_mirror(request, pod) {
            return Ok(());
        }
        wait_for_account(api, request, pod).await;
        task::in_place(request.heavy, || service_account(api, request, pod))
    }

    async fn validate(&self, review: &Review<'_>, pod: &Value) -> Result<Vec<String>> {
        let (api, request) = (review.api, review.request);
        if changes_ephemeral_containers(review) {
            let kind = &serviceaccount::KIND;
            let key = kind.key(&request.namespace, text(pod, "spec.serviceAccountName"));
            if let Some(account) = api.cache.kind(kind).get(&key).map(|o| o.value()).filter(is_enforced) {
                mountable_only(request, pod, &account)?;
            }
        }
        Ok(Vec::new())
    }
}

fn changes_ephemeral_containers(review: &Review<'_>) -> bool {
    review.request.kind == pod::KIND && review.request.subresource == Some(Subresource::EphemeralContainers)
}

/// Whether the account's pods may use only the secrets that it names.
fn is_enforced(account: &Value) -> bool {
    account["metadata"]["annotations"][ENFORCE_MOUNTABLE] == "true"
}

/// Whether a node shows a pod of its own, which must stay as it is (NodeRestriction sees to what it may refer to). Anybody
/// else's annotation means nothing here: our nodes run such a pod like any other.
fn is_mirror(request: &Request, pod: &Value) -> bool {
    request.user.node_name().is_some() && pod["metadata"]["annotations"].get(MIRROR).is_some()
}

/// How long a pod waits for the account that every namespace gets soon after it is made.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

/// Waits until the default account is there; other accounts were there before or are the client's mistake.
async fn wait_for_account(api: &Api, request: &Request, pod: &Value) {
    if !matches!(text(pod, "spec.serviceAccountName"), "" | "default") {
        return;
    }
    let kind = &serviceaccount::KIND;
    let key = kind.key(&request.namespace, "default");
    let kind_cache = api.cache.kind(kind);
    let mut changes = kind_cache.subscribe();
    let there = async {
        while kind_cache.get(&key).is_none() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(ACCOUNT_WAIT, there).await;
}

fn service_account(api: &Api, request: &Request, pod: &mut Value) -> Result<()> {
    if text(pod, "spec.serviceAccountName").is_empty() {
        set(pod, "spec.serviceAccountName", "default");
        set(pod, "spec.serviceAccount", "default");
    }
    let name = text(pod, "spec.serviceAccountName").to_owned();
    let kind = &serviceaccount::KIND;
    let Some(account) = api.cache.kind(kind).get(&kind.key(&request.namespace, &name)) else {
        let why =
            format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", request.namespace);
        return Err(Status::forbidden(&request.kind, text(pod, "metadata.name"), why));
    };
    let account = account.value();
    if is_enforced(&account) {
        mountable_only(request, pod, &account)?;
    }
    let wanted = at(pod, "spec.automountServiceAccountToken").or_else(|| account.get("automountServiceAccountToken"));
    if wanted != Some(&Value::Bool(false)) {
        mount_token(api, pod);
    }
    if list(pod, "spec.imagePullSecrets").is_empty()
        && let Some(secrets) = account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|a| !a.is_empty()))
    {
        set(pod, "spec.imagePullSecrets", secrets.clone());
    }
    Ok(())
}

/// Refuses a pod that uses secrets which its account does not name.
fn mountable_only(request: &Request, pod: &Value, account: &Value) -> Result<()> {
    let all = |group: &str| -> HashSet<&str> { list(account, group).iter().map(|s| text(s, "name")).collect() };
    let (secrets, pull_secrets) = (all("secrets"), all("imagePullSecrets"));
    let volumes = list(pod, "spec.volumes").iter().map(|v| text(v, "secret.secretName"));
    let groups = ["initContainers", "containers", "ephemeralContainers"];
    let containers = groups.iter().flat_map(|g| list(&pod["spec"], g));
    let values = containers.clone().flat_map(|c| list(c, "env")).map(|e| text(e, "valueFrom.secretKeyRef.name"));
    let whole = containers.flat_map(|c| list(c, "envFrom")).map(|e| text(e, "secretRef.name"));
    let pulls = list(pod, "spec.imagePullSecrets").iter().map(|s| text(s, "name"));
    let used = volumes.chain(values).chain(whole).find(|s| !s.is_empty() && !secrets.contains(s));
    let pulled = pulls.into_iter().find(|s| !pull_secrets.contains(s));
    let Some(secret) = used.or(pulled) else { return Ok(()) };
    let account = text(account, "metadata.name");
    let why = format!("secret {secret:?} is not allowed because service account {account} does not reference it");
    Err(Status::forbidden(&request.kind, text(pod, "metadata.name"), why))
}

fn mount_token(api: &Api, pod: &mut Value) {
    let existing =
        list(pod, "spec.volumes").iter().map(|v| text(v, "name")).find(|n| n.starts_with("kube-api-access-"));
    let (name, present) = match existing {
        Some(name) => (name.to_owned(), true),
        None => (format!("kube-api-access-{}", api.clock.name_suffix()), false),
    };
    let mut mounted = false;
    for group in ["initContainers", "containers"] {
        for container in pod["spec"].get_mut(group).and_then(Value::as_array_mut).into_iter().flatten() {
            if list(container, "volumeMounts").iter().any(|m| text(m, "mountPath") == TOKEN_PATH) {
                continue;
            }
            let mount = json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH});
            let mounts = map_mut(container, "").entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(mount);
                mounted = true;
            }
        }
    }
    if mounted && !present {
        let volumes = map_mut(pod, "spec").entry("volumes").or_insert_with(|| json!([]));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&name));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::in_memory;
    use crate::api::local::Local;
    use crate::kinds::core::{namespace, secret};
    use crate::reconcile::{Client, Patch};

    #[tokio::test]
    async fn containers_that_come_later_use_no_secret_that_the_account_does_not_name() {
        let client = Local::new(in_memory::api(), "test");
        client.create(&namespace::KIND, "", json!({"metadata": {"name": "n"}})).await.unwrap();
        for name in ["own", "other"] {
            client.create(&secret::KIND, "n", json!({"metadata": {"name": name}})).await.unwrap();
        }
        let metadata = json!({"name": "default", "annotations": {ENFORCE_MOUNTABLE: "true"}});
        let account = json!({"metadata": metadata, "secrets": [{"name": "own"}]});
        client.create(&serviceaccount::KIND, "n", account).await.unwrap();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        client.create(&pod::KIND, "n", pod).await.unwrap();
        let debug = async |secret: &str| {
            let container = json!({"name": secret, "image": "i", "envFrom": [{"secretRef": {"name": secret}}]});
            let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [container]}}));
            client.patch(&pod::KIND, "n", "p", Some(Subresource::EphemeralContainers), patch).await
        };
        debug("own").await.unwrap();
        let refused = debug("other").await.unwrap_err();
        assert_eq!(
            (refused.code, refused.message.contains("secret \"other\" is not allowed")),
            (403, true),
            "{refused}"
        );
    }
}
