//! The DNS server's sockets: one task per UDP address, one per TCP address, one per query that must go upstream.
//!
//! Cluster names and cached answers are answered in the receiving task itself, without a spawn. Answers that do not
//! fit are cut to what fits and marked, so that clients without TCP get some addresses rather than none.
//!
//! Invariant: tasks are bounded: upstream queries by the forwarder, TCP connections by [`CONNECTIONS_MAX`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Records;
use super::cache::Found;
use super::forward::{Forwarder, UDP_PAYLOAD, read_framed, write_framed};
use super::zone::{Answer, Zone, answer};
use crate::base::metrics::{self, Pairs};
use crate::base::task;

const CONNECTIONS_MAX: usize = 128;
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
const WAITING_MAX: usize = 512;
const UDP_WITHOUT_EDNS: usize = 512;
const ALIASES_MAX: usize = 8;
/// A compressed name, type, class, time to live and length.
const RECORD_BYTES_MIN: usize = 12;

/// Why the server does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for DNS on {address}")]
pub struct Error {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// Cluster DNS: the zone, and the world behind it.
pub struct Server {
    zone: Zone,
    records: Arc<dyn Records>,
    forwarder: Forwarder,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// A listening server; it stops when this is dropped.
pub struct Listening {
    addresses: Vec<SocketAddr>,
    tasks: Vec<JoinHandle<Option<()>>>,
}

/// A query that is to be counted when it is answered.
struct Asked {
    at: Instant,
    family: &'static str,
    protocol: &'static str,
}

impl Asked {
    fn now(peer: IpAddr, udp: bool) -> Self {
        let family = if peer.to_canonical().is_ipv4() { "1" } else { "2" };
        Self { at: Instant::now(), family, protocol: if udp { "udp" } else { "tcp" } }
    }

    fn answered(&self, kind: Option<RecordType>, answer: &[u8]) {
        let labels = [("family", self.family), ("proto", self.protocol), ("type", name_of(kind))];
        metrics::DNS_REQUESTS.add(Pairs(labels));
        metrics::DNS_DURATIONS.observe(Pairs([]), self.at.elapsed());
        let code = match answer.get(3).map_or(0, |flags| flags & 0xf) {
            0 => "NOERROR",
            1 => "FORMERR",
            2 => "SERVFAIL",
            3 => "NXDOMAIN",
            4 => "NOTIMP",
            5 => "REFUSED",
            _ => "other",
        };
        metrics::DNS_RESPONSES.add(Pairs([("rcode", code)]));
    }
}

/// The type that is asked for, if it is one of those that are told apart.
fn name_of(kind: Option<RecordType>) -> &'static str {
    match kind {
        Some(RecordType::A) => "A",
        Some(RecordType::NS) => "NS",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::SOA) => "SOA",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::MX) => "MX",
        Some(RecordType::TXT) => "TXT",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::HTTPS) => "HTTPS",
        _ => "other",
    }
}

impl Listening {
    /// Where it listens (UDP and TCP), with the ports the kernel chose for port 0.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What a query got so far.
pub(super) enum Step {
    Done(Vec<u8>),
    /// Somebody upstream has to be asked.
    Ask(Box<Message>),
}

impl Server {
    pub fn new(zone: Zone, records: Arc<dyn Records>, forwarder: Forwarder) -> Arc<Self> {
        let (waiting, connections) = (Semaphore::new(WAITING_MAX), Semaphore::new(CONNECTIONS_MAX));
        Arc::new(Self { zone, records, forwarder, waiting: Arc::new(waiting), connections: Arc::new(connections) })
    }

