//! Connections to a server that answers for a version of a group, and what this server asks for itself.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::remote::Remote;
use super::trust::Trust;
use crate::api::{Api, service_endpoint};
use crate::apimachinery::node_access::Duplex;
use crate::apimachinery::user::{MASTERS, User};
use crate::base::error;
use crate::wire::relay;
use crate::wire::webhook::Reply;

/// How long a connection may take to come about, as in Go's dialer.
const DIAL: Duration = Duration::from_secs(30);
/// How long a handshake may take, as in Go's transport.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a header's name may have beside letters and digits; the percent sign is what escapes others.
const IN_HEADER_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// What this server asks.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    /// As whom.
    pub user: &'a User,
    pub method: &'a Method,
    pub path: &'a str,
    pub body: String,
    /// Bytes of the answer.
    pub bytes_max: usize,
    /// Whether the answer is used for more than that there is one.
    pub verified: bool,
}

// === impl Question ===

impl<'a> Question<'a> {
    /// To read what is at a path.
    pub(super) fn get(path: &'a str, bytes_max: usize) -> Self {
        Self { user: aggregator(), method: &Method::GET, path, body: String::new(), bytes_max, verified: true }
    }
}

// === impl Remote ===

impl Remote {
    /// A connection to one of its endpoints, on whatever node that is.
    pub async fn connect(&self, api: &Api) -> Result<TlsStream<Box<dyn Duplex>>, String> {
        self.connect_with(api, self.tls()?).await
    }

    async fn connect_with(&self, api: &Api, tls: Arc<ClientConfig>) -> Result<TlsStream<Box<dyn Duplex>>, String> {
        let host = self.host();
        let name = ServerName::try_from(host.clone()).map_err(|_| format!("{host:?} is no name of a server"))?;
        let dialling = service_endpoint::dial(api, &self.backend.namespace, &self.backend.service, self.backend.port);
        let stream = tokio::time::timeout(DIAL, dialling).await.map_err(|_| "dial tcp: i/o timeout".to_owned())??;
        let secured = tokio::time::timeout(HANDSHAKE, TlsConnector::from(tls).connect(name, stream)).await;
        let secured = secured.map_err(|_| "net/http: TLS handshake timeout".to_owned())?;
        secured.map_err(|why| format!("tls: {}", error::chain(&why)))
    }

    /// Asks for this server itself.
    pub(super) async fn ask(&self, api: &Api, question: &Question<'_>) -> Result<Reply, String> {
        let tls = match question.verified {
            true => self.tls()?,
            false => Trust::Anyone.tls(self.state.identity.as_deref()).map_err(|why| why.to_string())?,
        };
        let stream = self.connect_with(api, tls).await?;
        let mut builder = Request::builder()
            .method(question.method)
            .uri(question.path)
            .header(HOST, self.authority())
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, "kube-aggregator");
        if !question.body.is_empty() {
            builder = builder.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(question.body.clone()));
        let mut request = builder.body(body).map_err(|error| error.to_string())?;
        name_user(request.headers_mut(), question.user).map_err(|()| "malformed user".to_owned())?;
        let response = relay::send(stream, request).await.map_err(|why| error::chain(&why))?;
        let status = response.status().as_u16();
        if !question.verified {
            // That there is an answer is all that is asked.
            return Ok(Reply { status, body: Bytes::new() });
        }
        let body = Limited::new(response.into_body(), question.bytes_max).collect().await;
        Ok(Reply { status, body: body.map_err(|why| why.to_string())?.to_bytes() })
    }
}

/// As whom this server asks others for itself.
fn aggregator() -> &'static User {
    static AGGREGATOR: LazyLock<User> = LazyLock::new(|| User {
        name: "system:kube-aggregator".into(),
        groups: vec![MASTERS.into()],
        ..User::default()
    });
    &AGGREGATOR
}

/// Tells a server who asks, in the place of what a client may have said of it. An error: the user has no name that a header
/// can carry.
pub(in crate::api) fn name_user(headers: &mut HeaderMap, user: &User) -> Result<(), ()> {
    let ours = |name: &&HeaderName| name.as_str().starts_with("x-remote-");
    for name in headers.keys().filter(ours).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).map_err(drop);
    headers.insert("x-remote-user", value(&user.name)?);
    if !user.uid.is_empty() {
        headers.insert("x-remote-uid", value(&user.uid)?);
    }
    for group in &user.groups {
        headers.append("x-remote-group", value(group)?);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, IN_HEADER_NAME));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(drop)?;
        for text in values {
            headers.append(name.clone(), value(text)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_what_this_server_says_and_nobody_else() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("admin"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        let user = User {
            name: "jané".into(),
            uid: "7".into(),
            groups: vec!["a".into(), "b".into()],
            extra: vec![("example.org/foo%bar".into(), vec!["x".into(), "y".into()])],
        };
        name_user(&mut headers, &user).unwrap();
        let mut all: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        all.sort();
        let expect = [
            ("x-remote-extra-example.org%2ffoo%25bar", "x"),
            ("x-remote-extra-example.org%2ffoo%25bar", "y"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-uid", "7"),
            ("x-remote-user", "jané"),
        ];
        assert_eq!(all, expect.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let broken = User { name: "a\nb".into(), ..User::default() };
        assert!(name_user(&mut headers, &broken).is_err(), "no header is smuggled in");
    }
}
