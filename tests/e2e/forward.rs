//! `kubectl port-forward`, `exec`, `cp` and `attach`: in a websocket, as kubectl does it, and over SPDY alone, as older
//! clients and most programs made with client-go do.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::lab::{BINARY, Lab, run};
use crate::nginx::{IT, machine};

/// What is sent through, both ways at once.
const BIG_BYTES: usize = 20_000_000;

struct Forwarded(Child, u16);

impl Drop for Forwarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(lab: &Lab, to: &str, port: u16, websockets: bool) -> Forwarded {
    let file = lab.path(&format!("forward-{port}-{websockets}"));
    let out = fs::File::create(&file).unwrap();
    let mut command: Command = lab.command("kubectl");
    transport(&mut command, websockets);
    command.args(["port-forward", to, &format!(":{port}")]).stdin(Stdio::null());
    let child = command.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let mut forwarded = Forwarded(child, 0);
    lab.until("the port is forwarded", || {
        let said = fs::read_to_string(&file).unwrap();
        let local = said.lines().find_map(|l| l.strip_prefix("Forwarding from 127.0.0.1:"));
        forwarded.1 = local.and_then(|l| l.split(' ').next()?.parse().ok()).unwrap_or(0);
        forwarded.1 != 0
    });
    forwarded
}

fn transport(command: &mut Command, websockets: bool) {
    for name in ["KUBECTL_PORT_FORWARD_WEBSOCKETS", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS"] {
        command.env(name, websockets.to_string());
    }
}

#[test]
fn commands_run_in_pods_and_files_are_copied() {
    let (_registry, lab) = machine("copy");
    let pod = lab.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    let big: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(lab.path("big"), &big).unwrap();
    let input = fs::File::open(lab.path("big")).unwrap();
    let echoed = lab.command(BINARY).args(["exec", "-i", &pod, "--", "cat"]).stdin(input).output().unwrap();
    assert!(echoed.status.success() && echoed.stdout == big, "{} bytes came back", echoed.stdout.len());
    for websockets in [true, false] {
        let kubectl = |args: &[&str]| {
            let mut command = lab.command("kubectl");
            transport(&mut command, websockets);
            command.args(args);
            command
        };
        let ended = kubectl(&["exec", &pod, "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!((said(&ended.stdout).as_str(), ended.status.code()), ("out\n", Some(7)), "{ended:?}");
        assert!(said(&ended.stderr).starts_with("err\n"), "{ended:?}");
        let absent = kubectl(&["exec", &pod, "--", "nothing-there"]).output().unwrap();
        assert!(!absent.status.success() && said(&absent.stderr).contains("nothing-there"), "{absent:?}");

        // Input to its end and all of the output.
        let input = fs::File::open(lab.path("big")).unwrap();
        let echoed = kubectl(&["exec", "-i", &pod, "--", "cat"]).stdin(input).output().unwrap();
        assert!(echoed.status.success() && echoed.stdout == big, "{} bytes came back", echoed.stdout.len());
        let (there, back) = (lab.path("big").display().to_string(), lab.path("back").display().to_string());
        run(&mut kubectl(&["cp", &there, &format!("{pod}:/tmp/big")]));
        run(&mut kubectl(&["cp", &format!("{pod}:/tmp/big"), &back]));
        assert!(fs::read(&back).unwrap() == big);
        fs::remove_file(&back).unwrap();

        let line = format!("stty rows 31 cols 99; kubectl exec -it {pod} -- sh -c 'sleep 0.3; tty; stty size; exit 3'");
        let mut script = lab.command("script");
        transport(&mut script, websockets);
        let ended = script.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        let shown = said(&ended.stdout);
        assert!(shown.contains("/dev/pts/") && shown.contains("31 99"), "{shown}");
        assert_eq!(ended.status.code(), Some(3), "{shown}");

        let file = lab.path(&format!("attached-{websockets}"));
        let mut attached =
            kubectl(&["attach", &pod]).stdout(fs::File::create(&file).unwrap()).stderr(Stdio::null()).spawn().unwrap();
        let address = lab.kubectl(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]);
        lab.until("what the server logs is shown", || {
            lab.curl(&format!("http://{address}/attached"));
            fs::read_to_string(&file).unwrap().contains("GET /attached ")
        });
        attached.kill().unwrap();
        attached.wait().unwrap();
    }
}

#[test]
fn ports_of_pods_are_forwarded() {
    let (_registry, lab) = machine("port");
    let pod = lab.kubectl(&["get", "pods", "-o", "jsonpath={.items[0].metadata.name}"]);
    // Something that listens on the pod's loopback only.
    let script = format!(
        "/bin/busybox mkdir /tmp/www; /bin/busybox head -c {BIG_BYTES} /dev/zero >/tmp/www/big
         httpd -p 127.0.0.1:8081 -h /tmp/www"
    );
    lab.kubectl(&["exec", &pod, "--", "sh", "-c", &script]);
    for websockets in [true, false] {
        let page = forward(&lab, IT, 80, websockets);
        let url = format!("http://127.0.0.1:{}/", page.1);
        for _ in 0..5 {
            assert!(lab.curl(&url).ends_with(" release one\n"));
        }
        // Many connections, one after the other and side by side.
        let urls = lab.inside(&["curl", "-sS", "--max-time", "10", "-Z", &format!("{url}?[1-40]")]);
        assert_eq!(urls.matches("release one").count(), 40, "{urls}");

        let private = forward(&lab, &format!("pod/{pod}"), 8081, websockets);
        let big = format!("http://127.0.0.1:{}/big", private.1);
        let sizes = ["-sS", "-o", "/dev/null", "-w", "%{size_download} ", "--max-time", "20", "-Z"];
        let got = lab.inside(&[&["curl"], &sizes[..], &[&big, "-o", "/dev/null", &big]].concat());
        assert_eq!(got.split_whitespace().collect::<Vec<_>>(), [BIG_BYTES.to_string(), BIG_BYTES.to_string()]);

        // Nobody listens: the client hears why, and the connection ends.
        let closed = forward(&lab, &format!("pod/{pod}"), 81, websockets);
        let url = format!("http://127.0.0.1:{}/", closed.1);
        let refused = lab.command("curl").args(["-sS", "--max-time", "10", &url]).output().unwrap();
        assert!(!refused.status.success() && refused.status.code() != Some(28), "{refused:?}");
        let said = || fs::read_to_string(lab.path(&format!("forward-81-{websockets}"))).unwrap();
        lab.until("kubectl says why", || said().contains("failed to connect to localhost:81"));
    }
}
