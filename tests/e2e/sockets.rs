//! Websockets as client libraries and browsers open them, on a pod of the server's node and on one of an agent: commands,
//! logs, watches and ports, in every sub-protocol, with the token in a header or among the sub-protocols.

use std::fs::File;

use amphipod::wire::client::{Client, Target};
use amphipod::wire::websocket::{Framing, Socket};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::{SinkExt, StreamExt};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

use crate::client;
use crate::machines::Machines;

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: POD, labels: {app: told}}
spec:
  nodeName: NODE
  containers: [{name: hello, image: amphipod.local/hello, ports: [{containerPort: 8080}]}]
"#;

#[test]
fn websockets_are_opened_as_client_libraries_and_browsers_do() {
    let machines = Machines::start("told", 2);
    let mut pods = String::new();
    for (n, machine) in machines.all.iter().enumerate() {
        pods += &format!("---{}", POD.replace("POD", &format!("told-{n}")).replace("NODE", &machine.name));
    }
    let path = machines.all[0].path("pods.yaml");
    std::fs::write(&path, pods).unwrap();
    machines.kubectl(&["apply", "-f", path.to_str().unwrap()]);
    machines.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=told", "--timeout=30s"]);
    machines.kubectl(&[
        "create",
        "clusterrolebinding",
        "told",
        "--clusterrole=cluster-admin",
        "--serviceaccount=default:default",
    ]);
    let token = machines.kubectl(&["create", "token", "default"]).trim().to_owned();
    let kubeconfig = machines.all[0].path("etc/kubeconfig.yaml");
    let namespace = File::open(format!("/run/netns/{}", machines.all[0].name)).unwrap();
    let asking = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut target = client::target_of(&kubeconfig);
        target.tls = client::without_certificate(&kubeconfig);
        runtime.block_on(async {
            for pod in ["told-0", "told-1"] {
                let all = Asker { target: &target, token: &token, pod };
                all.commands().await;
                all.logs().await;
                all.ports().await;
            }
            Asker { target: &target, token: &token, pod: "" }.watches().await;
        });
    });
    asking.join().unwrap();
}

struct Asker<'a> {
    target: &'a Target,
    token: &'a str,
    pod: &'a str,
}

