//! `.../proxy`: requests that are handed on to a node, a pod or a ready pod of a Service, all verbs and upgrades included.
//!
//! Everything is reached from the node it is on ([`NodeAccess::dial`]), so a server without a node of its own and agents
//! behind address translation need nothing else. Bodies are handed on as they come, both ways; only pages of `text/html` are
//! held back to mend their links, and counted as answers that are not read meanwhile (`pages`). Invariant: who asked here is
//! not known there: credentials of the API stay here, and what only a proxy may say of a user is not handed on.

mod pages;
mod response;
mod rewrite;
mod target;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, Uri};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use self::response::carried;
pub(super) use self::response::headers_back;
use self::rewrite::Links;
use self::target::{ProxyTarget, unreachable};
use super::context::RequestContext;
use super::{Body, answer};
use crate::api::flowcontrol::Admission;
use crate::apimachinery::http::peer::Origin;
use crate::apimachinery::node_access::{Duplex, NodeAccess};
use crate::apimachinery::status::{Result, Status};
use crate::base::task;
use crate::wire::relay;

/// What Go leaves in a path as it is.
pub(super) const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');
/// Headers that say who asks, for us alone, and those in which a proxy tells a server behind it (`requestheader` of
/// Kubernetes' aggregation layer): a client's word is not ours.
const CREDENTIALS: &[&str] = &[
    "authorization",
    "impersonate-user",
    "impersonate-group",
    "impersonate-uid",
    "x-remote-user",
    "x-remote-uid",
    "x-remote-group",
];
const CREDENTIALS_BEGIN: &[&str] = &["impersonate-extra-", "x-remote-extra-"];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Where in the backend a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Way {
    /// Everything of the path up to and with `/proxy`.
    prefix: String,
    /// What the backend is asked for; empty where nothing follows `/proxy`, not even a slash.
    path: String,
}

/// Hands a request on; `rest` is what follows `proxy/` in its path.
pub(super) async fn respond(context: RequestContext, rest: &str, http: http::Request<Body>) -> Result<Response<Body>> {
    if !METHODS.contains(&http.method().as_str()) {
        return Err(Status::method_not_allowed());
    }
    let place = ProxyTarget::find(&context.api, &context.request)?;
    let way = Way::of(http.uri(), rest);
    let upgrade = relay::upgrade_of(http.headers());
    if way.path.is_empty() && matches!(*http.method(), Method::GET | Method::HEAD) && upgrade.is_none() {
        return Ok(with_a_slash(http.uri()));
    }
    let node = context
        .api
        .nodes
        .get(&place.node)
        .map_err(|_| unreachable(&format!("node {:?} cannot be reached now", place.node)))?;
    let host = host_of(&http);
    let links = Links { prefix: way.prefix.clone(), hosts: vec![place.host(), host.clone()] };
    let admission = http.extensions().get::<Arc<Admission>>().cloned();
    let (method, request, client) = prepared(http, &way, &host, upgrade.clone())?;
    let response = send(&*node, &place, request).await?;
    match upgrade {
        Some(_) => upgraded(response, client),
        None => handed_back(response, &method, &links, admission.as_deref()).await,
    }
}

// === impl Way ===

impl Way {
    fn of(uri: &Uri, rest: &str) -> Self {
        let decoded = percent_decode_str(uri.path()).decode_utf8_lossy();
        let prefix = decoded.strip_suffix(&format!("/{rest}")).unwrap_or(&decoded).to_owned();
        let mut path = cleaned(rest);
        if decoded.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        }
        Self { prefix, path }
    }
}

/// The path without empty segments and dots, which must not lead above its root.
fn cleaned(rest: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for segment in rest.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(out.pop()),
            segment => out.push(segment),
        }
    }
    out.iter().map(|segment| format!("/{segment}")).collect()
}

