//! The server through sockets on the loopback, with a server of our own as upstream.

use hickory_proto::rr::{Name, RData, Record};

use super::super::upstream::Upstreams;
use super::super::zone::tests::{Cluster, zone};
use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Answers every UDP query with `count` addresses and a TTL of 60, over TCP with one; counts the queries.
async fn world(count: u8) -> (SocketAddr, Arc<std::sync::atomic::AtomicUsize>) {
    let (address, udp, tcp) = bind(LOOPBACK).await.unwrap();
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let reply = |bytes: &[u8], count: u8, truncated: bool| {
        let query = Message::from_vec(bytes).unwrap();
        let name = query.queries[0].name.clone();
        let answers = (0..count)
            .map(|i| Record::from_rdata(name.clone(), 60, RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, i))))
            .collect();
        let mut message = respond(&query, Answer { answers, ..Answer::default() });
        message.metadata.truncation = truncated;
        message.to_vec().unwrap()
    };
    task::spawn("test-udp", async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // A forgery first: another id.
            let mut forged = reply(&buffer[..length], 1, false);
            forged[0] ^= 0xff;
            udp.send_to(&forged, peer).await.unwrap();
            udp.send_to(&reply(&buffer[..length], if count > 3 { 0 } else { count }, count > 3), peer).await.unwrap();
        }
    });
    task::spawn("test-tcp", async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let bytes = read_framed(&mut stream).await.unwrap();
            write_framed(&mut stream, &reply(&bytes, count, false)).await.unwrap();
        }
    });
    (address, asked)
}

async fn start(upstreams: Vec<SocketAddr>) -> Listening {
    let forwarder = Forwarder::new(Upstreams::fixed(upstreams));
    Server::new(zone(), Arc::new(Cluster), forwarder).listen(&[LOOPBACK]).await.unwrap()
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn raw(server: SocketAddr, bytes: &[u8]) -> (usize, Message) {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    (length, Message::from_vec(&buffer[..length]).unwrap())
}

async fn ask(listening: &Listening, message: &Message) -> (usize, Message) {
    let answer = raw(listening.addresses()[0], &message.to_vec().unwrap()).await;
    assert_eq!(answer.1.metadata.id, message.metadata.id);
    answer
}

async fn ask_tcp(listening: &Listening, message: &Message) -> Message {
    let mut stream = TcpStream::connect(listening.addresses()[0]).await.unwrap();
    write_framed(&mut stream, &message.to_vec().unwrap()).await.unwrap();
    Message::from_vec(&read_framed(&mut stream).await.unwrap()).unwrap()
}

#[tokio::test]
async fn cluster_names_are_answered_with_authority() {
    let server = start(Vec::new()).await;
    let (_, answer) = ask(&server, &query("kubernetes.default.svc.cluster.local.", RecordType::A, None)).await;
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers.len(), 1);
    assert!(answer.edns.is_none());
    let (_, answer) = ask(&server, &query("x.default.svc.cluster.local.", RecordType::A, Some(1232))).await;
    assert_eq!((answer.metadata.response_code, answer.authorities.len()), (ResponseCode::NXDomain, 1));
    assert!(answer.edns.is_some());
}

#[tokio::test]
async fn what_does_not_fit_is_cut_and_whole_over_tcp() {
    let server = start(Vec::new()).await;
    let name = "many.default.svc.cluster.local.";
    for (payload, most) in [(None, 512), (Some(800), 800), (Some(9000), 1232)] {
        let (length, answer) = ask(&server, &query(name, RecordType::A, payload)).await;
        assert!(length <= most && length > most - 40, "{length} of {most}");
        assert!(answer.metadata.truncation);
        assert!(answer.answers.len() > 20, "as many as fit");
    }
    let whole = ask_tcp(&server, &query(name, RecordType::A, None)).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
}

