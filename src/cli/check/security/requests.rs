//! What the API answers: reviews of access, and dry runs of what it should refuse or change.

use anyhow::Result;
use http::Method;
use serde_json::{Value, json};

use super::super::super::client::Cluster;
use super::{Failed, Line, Passed, Verdict, line};
use crate::base::json::{at, list, text};

/// What helps where this executable does not do what it should.
const FAULT: &str = "report it as a fault";
/// Who is asked for by nobody.
const NOBODY: &str = "amphipod:check";

/// An answer of the API, also a refusal.
type Answer = (u16, Value);

/// The lines that are found out by asking.
pub(super) async fn ask(cluster: &mut Cluster) -> Result<Vec<Line>> {
    let anonymous = reviews(cluster, "system:anonymous", "system:unauthenticated").await?;
    let nobody = reviews(cluster, NOBODY, NOBODY).await?;
    let pod = try_out(cluster, "/api/v1/namespaces/default/pods?dryRun=All", &[], &pod()).await?;
    let captured = try_out(cluster, "/api/v1/namespaces/default/services?dryRun=All", &[], &external_ip()).await?;
    let open = "start the server without --allow-external-ips, or with few addresses";
    let named = |name: &str| json!({"metadata": {"name": name}});
    let nowhere = "/api/v1/namespaces/amphipod-check-none/configmaps?dryRun=All";
    let nowhere = try_out(cluster, nowhere, &[], &named("amphipod-check")).await?;
    let node = [("impersonate-user", "system:node:amphipod-check"), ("impersonate-group", "system:nodes")];
    let other = try_out(cluster, "/api/v1/nodes?dryRun=All", &node, &named("amphipod-check-other")).await?;
    let profile = cluster.answer(Method::GET, "/debug/pprof/", &[], None).await?;
    let forged = [("authorization", "Bearer e30.e30.e30")];
    let forged = cluster.answer(Method::GET, "/api/v1/namespaces", &forged, None).await?;
    let mut lines = vec![
        line("1.2.1", "anonymous requests read nothing", anonymous),
        line("1.2.6-8", "whoever has no rule may do nothing", nobody),
        line("1.2.11", "AlwaysPullImages", pulled_always(&pod)),
        line("1.2.12", "pods have service accounts", has_account(&pod)),
        line("1.2.3", "DenyServiceExternalIPs", refused(&captured, "a Service with externalIPs", open)),
        line("1.2.13", "NamespaceLifecycle", refused(&nowhere, "an object in no namespace", FAULT)),
        line("1.2.14", "NodeRestriction", refused(&other, "a node that registers another", FAULT)),
        line("1.2.15", "no profiling of the API", refused(&profile, "/debug/pprof/", FAULT)),
        line("1.3.2", "no profiling of controllers", refused(&profile, "/debug/pprof/", FAULT)),
        line("1.2.21", "tokens are looked up", refused(&forged, "a made-up token", FAULT)),
        line("1.2.24-25", "TLS with a certificate of the cluster's own", Passed("so all this was asked".into())),
    ];
    lines.extend(policies(cluster).await?);
    lines.extend(not_built());
    Ok(lines)
}

/// What the benchmark asks for and this version has not, with what helps meanwhile.
fn not_built() -> Vec<Line> {
    let audit = "this version keeps no audit log: give few people access to the API";
    let encryption = "Secrets are in the database as they are: put --data-dir on an encrypted disk";
    let provenance = "this version cannot ask others about images: name images by digest";
    let failed = |id, what, why: &str| line(id, what, Failed(why.into()));
    vec![
        failed("1.2.16-19", "audit log", audit),
        failed("3.2.1-2", "audit policy", audit),
        failed("1.2.27-28", "Secrets are encrypted at rest", encryption),
        failed("5.5.1", "provenance of images", provenance),
    ]
}

/// What network policies there are for pods of users.
async fn policies(cluster: &mut Cluster) -> Result<[Line; 2]> {
    let (_, namespaces) = cluster.answer(Method::GET, "/api/v1/namespaces", &[], None).await?;
    let (_, policies) = cluster.answer(Method::GET, "/apis/networking.k8s.io/v1/networkpolicies", &[], None).await?;
    let held = Passed("every node holds them, unless the server has --disable network-policy".into());
    Ok([
        line("5.3.1", "network policies hold", held),
        line("5.3.2", "every namespace has a NetworkPolicy", without_policy(&namespaces, &policies)),
    ])
}

