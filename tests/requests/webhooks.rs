//! Webhooks, asked over TLS by a live server: what they are told, what they may change and refuse, and what their failures mean.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::bodies::MAPS;
use super::https::Https;
use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// A server of webhooks: the first part of a path says what it answers.
struct Webhooks {
    port: u16,
    ca_bundle: String,
    /// The requests of all reviews, each with the path that it came to.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Webhooks {
    async fn start() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = asked.clone();
        let Https { port, ca_bundle } = Https::start(move |path, review| answer(path, review, all.clone())).await;
        Self { port, ca_bundle, asked }
    }

    /// A webhook of this server for creations and changes of ConfigMaps.
    fn webhook(&self, name: &str, path: &str, more: Value) -> Value {
        let mut webhook = json!({
            "name": format!("{name}.example.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": format!("https://localhost:{}/{path}", self.port), "caBundle": self.ca_bundle},
            "rules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": [""], "apiVersions": ["v1"],
                "resources": ["configmaps"]}],
        });
        webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        webhook
    }

    /// What was asked at a path since this was asked last.
    fn asked_at(&self, path: &str) -> Vec<Value> {
        let mut all = self.asked.lock().unwrap();
        let (here, others) = all.drain(..).partition(|(at, _)| at == path);
        *all = others;
        let here: Vec<(String, Value)> = here;
        here.into_iter().map(|(_, request)| request).collect()
    }
}

async fn answer(path: String, review: Value, asked: Arc<Mutex<Vec<(String, Value)>>>) -> (u16, String) {
    let of = review["request"].clone();
    let mut response = json!({"uid": of["uid"], "allowed": true});
    let patch = |operations: Value| STANDARD.encode(operations.to_string());
    match path.as_str() {
        "deny" => {
            response["allowed"] = false.into();
            response["status"] = json!({"code": 418, "reason": "Teapot", "message": "no such thing"});
        }
        "deny-bad" => response["allowed"] = of["object"]["data"].get("bad").is_none().into(),
        // Adds what it has seen, so that a second look shows.
        "add-a" | "add-b" => {
            let key = path.trim_start_matches("add-");
            let value = of["object"]["data"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join("+");
            response["patchType"] = "JSONPatch".into();
            response["patch"] = patch(json!([{"op": "add", "path": format!("/data/{key}"), "value": value}])).into();
        }
        "warn" => response["warnings"] = json!(["not so good"]),
        "slow" => tokio::time::sleep(Duration::from_secs(20)).await,
        "wrong-uid" => response["uid"] = "x".into(),
        "other-kind" => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = patch(json!([{"op": "replace", "path": "/kind", "value": "Secret"}])).into();
        }
        "elsewhere" => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] =
                patch(json!([{"op": "replace", "path": "/metadata/namespace", "value": "kube-system"}])).into();
        }
        "large" => response["status"] = json!({"message": "x".repeat(9 << 20)}),
        "three" => {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])).into();
        }
        "broken" => return (500, "out of order".to_owned()),
        _ => {}
    }
    asked.lock().unwrap().push((path, of));
    let body = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
    (200, body.to_string())
}

async fn configure(server: &mut Server, path: &str, name: &str, webhooks: Value) {
    let (code, status) = create(server, path, json!({"metadata": {"name": name}, "webhooks": webhooks})).await;
    assert_eq!(code, 201, "{status}");
}

