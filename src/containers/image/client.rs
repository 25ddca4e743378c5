//! The registry protocol: authenticated GET requests with redirects, and blobs into files.
//!
//! Credentials go only to the host that they were configured for and to the token service that this host itself names:
//! never to a redirect's target, whatever that asks for. What a registry says of other places is followed only as far as
//! [`reach`](super::reach) lets it, and never from TLS to plain text.

use std::collections::HashMap;
use std::io::{Seek, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::connect::{Sender, connect};
use super::error::{io, shortened};
use super::reach::{Reach, SentBy};
use super::registries::{Endpoint, Registries};
use super::{Credentials, ImageError, Result};
use crate::base::progress;

const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
const STALL_PATIENCE: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: usize = 5;
/// Manifests and configurations beyond this are refused.
pub(super) const DOCUMENT_MAX: usize = 8 * 1024 * 1024;
/// A token with what is said about it.
const TOKEN_MAX: usize = 256 * 1024;
/// What a registry says of an error.
const REASON_MAX: usize = 64 * 1024;
/// Repositories whose tokens are kept; beyond that all are asked for anew.
const TOKENS_MAX: usize = 256;
/// A download that broke is taken up again this often.
const RESUMES_MAX: usize = 4;
const IDLE_MAX: usize = 16;

/// Keeps connections and tokens between requests.
#[derive(Default)]
pub(super) struct Client {
    idle: Mutex<Vec<Idle>>,
    /// What opened a repository, and whose it was.
    tokens: Mutex<HashMap<String, (String, Credentials)>>,
}

struct Idle {
    /// Scheme and host.
    key: String,
    sender: Sender,
    address: IpAddr,
}

/// What was answered, and from where.
struct Answer {
    response: Response<Incoming>,
    from: Reach,
}

/// One repository on one endpoint, with what may open it.
pub(super) struct Repository<'a> {
    pub client: &'a Client,
    pub registries: &'a Registries,
    pub endpoint: Endpoint,
    pub credentials: Vec<Credentials>,
    /// Which of them was good last; none where nobody asked.
    pub opened: Mutex<Option<Credentials>>,
    /// As the user wrote it, for messages.
    pub reference: String,
}

impl Client {
    async fn sender(
        &self,
        registries: &Registries,
        https: bool,
        host: &str,
        sent_by: SentBy,
    ) -> Result<(Sender, IpAddr)> {
        let key = format!("{https} {host}");
        loop {
            let idle = {
                let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let fits = |idle: &Idle| {
                    let usable = idle.sender.is_ready() || idle.sender.is_closed();
                    idle.key == key && usable && sent_by.refuses(idle.address).is_none()
                };
                let index = idle.iter().position(fits);
                index.map(|index| idle.swap_remove(index))
            };
            match idle {
                Some(idle) if idle.sender.is_closed() => {}
                Some(idle) => return Ok((idle.sender, idle.address)),
                None => break,
            }
        }
        let unreachable = |reason| ImageError::Unreachable { registry: host.to_owned(), reason };
        connect(https, host, registries.tls(host), sent_by).await.map_err(unreachable)
    }

    /// One request without redirects and authentication.
    async fn get(&self, registries: &Registries, url: &Uri, headers: &HeaderMap, sent_by: SentBy) -> Result<Answer> {
        let https = url.scheme_str() != Some("http");
        let host = url.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let sent_by = if registries.names(&host) { SentBy::Named } else { sent_by };
        let unreachable = |reason: String| ImageError::Unreachable { registry: host.clone(), reason };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        for attempt in 0..2 {
            let (mut sender, address) = self.sender(registries, https, &host, sent_by).await?;
            let mut request = Request::get(path).header(header::HOST, &host).header(header::USER_AGENT, "amphipod");
            if let Some(into) = request.headers_mut() {
                into.extend(headers.clone());
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(|error| unreachable(error.to_string()))?;
            match tokio::time::timeout(ANSWER_PATIENCE, sender.send_request(request)).await {
                Ok(Ok(response)) => {
                    let mut idle = self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    idle.retain(|idle| !idle.sender.is_closed());
                    if idle.len() < IDLE_MAX {
                        idle.push(Idle { key: format!("{https} {host}"), sender, address });
                    }
                    return Ok(Answer { response, from: Reach::of(address) });
                }
                // An idle connection may have been closed by the other side just now.
                Ok(Err(_)) if attempt == 0 => {}
                Ok(Err(error)) => return Err(unreachable(error.to_string())),
                Err(_) => return Err(unreachable("no answer in time".into())),
            }
        }
        Err(unreachable("connection closed".into()))
    }
}

impl Repository<'_> {
    fn url(&self, path: &str) -> Result<Uri> {
        let scheme = if self.endpoint.https { "https" } else { "http" };
        let Endpoint { host, base, repository, namespace, .. } = &self.endpoint;
        let query = namespace.as_ref().map(|name| format!("?ns={name}")).unwrap_or_default();
        let text = format!("{scheme}://{host}{base}/{repository}/{path}{query}");
        text.parse().map_err(|error| ImageError::invalid("URL", format!("{text}: {error}")))
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull", self.endpoint.repository)
    }

