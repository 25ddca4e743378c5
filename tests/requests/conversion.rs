//! Custom objects in several versions, which a webhook over TLS converts: what clients of each version see and write, what the
//! webhook is asked, and what its failures mean.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::https::Https;
use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const DEFINITION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/links.conv.example.com";
const V1: &str = "/apis/conv.example.com/v1/namespaces/default/links";
const V2: &str = "/apis/conv.example.com/v2/namespaces/default/links";
const MERGE: &str = "application/merge-patch+json";

/// A server that converts links: in v1 they have `spec.hostPort`, in v2 `spec.host` and `spec.port`.
struct Converter {
    https: Https,
    /// The requests of all reviews.
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Converter {
    async fn start() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = asked.clone();
        let https = Https::start(move |path, review| answer(path, review, all.clone())).await;
        Self { https, asked }
    }

    fn configuration(&self, path: &str) -> Value {
        let url = format!("https://localhost:{}/{path}", self.https.port);
        json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1", "v1beta1"],
            "clientConfig": {"url": url, "caBundle": self.https.ca_bundle}}})
    }

    /// What was asked since this was asked last.
    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

async fn answer(path: String, review: Value, asked: Arc<Mutex<Vec<Value>>>) -> (u16, String) {
    let request = review["request"].clone();
    asked.lock().unwrap().push(request.clone());
    let objects = request["objects"].as_array().unwrap().iter();
    let mut objects: Vec<Value> = objects.map(|object| converted(object, &request["desiredAPIVersion"])).collect();
    let mut response = json!({"uid": request["uid"], "result": {"status": "Success"}});
    match path.as_str() {
        "fail" => response["result"] = json!({"status": "Failure", "message": "no way back"}),
        "silent" => response["result"] = json!({"status": "Failure"}),
        "rename" => objects.iter_mut().for_each(|object| object["metadata"]["name"] = "other".into()),
        "move" => objects.iter_mut().for_each(|object| object["metadata"]["namespace"] = "kube-system".into()),
        "replace" => objects.iter_mut().for_each(|object| object["metadata"]["uid"] = "1".into()),
        "other-kind" => objects.iter_mut().for_each(|object| object["kind"] = "Pod".into()),
        "same-version" => objects = request["objects"].as_array().unwrap().clone(),
        "label" => objects.iter_mut().for_each(|object| object["metadata"]["labels"] = json!({"a b": "c"})),
        "number" => objects.iter_mut().for_each(|object| object["metadata"]["annotations"] = json!({"a": 1})),
        // All that it may not change, and the two that it may.
        "metadata" => objects.iter_mut().for_each(|object| {
            object["metadata"]["labels"] =
                json!({"version": request["desiredAPIVersion"].as_str().unwrap().rsplit('/').next()});
            object["metadata"]["annotations"] = json!({"seen": "yes"});
            object["metadata"]["finalizers"] = json!(["example.com/never"]);
            object["metadata"]["generation"] = 77.into();
        }),
        "few" => drop(objects.pop()),
        "uid" => response["uid"] = "x".into(),
        "large" => objects.iter_mut().for_each(|object| object["spec"]["note"] = "x".repeat(2 << 20).into()),
        "broken" => return (500, "out of order".to_owned()),
        "slow" => tokio::time::sleep(Duration::from_secs(20)).await,
        _ => {}
    }
    response["convertedObjects"] = objects.into();
    let answer = json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response});
    (200, answer.to_string())
}

fn converted(object: &Value, wanted: &Value) -> Value {
    let mut new = object.clone();
    new["apiVersion"] = wanted.clone();
    let Some(spec) = new["spec"].as_object_mut() else { return new };
    if wanted == "conv.example.com/v2" {
        if let Some(both) = spec.remove("hostPort") {
            let (host, port) = both.as_str().unwrap().split_once(':').unwrap();
            spec.insert("host".into(), host.into());
            spec.insert("port".into(), port.into());
        }
    } else {
        let (host, port) = (spec.remove("host"), spec.remove("port"));
        if let (Some(host), Some(port)) = (host, port) {
            spec.insert("hostPort".into(), format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap()).into());
        }
    }
    new
}

fn definition(conversion: Value, storage: &str) -> Value {
    let version = |name: &str, fields: &[&str]| {
        let text = json!({"type": "string"});
        let mut spec = json!({"replicas": {"type": "integer"}, "note": text.clone()});
        fields.iter().for_each(|field| spec[*field] = text.clone());
        let columns: Vec<Value> =
            fields.iter().map(|f| json!({"name": f, "type": "string", "jsonPath": format!(".spec.{f}")})).collect();
        let selectable: Vec<Value> = fields.iter().map(|f| json!({"jsonPath": format!(".spec.{f}")})).collect();
        json!({
            "name": name, "served": true, "storage": name == storage,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "properties": spec},
                "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "phase": text}}}}},
            "subresources": {"status": {},
                "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
            "additionalPrinterColumns": columns, "selectableFields": selectable,
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "links.conv.example.com"},
        "spec": {"group": "conv.example.com", "scope": "Namespaced", "conversion": conversion,
            "names": {"plural": "links", "kind": "Link", "listKind": "LinkList"},
            "versions": [version("v1", &["hostPort"]), version("v2", &["host", "port"])]},
    })
}

