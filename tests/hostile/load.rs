//! Bodies, connections and images: as many and as large as somebody likes.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use amphipod::wire::client::{Client, Target};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::json;

use crate::bodies::{MAPS, bodies};
use crate::lab::HOST;
use crate::stage::start;
use crate::watch::Watched;

/// Clients that send at the same time.
const CLIENTS: usize = 8;
/// Connections of somebody who says nothing.
const SILENT: usize = 4096;

/// An account that may write, and its way to the server.
pub fn writer(lab: &Watched, name: &str) -> Target {
    lab.kubectl(&["create", "serviceaccount", name]);
    let account = format!("--serviceaccount=default:{name}");
    lab.kubectl(&["create", "clusterrolebinding", name, "--clusterrole=cluster-admin", &account]);
    lab.user(name)
}

#[test]
fn hostile_bodies_from_many_clients_leave_the_server_small_and_quick() {
    let lab = start("bodies");
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"a": "x".repeat(1000)}});
    crate::stage::apply(&lab, &[map]);
    let send = |target: Target| {
        lab.from_outside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = Client::new(target);
                let mut answered = 0;
                for body in bodies() {
                    let request =
                        Request::builder().method(body.method).uri(&body.path).header("content-type", body.media);
                    let request = request.body(Full::new(Bytes::from(body.text))).unwrap();
                    // One that had to make room for others is told so, or finds its connection closed.
                    let Ok(response) = client.send(request).await else { continue };
                    let code = response.status().as_u16();
                    assert!(code < 500, "{}: {code}", body.what);
                    answered += usize::from(response.into_body().collect().await.is_ok());
                }
                answered
            })
        })
    };
    let targets: Vec<Target> = (0..CLIENTS).map(|n| writer(&lab, &format!("writer{n}"))).collect();
    let clients: Vec<_> = targets.into_iter().map(send).collect();
    let answered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(answered > bodies().len(), "{answered} of {} were answered", CLIENTS * bodies().len());
    lab.kubectl(&["get", "--raw", MAPS]);
}

/// Lets this process have so many connections open beside what the other tests have: some machines give a service 1,024 files.
pub fn files_for(connections: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + 4096;
    if limit.current.is_some_and(|current| current < wanted) {
        assert!(
            limit.maximum.is_none_or(|most| most >= wanted),
            "{wanted} open files are more than this process may have"
        );
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).unwrap();
    }
}

#[test]
fn silent_and_slow_connections_keep_nobody_out() {
    files_for(SILENT);
    let lab = start("flood");
    let silent = lab.from_outside(|| {
        let mut open = Vec::new();
        for n in 0..SILENT {
            let Ok(mut stream) = TcpStream::connect((HOST, 6443)) else { continue };
            if n % 2 == 0 {
                // The beginning of a handshake.
                let _ = stream.write_all(&[0x16, 3, 1]);
            }
            open.push(stream);
        }
        std::thread::sleep(Duration::from_secs(12));
        open.len()
    });
    // Bodies that come byte by byte, of somebody who may ask.
    let target = writer(&lab, "slow");
    let authority = lab.authority();
    let slow = lab.from_outside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(slow_bodies(&authority, &target.token.unwrap()))
    });
    assert!(silent.join().unwrap() > SILENT / 2);
    assert!(slow.join().unwrap() > 0, "some of them were let in");
    lab.kubectl(&["create", "configmap", "after", "--from-literal=a=b"]);
}

/// Connections of one user that begin bodies of 3 MiB and do not end them; answers how many.
async fn slow_bodies(authority: &[u8], token: &str) -> usize {
    use tokio::io::AsyncWriteExt;
    let config = amphipod::wire::tls::client(authority, None).unwrap();
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let mut open = Vec::new();
    for n in 0..200 {
        let Ok(stream) = tokio::net::TcpStream::connect((HOST, 6443)).await else { continue };
        let connecting = tokio_rustls::TlsConnector::from(config.clone()).connect(name.clone(), stream);
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(5), connecting).await else { continue };
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            3 << 20
        );
        let begun = [head.as_bytes(), &vec![b' '; 1 << 20]].concat();
        let sending = tokio::time::timeout(Duration::from_secs(2), stream.write_all(&begun)).await;
        if n % 2 == 0 || sending.is_ok() {
            open.push(stream);
        }
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    open.len()
}

