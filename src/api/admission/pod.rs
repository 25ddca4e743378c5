//! What a new pod gets from its cluster: service account and its token, default tolerations, priority.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::status::{Result, Status};
use crate::api::{Api, Request};
use crate::base::json::{at, int, list, map_mut, set, text};
use crate::kinds::core::serviceaccount;
use crate::kinds::scheduling::priorityclass;

/// Where containers find their token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a projected token lives. Kubernetes asks for an hour and seven seconds, and so recognises its own.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod stays on a node that is not ready or not reachable.
const TOLERATION_SECONDS: i64 = 300;
/// On an account: its pods may use only the secrets it names.
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
/// Set on pods that a node made for itself.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn admit(api: &Api, request: &Request, pod: &mut Value) -> Result<()> {
    if !is_mirror(request, pod) {
        service_account(api, request, pod)?;
    }
    default_tolerations(pod);
    runtime_class(request, pod)?;
    priority(api, request, pod)
}

/// Whether a node shows a pod of its own, which must stay as it is (NodeRestriction sees to what it may refer to). Anybody
/// else's annotation means nothing here: our nodes run such a pod like any other.
fn is_mirror(request: &Request, pod: &Value) -> bool {
    request.user.node_name().is_some() && pod["metadata"]["annotations"].get(MIRROR).is_some()
}

/// How long a pod waits for the account that every namespace gets soon after it is made.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

/// Waits until the default account is there; other accounts were there before or are the client's mistake.
pub(super) async fn wait_for_account(api: &Api, request: &Request, pod: &Value) {
    if !matches!(text(pod, "spec.serviceAccountName"), "" | "default") || is_mirror(request, pod) {
        return;
    }
    let kind = &serviceaccount::KIND;
    let key = kind.key(&request.namespace, "default");
    let shelf = api.cache.shelf(kind);
    let mut changes = shelf.subscribe();
    let there = async {
        while shelf.get(&key).is_none() {
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
    let Some(account) = api.cache.shelf(kind).get(&kind.key(&request.namespace, &name)) else {
        let why =
            format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", request.namespace);
        return Err(Status::forbidden(request.kind, text(pod, "metadata.name"), why));
    };
    let account = account.value();
    if account["metadata"]["annotations"][ENFORCE_MOUNTABLE] == "true" {
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
    Err(Status::forbidden(request.kind, text(pod, "metadata.name"), why))
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

/// There are no runtime classes, so none can be found; and overhead is what a class asks for.
fn runtime_class(request: &Request, pod: &Value) -> Result<()> {
    let name = text(pod, "metadata.name");
    if let Some(class) = at(pod, "spec.runtimeClassName").and_then(Value::as_str) {
        let why = format!("pod rejected: RuntimeClass {class:?} not found");
        return Err(Status::forbidden(request.kind, name, why));
    }
    if at(pod, "spec.overhead").is_some_and(|o| o.as_object().is_some_and(|o| !o.is_empty())) {
        let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
        return Err(Status::forbidden(request.kind, name, why));
    }
    Ok(())
}

pub(super) fn default_tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerates = |t: &Value| {
            let effect = text(t, "effect");
            (text(t, "key") == key || text(t, "key").is_empty()) && (effect.is_empty() || effect == "NoExecute")
        };
        if list(pod, "spec.tolerations").iter().any(tolerates) {
            continue;
        }
        let tolerations = map_mut(pod, "spec").entry("tolerations").or_insert_with(|| json!([]));
        if let Some(tolerations) = tolerations.as_array_mut() {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS});
            tolerations.push(toleration);
        }
    }
}

fn priority(api: &Api, request: &Request, pod: &mut Value) -> Result<()> {
    let kind = &priorityclass::KIND;
    let shelf = api.cache.shelf(kind);
    let refuse = |pod: &Value, why: String| Err(Status::forbidden(request.kind, text(pod, "metadata.name"), why));
    let (class, policy) = match text(pod, "spec.priorityClassName") {
        "" => {
            let classes = shelf.list(&kind.prefix(), "");
            let default = classes.iter().map(|o| o.value()).filter(|c| c["globalDefault"] == true);
            let lowest = default.min_by_key(|c| c["value"].as_i64());
            if let Some(class) = &lowest {
                set(pod, "spec.priorityClassName", text(class, "metadata.name"));
            }
            let value = lowest.as_ref().and_then(|c| c["value"].as_i64()).unwrap_or(0);
            (value, lowest.and_then(|c| c.get("preemptionPolicy").cloned()))
        }
        name => match shelf.get(&kind.key("", name)) {
            Some(class) => {
                let class = class.value();
                (class["value"].as_i64().unwrap_or(0), class.get("preemptionPolicy").cloned())
            }
            None => return refuse(pod, format!("no PriorityClass with name {name} was found")),
        },
    };
    if int(pod, "spec.priority").is_some_and(|given| given != class) {
        let why = "the integer value of priority must not be provided in pod spec; priority admission controller \
                   computed a different value from the given PriorityClass name";
        return refuse(pod, why.into());
    }
    set(pod, "spec.priority", class);
    let policy = policy.unwrap_or_else(|| "PreemptLowerPriority".into());
    if at(pod, "spec.preemptionPolicy").is_some_and(|given| *given != policy) {
        let why = "the string value of PreemptionPolicy must not be provided in pod spec; priority admission \
                   controller computed a different value from the given PriorityClass name";
        return refuse(pod, why.into());
    }
    set(pod, "spec.preemptionPolicy", policy);
    Ok(())
}
