//! Every kind of stream into a container, on the server's own node and on an agent's, over both protocols: what one side has
//! ended is at its end on the other, and what comes the other way goes on.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use amphipod::wire::client::Client;
use futures::{SinkExt, StreamExt};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::archive::{self, IMAGE};
use crate::client;
use crate::machines::Machines;

/// Whoever has not ended by now never does.
const PATIENCE: Duration = Duration::from_secs(20);

fn machines(name: &str) -> Machines {
    let machines = Machines::prepare(name, 2);
    for machine in &machines.all {
        archive::put(&machine.path("data"));
    }
    machines.joined()
}

fn pod(machines: &Machines, name: &str, node: usize, script: &str, more: &Value) {
    let mut container = json!({"name": "c", "image": IMAGE, "command": ["sh", "-c", script]});
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": machines.all[node].name, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
        "containers": [container]}});
    let applied = fed(machines.command(0, "kubectl").args(["apply", "-f", "-"]), pod.to_string().as_bytes());
    assert!(applied.status.success(), "{applied:?}");
    machines.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]);
}

/// Runs a command with this as its whole input; it must end.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut streams = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        streams.0.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        streams.1.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it never ends: {command:?}\n{}", String::from_utf8_lossy(&err.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    feeding.join().unwrap();
    Output { status, stdout: out.join().unwrap(), stderr: err.join().unwrap() }
}

/// By the name of what kubectl is told in its environment.
const PROTOCOLS: [&str; 2] = ["true", "false"];

fn kubectl(machines: &Machines, websockets: &str, args: &[&str]) -> Command {
    let mut command = machines.command(0, "kubectl");
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets);
    command.args(args);
    command
}

#[test]
fn the_end_of_input_reaches_containers_on_every_node() {
    let machines = machines("ends");
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 253) as u8).collect();
    for node in 0..2 {
        let name = &format!("p{node}");
        pod(&machines, name, node, "sleep 3600", &json!({}));
        for websockets in PROTOCOLS {
            let at = format!("node {node}, websockets {websockets}");
            let exec = |words: &[&str], input: &[u8]| {
                fed(&mut kubectl(&machines, websockets, &[&["exec", "-i", name, "--"], words].concat()), input)
            };
            // The input ends first.
            for input in [&b""[..], b"hi\n", &big] {
                let said = exec(&["cat"], input);
                assert!(said.status.success() && said.stdout == input, "{at}: {} bytes", input.len());
            }
            let said = exec(&["sh", "-c", "cat >/dev/null; echo out; echo err >&2; exit 5"], b"x");
            assert_eq!((said.status.code(), &said.stdout[..]), (Some(5), &b"out\n"[..]), "{at}");
            assert!(String::from_utf8_lossy(&said.stderr).starts_with("err\n"), "{at}: {said:?}");
            // The output ends first, and the input is still taken.
            let said = exec(&["sh", "-c", "exec >&- 2>&-; cat >/tmp/late"], &big);
            assert!(said.status.success(), "{at}");
            let said = exec(&["cat", "/tmp/late"], b"");
            assert!(said.stdout == big, "{at}: {} of {} bytes", said.stdout.len(), big.len());
            // The command ends first, and does not take what there is.
            let said = exec(&["sh", "-c", "head -c 3; exit 4"], &big);
            assert_eq!((said.status.code(), &said.stdout[..]), (Some(4), &big[..3]), "{at}");
        }
        let (file, back) = (machines.all[0].path("file"), machines.all[0].path("back"));
        std::fs::write(&file, &big).unwrap();
        let to = format!("{name}:/tmp/file");
        let copied = fed(&mut kubectl(&machines, "true", &["cp", file.to_str().unwrap(), &to]), b"");
        assert!(copied.status.success(), "{copied:?}");
        let copied = fed(&mut kubectl(&machines, "true", &["cp", &to, back.to_str().unwrap()]), b"");
        assert!(copied.status.success() && std::fs::read(&back).unwrap() == big, "{copied:?}");
        std::fs::remove_file(back).unwrap();
    }
}

