//! An agent's way to its server, over real TLS on loopback: the tunnel back, and what is followed.

use std::net::IpAddr;
use std::time::Instant;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot, watch};

use super::*;
use crate::api::Api;
use crate::api::http::join::end_connections_of_deleted_nodes;
use crate::api::http::site::ApiServer;
use crate::api::identity::join::{self, Cluster, JoinRequest, Joiner};
use crate::api::identity::join_token::JoinToken;
use crate::api::identity::node::IMAGE_SOURCE;
use crate::api::identity::pki::{Names, Pki, new_key, node_request};
use crate::api::in_memory;
use crate::api::local::Local;
use crate::apimachinery::delete_options::DeleteOptions;
use crate::apimachinery::http::listen;
use crate::apimachinery::node_access::{Destination, ExecOptions, LocalVolume, LogOptions, Target, VolumeRequest};
use crate::base::clock::Clock;
use crate::kinds::KindRef;
use crate::kinds::core::{configmap, namespace, node, pod, secret, serviceaccount};
use crate::reconcile::{Client, Patch, Remote};
use crate::wire::images::{BlobRequest, Head, Peers};
use crate::wire::tls;

const PATIENCE: Duration = Duration::from_secs(10);

struct Joined {
    api: Api,
    local: Local,
    channel: Arc<Channel>,
    server: http::Uri,
    ca: Vec<u8>,
    _keys: tempfile::TempDir,
    _stop: watch::Sender<bool>,
    _shown: (watch::Sender<Arc<rustls::ServerConfig>>, watch::Sender<Arc<rustls::ClientConfig>>),
}

async fn joined() -> Joined {
    let (clock, keys) = (Clock::system(), tempfile::tempdir().unwrap());
    let loopback: IpAddr = [127, 0, 0, 1].into();
    let names = Names { dns: Vec::new(), addresses: vec![loopback] };
    let pki = Pki::load(keys.path(), &names, None, &clock).unwrap();
    let api = in_memory::api();
    let local = Local::new(api.clone(), "test");
    for name in ["kube-system", "default"] {
        local.create(&namespace::KIND, "", json!({"metadata": {"name": name}})).await.unwrap();
    }
    local.create(&serviceaccount::KIND, "default", json!({"metadata": {"name": "default"}})).await.unwrap();
    let cluster = json!({"clusterCidrs": ["10.42.0.0/16"], "serviceCidrs": ["10.43.0.0/16"], "clusterDns": "10.43.0.10",
        "clusterDomain": "cluster.local", "dns": true, "serviceProxy": true, "nodeGraceSeconds": 40});
    let cluster: Cluster = serde_json::from_value(cluster).unwrap();
    let desk = Joiner::new(keys.path(), &pki, cluster, clock);
    let key = new_key().unwrap();
    let application = JoinRequest {
        node_name: "a".into(),
        password: "0123456789abcdef".into(),
        csr: node_request("a", &key).unwrap(),
        addresses: Vec::new(),
    };
    let token = JoinToken::parse(&pki.join_token).unwrap().secret;
    let certificate = desk.join(&api, &token, &application).await.unwrap().certificate;
    let listener = tokio::net::TcpListener::bind((loopback, 0)).await.unwrap();
    let server: http::Uri = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    let (stop, stopping) = watch::channel(false);
    task::spawn("deleted nodes", end_connections_of_deleted_nodes(api.clone()));
    let shown = watch::Sender::new(tls::server(&pki.server.chain, &pki.server.key, &pki.ca).unwrap());
    let site = ApiServer { api: api.clone(), joiner: Some(Arc::new(desk)) };
    task::spawn("api", listen::serve(site, listener, shown.subscribe(), stopping));
    let own = tls::client(&pki.ca, Some((certificate.as_bytes(), &key))).unwrap();
    let own = watch::Sender::new(own);
    let channel = Arc::new(Channel::new(&server, own.subscribe(), "test").unwrap());
    Joined { api, local, channel, server, ca: pki.ca, _keys: keys, _stop: stop, _shown: (shown, own) }
}

