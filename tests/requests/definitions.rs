//! Definitions of custom kinds, from the first request to the last: what clients see of them and of what they bring.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const GROUP: &str = "/apis/stable.example.com";

/// A definition of `Cron` in a group that no other test uses.
fn definition(versions: Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "crons.stable.example.com"},
        "spec": {"group": "stable.example.com", "scope": "Namespaced", "versions": versions,
            "names": {"plural": "crons", "kind": "Cron", "shortNames": ["cr"], "categories": ["all"]}},
    })
}

fn version(name: &str, storage: bool, spec: Value) -> Value {
    json!({
        "name": name, "served": true, "storage": storage,
        "schema": {"openAPIV3Schema": {"type": "object", "description": "A clock.", "properties": {
            "spec": spec,
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}},
        }}},
        "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
        "additionalPrinterColumns": [{"name": "Spec", "type": "string", "jsonPath": ".spec.cronSpec"},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    })
}

fn plain() -> Value {
    json!({"type": "object", "properties": {
        "cronSpec": {"type": "string", "pattern": "^(\\d+|\\*)$"}, "replicas": {"type": "integer", "minimum": 1},
        "color": {"type": "string"}, "image": {"type": "string"},
    }})
}

async fn get(server: &mut Server, path: &str) -> (u16, Value) {
    accepting(server, path, "application/json").await
}

async fn accepting(server: &mut Server, path: &str, accept: &str) -> (u16, Value) {
    let headers = vec![("accept".to_owned(), accept.to_owned())];
    let (status, _, body) = server.ask(Asked { method: "GET", path, headers, body: None }).await;
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()))
}

/// Asks until an answer is as wanted, and for how long.
async fn until(server: &mut Server, path: &str, wanted: impl Fn(u16, &Value) -> bool) -> (Value, Duration) {
    let begun = Instant::now();
    loop {
        let (status, answer) = get(server, path).await;
        if wanted(status, &answer) {
            return (answer, begun.elapsed());
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{path}: {status} {answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn holds(definition: &Value, of_type: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == of_type && c["status"] == "True")
}

/// Creates a definition and waits until it is served.
async fn establish(server: &mut Server, definition: Value) -> Value {
    let path = format!("{DEFINITIONS}/{}", definition["metadata"]["name"].as_str().unwrap());
    let (status, answer) = create(server, DEFINITIONS, definition).await;
    assert_eq!(status, 201, "{answer}");
    let (established, took) = until(server, &path, |_, d| holds(d, "Established")).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    established
}

async fn merge(server: &mut Server, path: &str, patch: Value) -> (u16, Value) {
    send(server, "PATCH", path, "application/merge-patch+json", patch.to_string().into_bytes()).await
}

fn cron(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "Cron", "metadata": {"name": name}, "spec": spec})
}

#[test]
fn a_definition_is_served_once_it_is_established_and_until_nothing_of_it_is_left() {
    on_a_server(async |mut server| {
        let server = &mut server;
        let crons = format!("{GROUP}/v1/namespaces/default/crons");
        assert_eq!(get(server, &crons).await, (404, "404 page not found\n".into()));
        let made = establish(server, definition(json!([version("v1", true, plain())]))).await;
        assert_eq!(
            made["status"]["acceptedNames"],
            json!({"kind": "Cron", "listKind": "CronList", "plural": "crons",
            "singular": "cron", "shortNames": ["cr"], "categories": ["all"]})
        );
        assert_eq!(made["status"]["storedVersions"], json!(["v1"]));

        // What discovery says.
        let (_, groups) = get(server, "/apis").await;
        assert!(groups["groups"].as_array().unwrap().iter().any(|g| g["name"] == "stable.example.com"));
        let (_, resources) = get(server, &format!("{GROUP}/v1")).await;
        let names: Vec<&str> =
            resources["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
        assert_eq!(names, ["crons", "crons/scale", "crons/status"]);
        let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let (_, all) = accepting(server, "/apis", aggregated).await;
        assert!(all.to_string().contains("\"resource\":\"crons\""));

        // Something of it, its table and its end.
        for (name, spec) in [("a", json!({"cronSpec": "5", "color": "red"})), ("b", json!({"color": "blue"}))] {
            assert_eq!(create(server, &crons, cron(name, spec)).await.0, 201);
        }
        let (_, table) = accepting(server, &crons, "application/json;as=Table;g=meta.k8s.io;v=v1").await;
        let columns: Vec<&Value> = table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(columns, ["Name", "Spec", "Age"]);
        assert_eq!(table["rows"][0]["cells"][1], "5");
        let (_, list) = get(server, &crons).await;
        assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("CronList"), &json!("Cron")));
        let (_, selected) = get(server, &format!("{crons}?fieldSelector=spec.color%3Dblue")).await;
        assert_eq!(selected["items"].as_array().unwrap().len(), 1);
        assert_eq!(get(server, &format!("{crons}?fieldSelector=spec.image%3Dx")).await.0, 400);

        // One of them is held: the definition waits for it, and nothing new is made.
        let held = json!({"metadata": {"finalizers": ["example.com/held"]}});
        assert_eq!(merge(server, &format!("{crons}/a"), held).await.0, 200);
        let path = format!("{DEFINITIONS}/crons.stable.example.com");
        let (status, ending) = send(server, "DELETE", &path, "application/json", Vec::new()).await;
        assert_eq!((status, &ending["kind"]), (200, &json!("CustomResourceDefinition")));
        let in_progress = |_: u16, d: &Value| d["status"].to_string().contains("InstanceDeletionInProgress");
        let (ending, _) = until(server, &path, in_progress).await;
        assert!(holds(&ending, "Terminating"));
        until(server, &format!("{crons}/b"), |status, _| status == 404).await;
        let (status, refused) = create(server, &crons, cron("c", json!({}))).await;
        assert_eq!((status, &refused["reason"]), (403, &json!("Forbidden")), "{refused}");
        let released = json!({"metadata": {"finalizers": null}});
        assert_eq!(merge(server, &format!("{crons}/a"), released).await.0, 200);
        until(server, &path, |status, _| status == 404).await;
        until(server, &crons, |status, _| status == 404).await;

        // Its names are free again, and nothing has stayed.
        establish(server, definition(json!([version("v1", true, plain())]))).await;
        assert_eq!(get(server, &crons).await.1["items"], json!([]));
    });
}