async fn unconfigure(server: &mut Server, path: &str, name: &str) {
    let (code, status) = send(server, "DELETE", &format!("{path}/{name}"), "application/json", Vec::new()).await;
    assert_eq!(code, 200, "{status}");
}

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[test]
fn validating_webhooks_are_told_everything_and_refuse_in_their_words() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        let rule = json!([{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["configmaps"]}]);
        configure(&mut server, VALIDATING, "see", json!([webhooks.webhook("see", "see", json!({"rules": rule}))]))
            .await;
        assert_eq!(create(&mut server, MAPS, map("m", json!({"k": "v"}))).await.0, 201);
        let asked = webhooks.asked_at("see");
        let kind = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
        let resource = json!({"group": "", "version": "v1", "resource": "configmaps"});
        let one = &asked[0];
        assert_eq!(asked.len(), 1);
        assert_eq!((&one["kind"], &one["requestKind"]), (&kind, &kind));
        assert_eq!((&one["resource"], &one["requestResource"]), (&resource, &resource));
        assert_eq!(
            (&one["name"], &one["namespace"], &one["operation"]),
            (&json!("m"), &json!("default"), &json!("CREATE"))
        );
        assert_eq!(
            (&one["object"]["data"], &one["oldObject"], &one["dryRun"]),
            (&json!({"k": "v"}), &Value::Null, &json!(false))
        );
        assert_eq!(one["options"], json!({"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"}));
        assert!(one["userInfo"]["groups"].as_array().unwrap().contains(&json!("system:authenticated")), "{one}");
        let path = format!("{MAPS}/m");
        let patch = json!({"data": {"k": "w"}}).to_string().into_bytes();
        assert_eq!(
            send(&mut server, "PATCH", &format!("{path}?dryRun=All"), "application/merge-patch+json", patch).await.0,
            200
        );
        let asked = webhooks.asked_at("see");
        assert_eq!((&asked[0]["operation"], &asked[0]["dryRun"]), (&json!("UPDATE"), &json!(true)));
        assert_eq!((&asked[0]["object"]["data"]["k"], &asked[0]["oldObject"]["data"]["k"]), (&json!("w"), &json!("v")));
        let options = json!({"propagationPolicy": "Background", "preconditions": {"resourceVersion": asked[0]["oldObject"]["metadata"]["resourceVersion"]}});
        assert_eq!(
            send(&mut server, "DELETE", &path, "application/json", options.to_string().into_bytes()).await.0,
            200
        );
        let asked = webhooks.asked_at("see");
        assert_eq!(
            (&asked[0]["operation"], &asked[0]["object"], &asked[0]["oldObject"]["data"]["k"]),
            (&json!("DELETE"), &Value::Null, &json!("v"))
        );
        assert_eq!(
            (&asked[0]["options"]["kind"], &asked[0]["options"]["propagationPolicy"]),
            (&json!("DeleteOptions"), &json!("Background"))
        );

        configure(&mut server, VALIDATING, "deny", json!([webhooks.webhook("deny", "deny", json!({}))])).await;
        let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
        assert_eq!(
            (code, &status["message"]),
            (418, &json!("admission webhook \"deny.example.com\" denied the request: no such thing"))
        );
        // Who decides on admission is not decided on: the webhook can still be taken away.
        let all = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]);
        configure(&mut server, VALIDATING, "all", json!([webhooks.webhook("all", "deny", json!({"rules": all}))]))
            .await;
        for name in ["deny", "all", "see"] {
            unconfigure(&mut server, VALIDATING, name).await;
        }
        assert_eq!(create(&mut server, MAPS, map("m", json!({}))).await.0, 201);
    });
}