/// A node whose commands are pretended: `echo`, `deaf` (reads nothing), `loud` (writes for ever) and `idle`.
#[derive(Default)]
struct Pretended {
    /// Told when an `idle` command's session has gone.
    gone: std::sync::Mutex<Option<oneshot::Sender<()>>>,
    held: std::sync::Mutex<Vec<DuplexStream>>,
}

#[async_trait]
impl NodeAccess for Pretended {
    async fn volume(&self, ask: &VolumeRequest) -> Result<String> {
        match ask {
            VolumeRequest::Make(of) => Ok(format!("/storage/{}_{}_{}", of.volume, of.namespace, of.claim)),
            VolumeRequest::Remove(_) => Err(Status::new(500, "InternalError", "it is in use")),
        }
    }

    async fn logs(&self, _: &Target, _: &LogOptions) -> Result<mpsc::Receiver<Bytes>> {
        Err(Status::internal("not here"))
    }

    async fn exec(&self, _: &Target, options: &ExecOptions) -> Result<Session> {
        let (mut output, stdout) = duplex(1 << 10);
        let gone = self.gone.lock().unwrap().take();
        let (stdin, input) = duplex(1 << 10);
        let mut stdin: Box<dyn tokio::io::AsyncWrite + Send + Unpin> = Box::new(stdin);
        let mut ended: futures::future::BoxFuture<'static, std::result::Result<i32, String>> =
            Box::pin(std::future::pending());
        match options.command[0].as_str() {
            "echo" => {
                // As a container's: it ends when it is closed, not when it is told so.
                let (sender, mut input) = tokio::net::unix::pipe::pipe().unwrap();
                stdin = Box::new(sender);
                let copied = task::spawn("echo", async move {
                    let _ = tokio::io::copy(&mut input, &mut output).await;
                });
                ended = Box::pin(async move {
                    let _ = copied.await;
                    Ok(0)
                });
            }
            "loud" => {
                drop(task::spawn("loud", async move { while output.write_all(&[b'x'; 1000]).await.is_ok() {} }));
                self.held.lock().unwrap().push(input);
            }
            "deaf" => self.held.lock().unwrap().extend([input, output]),
            _ => {
                self.held.lock().unwrap().extend([input, output]);
                ended = Box::pin(async move {
                    let _gone = gone;
                    std::future::pending().await
                });
            }
        }
        let (resize, _) = mpsc::channel(1);
        Ok(Session { stdin: Some(stdin), stdout: Some(Box::new(stdout)), stderr: None, resize, exit: ended })
    }

    async fn attach(&self, target: &Target, options: &ExecOptions) -> Result<Session> {
        self.exec(target, options).await
    }

    async fn connect(&self, _: &Target, _: u16) -> Result<Box<dyn Duplex>> {
        Err(Status::internal("not here"))
    }

    async fn dial(&self, to: &Destination) -> Result<Box<dyn Duplex>> {
        let (ours, theirs) = duplex(1 << 10);
        let (mut from, mut write) = tokio::io::split(theirs);
        match to {
            // An echo.
            Destination::Endpoints => drop(task::spawn("dialled", async move {
                let _ = tokio::io::copy(&mut from, &mut write).await;
                let _ = write.shutdown().await;
            })),
            // Says nothing until it has heard all, and then all the time.
            Destination::Address(_) => {
                let gone = self.gone.lock().unwrap().take();
                drop(task::spawn("dialled", async move {
                    let _ = from.read_to_end(&mut Vec::new()).await;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    while write.write_all(b"x").await.is_ok() {}
                    drop(gone);
                }));
            }
        }
        Ok(Box::new(ours))
    }

    async fn image(&self, ask: &BlobRequest) -> Result<BlobResponse> {
        match ask {
            BlobRequest::Blob { digest, .. } if digest == "big" => {
                Ok(BlobResponse::whole("m", digest, vec![7; IMAGE_BYTES].into()))
            }
            // Begins, and falls silent.
            BlobRequest::Blob { digest, .. } if digest == "silent" => {
                let (send, pieces) = mpsc::channel(1);
                let gone = self.gone.lock().unwrap().take();
                drop(task::spawn("silent", async move {
                    send.closed().await;
                    drop(gone);
                }));
                let head = Head { media_type: "m".into(), digest: digest.clone(), size_bytes: 1 };
                Ok(BlobResponse { head, pieces })
            }
            BlobRequest::Manifest { name, version, .. } if name == "r/tagged" => {
                Ok(BlobResponse::whole("m", version, Bytes::from("{}")))
            }
            _ => Err(Status::internal("not here")),
        }
    }
}

