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
        // What one has taken is not missing to others.
        let many: Vec<Value> = (0..100).map(|_| json!({"expression": loops})).collect();
        enforce(&mut server, "many", json!({"validations": many, "failurePolicy": "Ignore"}), json!({})).await;
        enforce(&mut server, "other", json!({"validations": [{"expression": loops}]}), json!({})).await;
        assert_eq!(create(&mut server, &format!("{MAPS}?dryRun=All"), map("m", json!({}))).await.0, 201);
        end(&mut server, "many").await;
        end(&mut server, "other").await;
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
        let mut changing = of("Secret");
        changing["spec"].as_object_mut().unwrap().remove("validations");
        changing["spec"]["mutations"] = json!([apply("Object{metadata: Object.metadata{labels: params.data}}")]);
        changing["spec"]["reinvocationPolicy"] = "Never".into();
        let mutating = format!("{GROUP}/mutatingadmissionpolicies");
        let (code, why) = ask("mallory", "POST", &mutating, changing.clone()).await;
        assert!(code == 422 && why.ends_with(all), "{code} {why}");
        assert_eq!(ask("alice", "POST", &mutating, changing).await.0, 201);
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

/// Puts a mutating policy in force: ConfigMaps, never once more, unless it says otherwise.
async fn change(server: &mut Server, name: &str, mutations: Value, more: Value) {
    let mut spec = json!({"mutations": mutations, "reinvocationPolicy": "Never"});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    make(server, "mutatingadmissionpolicies", policy(name, spec)).await;
    let binding = json!({"metadata": {"name": name}, "spec": {"policyName": name}});
    make(server, "mutatingadmissionpolicybindings", binding).await;
}

async fn change_no_more(server: &mut Server, name: &str) {
    for plural in ["mutatingadmissionpolicybindings", "mutatingadmissionpolicies"] {
        let path = format!("{GROUP}/{plural}/{name}");
        assert_eq!(send(server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
    }
}

fn apply(expression: &str) -> Value {
    json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}})
}

fn patch(expression: &str) -> Value {
    json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
}

#[test]
fn a_policy_mutates_deployments() {
    on_a_server(async |mut server| {
        let deployments =
            json!({"resourceRules": rules("apps", &["deployments", "deployments/scale"], &["CREATE", "UPDATE"])});
        let whole = "request.?subResource.orValue('') == 'scale' ? Object{spec: Object.spec{replicas: 7}} : Object{
            metadata: Object.metadata{annotations: {'example.com/by': request.userInfo.username}, labels: {'team': namespaceObject.metadata.name}},
            spec: Object.spec{?replicas: object.spec.replicas > 5 ? optional.of(5) : optional.none(), template: Object.spec.template{spec: Object.spec.template.spec{
                containers: object.spec.template.spec.containers.map(c, Object.spec.template.spec.containers{name: c.name,
                    env: [Object.spec.template.spec.containers.env{name: 'ADDED', value: variables.value}]})}}}}";
        let variables = json!([{"name": "value", "expression": "'of ' + object.metadata.name"}]);
        change(
            &mut server,
            "whole",
            json!([apply(whole)]),
            json!({"matchConstraints": deployments, "variables": variables}),
        )
        .await;
        let mut asked = deployment("d", 9);
        asked["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "OWN", "value": "1"}]);
        let (code, made) = create(&mut server, DEPLOYMENTS, asked).await;
        assert_eq!(code, 201, "{made}");
        assert_eq!((&made["spec"]["replicas"], &made["metadata"]["labels"]), (&json!(5), &json!({"team": "default"})));
        assert!(made["metadata"]["annotations"]["example.com/by"].is_string(), "{made}");
        let container = &made["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["env"], json!([{"name": "OWN", "value": "1"}, {"name": "ADDED", "value": "of d"}]));
        assert_eq!((&container["image"], &container["imagePullPolicy"]), (&json!("i"), &json!("Always")));
        // Nobody owns what the policy has set.
        let owned = made["metadata"]["managedFields"].to_string();
        assert!(owned.contains("OWN") && !owned.contains("ADDED") && !owned.contains("team"), "{owned}");
        let media = "application/merge-patch+json";
        let scale = json!({"spec": {"replicas": 2}}).to_string().into_bytes();
        let (code, scaled) = send(&mut server, "PATCH", &format!("{DEPLOYMENTS}/d/scale"), media, scale).await;
        assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(7)), "{scaled}");
    });
}