fn one(name: &str, host_port: &str) -> Value {
    json!({"apiVersion": "conv.example.com/v1", "kind": "Link", "metadata": {"name": name}, "spec": {"hostPort": host_port}})
}

fn two(name: &str, host: &str, port: &str) -> Value {
    json!({"apiVersion": "conv.example.com/v2", "kind": "Link", "metadata": {"name": name},
        "spec": {"host": host, "port": port}})
}

async fn get(server: &mut Server, path: &str) -> (u16, Value) {
    accepting(server, path, "application/json").await
}

async fn accepting(server: &mut Server, path: &str, accept: &str) -> (u16, Value) {
    let headers = vec![("accept".to_owned(), accept.to_owned())];
    let (status, _, body) = server.ask(Asked { method: "GET", path, headers, body: None }).await;
    (status, serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into()))
}

async fn table(server: &mut Server, path: &str) -> Value {
    accepting(server, path, "application/json;as=Table;g=meta.k8s.io;v=v1").await.1
}

async fn patch(server: &mut Server, path: &str, media: &str, patch: Value) -> (u16, Value) {
    send(server, "PATCH", path, media, patch.to_string().into_bytes()).await
}

/// Creates the definition and waits until both versions are served.
async fn establish(server: &mut Server, conversion: Value, storage: &str) {
    let (status, answer) = create(server, DEFINITIONS, definition(conversion, storage)).await;
    assert_eq!(status, 201, "{answer}");
    let begun = Instant::now();
    while get(server, V1).await.0 != 200 || get(server, V2).await.0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Changes the definition and waits until that has come to its kinds.
async fn change(server: &mut Server, conversion: &Value, storage: &str) {
    let mut spec = definition(conversion.clone(), storage)["spec"].take();
    if let Some(config) = spec.pointer_mut("/conversion/webhook/clientConfig").and_then(Value::as_object_mut) {
        config.entry("url").or_insert(Value::Null);
        config.entry("service").or_insert(Value::Null);
    }
    let (status, changed) = patch(server, DEFINITION, MERGE, json!({"spec": spec})).await;
    assert_eq!(status, 200, "{changed}");
    let begun = Instant::now();
    loop {
        let kinds = server.api.kinds.snapshot();
        let kind = kinds.by_plural("conv.example.com", "v1", "links").unwrap();
        if kind.stored().version() == storage && kind.is_converted_by_webhook() == (conversion["strategy"] == "Webhook")
        {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn specs(list: &Value) -> Vec<(&str, &Value)> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| (item["apiVersion"].as_str().unwrap(), &item["spec"])).collect()
}

#[test]
fn each_client_sees_and_writes_its_own_version() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        let (status, made) = create(server, V2, two("b", "beta", "2")).await;
        assert_eq!(
            (status, &made["spec"], &made["apiVersion"]),
            (201, &json!({"host": "beta", "port": "2"}), &json!("conv.example.com/v2")),
            "{made}"
        );
        let asked = converter.take();
        assert_eq!(asked.len(), 2, "into the form that is stored and back: {asked:?}");
        assert_eq!(asked[0]["desiredAPIVersion"], "conv.example.com/v1");
        let sent = &asked[0]["objects"][0];
        assert_eq!(
            (&sent["apiVersion"], &sent["kind"], &sent["spec"]),
            (&json!("conv.example.com/v2"), &json!("Link"), &json!({"host": "beta", "port": "2"}))
        );
        assert!(sent["metadata"]["uid"].is_string() && sent["metadata"].get("resourceVersion").is_none(), "{sent}");
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        assert!(converter.take().is_empty(), "what is stored so needs nobody");

        let (_, first) = get(server, &format!("{V1}/b")).await;
        assert_eq!(
            (&first["spec"], &first["apiVersion"]),
            (&json!({"hostPort": "beta:2"}), &json!("conv.example.com/v1"))
        );
        assert_eq!(first["metadata"]["uid"], made["metadata"]["uid"]);
        assert_eq!(first["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        assert!(converter.take().is_empty());
        let (_, list) = get(server, V2).await;
        let (a, b) = (json!({"host": "alpha", "port": "1"}), json!({"host": "beta", "port": "2"}));
        let version = "conv.example.com/v2";
        assert_eq!((list["kind"].as_str(), specs(&list)), (Some("LinkList"), vec![(version, &a), (version, &b)]));
        let asked = converter.take();
        assert_eq!(asked.iter().map(|r| r["objects"].as_array().unwrap().len()).collect::<Vec<_>>(), [2]);

        // Fields are selected as they are in the version that is asked for.
        let (_, list) = get(server, &format!("{V2}?fieldSelector=spec.host%3Dbeta")).await;
        assert_eq!(specs(&list), [(version, &b)]);
        assert_eq!(get(server, &format!("{V1}?fieldSelector=spec.host%3Dbeta")).await.0, 400);
        let (_, page) = get(server, &format!("{V2}?limit=1")).await;
        assert_eq!((specs(&page), &page["metadata"]["remainingItemCount"]), (vec![(version, &a)], &json!(1)));
        let next = page["metadata"]["continue"].as_str().unwrap();
        assert_eq!(specs(&get(server, &format!("{V2}?limit=1&continue={next}")).await.1), [(version, &b)]);
        let (_, page) = get(server, &format!("{V2}?limit=1&fieldSelector=spec.host%3Dbeta")).await;
        assert_eq!(specs(&page), [(version, &b)], "pages have what is meant");

        // Many are asked about at once, but not all.
        for i in 0..260 {
            assert_eq!(create(server, V1, one(&format!("c{i:03}"), "gamma:3")).await.0, 201);
        }
        converter.take();
        let (_, list) = get(server, V2).await;
        let hosts = specs(&list).into_iter().filter(|(_, spec)| spec["host"] == "gamma").count();
        let asked = converter.take();
        let asked: Vec<usize> = asked.iter().map(|r| r["objects"].as_array().unwrap().len()).collect();
        assert_eq!((hosts, asked), (260, vec![250, 12]));

        // In other shapes.
        let shown = table(server, V2).await;
        let cells: Vec<&Value> = shown["rows"].as_array().unwrap().iter().map(|row| &row["cells"]).collect();
        assert_eq!(cells[..2], [&json!(["a", "alpha", "1"]), &json!(["b", "beta", "2"])]);
        assert_eq!(table(server, &format!("{V1}/b")).await["rows"][0]["cells"], json!(["b", "beta:2"]));
        let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accepting(server, V2, partial).await.1["items"][1]["metadata"]["name"], "b");
        let yaml = accepting(server, V2, "application/yaml").await.1;
        assert!(yaml.as_str().unwrap().contains("host: alpha\n"), "{yaml}");
    });
}