/// More than the tunnel takes as one frame.
const IMAGE_BYTES: usize = 9 << 20;

#[tokio::test]
async fn what_one_node_has_of_an_image_is_for_the_others() {
    let joined = joined().await;
    let _access = tunnelled(&joined, Pretended::default()).await;
    let blob = |digest: &str| BlobRequest::Blob { name: "r/a".into(), digest: digest.into() };
    let (nobody, everybody) = (|_: &str| false, |_: &str| true);
    let found = joined.api.nodes.image(&blob("big"), "another", nobody).await.unwrap();
    assert_eq!(found.head, Head { media_type: "m".into(), digest: "big".into(), size_bytes: IMAGE_BYTES as u64 });
    assert!(found.collect(IMAGE_BYTES).await.unwrap().iter().all(|b| *b == 7));
    assert!(joined.api.nodes.image(&blob("other"), "another", nobody).await.is_none());
    let manifest = BlobRequest::Manifest { name: "r/a".into(), version: "1".into(), server_only: false };
    assert!(joined.api.nodes.image(&manifest, "another", everybody).await.is_none());
    // Over HTTPS, as an agent asks: no other node has it, and it is not asked itself.
    assert!(joined.channel.ask(&blob("big")).await.unwrap().is_none());
    joined.api.nodes.register("b", Arc::new(Pretended::default()));
    let found = joined.channel.ask(&blob("big")).await.unwrap().unwrap();
    assert_eq!(found.collect(IMAGE_BYTES).await.unwrap().len(), IMAGE_BYTES);
}