impl Asker<'_> {
    fn path(&self, what: &str) -> String {
        format!("/api/v1/namespaces/default/pods/{}/{what}", self.pod)
    }

    /// A websocket, with the token in its header; the code of the answer if it is none.
    async fn open(&self, path: &str, protocols: &str) -> Result<Socket, u16> {
        self.open_with(path, protocols, Some(self.token.to_owned())).await
    }

    async fn open_with(&self, path: &str, protocols: &str, token: Option<String>) -> Result<Socket, u16> {
        let mut client = Client::new(Target { token, ..self.target.clone() });
        client.websocket(path, protocols).await.unwrap().map_err(|refused| refused.status().as_u16())
    }

    async fn commands(&self) {
        let command = |words: &str| self.path(&format!("exec?stdout=true&stderr=true&{words}"));
        let (good, bad) = (command("command=/amphipod&command=version"), command("command=/amphipod&command=nonsense"));
        for protocol in [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v4.base64.channel.k8s.io",
            "channel.k8s.io",
            "base64.channel.k8s.io",
            "",
            "unheard.of, v4.channel.k8s.io",
        ] {
            let framing = Framing::of(protocol);
            let said = channels(self.open(&good, protocol).await.unwrap(), framing, &[]).await;
            let about = format!("{} {protocol:?}: {said:?}", self.pod);
            assert_eq!(said[0], (1, Vec::new()), "an empty message first: {about}");
            assert!(joined(&said, 1).starts_with("amphipod v1.37"), "{about}");
            let failed = channels(self.open(&bad, protocol).await.unwrap(), framing, &[]).await;
            let (success, failure) = (joined(&said, 3), joined(&failed, 3));
            if protocol.contains('v') && !protocol.is_empty() {
                let status: Value = serde_json::from_str(&success).unwrap();
                assert_eq!(status["status"], "Success", "{about}");
                let status: Value = serde_json::from_str(&failure).unwrap();
                assert_eq!(status["reason"], "NonZeroExitCode", "{failure}");
            } else {
                assert_eq!(success, "", "{about}");
                assert!(failure.starts_with("command terminated with non-zero exit code"), "{failure}");
            }
        }
        assert_eq!(self.open(&good, "v9.channel.k8s.io").await.err(), Some(400));

        let bearer = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(self.token));
        let from_browser = format!("{bearer}, v4.channel.k8s.io");
        let socket = self.open_with(&good, &from_browser, None).await.unwrap();
        assert!(joined(&channels(socket, Framing::Binary, &[]).await, 1).starts_with("amphipod v1.37"));
        assert_eq!(self.open_with(&good, &bearer, None).await.err(), Some(401), "no protocol is left");
        let wrong = from_browser.replace(&bearer, &bearer[..bearer.len() - 4]);
        assert_eq!(self.open_with(&good, &wrong, None).await.err(), Some(401));
        assert_eq!(self.open_with(&good, "v4.channel.k8s.io", None).await.err(), Some(403), "nobody");
    }

    async fn logs(&self) {
        for (protocol, base64) in [("", false), ("binary.k8s.io", false), ("base64.binary.k8s.io", true)] {
            let mut socket = self.open(&self.path("log"), protocol).await.unwrap();
            let mut said = Vec::new();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Text(text) if base64 => said.push(STANDARD.decode(text.as_bytes()).unwrap()),
                    Message::Binary(bytes) if !base64 => said.push(bytes.to_vec()),
                    Message::Close(_) => break,
                    other => panic!("{protocol}: {other:?}"),
                }
            }
            assert!(said[0].is_empty(), "an empty message first");
            assert_eq!(said.concat(), b"hello: listening on port 8080\n", "{protocol:?}");
        }
        // One that goes on ends with its client.
        let mut socket = self.open(&self.path("log?follow=true"), "").await.unwrap();
        socket.next().await.unwrap().unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap().len(), 30);
        socket.close(None).await.unwrap();
        assert_eq!(self.open(&self.path("log"), "v4.channel.k8s.io").await.err(), Some(400));
    }

    async fn ports(&self) {
        const ASK: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
        for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io", ""] {
            let framing = Framing::of(protocol);
            let path = self.path("portforward?ports=8080&ports=8081,8080");
            let socket = self.open(&path, protocol).await.unwrap();
            let said = channels(socket, framing, &[(0, ASK), (4, ASK)]).await;
            let text = |channel: u8| {
                let port: &[u8] = if channel / 2 == 1 { b"\x91\x1f" } else { b"\x90\x1f" };
                let mine: Vec<u8> = said.iter().filter(|(c, _)| *c == channel).flat_map(|(_, d)| d.clone()).collect();
                let rest = mine.strip_prefix(port).unwrap_or_else(|| panic!("{channel}: {mine:?}"));
                String::from_utf8(rest.to_vec()).unwrap()
            };
            for channel in [0, 4] {
                assert!(text(channel).contains(&format!("Hello from pod {}", self.pod)), "{}", text(channel));
                assert_eq!(text(channel + 1), "");
            }
            assert_eq!(text(2), "", "nobody listens there");
            assert!(text(3).starts_with("error forwarding port 8081 to pod "), "{}", text(3));
        }
        assert_eq!(self.open(&self.path("portforward"), "v4.channel.k8s.io").await.err(), Some(400));
        assert_eq!(self.open(&self.path("portforward?ports=8080"), "portforward.k8s.io").await.err(), Some(400));
    }

    async fn watches(&self) {
        let path = "/api/v1/namespaces/default/configmaps?watch=true";
        let bearer = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(self.token));
        let browser = format!("{bearer}, v4.channel.k8s.io");
        for (protocol, token) in [("", Some(self.token.to_owned())), (browser.as_str(), None)] {
            let mut socket = self.open_with(path, protocol, token).await.unwrap();
            let Message::Text(text) = socket.next().await.unwrap().unwrap() else { panic!("a text") };
            let event: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&event["type"], &event["object"]["kind"]), (&"ADDED".into(), &"ConfigMap".into()));
            assert!(text.ends_with("}\n") && text.matches('\n').count() == 1, "one event a message");
            socket.close(None).await.unwrap();
        }
        let mut ended = self.open(&format!("{path}&timeoutSeconds=1"), "").await.unwrap();
        let mut last = None;
        while let Some(Ok(message)) = ended.next().await {
            last = Some(message);
        }
        assert!(matches!(last, Some(Message::Close(Some(frame))) if u16::from(frame.code) == 1000), "an orderly end");
    }
}

/// Says this and answers everything that comes on channels until the end.
async fn channels(mut socket: Socket, framing: Framing, say: &[(u8, &[u8])]) -> Vec<(u8, Vec<u8>)> {
    for (channel, data) in say {
        socket.send(framing.message(*channel, data)).await.unwrap();
    }
    let mut said = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            break;
        }
        let is_text = matches!(message, Message::Text(_));
        assert_eq!(is_text, framing == Framing::Base64, "{message:?}");
        if let Some((channel, data)) = framing.read(message) {
            said.push((channel, data.to_vec()));
        }
    }
    said
}

fn joined(said: &[(u8, Vec<u8>)], channel: u8) -> String {
    let bytes = said.iter().filter(|(c, _)| *c == channel).flat_map(|(_, data)| data.clone()).collect();
    String::from_utf8(bytes).unwrap()
}