#[test]
fn changes_of_every_kind_are_made_in_the_version_of_their_client() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        let (first, second) = (format!("{V1}/a"), format!("{V2}/a"));
        let (status, merged) = patch(server, &second, MERGE, json!({"spec": {"port": "2"}})).await;
        assert_eq!((status, &merged["spec"]), (200, &json!({"host": "alpha", "port": "2"})), "{merged}");
        let operations = json!([{"op": "test", "path": "/spec/host", "value": "alpha"}, {"op": "replace", "path": "/spec/port", "value": "3"}]);
        assert_eq!(patch(server, &second, "application/json-patch+json", operations).await.0, 200);
        assert_eq!(get(server, &first).await.1["spec"], json!({"hostPort": "alpha:3"}));
        let mut whole = get(server, &second).await.1;
        whole["spec"]["host"] = "gamma".into();
        let (status, put) = send(server, "PUT", &second, "application/json", whole.to_string().into_bytes()).await;
        assert_eq!(
            (status, &put["spec"]["host"], &put["metadata"]["generation"]),
            (200, &json!("gamma"), &json!(4)),
            "{put}"
        );
        let (status, again) = send(server, "PUT", &second, "application/json", whole.to_string().into_bytes()).await;
        assert_eq!((status, &again["reason"]), (409, &json!("Conflict")));

        let status_of = format!("{second}/status");
        let (status, changed) =
            patch(server, &status_of, MERGE, json!({"spec": {"host": "no"}, "status": {"phase": "Up", "replicas": 2}}))
                .await;
        assert_eq!(
            (status, &changed["spec"]["host"], &changed["status"]["phase"]),
            (200, &json!("gamma"), &json!("Up")),
            "{changed}"
        );
        assert_eq!(get(server, &status_of).await.1["spec"], json!({"host": "gamma", "port": "3"}));
        let scale_of = format!("{second}/scale");
        let (status, scaled) = patch(server, &scale_of, MERGE, json!({"spec": {"replicas": 5}})).await;
        assert_eq!(
            (status, &scaled["spec"]["replicas"], &scaled["status"]["replicas"]),
            (200, &json!(5), &json!(2)),
            "{scaled}"
        );
        assert_eq!(get(server, &scale_of).await.1["spec"]["replicas"], 5);
        assert_eq!(get(server, &first).await.1["spec"], json!({"hostPort": "gamma:3", "replicas": 5}));

        // Trials are shown in the version that was asked for, and change nothing.
        let (status, tried) =
            patch(server, &format!("{second}?dryRun=All"), MERGE, json!({"spec": {"host": "delta"}})).await;
        assert_eq!((status, &tried["spec"]["host"]), (200, &json!("delta")), "{tried}");
        assert_eq!(get(server, &second).await.1["spec"]["host"], "gamma");

        // What is held is shown as it waits, in the version that was asked for.
        assert_eq!(patch(server, &second, MERGE, json!({"metadata": {"finalizers": ["example.com/x"]}})).await.0, 200);
        let (status, held) = send(server, "DELETE", &second, "application/json", Vec::new()).await;
        assert_eq!(
            (status, &held["spec"]["host"], held["metadata"]["deletionTimestamp"].is_string()),
            (200, &json!("gamma"), true),
            "{held}"
        );
        assert_eq!(patch(server, &second, MERGE, json!({"metadata": {"finalizers": null}})).await.0, 200);
        assert_eq!(get(server, &second).await.0, 404);
        assert_eq!(create(server, V2, two("b", "beta", "2")).await.0, 201);
        let (status, gone) = send(server, "DELETE", V2, "application/json", Vec::new()).await;
        assert_eq!((status, specs(&gone)), (200, vec![("conv.example.com/v2", &json!({"host": "beta", "port": "2"}))]));
    });
}

