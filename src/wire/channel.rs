//! HTTPS from an agent's side: one HTTP/2 connection that carries every request and watch at once, reopened when needed.
//!
//! A dead server is noticed by unanswered pings, also while nothing is asked. Invariant: nothing is sent before the server
//! has shown a certificate of the authority that the TLS set-up names.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, watch};
use tokio_rustls::client::TlsStream;

use super::client::Error;
use crate::base::task;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(5);
/// How often the server is pinged, and how long it may take to answer.
const PING: Duration = Duration::from_secs(5);
const PONG: Duration = Duration::from_secs(5);

/// The way to one server.
pub struct Channel {
    host: String,
    port: u16,
    user_agent: HeaderValue,
    /// Read for each new connection, so a renewed certificate is shown from then on.
    tls: watch::Receiver<Arc<ClientConfig>>,
    open: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

// === impl Channel ===

impl Channel {
    /// A way to `https://host[:port]` that connects with the first request.
    pub fn new(server: &Uri, tls: watch::Receiver<Arc<ClientConfig>>, user_agent: &str) -> Result<Self, Error> {
        let (host, port) = super::client::address_of(server)?;
        let user_agent = HeaderValue::from_str(user_agent).map_err(http::Error::from)?;
        Ok(Self { host, port, user_agent, tls, open: Mutex::new(None) })
    }

    /// `host:port`, for people.
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Sends a request whose URI is a path with its query. The body of the answer may go on for as long as it likes.
    pub async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        *request.uri_mut() = format!("https://{}{path}", self.address()).parse::<Uri>().map_err(http::Error::from)?;
        request.headers_mut().insert(USER_AGENT, self.user_agent.clone());
        let mut sender = self.sender().await?;
        let broken = |source| Error::Broken { address: self.address(), source };
        sender.ready().await.map_err(broken)?;
        sender.send_request(request).await.map_err(broken)
    }

    /// A new connection that is used for nothing else, and may be upgraded; `protocol` is what TLS agrees on.
    pub async fn dial(&self, protocol: &[u8]) -> Result<TlsStream<TcpStream>, Error> {
        let mut config = (**self.tls.borrow()).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        let dialling = super::client::dial(&self.host, self.port, Arc::new(config));
        let source = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let late = |_| Error::Connect { address: self.address(), source: source() };
        tokio::time::timeout(CONNECT, dialling).await.map_err(late)?
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|s| !s.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TokioIo::new(self.dial(b"h2").await?);
        let mut builder = Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG).keep_alive_while_idle(true);
        let broken = |source| Error::Broken { address: self.address(), source };
        let (sender, connection) = builder.handshake(stream).await.map_err(broken)?;
        task::spawn("server connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the server ended");
            }
        });
        *open = Some(sender.clone());
        Ok(sender)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Channel({})", self.address())
    }
}
