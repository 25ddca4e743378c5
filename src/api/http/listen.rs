//! Accepts connections: TLS, then HTTP/1.1 or HTTP/2, each request to [`super::respond`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use super::Peer;
use super::proxy::Origin;
use crate::api::Api;
use crate::api::identity::User;
use crate::base::{metrics, task};

/// Connections that are open at once; further ones wait.
const CONNECTIONS: usize = 4096;
/// A client that does not finish its handshake or request head in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Requests that one connection may have open; an agent's carries a watch for each Secret and ConfigMap of its pods.
const STREAMS: u32 = 250;
const STREAMS_OF_AGENTS: u32 = 10_000;

/// A connection on which nothing is asked for this long is closed.
const IDLE: Duration = Duration::from_secs(300);

/// Serves until `stop` turns true, then lets running requests end.
///
/// `tls` is read for each connection, so a renewed certificate is used at once.
pub async fn serve(
    api: Api,
    listener: TcpListener,
    tls: watch::Receiver<Arc<ServerConfig>>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (api, config, stop) = (api.clone(), tls.borrow().clone(), stop.clone());
        task::spawn("connection", async move {
            if let Err(error) = connection(api, stream, config, stop).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(place);
        });
    }
}

async fn connection(
    api: Api,
    stream: TcpStream,
    config: Arc<ServerConfig>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let origin = Origin(stream.peer_addr()?.ip());
    let stream = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    let peer = Peer { user: certificate.and_then(|c| User::from_certificate(c)).map(Arc::new) };
    let is_agent = peer.user.as_ref().is_some_and(|u| u.node_name().is_some());
    let service = service_fn(move |mut request: http::Request<Incoming>| {
        let (api, peer) = (api.clone(), peer.clone());
        request.extensions_mut().insert(origin);
        async move {
            let response = super::respond(api, peer, request).await;
            metrics::REQUESTS.add();
            if response.status().is_server_error() {
                metrics::REQUEST_ERRORS.add();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Some clients look for `Warning` by its usual spelling.
    builder.http1().title_case_headers(true).timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(if is_agent { STREAMS_OF_AGENTS } else { STREAMS })
        .initial_stream_window_size(256 << 10)
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        _ = stop.wait_for(|s| *s) => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