#[test]
fn objects_stay_in_the_version_in_which_they_were_written_until_they_are_written_again() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        let configuration = converter.configuration("convert");
        establish(server, configuration.clone(), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        change(server, &configuration, "v2").await;
        assert_eq!(get(server, DEFINITION).await.1["status"]["storedVersions"], json!(["v1", "v2"]));
        assert_eq!(create(server, V2, two("b", "beta", "2")).await.0, 201);
        converter.take();
        let (first, second) = ("conv.example.com/v1", "conv.example.com/v2");
        let (_, list) = get(server, V1).await;
        assert_eq!(specs(&list), [(first, &json!({"hostPort": "alpha:1"})), (first, &json!({"hostPort": "beta:2"}))]);
        let asked = converter.take();
        assert_eq!((asked.len(), &asked[0]["objects"][0]["metadata"]["name"]), (1, &json!("b")), "only what is not so");
        let (_, list) = get(server, V2).await;
        let (a, b) = (json!({"host": "alpha", "port": "1"}), json!({"host": "beta", "port": "2"}));
        assert_eq!(specs(&list), [(second, &a), (second, &b)]);
        assert_eq!(converter.take()[0]["objects"][0]["metadata"]["name"], "a");

        // A write that changes nothing brings it into today's form.
        let before = get(server, &format!("{V1}/a")).await.1;
        let (status, same) =
            send(server, "PUT", &format!("{V1}/a"), "application/json", before.to_string().into_bytes()).await;
        assert_eq!((status, &same["spec"]), (200, &json!({"hostPort": "alpha:1"})));
        assert_ne!(same["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
        assert_eq!(same["metadata"]["generation"], before["metadata"]["generation"]);
        converter.take();
        assert_eq!(get(server, &format!("{V2}/a")).await.1["spec"], a);
        assert!(converter.take().is_empty());
        let again = send(server, "PUT", &format!("{V1}/a"), "application/json", same.to_string().into_bytes()).await.1;
        assert_eq!(again["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"], "now it is so");
    });
}

#[test]
fn without_a_webhook_objects_keep_what_their_own_version_describes() {
    on_a_server(async |mut server| {
        let server = &mut server;
        let none = json!({"strategy": "None"});
        establish(server, none.clone(), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        change(server, &none, "v2").await;
        assert_eq!(create(server, V2, two("b", "beta", "2")).await.0, 201);
        let (_, list) = get(server, V1).await;
        assert_eq!(
            specs(&list),
            [("conv.example.com/v1", &json!({"hostPort": "alpha:1"})), ("conv.example.com/v1", &json!({}))]
        );
        let (_, list) = get(server, V2).await;
        assert_eq!(
            specs(&list),
            [("conv.example.com/v2", &json!({})), ("conv.example.com/v2", &json!({"host": "beta", "port": "2"}))]
        );
        assert_eq!(get(server, &format!("{V2}/a")).await.1["apiVersion"], "conv.example.com/v2");
    });
}

/// The next events of a watch, each with its type and what is shown.
async fn events(body: &mut hyper::body::Incoming, count: usize) -> Vec<Value> {
    let (mut all, mut text) = (Vec::new(), Vec::new());
    while all.len() < count {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("an event");
        let Some(frame) = frame else { break };
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            all.push(serde_json::from_slice(&line).unwrap());
        }
    }
    all
}

async fn watch(server: &Server, path: &str) -> hyper::body::Incoming {
    server.open(Asked { method: "GET", path, headers: Vec::new(), body: None }).await.into_body()
}