    /// A GET with whatever authentication the registry asks for, following redirects.
    async fn fetch(&self, path: &str, headers: &HeaderMap) -> Result<Response<Incoming>> {
        let url = self.url(path)?;
        let token_key = format!("{} {} {:?}", self.endpoint.host, self.scope(), self.credentials);
        let known =
            self.client.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&token_key).cloned();
        let mut authorization = known;
        let mut tries =
            self.credentials.iter().chain(std::iter::once(&Credentials::default())).cloned().collect::<Vec<_>>();
        tries.reverse();
        loop {
            let (Answer { response, from: reach }, from) =
                self.follow(url.clone(), headers, authorization.as_ref().map(|(value, _)| value.as_str())).await?;
            let refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            if refused && !same_origin(&from, &url) {
                return Err(self.redirect_refused(&from, response).await);
            }
            if !refused {
                let opened = authorization.as_ref().map(|(_, credentials)| credentials.clone());
                *self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = opened;
                if let Some(authorization) = authorization {
                    let mut tokens = self.client.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if tokens.len() >= TOKENS_MAX {
                        tokens.clear();
                    }
                    tokens.insert(token_key, authorization);
                }
                return Ok(response);
            }
            let challenge = response.headers().get(header::WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            let challenge = challenge.unwrap_or_default().to_owned();
            let refusal = reason(response).await;
            self.client.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&token_key);
            authorization = None;
            while authorization.is_none() {
                let Some(credentials) = tries.pop() else { return Err(self.unauthorized(&refusal)) };
                authorization =
                    self.authorize(&challenge, reach, &credentials).await?.map(|value| (value, credentials));
            }
        }
    }

    /// Whose credentials were good last.
    pub(super) fn opened_by(&self) -> Option<Credentials> {
        self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn unauthorized(&self, reason: &str) -> ImageError {
        ImageError::Unauthorized {
            reference: self.reference.clone(),
            registry: self.endpoint.host.clone(),
            reason: reason.to_owned(),
        }
    }

    /// Whoever was redirected to refused; what it wants is none of its business.
    async fn redirect_refused(&self, target: &Uri, response: Response<Incoming>) -> ImageError {
        let target = target.authority().map_or("", |authority| authority.as_str()).to_owned();
        let refusal = reason(response).await;
        self.unauthorized(&format!("it redirects to {target}, which answers: {refusal}"))
    }

    /// Answers with the URL that the redirects led to.
    async fn follow(&self, origin: Uri, headers: &HeaderMap, authorization: Option<&str>) -> Result<(Answer, Uri)> {
        let mut url = origin.clone();
        let mut sent_by = SentBy::Named;
        for _ in 0..REDIRECTS_MAX {
            let mut headers = headers.clone();
            if let Some(value) = authorization.filter(|_| same_origin(&url, &origin))
                && let Ok(value) = value.parse()
            {
                headers.insert(header::AUTHORIZATION, value);
            }
            let answer = self.client.get(self.registries, &url, &headers, sent_by).await;
            let answer = answer.map_err(|error| match sent_by {
                SentBy::Named => error,
                // Its path and query may be what opens it.
                SentBy::Server(_) => {
                    let host = url.authority().map_or("", |authority| authority.as_str());
                    self.astray(&format!("it redirects to {host}"), &error)
                }
            })?;
            let response = &answer.response;
            if !response.status().is_redirection() {
                return Ok((answer, url));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or("");
            url = join(&url, location).map_err(|why| ImageError::Registry {
                registry: self.endpoint.host.clone(),
                status: response.status().as_u16(),
                reason: format!("it redirects to {:?}, {why}", shortened(location)),
            })?;
            sent_by = SentBy::Server(answer.from);
        }
        let reason = "too many redirects".to_owned();
        Err(ImageError::Registry { registry: self.endpoint.host.clone(), status: 310, reason })
    }

    /// Where the registry sent us could not be reached.
    fn astray(&self, what: &str, error: &ImageError) -> ImageError {
        let registry = self.endpoint.host.clone();
        ImageError::Unreachable { registry, reason: format!("{}: {error}", shortened(what)) }
    }

    /// The value of `Authorization` that answers a challenge, which came from so far; `None` when these credentials are no answer
    /// to it.
    async fn authorize(&self, challenge: &str, from: Reach, credentials: &Credentials) -> Result<Option<String>> {
        if !credentials.registry_token.is_empty() {
            return Ok(Some(format!("Bearer {}", credentials.registry_token)));
        }
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Ok((!credentials.username.is_empty()).then(|| basic(credentials)));
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Ok(None);
        }
        let parameters = parse_parameters(parameters);
        let Some(realm) = parameters.get("realm") else { return Ok(None) };
        let scope = parameters.get("scope").cloned().unwrap_or_else(|| self.scope());
        let service = parameters.get("service").map(String::as_str);
        let url = token_url(realm, &scope, service)?;
        if url.scheme_str() != Some("https") && (self.endpoint.https || url.scheme_str() != Some("http")) {
            let why = format!("its token service {:?} is without TLS, which it has itself", shortened(realm));
            return Err(self.unauthorized(&why));
        }
        let mut headers = HeaderMap::new();
        if !credentials.username.is_empty()
            && let Ok(value) = basic(credentials).parse()
        {
            headers.insert(header::AUTHORIZATION, value);
        }
        let answer = self.client.get(self.registries, &url, &headers, SentBy::Server(from)).await;
        let what = || format!("its token service is {realm:?}");
        let response = answer.map_err(|error| self.astray(&what(), &error))?.response;
        if !response.status().is_success() {
            return Ok(None);
        }
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Token {
            token: String,
            access_token: String,
        }
        let token: Token = serde_json::from_slice(&document(response, &self.endpoint.host, TOKEN_MAX).await?)
            .map_err(|error| ImageError::invalid("token", error))?;
        let token = if token.token.is_empty() { token.access_token } else { token.token };
        Ok((!token.is_empty()).then(|| format!("Bearer {token}")))
    }

    /// A manifest (or index) with its media type.
    pub(super) async fn manifest(&self, version: &str) -> Result<(String, Bytes)> {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT,
            crate::containers::image::manifest::ACCEPT.parse().expect("a constant without control characters"),
        );
        let response = self.checked(&format!("manifests/{version}"), &headers).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let kind = kind.split(';').next().unwrap_or("").trim().to_owned();
        Ok((kind, document(response, &self.endpoint.host, DOCUMENT_MAX).await?))
    }

    /// A small blob, verified.
    pub(super) async fn small_blob(&self, digest: &str) -> Result<Bytes> {
        let response = self.checked(&format!("blobs/{digest}"), &HeaderMap::new()).await?;
        let bytes = document(response, &self.endpoint.host, DOCUMENT_MAX).await?;
        let actual = super::digest_of(&bytes);
        match actual == digest {
            true => Ok(bytes),
            false => Err(ImageError::WrongDigest { expected: digest.to_owned(), actual }),
        }
    }

    async fn checked(&self, path: &str, headers: &HeaderMap) -> Result<Response<Incoming>> {
        let response = self.fetch(path, headers).await?;
        let registry = self.endpoint.host.clone();
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(ImageError::NotFound { reference: self.reference.clone(), registry }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.unauthorized(&reason(response).await)),
            status => Err(ImageError::Registry { registry, status: status.as_u16(), reason: reason(response).await }),
        }
    }

    /// Downloads a blob into `partial`, going on where an earlier try stopped, and verifies it. A wrong or short one is
    /// removed; after a broken connection the part stays for the next try.
    pub(super) async fn blob(&self, digest: &str, size_bytes: u64, partial: &Path) -> Result<()> {
        let mut resumes = 0;
        loop {
            let before = std::fs::metadata(partial).map_or(0, |metadata| metadata.len());
            match self.blob_once(digest, size_bytes, partial).await {
                Err(ImageError::Truncated { what, got_bytes, expected_bytes }) => {
                    // More came than before: worth going on, without limit; nothing new: a few tries only.
                    resumes = if got_bytes > before { 0 } else { resumes + 1 };
                    if resumes >= RESUMES_MAX || got_bytes == 0 {
                        let _ = std::fs::remove_file(partial);
                        return Err(ImageError::Truncated { what, got_bytes, expected_bytes });
                    }
                }
                Err(error @ ImageError::WrongDigest { .. }) => {
                    let _ = std::fs::remove_file(partial);
                    return Err(error);
                }
                result => return result,
            }
        }
    }

    async fn blob_once(&self, digest: &str, size_bytes: u64, partial: &Path) -> Result<()> {
        let failed = |what| io::<std::io::Error>(what, partial);
        let mut file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(partial)
            .map_err(failed("opening"))?;
        let mut hasher = Sha256::new();
        let mut have = std::io::copy(&mut file, &mut HashWriter(&mut hasher)).map_err(failed("reading"))?;
        let mut headers = HeaderMap::new();
        if have > 0 && have < size_bytes {
            headers.insert(header::RANGE, format!("bytes={have}-").parse().expect("digits and ASCII letters"));
        }
        if have < size_bytes {
            let response = self.checked(&format!("blobs/{digest}"), &headers).await?;
            if have > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                file.set_len(0).and_then(|()| file.rewind()).map_err(failed("truncating"))?;
                (hasher, have) = (Sha256::new(), 0);
            }
            let mut body = response.into_body();
            // An error here is a broken connection: the lengths below tell.
            while let Ok(Some(Ok(frame))) = tokio::time::timeout(STALL_PATIENCE, body.frame()).await {
                let Some(bytes) = frame.data_ref() else { continue };
                hasher.update(bytes);
                file.write_all(bytes).map_err(failed("writing"))?;
                have += bytes.len() as u64;
                progress::advance(bytes.len() as u64);
                if have > size_bytes {
                    break;
                }
            }
        }
        if have < size_bytes {
            let what = format!("blob {digest}");
            return Err(ImageError::Truncated { what, got_bytes: have, expected_bytes: size_bytes });
        }
        let actual = format!("sha256:{}", hex::encode(hasher.finalize()));
        match actual == digest {
            true => Ok(()),
            false => Err(ImageError::WrongDigest { expected: digest.to_owned(), actual }),
        }
    }
}

