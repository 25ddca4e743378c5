//! Every kind that is stored goes through what clients do with it: creation, reading, replacement, all four patches, its status,
//! lists with selectors, watches and deletion, alone and as a collection; each time its watchers see all of it in order.

use std::time::Duration;

use amphipod::kinds::{KindRef, Subresource, registry};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const LABEL: &str = "lifecycle.example.com/of";
const PATCHES: [(&str, &str); 4] = [
    ("application/strategic-merge-patch+json", ""),
    ("application/merge-patch+json", ""),
    ("application/json-patch+json", ""),
    ("application/apply-patch+yaml", "&fieldManager=applier&force=true"),
];

/// One kind on its way.
struct Case<'a> {
    kind: &'a KindRef,
    collection: String,
    everywhere: String,
    object: Value,
}

async fn get(server: &mut Server, path: &str) -> (u16, Value) {
    let (status, _, body) = server.ask(Asked { method: "GET", path, headers: Vec::new(), body: None }).await;
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn ok(server: &mut Server, method: &str, path: &str, media: &str, body: &Value) -> Value {
    let (status, answer) = send(server, method, path, media, body.to_string().into_bytes()).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    answer
}

impl<'a> Case<'a> {
    fn of(kind: &'a KindRef) -> Self {
        let base = match kind.group() {
            "" => format!("/api/{}", kind.version()),
            group => format!("/apis/{group}/{}", kind.version()),
        };
        let everywhere = format!("{base}/{}", kind.plural());
        let collection = match kind.namespaced() {
            true => format!("{base}/namespaces/default/{}", kind.plural()),
            false => everywhere.clone(),
        };
        let mut object: Value = serde_json::from_str(kind.sample()).unwrap();
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind().into();
        object["metadata"]["labels"][LABEL] = "it".into();
        Self { kind, collection, everywhere, object }
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection, self.object["metadata"]["name"].as_str().unwrap())
    }

    async fn make(&self, server: &mut Server) -> Value {
        let path = format!("{}?fieldValidation=Strict", self.collection);
        for _ in 0..500 {
            let (status, made) = create(server, &path, self.object.clone()).await;
            // What was deleted before may still be ending.
            if status != 409 {
                assert_eq!(status, 201, "{:?}: {made}", self.kind);
                return made;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} does not end", self.kind);
    }

    /// Changes the live object and puts it where it was, however often others change it meanwhile.
    async fn put(&self, server: &mut Server, subresource: &str, change: impl Fn(&mut Value)) -> Value {
        let path = format!("{}{subresource}", self.path());
        for _ in 0..100 {
            let (_, mut live) = get(server, &path).await;
            change(&mut live);
            let (status, answer) = send(server, "PUT", &path, "application/json", live.to_string().into()).await;
            if status != 409 {
                assert_eq!(status, 200, "{:?}{subresource}: {answer}", self.kind);
                return answer;
            }
        }
        panic!("{:?}: conflicts without end", self.kind);
    }

    async fn end(&self, server: &mut Server) {
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        ok(server, "DELETE", &self.path(), "application/json", &options).await;
        self.until_gone(server).await;
    }

    async fn until_gone(&self, server: &mut Server) {
        for _ in 0..1000 {
            if get(server, &self.path()).await.0 == 404 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} is still there", self.kind);
    }

    async fn watch(&self, server: &mut Server, of: &str) -> Events {
        let selected = format!("{of}?labelSelector={LABEL}%3Dit");
        let (_, list) = get(server, &selected).await;
        assert_eq!(list["items"], json!([]), "{of}");
        let from = list["metadata"]["resourceVersion"].as_str().unwrap();
        let path = format!("{selected}&watch=1&resourceVersion={from}");
        let answer = server.open(Asked { method: "GET", path: &path, headers: Vec::new(), body: None }).await;
        Events { body: answer.into_body(), unread: Vec::new() }
    }

    async fn run(&self, server: &mut Server) {
        let (_, resources) = get(server, self.everywhere.rsplit_once('/').unwrap().0).await;
        let listed = resources["resources"].as_array().unwrap();
        assert!(listed.iter().any(|r| r["name"] == self.kind.plural()), "{:?} is not in discovery", self.kind);
        let mut here = self.watch(server, &self.collection).await;
        let mut all = self.watch(server, &self.everywhere).await;

        let made = self.make(server).await;
        let (_, read) = get(server, &self.path()).await;
        assert_eq!(read["metadata"]["uid"], made["metadata"]["uid"]);
        let put = self.put(server, "", |live| live["metadata"]["annotations"]["step"] = "put".into()).await;
        assert_eq!(put["metadata"]["annotations"]["step"], "put");
        if self.kind.subresources().contains(&Subresource::Status) {
            let (status, of) = get(server, &format!("{}/status", self.path())).await;
            assert_eq!((status, &of["metadata"]["uid"]), (200, &made["metadata"]["uid"]), "{:?}", self.kind);
            self.put(server, "/status", |_| ()).await;
            let merge = "application/merge-patch+json";
            ok(server, "PATCH", &format!("{}/status", self.path()), merge, &json!({"status": {}})).await;
        }
        for (media, query) in PATCHES {
            let path = format!("{}?fieldValidation=Strict{query}", self.path());
            let body = match media {
                "application/json-patch+json" => {
                    json!([{"op": "add", "path": "/metadata/annotations/step", "value": media}])
                }
                _ => json!({"apiVersion": self.kind.api_version(), "kind": self.kind.kind(),
                    "metadata": {"name": self.object["metadata"]["name"], "annotations": {"step": media}}}),
            };
            let patched = ok(server, "PATCH", &path, media, &body).await;
            assert_eq!(patched["metadata"]["annotations"]["step"], media, "{:?}", self.kind);
        }
        let newest = get(server, &self.path()).await.1["metadata"]["resourceVersion"].clone();
        assert_ne!(newest, made["metadata"]["resourceVersion"]);
        for path in [&self.collection, &self.everywhere] {
            let (_, list) = get(server, &format!("{path}?labelSelector={LABEL}%3Dit")).await;
            assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{path}: {list}");
        }
        self.end(server).await;
        self.make(server).await;
        let selected = format!("{}?labelSelector={LABEL}%3Dit", self.collection);
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        ok(server, "DELETE", &selected, "application/json", &options).await;
        self.until_gone(server).await;
        for events in [&mut here, &mut all] {
            events.are_two_lives(self.kind).await;
        }
    }
}

/// The events of a watch, a line each.
struct Events {
    body: Incoming,
    unread: Vec<u8>,
}

impl Events {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            let frame = frame.expect("the watch is silent").expect("the watch ended").unwrap();
            self.unread.extend(frame.into_data().unwrap());
        }
    }

    /// Twice an object comes, changes and goes, and revisions grow.
    async fn are_two_lives(&mut self, kind: &KindRef) {
        let mut last = 0;
        for life in 0..2 {
            let mut types = Vec::new();
            loop {
                let event = self.next().await;
                let revision: u64 = event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
                assert!(revision > last, "{kind:?}: {revision} after {last}");
                last = revision;
                types.push(event["type"].as_str().unwrap().to_owned());
                if types.last().is_some_and(|t| t == "DELETED") {
                    break;
                }
            }
            let between = &types[1..types.len() - 1];
            assert!(types[0] == "ADDED" && between.iter().all(|t| t == "MODIFIED"), "{kind:?}: {types:?}");
            assert!(life == 1 || between.len() >= 5, "{kind:?}: {types:?}");
        }
    }
}

/// Whether clients may do with objects of the kind whatever one can do.
fn is_free(kind: &KindRef) -> bool {
    let all = ["create", "get", "list", "watch", "update", "patch", "delete", "deletecollection"];
    kind.is_stored() && all.iter().all(|verb| kind.verbs().contains(verb))
}

#[test]
fn every_kind_is_made_changed_watched_and_deleted_as_clients_do() {
    on_a_server(async |mut server| {
        let mut count = 0;
        for kind in registry::builtin().iter().filter(|kind| is_free(kind)) {
            Case::of(kind).run(&mut server).await;
            count += 1;
        }
        assert!(count > 40, "{count}");
    });
}
