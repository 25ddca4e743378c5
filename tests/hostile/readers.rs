//! Clients that ask for much and take nothing, while others write: lists, watches, connections, pages through the proxy.
//!
//! The server must stay small and answer others meanwhile (`watch`). What each keeps in the end is shown by unit tests of
//! the mechanisms; here is what all of it takes.

use std::any::Any;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use amphipod::wire::client::{Client, Target};
use bytes::Bytes;
use futures::SinkExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::bodies::MAPS;
use crate::lab::HOST;
use crate::load::{files_for, writer};
use crate::stage::start;
use crate::watch::Watched;

/// Requests that a connection of somebody with a token may have open.
const STREAMS: usize = 100;

fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Requests of one user whose client lets nothing come, on as many connections as they need; the answers to those that were.
async fn unread(target: &Target, path: &str, count: usize) -> (Vec<Response<Incoming>>, Box<dyn Any>) {
    let (mut open, mut senders) = (Vec::new(), Vec::new());
    for begun in (0..count).step_by(STREAMS) {
        let stream = tokio::net::TcpStream::connect((HOST, 6443)).await.unwrap();
        let mut config = (*target.tls).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
        let tls = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await.unwrap();
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(0);
        let (sender, connection) = builder.handshake::<_, Empty<Bytes>>(TokioIo::new(tls)).await.unwrap();
        #[allow(clippy::disallowed_methods)]
        tokio::spawn(connection);
        let asked = (begun..count.min(begun + STREAMS)).map(|_| {
            let mut sender = sender.clone();
            let request = Request::get(format!("https://{HOST}:6443{path}"))
                .header("authorization", format!("Bearer {}", target.token.as_deref().unwrap()));
            async move {
                sender.ready().await.ok()?;
                let asked = sender.send_request(request.body(Empty::new()).unwrap());
                tokio::time::timeout(Duration::from_secs(20), asked).await.ok()?.ok()
            }
        });
        open.extend(futures::future::join_all(asked).await.into_iter().flatten());
        senders.push(sender);
    }
    (open, Box::new(senders))
}

/// Writes an object, again where it has to wait for its turn; answers its revision.
async fn put(client: &mut Client, method: &str, path: &str, object: &Value) -> String {
    let began = Instant::now();
    loop {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let response = client.send(request.body(Full::new(Bytes::from(object.to_string()))).unwrap()).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if code != 429 {
            assert!(matches!(code, 200 | 201), "{code}: {}", String::from_utf8_lossy(&body));
            let object: Value = serde_json::from_slice(&body).unwrap();
            return object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{method} {path}: 429");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn map(name: &str, bytes: usize, letter: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": letter.repeat(bytes)}})
}

/// Somebody who reads is answered whole.
fn reads(lab: &Watched, target: Target, path: &'static str) {
    let read = lab.from_outside(move || {
        in_a_runtime(async {
            let request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
            let response = Client::new(target).send(request).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap().to_bytes().len()
        })
    });
    assert!(read.join().unwrap() > 0);
}

#[test]
fn watches_that_are_not_read_keep_no_objects() {
    const OBJECTS: usize = 10_000;
    const WATCHES_OF_USER: usize = 500;
    let lab = start("watches");
    let target = writer(&lab, "maker");
    let makers: Vec<_> = (0..4)
        .map(|n| {
            let target = target.clone();
            lab.from_outside(move || {
                in_a_runtime(async {
                    let mut client = Client::new(target);
                    for i in (n..OBJECTS).step_by(4) {
                        put(&mut client, "POST", MAPS, &map(&format!("m{i}"), 50, "x")).await;
                    }
                })
            })
        })
        .collect();
    makers.into_iter().for_each(|maker| maker.join().unwrap());
    let watchers: Vec<_> = ["one", "two"]
        .map(|name| writer(&lab, name))
        .map(|target| {
            lab.from_outside(move || {
                in_a_runtime(async {
                    let path = format!("{MAPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan");
                    let (open, _connections) = unread(&target, &path, WATCHES_OF_USER).await;
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    open.iter().filter(|answer| answer.status() == 200).count()
                })
            })
        })
        .into();
    let begun: usize = watchers.into_iter().map(|watcher| watcher.join().unwrap()).sum();
    assert_eq!(begun, 2 * WATCHES_OF_USER);
    reads(&lab, target, MAPS);
}