/// YAML is told of by lines, in the words of Kubernetes' decoder; an apply is refused for it after all else was right.
async fn says_which_lines_of_yaml_repeat_a_key(server: &mut Server, crons: &str) {
    let yaml = "\napiVersion: stable.example.com/v1\nkind: Cron\nmetadata:\n  name: twice\nspec:\n  color: a\n  color: b\n  unknown: 1\n";
    let lines = "yaml: unmarshal errors:\n  line 8: key \"color\" already set in map";
    let apply = "application/apply-patch+yaml";
    let cases = [
        (
            "POST",
            crons.to_owned(),
            "application/yaml",
            format!("strict decoding error: {lines}, unknown field \"spec.unknown\""),
        ),
        ("PATCH", format!("{crons}/twice"), apply, ".spec.unknown: field not declared in schema".to_owned()),
    ];
    for (method, path, media, expected) in cases {
        let path = format!("{path}?fieldValidation=Strict&fieldManager=m");
        let (status, refused) = send(server, method, &path, media, yaml.into()).await;
        let message = refused["message"].as_str().unwrap();
        assert!(status >= 400 && message.ends_with(&expected), "{message}");
    }
    let known = yaml.replace("  unknown: 1\n", "");
    let path = format!("{crons}/twice?fieldManager=m&fieldValidation=");
    let (status, refused) = send(server, "PATCH", &format!("{path}Strict"), apply, known.clone().into()).await;
    let expected = format!("error strict decoding YAML: error converting YAML to JSON: {lines}");
    assert_eq!((status, &refused["message"]), (400, &json!(expected)));
    let headers = vec![("content-type".to_owned(), apply.to_owned())];
    let asked = Asked { method: "PATCH", path: &format!("{path}Warn"), headers, body: Some(known.into()) };
    let answer = server.open(asked).await;
    let warnings: Vec<&str> = answer.headers().get_all("warning").iter().map(|w| w.to_str().unwrap()).collect();
    assert_eq!(
        (answer.status().as_u16(), warnings),
        (201, vec![r#"299 - "line 8: key \"color\" already set in map""#])
    );
}

#[test]
fn custom_objects_are_pruned_defaulted_checked_and_scaled() {
    on_a_server(async |mut server| {
        let server = &mut server;
        let crons = format!("{GROUP}/v1/namespaces/default/crons");
        establish(server, definition(json!([version("v1", true, plain())]))).await;
        let wrong = cron("a", json!({"cronSpec": "x", "replicas": 0, "color": 5}));
        let (status, refused) = create(server, &crons, wrong).await;
        let causes: Vec<&Value> =
            refused["details"]["causes"].as_array().unwrap().iter().map(|c| &c["message"]).collect();
        let expected = [
            "Invalid value: \"integer\": spec.color in body must be of type string: \"integer\"",
            "Invalid value: \"x\": spec.cronSpec in body should match '^(\\d+|\\*)$'",
            "Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
        ];
        assert_eq!((status, causes), (422, expected.map(Value::from).iter().collect::<Vec<_>>()));

        // Unknown and duplicate fields, also of embedded metadata.
        let twice = r#"{"apiVersion":"stable.example.com/v1","kind":"Cron","metadata":{"name":"a","unknown":1},
            "spec":{"unknown":1,"replicas":1,"replicas":2}}"#;
        let strict = format!("{crons}?fieldValidation=Strict");
        let (status, refused) = send(server, "POST", &strict, "application/json", twice.into()).await;
        let message = refused["message"].as_str().unwrap();
        assert_eq!(status, 400);
        for part in [
            "unknown field \"metadata.unknown\"",
            "unknown field \"spec.unknown\"",
            "duplicate field \"spec.replicas\"",
        ] {
            assert!(message.contains(part), "{message}");
        }
        let (status, made) = send(server, "POST", &crons, "application/json", twice.into()).await;
        assert_eq!((status, &made["spec"]), (201, &json!({"replicas": 2})));
        says_which_lines_of_yaml_repeat_a_key(server, &crons).await;

        // Status and scale.
        let path = format!("{crons}/a");
        let (_, changed) =
            merge(server, &format!("{path}/status"), json!({"status": {"replicas": 3, "selector": "a=b"}})).await;
        assert_eq!((&changed["status"]["replicas"], &changed["metadata"]["generation"]), (&json!(3), &json!(1)));
        let (_, scale) = get(server, &format!("{path}/scale")).await;
        assert_eq!(
            (&scale["spec"], &scale["status"]),
            (&json!({"replicas": 2}), &json!({"replicas": 3, "selector": "a=b"}))
        );
        let (status, _) = merge(server, &format!("{path}/scale"), json!({"spec": {"replicas": 7}})).await;
        let (_, after) = get(server, &path).await;
        assert_eq!((status, &after["spec"]["replicas"], &after["metadata"]["generation"]), (200, &json!(7), &json!(2)));
        assert_eq!(merge(server, &format!("{path}/scale"), json!({"spec": {"replicas": -1}})).await.0, 422);
        assert_eq!(send(server, "PATCH", &path, "application/strategic-merge-patch+json", b"{}".to_vec()).await.0, 415);
        let protobuf = send(server, "POST", &crons, "application/vnd.kubernetes.protobuf", b"k8s\0".to_vec()).await;
        assert!(matches!(protobuf.0, 400 | 415), "{protobuf:?}");

        // What is stored gets the defaults of a new schema, and what was wrong before may stay.
        assert_eq!(merge(server, &path, json!({"spec": {"color": "red"}})).await.0, 200);
        let mut spec = plain();
        spec["properties"]["image"]["default"] = json!("nginx");
        spec["properties"]["color"]["enum"] = json!(["blue"]);
        let versions = json!({"spec": {"versions": [version("v1", true, spec)]}});
        let definition = format!("{DEFINITIONS}/crons.stable.example.com");
        assert_eq!(merge(server, &definition, versions).await.0, 200);
        let (now, took) = until(server, &path, |_, o| o["spec"]["image"] == "nginx").await;
        assert!(took < Duration::from_secs(1) && now["spec"]["color"] == "red", "{took:?} {now}");
        assert_eq!(merge(server, &path, json!({"spec": {"replicas": 8}})).await.0, 200);
        assert_eq!(merge(server, &path, json!({"spec": {"color": "green"}})).await.0, 422);
    });
}

/// What upstream's conformance tests of rules show, and what happens to objects that were there before a rule.
#[test]
fn rules_are_checked_with_the_definition_and_hold_for_its_objects() {
    let with_rules = |rules: Value, x: Value| {
        let spec = json!({"type": "object", "properties": {"x": x, "y": {"type": "integer"}, "color": {"type": "string"}}, "x-kubernetes-validations": rules});
        definition(json!([version("v1", true, spec)]))
    };
    let plain = || json!({"type": "integer"});
    on_a_server(async |mut server| {
        let server = &mut server;
        let crons = format!("{GROUP}/v1/namespaces/default/crons");
        for (rule, x, why) in [
            (json!({"rule": "self.z == 100"}), plain(), "undefined field 'z'"),
            (json!({"rule": "(self.x > 1"}), plain(), "Syntax error: missing ')' at '<EOF>'"),
            (json!({"rule": "self.x"}), plain(), "cel expression must evaluate to a bool"),
            (
                json!({"rule": "self.x.all(s, s == \"string constant\")"}),
                json!({"type": "array", "items": {"type": "array", "items": {"type": "string",
                    "x-kubernetes-validations": [{"rule": "self.matches('a*b*')"}]}}}),
                "exceeds budget",
            ),
        ] {
            let (status, refused) = create(server, DEFINITIONS, with_rules(json!([rule]), x)).await;
            assert_eq!((status, &refused["reason"]), (422, &json!("Invalid")), "{refused}");
            assert!(refused["message"].as_str().unwrap().contains(why), "{refused}");
        }

        let rules =
            json!([{"rule": "self.x + self.y > 0"}, {"rule": "self.y >= oldSelf.y", "message": "y only grows"}]);
        establish(server, with_rules(rules, plain())).await;
        let (status, refused) = create(server, &crons, cron("a", json!({"x": 0, "y": 0}))).await;
        assert_eq!(status, 422);
        assert!(refused["message"].as_str().unwrap().contains("failed rule: self.x + self.y > 0"), "{refused}");
        assert_eq!(refused["details"]["causes"][0]["field"], "spec");
        assert_eq!(create(server, &crons, cron("a", json!({"x": 1, "y": 0}))).await.0, 201);
        let path = format!("{crons}/a");
        assert_eq!(merge(server, &path, json!({"spec": {"y": 5}})).await.0, 200);
        let (status, refused) = merge(server, &path, json!({"spec": {"y": 4}})).await;
        assert_eq!((status, refused["message"].as_str().unwrap().contains("y only grows")), (422, true), "{refused}");
        assert_eq!(merge(server, &format!("{path}/status"), json!({"status": {"replicas": 1}})).await.0, 200);

        // A rule that comes later says nothing of what does not change, but a warning.
        let schema = with_rules(json!([{"rule": "self.y > 100"}]), plain())["spec"]["versions"].clone();
        let of_crons = format!("{DEFINITIONS}/crons.stable.example.com");
        assert_eq!(merge(server, &of_crons, json!({"spec": {"versions": schema}})).await.0, 200);
        let begun = Instant::now();
        while create(server, &crons, cron("probe", json!({"x": 1, "y": 7}))).await.0 == 201 {
            assert!(begun.elapsed() < Duration::from_secs(10), "the rule is not applied");
            send(server, "DELETE", &format!("{crons}/probe"), "application/json", Vec::new()).await;
        }
        let labels = json!({"metadata": {"labels": {"a": "b"}}});
        let headers = vec![("content-type".to_owned(), "application/merge-patch+json".to_owned())];
        let body = Some(labels.to_string().into_bytes());
        let (status, warnings, _) = server.ask(Asked { method: "PATCH", path: &path, headers, body }).await;
        assert_eq!((status, warnings), (200, 1));
        assert_eq!(merge(server, &path, json!({"spec": {"y": 6}})).await.0, 422);
        assert_eq!(merge(server, &path, json!({"spec": {"y": 101}})).await.0, 200);
    });
}

#[test]
fn versions_show_the_same_object_each_in_its_form() {
    on_a_server(async |mut server| {
        let server = &mut server;
        let second = json!({"type": "object", "properties": {"color": {"type": "string"}}});
        let old = json!([version("v1", true, plain()), version("v2", false, second.clone())]);
        establish(server, definition(old)).await;
        let at = |version: &str| format!("{GROUP}/{version}/namespaces/default/crons");
        let object = cron("a", json!({"cronSpec": "5", "color": "red"}));
        assert_eq!(create(server, &at("v1"), object).await.0, 201);
        let (_, other) = get(server, &format!("{}/a", at("v2"))).await;
        assert_eq!((&other["apiVersion"], &other["spec"]), (&json!("stable.example.com/v2"), &json!({"color": "red"})));
        let (_, group) = get(server, GROUP).await;
        assert_eq!(group["preferredVersion"]["version"], "v2");
        let watched = format!("{}?watch=1&fieldSelector=spec.color%3Dred", at("v2"));
        let watch = server.open(Asked { method: "GET", path: &watched, headers: Vec::new(), body: None }).await;
        let frame = tokio::time::timeout(Duration::from_secs(5), watch.into_body().frame()).await.unwrap();
        let event: Value = serde_json::from_slice(&frame.unwrap().unwrap().into_data().unwrap()).unwrap();
        assert_eq!(
            (&event["type"], &event["object"]["apiVersion"]),
            (&json!("ADDED"), &json!("stable.example.com/v2"))
        );

        // Who watches a version that is no longer served is told that this is the end.
        let of_first =
            format!("{}?watch=1&resourceVersion={}", at("v1"), other["metadata"]["resourceVersion"].as_str().unwrap());
        let first_watch = server.open(Asked { method: "GET", path: &of_first, headers: Vec::new(), body: None }).await;

        // The stored version changes, the first is no longer served.
        let mut first = version("v1", false, plain());
        first["served"] = json!(false);
        let new = json!({"spec": {"versions": [first, version("v2", true, second)]}});
        let path = format!("{DEFINITIONS}/crons.stable.example.com");
        let (status, changed) = merge(server, &path, new).await;
        assert_eq!((status, &changed["status"]["storedVersions"]), (200, &json!(["v1", "v2"])));
        until(server, &at("v1"), |status, _| status == 404).await;
        let mut body = first_watch.into_body();
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        assert!(tokio::time::timeout(Duration::from_secs(5), rest).await.is_ok(), "the watch goes on");
        let (_, list) = get(server, &at("v2")).await;
        assert_eq!(list["items"][0]["spec"], json!({"color": "red"}));
        let gone = json!({"spec": {"versions": [version("v2", true, plain())]}});
        assert_eq!(merge(server, &path, gone).await.0, 422, "some objects may be stored in it");
    });
}

#[test]
fn definitions_are_published_in_both_documents_while_they_are_served() {
    on_a_server(async |mut server| {
        let server = &mut server;
        establish(server, definition(json!([version("v1", true, plain())]))).await;
        let (_, index) = get(server, "/openapi/v3").await;
        let url = index["paths"]["apis/stable.example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
        let (_, third) = get(server, &url).await;
        let name = "com.example.stable.v1.Cron";
        let schemas = &third["components"]["schemas"];
        assert_eq!(schemas[name]["description"], "A clock.");
        assert_eq!(schemas[name]["properties"]["spec"], plain());
        assert_eq!(schemas[name]["x-kubernetes-group-version-kind"][0]["kind"], "Cron");
        assert_eq!(schemas[name]["x-kubernetes-selectable-fields"], json!([{"fieldPath": "spec.color"}]));
        assert!(schemas["com.example.stable.v1.CronList"]["properties"]["items"].is_object());
        assert!(schemas["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
        let (_, second) = get(server, "/openapi/v2").await;
        let mut of_second = second["definitions"][name].clone();
        assert_eq!(of_second["properties"]["spec"], plain());
        for added in ["apiVersion", "kind", "metadata"] {
            assert!(of_second["properties"].as_object_mut().unwrap().remove(added).is_some());
        }
        assert_eq!(of_second["properties"].as_object().unwrap().len(), 2);
        let spec = format!("{DEFINITIONS}/crons.stable.example.com");
        assert_eq!(send(server, "DELETE", &spec, "application/json", Vec::new()).await.0, 200);
        until(server, "/openapi/v3", |_, index| index["paths"].get("apis/stable.example.com/v1").is_none()).await;
        assert!(get(server, "/openapi/v2").await.1["definitions"].get(name).is_none());
    });
}

#[test]
fn a_name_that_is_taken_is_waited_for() {
    on_a_server(async |mut server| {
        let server = &mut server;
        establish(server, definition(json!([version("v1", true, plain())]))).await;
        let mut other = definition(json!([version("v1", true, plain())]));
        other["metadata"]["name"] = json!("others.stable.example.com");
        other["spec"]["names"] = json!({"plural": "others", "kind": "Other", "shortNames": ["cr"]});
        assert_eq!(create(server, DEFINITIONS, other).await.0, 201);
        let path = format!("{DEFINITIONS}/others.stable.example.com");
        let is_refused = |_: u16, d: &Value| d["status"]["conditions"][0]["reason"] == "ShortNamesConflict";
        let (refused, _) = until(server, &path, is_refused).await;
        assert_eq!(refused["status"]["conditions"][0]["message"], "\"cr\" is already in use");
        let others = format!("{GROUP}/v1/namespaces/default/others");
        assert_eq!(get(server, &others).await.0, 404);
        let first = format!("{DEFINITIONS}/crons.stable.example.com");
        assert_eq!(send(server, "DELETE", &first, "application/json", Vec::new()).await.0, 200);
        until(server, &path, |_, d| holds(d, "Established")).await;
        assert_eq!(get(server, &others).await.0, 200);
    });
}

#[test]
fn groups_of_kubernetes_and_kinds_of_the_server_are_not_given_away() {
    on_a_server(async |mut server| {
        let server = &mut server;
        let mut taken = definition(json!([version("v1", true, plain())]));
        taken["metadata"]["name"] = json!("ingresses.networking.k8s.io");
        taken["spec"]["group"] = json!("networking.k8s.io");
        taken["spec"]["names"] = json!({"plural": "ingresses", "kind": "Ingress"});
        let (status, refused) = create(server, DEFINITIONS, taken.clone()).await;
        assert_eq!(status, 422, "{refused}");
        taken["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, a test"});
        assert_eq!(create(server, DEFINITIONS, taken).await.0, 201);
        let path = format!("{DEFINITIONS}/ingresses.networking.k8s.io");
        until(server, &path, |_, d| d["status"]["conditions"].is_array()).await;
        let (_, resources) = get(server, "/apis/networking.k8s.io/v1").await;
        let all = resources["resources"].as_array().unwrap();
        let entry = all.iter().find(|r| r["name"] == "ingresses").map(|r| r["verbs"][0].clone());
        assert!(entry.is_none_or(|verb| verb == "create"), "the server's own kind is served");
        assert_eq!(send(server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
        until(server, &path, |status, _| status == 404).await;
    });
}

#[test]
fn a_thousand_definitions_cost_little() {
    let _alone = super::memory::alone();
    on_a_server(async |mut server| {
        let server = &mut server;
        let before = super::memory::held_bytes();
        for i in 0..1000 {
            let mut one = definition(json!([version("v1", true, plain())]));
            one["spec"]["group"] = json!(format!("g{}.example.com", i % 20));
            one["spec"]["names"] = json!({"plural": format!("k{i}s"), "kind": format!("K{i}")});
            one["metadata"]["name"] = json!(format!("k{i}s.g{}.example.com", i % 20));
            let (status, answer) = create(server, DEFINITIONS, one).await;
            assert_eq!(status, 201, "{answer}");
        }
        until(server, &format!("{DEFINITIONS}/k999s.g19.example.com"), |_, d| holds(d, "Established")).await;
        let made = super::memory::held_bytes().saturating_sub(before);
        let begun = Instant::now();
        for i in 0..100 {
            let path = format!("/apis/g{}.example.com/v1/namespaces/default/k{i}s", i % 20);
            assert_eq!(get(server, &path).await.0, 200);
        }
        let each = begun.elapsed() / 100;
        println!("{} MiB, {each:?} a list", made >> 20);
        // Without optimization, beside whatever else runs.
        assert!(made < 150 << 20 && each < Duration::from_millis(50), "{} MiB, {each:?}", made >> 20);
    });
}
