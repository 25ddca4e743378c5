//! The one question of gRPC that is asked here, by probes: whether a service is healthy (`grpc.health.v1.Health/Check`).
//!
//! Without a library for it: one request on HTTP/2, a message of one field each way. As with the kubelet nobody is asked for
//! a certificate that means something. Invariant: of what is answered only so much is read as the right answer takes.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Far more than the right answer takes.
const ANSWER_BYTES_MAX: usize = 4096;
/// The length of what comes before a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;
const OK: &str = "0";
const UNIMPLEMENTED: &str = "12";
/// Names of `HealthCheckResponse.ServingStatus`; the second one is the good one.
const STATES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
const SERVING: u64 = 1;

/// Asks whether the service at an address is healthy, over TLS or in plain text; the error is fit for an event.
pub async fn check_health(address: SocketAddr, tls: bool, service: &str, user_agent: &str) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|e| unreachable(address, &e))?;
    if !tls {
        return check_over(stream, address, service, user_agent).await;
    }
    let mut config = (*super::tls::trusting_anyone().map_err(|e| unreachable(address, &e))?).clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(address.ip().into(), stream).await.map_err(|e| unreachable(address, &e))?;
    check_over(stream, address, service, user_agent).await
}

fn unreachable(address: SocketAddr, why: &dyn std::fmt::Display) -> String {
    format!("error: failed to connect service \"{address}\": {why}")
}

async fn check_over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    service: &str,
    user_agent: &str,
) -> Result<(), String> {
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|e| unreachable(address, &e))?;
    // It is dropped with the question, whatever the other side does.
    tokio::select! {
        biased;
        answer = ask(&mut sender, address, service, user_agent) => answer,
        ended = connection => Err(failed(ended.err().map_or_else(|| "the connection ended".into(), |e| e.to_string()))),
    }
}

fn failed(why: String) -> String {
    format!("error: health rpc probe failed: {why}")
}

async fn ask(
    sender: &mut SendRequest<Full<Bytes>>,
    address: SocketAddr,
    service: &str,
    user_agent: &str,
) -> Result<(), String> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, user_agent)
        .body(Full::new(question(service)))
        .map_err(|e| format!("error: {e}"))?;
    let response = sender.send_request(request).await.map_err(|e| failed(e.to_string()))?;
    if response.status() != http::StatusCode::OK {
        return Err(failed(format!("unexpected HTTP status code {}", response.status())));
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|e| failed(e.to_string()))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    // An answer that is only an error has its status in the head.
    let of = |name: &str| text(&trailers, name).or_else(|| text(&head.headers, name));
    let message = of("grpc-message").unwrap_or_default();
    match of("grpc-status").as_deref() {
        Some(OK) => {}
        Some(UNIMPLEMENTED) => {
            let what = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)";
            return Err(format!("{what}: {message}"));
        }
        Some(code) => return Err(failed(format!("code {code}: {message}"))),
        None => return Err(failed("the answer has no status".into())),
    }
    let state = state(&body.to_bytes()).ok_or_else(|| failed("the answer is malformed".into()))?;
    let name = usize::try_from(state).ok().and_then(|n| STATES.get(n)).copied();
    match state {
        SERVING => Ok(()),
        other => Err(format!("service unhealthy (responded with {:?})", name.map_or(other.to_string(), str::to_owned))),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

/// `HealthCheckRequest`: the service's name is its first field.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed.into()
}

/// `HealthCheckResponse`: the state is its first field, and 0 where it is left out. Unknown fields are passed over.
fn state(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(PREFIX_BYTES)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?) as usize;
    if prefix[0] != 0 || length != message.len() {
        return None;
    }
    let (mut rest, mut state) = (message, 0);
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let skipped = match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    state = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
    }
    Some(state)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::task;
    use http::Response;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    /// A server that knows one service, which is healthy, and one that is not; answers its address.
    async fn serve(tls: Option<tokio_rustls::TlsAcceptor>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        task::spawn("test server", async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = service_fn(|request: Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()[header::TE], "trailers");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let service = String::from_utf8_lossy(asked.get(7..).unwrap_or_default()).into_owned();
                    let (status, message): (&str, &[u8]) = match service.as_str() {
                        "" | "good" => ("0", &[0, 0, 0, 0, 2, 8, 1]),
                        "bad" => ("0", &[0, 0, 0, 0, 2, 8, 2]),
                        "odd" => ("0", &[0, 0, 0, 0, 200, 8, 1]),
                        "none" => ("12", &[]),
                        _ => ("5", &[]),
                    };
                    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
                    let body =
                        Full::new(Bytes::from_static(message)).with_trailers(std::future::ready(Some(Ok(trailers))));
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                match &tls {
                    None => drop(task::spawn("test", connection.serve_connection(TokioIo::new(stream), answer))),
                    Some(tls) => {
                        let Ok(stream) = tls.accept(stream).await else { continue };
                        drop(task::spawn("test", connection.serve_connection(TokioIo::new(stream), answer)));
                    }
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_service_is_asked_for_its_health_and_the_answer_is_said_as_the_kubelet_says_it() {
        let address = serve(None).await;
        let ask = |service: &'static str| check_health(address, false, service, "kube-probe/1.37");
        assert_eq!(ask("").await, Ok(()));
        assert_eq!(ask("good").await, Ok(()));
        assert_eq!(ask("bad").await.unwrap_err(), "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(ask("none").await.unwrap_err().contains("does not implement the grpc health protocol"));
        assert!(ask("other").await.unwrap_err().starts_with("error: health rpc probe failed: code 5"));
        assert!(ask("odd").await.unwrap_err().contains("malformed"));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let why = check_health(nobody, false, "", "x").await.unwrap_err();
        assert!(why.starts_with(&format!("error: failed to connect service \"{nobody}\"")), "{why}");
        // Whoever made the certificate.
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["anything".into()]).unwrap().self_signed(&key).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_no_client_auth().with_single_cert(vec![own.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let secure = serve(Some(Arc::new(config).into())).await;
        assert_eq!(check_health(secure, true, "good", "x").await, Ok(()));
        assert!(check_health(secure, false, "good", "x").await.is_err(), "it speaks TLS only");
    }

    #[test]
    fn messages_are_written_and_read_with_lengths_and_unknown_fields() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        let long = question(&"s".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(state(&[0, 0, 0, 0, 0]), Some(0), "what is left out is 0");
        assert_eq!(state(&[0, 0, 0, 0, 6, 0x12, 2, 9, 9, 8, 1]), Some(1));
        for bad in [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8], &[0, 0, 0, 0, 2, 0x12, 200]] {
            assert_eq!(state(bad), None, "{bad:?}");
        }
    }
}
