//! Probes: exec, HTTP, TCP and gRPC; one task a probe, which reports only changes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, Probe, TCPSocketAction};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::machine::Event;
use super::probe_results::Probed;
use super::worker::Message;
use super::{Node, env, spec};
use crate::base::error::chain;
use crate::base::object::Object;
use crate::base::task;
use crate::containers::ExecSpec;
use crate::kinds::core::pod;
use crate::reconcile::EventType;

/// A probe's answer that is kept for messages.
const ANSWER_BYTES: usize = 2048;
const USER_AGENT: &str = "kube-probe/1.37";

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Startup,
    Liveness,
    Readiness,
}

/// What is probed.
#[derive(Clone)]
pub struct Subject {
    pub node: Arc<Node>,
    pub object: Arc<Object>,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub id: String,
    pub host: Option<IpAddr>,
    pub tell: mpsc::Sender<Message>,
}

impl Subject {
    fn probed(&self, role: Role) -> Probed {
        Probed {
            namespace: self.object.meta.namespace.to_string(),
            pod: self.object.meta.name.to_string(),
            uid: self.object.meta.uid.to_string(),
            container: self.container.name.clone(),
            role: format!("{role:?}"),
        }
    }
}

/// A probe that goes on until this is dropped.
#[derive(Debug)]
pub struct Running {
    role: Role,
    task: JoinHandle<Option<()>>,
}

