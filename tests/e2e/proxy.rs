//! Nodes, pods and Services through the API: every verb, bodies, upgrades, and what a node says of itself; on the server's
//! own node and on an agent that is reached through its tunnel only.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use amphipod::wire::client::Client;
use amphipod::wire::websocket;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::client::target_of;
use crate::lab::{Lab, first_processes};
use crate::machines::Machines;

/// Pods of the built-in image, and a Service with two named ports: the image's own, and one on which the test answers.
const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: amphipod.local/hello
    ports: [{containerPort: 8080}]
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: hello, port: 80, targetPort: 8080}, {name: echo, port: 81, targetPort: 8081}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"#;
const PATIENCE: Duration = Duration::from_secs(20);
const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// A server with its node or an agent's, as a client sees it.
struct View {
    /// The network namespace in which the API's address is reached.
    namespace: PathBuf,
    kubeconfig: PathBuf,
    kubectl: Box<dyn Fn(&[&str]) -> String>,
    node: String,
    /// The first process of the pod.
    pid: i32,
}

/// An answer with its body.
type Answer = (u16, HeaderMap, Bytes);

impl View {
    /// Work with a client, in the machine's network namespace.
    fn within<T: Send + 'static>(&self, work: impl AsyncFnOnce(Client) -> T + Send + 'static) -> T {
        let (namespace, kubeconfig) = (std::fs::File::open(&self.namespace).unwrap(), self.kubeconfig.clone());
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(Client::new(target_of(&kubeconfig))))
        });
        thread.join().unwrap()
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.send_as("", method, path, body)
    }

    /// The same for another user, or for the administrator where it is nobody.
    fn send_as(&self, user: &str, method: &str, path: &str, body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("x-own", "kept").header("cookie", "a=b");
        if !user.is_empty() {
            request = request.header("impersonate-user", user);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
        self.within(async move |mut client| {
            let answered = async {
                let (parts, body) = client.send(request).await.unwrap().into_parts();
                (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
            };
            tokio::time::timeout(PATIENCE, answered).await
        })
        .unwrap_or_else(|_| panic!("no answer to {method} {path} with {} bytes", body.len()))
    }

    fn raw(&self, path: &str) -> String {
        (self.kubectl)(&["get", "--raw", path])
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.raw(path)).unwrap()
    }

    fn of_node(&self, path: &str) -> String {
        format!("/api/v1/nodes/{}/proxy{path}", self.node)
    }
}

/// Answers on a port inside of a pod: what was asked as JSON, redirects, pages, and websockets that echo.
fn answer_inside(pid: i32, port: u16) {
    let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
    let (ready, bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        ready.send(()).unwrap();
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || drop(answer(stream)));
        }
    });
    bound.recv().unwrap();
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let head_end = loop {
        let n = stream.read(&mut piece)?;
        bytes.extend_from_slice(&piece[..n]);
        if bytes.first() == Some(&22) {
            return stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nno TLS here");
        }
        match bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            Some(at) => break at + 4,
            None if n == 0 => return Ok(()),
            None => {}
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|l| l.split_once(": "));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    if let Some(key) = header("sec-websocket-key") {
        let accept = websocket::answer(key.as_bytes());
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
        write!(stream, "{switch}Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: echo\r\n\r\n")?;
        // Frames of a client, masked, back as frames of a server.
        loop {
            let mut frame = [0; 6];
            stream.read_exact(&mut frame)?;
            let mut text = vec![0; usize::from(frame[1] & 0x7f)];
            stream.read_exact(&mut text)?;
            text.iter_mut().enumerate().for_each(|(i, b)| *b ^= frame[2 + i % 4]);
            stream.write_all(&[&[frame[0], text.len() as u8], &text[..]].concat())?;
        }
    }
    let mut body = bytes.split_off(head_end);
    let length = header("content-length").map_or(0, |l| l.parse().unwrap());
    while body.len() < length {
        let n = stream.read(&mut piece)?;
        body.extend_from_slice(&piece[..n]);
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, extra, said) = match target.split('?').next().unwrap_or_default() {
        "/away" => ("302 Found", "Location: /there/?x=y\r\n", Vec::new()),
        "/page" => ("200 OK", "Content-Type: text/html; charset=utf-8\r\n", b"<a href=\"/x\">x</a>".to_vec()),
        "/switch" => ("101 Switching Protocols", "Upgrade: other\r\nConnection: Upgrade\r\n", Vec::new()),
        "/broken" => ("500 Internal Server Error", "Access-Control-Allow-Origin: *\r\n", b"broken".to_vec()),
        "/echo" => ("200 OK", "Content-Type: application/octet-stream\r\n", body),
        _ => {
            let headers: serde_json::Map<String, Value> = head
                .lines()
                .skip(1)
                .filter_map(|l| l.split_once(": "))
                .map(|(k, v)| (k.to_lowercase(), v.into()))
                .collect();
            let body = String::from_utf8_lossy(&body);
            let said = serde_json::json!({"method": method, "target": target, "headers": headers, "body": body});
            ("200 OK", "Content-Type: application/json\r\nKeep-Alive: timeout=5\r\n", said.to_string().into_bytes())
        }
    };
    write!(stream, "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n", said.len())?;
    if method != "HEAD" {
        stream.write_all(&said)?;
    }
    stream.flush()
}