#[tokio::test]
async fn what_a_tag_means_is_believed_of_nodes_that_an_administrator_has_named() {
    let joined = joined().await;
    joined.api.nodes.register("b", Arc::new(Pretended::default()));
    let ask =
        |version: &str| BlobRequest::Manifest { name: "r/tagged".into(), version: version.into(), server_only: false };
    let digest = format!("sha256:{}", "0".repeat(64));
    assert!(joined.channel.ask(&ask("latest")).await.unwrap().is_none(), "a tag");
    assert!(joined.channel.ask(&ask(&digest)).await.unwrap().is_some(), "a digest tells by itself");
    let label = json!({"metadata": {"name": "b", "labels": {IMAGE_SOURCE: "true"}}});
    joined.local.create(&node::KIND, "", label).await.unwrap();
    assert!(joined.channel.ask(&ask("latest")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_node_that_falls_silent_is_not_waited_for_when_nobody_wants_its_image() {
    let joined = joined().await;
    let (tell, told) = oneshot::channel::<()>();
    let pretended = Pretended { gone: std::sync::Mutex::new(Some(tell)), ..Pretended::default() };
    let access = tunnelled(&joined, pretended).await;
    let ask = BlobRequest::Blob { name: "r/a".into(), digest: "silent".into() };
    drop(access.image(&ask).await.unwrap());
    assert!(tokio::time::timeout(PATIENCE, told).await.expect("the call ends on the node").is_err());
}

#[tokio::test]
async fn a_volume_is_asked_for_through_the_tunnel_and_a_refusal_comes_back_in_words() {
    let joined = joined().await;
    let access = tunnelled(&joined, Pretended::default()).await;
    let of = LocalVolume { volume: "v".into(), namespace: "n".into(), claim: "c".into() };
    assert_eq!(access.volume(&VolumeRequest::Make(of.clone())).await.unwrap(), "/storage/v_n_c");
    let refused = access.volume(&VolumeRequest::Remove(of)).await.unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (500, "it is in use"));
}

async fn tunnelled(joined: &Joined, pretended: Pretended) -> Arc<dyn NodeAccess> {
    drop(task::spawn("tunnel", run(joined.channel.clone(), Arc::new(pretended))));
    until(|| joined.api.nodes.get("a").is_ok(), "the tunnel is open").await;
    joined.api.nodes.get("a").unwrap()
}

async fn until(mut holds: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn exec(access: &Arc<dyn NodeAccess>, command: &str) -> Session {
    let options = ExecOptions { command: vec![command.into()], stdin: true, stdout: true, stderr: false, tty: false };
    let asked = tokio::time::timeout(PATIENCE, access.exec(&Target::default(), &options)).await;
    asked.expect("the node answers").unwrap()
}

async fn echoes(access: &Arc<dyn NodeAccess>, length: usize) {
    let mut session = exec(access, "echo").await;
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let sent: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let feeding = async move {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut seen = Vec::new();
    let both = async { tokio::join!(feeding, stdout.read_to_end(&mut seen)) };
    tokio::time::timeout(PATIENCE, both).await.expect("nothing stalls").1.unwrap();
    assert!(seen == expected, "{} of {} bytes", seen.len(), expected.len());
    assert_eq!(tokio::time::timeout(PATIENCE, session.exit).await.unwrap(), Ok(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_nobody_reads_stop_no_other_call() {
    let joined = joined().await;
    let access = tunnelled(&joined, Pretended::default()).await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let mut deaf = exec(&access, "deaf").await;
        let feeding = deaf.stdin.as_mut().unwrap().write_all(&[b'x'; 1 << 20]);
        assert!(tokio::time::timeout(Duration::from_millis(100), feeding).await.is_err(), "it has to wait");
        stuck.push(deaf);
        stuck.push(exec(&access, "loud").await);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    echoes(&access, 12 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_client_goes_away_goes_on_the_node_too() {
    let joined = joined().await;
    let (tell, told) = oneshot::channel();
    let pretended = Pretended { gone: std::sync::Mutex::new(Some(tell)), ..Pretended::default() };
    let access = tunnelled(&joined, pretended).await;
    let session = exec(&access, "idle").await;
    drop(session);
    assert!(tokio::time::timeout(PATIENCE, told).await.expect("the node drops its session").is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_both_ends_and_goes_with_whoever_opened_it() {
    let joined = joined().await;
    let (tell, told) = oneshot::channel();
    let pretended = Pretended { gone: std::sync::Mutex::new(Some(tell)), ..Pretended::default() };
    let access = tunnelled(&joined, pretended).await;
    let mut echo = access.dial(&Destination::Endpoints).await.unwrap();
    echo.write_all(b"all of it").await.unwrap();
    echo.shutdown().await.unwrap();
    let mut back = String::new();
    tokio::time::timeout(PATIENCE, echo.read_to_string(&mut back)).await.expect("the echo ends").unwrap();
    assert_eq!(back, "all of it", "also after our end");
    let silent = access.dial(&Destination::Address(([127, 0, 0, 1], 1).into())).await.unwrap();
    drop(silent);
    assert!(tokio::time::timeout(PATIENCE, told).await.expect("the node closes its end").is_err());
}

async fn make(local: &Local, kind: &KindRef, name: &str, mut value: Value) {
    value["metadata"]["name"] = name.into();
    local.create(kind, "default", value).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_is_followed_than_a_connection_usually_carries_and_writes_still_pass() {
    const MANY: usize = 300;
    let joined = joined().await;
    let mut env = Vec::new();
    for n in 0..MANY {
        make(&joined.local, &secret::KIND, &format!("s{n}"), json!({"data": {"k": "dg=="}})).await;
        env.push(json!({"secretRef": {"name": format!("s{n}")}}));
    }
    let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "i", "envFrom": env}]});
    make(&joined.local, &pod::KIND, "p", json!({"spec": spec})).await;
    joined.local.create(&node::KIND, "", json!({"metadata": {"name": "a"}})).await.unwrap();
    let remote = Remote::new(joined.channel.clone(), "a", None);
    let (pods, secrets) = (remote.informer(&pod::KIND), remote.informer(&secret::KIND));
    tokio::time::timeout(PATIENCE, pods.synced()).await.expect("the pods are told");
    until(|| secrets.list("").len() == MANY, "all that the pod names is followed").await;
    assert!(pods.get("default", "p").and_then(|o| o.typed::<Pod>().ok()).is_some());
    assert!(remote.informer(&configmap::KIND).list("").is_empty());
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"x": "y"}}}));
    let written = tokio::time::timeout(PATIENCE, remote.patch(&node::KIND, "", "a", None, patch)).await;
    written.expect("a write is not queued behind the watches").unwrap();
    // Deleted and made again: the new one is followed.
    joined.local.delete(&secret::KIND, "default", "s7", DeleteOptions::default()).await.unwrap();
    make(&joined.local, &secret::KIND, "s7", json!({"data": {"k": "bmV3"}})).await;
    let is_new = || secrets.get("default", "s7").is_some_and(|s| s.value()["data"]["k"] == "bmV3");
    until(is_new, "the new secret came").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_nodes_certificate_opens_nothing_and_keeps_nothing_open() {
    let joined = joined().await;
    joined.local.create(&node::KIND, "", json!({"metadata": {"name": "a"}})).await.unwrap();
    let spec = json!({"nodeName": "a", "containers": [{"name": "c", "image": "i"}]});
    make(&joined.local, &pod::KIND, "p", json!({"spec": spec})).await;
    let access = tunnelled(&joined, Pretended::default()).await;
    let remote = Remote::new(joined.channel.clone(), "a", None);
    let (pods, nodes) = (remote.informer(&pod::KIND), remote.informer(&node::KIND));
    until(|| pods.get("default", "p").is_some() && nodes.get("", "a").is_some(), "the node sees its pod").await;
    joined.api.nodes.register("b", Arc::new(Pretended::default()));
    let image = BlobRequest::Blob { name: "r/a".into(), digest: "big".into() };
    assert!(joined.channel.ask(&image).await.unwrap().is_some());

    joined.local.delete(&node::KIND, "", "a", DeleteOptions::default()).await.unwrap();
    let password = join::password_name("a");
    joined.local.delete(&secret::KIND, join::NAMESPACE, &password, DeleteOptions::default()).await.unwrap();
    until(|| joined.api.nodes.get("a").is_err(), "its tunnel is closed").await;
    assert!(access.dial(&Destination::Endpoints).await.is_err());
    assert!(joined.channel.ask(&image).await.is_err(), "the door to images");
    // The connection may have been opened between the two deletions, of which the second ends it as well.
    let asked = async {
        loop {
            let refused = remote.get(&node::KIND, "", "b").await.unwrap_err();
            if refused.code != 503 {
                return refused;
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, asked).await.expect("a connection lasts");
    assert_eq!((refused.code, refused.reason), (403, "NodeDeleted"));
    until(|| pods.list("").is_empty() && nodes.list("").is_empty(), "what it knew is over").await;
}

/// More than a server takes of anybody.
const FLOOD: usize = 4200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_keep_nobody_out() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    assert!(limit > 3 * FLOOD as u64, "this test needs {} open files: raise the limit of {limit}", 3 * FLOOD);
    let joined = joined().await;
    joined.local.create(&node::KIND, "", json!({"metadata": {"name": "a"}})).await.unwrap();
    let authority = joined.server.authority().unwrap().as_str().to_owned();
    let mut silent = Vec::new();
    for n in 0..FLOOD {
        let mut stream = tokio::net::TcpStream::connect(&authority).await.unwrap();
        if n % 16 == 0 {
            // The beginning of a handshake that never goes on.
            let _ = stream.write_all(&[0x16, 3, 1]).await;
        }
        silent.push(stream);
    }
    let began = Instant::now();
    let remote = Remote::new(joined.channel.clone(), "a", None);
    let answered = tokio::time::timeout(Duration::from_secs(1), remote.get(&node::KIND, "", "a")).await;
    answered.expect("one who says who it is is answered within a second").unwrap();
    assert!(began.elapsed() < Duration::from_secs(1));
    // Those that had to make room are closed, and are no burden.
    let mut closed = 0;
    for stream in &mut silent {
        let read = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut [0])).await;
        closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
    }
    assert!(closed >= FLOOD - 512, "{closed} of {FLOOD} were closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_after_the_handshake_is_dropped() {
    let joined = joined().await;
    let config = tls::client(&joined.ca, None).unwrap();
    let authority = joined.server.authority().unwrap().as_str();
    let stream = tokio::net::TcpStream::connect(authority).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(25), stream.read_to_end(&mut Vec::new())).await;
    assert!(read.is_ok(), "it is still open");
}