#[test]
fn mutating_webhooks_change_in_order_and_see_what_came_after_them_where_they_ask_for_it() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        let again = json!({"reinvocationPolicy": "IfNeeded"});
        configure(&mut server, MUTATING, "2", json!([webhooks.webhook("b", "add-b", json!({}))])).await;
        configure(&mut server, MUTATING, "1", json!([webhooks.webhook("a", "add-a", again)])).await;
        let (code, made) = create(&mut server, MAPS, map("m", json!({"k": "v"}))).await;
        assert_eq!((code, &made["data"]), (201, &json!({"k": "v", "a": "a+b+k", "b": "a+k"})), "{made}");
        assert_eq!((webhooks.asked_at("add-a").len(), webhooks.asked_at("add-b").len()), (2, 1));
        unconfigure(&mut server, MUTATING, "1").await;
        unconfigure(&mut server, MUTATING, "2").await;
        // Validating webhooks see what mutating ones have made.
        configure(&mut server, MUTATING, "1", json!([webhooks.webhook("a", "add-a", json!({}))])).await;
        configure(&mut server, VALIDATING, "v", json!([webhooks.webhook("v", "see", json!({}))])).await;
        assert_eq!(create(&mut server, MAPS, map("n", json!({"k": "v"}))).await.0, 201);
        assert_eq!(webhooks.asked_at("see")[0]["object"]["data"], json!({"k": "v", "a": "k"}));
        unconfigure(&mut server, MUTATING, "1").await;
        unconfigure(&mut server, VALIDATING, "v").await;

        for (path, code, why) in [
            (
                "other-kind",
                500,
                "Internal error occurred: admission webhook \"w.example.com\": the patch makes an object of another kind",
            ),
            ("elsewhere", 400, "the namespace of the provided object does not match the namespace sent on the request"),
        ] {
            configure(&mut server, MUTATING, path, json!([webhooks.webhook("w", path, json!({}))])).await;
            let (given, status) = create(&mut server, MAPS, map("o", json!({"k": "v"}))).await;
            assert_eq!((given, &status["message"]), (code, &json!(why)));
            unconfigure(&mut server, MUTATING, path).await;
        }
        // A Scale is shown as one, and changed as one.
        let rule = json!([{"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"]}]);
        configure(&mut server, MUTATING, "scale", json!([webhooks.webhook("s", "three", json!({"rules": rule}))]))
            .await;
        let deployments = "/apis/apps/v1/namespaces/default/deployments";
        let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        assert_eq!(create(&mut server, deployments, deployment).await.0, 201);
        let scale = json!({"spec": {"replicas": 7}}).to_string().into_bytes();
        let path = format!("{deployments}/d/scale");
        let (code, scaled) = send(&mut server, "PATCH", &path, "application/merge-patch+json", scale).await;
        assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(3)), "{scaled}");
        let asked = webhooks.asked_at("three");
        assert_eq!(
            (&asked[0]["kind"]["kind"], &asked[0]["object"]["kind"], &asked[0]["subResource"]),
            (&json!("Scale"), &json!("Scale"), &json!("scale"))
        );
        assert_eq!(
            (&asked[0]["object"]["spec"]["replicas"], &asked[0]["oldObject"]["spec"]["replicas"]),
            (&json!(7), &json!(1))
        );
    });
}

#[test]
fn a_webhook_that_fails_stops_the_request_unless_its_policy_is_to_ignore_that() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        let nobody = json!({"clientConfig": {"service": {"name": "nobody", "namespace": "default", "path": "/x"}}});
        let stranger = json!({"clientConfig": {"url": format!("https://localhost:{}/see", webhooks.port)}});
        let url = |path: &str, seconds: u32| {
            format!("Post \"https://localhost:{}/{path}?timeout={seconds}s\"", webhooks.port)
        };
        for (path, more, why) in [
            ("slow", json!({"timeoutSeconds": 1}), format!("failed to call webhook: {}: context deadline exceeded", url("slow", 1))),
            ("broken", json!({}), "failed to call webhook: an error on the server (\"out of order\") has prevented the request from succeeding".into()),
            ("wrong-uid", json!({}), "expected response.uid=".into()),
            ("large", json!({}), format!("failed to call webhook: {}: reading the answer: length limit exceeded", url("large", 10))),
            ("x", nobody, "failed to call webhook: Post \"https://nobody.default.svc:443/x?timeout=10s\": service \"nobody\" not found".into()),
            ("see", stranger, format!("failed to call webhook: {}: tls: invalid peer certificate", url("see", 10))),
        ] {
            let mut more = more;
            configure(&mut server, VALIDATING, "w", json!([webhooks.webhook("w", path, more.clone())])).await;
            let begun = Instant::now();
            let (code, status) = create(&mut server, MAPS, map("m", json!({}))).await;
            let message = status["message"].as_str().unwrap_or_default();
            let expected = format!("Internal error occurred: failed calling webhook \"w.example.com\": {why}");
            assert!(code == 500 && message.starts_with(&expected), "{path}: {code} {message:?}, not {expected:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{path}");
            unconfigure(&mut server, VALIDATING, "w").await;
            more["failurePolicy"] = "Ignore".into();
            configure(&mut server, VALIDATING, "w", json!([webhooks.webhook("w", path, more)])).await;
            let (code, status) = create(&mut server, MAPS, map(&format!("ignored-{path}"), json!({}))).await;
            assert_eq!(code, 201, "{path}: {status}");
            unconfigure(&mut server, VALIDATING, "w").await;
        }
    });
}

