//! Connections to registries: names, TCP, TLS.
//!
//! Names are resolved without the C library (it is linked statically): the host's own file first, then DNS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::reach::SentBy;
use super::registries::Tls;
use crate::wire::{resolve, tls};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

pub(super) type Sender = SendRequest<Empty<Bytes>>;

/// Opens a connection to `host[:port]`, unless whoever sent us may not lead there, and says what address it is to. The error is text
/// for the user.
pub(super) async fn connect(
    https: bool,
    host: &str,
    tls: Option<&Tls>,
    sent_by: SentBy,
) -> Result<(Sender, IpAddr), String> {
    let (name, port) = split_port(host, if https { 443 } else { 80 });
    let reach = async {
        let addresses = resolve::addresses(name).await.map_err(|e| e.to_string())?;
        let mut failure = format!("no address for {name}");
        for address in addresses {
            if let Some(why) = sent_by.refuses(address) {
                failure = why;
                continue;
            }
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Err(error) => failure = format!("{address}:{port}: {error}"),
            }
        }
        Err(failure)
    };
    let (stream, address) =
        tokio::time::timeout(CONNECT_PATIENCE, reach).await.map_err(|_| "connecting timed out".to_owned())??;
    if !https {
        return Ok((start(stream).await?, address));
    }
    let server = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls_config(tls)?));
    let handshaken = tokio::time::timeout(CONNECT_PATIENCE, connector.connect(server, stream)).await;
    let stream =
        handshaken.map_err(|_| "TLS handshake timed out".to_owned())?.map_err(|error| format!("TLS: {error}"))?;
    Ok((start(stream).await?, address))
}

async fn start(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Sender, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    crate::base::task::spawn("registry-connection", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "registry connection");
        }
    });
    Ok(sender)
}

fn split_port(host: &str, default: u16) -> (&str, u16) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().unwrap_or(default)),
        _ => (host, default),
    }
}

fn tls_config(wanted: Option<&Tls>) -> Result<rustls::ClientConfig, String> {
    let builder = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let wanted = wanted.cloned().unwrap_or_default();
    let builder = if wanted.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(tls::anyone())
    } else {
        let mut anchors = Vec::new();
        if let Some(path) = &wanted.ca_file {
            let of_file = |error| format!("{path:?}: {error}");
            anchors = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(of_file)?;
        }
        let belief = tls::believing(tls::system_roots(), anchors);
        builder.dangerous().with_custom_certificate_verifier(belief.map_err(|error| error.to_string())?)
    };
    match (&wanted.cert_file, &wanted.key_file) {
        (Some(certificate), Some(key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
                .map_err(|error| format!("{certificate:?}: {error}"))?
                .collect();
            let chain = chain.map_err(|error| format!("{certificate:?}: {error}"))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{key:?}: {error}"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| error.to_string())
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!(split_port("a.example:5000", 443), ("a.example", 5000));
        assert_eq!(split_port("[::1]:5000", 443), ("[::1]", 5000));
        assert_eq!(split_port("[::1]", 443), ("[::1]", 443));
    }
}
