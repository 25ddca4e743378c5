//! Who may do what, and what pods may do: the cluster's objects, judged. Pure but for the reading.

use anyhow::Result;
use http::Method;
use serde_json::Value;

use super::super::super::client::Cluster;
use super::{Failed, Line, Passed, Verdict, line, some};
use crate::base::json::{at, list, text};

/// The label of roles and bindings that every cluster begins with.
const BOOTSTRAPPING: &str = "kubernetes.io/bootstrapping";
/// Namespaces that are the cluster's own.
const OWN_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];
const NARROW: &str = "grant what is needed by name, with Roles";
const CHANGE: &str = "change it, and keep others out with the label pod-security.kubernetes.io/enforce";

/// What is judged.
#[derive(Debug, Default)]
pub(super) struct Objects {
    roles: Vec<Value>,
    bindings: Vec<Value>,
    namespaces: Vec<Value>,
    pods: Vec<Value>,
}

// === impl Objects ===

impl Objects {
    /// Reads all of them.
    pub(super) async fn read(cluster: &mut Cluster) -> Result<Self> {
        const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
        let mut read = async |path: String| -> Result<Vec<Value>> {
            let list = cluster.object(Method::GET, &path, None).await?;
            Ok(list.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
        };
        let mut roles = read(format!("{RBAC}/clusterroles")).await?;
        roles.extend(read(format!("{RBAC}/roles")).await?);
        let mut bindings = read(format!("{RBAC}/clusterrolebindings")).await?;
        bindings.extend(read(format!("{RBAC}/rolebindings")).await?);
        let namespaces = read("/api/v1/namespaces".into()).await?;
        Ok(Self { roles, bindings, namespaces, pods: read("/api/v1/pods".into()).await? })
    }

    /// No role of the users may have such a rule.
    fn no_rule(&self, fits: impl Fn(&Value) -> bool) -> Verdict {
        let own = self.roles.iter().filter(|role| !is_bootstrapped(role));
        none_of("role of users", own.filter(|role| list(role, "rules").iter().any(&fits)), NARROW)
    }

    /// No binding of the users may be like this.
    fn no_binding(&self, fits: impl Fn(&Value) -> bool, remedy: &str) -> Verdict {
        none_of("binding of users", self.bindings.iter().filter(|b| !is_bootstrapped(b) && fits(b)), remedy)
    }

    /// No pod of the users may be like this.
    fn no_pod(&self, fits: impl Fn(&Value) -> bool, remedy: &str) -> Verdict {
        let own = self.pods.iter().filter(|pod| !OWN_NAMESPACES.contains(&text(pod, "metadata.namespace")));
        none_of("pod of users", own.filter(|pod| fits(pod)), remedy)
    }

    /// No container of a pod of the users may be like this.
    fn no_container(&self, fits: impl Fn(&Value) -> bool) -> Verdict {
        let all = ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"];
        self.no_pod(|pod| all.iter().any(|part| list(pod, part).iter().any(&fits)), CHANGE)
    }
}

fn is_bootstrapped(object: &Value) -> bool {
    at(object, "metadata.labels").and_then(|labels| labels.get(BOOTSTRAPPING)).is_some()
}

fn name(object: &Value) -> String {
    match text(object, "metadata.namespace") {
        "" => text(object, "metadata.name").to_owned(),
        namespace => format!("{namespace}/{}", text(object, "metadata.name")),
    }
}

fn none_of<'a>(what: &str, found: impl Iterator<Item = &'a Value>, remedy: &str) -> Verdict {
    let names: Vec<String> = found.map(name).collect();
    match names.is_empty() {
        true => Passed(format!("no {what}")),
        false => Failed(format!("{}: {remedy}", some(&names))),
    }
}

/// Whether a field is there and says something.
fn is_set(object: &Value, field: &str) -> bool {
    at(object, field).is_some_and(|value| !value.is_null())
}

fn flag(object: &Value, field: &str) -> Option<bool> {
    at(object, field).and_then(Value::as_bool)
}

fn has(object: &Value, field: &str, wanted: &str) -> bool {
    list(object, field).iter().any(|value| value == wanted)
}

/// Whether a rule allows one of the verbs on a resource.
fn allows(rule: &Value, verbs: &[&str], resource: &str) -> bool {
    let either = |field: &str, wanted: &str| has(rule, field, wanted) || has(rule, field, "*");
    verbs.iter().any(|verb| either("verbs", verb)) && either("resources", resource)
}

/// Whether a binding is for such a subject.
fn is_for(binding: &Value, kind: &str, name: &str) -> bool {
    list(binding, "subjects").iter().any(|s| text(s, "kind") == kind && text(s, "name") == name)
}

/// The lines about objects.
pub(super) fn judge(objects: &Objects) -> Vec<Line> {
    let mut lines = access(objects);
    lines.extend(pods(objects));
    lines
}