#[test]
fn watches_show_their_own_version_and_end_where_it_cannot_be_made() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        let initial = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let mut all = watch(server, &format!("{V2}?{initial}")).await;
        let seen = events(&mut all, 2).await;
        assert_eq!(
            (&seen[0]["type"], &seen[0]["object"]["spec"]),
            (&json!("ADDED"), &json!({"host": "alpha", "port": "1"}))
        );
        assert_eq!(
            (&seen[1]["type"], &seen[1]["object"]["apiVersion"]),
            (&json!("BOOKMARK"), &json!("conv.example.com/v2"))
        );
        let mut beta = watch(server, &format!("{V2}?watch=1&fieldSelector=spec.host%3Dbeta")).await;
        assert_eq!(create(server, V2, two("b", "beta", "2")).await.0, 201);
        assert_eq!(patch(server, &format!("{V1}/b"), MERGE, json!({"spec": {"hostPort": "gamma:2"}})).await.0, 200);
        assert_eq!(send(server, "DELETE", &format!("{V1}/b"), "application/json", Vec::new()).await.0, 200);
        let seen = events(&mut all, 3).await;
        let told: Vec<(&str, &str)> =
            seen.iter().map(|e| (e["type"].as_str().unwrap(), e["object"]["spec"]["host"].as_str().unwrap())).collect();
        assert_eq!(told, [("ADDED", "beta"), ("MODIFIED", "gamma"), ("DELETED", "gamma")]);
        let seen = events(&mut beta, 2).await;
        let told: Vec<(&str, &str)> =
            seen.iter().map(|e| (e["type"].as_str().unwrap(), e["object"]["spec"]["host"].as_str().unwrap())).collect();
        assert_eq!(told, [("ADDED", "beta"), ("DELETED", "beta")], "it left what is selected");

        // A watch of what needs no conversion goes on without the webhook.
        change(server, &converter.configuration("fail"), "v1").await;
        let (mut first, mut second) =
            (watch(server, &format!("{V1}?watch=1")).await, watch(server, &format!("{V2}?watch=1")).await);
        assert_eq!(events(&mut first, 1).await[0]["object"]["spec"], json!({"hostPort": "alpha:1"}));
        let failed = &events(&mut second, 2).await;
        let words = "conversion webhook for conv.example.com/v1, Kind=Link failed: no way back";
        assert_eq!(
            (failed.len(), &failed[0]["type"], &failed[0]["object"]["message"]),
            (1, &json!("ERROR"), &json!(words))
        );
        assert_eq!((&failed[0]["object"]["code"], &failed[0]["object"]["status"]), (&json!(500), &json!("Failure")));
    });
}

#[test]
fn what_a_webhook_does_wrong_is_told_in_kubernetes_words() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        let uid = get(server, &format!("{V1}/a")).await.1["metadata"]["uid"].as_str().unwrap().to_owned();
        let port = converter.https.port;
        for (path, why) in [
            ("fail", "failed: no way back".to_owned()),
            ("silent", "failed: response.result.status was 'Failure', not 'Success'".into()),
            ("rename", "returned invalid object: must have the same name: a != other".into()),
            ("move", "returned invalid object: must have the same namespace: default != kube-system".into()),
            ("replace", format!("returned invalid object: must have the same UID: {uid} != 1")),
            ("other-kind", "returned invalid object at index 0: invalid kind (expected Link, received Pod)".into()),
            ("same-version", "returned invalid object at index 0: invalid groupVersion (expected conv.example.com/v2, received conv.example.com/v1)".into()),
            ("label", "returned invalid metadata: metadata.labels: Invalid value: \"a b\": name part must consist of".into()),
            ("number", "returned invalid metadata: metadata.annotations[a] must be a string, but is int64 in converted object".into()),
            ("few", "returned 0 objects, expected 1".into()),
            ("uid", "failed: expected response.uid=".into()),
            ("large", format!("failed: Post \"https://localhost:{port}/large?timeout=30s\": reading the answer: length limit exceeded")),
            ("broken", "failed: an error on the server (\"out of order\") has prevented the request from succeeding".into()),
        ] {
            change(server, &converter.configuration(path), "v1").await;
            for asked in [format!("{V2}/a"), V2.to_owned(), format!("{V2}/a/scale")] {
                let (status, failed) = get(server, &asked).await;
                let message = failed["message"].as_str().unwrap_or_default();
                let expected = format!("conversion webhook for conv.example.com/v1, Kind=Link {why}");
                assert!(status == 500 && message.starts_with(&expected), "{asked}: {status} {message:?}, not {expected:?}");
                assert_eq!((&failed["status"], failed.get("reason")), (&json!("Failure"), None));
            }
            // Nothing is written, nothing is deleted, and the stored version is there.
            assert_eq!(create(server, V2, two("b", "beta", "2")).await.0, 500, "{path}");
            assert_eq!(patch(server, &format!("{V2}/a"), MERGE, json!({"spec": {"port": "9"}})).await.0, 500, "{path}");
            assert_eq!(send(server, "DELETE", &format!("{V2}/a"), "application/json", Vec::new()).await.0, 500, "{path}");
            assert_eq!(get(server, &format!("{V1}/a")).await.1["spec"], json!({"hostPort": "alpha:1"}), "{path}");
            assert_eq!(get(server, &format!("{V1}/b")).await.0, 404, "{path}");
        }
        let mut unknown = converter.configuration("convert");
        unknown["webhook"]["clientConfig"] =
            json!({"service": {"name": "nobody", "namespace": "default", "path": "/x"}});
        change(server, &unknown, "v1").await;
        let (status, failed) = get(server, &format!("{V2}/a")).await;
        let expected = "conversion webhook for conv.example.com/v1, Kind=Link failed: Post \"https://nobody.default.svc:443/x?timeout=30s\": service \"nobody\" not found";
        assert_eq!((status, &failed["message"]), (500, &json!(expected)));

        // What belongs to the server stays as it is.
        change(server, &converter.configuration("metadata"), "v1").await;
        let (_, seen) = get(server, &format!("{V2}/a")).await;
        let metadata = &seen["metadata"];
        assert_eq!(
            (&metadata["labels"], &metadata["annotations"]),
            (&json!({"version": "v2"}), &json!({"seen": "yes"}))
        );
        assert_eq!((metadata.get("finalizers"), &metadata["generation"]), (None, &json!(1)));
        let (_, list) = get(server, &format!("{V2}?labelSelector=version%3Dv2")).await;
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "as they are in the version that is asked for");
    });
}