#[test]
fn lists_that_are_not_read_do_not_keep_what_was_replaced() {
    const OBJECTS: usize = 100;
    const BYTES: usize = 150_000;
    const ROUNDS: usize = 18;
    let lab = start("replaced");
    let (target, other) = (writer(&lab, "writer"), writer(&lab, "other"));
    let worked = lab.from_outside(move || {
        in_a_runtime(async {
            let mut client = Client::new(target.clone());
            let mut open = Vec::new();
            for round in 0..ROUNDS {
                let letter = char::from(b'a' + round as u8).to_string();
                for i in 0..OBJECTS {
                    let name = format!("m{i}");
                    let (method, path) =
                        if round == 0 { ("POST", MAPS.to_owned()) } else { ("PUT", format!("{MAPS}/{name}")) };
                    put(&mut client, method, &path, &map(&name, BYTES, &letter)).await;
                }
                open.push(unread(&target, MAPS, 2).await);
            }
            open.iter().flat_map(|(answers, _)| answers).filter(|answer| answer.status() == 200).count()
        })
    });
    reads(&lab, other.clone(), MAPS);
    assert_eq!(worked.join().unwrap(), 2 * ROUNDS, "all were begun");
    reads(&lab, other, MAPS);
}

#[test]
fn watches_that_begin_in_the_past_read_a_little_at_a_time() {
    const CHANGES: usize = 60;
    const BACK: usize = 25;
    const BYTES: usize = 900_000;
    let lab = start("past");
    let target = writer(&lab, "writer");
    let seen = lab.from_outside(move || {
        in_a_runtime(async {
            let mut client = Client::new(target.clone());
            put(&mut client, "POST", MAPS, &map("big", 1, "x")).await;
            let mut revisions = Vec::new();
            for i in 0..CHANGES {
                let letter = char::from(b'a' + (i % 26) as u8).to_string();
                revisions.push(put(&mut client, "PUT", &format!("{MAPS}/big"), &map("big", BYTES, &letter)).await);
            }
            let path = format!("{MAPS}?watch=1&resourceVersion={}", revisions[CHANGES - BACK - 1]);
            let mut open = Vec::new();
            for _ in 0..12 {
                let request = Request::get(&path).body(Full::<Bytes>::default()).unwrap();
                open.push(Client::new(target.clone()).send(request).await.unwrap());
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            // One of them reads after all.
            let mut read = 0;
            let mut body = open.remove(0).into_body();
            while read < BACK * BYTES {
                let frame =
                    tokio::time::timeout(Duration::from_secs(30), body.frame()).await.unwrap().unwrap().unwrap();
                read += frame.data_ref().map_or(0, |data| data.len());
            }
            read
        })
    });
    assert!(seen.join().unwrap() >= BACK * BYTES);
}

/// A port of the machine where every connection is kept, after this was done with it.
fn listening(lab: &Watched, address: &'static str, answer: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let namespace = std::fs::File::open(format!("/run/netns/{}", lab.name)).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((address, 0)).unwrap();
        tell.send(listener.local_addr().unwrap().port()).unwrap();
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            open.push(stream.try_clone().unwrap());
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream));
        }
    });
    told.recv().unwrap()
}

/// Answers every request with the beginning of a page of so many bytes, from a place in the machine.
fn begun_pages(lab: &Watched, bytes: usize) -> u16 {
    listening(lab, HOST, move |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 8000000\r\n\r\n");
        let _ = stream.write_all(&b"<a href=\"/\">".repeat(bytes / 12));
    })
}

#[test]
fn pages_of_a_hostile_backend_take_no_more_than_other_answers() {
    let lab = start("pages");
    let target = writer(&lab, "user");
    let node = lab.kubectl(&["get", "nodes", "-o", "name"]).trim().trim_start_matches("node/").to_owned();
    let port = begun_pages(&lab, 4_000_000);
    let worked = lab.from_outside(move || {
        in_a_runtime(async {
            let path = format!("/api/v1/nodes/{node}:{port}/proxy/");
            let asked = tokio::time::timeout(Duration::from_secs(8), unread(&target, &path, STREAMS)).await;
            asked.map_or(0, |(open, _)| open.len())
        })
    });
    worked.join().unwrap();
    lab.kubectl(&["get", "--raw", MAPS]);
}

#[test]
fn logs_that_are_not_read_take_no_more_than_other_answers() {
    let lab = start("logs");
    let target = writer(&lab, "user");
    let script = "i=0; while [ $i -lt 400 ]; do /bin/busybox dd if=/dev/zero bs=8192 count=1 2>/dev/null | /bin/busybox tr '\\0' x; echo; i=$((i+1)); done";
    crate::stage::apply(
        &lab,
        &[crate::stage::pod("loud", &[crate::stage::container("c", script, json!({}))], json!({}))],
    );
    assert_eq!(crate::stage::ended(&lab, "loud")["status"]["phase"], "Succeeded");
    let other = target.clone();
    let worked = lab.from_outside(move || {
        in_a_runtime(async {
            let asked = unread(&target, "/api/v1/namespaces/default/pods/loud/log", 490);
            tokio::time::timeout(Duration::from_secs(30), asked).await.map_or(0, |(open, _)| open.len())
        })
    });
    worked.join().unwrap();
    reads(&lab, other, "/api/v1/namespaces/default/pods/loud/log");
}