fn access(all: &Objects) -> Vec<Line> {
    let own_account = "bind an account of the workload's own";
    let named = "bind cluster-admin to somebody who has a name";
    let token = "give users tokens of service accounts: a certificate cannot be taken back";
    let masters = |remedy| all.no_binding(|b| is_for(b, "Group", "system:masters"), remedy);
    let write = ["create", "update", "patch"];
    let webhooks = ["validatingwebhookconfigurations", "mutatingwebhookconfigurations"];
    let approval = "certificatesigningrequests/approval";
    let powerful = |rule: &Value| ["bind", "impersonate", "escalate"].iter().any(|verb| has(rule, "verbs", verb));
    let admin = all.no_binding(|b| text(b, "roleRef.name") == "cluster-admin", NARROW);
    let default = all.no_binding(|b| is_for(b, "ServiceAccount", "default"), own_account);
    let mounted = all.no_pod(has_default_token, "set automountServiceAccountToken: false where the API is not used");
    vec![
        line("3.1.1", "no client certificates for users", masters(token)),
        line("5.1.1", "cluster-admin only where it is needed", admin),
        line("5.1.2", "few may read Secrets", all.no_rule(|r| allows(r, &["get", "list", "watch"], "secrets"))),
        line("5.1.3", "no wildcards in roles", all.no_rule(|r| has(r, "verbs", "*") || has(r, "resources", "*"))),
        line("5.1.4", "few may make pods", all.no_rule(|r| allows(r, &["create"], "pods"))),
        line("5.1.5", "default accounts have no rights", default),
        line("5.1.6", "tokens only where they are needed", mounted),
        line("5.1.7", "no use of system:masters", masters(named)),
        line("5.1.8", "few may bind, impersonate or escalate", all.no_rule(powerful)),
        line("5.1.9", "few may make volumes", all.no_rule(|r| allows(r, &["create"], "persistentvolumes"))),
        line("5.1.10", "few may reach nodes", all.no_rule(|r| allows(r, &["get", "create"], "nodes/proxy"))),
        line("5.1.11", "few may approve certificates", all.no_rule(|r| allows(r, &["update", "patch"], approval))),
        line(
            "5.1.12",
            "few may change webhooks",
            all.no_rule(|r| webhooks.iter().any(|resource| allows(r, &write, resource))),
        ),
        line("5.1.13", "few may make tokens", all.no_rule(|r| allows(r, &["create"], "serviceaccounts/token"))),
    ]
}

fn has_default_token(pod: &Value) -> bool {
    let projected = |volume: &Value| list(volume, "projected.sources").iter().any(|s| is_set(s, "serviceAccountToken"));
    text(pod, "spec.serviceAccountName") == "default" && list(pod, "spec.volumes").iter().any(projected)
}

fn pods(all: &Objects) -> Vec<Line> {
    let is_open = |namespace: &&Value| {
        let labels = at(namespace, "metadata.labels");
        let level = labels.and_then(|l| l.get("pod-security.kubernetes.io/enforce")).and_then(Value::as_str);
        !matches!(level, Some("baseline" | "restricted")) && !OWN_NAMESPACES.contains(&text(namespace, "metadata.name"))
    };
    let enforce = "kubectl label namespace NAME pod-security.kubernetes.io/enforce=baseline";
    let open = none_of("namespace without one", all.namespaces.iter().filter(is_open), enforce);
    let in_default = all.pods.iter().filter(|pod| text(pod, "metadata.namespace") == "default");
    let in_default = none_of("pod in it", in_default, "give each workload a namespace of its own");
    let of_pod = |field: &str| all.no_pod(|pod| flag(pod, field) == Some(true), CHANGE);
    let drops = |c: &Value, name: &str| has(c, "securityContext.capabilities.drop", name);
    let escalates = |c: &Value| flag(c, "securityContext.allowPrivilegeEscalation") != Some(false);
    let host_path = |pod: &Value| list(pod, "spec.volumes").iter().any(|volume| is_set(volume, "hostPath"));
    let host_port = |port: &Value| at(port, "hostPort").and_then(Value::as_i64).is_some_and(|port| port > 0);
    let secret_variables = |c: &Value| {
        list(c, "env").iter().any(|e| is_set(e, "valueFrom.secretKeyRef"))
            || list(c, "envFrom").iter().any(|e| is_set(e, "secretRef"))
    };
    vec![
        line("5.2.1", "every namespace enforces a level", open),
        line(
            "5.2.2",
            "no privileged containers",
            all.no_container(|c| flag(c, "securityContext.privileged") == Some(true)),
        ),
        line("5.2.3", "no process namespace of the host", of_pod("spec.hostPID")),
        line("5.2.4", "no IPC namespace of the host", of_pod("spec.hostIPC")),
        line("5.2.5", "no network of the host", of_pod("spec.hostNetwork")),
        line("5.2.6", "no privilege escalation", all.no_container(escalates)),
        line("5.2.7", "no root", all.no_pod(|pod| !everywhere(pod, &is_not_root), CHANGE)),
        line("5.2.8", "no NET_RAW", all.no_container(|c| !drops(c, "ALL") && !drops(c, "NET_RAW"))),
        line(
            "5.2.9",
            "no added capabilities",
            all.no_container(|c| !list(c, "securityContext.capabilities.add").is_empty()),
        ),
        line(
            "5.2.10",
            "capabilities are dropped",
            all.no_container(|c| list(c, "securityContext.capabilities.drop").is_empty()),
        ),
        line("5.2.12", "no paths of the host", all.no_pod(host_path, CHANGE)),
        line("5.2.13", "no ports of the host", all.no_container(|c| list(c, "ports").iter().any(host_port))),
        line("5.4.1", "Secrets as files, not as variables", all.no_container(secret_variables)),
        line("5.7.2-3", "seccomp profiles are set", all.no_pod(|pod| !everywhere(pod, &is_profiled), CHANGE)),
        line("5.7.4", "the default namespace is not used", in_default),
    ]
}

