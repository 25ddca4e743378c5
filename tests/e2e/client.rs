//! HTTPS clients of the test's own, where kubectl would be too slow: many connections from one thread.

use amphipod::wire::client::{Client, Target};
use amphipod::wire::tls;
use base64::Engine;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use crate::lab::Lab;

/// Where the machine's administrator is served. The thread that connects must be in the machine's network namespace.
pub fn target(lab: &Lab) -> Target {
    target_of(&lab.path("etc/kubeconfig.yaml"))
}

/// The same by its kubeconfig.
pub fn target_of(kubeconfig: &std::path::Path) -> Target {
    let text = std::fs::read_to_string(kubeconfig).unwrap();
    let config: Value = serde_yaml::from_str(&text).unwrap();
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let pem = |v: &Value| base64::engine::general_purpose::STANDARD.decode(v.as_str().unwrap()).unwrap();
    let (chain, key) = (pem(&user["client-certificate-data"]), pem(&user["client-key-data"]));
    Target {
        server: cluster["server"].as_str().unwrap().parse().unwrap(),
        tls: tls::client(&pem(&cluster["certificate-authority-data"]), Some((&chain, &key))).unwrap(),
        token: None,
        user_agent: "e2e".into(),
    }
}

/// TLS with the server of a kubeconfig, as nobody.
pub fn without_certificate(kubeconfig: &std::path::Path) -> std::sync::Arc<rustls::ClientConfig> {
    let config: Value = serde_yaml::from_str(&std::fs::read_to_string(kubeconfig).unwrap()).unwrap();
    let authority = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    tls::client(&base64::engine::general_purpose::STANDARD.decode(authority).unwrap(), None).unwrap()
}

/// Sends a request and reads the whole answer; nothing if the server went away before it was complete.
pub async fn send(client: &mut Client, method: Method, path: &str, body: Option<&Value>) -> Option<(u16, Value)> {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = body.map_or_else(Bytes::new, |b| b.to_string().into());
    let response = client.send(request.body(Full::new(body)).unwrap()).await.ok()?;
    let status = response.status().as_u16();
    let answer = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, serde_json::from_slice(&answer).unwrap_or_default()))
}