#[test]
fn strangers_who_begin_to_join_take_no_machines_place() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let lab = start("joining");
    let (authority, token) = (lab.authority(), fs::read_to_string(lab.path("data/server/token")).unwrap());
    let code = lab.from_outside(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = amphipod::wire::tls::client(&authority, None).unwrap();
            let begin = async |token: &str, body: &str| {
                let stream = tokio::net::TcpStream::connect((HOST, 6443)).await.unwrap();
                let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
                let mut stream =
                    tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await.unwrap();
                let head = format!(
                    "POST /v1-amphipod/join HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: 2\r\n\r\n{body}"
                );
                stream.write_all(head.as_bytes()).await.unwrap();
                stream
            };
            let mut strangers = Vec::new();
            for _ in 0..40 {
                strangers.push(begin("made-up", "{").await);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let mut answer = vec![0; 12];
            begin(token.trim(), "{}").await.read_exact(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        })
    });
    assert_eq!(code.join().unwrap(), "HTTP/1.1 400", "an application that says nothing, of somebody who may apply");
}

fn header(name: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).unwrap();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_cksum();
    *header.as_bytes()
}

/// An archive in which an entry of a kind has more zeros than the server has memory.
fn long_header(kind: u8) -> Vec<u8> {
    // What it takes to make more is not worth the while: what is kept of it would be over the limit all the same.
    const SIZE: u64 = 256 << 20;
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let head = header("././@LongLink", kind, SIZE);
    io::copy(&mut head.chain(io::repeat(0).take(SIZE)), &mut encoder).unwrap();
    encoder.write_all(&header("f", b'0', 0)).unwrap();
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap()
}

/// An archive whose decompression wants half a gigabyte.
fn wide_window() -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(29).unwrap();
    encoder.write_all(&header("f", b'0', 0)).unwrap();
    encoder.write_all(&[0; 1024]).unwrap();
    encoder.finish().unwrap()
}

/// An archive of small files.
fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut all = Vec::new();
    for (name, bytes) in files {
        all.extend(header(name, b'0', bytes.len() as u64));
        all.extend(bytes);
        all.resize(all.len().next_multiple_of(512), 0);
    }
    all.extend([0; 1024]);
    all
}

/// Archives that once took any amount of memory.
fn archives() -> Vec<(&'static str, Vec<u8>)> {
    let many = |item: &str, bytes: usize| format!("[{}]", vec![item; bytes / (item.len() + 1)].join(","));
    let config = |config: String| {
        let manifest = json!([{"Config": "c.json", "RepoTags": ["hostile.test/x:1"], "Layers": []}]).to_string();
        archive(&[("c.json", config.into_bytes()), ("manifest.json", manifest.into_bytes())])
    };
    let section = |field: &str| {
        let values = many("\"\"", 7 << 20);
        format!("{{\"os\":\"linux\",\"config\":{{\"{field}\":{values}}},\"rootfs\":{{\"diff_ids\":[]}}}}")
    };
    let entries = many("{\"Config\":\"\",\"Layers\":[]}", 7 << 20);
    let deep: Vec<(String, Vec<u8>)> = (0..200).map(|n| (format!("{n}{}", "/d".repeat(40)), Vec::new())).collect();
    let deep: Vec<(&str, Vec<u8>)> = deep.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    vec![
        ("name.tar.zst", long_header(b'L')),
        ("link.tar.zst", long_header(b'K')),
        ("attributes.tar.zst", long_header(b'x')),
        ("window.tar.zst", wide_window()),
        ("entries.tar", archive(&[("manifest.json", entries.into_bytes())])),
        ("environment.tar", config(section("Env"))),
        ("command.tar", config(section("Cmd"))),
        ("long.tar", archive(&[("manifest.json", vec![b' '; 32 << 20])])),
        ("deep.tar", archive(&deep)),
    ]
}

#[test]
fn images_that_mean_harm_are_refused_at_once_and_at_each_start() {
    let mut lab = start("images");
    let archives = archives();
    let directory = lab.path("data/agent/images");
    let refused = |lab: &Watched| {
        let log = fs::read_to_string(lab.path("log")).unwrap();
        assert!(!log.contains("panicked"), "{log}");
        log.matches("an image archive cannot be taken in").count()
    };
    for (name, bytes) in &archives {
        let hidden = directory.join(format!(".{name}"));
        fs::write(&hidden, bytes).unwrap();
        fs::rename(hidden, directory.join(name)).unwrap();
    }
    let told = |lab: &Watched| -> Vec<&str> {
        let log = fs::read_to_string(lab.path("log")).unwrap();
        archives.iter().map(|(name, _)| *name).filter(|name| !log.contains(&format!("/{name}"))).collect()
    };
    let began = std::time::Instant::now();
    while !told(&lab).is_empty() {
        assert!(began.elapsed() < Duration::from_secs(120), "not refused: {:?}", told(&lab));
        std::thread::sleep(Duration::from_millis(100));
    }
    lab.stop_server();
    let before = refused(&lab);
    lab.start_server();
    lab.until("all are refused again", || refused(&lab) >= before + archives.len());
    let script = crate::stage::container("c", "echo runs", json!({}));
    crate::stage::apply(&lab, &[crate::stage::pod("after", &[script], json!({}))]);
    assert_eq!(crate::stage::ended(&lab, "after")["status"]["phase"], "Succeeded");
}