fn pid_of(pod: &Value) -> Option<i32> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?.replace("amphipod://", "");
    first_processes().get(&id).map(|p| p.pid)
}

fn all_of_it(view: &View) {
    answer_inside(view.pid, 8081);
    every_verb(view);
    redirects_and_pages(view);
    what_cannot_be_reached(view);
    who_may(view);
    upgrades(view);
    what_a_node_says(view);
    a_burning_container_is_seen(view);
}

fn every_verb(view: &View) {
    // The first port of the pod, its other port, and the Service by name and number, with and without a scheme.
    assert!(view.raw(&format!("{PODS}/web/proxy/a?b=c")).contains("request: GET /a?b=c HTTP/1.1"));
    assert!(view.raw(&format!("{SERVICES}/web:hello/proxy/")).contains("request: GET / HTTP/1.1"));
    let echoes =
        ["pods/web:8081", "pods/http:web:8081", "services/web:echo", "services/web:81", "services/http:web:echo"];
    for echo in echoes {
        let base = format!("/api/v1/namespaces/default/{echo}/proxy");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let sent = if method == "GET" { "" } else { "some body" };
            let (code, headers, body) = view.send(method, &format!("{base}/p%20q/r/?s=t&u"), sent.as_bytes());
            let said: Value = serde_json::from_slice(&body).unwrap_or_default();
            assert_eq!(code, 200, "{method} {echo}: {said}");
            assert_eq!((&said["method"], &said["target"]), (&method.into(), &"/p%20q/r/?s=t&u".into()), "{echo}");
            assert_eq!(said["body"], sent);
            let seen = &said["headers"];
            assert_eq!((&seen["x-own"], &seen["cookie"]), (&"kept".into(), &"a=b".into()));
            assert_eq!(seen["x-forwarded-uri"], format!("{base}/p%20q/r/"));
            assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
            assert!(seen["host"].as_str().is_some_and(|h| h.ends_with(":6443")), "{seen}");
            assert!(headers.get("keep-alive").is_none(), "of that connection alone");
        }
        let (code, headers, body) = view.send("HEAD", &format!("{base}/"), b"");
        assert_eq!((code, body.len()), (200, 0), "{echo}");
        assert_eq!(headers["content-type"], "application/json");
    }
    // Nothing of a body is held back or lost.
    let big: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    let (code, _, body) = view.send("POST", &format!("{PODS}/web:8081/proxy/echo"), &big);
    assert!(code == 200 && body == big, "{code}, {} bytes", body.len());
}

fn redirects_and_pages(view: &View) {
    let base = format!("{PODS}/web:8081/proxy");
    let (code, headers, _) = view.send("GET", &format!("{base}?method=GET"), b"");
    assert_eq!((code, headers["location"].to_str().unwrap()), (301, format!("{base}/?method=GET").as_str()));
    let (code, _, body) = view.send("POST", &format!("{base}?method=POST"), b"x");
    assert!(code == 200 && String::from_utf8_lossy(&body).contains("\"/?method=POST\""), "only what reads is sent on");
    let (code, headers, _) = view.send("GET", &format!("{base}/away"), b"");
    assert_eq!((code, headers["location"].to_str().unwrap()), (302, format!("{base}/there/?x=y").as_str()));
    let (_, _, page) = view.send("GET", &format!("{base}/page"), b"");
    assert_eq!(String::from_utf8_lossy(&page), format!("<a href=\"{base}/x\">x</a>"));
    let (code, headers, body) = view.send("GET", &format!("{base}/broken"), b"");
    assert_eq!((code, &body[..]), (500, &b"broken"[..]), "the backend's own failure");
    assert!(headers.get("access-control-allow-origin").is_none());
}