#[test]
fn the_servers_own_parts_ask_nobody() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        let (_, owner) = create(server, super::bodies::MAPS, json!({"metadata": {"name": "owner"}})).await;
        for name in ["orphan", "dependent"] {
            let mut link = one(name, "alpha:1");
            link["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner",
                "uid": owner["metadata"]["uid"]}]);
            assert_eq!(create(server, V1, link).await.0, 201);
        }
        assert_eq!(send(server, "DELETE", &format!("{V1}/dependent"), "application/json", Vec::new()).await.0, 200);
        change(server, &converter.configuration("broken"), "v2").await;
        converter.take();
        let orphan = json!({"propagationPolicy": "Orphan"}).to_string().into_bytes();
        let map = format!("{}/owner", super::bodies::MAPS);
        assert_eq!(send(server, "DELETE", &map, "application/json", orphan).await.0, 200);
        until(server, &map, |status, _| status == 404).await;
        let (_, left) = get(server, &format!("{V1}/orphan")).await;
        assert_eq!((left["metadata"].get("ownerReferences"), &left["spec"]), (None, &json!({"hostPort": "alpha:1"})));

        // What has an owner goes with it, and so does a namespace with what is in it.
        let (_, owner) = create(server, super::bodies::MAPS, json!({"metadata": {"name": "owner"}})).await;
        let owners = json!({"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner",
            "uid": owner["metadata"]["uid"]}]}});
        change(server, &converter.configuration("convert"), "v1").await;
        assert_eq!(patch(server, &format!("{V1}/orphan"), MERGE, owners).await.0, 200);
        assert_eq!(create(server, "/api/v1/namespaces", json!({"metadata": {"name": "full"}})).await.0, 201);
        let there = V1.replace("default", "full");
        assert_eq!(create(server, &there, one("a", "alpha:1")).await.0, 201);
        change(server, &converter.configuration("broken"), "v2").await;
        converter.take();
        assert_eq!(send(server, "DELETE", &map, "application/json", Vec::new()).await.0, 200);
        assert_eq!(send(server, "DELETE", "/api/v1/namespaces/full", "application/json", Vec::new()).await.0, 200);
        until(server, &format!("{V1}/orphan"), |status, _| status == 404).await;
        until(server, "/api/v1/namespaces/full", |status, _| status == 404).await;
        assert_eq!(send(server, "DELETE", DEFINITION, "application/json", Vec::new()).await.0, 200);
        until(server, DEFINITION, |status, _| status == 404).await;
        assert_eq!(converter.take(), [Value::Null; 0]);
    });
}

/// Asks until an answer is as wanted.
async fn until(server: &mut Server, path: &str, wanted: impl Fn(u16, &Value) -> bool) {
    let begun = Instant::now();
    loop {
        let (status, answer) = get(server, path).await;
        if wanted(status, &answer) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{path}: {status} {answer}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn a_slow_webhook_keeps_nobody_but_who_asked_it() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("slow"), "v1").await;
        assert_eq!(create(server, V1, one("a", "alpha:1")).await.0, 201);
        let slow: Vec<_> = (0..4)
            .map(|i| {
                let channel = server.channel();
                let path = if i == 0 { format!("{V2}?watch=1") } else { format!("{V2}/a") };
                amphipod::base::task::spawn("slow", async move {
                    let answer = channel.send(http::Request::get(path).body(Default::default()).unwrap()).await;
                    answer.unwrap().into_body().collect().await.unwrap();
                })
            })
            .collect();
        let begun = Instant::now();
        while converter.asked.lock().unwrap().len() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        let mut first = watch(server, &format!("{V1}?watch=1")).await;
        assert_eq!(events(&mut first, 1).await.len(), 1);
        assert_eq!(patch(server, &format!("{V1}/a"), MERGE, json!({"spec": {"hostPort": "beta:2"}})).await.0, 200);
        assert_eq!(events(&mut first, 1).await[0]["object"]["spec"]["hostPort"], "beta:2");
        assert_eq!(create(server, super::bodies::MAPS, json!({"metadata": {"name": "m"}})).await.0, 201);
        assert_eq!(send(server, "DELETE", &format!("{V1}/a"), "application/json", Vec::new()).await.0, 200);
        assert_eq!(patch(server, DEFINITION, MERGE, json!({"metadata": {"labels": {"a": "b"}}})).await.0, 200);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        drop(slow);
    });
}