/// A connection that is closed while the client speaks is reset, and what it had not read is lost.
#[test]
fn a_client_that_reads_late_and_still_speaks_has_all_of_the_output() {
    const LENGTH: usize = 3_000_000;
    let machines = machines("late");
    for node in 0..2 {
        pod(&machines, &format!("p{node}"), node, "sleep 3600", &json!({}));
    }
    let kubeconfig = machines.all[0].path("etc/kubeconfig.yaml");
    let namespace = std::fs::File::open(format!("/run/netns/{}", machines.all[0].name)).unwrap();
    let asking = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let exec = async |node: usize| {
            let path = format!("/api/v1/namespaces/default/pods/p{node}/exec?stdout=true&command=head&command=-c");
            let path = format!("{path}&command={LENGTH}&command=/dev/zero");
            let mut client = Client::new(client::target_of(&kubeconfig));
            let (mut out, mut input) = client.websocket(&path, "v5.channel.k8s.io").await.unwrap().unwrap().split();
            let speaking = async {
                while out.send(Message::Ping("".into())).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                std::future::pending::<()>().await;
            };
            let listening = async {
                let (mut count, mut outcome) = (0, String::new());
                while let Some(Ok(message)) = input.next().await {
                    match message {
                        Message::Binary(bytes) if bytes[0] == 1 => count += bytes.len() - 1,
                        Message::Binary(bytes) if bytes[0] == 3 => outcome = String::from_utf8_lossy(&bytes).into(),
                        _ => {}
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                (count, outcome)
            };
            tokio::select! {
                () = speaking => unreachable!(),
                heard = listening => heard,
            }
        };
        for node in 0..2 {
            let (count, outcome) = runtime.block_on(exec(node));
            assert!(count == LENGTH && outcome.contains("Success"), "node {node}: {count} bytes, {outcome:?}");
        }
    });
    asking.join().unwrap();
}

#[test]
fn whoever_is_attached_sees_the_end_once_and_feeds_only_when_asked_to() {
    let machines = machines("joins");
    for node in 0..2 {
        for websockets in PROTOCOLS {
            let at = format!("node {node}, websockets {websockets}");
            let name = &format!("a{node}{websockets}");
            let fed_once = json!({"stdin": true, "stdinOnce": true});
            pod(&machines, name, node, "cat; echo bye; exit 3", &fed_once);
            // One who only looks does not take the input away, nor end it.
            let mut looking = kubectl(&machines, websockets, &["attach", name]);
            let mut looking = looking.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            looking.kill().unwrap();
            looking.wait().unwrap();
            let said = fed(&mut kubectl(&machines, websockets, &["attach", "-i", name]), b"this\n");
            // How the container ended is the pod's, not the stream's.
            assert_eq!(
                (said.status.code(), String::from_utf8_lossy(&said.stdout)),
                (Some(0), "this\nbye\n".into()),
                "{at}: {said:?}"
            );
            let node_name = &machines.all[node].name;
            let overrides = json!({"spec": {"nodeName": node_name}}).to_string();
            let run =
                ["run", "r", "-i", "--rm", "--quiet", "--restart=Never", "--image", IMAGE, "--overrides", &overrides];
            let said = fed(
                &mut kubectl(&machines, websockets, &[&run[..], &["--", "sh", "-c", "cat; exit 3"]].concat()),
                b"hello\n",
            );
            assert_eq!((said.status.code(), &said.stdout[..]), (Some(3), &b"hello\n"[..]), "{at}: {said:?}");
        }
    }
}

#[test]
fn an_attached_client_that_reads_late_has_all_of_the_output() {
    let machines = machines("floods");
    for node in 0..2 {
        for websockets in PROTOCOLS {
            let at = format!("node {node}, websockets {websockets}");
            let name = &format!("a{node}{websockets}");
            let fed_once = json!({"stdin": true, "stdinOnce": true});
            pod(&machines, name, node, "seq 1 1000000 >/tmp/all; read word; cat /tmp/all", &fed_once);
            let mut client = kubectl(&machines, websockets, &["attach", "-i", name]);
            let mut client =
                client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
            client.stdin.take().unwrap().write_all(b"now\n").unwrap();
            std::thread::sleep(Duration::from_secs(2));
            let mut said = String::new();
            client.stdout.take().unwrap().read_to_string(&mut said).unwrap();
            assert!(client.wait().unwrap().success(), "{at}");
            let lines = said.lines().count();
            assert!(lines == 1_000_000 && said.ends_with("\n1000000\n"), "{at}: {lines} lines, {} bytes", said.len());
        }
    }
}