fn what_cannot_be_reached(view: &View) {
    let refused = |path: &str| {
        let (code, _, body) = view.send("GET", path, b"");
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        (
            code,
            status["reason"].as_str().unwrap_or_default().to_owned(),
            status["message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (code, reason, message) = refused(&format!("{PODS}/web:9/proxy/"));
    assert_eq!((code, reason.as_str()), (503, "ServiceUnavailable"));
    assert!(message.starts_with("error trying to reach service: dial tcp 10.42."), "{message}");
    assert!(message.ends_with(":9: connect: connection refused"), "{message}");
    let (code, _, message) = refused(&format!("{SERVICES}/nobody/proxy/"));
    assert_eq!((code, message.as_str()), (503, "no endpoints available for service \"nobody\""));
    let (code, _, message) = refused(&format!("{SERVICES}/web:82/proxy/"));
    assert_eq!((code, message.as_str()), (503, "no service port 82 found for service \"web\""));
    assert_eq!(refused(&format!("{SERVICES}/absent/proxy/")).0, 404);
    assert_eq!(refused(&format!("{PODS}/ftp:web:80/proxy/")).0, 400);
    assert_eq!(refused("/api/v1/nodes/absent/proxy/").0, 404);
    // A switch of protocols that nobody has asked for.
    let unasked = refused(&format!("{SERVICES}/web:echo/proxy/switch"));
    assert_eq!((unasked.0, unasked.2.as_str()), (503, "error trying to reach service: unexpected status code 101"));
    // The right to watch is not the right to this.
    assert_eq!(refused("/api/v1/watch/namespaces/default/services/web:echo/proxy/").0, 405);
    // Plain HTTP where TLS is wanted.
    let (code, _, message) = refused(&format!("{PODS}/https:web:8081/proxy/"));
    assert!(code == 503 && message.starts_with("error trying to reach service: tls: "), "{message}");
}

/// Each verb is a right of its own, and the backend does not learn who asks.
fn who_may(view: &View) {
    (view.kubectl)(&["create", "role", "proxying", "--verb=get", "--resource=services/proxy"]);
    (view.kubectl)(&["create", "rolebinding", "proxying", "--role=proxying", "--user=somebody"]);
    let ask = |method: &str, path: &str| view.send_as("somebody", method, path, b"");
    let (code, _, body) = ask("GET", &format!("{SERVICES}/web:echo/proxy/"));
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    assert_eq!((code, &said["headers"]["x-own"]), (200, &"kept".into()), "{said}");
    assert!(said["headers"].as_object().unwrap().keys().all(|k| !k.contains("impersonate") && k != "authorization"));
    assert_eq!(ask("HEAD", &format!("{SERVICES}/web:echo/proxy/")).0, 200);
    assert_eq!(ask("POST", &format!("{SERVICES}/web:echo/proxy/")).0, 403);
    assert_eq!(ask("OPTIONS", &format!("{SERVICES}/web:echo/proxy/")).0, 403);
    assert_eq!(ask("GET", &format!("{PODS}/web:8081/proxy/")).0, 403);
    assert_eq!(ask("GET", &view.of_node("/pods")).0, 403);
    assert_eq!(ask("GET", &view.of_node("/healthz")).0, 403);
}

fn upgrades(view: &View) {
    let path = format!("{SERVICES}/web:echo/proxy/socket");
    view.within(async move |mut client| {
        let mut socket = client.websocket(&path, "echo").await.unwrap().expect("the pod changes over");
        for word in ["one", "two", "three"] {
            socket.send(Message::Text(word.into())).await.unwrap();
            let back = tokio::time::timeout(Duration::from_secs(5), socket.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(back, Message::Text(word.into()));
        }
    });
    let path = format!("{PODS}/web/proxy/");
    let refused = view.within(async move |mut client| {
        let response = client.websocket(&path, "echo").await.unwrap().expect_err("the image's server does not");
        response.status().as_u16()
    });
    assert_eq!(refused, 500);
}

fn what_a_node_says(view: &View) {
    assert_eq!(view.raw(&view.of_node("/healthz")), "ok");
    assert_eq!(view.raw(&format!("/api/v1/nodes/{}:10250/proxy/healthz", view.node)), "ok");
    for path in ["/pods", "/runningpods/"] {
        let pods = view.json(&view.of_node(path));
        let found = |p: &Value| p["metadata"]["name"] == "web" && p["spec"]["containers"][0]["name"] == "hello";
        assert!(pods["kind"] == "PodList" && pods["items"].as_array().unwrap().iter().any(found), "{path}: {pods}");
    }
    let log = view.raw(&view.of_node("/containerLogs/default/web/hello?tailLines=1&timestamps=true"));
    assert!(log.trim_end().ends_with("Z hello: listening on port 8080"), "{log}");
    let listing = view.raw(&view.of_node("/logs/"));
    assert!(listing.contains("<pre>\n<a href=\""), "{listing}");
    assert!(!std::path::Path::new("/var/log/hostname").exists());
    for outside in ["/logs/../../etc/hostname", "/logs/..%2f..%2fetc/hostname"] {
        assert!(matches!(view.send("GET", &view.of_node(outside), b"").0, 403 | 404), "{outside}");
    }
    assert_eq!(view.json(&view.of_node("/configz"))["kubeletconfig"]["clusterDomain"], "cluster.local");
    assert_eq!(view.send("GET", &view.of_node("/absent"), b"").0, 404);
    assert_eq!(view.send("DELETE", &view.of_node("/pods"), b"").0, 405);
    assert!(view.raw(&view.of_node("/metrics")).contains("\nkubelet_running_pods "));
    let probes = view.raw(&view.of_node("/metrics/probes"));
    let labels = ["container=\"hello\"", "pod=\"web\"", "probe_type=\"Liveness\"", "result=\"successful\""];
    assert!(sample(&probes, "prober_probe_total", &labels) >= 1.0);
}

/// A process of the test's in the container's control groups.
struct Burning(Child);

impl Burning {
    fn start(pid: i32) -> Self {
        let script = "read go; x=$(head -c 60000000 /dev/zero | tr '\\0' x); while :; do :; done";
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let mut joined = 0;
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
            let mount = match controllers.strip_prefix("name=").unwrap_or(controllers) {
                "" => ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
                    .map(str::to_owned)
                    .into_iter()
                    .find(|m| std::path::Path::new(m).join("cgroup.controllers").exists()),
                name => Some(format!("/sys/fs/cgroup/{name}")),
            };
            let procs = mount.map(|m| format!("{m}{path}/cgroup.procs"));
            let moved = procs.is_some_and(|p| path != "/" && std::fs::write(p, child.id().to_string()).is_ok());
            joined += u32::from(moved);
        }
        assert!(joined > 0, "{groups}");
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        Self(child)
    }
}

impl Drop for Burning {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn find<'a>(list: &'a Value, path: &str, name: &str) -> &'a Value {
    let found = list.as_array().into_iter().flatten().find(|v| v.pointer(path).is_some_and(|n| n == name));
    found.unwrap_or(&Value::Null)
}

/// The value of a sample whose labels contain all of `labels`.
fn sample(text: &str, name: &str, labels: &[&str]) -> f64 {
    let fits = |l: &&str| l.starts_with(&format!("{name}{{")) && labels.iter().all(|label| l.contains(label));
    let line = text.lines().find(fits).unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{text}"));
    line.rsplit_once("} ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
}

fn a_burning_container_is_seen(view: &View) {
    let container = |summary: &Value| {
        let pod = find(&summary["pods"], "/podRef/name", "web").clone();
        (find(&pod["containers"], "/name", "hello").clone(), pod)
    };
    let (before, pod) = container(&view.json(&view.of_node("/stats/summary")));
    let calm = before["cpu"]["usageNanoCores"].as_u64().expect("a rate with the first answer");
    assert!(calm < 100_000_000, "{before}");
    for (object, path) in [
        (&before, "/rootfs/usedBytes"),
        (&before, "/rootfs/capacityBytes"),
        (&before, "/logs/usedBytes"),
        (&before, "/memory/workingSetBytes"),
        (&pod, "/network/rxBytes"),
        (&pod, "/ephemeral-storage/usedBytes"),
        (&pod, "/volume/0/usedBytes"),
        (&pod, "/process_stats/process_count"),
    ] {
        assert!(object.pointer(path).is_some_and(Value::is_u64), "{path} in {object}");
    }
    assert!(pod["network"]["rxBytes"].as_u64().unwrap() > 8_000_000, "the big body went in");

    let burning = Burning::start(view.pid);
    let began = Instant::now();
    let seen = loop {
        std::thread::sleep(Duration::from_millis(1100));
        let (now, _) = container(&view.json(&view.of_node("/stats/summary?only_cpu_and_memory=true")));
        assert!(now.get("rootfs").is_none(), "only CPU and memory");
        let (cpu, memory) = (now["cpu"]["usageNanoCores"].as_u64(), now["memory"]["workingSetBytes"].as_u64());
        // One loop cannot use more than one core; what else the machine does may leave it little.
        if cpu.is_some_and(|c| (200_000_000..1_300_000_000).contains(&c)) && memory.is_some_and(|m| m > 60_000_000) {
            break now;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "never: the container burns: {now}");
    };
    let memory = seen["memory"]["workingSetBytes"].as_u64().unwrap();
    assert!(memory < 300_000_000, "{seen}");
    let used = |v: &Value| v["cpu"]["usageCoreNanoSeconds"].as_u64().unwrap();
    assert!(used(&seen) > used(&before) + 200_000_000, "{before} {seen}");

    // What metrics-server reads says the same.
    let text = view.raw(&view.of_node("/metrics/resource"));
    let labels = ["container=\"hello\"", "namespace=\"default\"", "pod=\"web\""];
    let bytes = sample(&text, "container_memory_working_set_bytes", &labels);
    assert!((bytes - memory as f64).abs() < 50e6, "{bytes} and {memory}");
    assert!(sample(&text, "container_cpu_usage_seconds_total", &labels) * 1e9 >= used(&seen) as f64);
    assert!(sample(&text, "pod_memory_working_set_bytes", &labels[1..]) >= 60e6);
    assert!(text.contains("\nresource_scrape_error 0\n") && text.contains("\nnode_cpu_usage_seconds_total "));
    let text = view.raw(&view.of_node("/metrics/cadvisor"));
    assert!(sample(&text, "container_cpu_usage_seconds_total", &[&labels[..], &["cpu=\"total\""]].concat()) > 0.2);
    assert!(sample(&text, "container_memory_rss", &labels) > 60e6);
    assert!(sample(&text, "container_network_receive_bytes_total", &["interface=\"eth0\"", "pod=\"web\""]) > 8e6);
    drop(burning);
}

#[test]
fn the_servers_own_node_is_reached_in_the_process() {
    let lab = Lab::start("proxy");
    let path = lab.path("web.yaml");
    std::fs::write(&path, WEB.replace("NODE", &lab.name)).unwrap();
    lab.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    lab.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    lab.until("the Service has its endpoint", || {
        lab.kubectl(&["get", "endpointslices", "-o", "yaml"]).contains("name: web\n")
    });
    let view = View {
        namespace: format!("/run/netns/{}", lab.name).into(),
        kubeconfig: lab.path("etc/kubeconfig.yaml"),
        node: lab.name.clone(),
        pid: pid_of(&lab.pod("web")).unwrap(),
        kubectl: Box::new(move |args| lab.kubectl(args)),
    };
    all_of_it(&view);
}

#[test]
fn an_agents_node_is_reached_through_its_tunnel() {
    // A server without a node of its own has no other way to pods.
    let mut machines = Machines::prepare("proxy", 2);
    machines.start_server(&["--disable-agent"]);
    let token = machines.token();
    machines.start_agent(1, &token);
    machines.until("the agent's node is Ready", || machines.is_ready(1));
    let path = machines.all[0].path("web.yaml");
    std::fs::write(&path, WEB.replace("NODE", &machines.all[1].name)).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]);
    machines.until("the Service has its endpoint", || {
        machines.kubectl(&["get", "endpointslices", "-o", "yaml"]).contains("name: web\n")
    });
    let view = View {
        namespace: format!("/run/netns/{}", machines.all[0].name).into(),
        kubeconfig: machines.all[0].path("etc/kubeconfig.yaml"),
        node: machines.all[1].name.clone(),
        pid: pid_of(&machines.json(&["get", "pod", "web"])).unwrap(),
        kubectl: Box::new(move |args| machines.kubectl(args)),
    };
    all_of_it(&view);
}
