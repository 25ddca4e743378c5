//! A web server over TLS whose certificate is its own, for whatever asks servers of the cluster's users.

use std::future::Future;
use std::sync::Arc;

use amphipod::base::task;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Where it is, and what its clients are to believe.
pub struct Https {
    pub port: u16,
    pub ca_bundle: String,
}

impl Https {
    /// Serves `localhost`: `answer` makes status and body of a path and a JSON body.
    pub async fn start<F, A>(answer: F) -> Self
    where
        F: Fn(String, Value) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = (u16, String)> + Send + 'static,
    {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, private) = (key.cert.der().clone(), key.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(amphipod::wire::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], rustls_pki_types::PrivateKeyDer::try_from(private).unwrap())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        task::spawn("web server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, answer) = (acceptor.clone(), answer.clone());
                task::spawn("connection", async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answering = hyper::service::service_fn(move |request| answered(request, answer.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answering)
                        .await;
                });
            }
        });
        Self { port, ca_bundle: STANDARD.encode(key.cert.pem()) }
    }
}

async fn answered<F, A>(
    request: http::Request<Incoming>,
    answer: F,
) -> Result<http::Response<Full<Bytes>>, std::convert::Infallible>
where
    F: Fn(String, Value) -> A,
    A: Future<Output = (u16, String)>,
{
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let body = serde_json::from_slice(&request.into_body().collect().await.unwrap().to_bytes()).unwrap();
    let (status, text) = answer(path, body).await;
    Ok(http::Response::builder().status(status).body(Full::new(Bytes::from(text))).unwrap())
}