fn token_url(realm: &str, scope: &str, service: Option<&str>) -> Result<Uri> {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("scope", scope);
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    let joint = if realm.contains('?') { '&' } else { '?' };
    let text = format!("{realm}{joint}{}", query.finish());
    text.parse().map_err(|error| ImageError::invalid("token service", format!("{text}: {error}")))
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads a body of bounded size.
async fn document(response: Response<Incoming>, host: &str, bytes_max: usize) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(response.into_body(), bytes_max);
    let unreachable = |reason: String| ImageError::Unreachable { registry: host.to_owned(), reason };
    match tokio::time::timeout(STALL_PATIENCE, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable("no answer in time".into())),
    }
}

/// What the registry says in an error, in few words.
async fn reason(response: Response<Incoming>) -> String {
    let status = response.status();
    let body = document(response, "", REASON_MAX).await.unwrap_or_default();
    let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = parsed["errors"][0]["message"].as_str().unwrap_or("");
    match message {
        "" => status.canonical_reason().unwrap_or("error").to_lowercase(),
        message => shortened(message),
    }
}

fn basic(credentials: &Credentials) -> String {
    let secret =
        if credentials.identity_token.is_empty() { &credentials.password } else { &credentials.identity_token };
    let pair = format!("{}:{secret}", credentials.username);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// `a="b",c="d"`, as in a `WWW-Authenticate` header.
fn parse_parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        found.insert(key.trim().to_ascii_lowercase(), value.to_owned());
        rest = next.trim_start_matches([',', ' ']);
    }
    found
}