#[test]
fn conditions_say_who_is_asked() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        let when = |expressions: &[&str]| {
            let all = expressions.iter().enumerate();
            let all: Vec<_> = all.map(|(i, e)| json!({"name": format!("c{i}"), "expression": e})).collect();
            json!({"matchConditions": all})
        };
        let ignored = |mut of: Value| {
            of["failurePolicy"] = "Ignore".into();
            of
        };
        let of_one = when(&["request.operation == 'CREATE'", "object.metadata.name == 'one'"]);
        let nobody = "authorizer.serviceAccount('default', 'x').group('').resource('secrets').check('get').allowed()";
        let all = json!([
            webhooks.webhook("named", "named", of_one),
            webhooks.webhook("allowed", "allowed", when(&["authorizer.requestResource.check('create').allowed()"])),
            webhooks.webhook("nobody", "nobody", when(&[nobody])),
            // One that does not hold decides, whatever cannot be evaluated; else the policy does.
            webhooks.webhook("decided", "decided", when(&["object.data.absent == ''", "false"])),
            webhooks.webhook("ignored", "ignored", ignored(when(&["object.data.absent == ''"])))
        ]);
        configure(&mut server, VALIDATING, "all", all).await;
        for name in ["one", "two"] {
            assert_eq!(create(&mut server, MAPS, map(name, json!({}))).await.0, 201);
        }
        let asked = |path: &str| {
            webhooks.asked_at(path).iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!((asked("named"), asked("allowed").len()), (vec!["one".to_owned()], 2));
        for path in ["nobody", "decided", "ignored"] {
            assert_eq!(asked(path), Vec::<String>::new(), "{path}");
        }
        unconfigure(&mut server, VALIDATING, "all").await;
        let failing = json!([webhooks.webhook("failing", "failing", when(&["object.data.absent == ''"]))]);
        configure(&mut server, VALIDATING, "failing", failing).await;
        let (code, status) = create(&mut server, MAPS, map("three", json!({}))).await;
        let message = status["message"].as_str().unwrap();
        assert_eq!(code, 403, "{status}");
        assert!(message.contains("resulted in error: no such key"), "{message}");
        let wrong = json!([webhooks.webhook("w", "w", when(&["request.nope == 1"]))]);
        let wrong = json!({"metadata": {"name": "wrong"}, "webhooks": wrong});
        let (code, status) = create(&mut server, VALIDATING, wrong).await;
        let field = &status["details"]["causes"][0]["field"];
        assert_eq!((code, field), (422, &json!("webhooks[0].matchConditions[0].expression")));
    });
}

