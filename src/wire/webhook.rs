//! A question to a server of the cluster's users: JSON posted over TLS, and its answer to a limit.
//!
//! The server is trusted with its word and nothing else: how much it answers is bounded here, how long it takes by the
//! caller.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use http_body_util::{BodyExt, Full, Limited};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::relay;
use crate::base::budget::shortened;

/// What is shown of an answer that is an error.
const SHOWN_BYTES_MAX: usize = 512;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no name of a server")]
    Name(String),
    #[error("tls")]
    Tls(#[source] io::Error),
    #[error("the request is malformed")]
    Request(#[from] http::Error),
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    #[error("reading the answer")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Bytes,
}

// === impl Reply ===

impl Reply {
    /// How it begins, for messages.
    pub fn beginning(&self) -> String {
        shortened(String::from_utf8_lossy(&self.body).trim(), SHOWN_BYTES_MAX).into_owned()
    }
}

/// A question: a JSON text to be posted to a path of a server.
#[derive(Debug)]
pub struct Question<'a> {
    pub host: &'a str,
    pub port: u16,
    pub path: &'a str,
    pub body: Vec<u8>,
}

/// Asks the server at the other end of a stream, which shows a certificate for its name; no more than so many bytes of its
/// answer are read.
pub async fn post<S>(
    stream: S,
    tls: Arc<ClientConfig>,
    question: Question<'_>,
    answer_bytes_max: usize,
) -> Result<Reply, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Question { host, port, path, body } = question;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Name(host.into()))?;
    let secured = TlsConnector::from(tls).connect(name, stream).await.map_err(Error::Tls)?;
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let request = Request::post(path)
        .header(HOST, authority)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json, */*")
        .header(USER_AGENT, "kube-apiserver-admission")
        .body(Full::new(Bytes::from(body)))?;
    let response = relay::send(secured, request).await.map_err(Error::Broken)?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), answer_bytes_max).collect().await.map_err(Error::Answer)?;
    Ok(Reply { status, body: body.to_bytes() })
}