/// Websockets of several users that are opened and not read.
fn unread_sockets(lab: &Watched, path: &'static str, protocol: &'static str) -> usize {
    const USERS: usize = 5;
    const SOCKETS: usize = 100;
    files_for(USERS * SOCKETS);
    let targets: Vec<Target> = (0..USERS).map(|n| writer(lab, &format!("socket{n}"))).collect();
    let worked = lab.from_outside(move || {
        in_a_runtime(async {
            let mut open = Vec::new();
            for target in &targets {
                for _ in 0..SOCKETS {
                    let mut client = Client::new(target.clone());
                    let opened = tokio::time::timeout(Duration::from_secs(20), client.websocket(path, protocol)).await;
                    open.extend(opened.ok().and_then(Result::ok).and_then(Result::ok));
                }
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            open.len()
        })
    });
    worked.join().unwrap()
}

#[test]
fn logs_in_websockets_that_are_not_read_take_no_more_than_other_answers() {
    let lab = start("socketlogs");
    let script = "while :; do /bin/busybox dd if=/dev/zero bs=65536 count=16 2>/dev/null | /bin/busybox tr '\\0' x; echo; sleep 0.1; done";
    crate::stage::apply(
        &lab,
        &[crate::stage::pod("loud", &[crate::stage::container("c", script, json!({}))], json!({}))],
    );
    crate::stage::running(&lab, "loud");
    std::thread::sleep(Duration::from_secs(3));
    let opened = unread_sockets(&lab, "/api/v1/namespaces/default/pods/loud/log?follow=true", "binary.k8s.io");
    assert!(opened > 0);
    reads(&lab, writer(&lab, "other"), "/api/v1/namespaces/default/pods/loud/log");
}

#[test]
fn what_goes_to_ports_that_nobody_reads_is_bounded() {
    const SOCKETS: usize = 8;
    const PORTS: usize = 36;
    const MESSAGES: usize = 12;
    let lab = start("ports");
    let target = writer(&lab, "user");
    let port = listening(&lab, "0.0.0.0", |_| {});
    let waits = crate::stage::container("c", "sleep 1000", json!({}));
    crate::stage::apply(&lab, &[crate::stage::pod("deaf", &[waits], json!({"hostNetwork": true}))]);
    crate::stage::running(&lab, "deaf");
    let worked = lab.from_outside(move || {
        in_a_runtime(async {
            let ports = vec![port.to_string(); PORTS].join(",");
            let path = format!("/api/v1/namespaces/default/pods/deaf/portforward?ports={ports}");
            let mut message = vec![0; 1 << 20];
            let (mut open, mut sent) = (Vec::new(), 0);
            for _ in 0..SOCKETS {
                let mut client = Client::new(target.clone());
                let Ok(Ok(mut socket)) = client.websocket(&path, "v4.channel.k8s.io").await else { continue };
                'socket: for _ in 0..MESSAGES {
                    for channel in 0..PORTS {
                        message[0] = 2 * channel as u8;
                        let message = Message::Binary(Bytes::copy_from_slice(&message));
                        let sending = tokio::time::timeout(Duration::from_secs(2), socket.send(message)).await;
                        if !matches!(sending, Ok(Ok(()))) {
                            break 'socket;
                        }
                        sent += 1;
                    }
                }
                open.push(socket);
            }
            (open.len(), sent)
        })
    });
    let (opened, sent) = worked.join().unwrap();
    assert!(opened > 0 && sent > PORTS, "{opened} sockets, {sent} messages");
    lab.kubectl(&["get", "--raw", MAPS]);
}

#[test]
fn connections_of_the_accounts_of_one_namespace_keep_no_other_user_out() {
    const ACCOUNTS: usize = 8;
    const CONNECTIONS: usize = 110;
    files_for(ACCOUNTS * CONNECTIONS);
    let lab = start("many");
    lab.kubectl(&["create", "namespace", "other"]);
    let targets: Vec<Target> = (0..ACCOUNTS).map(|n| writer(&lab, &format!("user{n}"))).collect();
    let open = lab.from_outside(move || {
        in_a_runtime(async {
            let mut open = Vec::new();
            for target in targets {
                for _ in 0..CONNECTIONS {
                    let request = Request::get("/version").body(Full::<Bytes>::default()).unwrap();
                    let mut client = Client::new(target.clone());
                    let Ok(response) = client.send(request).await else { continue };
                    let _ = response.into_body().collect().await;
                    open.push(client);
                }
            }
            tokio::time::sleep(Duration::from_secs(8)).await;
            open.len()
        })
    });
    std::thread::sleep(Duration::from_secs(5));
    lab.kubectl(&["create", "serviceaccount", "reader", "-n", "other"]);
    lab.kubectl(&[
        "create",
        "clusterrolebinding",
        "other-reader",
        "--clusterrole=view",
        "--serviceaccount=other:reader",
    ]);
    let token = lab.kubectl(&["create", "token", "reader", "-n", "other"]).trim().to_owned();
    let other = Target { token: Some(token), ..lab.user("user0") };
    reads(&lab, other, "/api/v1/namespaces");
    assert!(open.join().unwrap() >= 768, "they have all there are");
}