fn without_policy(namespaces: &Value, policies: &Value) -> Verdict {
    let having: Vec<&str> = list(policies, "items").iter().map(|policy| text(policy, "metadata.namespace")).collect();
    let names = list(namespaces, "items").iter().map(|namespace| text(namespace, "metadata.name"));
    let bare: Vec<&str> = names.filter(|name| !name.starts_with("kube-") && !having.contains(name)).collect();
    match bare.is_empty() {
        true => Passed("each has one, but for the system's own".into()),
        false => Failed(format!("{} have none, so all pods may speak to theirs: write some", bare.join(", "))),
    }
}

fn pod() -> Value {
    let container = json!({"name": "c", "image": "registry.invalid/a:1", "imagePullPolicy": "IfNotPresent"});
    json!({"metadata": {"name": "amphipod-check"}, "spec": {"containers": [container]}})
}

fn external_ip() -> Value {
    let spec = json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]});
    json!({"metadata": {"name": "amphipod-check"}, "spec": spec})
}

async fn try_out(cluster: &mut Cluster, path: &str, headers: &[(&str, &str)], object: &Value) -> Result<Answer> {
    cluster.answer(Method::POST, path, headers, Some(object)).await
}

/// Whether a user may read Secrets or start pods.
async fn reviews(cluster: &mut Cluster, user: &str, group: &str) -> Result<Verdict> {
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    for (verb, resource) in [("list", "secrets"), ("get", "nodes"), ("list", "pods"), ("create", "pods")] {
        let attributes = json!({"verb": verb, "resource": resource});
        let spec = json!({"user": user, "groups": [group], "resourceAttributes": attributes});
        let (_, review) = try_out(cluster, path, &[], &json!({"spec": spec})).await?;
        if at(&review, "status.allowed").and_then(Value::as_bool) != Some(false) {
            let reason = text(&review, "status.reason");
            return Ok(Failed(format!("{user} may {verb} {resource}: take the binding away ({reason})")));
        }
    }
    Ok(Passed("neither Secrets nor nodes nor pods".into()))
}

fn refused((code, answer): &Answer, what: &str, remedy: &str) -> Verdict {
    match code {
        400..500 => Passed(format!("{what} is refused ({code})")),
        _ => Failed(format!("{what} is answered with {code} {}: {remedy}", text(answer, "message"))),
    }
}

fn pulled_always((_, pod): &Answer) -> Verdict {
    let containers = list(pod, "spec.containers");
    let always = !containers.is_empty() && containers.iter().all(|c| text(c, "imagePullPolicy") == "Always");
    match always {
        true => Passed("pods pull always".into()),
        false => Failed("pods may use images that others have pulled: give private images the policy Always".into()),
    }
}

fn has_account((code, pod): &Answer) -> Verdict {
    match text(pod, "spec.serviceAccountName") {
        "" => Failed(format!("a pod was given no account ({code} {}): {FAULT}", text(pod, "message"))),
        account => Passed(format!("a pod without one gets {account:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_they_say() {
        assert!(matches!(refused(&(403, json!({})), "x", "y"), Passed(_)));
        let open = refused(&(201, json!({"message": ""})), "x", "close it");
        assert!(matches!(&open, Failed(why) if why.contains("201") && why.ends_with("close it")), "{open:?}");
        let policy = |policy: &str| (201, json!({"spec": {"containers": [{"imagePullPolicy": policy}]}}));
        assert!(matches!(pulled_always(&policy("Always")), Passed(_)));
        assert!(matches!(pulled_always(&policy("IfNotPresent")), Failed(_)));
        assert!(matches!(pulled_always(&(403, json!({}))), Failed(_)), "nothing was seen");
        assert!(matches!(has_account(&(201, json!({"spec": {"serviceAccountName": "default"}}))), Passed(_)));
        let all = json!({"items": [{"metadata": {"name": "kube-system"}}, {"metadata": {"name": "a"}}]});
        let of_a = json!({"items": [{"metadata": {"namespace": "a", "name": "p"}}]});
        assert!(matches!(without_policy(&all, &of_a), Passed(_)));
        assert!(matches!(without_policy(&all, &json!({})), Failed(why) if why.starts_with("a have none")));
        assert!(matches!(has_account(&(403, json!({"message": "no"}))), Failed(_)));
    }
}