/// Credentials for one are credentials for the other.
fn same_origin(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// Where a redirect leads: never from TLS to plain text, where anybody on the way could answer.
fn join(base: &Uri, location: &str) -> std::result::Result<Uri, &'static str> {
    const NOWHERE: &str = "which is no address of a web server";
    let (Some(scheme), Some(authority)) = (base.scheme_str(), base.authority()) else { return Err(NOWHERE) };
    let text = match location {
        _ if location.starts_with("https://") => location.to_owned(),
        _ if location.starts_with("http://") && scheme == "http" => location.to_owned(),
        _ if location.starts_with("http://") => return Err("which is without TLS"),
        // `//host/path` is on another host.
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => return Err(NOWHERE),
    };
    text.parse().map_err(|_| NOWHERE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let found = parse_parameters(r#"realm="https://auth.example/token",service="r", scope="repository:a,b:pull""#);
        assert_eq!(found["realm"], "https://auth.example/token");
        assert_eq!(found["service"], "r");
        assert_eq!(found["scope"], "repository:a,b:pull");
    }

    #[test]
    fn redirects_may_be_relative() {
        let base: Uri = "https://r.example/v2/a".parse().unwrap();
        assert_eq!(join(&base, "/x?y").unwrap(), "https://r.example/x?y");
        assert_eq!(join(&base, "https://cdn.example/z").unwrap(), "https://cdn.example/z");
        assert_eq!(join(&base, "//cdn.example/z").unwrap(), "https://cdn.example/z");
        assert!(join(&base, "ftp://x").is_err() && join(&base, "").is_err() && join(&base, "https://").is_err());
        assert_eq!(join(&base, "http://cdn.example/z"), Err("which is without TLS"));
        let plain: Uri = "http://r.example/v2/a".parse().unwrap();
        assert_eq!(join(&plain, "http://cdn.example/z").unwrap(), "http://cdn.example/z");
        assert!(same_origin(&base, &join(&base, "/x").unwrap()) && !same_origin(&base, &plain));
    }
}