/// Relative links of a page need the slash.
fn with_a_slash(uri: &Uri) -> Response<Body> {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let mut response = answer::empty(301);
    if let Ok(to) = HeaderValue::from_str(&format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, to);
    }
    response
}

/// The host that the client asked.
fn host_of(http: &http::Request<Body>) -> String {
    let header = http.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    header.or_else(|| http.uri().authority().map(http::uri::Authority::as_str)).unwrap_or_default().to_owned()
}

/// The request as the backend gets it, and the client's end of an upgrade.
fn prepared(
    mut http: http::Request<Body>,
    way: &Way,
    host: &str,
    upgrade: Option<HeaderValue>,
) -> Result<(Method, http::Request<Body>, hyper::upgrade::OnUpgrade)> {
    let client = hyper::upgrade::on(&mut http);
    let from = http.extensions().get::<Origin>().map(|f| f.0);
    let (parts, body) = http.into_parts();
    let path = if way.path.is_empty() { "/" } else { &way.path };
    let query = parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let uri = format!("{}{query}", utf8_percent_encode(path, IN_PATH));
    let mut request = http::Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri.parse().map_err(|_| Status::bad_request("the path cannot be handed on"))?;
    let headers = request.headers_mut();
    *headers = parts.headers;
    headers_there(headers, host, from, &format!("{}{path}", way.prefix));
    if let Some(to) = upgrade {
        relay::set_upgrade(headers, to);
    }
    Ok((parts.method, request, client))
}

/// The headers as the backend gets them.
pub(super) fn headers_there(headers: &mut HeaderMap, host: &str, from: Option<IpAddr>, uri: &str) {
    relay::strip_hop_by_hop(headers);
    // The body follows at once; whoever waits for a go-ahead has it from us.
    headers.remove(header::EXPECT);
    let ours = |name: &&HeaderName| {
        let name = name.as_str();
        CREDENTIALS.contains(&name) || CREDENTIALS_BEGIN.iter().any(|begin| name.starts_with(begin))
    };
    for name in headers.keys().filter(ours).cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
    // HTTP/2 may send them one by one, HTTP/1.1 knows one header.
    let cookies: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let (true, Ok(all)) = (cookies.len() > 1, HeaderValue::from_bytes(&cookies.join(&b"; "[..]))) {
        headers.insert(header::COOKIE, all);
    }
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    let passed = headers.get_all("x-forwarded-for").iter().filter_map(|v| v.to_str().ok());
    let all: Vec<String> = passed.map(str::to_owned).chain(from.map(|f| f.to_string())).collect();
    if let (false, Ok(all)) = (all.is_empty(), HeaderValue::from_str(&all.join(", "))) {
        headers.insert("x-forwarded-for", all);
    }
    if let Ok(uri) = HeaderValue::from_str(&utf8_percent_encode(uri, IN_PATH).to_string()) {
        headers.insert("x-forwarded-uri", uri);
    }
}

async fn send(node: &dyn NodeAccess, place: &ProxyTarget, request: http::Request<Body>) -> Result<Response<Incoming>> {
    let stream = node.dial(&place.to).await.map_err(|s| unreachable(&s.message))?;
    let sent = match place.secure {
        true => {
            let host = place.host();
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).trim_matches(['[', ']']);
            let secured = relay::secure(stream, name).await.map_err(|e| unreachable(&format!("tls: {e}")))?;
            relay::send(secured, request).await
        }
        false => relay::send::<Box<dyn Duplex>, _>(stream, request).await,
    };
    sent.map_err(|e| unreachable(&if e.is_incomplete_message() { "EOF".into() } else { e.to_string() }))
}

/// Joins the two connections once both have changed over.
fn upgraded(response: Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Result<Response<Body>> {
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        if status.is_client_error() || status.is_server_error() {
            return Ok(carried(response));
        }
        return Err(Status::internal(format!("invalid upgrade response: status code {}", status.as_u16())));
    }
    Ok(switched(response, client))
}