    /// Binds UDP and TCP on every address, all or none.
    pub async fn listen(self: &Arc<Self>, addresses: &[SocketAddr]) -> Result<Listening, Error> {
        let mut sockets = Vec::new();
        for address in addresses {
            sockets.push(bind(*address).await.map_err(|source| Error { address: *address, source })?);
        }
        let mut listening = Listening { addresses: Vec::new(), tasks: Vec::new() };
        for (address, udp, tcp) in sockets {
            listening.addresses.push(address);
            listening.tasks.push(task::spawn("dns-udp", Arc::clone(self).serve_udp(Arc::new(udp))));
            listening.tasks.push(task::spawn("dns-tcp", Arc::clone(self).serve_tcp(tcp)));
        }
        Ok(listening)
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        loop {
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                // An ICMP error about an earlier answer, or no memory: go on, but never spin.
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            let asked = Asked::now(peer.ip(), true);
            match self.begin(&buffer[..length], true) {
                Some((kind, Step::Done(bytes))) => {
                    asked.answered(kind, &bytes);
                    drop(socket.send_to(&bytes, peer).await);
                }
                Some((kind, Step::Ask(query))) => {
                    // Too many are waiting: the client asks again.
                    let Ok(permit) = Arc::clone(&self.waiting).try_acquire_owned() else { continue };
                    let (server, socket) = (Arc::clone(&self), Arc::clone(&socket));
                    task::spawn("dns-query", async move {
                        let bytes = server.finish(&query, true).await;
                        asked.answered(kind, &bytes);
                        let _ = socket.send_to(&bytes, peer).await;
                        drop(permit);
                    });
                }
                None => {}
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.connections).acquire_owned().await else { return };
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await; // out of descriptors
                continue;
            };
            let server = Arc::clone(&self);
            task::spawn("dns-connection", async move {
                server.serve_connection(stream, peer.ip()).await;
                drop(permit);
            });
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream, peer: IpAddr) {
        while let Ok(Ok(bytes)) = timeout(CONNECTION_IDLE, read_framed(&mut stream)).await {
            let asked = Asked::now(peer, false);
            let Some((kind, step)) = self.begin(&bytes, false) else { return };
            let answer = match step {
                Step::Done(answer) => answer,
                Step::Ask(query) => self.finish(&query, false).await,
            };
            asked.answered(kind, &answer);
            if !matches!(timeout(CONNECTION_IDLE, write_framed(&mut stream, &answer)).await, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Answers what needs no waiting, and says what type was asked for. `None` for what is no query at all.
    pub(super) fn begin(&self, bytes: &[u8], udp: bool) -> Option<(Option<RecordType>, Step)> {
        match Message::from_vec(bytes) {
            Ok(query) if query.metadata.message_type == MessageType::Query => {
                let kind = query.queries.first().map(|question| question.query_type);
                Some((kind, self.look_up(query, udp)))
            }
            Ok(_) => None,
            Err(_) => {
                let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
                let is_query = bytes.get(2)? & 0x80 == 0;
                let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                is_query.then(|| (None, Step::Done(error.to_vec().unwrap_or_default())))
            }
        }
    }

    fn look_up(&self, query: Message, udp: bool) -> Step {
        let refuse = |code| Step::Done(encode(respond(&query, Answer { code, ..Answer::default() }), &query, udp));
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = query.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) {
            return refuse(ResponseCode::Refused);
        }
        if let Some(own) = answer(&self.zone, question, self.records.as_ref()) {
            if own.chase.is_some() {
                return Step::Ask(Box::new(query));
            }
            return Step::Done(encode(own_response(&query, own), &query, udp));
        }
        let cached = self.forwarder.cached(question, wants_dnssec(&query));
        if cached.is_some() { &metrics::DNS_CACHE_HITS } else { &metrics::DNS_CACHE_MISSES }.add(Pairs([]));
        match cached {
            Some(found) => Step::Done(encode(respond(&query, foreign(found)), &query, udp)),
            None => Step::Ask(Box::new(query)),
        }
    }

    /// Answers what needs somebody upstream: foreign names, and aliases out of the cluster.
    pub(super) async fn finish(&self, query: &Message, udp: bool) -> Vec<u8> {
        let Some(question) = query.queries.first() else { return Vec::new() };
        let mut whole = Answer::default();
        let mut next = question.clone();
        for _ in 0..ALIASES_MAX {
            let Some(mut own) = answer(&self.zone, &next, self.records.as_ref()) else {
                let found = self.forwarder.resolve(&next, wants_dnssec(query)).await;
                whole.code = found.code;
                whole.answers.extend(found.answers);
                whole.authorities = found.authorities;
                break;
            };
            whole.code = own.code;
            whole.answers.append(&mut own.answers);
            whole.authorities = own.authorities;
            match own.chase {
                Some(target) => next = Query::query(target, question.query_type),
                None => break,
            }
        }
        encode(respond(query, whole), query, udp)
    }
}

async fn bind(address: SocketAddr) -> io::Result<(SocketAddr, UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(address).await?;
    let address = tcp.local_addr()?;
    Ok((address, UdpSocket::bind(address).await?, tcp))
}

fn wants_dnssec(query: &Message) -> bool {
    query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

pub(super) fn foreign(found: Found) -> Answer {
    Answer { code: found.code, answers: found.answers, authorities: found.authorities, ..Answer::default() }
}

/// An authoritative answer; addresses are turned a little by the query's id, so that clients which take the first one
/// spread over all.
fn own_response(query: &Message, mut own: Answer) -> Message {
    let addresses = own.answers.iter().all(|r| matches!(r.record_type(), RecordType::A | RecordType::AAAA));
    if addresses && !own.answers.is_empty() {
        let turn = usize::from(query.metadata.id) % own.answers.len();
        own.answers.rotate_left(turn);
    }
    let mut message = respond(query, own);
    message.metadata.authoritative = true;
    message
}

pub(super) fn respond(query: &Message, answer: Answer) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = answer.code;
    message.queries = query.queries.clone();
    message.answers = answer.answers;
    message.authorities = answer.authorities;
    message.additionals = answer.additionals;
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD).set_dnssec_ok(wants_dnssec(query));
        message.set_edns(edns);
    }
    message
}

/// Writes the answer within what the client takes.
pub(super) fn encode(mut message: Message, query: &Message, udp: bool) -> Vec<u8> {
    let most = match (&query.edns, udp) {
        (_, false) => usize::from(u16::MAX),
        (None, true) => UDP_WITHOUT_EDNS,
        (Some(edns), true) => usize::from(edns.max_payload().min(UDP_PAYLOAD)).max(UDP_WITHOUT_EDNS),
    };
    // What cannot fit is not written first.
    let records_max = most / RECORD_BYTES_MIN;
    let may_fit = |message: &Message| {
        message.answers.len() + message.authorities.len() + message.additionals.len() <= records_max
    };
    if may_fit(&message)
        && let Some(bytes) = fitting(&message, most)
    {
        return bytes;
    }
    message.additionals.clear();
    if may_fit(&message)
        && let Some(bytes) = fitting(&message, most)
    {
        return bytes;
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let all = std::mem::take(&mut message.answers);
    let (mut fits, mut too_many) = (0, all.len().min(records_max + 1));
    let with = |message: &Message, count: usize| {
        let mut part = message.clone();
        part.answers = all[..count].to_vec();
        fitting(&part, most)
    };
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        if with(&message, middle).is_some() { fits = middle } else { too_many = middle }
    }
    with(&message, fits).unwrap_or_default()
}

fn fitting(message: &Message, most: usize) -> Option<Vec<u8>> {
    message.to_vec().ok().filter(|bytes| bytes.len() <= most)
}

#[cfg(test)]
mod tests;