#[test]
fn a_forwarded_connection_is_answered_after_the_end_of_what_was_said() {
    let machines = machines("halves");
    for node in 0..2 {
        let name = &format!("f{node}");
        pod(&machines, name, node, "nc -l -p 7001 -e sh -c 'wc -c' & sleep 3600", &json!({}));
        machines.until("it listens", || {
            let listening = kubectl(&machines, "true", &["exec", name, "--", "netstat", "-ltn"]).output().unwrap();
            String::from_utf8_lossy(&listening.stdout).contains(":7001 ")
        });
        let mut forward = kubectl(&machines, "true", &["port-forward", name, ":7001"]);
        let mut forward = forward.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut said_by_it = std::io::BufReader::new(forward.stdout.take().unwrap());
        said_by_it.read_line(&mut line).unwrap();
        let port = line.split(':').nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        let namespace = std::fs::File::open(format!("/run/netns/{}", machines.all[0].name)).unwrap();
        let said = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(&vec![b'x'; 300_000]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(said.join().unwrap().trim(), "300000", "node {node}");
        // Whom nobody hears ends.
        drop(said_by_it);
        forward.kill().unwrap();
        forward.wait().unwrap();
    }
}

#[test]
fn a_log_that_is_followed_loses_nothing_while_it_is_rotated() {
    const LINES: usize = 60_000;
    let machines = machines("turns");
    for node in 0..2 {
        let name = &format!("l{node}");
        // Five files and more, as fast as they come.
        let script = format!(
            "cat >/dev/null; awk 'BEGIN {{ s = sprintf(\"%900s\", \"\"); for (i = 0; i < {LINES}; i++) printf \"%07d%s\\n\", i, s }}'"
        );
        pod(&machines, name, node, &script, &json!({"stdin": true, "stdinOnce": true}));
        let mut following = kubectl(&machines, "true", &["logs", "-f", name]);
        let mut following = following.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = std::io::BufReader::new(following.stdout.take().unwrap());
        let begun = fed(&mut kubectl(&machines, "true", &["attach", "-i", "-q", name]), b"");
        assert!(begun.status.success(), "{begun:?}");
        for (n, line) in stdout.lines().enumerate() {
            assert_eq!(line.unwrap()[..7].parse(), Ok(n), "node {node}");
            if n == LINES - 1 {
                break;
            }
        }
        let _ = following.kill();
        following.wait().unwrap();
        let pod = machines.json(&["get", "pod", name]);
        let id = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let logs = std::fs::read_dir("/var/log/pods")
            .unwrap()
            .flatten()
            .find(|e| e.file_name().to_string_lossy().contains(&id));
        if let Some(logs) = logs {
            let files = std::fs::read_dir(logs.path().join("c")).unwrap().count();
            assert!(files > 4, "it was rotated: {files} files");
        }
    }
}

#[test]
fn terminals_have_their_size_and_end_with_their_shell_on_every_node() {
    let machines = machines("ttys");
    for node in 0..2 {
        for websockets in PROTOCOLS {
            let name = &format!("t{node}{websockets}");
            pod(&machines, name, node, "sh; exit 7", &json!({"stdin": true, "tty": true}));
            for (what, command, code) in [
                ("exec", format!("kubectl exec -it {name} -- sh"), Some(5)),
                // How the container ended is the pod's.
                ("attach", format!("kubectl attach -it -q {name}"), Some(0)),
            ] {
                let at = format!("{what}, node {node}, websockets {websockets}");
                let seen_in = machines.all[0].path(&format!("{name}-{what}"));
                let line = format!("stty rows 33 cols 101; {command}");
                let mut script = machines.command(0, "script");
                script.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets).args([
                    "-q",
                    "-e",
                    "-f",
                    "-c",
                    &line,
                    "/dev/null",
                ]);
                let out = std::fs::File::create(&seen_in).unwrap();
                let mut child = script.stdin(Stdio::piped()).stdout(out).stderr(Stdio::null()).spawn().unwrap();
                let mut keys = child.stdin.take().unwrap();
                let seen = |part: &str| std::fs::read_to_string(&seen_in).unwrap_or_default().contains(part);
                machines.until(&format!("the size: {at}"), || {
                    keys.write_all(b"stty size\n").unwrap();
                    seen("33 101")
                });
                keys.write_all(b"exit 5\n").unwrap();
                let began = Instant::now();
                let status = loop {
                    match child.try_wait().unwrap() {
                        Some(status) => break status,
                        None if began.elapsed() > PATIENCE => panic!("it never ends: {at}"),
                        None => std::thread::sleep(Duration::from_millis(20)),
                    }
                };
                assert_eq!(status.code(), code, "{at}: {}", std::fs::read_to_string(&seen_in).unwrap());
            }
        }
    }
}
