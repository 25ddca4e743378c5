//! A custom kind on a live server, from its first request to its last.

use std::time::Duration;

use amphipod::kinds::custom::{CustomKind, definition_name};
use amphipod::kinds::{KindRef, Subresource};
use amphipod::schema::{CustomNames, Schema};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const GROUP: &str = "/apis/example.com/v1";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn widgets() -> KindRef {
    let openapi = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"type": "integer", "format": "int32"},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}, "count": {"type": "integer"}}}},
        }},
        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    }});
    let definition = definition_name("example.com", "v1", "Widget");
    let names = CustomNames { definition: &definition, group: "example.com", version: "v1", kind: "Widget" };
    KindRef::custom(CustomKind {
        group: "example.com".into(),
        version: "v1".into(),
        kind: "Widget".into(),
        list_kind: "WidgetList".into(),
        plural: "widgets".into(),
        singular: "widget".into(),
        short_names: vec!["wd".into()],
        categories: vec!["all".into()],
        subresources: vec![Subresource::Status],
        openapi: zstd::encode_all(openapi.to_string().as_bytes(), 0).unwrap().into(),
        ..CustomKind::bare(Schema::custom(&names, &openapi).unwrap().into())
    })
}

async fn get(server: &mut Server, path: &str) -> (u16, Value) {
    let (status, _, body) = server.ask(Asked { method: "GET", path, headers: Vec::new(), body: None }).await;
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn until_gone(server: &mut Server, path: &str) {
    for _ in 0..500 {
        if get(server, path).await.0 == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{path} is still there");
}

/// The events of a watch, a line each.
struct Events {
    body: Incoming,
    unread: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            self.unread.extend(frame.expect("the watch is silent")?.unwrap().into_data().unwrap());
        }
    }
}

async fn owned_by(server: &mut Server, owner: (&str, &str, &Value), path: &str, kind: &str, name: &str) {
    let (api_version, owner_kind, of) = owner;
    let owner = json!([{"apiVersion": api_version, "kind": owner_kind, "name": of["metadata"]["name"],
        "uid": of["metadata"]["uid"]}]);
    let (version, spec) = if kind == "Widget" { ("example.com/v1", json!({"size": 1})) } else { ("v1", Value::Null) };
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "ownerReferences": owner}});
    if !spec.is_null() {
        object["spec"] = spec;
    }
    let (status, answer) = create(server, path, object).await;
    assert_eq!(status, 201, "{answer}");
}

async fn is_described(server: &mut Server) {
    let (_, groups) = get(server, "/apis").await;
    let names: Vec<&str> = groups["groups"].as_array().unwrap().iter().filter_map(|g| g["name"].as_str()).collect();
    assert!(names.contains(&"example.com"), "{names:?}");
    let (_, resources) = get(server, GROUP).await;
    let resources = resources["resources"].as_array().unwrap().clone();
    assert_eq!(resources[0]["name"], "widgets");
    assert_eq!(resources[0]["shortNames"], json!(["wd"]));
    assert_eq!(resources[1]["name"], "widgets/status");
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let headers = vec![("accept".to_owned(), aggregated.to_owned())];
    let (_, _, body) = server.ask(Asked { method: "GET", path: "/apis", headers, body: None }).await;
    assert!(String::from_utf8_lossy(&body).contains(r#""resource":"widgets""#));
    let (_, index) = get(server, "/openapi/v3").await;
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let (_, document) = get(server, &url).await;
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["x-kubernetes-group-version-kind"][0]["kind"], "Widget");
    assert_eq!(widget["properties"]["spec"]["properties"]["size"]["format"], "int32");
    assert!(document["paths"].get("/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/status").is_some());
    let (_, second) = get(server, "/openapi/v2").await;
    assert!(second["definitions"].get("com.example.v1.Widget").is_some());
    assert!(second["definitions"].get("com.example.v1.WidgetList").is_some());
}

async fn is_written(server: &mut Server) {
    let (status, refused) =
        create(server, WIDGETS, json!({"metadata": {"name": "wrong"}, "spec": {"size": "big"}})).await;
    assert_eq!(status, 422, "{refused}");
    let widget = json!({"metadata": {"name": "w"}, "spec": {"size": 1, "unknown": true}, "status": {"ready": true}});
    let (status, made) = create(server, WIDGETS, widget).await;
    assert_eq!(
        (status, &made["kind"], &made["apiVersion"]),
        (201, &json!("Widget"), &json!("example.com/v1")),
        "{made}"
    );
    assert_eq!(made["spec"], json!({"size": 1}));
    assert_eq!((made.get("status"), &made["metadata"]["generation"]), (None, &json!(1)));
    let path = format!("{WIDGETS}/w");
    let ready = json!({"status": {"ready": true}, "spec": {"size": 5}}).to_string().into_bytes();
    let merge = "application/merge-patch+json";
    let (status, changed) = send(server, "PATCH", &format!("{path}/status"), merge, ready).await;
    assert_eq!((status, &changed["status"]["ready"], &changed["spec"]["size"]), (200, &json!(true), &json!(1)));
    assert_eq!(changed["metadata"]["generation"], 1, "a status is no new generation");
    let config = |parts: Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"parts": parts}});
    for (manager, part) in [("a", "one"), ("b", "two")] {
        let apply = format!("{path}?fieldManager={manager}");
        let body = config(json!([{"name": part, "count": 1}])).to_string().into_bytes();
        let (status, answer) = send(server, "PATCH", &apply, "application/apply-patch+yaml", body).await;
        assert_eq!(status, 200, "{answer}");
    }
    let other = json!({"apiVersion": "example.com/v2", "kind": "Widget", "metadata": {"name": "w"}});
    let apply = format!("{path}?fieldManager=a");
    let other = other.to_string().into_bytes();
    let (status, answer) = send(server, "PATCH", &apply, "application/apply-patch+yaml", other).await;
    let why =
        "Incorrect version specified in apply patch. Specified patch version: example.com/v2, expected: example.com/v1";
    assert_eq!((status, &answer["message"]), (400, &json!(why)));
    let (_, applied) = get(server, &path).await;
    assert_eq!(applied["spec"]["parts"].as_array().unwrap().len(), 2, "items of a list are merged by their key");
    assert_eq!(applied["metadata"]["generation"], 3);
    let (_, list) = get(server, WIDGETS).await;
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("WidgetList"), 1));
}