impl Running {
    /// Whether it goes on while its container is asked to end: until then it may serve.
    pub fn keeps_on(&self) -> bool {
        self.role == Role::Readiness
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts the probes of a running container: the startup probe alone until it has passed.
pub fn start(subject: &Subject, started: bool) -> Vec<Running> {
    let c = &subject.container;
    let probes = match (&c.startup_probe, started) {
        (Some(probe), false) => vec![(Role::Startup, Some(probe))],
        _ => vec![(Role::Liveness, c.liveness_probe.as_ref()), (Role::Readiness, c.readiness_probe.as_ref())],
    };
    let run = |(role, probe): (Role, Option<&Probe>)| {
        let task = task::spawn("probe", watch(subject.clone(), role, probe?.clone()));
        Some(Running { role, task })
    };
    probes.into_iter().filter_map(run).collect()
}

/// Probes until told to stop; a startup probe ends with its first success.
async fn watch(s: Subject, role: Role, probe: Probe) {
    let seconds = |n: Option<i32>, default: i32| Duration::from_secs(n.unwrap_or(default).max(0) as u64);
    let (period, timeout) =
        (seconds(probe.period_seconds, 10).max(Duration::from_secs(1)), seconds(probe.timeout_seconds, 1));
    let needed_failures = probe.failure_threshold.unwrap_or(3).max(1);
    let needed_successes = probe.success_threshold.unwrap_or(1).max(1);
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    let counting = s.node.probe_results.begin(s.probed(role));
    let (mut failures, mut successes, mut ready) = (0, 0, None);
    let mut quick = role == Role::Readiness;
    loop {
        let result = match tokio::time::timeout(timeout.max(Duration::from_secs(1)), once(&s, &probe)).await {
            Ok(result) => result,
            Err(_) => Err(format!("context deadline exceeded after {timeout:?}")),
        };
        counting.add(result.is_ok());
        match result {
            Ok(()) => {
                (failures, successes) = (0, successes + 1);
                quick = false;
                if role == Role::Startup && successes >= needed_successes {
                    tell(&s, Event::StartupPassed { container: s.container.name.clone() }).await;
                    return;
                }
                if role == Role::Readiness && successes >= needed_successes && ready != Some(true) {
                    ready = Some(true);
                    tell(&s, Event::Ready { container: s.container.name.clone(), ready: true }).await;
                }
            }
            Err(why) => {
                (failures, successes) = (failures + 1, 0);
                if quick && failures <= 10 && ready.is_none() {
                    // A container that has just begun is asked again soon, so that it is ready when it is.
                    tokio::time::sleep(Duration::from_millis(20 << failures.min(5)).min(period)).await;
                    continue;
                }
                unhealthy(&s, role, &why);
                if failures >= needed_failures {
                    failed(&s, role, &probe, &mut ready).await;
                    if role != Role::Readiness {
                        failures = 0;
                    }
                }
            }
        }
        tokio::time::sleep(period).await;
    }
}

fn unhealthy(s: &Subject, role: Role, why: &str) {
    let part = super::spec::field_of(&s.pod, &s.container.name);
    s.node.recorder.event_at(
        &pod::KIND,
        &s.object,
        &part,
        EventType::Warning,
        "Unhealthy",
        &format!("{role:?} probe failed: {why}"),
    );
}

async fn failed(s: &Subject, role: Role, probe: &Probe, ready: &mut Option<bool>) {
    let container = s.container.name.clone();
    if role == Role::Readiness {
        if *ready != Some(false) {
            *ready = Some(false);
            tell(s, Event::Ready { container, ready: false }).await;
        }
        return;
    }
    let part = format!("spec.containers{{{container}}}");
    let message =
        format!("Container {container} failed {} probe, will be restarted", format!("{role:?}").to_lowercase());
    s.node.recorder.event_at(&pod::KIND, &s.object, &part, EventType::Normal, "Killing", &message);
    tell(s, Event::Unhealthy { container, grace: spec::grace_of(probe, &s.pod) }).await;
}

async fn tell(s: &Subject, event: Event) {
    let _ = s.tell.send(Message::Happened(event)).await;
}

async fn once(s: &Subject, probe: &Probe) -> Result<(), String> {
    if let Some(action) = &probe.exec {
        return exec(&s.node, &s.id, action.command.clone().unwrap_or_default()).await.map(|_| ());
    }
    if let Some(get) = &probe.http_get {
        return http(&s.node, &s.pod, &s.container, get, s.host).await;
    }
    if let Some(tcp_socket) = &probe.tcp_socket {
        return tcp(&s.container, tcp_socket, s.host).await;
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
        let address = SocketAddr::new(s.host.ok_or("the pod has no address yet")?, port);
        let (service, tls) = (grpc.service.as_deref().unwrap_or(""), grpc.mode.as_deref() == Some("TLS"));
        return crate::wire::grpc::check_health(address, tls, service, USER_AGENT).await;
    }
    Err("missing probe handler".into())
}

/// Runs a command in the container; its output, or what it said when it failed.
pub async fn exec(node: &Node, id: &str, command: Vec<String>) -> Result<String, String> {
    let spec = ExecSpec { args: command, ..ExecSpec::default() };
    let mut session = node.runtime.exec(id, spec).await.map_err(|e| chain(&e))?;
    drop(session.stdin.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read_out = async { (&mut session.stdout).take(ANSWER_BYTES as u64).read_to_end(&mut out).await.map(|_| ()) };
    let read_err = async {
        match &mut session.stderr {
            Some(stderr) => stderr.take(ANSWER_BYTES as u64).read_to_end(&mut err).await.map(|_| ()),
            None => Ok(()),
        }
    };
    let _ = tokio::join!(read_out, read_err);
    let code = session.control.wait().await.map_err(|e| chain(&e))?;
    out.extend(err);
    let said = String::from_utf8_lossy(&out).into_owned();
    if code == 0 { Ok(said) } else { Err(if said.is_empty() { format!("command exited with {code}") } else { said }) }
}

/// Asks for a page; 200 to 399 is healthy.
pub async fn http(
    _node: &Node,
    _pod: &Pod,
    c: &Container,
    get: &HTTPGetAction,
    host: Option<IpAddr>,
) -> Result<(), String> {
    let port = env::port(c, &get.port).ok_or_else(|| format!("couldn't find port: {:?}", get.port))?;
    let path = get.path.clone().filter(|p| !p.is_empty()).unwrap_or_else(|| "/".into());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let target = match get.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => format!("{host}:{port}"),
        None => SocketAddr::new(host.ok_or("the pod has no address yet")?, port).to_string(),
    };
    let mut head = format!("GET {path} HTTP/1.1\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\nConnection: close\r\n");
    let given = get.http_headers.iter().flatten();
    if !given.clone().any(|h| h.name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {target}\r\n"));
    }
    for header in given {
        head.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    head.push_str("\r\n");
    let stream = TcpStream::connect(&target).await.map_err(|e| format!("Get \"http://{target}{path}\": {e}"))?;
    let code = if get.scheme.as_deref() == Some("HTTPS") {
        let config = crate::wire::tls::trusting_anyone().map_err(|e| e.to_string())?;
        let name = rustls_pki_types::ServerName::try_from("localhost").map_err(|e| e.to_string())?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
        ask(stream, &head).await?
    } else {
        ask(stream, &head).await?
    };
    if (200..400).contains(&code) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {code}")) }
}

async fn ask(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, head: &str) -> Result<u16, String> {
    stream.write_all(head.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    while !answer.windows(2).any(|w| w == b"\r\n") && answer.len() < ANSWER_BYTES {
        match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(e) => return Err(e.to_string()),
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let code = line.split(' ').nth(1).and_then(|c| c.get(..3)).and_then(|c| c.parse().ok());
    code.ok_or_else(|| "the answer is not HTTP".into())
}

/// Connects and hangs up.
pub async fn tcp(c: &Container, action: &TCPSocketAction, host: Option<IpAddr>) -> Result<(), String> {
    let port = env::port(c, &action.port).ok_or_else(|| format!("couldn't find port: {:?}", action.port))?;
    let target = match action.host.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => format!("{host}:{port}"),
        None => SocketAddr::new(host.ok_or("the pod has no address yet")?, port).to_string(),
    };
    TcpStream::connect(&target).await.map(|_| ()).map_err(|e| format!("dial tcp {target}: {e}"))
}
