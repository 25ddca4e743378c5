//! Accepts connections: TLS, then HTTP/1.1 or HTTP/2, each request to a [`Site`]: the API, or a node's own port.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use futures::TryFutureExt;
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::Body;
use super::connections::{Connection, Connections, Counted};
use super::peer::{Origin, Peer};
use crate::apimachinery::user::User;
use crate::base::task;

/// A client that has not finished its handshake and said in a request who it is after this time is dropped, and one that was
/// asked to go has as long to do so.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Requests that one connection may have open; an agent's carries a watch for each Secret and ConfigMap of its pods. Who has
/// shown no certificate may turn out to be nobody.
const STREAMS: u32 = 250;
const STREAMS_UNAUTHENTICATED: u32 = 100;
const STREAMS_OF_AGENTS: u32 = 10_000;
/// What may come of all requests of one connection before anybody reads it.
const WINDOW_BYTES: u32 = 64 << 10;
const WINDOW_BYTES_OF_AGENTS: u32 = 1 << 20;

/// A connection on which nothing is asked for this long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Who answers what comes in, and whom it knows; cheap to clone.
pub trait Site: Clone + Send + Sync + 'static {
    /// Counts its connections.
    fn connections(&self) -> &Connections;

    /// The user of a client certificate that TLS has verified, with the digest of its key.
    fn user_of(&self, certificate: &[u8]) -> Option<(User, String)>;

    /// Its routes. Each request has its [`Peer`] and its [`Origin`] in its extensions.
    fn router(&self) -> Router;
}

/// Serves until `stop` turns true, then lets running requests end.
///
/// `tls` is read for each connection, so a renewed certificate is used at once.
pub async fn serve(
    site: impl Site,
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    mut stop: watch::Receiver<bool>,
) {
    let router = site.router();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (site, router) = (site.clone(), router.clone());
        let (config, stop) = (tls.borrow().clone(), stop.clone());
        let open = Arc::new(site.connections().open(address.ip()));
        task::spawn("connection", async move {
            if let Err(error) = connection(site, router, stream, address.ip(), open, config, stop).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

async fn connection(
    site: impl Site,
    router: Router,
    stream: TcpStream,
    address: IpAddr,
    open: Arc<Connection>,
    config: Arc<ServerConfig>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let authenticated_by = Instant::now() + HANDSHAKE;
    stream.set_nodelay(true)?;
    let origin = Origin(address);
    let stream = tokio::select! {
        accepted = tokio::time::timeout_at(authenticated_by, TlsAcceptor::from(config).accept(stream)) => accepted??,
        () = open.ended() => return Ok(()),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let (user, key) = certificate.and_then(|c| site.user_of(c)).unzip();
    let user = user.map(Arc::new);
    if let Some(user) = &user {
        open.identify(user).map_err(|status| status.message)?;
    }
    let is_agent = user.as_ref().is_some_and(|u| u.node_name().is_some());
    let (streams, window_bytes) = match &user {
        Some(_) if is_agent => (STREAMS_OF_AGENTS, WINDOW_BYTES_OF_AGENTS),
        Some(_) => (STREAMS, WINDOW_BYTES),
        None => (STREAMS_UNAUTHENTICATED, WINDOW_BYTES),
    };
    let peer = Peer { user, key: key.unwrap_or_default().into(), connection: open.clone() };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(origin);
        request.extensions_mut().insert(peer.clone());
        let ends_with_head = request.version() == Version::HTTP_2 && *request.method() == Method::HEAD;
        let end = move |response| if ends_with_head { head_of(response) } else { response };
        router.clone().call(request).map_ok(end)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Some clients look for `Warning` by its usual spelling.
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .initial_connection_window_size(window_bytes)
        .initial_stream_window_size(window_bytes.min(256 << 10))
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(Counted::new(stream, open.clone())), service);
    tokio::pin!(connection);
    let stays_unauthenticated = async {
        tokio::time::sleep_until(authenticated_by).await;
        if open.is_known() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        result = connection.as_mut() => return result,
        _ = stop.wait_for(|s| *s) => connection.as_mut().graceful_shutdown(),
        () = open.refused() => connection.as_mut().graceful_shutdown(),
        () = stays_unauthenticated => connection.as_mut().graceful_shutdown(),
    }
    match open.is_known() {
        true => connection.await,
        false => tokio::time::timeout(HANDSHAKE, connection).await?,
    }
}

/// An answer without its body: over HTTP/2, hyper does not leave it out by itself.
fn head_of(mut response: Response<Body>) -> Response<Body> {
    let bytes = response.body().size_hint().exact().filter(|bytes| *bytes > 0);
    if let (Some(bytes), false) = (bytes, response.headers().contains_key(CONTENT_LENGTH)) {
        response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
    }
    *response.body_mut() = Body::empty();
    response
}
