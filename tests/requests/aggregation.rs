//! A server of the API behind this one: an HTTPS server of the test's own, shaped as Kubernetes' sample-apiserver. What it is
//! told, what it may answer, and what its failures mean.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amphipod::apimachinery::user::User;
use amphipod::base::task;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::server::{Asked, Server};
use super::{create, on_a_server, send};

const SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const NAME: &str = "v1alpha1.wardle.example.com";
const GROUP: &str = "/apis/wardle.example.com/v1alpha1";
const FLUNDERS: &str = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
const MERGE: &str = "application/merge-patch+json";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

type Body = BoxBody<Bytes, Infallible>;

/// What the server does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    /// It answers every question with an error.
    Broken,
    /// It takes connections and says nothing.
    Silent,
    /// It sends clients elsewhere.
    Redirecting,
    /// It says that it has more than there is room for.
    Boundless,
}

struct State {
    mood: Mutex<Mood>,
    flunders: Mutex<BTreeMap<(String, String), Value>>,
    changes: broadcast::Sender<Value>,
    /// Method, path and headers of what was asked, and the common name of whoever asked.
    asked: Mutex<Vec<(String, HeaderMap, String)>>,
}

/// The server.
struct Sample {
    port: u16,
    ca_bundle: String,
    state: Arc<State>,
}

// === impl Sample ===