/// The owners of an object: how, in which version and of what in its `spec`.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let of = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().unwrap_or("").to_owned();
        let spec = entry["fieldsV1"]["f:spec"].as_object().into_iter().flatten();
        let fields: Vec<&str> = spec.map(|(name, _)| name.trim_start_matches("f:")).filter(|n| *n != ".").collect();
        let version = text("apiVersion").rsplit('/').next().unwrap_or_default().to_owned();
        format!("{} {} {version} {}", text("manager"), text("operation"), fields.join(","))
    };
    let mut all: Vec<String> = entries.map(of).collect();
    all.sort();
    all
}

#[test]
fn fields_are_owned_in_the_version_in_which_they_were_set() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        let (first, second) = (format!("{V1}/a"), format!("{V2}/a"));
        let apply = async |server: &mut Server, path: &str, manager: &str, object: Value| {
            patch(server, &format!("{path}?fieldManager={manager}"), "application/apply-patch+yaml", object).await
        };
        let (status, made) = apply(server, &second, "two", two("a", "alpha", "1")).await;
        assert_eq!((status, &made["spec"]), (201, &json!({"host": "alpha", "port": "1"})), "{made}");
        assert_eq!(owners(&made), ["two Apply v2 host,port"]);

        // Who changes it in another version is in the way of who owns it there.
        let (status, conflict) = apply(server, &first, "one", one("a", "beta:1")).await;
        assert_eq!(
            (status, &conflict["message"]),
            (409, &json!("Apply failed with 1 conflict: conflict with \"two\": .spec.host")),
            "{conflict}"
        );
        let (status, shared) = apply(server, &first, "one", one("a", "alpha:1")).await;
        assert_eq!(
            (status, owners(&shared)),
            (200, vec!["one Apply v1 hostPort".to_owned(), "two Apply v2 host,port".into()]),
            "{shared}"
        );
        let forced = patch(
            server,
            &format!("{first}?fieldManager=one&force=true"),
            "application/apply-patch+yaml",
            one("a", "beta:1"),
        )
        .await;
        assert_eq!(
            (forced.0, owners(&forced.1)),
            (200, vec!["one Apply v1 hostPort".to_owned(), "two Apply v2 port".into()]),
            "{}",
            forced.1
        );

        // A plain change takes what it changes from whoever owns it, in each one's own version.
        let (status, merged) =
            patch(server, &format!("{second}?fieldManager=hand"), MERGE, json!({"spec": {"port": "9"}})).await;
        assert_eq!((status, &merged["spec"]), (200, &json!({"host": "beta", "port": "9"})), "{merged}");
        assert_eq!(owners(&merged), ["hand Update v2 port"], "{merged}");

        // What is applied in a new version replaces what was applied in the old one; what is left out goes.
        let mut noted = one("b", "alpha:1");
        noted["spec"]["note"] = "n".into();
        let (first, second) = (format!("{V1}/b"), format!("{V2}/b"));
        assert_eq!(apply(server, &first, "one", noted).await.0, 201);
        let mut renewed = two("b", "alpha", "1");
        renewed["spec"]["replicas"] = 2.into();
        let (status, moved) = apply(server, &second, "one", renewed).await;
        assert_eq!((status, owners(&moved)), (200, vec!["one Apply v2 host,port,replicas".to_owned()]), "{moved}");
        assert_eq!(moved["spec"], json!({"host": "alpha", "port": "1", "replicas": 2}), "the note was given up");

        // A Scale owns the field that each version has for it.
        let scale = json!({"spec": {"replicas": 3}});
        assert_eq!(patch(server, &format!("{second}/scale?fieldManager=scaler"), MERGE, scale).await.0, 200);
        let (_, seen) = get(server, &first).await;
        assert_eq!(
            (owners(&seen), &seen["spec"]["replicas"]),
            (vec!["one Apply v2 host,port".to_owned(), "scaler Update v2 replicas".into()], &json!(3))
        );
    });
}