#[test]
fn what_cannot_be_merged_is_refused_unless_the_policy_ignores_it() {
    on_a_server(async |mut server| {
        let constraints = json!({"resourceRules": rules("apps", &["deployments"], &["CREATE"])});
        let begin = "deployments.apps \"d\" is forbidden: policy 'p' with binding 'p' denied request: ";
        for (expression, why) in [
            (
                "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'c'}}}}",
                "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: .spec.selector",
            ),
            (
                "Object{spec: Object.spec{template: Object.spec.wrong{}}}",
                "type mismatch: unexpected type name \"Object.spec.wrong\", expected \"Object.spec.template\", which matches field name path from root Object type",
            ),
            (
                "Object{spec: Object.spec{replica: 1}}",
                "error applying patch: failed to convert patch object to typed object: .spec.replica: field not declared in schema",
            ),
            (
                "Object{spec: Object.spec{replicas: 'many'}}",
                "error applying patch: failed to convert patch object to typed object: .spec.replicas: expected numeric (int or float), got \"many\"",
            ),
            (
                "Object{spec: object.spec.nothing}",
                "expression 'Object{spec: object.spec.nothing}' resulted in error: no such key: nothing",
            ),
        ] {
            let more = |policy: &str| json!({"matchConstraints": constraints, "failurePolicy": policy});
            change(
                &mut server,
                "p",
                json!([apply(expression), apply("Object{spec: Object.spec{replicas: 2}}")]),
                more("Fail"),
            )
            .await;
            let (code, status) = create(&mut server, DEPLOYMENTS, deployment("d", 1)).await;
            assert_eq!((code, &status["message"]), (422, &json!(format!("{begin}{why}"))), "{status}");
            change_no_more(&mut server, "p").await;
            change(
                &mut server,
                "p",
                json!([apply(expression), apply("Object{spec: Object.spec{replicas: 2}}")]),
                more("Ignore"),
            )
            .await;
            let (code, made) = create(&mut server, &format!("{DEPLOYMENTS}?dryRun=All"), deployment("d", 1)).await;
            assert_eq!((code, &made["spec"]["replicas"]), (201, &json!(2)), "{made}");
            change_no_more(&mut server, "p").await;
        }
    });
}

#[test]
fn json_patches_change_what_their_tests_allow() {
    on_a_server(async |mut server| {
        let add = "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'a/b': '1'}},
            JSONPatch{op: 'replace', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: string(size(object.data))}]";
        let tested = "[JSONPatch{op: 'test', path: '/data/k', value: 'v'}, JSONPatch{op: 'remove', path: '/data/k'}]";
        let moved = "has(object.data.from) ? [JSONPatch{op: 'move', from: '/data/from', path: '/data/to'}] : []";
        change(&mut server, "p", json!([patch(add), patch(tested), patch(moved)]), json!({})).await;
        let (code, made) = create(&mut server, MAPS, map("a", json!({"k": "v", "from": "here"}))).await;
        assert_eq!((code, &made["data"]), (201, &json!({"to": "here"})), "{made}");
        assert_eq!(made["metadata"]["labels"], json!({"a/b": "2"}));
        let (code, made) = create(&mut server, MAPS, map("b", json!({"k": "w"}))).await;
        assert_eq!((code, &made["data"]), (201, &json!({"k": "w"})), "{made}");
        change_no_more(&mut server, "p").await;
        for (expression, why) in [
            (
                "[JSONPatch{op: 'remove', path: '/data/none'}]",
                "JSON Patch: error in remove for path: '/data/none': Unable to remove nonexistent key: none: missing value",
            ),
            ("[JSONPatch{op: 'add', path: '/dta', value: {}}]", "unknown field \"dta\""),
            ("[JSONPatch{op: 'replace', path: '/kind', value: 'Secret'}]", "the patch makes an object of another kind"),
            (
                "[JSONPatch{op: 'add', path: '/data/x', value: duration('1s')}, JSONPatch{op: 'add', path: '/data/y', value: quantity('1')}]",
                "a value of type kubernetes.Quantity cannot be written as JSON",
            ),
        ] {
            change(&mut server, "p", json!([patch(expression)]), json!({})).await;
            let (code, status) = create(&mut server, MAPS, map("c", json!({"k": "v"}))).await;
            assert!(code == 422 && status["message"].as_str().unwrap().contains(why), "{status}");
            change_no_more(&mut server, "p").await;
        }
        let elsewhere = "[JSONPatch{op: 'replace', path: '/metadata/namespace', value: 'kube-system'}]";
        change(&mut server, "p", json!([patch(elsewhere)]), json!({"failurePolicy": "Ignore"})).await;
        assert_eq!(create(&mut server, MAPS, map("c", json!({"k": "v"}))).await.0, 400);
    });
}

#[test]
fn policies_change_in_order_and_see_what_came_after_them_where_they_ask_for_it() {
    on_a_server(async |mut server| {
        let add = |key: &str| {
            json!([patch(&format!("[JSONPatch{{op: 'add', path: '/data/{key}', value: string(size(object.data))}}]"))])
        };
        change(&mut server, "2", add("b"), json!({})).await;
        change(&mut server, "1", add("a"), json!({"reinvocationPolicy": "IfNeeded"})).await;
        let (code, made) = create(&mut server, MAPS, map("m", json!({"k": "v"}))).await;
        assert_eq!((code, &made["data"]), (201, &json!({"k": "v", "a": "3", "b": "2"})), "{made}");
        change_no_more(&mut server, "1").await;
        change(&mut server, "1", add("a"), json!({})).await;
        // Validating policies see what mutating ones have made.
        enforce(&mut server, "v", json!({"validations": [{"expression": "object.data.b == '2'"}]}), json!({})).await;
        let (code, made) = create(&mut server, MAPS, map("n", json!({"k": "v"}))).await;
        assert_eq!((code, &made["data"]), (201, &json!({"k": "v", "a": "1", "b": "2"})), "{made}");
        let (code, _) = create(&mut server, MAPS, map("o", json!({"k": "v", "l": "w"}))).await;
        assert_eq!(code, 422);
    });
}

