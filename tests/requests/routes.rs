//! Which route a path leads to, and what the layers around the routes do: failures, compression, answers to HEAD.

use std::io::Read;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::bodies::{MAPS, PODS};
use super::server::{Asked, Server};
use super::{create, on_a_server, send};

async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    server.open(Asked { method, path, headers, body: None }).await
}

async fn body(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |v| v.to_str().unwrap())
}

/// What of an answer tells where a path leads: the code, and a Status' reason or the beginning of the body.
async fn led(server: &Server, method: &str, path: &str) -> (u16, String) {
    let response = ask(server, method, path, &[]).await;
    let code = response.status().as_u16();
    let text = String::from_utf8_lossy(&body(response).await).into_owned();
    let status: Value = serde_json::from_str(&text).unwrap_or_default();
    let reason = status["reason"].as_str().or(status["kind"].as_str()).map(str::to_owned);
    (code, reason.unwrap_or_else(|| text.chars().take(12).collect()))
}

#[test]
fn a_path_leads_where_it_leads_in_kubernetes() {
    on_a_server(async |server| {
        let (nowhere, unknown, other) = ((404, "404 page not"), (404, "NotFound"), (405, "MethodNotAllowed"));
        let cases = [
            ("GET", "/", (200, r#"{"paths":["/"#)),
            ("POST", "/", unknown),
            ("GET", "/api", (200, "APIVersions")),
            ("GET", "/api/", (200, "APIVersions")),
            ("GET", "/api//", (200, "APIVersions")),
            ("HEAD", "/api", (405, "")),
            ("POST", "/api", other),
            ("GET", "/api/v2", unknown),
            ("GET", "/apis", (200, "APIGroupList")),
            ("POST", "/apis/", (200, "APIGroupList")),
            ("GET", "/apis/apps//", (200, "APIGroup")),
            ("GET", "/apis/nope", nowhere),
            ("GET", "/apis/nope/v1", nowhere),
            ("GET", "/apis/nope/v1/x", nowhere),
            ("POST", "/apis/nope", unknown),
            ("GET", "/apix", nowhere),
            ("POST", "/apix", unknown),
            ("GET", "//api", nowhere),
            ("GET", "/version/", (200, r#"{"buildDate""#)),
            ("GET", "/version//", (200, r#"{"buildDate""#)),
            ("GET", "/version/x", nowhere),
            ("HEAD", "/versionx", (405, "")),
            ("POST", "/version", other),
            ("POST", "/healthz", (200, "ok")),
            ("GET", "/livez/ping", (200, "ok")),
            ("GET", "/readyz/nope", nowhere),
            ("POST", "/healthzx", nowhere),
            ("GET", "/metrics/", nowhere),
            ("GET", "/openapi", (404, "")),
            ("GET", "/openapi/v3/api/v9", (404, "")),
            // With escapes where none are needed.
            ("GET", "/%76ersion", (200, r#"{"buildDate""#)),
            ("GET", "/version%2f", (200, r#"{"buildDate""#)),
            ("GET", "/%68ealthz/%70ing", (200, "ok")),
            ("GET", "/%61pi", (200, "APIVersions")),
            ("GET", "/api%2Fv1", (200, "APIResourceList")),
            ("GET", "/%61pi/v1/namespaces/default/configmaps", (200, "ConfigMapList")),
            ("GET", "/api%2Fv1%2Fnamespaces%2Fdefault%2Fconfigmaps", (200, "ConfigMapList")),
            ("GET", "/version%20", nowhere),
            ("GET", "/%2Fversion", nowhere),
            ("GET", "/version%", (400, "400 Bad Requ")),
            ("GET", "/%zz", (400, "400 Bad Requ")),
            ("GET", "/cacerts%zz", (400, "400 Bad Requ")),
            ("GET", "/%ff", (400, "BadRequest")),
            // Where machines join, here none may; written otherwise, it is another path.
            ("GET", "/cacerts", unknown),
            ("GET", "/v1-amphipod/images/v2/a/blobs/b", unknown),
            ("GET", "/%63acerts", nowhere),
            ("GET", "/cacerts/", nowhere),
        ];
        for (method, path, (code, what)) in cases {
            assert_eq!(led(&server, method, path).await, (code, what.to_owned()), "{method} {path}");
        }
    });
}

#[test]
fn a_failure_is_written_in_the_form_that_the_client_accepts() {
    on_a_server(async |server| {
        for path in [&*format!("{MAPS}/none"), "/api/v2/pods", "/cacerts", &format!("{MAPS}?timeoutSeconds=x")] {
            let yaml = ask(&server, "GET", path, &[("accept", "application/yaml")]).await;
            assert_eq!(header(&yaml, "content-type"), "application/yaml", "{path}");
            assert!(body(yaml).await.starts_with(b"apiVersion: v1\n"), "{path}");
            let json = ask(&server, "GET", path, &[("accept", "image/png")]).await;
            assert_eq!(header(&json, "content-type"), "application/json", "{path}");
        }
        let refused = ask(&server, "GET", "/version", &[("authorization", "Bearer nobody")]).await;
        assert_eq!((refused.status().as_u16(), header(&refused, "content-length")), (401, "129"));
    });
}

#[test]
fn answers_without_a_body_have_the_headers_that_http_gives_them() {
    on_a_server(async |server| {
        let channel = server.channel();
        let head = |path: &str| Request::head(path).body(Full::new(Bytes::new())).unwrap();
        for (path, code, length) in [("/healthz", 200, "2"), ("/nope", 404, "19"), ("/version", 405, "")] {
            let old = ask(&server, "HEAD", path, &[]).await;
            let new = channel.send(head(path)).await.unwrap();
            for answer in [old, new] {
                let version = answer.version();
                assert_eq!((answer.status().as_u16(), header(&answer, "content-length")), (code, length), "{path}");
                assert!(body(answer).await.is_empty(), "{path} over {version:?}");
            }
        }
        let tag = header(&ask(&server, "GET", "/openapi/v2", &[]).await, "etag").to_owned();
        let same = ask(&server, "GET", "/openapi/v2", &[("if-none-match", &tag)]).await;
        assert_eq!((same.status().as_u16(), header(&same, "content-length")), (304, ""));
        let socket = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let watch = ask(&server, "GET", &format!("{MAPS}?watch=true"), &socket).await;
        assert_eq!((watch.status().as_u16(), header(&watch, "content-length")), (101, ""));
    });
}

#[test]
fn long_objects_and_lists_are_compressed_for_those_who_accept_it() {
    on_a_server(async |mut server| {
        let long = "some text that is the same again, ".repeat(4000);
        for name in ["a", "b"] {
            let map = json!({"metadata": {"name": name}, "data": {"text": long}});
            assert_eq!(create(&mut server, MAPS, map).await.0, 201);
        }
        let table = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
        let (one, all) = (format!("{MAPS}/a"), format!("{MAPS}?limit=500"));
        for (path, form) in
            [(&one, ("accept", "*/*")), (&all, ("accept", "*/*")), (&all, ("accept", "application/yaml"))]
        {
            let plain = ask(&server, "GET", path, &[form]).await;
            assert!(!plain.headers().contains_key(CONTENT_ENCODING) && !plain.headers().contains_key(VARY), "{path}");
            let plain = body(plain).await;
            assert!(plain.len() > 128 << 10, "{path}: {} bytes", plain.len());
            let packed = ask(&server, "GET", path, &[form, ("accept-encoding", "deflate, gzip")]).await;
            let media = packed.headers()[CONTENT_TYPE].clone();
            assert_eq!((header(&packed, "content-encoding"), header(&packed, "vary")), ("gzip", "Accept-Encoding"));
            assert!(!packed.headers().contains_key(CONTENT_LENGTH), "{path}");
            let packed = body(packed).await;
            assert!(packed.len() < plain.len() / 10, "{path}: {} bytes", packed.len());
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut text).unwrap();
            assert!(text == plain, "{path} as {media:?}");
        }
        let gzip = ("accept-encoding", "gzip");
        for (path, form) in [(&*all, table), ("/version", ("accept", "*/*")), (PODS, ("accept", "*/*"))] {
            let short = ask(&server, "GET", path, &[form, gzip]).await;
            assert!(!short.headers().contains_key(CONTENT_ENCODING), "{path}");
        }
        let watch = ask(&server, "GET", &format!("{MAPS}?watch=true&timeoutSeconds=1"), &[gzip]).await;
        assert!(!watch.headers().contains_key(CONTENT_ENCODING), "a watch is a stream");
        assert!(body(watch).await.len() > 256 << 10);
        // A client that accepts anything has not asked for it.
        let any = ask(&server, "GET", &all, &[(ACCEPT_ENCODING.as_str(), "*")]).await;
        assert!(!any.headers().contains_key(CONTENT_ENCODING));
    });
}

#[test]
fn an_answer_that_is_no_object_is_neither_a_table_nor_metadata() {
    on_a_server(async |server| {
        for (accept, code) in [
            ("application/json;as=Table;v=v1;g=meta.k8s.io", 406),
            ("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", 406),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", 201),
        ] {
            let review = json!({"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}});
            let headers = [("content-type", "application/json"), ("accept", accept)];
            let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            let body = Some(review.to_string().into_bytes());
            let answer = server.open(Asked { method: "POST", path: super::bodies::REVIEWS, headers, body }).await;
            assert_eq!(answer.status(), code, "{accept}");
        }
    });
}

#[test]
fn the_note_of_an_event_may_change() {
    on_a_server(async |mut server| {
        let events = "/apis/events.k8s.io/v1/namespaces/default/events";
        let event = json!({"metadata": {"name": "e"}, "eventTime": "2017-09-19T13:49:16.000000Z", "note": "before",
            "action": "Do", "reason": "Test", "type": "Normal", "regarding": {"namespace": "default"},
            "reportingController": "test-controller", "reportingInstance": "test-node"});
        assert_eq!(create(&mut server, events, event).await.0, 201);
        let patch = json!({"note": "after"}).to_string().into_bytes();
        let media = "application/strategic-merge-patch+json";
        let (code, changed) = send(&mut server, "PATCH", &format!("{events}/e"), media, patch).await;
        assert_eq!((code, &changed["note"]), (200, &json!("after")), "{changed}");
    });
}

#[test]
fn an_answer_names_the_flow_schema_and_the_priority_level_of_its_request() {
    on_a_server(async |mut server| {
        let mut expected = Vec::new();
        for kind in ["flowschemas", "prioritylevelconfigurations"] {
            let exempt = server.get(&format!("/apis/flowcontrol.apiserver.k8s.io/v1/{kind}/exempt")).await;
            expected.push(exempt["metadata"]["uid"].as_str().unwrap().to_owned());
        }
        for path in ["/api/v1/namespaces", "/api/v1/namespaces/none", "/readyz", "/nowhere"] {
            let answer = server.open(Asked { method: "GET", path, headers: Vec::new(), body: None }).await;
            let names = ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];
            assert_eq!(names.map(|name| answer.headers()[name].to_str().unwrap().to_owned()), expected[..], "{path}");
        }
    });
}