/// The answer to a client whose connection changes over as the backend's has.
pub(super) fn switched(mut response: Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Response<Body> {
    let status = response.status();
    let backend = hyper::upgrade::on(&mut response);
    let to = response.headers().get(header::UPGRADE).cloned();
    task::spawn("proxied upgrade", async move {
        let joined = match tokio::try_join!(client, backend) {
            Ok((client, backend)) => relay::splice(client, backend).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = joined {
            tracing::debug!(error, "a proxied upgrade ended");
        }
    });
    let (mut parts, _) = response.into_parts();
    headers_back(&mut parts.headers);
    let mut out = Response::new(answer::full(Bytes::new()));
    *out.status_mut() = status;
    *out.headers_mut() = parts.headers;
    if let Some(to) = to {
        relay::set_upgrade(out.headers_mut(), to);
    }
    out
}

async fn handed_back(
    response: Response<Incoming>,
    method: &Method,
    links: &Links,
    admission: Option<&Admission>,
) -> Result<Response<Body>> {
    // A switch of protocols that nobody has asked for leads nowhere, and HTTP/2 has none.
    if response.status().is_informational() {
        return Err(unreachable(&format!("unexpected status code {}", response.status().as_u16())));
    }
    let header_of = |name: HeaderName| {
        let value = response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim().to_owned()
    };
    let is_page = header_of(header::CONTENT_TYPE) == "text/html";
    let encoding = header_of(header::CONTENT_ENCODING);
    let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if let (false, Ok(to)) = (location.is_empty(), HeaderValue::from_str(&links.link(location))) {
        let mut response = carried(response);
        response.headers_mut().insert(header::LOCATION, to);
        return Ok(response);
    }
    let known = matches!(encoding.as_str(), "" | "identity" | "gzip");
    match admission.filter(|_| is_page && known && *method != Method::HEAD) {
        Some(admission) => pages::mended(response, links, &encoding, admission).await,
        None => Ok(carried(response)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(path: &str, rest: &str) -> (String, String) {
        let way = Way::of(&path.parse().unwrap(), rest);
        (way.prefix, way.path)
    }

    #[test]
    fn the_way_behind_proxy_is_read_as_kubernetes_reads_it() {
        let prefix = "/api/v1/namespaces/n/pods/p:80/proxy";
        for (tail, rest, path) in [
            ("", "", ""),
            ("/", "", "/"),
            ("/a", "a", "/a"),
            ("/a/b/", "a/b/", "/a/b/"),
            ("//a", "/a", "/a"),
            ("/a/../../b", "a/../../b", "/b"),
            ("/x%20y", "x y", "/x y"),
        ] {
            let (found, to) = way(&format!("{prefix}{tail}"), rest);
            assert_eq!(to, path, "{tail}");
            assert_eq!(found, prefix, "{tail}");
        }
        let moved = with_a_slash(&format!("{prefix}?method=GET").parse().unwrap());
        assert_eq!(
            (moved.status().as_u16(), moved.headers()["location"].to_str().unwrap()),
            (301, format!("{prefix}/?method=GET").as_str())
        );
    }

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("impersonate-user", "a"),
            ("impersonate-extra-scopes", "b"),
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-scopes", "b"),
            ("x-remote-uid", "b"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("x-forwarded-for", "192.0.2.7"),
            ("connection", "keep-alive"),
            ("accept", "*/*"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers_there(&mut headers, "api:6443", Some([192, 0, 2, 9].into()), "/p/proxy/a b");
        let mut all: Vec<String> = headers.iter().map(|(k, v)| format!("{k}: {}", v.to_str().unwrap())).collect();
        all.sort();
        assert_eq!(
            all,
            [
                "accept: */*",
                "cookie: a=1; b=2",
                "host: api:6443",
                "x-forwarded-for: 192.0.2.7, 192.0.2.9",
                "x-forwarded-uri: /p/proxy/a%20b",
            ]
        );
    }
}
