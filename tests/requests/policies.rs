//! Admission policies in force on a live server: what they refuse, what they warn of, what they may take, who may make them.

use serde_json::{Value, json};

use super::bodies::MAPS;
use super::server::{Asked, Server};
use super::{as_user, create, on_a_server, send};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn rules(group: &str, resources: &[&str], operations: &[&str]) -> Value {
    json!([{"operations": operations, "apiGroups": [group], "apiVersions": ["v1"], "resources": resources}])
}

/// A policy about ConfigMaps, unless it says otherwise.
fn policy(name: &str, spec: Value) -> Value {
    let rules = rules("", &["configmaps"], &["CREATE", "UPDATE"]);
    let mut policy = json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": rules}}});
    policy["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    policy
}

async fn make(server: &mut Server, plural: &str, object: Value) {
    let (code, status) = create(server, &format!("{GROUP}/{plural}"), object).await;
    assert_eq!(code, 201, "{status}");
}

/// Puts a validating policy in force; the binding may say more.
async fn enforce(server: &mut Server, name: &str, spec: Value, more: Value) {
    make(server, "validatingadmissionpolicies", policy(name, spec)).await;
    let mut binding = json!({"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}});
    binding["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    make(server, "validatingadmissionpolicybindings", binding).await;
}

async fn end(server: &mut Server, name: &str) {
    for plural in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
        let path = format!("{GROUP}/{plural}/{name}");
        assert_eq!(send(server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
    }
}

fn map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

async fn open(server: &mut Server, path: &str, body: Value) -> (u16, Vec<String>) {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    let asked = Asked { method: "POST", path, headers, body: Some(body.to_string().into_bytes()) };
    let answer = server.open(asked).await;
    let warnings = answer.headers().get_all("warning").iter();
    (answer.status().as_u16(), warnings.map(|w| w.to_str().unwrap().to_owned()).collect())
}

#[test]
fn a_policy_validates_deployments() {
    on_a_server(async |mut server| {
        let constraints = json!({"resourceRules": rules("apps", &["deployments"], &["CREATE", "UPDATE"])});
        let validations = json!([
            {"expression": "object.spec.replicas > 1", "messageExpression": "'wants more than ' + string(object.spec.replicas)"},
            {"expression": "object.spec.replicas < 100", "message": "too many", "reason": "Forbidden"},
        ]);
        let spec = json!({"matchConstraints": constraints, "validations": validations});
        make(&mut server, "validatingadmissionpolicies", policy("replicas", spec)).await;
        // A policy alone is not in force.
        assert_eq!(create(&mut server, DEPLOYMENTS, deployment("first", 1)).await.0, 201);
        let binding =
            json!({"metadata": {"name": "all"}, "spec": {"policyName": "replicas", "validationActions": ["Deny"]}});
        make(&mut server, "validatingadmissionpolicybindings", binding).await;
        let (code, status) = create(&mut server, DEPLOYMENTS, deployment("d", 1)).await;
        let said = "ValidatingAdmissionPolicy 'replicas' with binding 'all' denied request: wants more than 1";
        assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
        assert_eq!(status["message"], format!("deployments.apps \"d\" is forbidden: {said}"));
        assert_eq!(status["details"]["causes"], json!([{"message": said}]));
        let (code, status) = create(&mut server, DEPLOYMENTS, deployment("d", 100)).await;
        assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
        assert!(status["message"].as_str().unwrap().ends_with("denied request: too many"), "{status}");
        assert_eq!(create(&mut server, DEPLOYMENTS, deployment("d", 2)).await.0, 201);
        // The subresource is another resource.
        let scale = json!({"spec": {"replicas": 1}}).to_string().into_bytes();
        let media = "application/merge-patch+json";
        assert_eq!(send(&mut server, "PATCH", &format!("{DEPLOYMENTS}/d/scale"), media, scale.clone()).await.0, 200);
        let (code, _) = send(&mut server, "PATCH", &format!("{DEPLOYMENTS}/d"), media, scale).await;
        assert_eq!(code, 422, "what changes nothing is looked at all the same");
        let update = json!({"metadata": {"labels": {"x": "y"}}}).to_string().into_bytes();
        assert_eq!(send(&mut server, "PATCH", &format!("{DEPLOYMENTS}/d"), media, update).await.0, 422);
    });
}

#[test]
fn expressions_refer_to_variables_that_are_made_of_others() {
    on_a_server(async |mut server| {
        let variable = |name: &str, expression: &str| json!({"name": name, "expression": expression});
        let mut variables = vec![
            variable("replicas", "object.spec.replicas"),
            variable("isOdd", "variables.replicas % 2 == 1"),
            variable("broken", "object.spec.nothing"),
        ];
        // A long chain, and a deep one.
        variables.push(variable("v0", "0"));
        let deep = |inner: &str, levels: usize| format!("{}{inner}{}", "(1 + ".repeat(levels), ")".repeat(levels));
        for i in 1..200 {
            let levels = if i % 100 == 0 { 120 } else { 0 };
            variables.push(variable(&format!("v{i}"), &deep(&format!("variables.v{}", i - 1), levels)));
        }
        let constraints = json!({"resourceRules": rules("apps", &["deployments"], &["CREATE"])});
        let deep = format!("{} == 360", deep("variables.v199", 240));
        let spec = json!({"matchConstraints": constraints, "variables": variables, "validations": [
            {"expression": "variables.isOdd || variables.replicas == 2", "message": "even"},
            {"expression": "variables.replicas < 10 || variables.broken == 1", "message": "broken"},
            {"expression": deep, "message": "deep"},
        ]});
        enforce(&mut server, "odd", spec, json!({})).await;
        for (replicas, code, why) in [
            (3, 201, ""),
            (2, 201, ""),
            (4, 422, "denied request: even"),
            (11, 422, "composited variable \"broken\" fails to evaluate: no such key: nothing"),
        ] {
            let (given, status) = create(&mut server, DEPLOYMENTS, deployment(&format!("d{replicas}"), replicas)).await;
            assert_eq!(given, code, "{replicas}: {status}");
            assert!(code == 201 || status["message"].as_str().unwrap().ends_with(why), "{status}");
        }
    });
}

#[test]
fn everything_about_a_request_can_be_named() {
    on_a_server(async |mut server| {
        let namespace = json!({"metadata": {"name": "team", "labels": {"tier": "gold"}}});
        assert_eq!(create(&mut server, "/api/v1/namespaces", namespace).await.0, 201);
        let validations = json!([
            {"expression": "request.operation != 'UPDATE' || oldObject.data.k != 'final'", "message": "final"},
            {"expression": "object == null || !has(object.data) || !('gold' in object.data) || 'tier' in namespaceObject.metadata.labels", "message": "not gold"},
            {"expression": "request.operation != 'DELETE' || !('keep' in oldObject.data)", "message": "kept"},
            {"expression": "object == null || !has(object.data) || !('admin' in object.data) || authorizer.group('').resource('secrets').namespace('default').check('delete').allowed()", "message": "no admin"},
            {"expression": "object == null || !has(object.data) || !('self' in object.data) || authorizer.requestResource.check('delete').allowed()", "message": "not his"},
            {"expression": "params == null", "message": "params"},
        ]);
        let constraints = json!({"resourceRules": rules("", &["configmaps"], &["*"]), "namespaceSelector": {
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team", "default"]}]}});
        let spec = json!({"validations": validations, "matchConstraints": constraints,
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConditions": [{"name": "not-roots", "expression": "request.name != 'kube-root-ca.crt'"}]});
        enforce(&mut server, "all", spec, json!({})).await;
        let ended =
            |status: &Value, why: &str| status["message"].as_str().is_some_and(|m| m.ends_with(&format!(": {why}")));
        let (code, status) = create(&mut server, MAPS, map("a", json!({"gold": "1"}))).await;
        assert!(code == 422 && ended(&status, "not gold"), "{status}");
        let team = "/api/v1/namespaces/team/configmaps";
        assert_eq!(create(&mut server, team, map("a", json!({"gold": "1", "k": "final", "keep": "1"}))).await.0, 201);
        let patch = json!({"data": {"k": "2"}}).to_string().into_bytes();
        let (code, status) =
            send(&mut server, "PATCH", &format!("{team}/a"), "application/merge-patch+json", patch).await;
        assert!(code == 422 && ended(&status, "final"), "{status}");
        let (code, status) = send(&mut server, "DELETE", &format!("{team}/a"), "application/json", Vec::new()).await;
        assert!(code == 422 && ended(&status, "kept"), "{status}");
        let (code, status) = send(&mut server, "DELETE", team, "application/json", Vec::new()).await;
        assert!(code == 422 && ended(&status, "kept"), "{status}");
        // Who asks is asked about.
        super::grant(
            &mut server,
            "alice",
            json!({"verbs": ["create"], "apiGroups": [""], "resources": ["configmaps"]}),
        )
        .await;
        for (key, why) in [("admin", "no admin"), ("self", "not his")] {
            let body = map(key, json!({key: "1"})).to_string().into_bytes();
            let (code, status) = as_user(&mut server, "alice", "POST", MAPS, "application/json", body).await;
            assert!(code == 422 && ended(&status, why), "{status}");
            assert_eq!(create(&mut server, MAPS, map(key, json!({key: "1"}))).await.0, 201);
        }
    });
}

#[test]
fn bindings_choose_what_a_policy_is_about_and_excluded_rules_take_it_out() {
    on_a_server(async |mut server| {
        let mut excluded = rules("", &["configmaps"], &["*"]);
        excluded[0]["resourceNames"] = json!(["free"]);
        let constraints = json!({"resourceRules": rules("", &["configmaps", "secrets"], &["CREATE"]), "excludeResourceRules": excluded});
        let only = json!({"matchResources": {"resourceRules": rules("", &["configmaps"], &["*"]),
            "objectSelector": {"matchLabels": {"checked": "yes"}}}});
        enforce(
            &mut server,
            "no",
            json!({"matchConstraints": constraints, "validations": [{"expression": "false"}]}),
            only,
        )
        .await;
        let labelled = |name: &str| json!({"metadata": {"name": name, "labels": {"checked": "yes"}}});
        let (code, status) = create(&mut server, MAPS, labelled("a")).await;
        assert!(
            code == 422 && status["message"].as_str().unwrap().ends_with("denied request: failed expression: false"),
            "{status}"
        );
        assert_eq!(create(&mut server, MAPS, labelled("free")).await.0, 201);
        assert_eq!(create(&mut server, MAPS, map("b", json!({}))).await.0, 201);
        assert_eq!(create(&mut server, "/api/v1/namespaces/default/secrets", labelled("a")).await.0, 201);
        // What decides on admission is not decided on.
        let all = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]);
        let spec = json!({"matchConstraints": {"resourceRules": all}, "validations": [{"expression": "false"}]});
        enforce(&mut server, "all", spec, json!({})).await;
        assert_eq!(create(&mut server, MAPS, map("c", json!({}))).await.0, 422);
        end(&mut server, "all").await;
        assert_eq!(create(&mut server, MAPS, map("c", json!({}))).await.0, 201);
    });
}

#[test]
fn parameters_are_found_by_name_and_by_selector_and_what_is_missing_counts_as_said() {
    on_a_server(async |mut server| {
        for namespace in ["limits", "team"] {
            let made = create(&mut server, "/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
            assert_eq!(made.0, 201);
        }
        let limit = |name: &str, most: &str| json!({"metadata": {"name": name, "labels": {"limit": "yes"}}, "data": {"most": most}});
        let limits = "/api/v1/namespaces/limits/configmaps";
        for (name, most) in [("five", "5"), ("three", "3")] {
            assert_eq!(create(&mut server, limits, limit(name, most)).await.0, 201);
        }
        let spec = || {
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [
            {"expression": "object.data.size() <= int(params.data.most)", "messageExpression": "'more than ' + params.data.most"}],
            "matchConditions": [{"name": "asked", "expression": "has(object.data) && !('most' in object.data)"}]})
        };
        let reference = |of: Value| {
            let mut reference = json!({"parameterNotFoundAction": "Deny"});
            reference.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
            json!({"paramRef": reference, "matchResources": {"resourceRules": rules("", &["configmaps"], &["*"])}})
        };
        let size = |n: usize| (0..n).map(|i| (format!("k{i}"), "v".into())).collect::<serde_json::Map<_, _>>();
        let mut of = async |reference: Value, n: usize| {
            enforce(&mut server, "p", spec(), reference).await;
            let (code, status) = create(&mut server, &format!("{MAPS}?dryRun=All"), map("m", size(n).into())).await;
            end(&mut server, "p").await;
            (code, status["message"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(of(reference(json!({"name": "five", "namespace": "limits"})), 5).await.0, 201);
        let (code, why) = of(reference(json!({"name": "five", "namespace": "limits"})), 6).await;
        assert!(code == 422 && why.ends_with("more than 5"), "{why}");
        // All that are selected must agree.
        let (code, why) =
            of(reference(json!({"selector": {"matchLabels": {"limit": "yes"}}, "namespace": "limits"})), 4).await;
        assert!(code == 422 && why.ends_with("more than 3"), "{why}");
        // Without a namespace they are those of the object's own.
        let (code, why) = of(reference(json!({"name": "five"})), 1).await;
        assert!(code == 422 && why.ends_with("failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"), "{why}");
        let allowed = json!({"name": "five", "parameterNotFoundAction": "Allow"});
        assert_eq!(of(reference(allowed), 1).await.0, 201);
        let unknown = json!({"paramKind": {"apiVersion": "e.example/v1", "kind": "Nothing"}, "validations": [{"expression": "true"}]});
        enforce(&mut server, "q", unknown, json!({})).await;
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        let why = "ValidatingAdmissionPolicy 'q' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'e.example/v1, Kind=Nothing'";
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status}");
    });
}

#[test]
fn what_fails_refuses_unless_the_policy_ignores_it_and_some_only_warn() {
    on_a_server(async |mut server| {
        let broken =
            |policy: &str| json!({"failurePolicy": policy, "validations": [{"expression": "object.data.k == 'v'"}]});
        enforce(&mut server, "fail", broken("Fail"), json!({})).await;
        let (code, status) = create(&mut server, MAPS, json!({"metadata": {"name": "m"}})).await;
        let why = "denied request: expression 'object.data.k == 'v'' resulted in error: no such key: data";
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status}");
        end(&mut server, "fail").await;
        enforce(&mut server, "ignore", broken("Ignore"), json!({})).await;
        assert_eq!(create(&mut server, MAPS, json!({"metadata": {"name": "m"}})).await.0, 201);
        assert_eq!(create(&mut server, MAPS, map("n", json!({"k": "w"}))).await.0, 422);
        end(&mut server, "ignore").await;

        let annotations = json!([{"key": "a", "valueExpression": "'k is ' + object.data.k"}]);
        let spec = json!({"validations": [{"expression": "object.data.k == 'v'", "message": "no v"}], "auditAnnotations": annotations});
        let (code, warned) =
            open(&mut server, &format!("{GROUP}/validatingadmissionpolicies"), policy("warn", spec)).await;
        assert_eq!(
            (code, warned),
            (
                201,
                vec![
                    "299 - \"spec.auditAnnotations: are evaluated, and not written anywhere by this version\""
                        .to_owned()
                ]
            )
        );
        let binding = json!({"metadata": {"name": "warn"}, "spec": {"policyName": "warn", "validationActions": ["Warn", "Audit"]}});
        let (code, warned) = open(&mut server, &format!("{GROUP}/validatingadmissionpolicybindings"), binding).await;
        assert_eq!(
            (code, warned),
            (
                201,
                vec![
                    "299 - \"spec.validationActions: what Audit finds is not written anywhere by this version\""
                        .to_owned()
                ]
            )
        );
        let (code, warned) = open(&mut server, MAPS, map("o", json!({"k": "w"}))).await;
        let said = "299 - \"Validation failed for ValidatingAdmissionPolicy 'warn' with binding 'warn': no v\"";
        assert_eq!((code, warned), (201, vec![said.to_owned()]));
    });
}

#[test]
fn policies_take_so_much_of_a_request_and_no_more() {
    on_a_server(async |mut server| {
        let numbers = (0..200).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let loops = format!("[{numbers}].all(a, [{numbers}].all(b, a + b >= 0))");
        let over = format!("[{numbers}].all(a, [{numbers}].all(b, [{numbers}].all(c, a + b + c >= 0)))");
        enforce(&mut server, "over", json!({"validations": [{"expression": over}]}), json!({})).await;
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        let why = "operation cancelled: actual cost limit exceeded";
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status:.300}");
        end(&mut server, "over").await;
        let many: Vec<Value> = (0..100).map(|_| json!({"expression": loops})).collect();
        enforce(&mut server, "many", json!({"validations": many}), json!({})).await;
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        let why = "denied request: validation failed due to running out of cost budget, no further validation rules will be run";
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status:.300}");
        end(&mut server, "many").await;
        // Nor does it help to say the same by many bindings.
        let most: Vec<Value> = (0..20).map(|_| json!({"expression": loops})).collect();
        make(&mut server, "validatingadmissionpolicies", policy("bound", json!({"validations": most}))).await;
        for i in 0..60 {
            let binding = json!({"metadata": {"name": format!("b{i}")}, "spec": {"policyName": "bound", "validationActions": ["Deny"]}});
            make(&mut server, "validatingadmissionpolicybindings", binding).await;
        }
        let begun = std::time::Instant::now();
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        println!("{} ms", begun.elapsed().as_millis());
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status:.300}");
    });
}

#[test]
fn who_may_not_read_parameters_makes_no_policy_that_shows_them() {
    on_a_server(async |mut server| {
        let role = |name: &str, rules: Value| json!({"metadata": {"name": name}, "rules": rules});
        let base = "/apis/rbac.authorization.k8s.io/v1";
        let policies = json!({"verbs": ["*"], "apiGroups": ["admissionregistration.k8s.io"], "resources": ["*"]});
        let reads = |resource: &str| json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]});
        for (user, rules) in [("mallory", json!([policies])), ("alice", json!([policies, reads("secrets")]))] {
            assert_eq!(create(&mut server, &format!("{base}/clusterroles"), role(user, rules)).await.0, 201);
            let binding = json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
                "roleRef": {"kind": "ClusterRole", "name": user, "apiGroup": "rbac.authorization.k8s.io"}});
            assert_eq!(create(&mut server, &format!("{base}/clusterrolebindings"), binding).await.0, 201);
        }
        let of = |kind: &str| {
            policy(
                "p",
                json!({"paramKind": {"apiVersion": "v1", "kind": kind}, "validations": [{"expression": "params.data.size() > 9"}]}),
            )
        };
        let path = format!("{GROUP}/validatingadmissionpolicies");
        let media = "application/json";
        let mut ask = async |user: &str, method: &str, path: &str, object: Value| {
            let (code, status) = as_user(&mut server, user, method, path, media, object.to_string().into_bytes()).await;
            (code, status["details"]["causes"][0]["message"].as_str().unwrap_or_default().to_owned())
        };
        let (code, why) = ask("mallory", "POST", &path, of("Secret")).await;
        let all =
            "must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)";
        assert!(code == 422 && why == format!("Forbidden: user \"mallory\" {all}"), "{code} {why}");
        assert_eq!(ask("mallory", "POST", &path, of("Unheard")).await.0, 422);
        assert_eq!(
            ask("mallory", "POST", &path, policy("p", json!({"validations": [{"expression": "true"}]}))).await.0,
            201
        );
        let patch = json!({"spec": {"paramKind": {"apiVersion": "v1", "kind": "Secret"}}});
        let mut change = async |user: &str| {
            let body = patch.to_string().into_bytes();
            as_user(&mut server, user, "PATCH", &format!("{path}/p"), "application/merge-patch+json", body).await.0
        };
        assert_eq!((change("mallory").await, change("alice").await), (422, 200));
        let mut ask = async |user: &str, name: &str, namespace: &str| {
            let path = format!("{GROUP}/validatingadmissionpolicybindings?dryRun=All");
            let reference = json!({"name": name, "namespace": namespace, "parameterNotFoundAction": "Deny"});
            let binding = json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Warn"], "paramRef": reference}});
            let (code, status) =
                as_user(&mut server, user, "POST", &path, media, binding.to_string().into_bytes()).await;
            (code, status["details"]["causes"][0]["message"].as_str().unwrap_or_default().to_owned())
        };
        let (code, why) = ask("mallory", "s", "default").await;
        assert!(
            code == 422 && why.ends_with("does not have \"get\" permission on the object referenced by paramRef"),
            "{why}"
        );
        assert_eq!(ask("alice", "s", "default").await.0, 201);
    });
}