#[test]
fn a_kind_that_comes_at_run_time_is_served_like_any_other_until_it_goes() {
    on_a_server(async |mut server| {
        let server = &mut server;
        assert_eq!(get(server, WIDGETS).await.0, 404);
        server.api.add_kind(widgets()).unwrap();
        is_described(server).await;
        let watching = server
            .open(Asked { method: "GET", path: &format!("{WIDGETS}?watch=1"), headers: Vec::new(), body: None })
            .await;
        let mut watch = Events { body: watching.into_body(), unread: Vec::new() };
        is_written(server).await;
        let first = watch.next().await.unwrap();
        assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("w")));

        // Owners and dependents across kinds, either way.
        let (_, widget) = get(server, &format!("{WIDGETS}/w")).await;
        owned_by(server, ("example.com/v1", "Widget", &widget), MAPS, "ConfigMap", "of-widget").await;
        let (_, map) = create(server, MAPS, json!({"metadata": {"name": "owner"}})).await;
        owned_by(server, ("v1", "ConfigMap", &map), WIDGETS, "Widget", "of-map").await;
        for path in [format!("{WIDGETS}/w"), format!("{MAPS}/owner")] {
            assert_eq!(send(server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
        }
        until_gone(server, &format!("{MAPS}/of-widget")).await;
        until_gone(server, &format!("{WIDGETS}/of-map")).await;

        // What is in a namespace goes with it.
        let (status, _) = create(server, "/api/v1/namespaces", json!({"metadata": {"name": "ends"}})).await;
        assert_eq!(status, 201);
        let there = "/apis/example.com/v1/namespaces/ends/widgets";
        assert_eq!(create(server, there, json!({"metadata": {"name": "inside"}})).await.0, 201);
        assert_eq!(send(server, "DELETE", "/api/v1/namespaces/ends", "application/json", Vec::new()).await.0, 200);
        until_gone(server, "/api/v1/namespaces/ends").await;
        assert_eq!(get(server, &format!("{there}/inside")).await.0, 404);

        // Gone, and what is stored comes back with it.
        assert_eq!(create(server, WIDGETS, json!({"metadata": {"name": "stays"}})).await.0, 201);
        server.api.remove_kind(&widgets());
        while watch.next().await.is_some_and(|e| e["type"] != "ERROR") {}
        assert_eq!(get(server, WIDGETS).await.0, 404);
        assert_eq!(get(server, GROUP).await.0, 404);
        let (_, index) = get(server, "/openapi/v3").await;
        assert!(index["paths"].get("apis/example.com/v1").is_none());
        server.api.add_kind(widgets()).unwrap();
        assert_eq!(get(server, &format!("{WIDGETS}/stays")).await.0, 200);
    });
}
