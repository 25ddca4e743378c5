//! HTTP/1.1 handed on: a request over a stream that somebody else has opened, and what may not go with it.
//!
//! The stream may be a connection to a pod, one through an agent's tunnel, or a pipe inside this process; what is asked for
//! is the same. Invariant: headers that speak of one connection never reach the next one, except that an upgrade is asked
//! for anew.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls;
use crate::base::task;

/// How long a handshake may take, as in Go's transport.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Headers of one connection (RFC 9110, section 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the request wants the connection to become, if it asks for that.
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    connection_names(headers)
        .any(|n| n.eq_ignore_ascii_case("upgrade"))
        .then(|| headers.get(header::UPGRADE).cloned())?
}

fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let all = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    all.flat_map(|v| v.split(',')).map(str::trim).filter(|n| !n.is_empty())
}

/// Removes what is meant for one connection only.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = connection_names(headers).map(str::to_owned).collect();
    for name in &named {
        headers.remove(name.as_str());
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
}

/// Asks for an upgrade, in a request or in the answer to one.
pub fn set_upgrade(headers: &mut HeaderMap, to: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, to);
}

/// Sends one request over a stream that is used for nothing else. Dropping the answer's body closes it.
pub async fn send<S, B>(stream: S, request: Request<B>) -> Result<Response<Incoming>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.title_case_headers(true);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    task::spawn("handed on", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a request that was handed on broke off");
        }
    });
    sender.send_request(request).await
}

/// TLS over a stream, with whoever is there: as Kubernetes' proxy, which looks at no certificate of a pod.
pub async fn secure<S>(stream: S, host: &str) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut config = (*tls::trusting_anyone()?).clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let late = || io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timeout");
    tokio::time::timeout(HANDSHAKE, connecting).await.unwrap_or_else(|_| Err(late()))
}

/// Moves bytes both ways between two upgraded connections until both sides have ended, or one breaks.
pub async fn splice(one: hyper::upgrade::Upgraded, other: hyper::upgrade::Upgraded) -> io::Result<()> {
    let (mut one, mut other) = (TokioIo::new(one), TokioIo::new(other));
    tokio::io::copy_bidirectional(&mut one, &mut other).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn what_speaks_of_the_connection_stays_behind() {
        let mut all = headers(&[
            ("connection", "Upgrade, x-own"),
            ("upgrade", "websocket"),
            ("x-own", "1"),
            ("te", "trailers"),
            ("keep-alive", "5"),
            ("x-other", "2"),
        ]);
        assert_eq!(upgrade_of(&all).unwrap(), "websocket");
        strip_hop_by_hop(&mut all);
        assert_eq!(all.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
        assert!(upgrade_of(&all).is_none());
        assert!(upgrade_of(&headers(&[("upgrade", "h2c")])).is_none(), "not asked for");
    }

    #[tokio::test]
    async fn a_request_goes_over_any_stream() {
        use http_body_util::{BodyExt, Full};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (ours, mut theirs) = tokio::io::duplex(1 << 10);
        let answering = task::spawn("server", async move {
            let mut head = vec![0; 1 << 10];
            let n = theirs.read(&mut head).await.unwrap();
            theirs.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            String::from_utf8_lossy(&head[..n]).into_owned()
        });
        let request = Request::put("/a?b").header("host", "h").body(Full::new(Bytes::from("body"))).unwrap();
        let response = send(ours, request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        let head = answering.await.unwrap().unwrap();
        assert!(head.starts_with("PUT /a?b HTTP/1.1\r\n") && head.contains("Host: h\r\n"), "{head}");
    }

    #[tokio::test]
    async fn whoever_speaks_tls_there_is_believed() {
        use http_body_util::{BodyExt, Empty};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["elsewhere".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (pem, key) = (own.pem(), key.serialize_pem());
        let config = tls::server(pem.as_bytes(), key.as_bytes(), pem.as_bytes()).unwrap();
        let (ours, theirs) = tokio::io::duplex(16 << 10);
        task::spawn("server", async move {
            let mut stream = tokio_rustls::TlsAcceptor::from(config).accept(theirs).await.unwrap();
            let _ = stream.read(&mut [0; 1 << 10]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        });
        let stream = secure(ours, "10.42.0.2").await.unwrap();
        let response = send(stream, Request::get("/").body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
        let (ours, mut theirs) = tokio::io::duplex(16 << 10);
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        assert!(secure(ours, "10.42.0.2").await.is_err(), "no TLS");
    }
}
