//! HTTPS from the client's side: one connection at a time, opened when it is needed and used again while it lives.
//!
//! HTTP/1.1 only: the commands and benchmarks that use it send one request after the other, and websockets need it
//! anyway. Invariant: nothing is sent before the server has shown a certificate of the given authority.

use std::io;
use std::sync::Arc;

use base64::Engine;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::websocket;
use crate::base::task;

/// Where requests go and as whom.
#[derive(Clone)]
pub struct Target {
    /// `https://host:port[/path]`.
    pub server: Uri,
    pub tls: Arc<ClientConfig>,
    /// A bearer token, where no client certificate says who asks.
    pub token: Option<String>,
    pub user_agent: String,
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    target: Target,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is not an https:// address with a host")]
    Address(String),
    #[error("{address} cannot be reached")]
    Connect {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("no secure connection to {address}")]
    Tls {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection to {address} broke")]
    Broken {
        address: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the request is malformed")]
    Request(#[from] http::Error),
    #[error("the server's answer to the websocket request is not one")]
    Handshake,
}

// === impl Target ===

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.server)
    }
}

// === impl Client ===

impl Client {
    /// Connects with the first request.
    pub fn new(target: Target) -> Self {
        Self { target, connection: None }
    }

    fn address(&self) -> Result<(String, u16), Error> {
        address_of(&self.target.server)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let (host, port) = self.address()?;
        let tls = dial(&host, port, self.target.tls.clone()).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|source| Error::Broken { address: format!("{host}:{port}"), source })?;
        task::spawn("client connection", async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection");
            }
        });
        Ok(sender)
    }

    /// Sends a request whose URI is a path with its query; the path of the server's address comes before it.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let path = format!("{}{path}", self.target.server.path().trim_end_matches('/'));
        *request.uri_mut() = path.parse::<Uri>().map_err(http::Error::from)?;
        let (host, port) = self.address()?;
        let headers = request.headers_mut();
        let value = |text: &str| HeaderValue::from_str(text).map_err(http::Error::from);
        let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        headers.insert(HOST, value(&authority)?);
        headers.insert(USER_AGENT, value(&self.target.user_agent)?);
        if let Some(token) = &self.target.token {
            headers.insert(AUTHORIZATION, value(&format!("Bearer {token}"))?);
        }
        let mut connection = match self.connection.take() {
            Some(connection) if !connection.is_closed() => connection,
            _ => self.connect().await?,
        };
        let broken = |source| Error::Broken { address: format!("{host}:{port}"), source };
        connection.ready().await.map_err(broken)?;
        let response = connection.send_request(request).await.map_err(broken)?;
        self.connection = Some(connection);
        Ok(response)
    }

    /// Opens a websocket with one of `protocols`; the other answer is what the server said in place of it.
    pub async fn websocket(
        &mut self,
        path: &str,
        protocols: &str,
    ) -> Result<Result<websocket::Socket, Response<Incoming>>, Error> {
        let mut random = [0u8; 16];
        let source = ring::rand::SystemRandom::new();
        ring::rand::SecureRandom::fill(&source, &mut random).expect("the kernel always has random bytes");
        let key = base64::engine::general_purpose::STANDARD.encode(random);
        let request = Request::get(path)
            .header(UPGRADE, "websocket")
            .header(CONNECTION, "Upgrade")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, protocols)
            .body(Full::default())?;
        let response = self.send(request).await?;
        // The connection belongs to the websocket now, or is not worth keeping.
        self.connection = None;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Err(response));
        }
        let said = response.headers().get(SEC_WEBSOCKET_ACCEPT).map(HeaderValue::as_bytes);
        if said != Some(websocket::answer(key.as_bytes()).as_bytes()) {
            return Err(Error::Handshake);
        }
        let (host, port) = self.address()?;
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|source| Error::Broken { address: format!("{host}:{port}"), source })?;
        Ok(Ok(websocket::from_client(upgraded).await))
    }
}

/// Host and port of an `https://` address.
pub fn address_of(server: &Uri) -> Result<(String, u16), Error> {
    let wrong = || Error::Address(server.to_string());
    if server.scheme_str() != Some("https") {
        return Err(wrong());
    }
    let host = server.host().ok_or_else(wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, server.port_u16().unwrap_or(443)))
}

/// A new TLS connection.
pub(super) async fn dial(host: &str, port: u16, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, Error> {
    let address = || format!("{host}:{port}");
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Address(address()))?;
    let tcp =
        super::resolve::connect(host, port).await.map_err(|source| Error::Connect { address: address(), source })?;
    let _ = tcp.set_nodelay(true);
    let connected = TlsConnector::from(tls).connect(name, tcp).await;
    connected.map_err(|source| Error::Tls { address: address(), source })
}