#[test]
fn webhooks_and_policies_see_and_change_objects_in_the_version_that_they_name() {
    on_a_server(async |mut server| {
        let (server, converter) = (&mut server, Converter::start().await);
        establish(server, converter.configuration("convert"), "v1").await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let all = seen.clone();
        let admission = Https::start(move |path, review: Value| {
            let request = review["request"].clone();
            all.lock().unwrap().push(request.clone());
            let operations = json!([{"op": "add", "path": "/spec/note", "value": request["object"]["spec"]["host"]}]);
            let patch = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, operations.to_string());
            let mut response = json!({"uid": request["uid"], "allowed": true});
            if request["operation"] != "DELETE" && path == "note" {
                response["patchType"] = "JSONPatch".into();
                response["patch"] = patch.into();
            }
            let answer = json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
            async move { (200, answer.to_string()) }
        })
        .await;
        let rules = json!([{"operations": ["*"], "apiGroups": ["conv.example.com"], "apiVersions": ["v2"], "resources": ["links"]}]);
        let webhook = json!({"name": "note.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"], "rules": rules,
            "matchPolicy": "Equivalent", "matchConditions": [{"name": "c", "expression":
                "(object == null ? oldObject : object).spec.host != 'unseen'"}],
            "clientConfig": {"url": format!("https://localhost:{}/note", admission.port), "caBundle": admission.ca_bundle}});
        let mut looks = webhook.clone();
        let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
        let configuration = json!({"metadata": {"name": "note"}, "webhooks": [webhook]});
        assert_eq!(create(server, configurations, configuration).await.0, 201);

        let (status, made) = create(server, V1, one("a", "alpha:1")).await;
        assert_eq!((status, &made["spec"]), (201, &json!({"hostPort": "alpha:1", "note": "alpha"})), "{made}");
        let asked = seen.lock().unwrap().pop().unwrap();
        assert_eq!((&asked["kind"]["version"], &asked["requestKind"]["version"]), (&json!("v2"), &json!("v1")));
        assert_eq!(
            (&asked["object"]["apiVersion"], &asked["object"]["spec"]),
            (&json!("conv.example.com/v2"), &json!({"host": "alpha", "port": "1"}))
        );
        let (status, changed) = patch(server, &format!("{V1}/a"), MERGE, json!({"spec": {"hostPort": "beta:1"}})).await;
        assert_eq!((status, &changed["spec"]["note"]), (200, &json!("beta")), "{changed}");
        let asked = seen.lock().unwrap().pop().unwrap();
        assert_eq!(
            (&asked["oldObject"]["spec"]["host"], &asked["object"]["spec"]["host"]),
            (&json!("alpha"), &json!("beta"))
        );
        assert!(asked["object"]["metadata"]["managedFields"].is_array(), "{asked}");
        assert_eq!(
            create(server, V1, one("b", "unseen:1")).await.1["spec"].get("note"),
            None,
            "its condition does not hold"
        );
        assert_eq!(send(server, "DELETE", &format!("{V1}/a"), "application/json", Vec::new()).await.0, 200);
        assert_eq!(seen.lock().unwrap().pop().unwrap()["oldObject"]["spec"]["host"], "beta");

        let policy = json!({"metadata": {"name": "hosts"}, "spec": {
            "matchConstraints": {"resourceRules": rules}, "validations": [{"expression":
                "object == null || object.spec.host != 'bad'", "message": "no bad host"}]}});
        let base = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        assert_eq!(create(server, base, policy).await.0, 201);
        let binding =
            json!({"metadata": {"name": "hosts"}, "spec": {"policyName": "hosts", "validationActions": ["Deny"]}});
        assert_eq!(create(server, &base.replace("policies", "policybindings"), binding).await.0, 201);
        let (status, refused) = create(server, V1, one("c", "bad:1")).await;
        assert!(
            status == 422 && refused["message"].as_str().unwrap().ends_with("denied request: no bad host"),
            "{refused}"
        );
        assert_eq!(create(server, V1, one("c", "good:1")).await.0, 201);

        // They see what the garbage collector does as well.
        let url = format!("https://localhost:{}/see", admission.port);
        (looks["clientConfig"]["url"], looks["matchConditions"]) = (url.into(), json!([]));
        let looking = json!({"metadata": {"name": "see"}, "webhooks": [looks]});
        assert_eq!(create(server, &configurations.replace("mutating", "validating"), looking).await.0, 201);
        let (_, owner) = create(server, super::bodies::MAPS, json!({"metadata": {"name": "owner"}})).await;
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]});
        let owned = json!({"metadata": {"ownerReferences": [owner]}});
        assert_eq!(patch(server, &format!("{V1}/c"), MERGE, owned).await.0, 200);
        seen.lock().unwrap().clear();
        let (map, orphan) = (format!("{}/owner", super::bodies::MAPS), json!({"propagationPolicy": "Orphan"}));
        assert_eq!(send(server, "DELETE", &map, "application/json", orphan.to_string().into_bytes()).await.0, 200);
        until(server, &map, |status, _| status == 404).await;
        let asked = std::mem::take(&mut *seen.lock().unwrap());
        let hosts: Vec<&Value> = asked.iter().map(|request| &request["object"]["spec"]["host"]).collect();
        assert_eq!(hosts, ["good", "good"], "{asked:?}");
        change(server, &converter.configuration("fail"), "v1").await;
        let (status, failed) = create(server, V1, one("d", "good:1")).await;
        let words = "conversion webhook for conv.example.com/v1, Kind=Link failed: no way back";
        assert_eq!((status, &failed["message"]), (500, &json!(words)));
    });
}
