//! A client that costs next to nothing, so that what is measured is the server: requests are written whole into one kept
//! TLS connection, answers are read into one kept buffer, and nothing is decoded that nobody looks at.

use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Who we are and where the server is.
#[derive(Clone)]
pub struct Access {
    pub port: u16,
    pub tls: Arc<ClientConfig>,
}

/// One HTTP/1.1 connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    /// What was read and not yet used: `input[used..]`.
    input: Vec<u8>,
    used: usize,
    /// How the body that is being read ends.
    left: Left,
}

#[derive(Clone, Copy, PartialEq)]
enum Left {
    Bytes(usize),
    Chunks,
}

// === impl Access ===

impl Access {
    pub fn new(port: u16, ca: &[u8], chain: &[u8], key: &[u8]) -> Self {
        let mut roots = RootCertStore::empty();
        CertificateDer::pem_slice_iter(ca).for_each(|c| roots.add(c.unwrap()).unwrap());
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key).unwrap())
            .unwrap();
        Self { port, tls: Arc::new(tls) }
    }

    pub async fn connect(&self) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        Ok(Connection { stream, input: Vec::with_capacity(16 << 10), used: 0, left: Left::Bytes(0) })
    }

    /// One request on a connection of its own; the body of a success.
    pub async fn call(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let mut connection = self.connect().await.unwrap();
        connection.call(method, path, body).await
    }
}

// === impl Connection ===

impl Connection {
    /// Asks, and answers with the body; panics unless it is a success.
    pub async fn call(&mut self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let (status, bytes) = self.ask(&request(method, path, body)).await.unwrap();
        assert!((200..300).contains(&status), "{method} {path}: {status} {}", String::from_utf8_lossy(&bytes));
        bytes
    }

    /// What is there as JSON; null where nothing is.
    pub async fn get(&mut self, path: &str) -> serde_json::Value {
        let (_, body) = self.ask(&request("GET", path, "")).await.unwrap();
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// Sends a whole request and reads the whole answer.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let status = self.begin(request).await?;
        let mut body = Vec::new();
        while self.part(&mut body).await? {}
        Ok((status, body))
    }

    /// Sends a whole request and reads the head of the answer.
    pub async fn begin(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let end = loop {
            match find(&self.input[self.used..], b"\r\n\r\n") {
                Some(end) => break self.used + end,
                None => self.fill().await?,
            }
        };
        let head = std::str::from_utf8(&self.input[self.used..end]).map_err(io::Error::other)?;
        let status = head.get(9..12).and_then(|s| s.parse().ok()).ok_or_else(|| io::Error::other("no status"))?;
        let length = head.lines().find_map(|l| {
            let (name, value) = l.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") { value.trim().parse().ok() } else { None }
        });
        self.left = length.map_or(Left::Chunks, Left::Bytes);
        self.used = end + 4;
        Ok(status)
    }

    /// Appends what comes next of the body; false at its end.
    pub async fn part(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        match self.left {
            Left::Bytes(0) => Ok(false),
            Left::Bytes(left) => {
                if self.used == self.input.len() {
                    self.fill().await?;
                }
                let take = left.min(self.input.len() - self.used);
                body.extend_from_slice(&self.input[self.used..self.used + take]);
                self.used += take;
                self.left = Left::Bytes(left - take);
                Ok(true)
            }
            Left::Chunks => self.chunk(body).await,
        }
    }

    async fn chunk(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        let line = loop {
            match find(&self.input[self.used..], b"\r\n") {
                Some(end) => break self.used + end,
                None => self.fill().await?,
            }
        };
        let text = std::str::from_utf8(&self.input[self.used..line]).map_err(io::Error::other)?;
        let size = usize::from_str_radix(text.trim(), 16).map_err(io::Error::other)?;
        self.used = line + 2;
        while self.input.len() - self.used < size + 2 {
            self.fill().await?;
        }
        body.extend_from_slice(&self.input[self.used..self.used + size]);
        self.used += size + 2;
        if size == 0 {
            self.left = Left::Bytes(0);
        }
        Ok(size > 0)
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.input.drain(..self.used);
        self.used = 0;
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A request as it goes on the wire.
pub fn request(method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         accept: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}