#[test]
fn a_patch_is_no_larger_for_standing_in_itself_many_times() {
    on_a_server(async |mut server| {
        let mut variables = vec![json!({"name": "v0", "expression": "['x']"})];
        for i in 1..60 {
            let twice = format!("[variables.v{0}, variables.v{0}]", i - 1);
            variables.push(json!({"name": format!("v{i}"), "expression": twice}));
        }
        let mutations = json!([patch("[JSONPatch{op: 'add', path: '/data', value: variables.v59}]")]);
        change(&mut server, "p", mutations, json!({"variables": variables})).await;
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        let why = "denied request: operation cancelled: actual cost limit exceeded";
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with(why), "{status:.300}");
    });
}

#[test]
fn expressions_are_type_checked_against_kubernetes_own_and_custom_kinds() {
    on_a_server(async |mut server| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}});
        let definition = json!({"metadata": {"name": "things.e.example"}, "spec": {"group": "e.example", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        assert_eq!(create(&mut server, definitions, definition).await.0, 201);
        let kinds = [("apps", "deployments", "Deployment", "replicas"), ("e.example", "things", "Thing", "size")];
        for (group, plural, kind, field) in kinds {
            let constraints = json!({"resourceRules": rules(group, &[plural], &["CREATE"])});
            let validations = json!([
                {"expression": format!("object.spec.{field} > 1"), "messageExpression": format!("'not ' + string(object.spec.{field})")},
                {"expression": format!("object.spec.{field} > '1'"), "messageExpression": "object.metadata.nothing"},
            ]);
            let mut asked = policy(plural, json!({"matchConstraints": constraints, "validations": validations}));
            asked["spec"]["validations"][1]["messageExpression"] = "string(object.metadata.nothing)".into();
            make(&mut server, "validatingadmissionpolicies", asked).await;
            let path = format!("{GROUP}/validatingadmissionpolicies/{plural}");
            let mut seen = Value::Null;
            for _ in 0..200 {
                seen = server.get(&path).await;
                if seen["status"]["observedGeneration"] == 1 {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            let warnings = seen["status"]["typeChecking"]["expressionWarnings"].as_array().unwrap();
            let places: Vec<&str> = warnings.iter().map(|w| w["fieldRef"].as_str().unwrap()).collect();
            assert_eq!(places, ["spec.validations[1].expression", "spec.validations[1].messageExpression"], "{seen}");
            let said = warnings[0]["warning"].as_str().unwrap();
            let what = format!("{group}/v1, Kind={kind}: ERROR: <input>:1:");
            let why = "found no matching overload for '_>_' applied to '(int, string)'";
            assert!(said.starts_with(&what) && said.contains(why), "{said}");
            // The status does not come back to the policy's generation.
            assert_eq!(seen["metadata"]["generation"], 1);
        }
    });
}

#[test]
fn a_custom_kind_is_mutated_and_validated() {
    on_a_server(async |mut server| {
        let items = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
            "required": ["name"], "properties": {"name": {"type": "string"}, "size": {"type": "integer", "default": 1}}}});
        let plain = json!({"type": "array", "items": {"type": "string"}});
        let spec = json!({"type": "object", "properties": {"items": items, "plain": plain}});
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        let definition = json!({"metadata": {"name": "things.e.example"}, "spec": {"group": "e.example", "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        assert_eq!(create(&mut server, definitions, definition).await.0, 201);
        let constraints = json!({"resourceRules": rules("e.example", &["things"], &["CREATE"])});
        let items = "Object{spec: Object.spec{items: [Object.spec.items{name: 'added'}, Object.spec.items{name: 'own', size: 9}]}}";
        change(&mut server, "items", json!([apply(items)]), json!({"matchConstraints": constraints})).await;
        let validations = json!([{"expression": "object.spec.items.exists(i, i.name == 'added' && i.size == 1)"}]);
        enforce(&mut server, "items", json!({"matchConstraints": constraints, "validations": validations}), json!({}))
            .await;
        let things = "/apis/e.example/v1/namespaces/default/things";
        let thing = |name: &str| json!({"apiVersion": "e.example/v1", "kind": "Thing", "metadata": {"name": name}, "spec": {"items": [{"name": "own"}]}});
        let (code, made) = create(&mut server, things, thing("a")).await;
        assert_eq!(code, 201, "{made}");
        assert_eq!(made["spec"]["items"], json!([{"name": "added", "size": 1}, {"name": "own", "size": 9}]));
        change(
            &mut server,
            "plain",
            json!([apply("Object{spec: Object.spec{plain: ['a']}}")]),
            json!({"matchConstraints": constraints}),
        )
        .await;
        let (code, status) = create(&mut server, things, thing("b")).await;
        assert!(code == 422 && status["message"].as_str().unwrap().ends_with("structs: .spec.plain"), "{status}");
    });
}