#[tokio::test]
async fn the_world_is_asked_once_and_then_remembered() {
    let (world, asked) = world(2).await;
    let server = start(vec![world]).await;
    for name in ["www.example.com.", "WWW.example.com."] {
        let (_, answer) = ask(&server, &query(name, RecordType::A, Some(1232))).await;
        assert_eq!((answer.answers.len(), answer.metadata.authoritative), (2, false));
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_truncated_answer_is_fetched_over_tcp() {
    let (world, _) = world(10).await;
    let server = start(vec![world]).await;
    assert_eq!(ask(&server, &query("big.example.", RecordType::A, None)).await.1.answers.len(), 10);
}

#[tokio::test]
async fn external_names_are_chased() {
    let (world, _) = world(1).await;
    let server = start(vec![world]).await;
    let (_, answer) = ask(&server, &query("away.default.svc.cluster.local.", RecordType::A, None)).await;
    let kinds: Vec<RecordType> = answer.answers.iter().map(Record::record_type).collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
}

#[tokio::test]
async fn without_upstream_the_world_fails_at_once() {
    let server = start(Vec::new()).await;
    let begin = std::time::Instant::now();
    let (_, answer) = ask(&server, &query("www.example.com.", RecordType::A, None)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(begin.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn the_second_server_is_asked_when_the_first_is_silent() {
    let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
    let (world, _) = world(1).await;
    let server = start(vec![silent.local_addr().unwrap(), world]).await;
    for name in ["a.example.", "b.example."] {
        let begin = std::time::Instant::now();
        assert_eq!(ask(&server, &query(name, RecordType::A, None)).await.1.answers.len(), 1);
        assert!(name.starts_with('a') || begin.elapsed() < Duration::from_secs(1), "the silent one is asked last then");
    }
}

#[tokio::test]
async fn bad_messages_get_an_error_or_nothing() {
    let server = start(Vec::new()).await;
    let address = server.addresses()[0];
    let mut cut = query("kubernetes.default.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    cut.truncate(20);
    assert_eq!(raw(address, &cut).await.1.metadata.response_code, ResponseCode::FormErr);
    let mut none = query("x.", RecordType::A, None);
    none.queries.clear();
    assert_eq!(ask(&server, &none).await.1.metadata.response_code, ResponseCode::FormErr);
    let transfer = query("cluster.local.", RecordType::AXFR, None);
    assert_eq!(ask(&server, &transfer).await.1.metadata.response_code, ResponseCode::Refused);
    // Answers and scraps are not answered; the server lives on.
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    let response = Message::response(7, OpCode::Query).to_vec().unwrap();
    for bytes in [&[][..], &[1], &[0xff; 11], &response] {
        socket.send_to(bytes, address).await.unwrap();
    }
    assert!(timeout(Duration::from_millis(200), socket.recv(&mut [0; 99])).await.is_err());
    assert_eq!(
        ask(&server, &query("kubernetes.default.svc.cluster.local.", RecordType::A, None)).await.1.answers.len(),
        1
    );
}

#[tokio::test]
async fn what_is_asked_for_is_counted_by_its_type() {
    let server = Server::new(zone(), Arc::new(Cluster), Forwarder::new(Upstreams::fixed(Vec::new())));
    let counted = |bytes: &[u8]| server.begin(bytes, true).map(|(kind, _)| name_of(kind));
    for (kind, name) in [
        (RecordType::A, "A"),
        (RecordType::AAAA, "AAAA"),
        (RecordType::SRV, "SRV"),
        (RecordType::HTTPS, "HTTPS"),
        (RecordType::CAA, "other"),
    ] {
        let bytes = query("kubernetes.default.svc.cluster.local.", kind, None).to_vec().unwrap();
        assert_eq!(counted(&bytes), Some(name));
        assert_eq!(counted(&bytes[..20]), Some("other"), "it cannot be read");
    }
    // A pointer where the name is: four bytes on, in the header, stands an empty name.
    let mut bytes = query(".", RecordType::AAAA, None).to_vec().unwrap();
    bytes.splice(12..13, [0xc0, 8]);
    assert_eq!(counted(&bytes), Some("AAAA"));
    assert_eq!(counted(&Message::response(7, OpCode::Query).to_vec().unwrap()), None);
}

#[tokio::test]
async fn random_bytes_never_stop_it() {
    let server = Server::new(zone(), Arc::new(Cluster), Forwarder::new(Upstreams::fixed(Vec::new())));
    let mut bytes = query("_https._tcp.pets.default.svc.cluster.local.", RecordType::SRV, Some(1232)).to_vec().unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..20_000 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let place = usize::try_from(seed % bytes.len() as u64).unwrap();
        let before = bytes[place];
        bytes[place] = seed.to_le_bytes()[5];
        let _ = server.begin(&bytes, seed & 1 == 0);
        if seed & 6 != 0 {
            bytes[place] = before;
        }
    }
}
