//! Asks upstream about everything outside the cluster.
//!
//! Each query goes out from a fresh socket, so port and id are both unpredictable; an answer counts only with the same
//! id and question from the server that was asked. Truncated answers are fetched again over TCP.
//!
//! Invariant: at most [`CONCURRENT_MAX`] queries are on the way; the next ones fail at once instead of piling up.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::{Cache, Found, Key};
use super::upstream::Upstreams;
use crate::base::metrics;

const CONCURRENT_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest UDP answer that crosses nearly every path unfragmented.
pub(super) const UDP_PAYLOAD: u16 = 1232;

/// Upstream servers with a cache before them.
pub struct Forwarder {
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    room: Semaphore,
}

impl Forwarder {
    pub fn new(upstreams: Upstreams) -> Self {
        metrics::DNS_CACHE_ENTRIES.store(0, Ordering::Relaxed);
        Self { upstreams, cache: Mutex::default(), room: Semaphore::new(CONCURRENT_MAX) }
    }

    /// The answer from the cache, if it is there.
    pub(super) fn cached(&self, query: &Query, dnssec: bool) -> Option<Found> {
        let key = Key::new(query, dnssec);
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key, Instant::now())
    }

    /// The answer from the cache or from upstream; `SERVFAIL` if nobody answers.
    pub(super) async fn resolve(&self, query: &Query, dnssec: bool) -> Found {
        if let Some(found) = self.cached(query, dnssec) {
            return found;
        }
        let failed = Found { code: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new() };
        let Ok(_permit) = self.room.try_acquire() else { return failed };
        let mut last = None;
        for server in self.upstreams.servers() {
            match ask(server, query, dnssec).await {
                Ok(message) => {
                    let found = Found::of(message);
                    if !matches!(found.code, ResponseCode::ServFail | ResponseCode::Refused) {
                        let key = Key::new(query, dnssec);
                        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
                        cache.put(key, &found, Instant::now());
                        let entries = i64::try_from(cache.len()).unwrap_or(i64::MAX);
                        metrics::DNS_CACHE_ENTRIES.store(entries, Ordering::Relaxed);
                        return found;
                    }
                    last = Some(found);
                }
                Err(error) => {
                    tracing::debug!(%server, name = %query.name, %error, "a DNS server did not answer");
                    self.upstreams.was_silent(server);
                }
            }
        }
        last.unwrap_or(failed)
    }
}

async fn ask(server: SocketAddr, query: &Query, dnssec: bool) -> io::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(dnssec);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(io::Error::other)?;
    let answer = timeout(PATIENCE, over_udp(server, &bytes, &message)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    timeout(PATIENCE, over_tcp(server, &bytes, &message)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn over_udp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(UDP_PAYLOAD) * 2];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else may be a forgery: keep waiting for the true one.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && fits(asked, &answer)
        {
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], asked: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, bytes).await?;
    let answer = Message::from_vec(&read_framed(&mut stream).await?).map_err(io::Error::other)?;
    if fits(asked, &answer) { Ok(answer) } else { Err(io::Error::other("an answer to another question")) }
}

pub(super) fn fits(asked: &Message, answer: &Message) -> bool {
    let same = |a: &Query, b: &Query| {
        a.name.to_lowercase() == b.name.to_lowercase() && a.query_type == b.query_type && a.query_class == b.query_class
    };
    answer.metadata.id == asked.metadata.id
        && answer.metadata.message_type == MessageType::Response
        // The records of other operations may be without contents, which no answer to a query may have.
        && answer.metadata.op_code == OpCode::Query
        && answer.queries.len() == 1
        && asked.queries.iter().zip(&answer.queries).all(|(a, b)| same(a, b))
}

/// One message with its length in front.
pub(super) async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// One message with its length in front, in one write.
pub(super) async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    #[test]
    fn only_a_response_to_a_query_counts_as_an_answer() {
        let mut asked = Message::query();
        asked.add_query(Query::query(Name::from_ascii("www.example.com.").unwrap(), RecordType::A));
        let (id, other) = (asked.metadata.id, asked.metadata.id.wrapping_add(1));
        let answer = |id, operation| {
            let mut message = Message::response(id, operation);
            message.queries = asked.queries.clone();
            message
        };
        assert!(fits(&asked, &answer(id, OpCode::Query)));
        assert!(!fits(&asked, &answer(other, OpCode::Query)), "another number");
        assert!(!fits(&asked, &answer(id, OpCode::Update)), "an update");
        assert!(!fits(&asked, &asked), "the query itself");
    }
}