#[test]
fn rules_and_selectors_say_who_is_asked() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        let labelled = json!({"objectSelector": {"matchLabels": {"ask": "yes"}}});
        let elsewhere = json!({"namespaceSelector": {"matchExpressions": [{"key": "ask", "operator": "Exists"}]}});
        let cluster = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"], "scope": "Cluster"}]});
        let events = json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["events"]}]});
        let exactly = json!({"matchPolicy": "Exact", "rules": events["rules"]});
        let all = json!([
            webhooks.webhook("object", "object", labelled),
            webhooks.webhook("namespace", "namespace", elsewhere),
            webhooks.webhook("cluster", "cluster", cluster),
            webhooks.webhook("events", "events", events),
            webhooks.webhook("exact", "exact", exactly)
        ]);
        configure(&mut server, VALIDATING, "all", all).await;
        let mut labelled = map("labelled", json!({}));
        labelled["metadata"]["labels"] = json!({"ask": "yes"});
        assert_eq!(create(&mut server, MAPS, labelled).await.0, 201);
        assert_eq!(create(&mut server, MAPS, map("plain", json!({}))).await.0, 201);
        let asked = |path: &str| {
            webhooks.asked_at(path).iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            (asked("object"), asked("namespace"), asked("cluster")),
            (vec!["labelled".to_owned()], vec![], vec![])
        );
        let namespace = json!({"metadata": {"name": "asked", "labels": {"ask": ""}}});
        assert_eq!(create(&mut server, "/api/v1/namespaces", namespace).await.0, 201);
        assert_eq!(create(&mut server, "/api/v1/namespaces/asked/configmaps", map("there", json!({}))).await.0, 201);
        // The namespace's own first ConfigMap comes at any time.
        let there: Vec<_> = asked("namespace").into_iter().filter(|name| name != "kube-root-ca.crt").collect();
        assert_eq!((there, asked("cluster")), (vec!["there".to_owned()], vec!["asked".to_owned()]));
        // An event of the newer API is asked about as one of the older, and refused as what the client has sent.
        let event = json!({"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "A", "reason": "R",
            "reportingController": "example.com/c", "reportingInstance": "i", "type": "Normal", "note": "said",
            "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}});
        let (code, status) = create(&mut server, "/apis/events.k8s.io/v1/namespaces/default/events", event).await;
        assert_eq!(code, 201, "{status}");
        let seen = webhooks.asked_at("events");
        assert_eq!(
            (&seen[0]["kind"]["group"], &seen[0]["requestKind"]["group"]),
            (&json!(""), &json!("events.k8s.io"))
        );
        assert_eq!((&seen[0]["object"]["message"], &seen[0]["object"]["apiVersion"]), (&json!("said"), &json!("v1")));
        assert_eq!(asked("exact"), Vec::<String>::new());
    });
}

#[test]
fn warnings_reach_the_client_and_a_slow_webhook_holds_nobody_elses_addresses() {
    on_a_server(async |mut server| {
        let webhooks = Webhooks::start().await;
        configure(&mut server, VALIDATING, "w", json!([webhooks.webhook("w", "warn", json!({}))])).await;
        let asked = Asked {
            method: "POST",
            path: MAPS,
            headers: vec![("content-type".into(), "application/json".into())],
            body: Some(map("m", json!({})).to_string().into_bytes()),
        };
        let answer = server.open(asked).await;
        assert_eq!(answer.headers().get("warning").unwrap(), "299 - \"not so good\"");

        let slow = json!({"timeoutSeconds": 3, "objectSelector": {"matchLabels": {"slow": "yes"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"]}]});
        configure(&mut server, VALIDATING, "slow", json!([webhooks.webhook("slow", "slow", slow)])).await;
        let service = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"ports": [{"port": 80}]}});
        let held = service("held", json!({"slow": "yes"})).to_string().into_bytes();
        let held = Asked {
            method: "POST",
            path: SERVICES,
            headers: vec![("content-type".into(), "application/json".into())],
            body: Some(held),
        };
        let begun = Instant::now();
        let asking = server.open(held);
        tokio::pin!(asking);
        // The request is on its way once nothing more of it is ready.
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut asking).await.is_err());
        let free = service("free", json!({})).to_string().into_bytes();
        let free = Asked {
            method: "POST",
            path: SERVICES,
            headers: vec![("content-type".into(), "application/json".into())],
            body: Some(free),
        };
        assert_eq!(server.open(free).await.status(), 201);
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_eq!(asking.await.status(), 500);
    });
}