/// Whether something is said of the pod, or of each of its containers.
fn everywhere(pod: &Value, holds: &dyn Fn(&Value) -> bool) -> bool {
    let context = |object: &Value, field: &str| at(object, field).is_some_and(holds);
    context(pod, "spec.securityContext")
        || list(pod, "spec.containers").iter().all(|container| context(container, "securityContext"))
}

fn is_not_root(context: &Value) -> bool {
    let user = at(context, "runAsUser").and_then(Value::as_i64);
    flag(context, "runAsNonRoot") == Some(true) || user.is_some_and(|user| user > 0)
}

fn is_profiled(context: &Value) -> bool {
    matches!(text(context, "seccompProfile.type"), "RuntimeDefault" | "Localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn verdict(objects: &Objects, id: &str) -> Verdict {
        judge(objects).into_iter().find(|line| line.id == id).unwrap().verdict
    }

    #[test]
    fn what_users_grant_is_told_and_what_a_cluster_begins_with_is_not() {
        let rules =
            json!([{"verbs": ["get"], "resources": ["secrets"]}, {"verbs": ["impersonate"], "resources": ["users"]}]);
        let role = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "rules": rules});
        let own = role("system:x", json!({BOOTSTRAPPING: "rbac-defaults"}));
        let none = Objects { roles: vec![own.clone()], ..Objects::default() };
        for id in ["5.1.1", "5.1.2", "5.1.3", "5.1.5", "5.1.8"] {
            assert!(matches!(verdict(&none, id), Passed(_)), "{id}");
        }
        let subject = json!({"kind": "ServiceAccount", "name": "default"});
        let metadata = json!({"name": "b", "namespace": "web"});
        let binding = json!({"metadata": metadata, "roleRef": {"name": "cluster-admin"}, "subjects": [subject]});
        let objects =
            Objects { roles: vec![own, role("reader", json!({}))], bindings: vec![binding], ..Objects::default() };
        for (id, named) in [("5.1.1", "web/b"), ("5.1.2", "reader"), ("5.1.5", "web/b"), ("5.1.8", "reader")] {
            let Failed(why) = verdict(&objects, id) else { panic!("{id}") };
            assert!(why.starts_with(named) && !why.contains("system:x"), "{id}: {why}");
        }
        assert!(matches!(verdict(&objects, "5.1.3"), Passed(_)));
    }

    #[test]
    fn pods_are_judged_by_what_they_may_do() {
        let container = json!({"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}});
        let pod = |spec: Value| json!({"metadata": {"name": "p", "namespace": "web"}, "spec": spec});
        let good = Objects { pods: vec![pod(json!({"containers": [container]}))], ..Objects::default() };
        for line in pods(&good) {
            assert!(matches!(line.verdict, Passed(_)), "{line:?}");
        }
        let container = json!({"name": "c", "securityContext": {"privileged": true, "capabilities": {"add": ["SYS_ADMIN"]}},
            "ports": [{"hostPort": 80}], "env": [{"valueFrom": {"secretKeyRef": {"name": "s"}}}]});
        let spec = json!({"hostPID": true, "hostIPC": true, "hostNetwork": true, "containers": [container],
            "volumes": [{"hostPath": {"path": "/"}}]});
        let namespaces = vec![json!({"metadata": {"name": "web"}})];
        let bad = Objects { pods: vec![pod(spec)], namespaces, ..Objects::default() };
        for line in pods(&bad) {
            assert_eq!(matches!(line.verdict, Passed(_)), line.id == "5.7.4", "{line:?}");
        }
    }
}
