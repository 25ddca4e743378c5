//! `kubectl port-forward`: in a websocket, as kubectl does it, and over SPDY alone, as older clients do.

use std::fs;
use std::process::{Child, Command, Stdio};

use crate::lab::Lab;
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
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string());
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