impl Sample {
    /// Believes only clients that the cluster's ConfigMap names.
    async fn start(server: &mut Server) -> Self {
        let map = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
        eventually(async || server.get_if_there(map).await).await;
        let data = server.get(map).await["data"].clone();
        assert_eq!(data["requestheader-allowed-names"], "[\"front-proxy-client\"]");
        assert_eq!(data["requestheader-username-headers"], "[\"X-Remote-User\"]");
        assert_eq!(data["requestheader-group-headers"], "[\"X-Remote-Group\"]");
        assert_eq!(data["requestheader-extra-headers-prefix"], "[\"X-Remote-Extra-\"]");
        assert_ne!(data["client-ca-file"], data["requestheader-client-ca-file"]);
        let ca = data["requestheader-client-ca-file"].as_str().unwrap();
        let mut roots = rustls::RootCertStore::empty();
        for certificate in amphipod::wire::tls::certificates(ca.as_bytes()).unwrap() {
            roots.add(certificate).unwrap();
        }
        let provider = amphipod::wire::tls::provider;
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let key = rcgen::generate_simple_self_signed(["sample-api.default.svc".to_owned()]).unwrap();
        let private = rustls_pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![key.cert.der().clone()], private)
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            mood: Mutex::new(Mood::Well),
            flunders: Mutex::default(),
            changes: broadcast::channel(16).0,
            asked: Mutex::default(),
        });
        task::spawn("sample", serve(listener, tokio_rustls::TlsAcceptor::from(Arc::new(config)), state.clone()));
        Self { port, ca_bundle: STANDARD.encode(key.cert.pem()), state }
    }

    fn be(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    /// Says what the APIService is.
    fn registration(&self) -> Value {
        json!({"metadata": {"name": NAME}, "spec": {
            "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "caBundle": self.ca_bundle, "service": {"namespace": "default", "name": "sample-api", "port": self.port}}})
    }

    /// Registers it, and waits until it is available.
    async fn register(&self, server: &mut Server) {
        let service = json!({"metadata": {"name": "sample-api"}, "spec": {"type": "ExternalName",
            "externalName": "localhost", "ports": [{"port": self.port}]}});
        assert_eq!(create(server, "/api/v1/namespaces/default/services", service).await.0, 201);
        let (code, made) = create(server, SERVICES, self.registration()).await;
        assert_eq!(code, 201, "{made}");
        becomes(server, NAME, "True", "Passed").await;
    }

    /// The last request to a path.
    fn asked(&self, path: &str) -> (String, HeaderMap, String) {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().rfind(|(line, ..)| line.contains(path)).cloned().unwrap_or_else(|| panic!("nobody asked {path}"))
    }
}

impl Sample {
    /// The last request of a line.
    fn asked_exactly(&self, wanted: &str) -> (String, HeaderMap, String) {
        let asked = self.state.asked.lock().unwrap();
        asked.iter().rfind(|(line, ..)| line == wanted).cloned().unwrap_or_else(|| panic!("nobody asked {wanted}"))
    }
}

async fn serve(listener: tokio::net::TcpListener, acceptor: tokio_rustls::TlsAcceptor, state: Arc<State>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, state) = (acceptor.clone(), state.clone());
        task::spawn("connection", async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
            let client = User::from_certificate(&shown).unwrap().name;
            let answering = hyper::service::service_fn(move |request| {
                let (state, client) = (state.clone(), client.clone());
                async move { Ok::<_, Infallible>(answer(request, &state, client).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answering);
            let _ = connection.with_upgrades().await;
        });
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

fn said(code: u16, value: &Value) -> Response<Body> {
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.header("access-control-allow-origin", "*").body(full(value.to_string())).unwrap()
}

async fn answer(mut request: Request<Incoming>, state: &Arc<State>, client: String) -> Response<Body> {
    let line = format!("{} {}", request.method(), request.uri());
    state.asked.lock().unwrap().push((line, request.headers().clone(), client));
    let mood = *state.mood.lock().unwrap();
    match mood {
        Mood::Well => {}
        Mood::Broken => return said(500, &json!({"kind": "Status", "code": 500})),
        Mood::Silent => std::future::pending().await,
        Mood::Redirecting => {
            let response = Response::builder().status(302).header("location", "https://192.0.2.1/");
            return response.body(full("")).unwrap();
        }
        Mood::Boundless => {
            let endless = futures::stream::repeat_with(|| Ok(Frame::data(Bytes::from(vec![b' '; 64 << 10]))));
            return Response::new(BodyExt::boxed(StreamBody::new(endless)));
        }
    }
    if request.headers().contains_key("upgrade") {
        return echoed(&mut request);
    }
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let path = uri.path().to_owned();
    let kind = json!({"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder",
        "shortNames": ["fl"], "verbs": ["create", "delete", "deletecollection", "get", "list", "watch"]});
    match path.as_str() {
        GROUP => said(
            200,
            &json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": "wardle.example.com/v1alpha1", "resources": [kind]}),
        ),
        "/openapi/v3" => said(
            200,
            &json!({"paths": {
            "apis/wardle.example.com/v1alpha1":
                {"serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB"},
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=stolen"}}}),
        ),
        "/openapi/v3/apis/wardle.example.com/v1alpha1" => {
            said(200, &json!({"openapi": "3.0.0", "info": {"title": "sample"}, "paths": {}}))
        }
        _ => flunders(state, &method, &path, uri.query().unwrap_or_default(), &body),
    }
}

/// Changes over to whatever was asked for, and sends back what comes.
fn echoed(request: &mut Request<Incoming>) -> Response<Body> {
    let to = request.headers()["upgrade"].clone();
    let key = request.headers().get("sec-websocket-key").cloned();
    let upgraded = hyper::upgrade::on(request);
    task::spawn("echo", async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded.await.unwrap()));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut response = Response::builder().status(101).header("connection", "Upgrade").header("upgrade", to);
    if let Some(key) = key {
        response = response.header("sec-websocket-accept", amphipod::wire::websocket::answer(key.as_bytes()));
    }
    response.body(full("")).unwrap()
}

fn flunders(state: &Arc<State>, method: &Method, path: &str, query: &str, body: &[u8]) -> Response<Body> {
    let mut parts = path.strip_prefix(GROUP).unwrap_or_default().split('/').skip(1);
    let (Some("namespaces"), Some(namespace), Some("flunders")) = (parts.next(), parts.next(), parts.next()) else {
        return said(404, &json!({"kind": "Status", "code": 404}));
    };
    let name = parts.next().unwrap_or_default();
    let mut all = state.flunders.lock().unwrap();
    match (method.as_str(), name) {
        ("GET", "") if query.contains("watch=true") => {
            let changes = tokio_stream::wrappers::BroadcastStream::new(state.changes.subscribe());
            let lines = changes.map(|change| Ok(Frame::data(Bytes::from(format!("{}\n", change.unwrap())))));
            Response::new(BodyExt::boxed(StreamBody::new(lines)))
        }
        ("GET", "") => {
            let items: Vec<Value> = all.iter().filter(|((n, _), _)| n == namespace).map(|(_, o)| o.clone()).collect();
            said(
                200,
                &json!({"kind": "FlunderList", "apiVersion": "wardle.example.com/v1alpha1", "metadata": {},
                "items": items}),
            )
        }
        ("POST", "") => {
            let mut flunder: Value = serde_json::from_slice(body).unwrap();
            let name = flunder["metadata"]["name"].as_str().unwrap().to_owned();
            flunder["metadata"]["uid"] = format!("uid-of-{name}").into();
            all.insert((namespace.to_owned(), name), flunder.clone());
            let _ = state.changes.send(json!({"type": "ADDED", "object": flunder}));
            said(201, &flunder)
        }
        ("DELETE", "") => {
            all.retain(|(n, _), _| n != namespace);
            said(200, &json!({"kind": "Status", "status": "Success"}))
        }
        (verb, name) => {
            let key = (namespace.to_owned(), name.to_owned());
            let found = if verb == "DELETE" { all.remove(&key) } else { all.get(&key).cloned() };
            found.map_or_else(|| said(404, &json!({"kind": "Status", "code": 404})), |flunder| said(200, &flunder))
        }
    }
}

/// Waits until something is so.
async fn eventually(mut is: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it did not become so");
}

async fn becomes(server: &mut Server, name: &str, status: &str, reason: &str) {
    let path = format!("{SERVICES}/{name}");
    let mut last = Value::Null;
    for _ in 0..600 {
        last = server.get(&path).await.pointer("/status/conditions/0").cloned().unwrap_or_default();
        if (last["status"].as_str(), last["reason"].as_str()) == (Some(status), Some(reason)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is not {status} for {reason}: {last}");
}

async fn asked(server: &mut Server, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (code, _, body) = server.ask(Asked { method, path, headers, body: None }).await;
    (code, String::from_utf8_lossy(&body).into_owned())
}

/// What aggregated discovery says of the version.
async fn discovered(server: &mut Server) -> Value {
    let (_, body) = asked(server, "GET", "/apis", &[("accept", AGGREGATED)]).await;
    let all: Value = serde_json::from_str(&body).unwrap();
    let items = all["items"].as_array().unwrap();
    assert!(items.iter().any(|g| g["metadata"]["name"] == "apps"), "the others are there");
    let found = items.iter().find(|g| g["metadata"]["name"] == "wardle.example.com");
    found.map_or(Value::Null, |group| group["versions"][0].clone())
}

/// The steps of upstream's conformance test of the aggregator.
#[test]
fn an_api_server_behind_this_one_is_registered_asked_watched_and_removed() {
    on_a_server(async |mut server| {
        let sample = Sample::start(&mut server).await;
        let (code, body) = asked(&mut server, "GET", FLUNDERS, &[]).await;
        assert_eq!((code, &*body), (404, "404 page not found\n"));
        sample.register(&mut server).await;
        let named = |name: &str| {
            json!({"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder",
            "metadata": {"name": name, "namespace": "default"}})
        };
        let watch = server
            .open(Asked { method: "GET", path: &format!("{FLUNDERS}?watch=true"), headers: Vec::new(), body: None })
            .await;
        assert_eq!(watch.status(), StatusCode::OK);
        let mut watch = watch.into_body();
        let (code, made) = create(&mut server, FLUNDERS, named("one")).await;
        assert_eq!((code, &made["metadata"]["uid"]), (201, &json!("uid-of-one")));
        let event = tokio::time::timeout(Duration::from_secs(20), watch.frame()).await.unwrap().unwrap().unwrap();
        let event: Value = serde_json::from_slice(&event.into_data().unwrap()).unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("one")));
        assert_eq!(server.get(FLUNDERS).await["items"].as_array().unwrap().len(), 1);
        let (code, _) = send(&mut server, "DELETE", &format!("{FLUNDERS}/one"), "application/json", Vec::new()).await;
        assert_eq!(code, 200);
        assert_eq!(server.get(FLUNDERS).await["items"], json!([]));

        let groups = server.get("/apis").await;
        let names: Vec<&str> =
            groups["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names[..2], ["apiregistration.k8s.io", "apps"]);
        assert_eq!(names.last(), Some(&"wardle.example.com"), "2000 is less than any of Kubernetes' own");
        assert_eq!(server.get("/apis/wardle.example.com").await["preferredVersion"]["version"], "v1alpha1");
        assert_eq!(server.get(GROUP).await["resources"][0]["name"], "flunders");
        let shown = discovered(&mut server).await;
        assert_eq!((&shown["freshness"], &shown["resources"][0]["resource"]), (&json!("Current"), &json!("flunders")));
        let index = server.get("/openapi/v3").await;
        let address = index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"].as_str().unwrap();
        assert_eq!(address, "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB");
        assert_ne!(index["paths"]["api/v1"]["serverRelativeURL"], "/openapi/v3/api/v1?hash=stolen");
        assert_eq!(server.get(address).await["info"]["title"], "sample");

        let path = format!("{SERVICES}/{NAME}");
        let status = server.get(&format!("{path}/status")).await;
        assert_eq!(status["status"]["conditions"][0]["message"], "all checks passed");
        let patch = json!({"spec": {"versionPriority": 400}}).to_string().into_bytes();
        assert_eq!(send(&mut server, "PATCH", &path, MERGE, patch).await.0, 200);
        let mut found = server.get(&path).await;
        assert_eq!(found["spec"]["versionPriority"], 400);
        let more = json!({"type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "Set from e2e test"});
        found["status"]["conditions"].as_array_mut().unwrap().push(more);
        found["metadata"]["labels"] = json!({"not": "by status"});
        let body = found.to_string().into_bytes();
        let (code, updated) = send(&mut server, "PUT", &format!("{path}/status"), "application/json", body).await;
        assert_eq!(code, 200, "{updated}");
        assert_eq!(updated["status"]["conditions"][1]["reason"], "E2E");
        assert_eq!(updated["metadata"].get("labels"), None);
        let mut found = server.get(&path).await;
        found["metadata"]["labels"] = json!({NAME: "updated"});
        let body = found.to_string().into_bytes();
        assert_eq!(send(&mut server, "PUT", &path, "application/json", body).await.0, 200);
        let selected = format!("{SERVICES}?labelSelector={NAME}%3Dupdated");
        assert_eq!(send(&mut server, "DELETE", &selected, "application/json", Vec::new()).await.0, 200);
        assert_eq!(server.get(&selected).await["items"], json!([]));
        assert_eq!(asked(&mut server, "GET", FLUNDERS, &[]).await.0, 404, "nobody answers any more");
        assert_eq!(discovered(&mut server).await, Value::Null);
    });
}

#[test]
fn who_asks_is_told_by_this_server_alone_and_what_opens_it_stays_here() {
    on_a_server(async |mut server| {
        let sample = Sample::start(&mut server).await;
        sample.register(&mut server).await;
        let hostile = [
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scopes", "all"),
            ("impersonate-user", "jane"),
            ("impersonate-group", "developers"),
            ("impersonate-extra-example.org%2ffoo", "bar"),
            ("cookie", "a=1"),
        ];
        let rule = json!({"metadata": {"name": "fl"}, "rules": [
            {"verbs": ["list"], "apiGroups": ["wardle.example.com"], "resources": ["flunders"]}]});
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let (code, body) = asked(&mut server, "GET", FLUNDERS, &hostile).await;
        assert_eq!(code, 403, "who may ask is decided here: {body}");
        assert!(
            body.contains("flunders.wardle.example.com is forbidden: User \\\"jane\\\" cannot list resource"),
            "{body}"
        );
        assert_eq!(create(&mut server, &format!("{rbac}/clusterroles"), rule).await.0, 201);
        let binding = json!({"metadata": {"name": "fl"}, "subjects": [{"kind": "Group", "name": "developers",
            "apiGroup": "rbac.authorization.k8s.io"}],
            "roleRef": {"kind": "ClusterRole", "name": "fl", "apiGroup": "rbac.authorization.k8s.io"}});
        assert_eq!(create(&mut server, &format!("{rbac}/clusterrolebindings"), binding).await.0, 201);
        let response = server
            .open(Asked {
                method: "GET",
                path: &format!("{FLUNDERS}?limit=7"),
                headers: hostile.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
                body: None,
            })
            .await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(
            !response.headers().contains_key("access-control-allow-origin"),
            "whose scripts may read it is not its word"
        );
        let (line, headers, client) = sample.asked("flunders?limit=7");
        assert_eq!((&*line, &*client), (&*format!("GET {FLUNDERS}?limit=7"), "front-proxy-client"));
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["developers", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.org%2ffoo"), ["bar"]);
        assert_eq!(all("host"), [format!("sample-api.default.svc:{}", sample.port)]);
        for gone in ["x-remote-extra-scopes", "authorization", "impersonate-user", "impersonate-group"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        let checked = sample.asked_exactly(&format!("GET {GROUP}"));
        assert_eq!(checked.1["x-remote-user"], "system:kube-aggregator");

        let mut socket =
            server.websocket(&format!("{FLUNDERS}/one/exec"), "v5.channel.k8s.io").await.map_err(|r| r.status());
        assert!(socket.is_ok(), "{:?}", socket.as_mut().err());

        sample.be(Mood::Redirecting);
        let (code, body) = asked(&mut server, "GET", FLUNDERS, &[]).await;
        assert_eq!((code, &*body), (502, "the backend attempted to redirect this request, which is not permitted"));
    });
}

#[test]
fn a_server_that_fails_is_unavailable_for_a_reason_and_breaks_nothing_else() {
    on_a_server(async |mut server| {
        let sample = Sample::start(&mut server).await;
        let (code, made) = create(&mut server, SERVICES, sample.registration()).await;
        assert_eq!(code, 201, "{made}");
        becomes(&mut server, NAME, "False", "ServiceNotFound").await;
        let (code, body) = asked(&mut server, "GET", FLUNDERS, &[]).await;
        assert_eq!((code, &*body), (503, "service unavailable\n"));
        assert_eq!(discovered(&mut server).await, json!({"version": "v1alpha1", "freshness": "Stale"}));
        let services = "/api/v1/namespaces/default/services";
        let service = json!({"metadata": {"name": "sample-api"}, "spec": {"ports": [{"port": 1}]}});
        assert_eq!(create(&mut server, services, service).await.0, 201);
        becomes(&mut server, NAME, "False", "ServicePortError").await;
        let ports = json!({"spec": {"ports": [{"port": sample.port}]}}).to_string().into_bytes();
        let path = format!("{services}/sample-api");
        assert_eq!(send(&mut server, "PATCH", &path, MERGE, ports).await.0, 200);
        becomes(&mut server, NAME, "False", "EndpointsNotFound").await;
        let slice = json!({"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "sample-api"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 1}],
            "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": false}}]});
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        assert_eq!(create(&mut server, slices, slice).await.0, 201);
        becomes(&mut server, NAME, "False", "MissingEndpoints").await;
        assert_eq!(send(&mut server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
        assert_eq!(
            send(&mut server, "DELETE", &format!("{SERVICES}/{NAME}"), "application/json", Vec::new()).await.0,
            200
        );

        sample.register(&mut server).await;
        for (mood, wanted) in
            [(Mood::Broken, "bad status from"), (Mood::Silent, "context deadline exceeded"), (Mood::Boundless, "")]
        {
            sample.be(mood);
            // A change of what is behind it is looked at at once.
            let touch = json!({"metadata": {"annotations": {"mood": format!("{mood:?}")}}}).to_string().into_bytes();
            assert_eq!(send(&mut server, "PATCH", &path, MERGE, touch).await.0, 200);
            if mood == Mood::Boundless {
                // It is there; what it has is not known.
                becomes(&mut server, NAME, "True", "Passed").await;
                assert_eq!(discovered(&mut server).await["freshness"], "Stale");
                continue;
            }
            becomes(&mut server, NAME, "False", "FailedDiscoveryCheck").await;
            let path = format!("{SERVICES}/{NAME}");
            let said = |found: &Value| found["status"]["conditions"][0]["message"].as_str().unwrap().contains(wanted);
            eventually(async || said(&server.get(&path).await)).await;
            assert_eq!(asked(&mut server, "GET", FLUNDERS, &[]).await, (503, "service unavailable\n".into()));
            assert_eq!(discovered(&mut server).await["freshness"], "Stale");
            let (code, _) = asked(&mut server, "GET", "/openapi/v3", &[]).await;
            assert_eq!(code, 200);
        }
        sample.be(Mood::Well);
        becomes(&mut server, NAME, "True", "Passed").await;
        eventually(async || discovered(&mut server).await["freshness"] == "Current").await;
    });
}

#[test]
fn a_namespace_ends_with_what_another_server_has_of_it_and_not_while_that_is_unknown() {
    on_a_server(async |mut server| {
        let sample = Sample::start(&mut server).await;
        sample.register(&mut server).await;
        let made = json!({"metadata": {"name": "ends"}});
        assert_eq!(create(&mut server, "/api/v1/namespaces", made).await.0, 201);
        let flunder = json!({"metadata": {"name": "f"}});
        let path = FLUNDERS.replace("default", "ends");
        assert_eq!(create(&mut server, &path, flunder).await.0, 201);
        sample.be(Mood::Broken);
        let touch = json!({"metadata": {"annotations": {"a": "b"}}}).to_string().into_bytes();
        let service = "/api/v1/namespaces/default/services/sample-api";
        assert_eq!(send(&mut server, "PATCH", service, MERGE, touch).await.0, 200);
        becomes(&mut server, NAME, "False", "FailedDiscoveryCheck").await;
        let namespace = "/api/v1/namespaces/ends";
        assert_eq!(send(&mut server, "DELETE", namespace, "application/json", Vec::new()).await.0, 200);
        eventually(async || {
            let first = server.get(namespace).await.pointer("/status/conditions/0").cloned().unwrap_or_default();
            first["type"] == "NamespaceDeletionDiscoveryFailure" && first["status"] == "True"
        })
        .await;
        let conditions = server.get(namespace).await["status"]["conditions"].take();
        assert_eq!(conditions[0]["reason"], "DiscoveryFailed");
        assert_eq!(
            conditions[0]["message"],
            "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: \
             wardle.example.com/v1alpha1: stale GroupVersion discovery: wardle.example.com/v1alpha1"
        );
        assert_eq!(sample.state.flunders.lock().unwrap().len(), 1);
        sample.be(Mood::Well);
        eventually(async || asked(&mut server, "GET", namespace, &[]).await.0 == 404).await;
        assert!(sample.state.flunders.lock().unwrap().is_empty());
        let user = sample.asked("DELETE").1["x-remote-user"].clone();
        assert_eq!(user, "system:serviceaccount:kube-system:namespace-controller");
    });
}

#[test]
fn what_is_served_here_has_apiservices_that_come_and_go_with_definitions() {
    on_a_server(async |mut server| {
        let all = server.get(SERVICES).await;
        let named =
            |name: &str| all["items"].as_array().unwrap().iter().find(|s| s["metadata"]["name"] == name).cloned();
        let apps = named("v1.apps").unwrap();
        assert_eq!(apps["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "onstart");
        assert_eq!(
            (&apps["spec"]["groupPriorityMinimum"], &apps["spec"]["versionPriority"]),
            (&json!(17_800), &json!(15))
        );
        assert_eq!(apps["status"]["conditions"][0]["message"], "Local APIServices are always available");
        assert_eq!(named("v1.").unwrap()["spec"]["groupPriorityMinimum"], 18_000);
        assert_eq!(named("v1.apiregistration.k8s.io"), None);
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let definition = json!({"metadata": {"name": "gadgets.a.example"}, "spec": {"group": "a.example",
            "scope": "Namespaced", "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        assert_eq!(create(&mut server, definitions, definition).await.0, 201);
        let path = format!("{SERVICES}/v1.a.example");
        eventually(async || server.get_if_there(&path).await).await;
        let made = server.get(&path).await;
        assert_eq!(made["metadata"]["labels"]["kube-aggregator.kubernetes.io/automanaged"], "true");
        assert_eq!(
            (&made["spec"]["groupPriorityMinimum"], &made["spec"]["versionPriority"]),
            (&json!(1000), &json!(100))
        );
        assert_eq!(send(&mut server, "DELETE", &path, "application/json", Vec::new()).await.0, 200);
        eventually(async || server.get_if_there(&path).await).await;
        let gone = format!("{definitions}/gadgets.a.example");
        assert_eq!(send(&mut server, "DELETE", &gone, "application/json", Vec::new()).await.0, 200);
        eventually(async || !server.get_if_there(&path).await).await;
    });
}
